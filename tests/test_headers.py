"""Compliance and security headers."""

from __future__ import annotations

from healthobs.headers import OWN_NAMES, SECURITY, compliance, receipt


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
