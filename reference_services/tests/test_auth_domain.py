"""Tests of auth-service's decisions, without HTTP or database."""

from __future__ import annotations

import json
import stat
import threading
import time
from base64 import b64encode, urlsafe_b64encode
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs.tokens import Verifier
from reference_services.auth import clients, domain
from reference_services.auth.domain import Failures, OAuthClient, OAuthError
from reference_services.auth.signing import SigningKey

MINUTE_NS = 60 * 10**9
CLIENT = OAuthClient("app", sha256(b"s3cret").hexdigest(), ("patient:read", "patient:write"), ("clinician",))


def basic(name: str, secret: str) -> str:
    return "Basic " + b64encode(f"{name}:{secret}".encode()).decode()


class TestCredentials:
    """RFC 6749 §2.3.1: from the header or from the body, not from both."""

    def test_basic(self) -> None:
        """The header's parts are percent-encoded before base64."""
        assert domain.credentials(basic("my%20app", "a%3Ab"), {}) == ("my app", "a:b")

    def test_basic_in_any_case_with_colons_in_the_secret(self) -> None:
        """The scheme is case-insensitive, and the first colon separates."""
        assert domain.credentials(basic("app", "a:b").replace("Basic", "bASIC"), {}) == ("app", "a:b")

    def test_post(self) -> None:
        """The body's form."""
        assert domain.credentials(None, {"client_id": "app", "client_secret": "x"}) == ("app", "x")

    def test_same_client_id_in_the_body_is_no_second_method(self) -> None:
        """`client_id` may accompany the header when it agrees."""
        assert domain.credentials(basic("app", "x"), {"client_id": "app"}) == ("app", "x")

    @pytest.mark.parametrize("form", [{"client_secret": "x"}, {"client_id": "other"}])
    def test_two_methods(self, form: dict[str, str]) -> None:
        """RFC 6749 §2.3: one method per request."""
        with pytest.raises(OAuthError, match="invalid_request"):
            domain.credentials(basic("app", "x"), form)

    @pytest.mark.parametrize(
        "header", [None, "", "Basic", "Basic !", "Bearer x", basic("", "x"), basic("a", ""), "Basic YQ==", "Basic /w==",
                   basic("a%0A", "x"), basic("ü", "x"), basic("a" * 129, "x")]
    )  # fmt: skip
    def test_none_that_could_be_right(self, header: str | None) -> None:
        """Missing or malformed credentials fail like wrong ones."""
        with pytest.raises(OAuthError, match="invalid_client") as caught:
            domain.credentials(header, {})
        assert caught.value.status == 401


class TestSecretMatches:
    """The secret of a known client, and nothing else."""

    def test_right(self) -> None:
        """Equal hashes."""
        assert domain.secret_matches(CLIENT, "s3cret")

    @pytest.mark.parametrize("secret", ["", "s3cre", "s3crett", CLIENT.secret_sha256])
    def test_wrong(self, secret: str) -> None:
        """The stored hash is not a secret either."""
        assert not domain.secret_matches(CLIENT, secret)

    def test_unknown_client(self) -> None:
        """Whatever is compared then, it never matches."""
        assert not domain.secret_matches(None, "s3cret")


class TestLockout:
    """Ten failures, then half an hour."""

    def test_tenth_failure_locks(self) -> None:
        """Nine do not, ten do, and the half hour starts with the tenth."""
        failures: Failures | None = None
        for number in range(1, 11):
            failures = domain.after_failure(failures, number * MINUTE_NS)
            assert failures.locks(number * MINUTE_NS) == (number == 10)
        assert failures == Failures(10, 10 * MINUTE_NS)
        assert failures.locks(40 * MINUTE_NS - 1)
        assert not failures.locks(40 * MINUTE_NS)

    def test_old_failures_are_forgotten(self) -> None:
        """What happened more than half an hour ago no longer counts."""
        nine = Failures(9, 0)
        assert domain.after_failure(nine, 30 * MINUTE_NS) == Failures(1, 30 * MINUTE_NS)
        assert domain.after_failure(nine, 30 * MINUTE_NS - 1).count == 10

    @given(st.lists(st.integers(0, 3 * 60), max_size=60))
    def test_never_more_than_ten_attempts_in_half_an_hour(self, minutes: list[int]) -> None:
        """However attempts are spread, no window of half an hour judges more than ten wrong ones after the lock."""
        failures: Failures | None = None
        judged: list[int] = []
        for minute in sorted(minutes):
            now = minute * MINUTE_NS
            if failures is not None and failures.locks(now):
                continue
            judged.append(now)
            failures = domain.after_failure(failures, now)
        locked_at = [now for place, now in enumerate(judged) if place >= 9 and now - judged[place - 9] == 0]
        assert all(
            later == now or later - now >= domain.LOCKOUT_NS
            for now in locked_at
            for later in judged
            if later > now
        )

    def test_slots(self) -> None:
        """Each known client has its own counter; all invented names share a fixed number of them."""
        assert domain.failure_slot(CLIENT, "app") != domain.failure_slot(None, "app")
        assert len({domain.failure_slot(None, f"invented-{n}") for n in range(5000)}) <= domain.UNKNOWN_SLOTS


class TestGrantedScopes:
    """A subset of what the client may have."""

    def test_asked(self) -> None:
        """In the order asked for, each once."""
        assert domain.granted_scopes(CLIENT, "patient:write patient:read patient:write") == (
            "patient:write",
            "patient:read",
        )

    def test_none_asked(self) -> None:
        """RFC 6749 §3.3: a documented default, here all of the client's."""
        assert domain.granted_scopes(CLIENT, None) == CLIENT.scopes

    @pytest.mark.parametrize(
        "scope",
        ["clients:write", "patient:read clients:write", "patient:read  x", " ", 'a"b', "é", "PATIENT:READ"],
    )
    def test_refused(self, scope: str) -> None:
        """More than the client's, or not a scope at all."""
        with pytest.raises(OAuthError, match="invalid_scope"):
            domain.granted_scopes(CLIENT, scope)

    @given(st.text(max_size=60))
    def test_never_more_than_the_clients(self, scope: str) -> None:
        """For any request, what is granted is the client's."""
        try:
            granted = domain.granted_scopes(CLIENT, scope)
        except OAuthError:
            granted = ()
        assert set(granted) <= set(CLIENT.scopes)


class TestSigningKey:
    """One private RSA key in one private file."""

    def test_file(self, tmp_path: Path) -> None:
        """Made once, readable by its owner only, read again as the same key."""
        path = tmp_path / "keys" / "signing.pem"
        key = SigningKey.load(path)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert SigningKey.load(path).kid == key.kid
        assert [found.name for found in path.parent.iterdir()] == ["signing.pem"]

    def test_replicas_agree(self, tmp_path: Path) -> None:
        """Starting together, all end with the key in the file."""
        path, kids = tmp_path / "signing.pem", []
        threads = [threading.Thread(target=lambda: kids.append(SigningKey.load(path).kid)) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert set(kids) == {SigningKey.load(path).kid}
        assert len(kids) == 4

    def test_published_key_is_public_only(self, tmp_path: Path) -> None:
        """The key set has the RFC 7638 thumbprint and no private member."""
        (published,) = SigningKey.load(tmp_path / "k.pem").jwks()["keys"]
        canonical = json.dumps({name: published[name] for name in ("e", "kty", "n")}, separators=(",", ":"))
        thumbprint = urlsafe_b64encode(sha256(canonical.encode()).digest()).rstrip(b"=").decode()
        assert published["kid"] == thumbprint
        assert published.keys() == {"kty", "n", "e", "kid", "use", "alg"}

    def test_signs_what_the_verifier_accepts(self, tmp_path: Path) -> None:
        """A token made here passes `healthobs.tokens` with all its claims."""
        key = SigningKey.load(tmp_path / "k.pem")
        claims = domain.access_claims(
            CLIENT, ["patient:read"], issuer="i", audience="a", now_s=int(time.time())
        )
        verified = Verifier(key.jwks, issuer="i", audience="a").verify(key.sign(claims))
        assert dict(verified.raw) == claims
        assert (verified.sub, verified.roles, verified.scopes) == (
            "app",
            ("clinician",),
            frozenset({"patient:read"}),
        )
        assert verified.exp - verified.raw["iat"] == 300


GOOD: dict[str, Any] = {"client_id": "a", "secret_sha256": "ab" * 32, "scopes": ["s"], "roles": []}


class TestReadClients:
    """The clients file is checked whole; messages name entries by number."""

    def test_good(self) -> None:
        """One client per entry."""
        assert clients.parse(json.dumps([GOOD])) == [OAuthClient("a", "ab" * 32, ("s",), ())]
        assert clients.parse("[]") == []

    @pytest.mark.parametrize(
        "changes",
        [
            {"client_id": ""}, {"client_id": "a:b"}, {"client_id": 1}, {"client_id": "a\n"},
            {"secret_sha256": "AB" * 32}, {"secret_sha256": "ab"}, {"secret_sha256": "0" * 64}, {"secret_sha256": None},
            {"scopes": []}, {"scopes": "s"}, {"scopes": ["a b", ""]}, {"scopes": [1]}, {"roles": "r"}, {"extra": 1},
        ],
    )  # fmt: skip
    def test_bad_entry(self, changes: dict[str, Any]) -> None:
        """The second entry is wrong; its values are not shown."""
        with pytest.raises(clients.ClientsFileError, match="client 1") as caught:
            clients.parse(json.dumps([{**GOOD, "client_id": "first"}, {**GOOD, **changes}]))
        assert "AB" * 32 not in str(caught.value)

    @pytest.mark.parametrize("text", ["", "{", "{}", '"x"', "[1]", json.dumps([GOOD, GOOD])])
    def test_bad_file(self, text: str) -> None:
        """Not JSON, not an array, or a client twice."""
        with pytest.raises(clients.ClientsFileError):
            clients.parse(text)
