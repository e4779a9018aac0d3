"""Compliance and security headers."""

from __future__ import annotations

from typing import ClassVar
from uuid import UUID

import pytest

from healthobs.headers import OWN_NAMES, SECURITY, compliance, receipt, settle
from healthobs.http import new_request_id


class TestCompliance:
    """The three structured fields."""

    def test_exact_form(self) -> None:
        """The fields are RFC 9651 dictionaries, byte for byte as documented."""
        assert compliance(conf="R", frameworks=("hipaa", "sox"), purpose=("TREAT",), retention_days=2555) == (
            ("Compliance", 'frameworks=("hipaa" "sox");catalogue="2026.1"'),
            ("Data-Classification", 'conf=R, purpose=("TREAT")'),
            ("Data-Handling", "no-store, retention=220752000, redisclose=?0"),
        )

    def test_never_claims_compliance(self) -> None:
        """The headers state handling; none says that anything is compliant."""
        text = str(compliance(conf="N", frameworks=("hipaa",), retention_days=1)).lower()
        assert "true" not in text
        assert "compliant" not in text


class TestSettle:
    """The application's own headers and ours."""

    ADDED: ClassVar = [*compliance(conf="R", frameworks=(), retention_days=1), *SECURITY]

    def test_nothing_of_ours_is_sent(self) -> None:
        """Then both lists stay as they are, the very same."""
        sent = [("Content-Type", "text/plain")]
        stays, added = settle(sent, self.ADDED, restricted=True)
        assert (stays is sent, added is self.ADDED) == (True, True)

    @pytest.mark.parametrize("own", ["no-store", "max-age=0, No-Store", "private,no-store"])
    def test_own_no_store(self, own: str) -> None:
        """An own `no-store` stands, with all that is stated."""
        sent = [("cache-control", own)]
        stays, added = settle(sent, self.ADDED, restricted=True)
        assert (stays, dict(added)["Data-Handling"]) == (sent, "no-store, retention=86400, redisclose=?0")
        assert "Cache-Control" not in dict(added)

    def test_restricted_without_headers_of_ours(self) -> None:
        """Where no security header is added, nothing of the application's is touched."""
        sent = [("Cache-Control", "public"), ("X-Request-Id", "x")]
        assert settle(sent, [("X-Request-Id", "y")], restricted=True) == (sent, [])


class TestReceipt:
    """The audit receipt."""

    def test_exact_form(self) -> None:
        """Log, index and root, the root as a byte sequence (RFC 9651 §3.3.5)."""
        assert receipt("acme/phi/1", 7, b"\x00\xff") == (
            "Audit-Receipt",
            'log="acme/phi/1";index=7;root=:AP8=:',
        )


class TestOwnNames:
    """What a response may get from here."""

    def test_complete(self) -> None:
        """Every header that is added is known, so that the application's own are never doubled."""
        sent = [*SECURITY, *compliance(conf="N", frameworks=(), retention_days=1), receipt("o", 1, b"")]
        assert {name.lower() for name, _ in sent} | {"x-request-id", "traceresponse"} == OWN_NAMES


def test_a_new_request_id_is_a_random_uuid() -> None:
    """Where the caller states none, a request gets a UUID of version 4 (RFC 9562 §5.4), each another."""
    made = {new_request_id(None) for _ in range(200)}
    assert {(str(UUID(text)) == text, UUID(text).version) for text in made} == {(True, 4)}
    assert {text[19] for text in made} == set("89ab")
    assert len(made) == 200
