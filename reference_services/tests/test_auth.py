"""Tests of auth-service over HTTP: tokens, introspection, revocation, keys and metadata."""

from __future__ import annotations

import json
import stat
import time
from base64 import b64encode
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest

from healthobs import ConfigurationError
from healthobs.exceptions import TokenError
from healthobs.tokens import Verifier
from reference_services._kit import ServiceSettings
from reference_services.auth import api
from reference_services.auth.domain import OAuthClient, access_claims
from reference_services.auth.signing import SigningKey

ISSUER, AUDIENCE = "https://auth.healthobs.example", "healthobs-reference"
GRANT = {"grant_type": "client_credentials"}


class Auth:
    """auth-service with what a test asks it most."""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.client = world.client("auth-service")
        self.secret = world._secret
        self.key_path = folder / "auth-service" / "auth.signing.pem"

    def post(
        self, path: str, form: dict[str, Any], *, who: str | None = "clinician", secret: str | None = None
    ) -> Any:
        """Post a form, authenticated by the header."""
        headers = {} if who is None else {"Authorization": self.basic(who, secret)}
        return self.client.post(path, data=form, headers=headers)

    def basic(self, who: str, secret: str | None = None) -> str:
        """Return the `Authorization` header of a client."""
        return "Basic " + b64encode(f"{who}:{secret or self.secret}".encode()).decode()

    def token(self, scope: str = "patient:read", who: str = "clinician") -> str:
        """Return a new token."""
        return str(self.post("/token", {**GRANT, "scope": scope}, who=who).get_json()["access_token"])

    def sample(self, name: str, **labels: str) -> float:
        """Return a metric's value."""
        return self.world.obs("auth-service").metrics.registry.get_sample_value(name, labels) or 0.0

    def entries(self, action: str) -> list[dict[str, Any]]:
        """Return the audit entries of an action."""
        return list(self.world.obs("auth-service").audit.read(action=action).entries)


@pytest.fixture
def auth(world: Any, tmp_path: Path) -> Auth:
    """A running auth-service."""
    return Auth(world, tmp_path)


class TestToken:
    """`POST /token`."""

    def test_answer(self, auth: Auth) -> None:
        """RFC 6749 §5.1, and nobody may store it."""
        answer = auth.post("/token", {**GRANT, "scope": "patient:write patient:read"})
        assert answer.status_code == 200
        assert answer.headers["Cache-Control"] == "no-store"
        assert answer.headers["Pragma"] == "no-cache"
        body = answer.get_json()
        assert body.keys() == {"access_token", "token_type", "expires_in", "scope"}
        assert (body["token_type"], body["expires_in"]) == ("Bearer", 300)
        assert body["scope"] == "patient:write patient:read"

    def test_verifies_with_the_published_keys(self, auth: Auth) -> None:
        """What is issued is what the other services accept."""
        jwks = auth.client.get("/.well-known/jwks.json").get_json()
        claims = Verifier(lambda: jwks, issuer=ISSUER, audience=AUDIENCE).verify(auth.token())
        assert (claims.sub, claims.client_id) == ("clinician", "clinician")
        assert (claims.scopes, claims.roles) == (frozenset({"patient:read"}), ("clinician",))
        assert claims.exp - claims.raw["iat"] == 300

    def test_each_has_its_id(self, auth: Auth) -> None:
        """Two tokens are never one."""
        assert auth.token() != auth.token()

    def test_secret_in_the_body(self, auth: Auth) -> None:
        """client_secret_post."""
        form = {
            **GRANT,
            "client_id": "billing",
            "client_secret": auth.secret,
            "unknown": "ignored",
            "scope": "",
        }
        answer = auth.post("/token", form, who=None)
        assert answer.status_code == 200
        assert "payment:write" in answer.get_json()["scope"]

    @pytest.mark.parametrize(
        ("form", "error"),
        [
            ({"grant_type": "password"}, "unsupported_grant_type"),
            ({"grant_type": "authorization_code"}, "unsupported_grant_type"),
            ({}, "invalid_request"),
            ({"grant_type": ["client_credentials", "client_credentials"]}, "invalid_request"),
            ({**GRANT, "scope": "x" * 3000}, "invalid_request"),
            ({**GRANT, "scope": "root"}, "invalid_scope"),
            ({**GRANT, "scope": "patient:read  patient:write"}, "invalid_scope"),
            ({**GRANT, "client_secret": "x"}, "invalid_request"),
            ({**GRANT, "client_id": "other"}, "invalid_request"),
        ],
    )
    def test_refusals(self, auth: Auth, form: dict[str, Any], error: str) -> None:
        """RFC 6749 §5.2, without an echo."""
        answer = auth.post("/token", form)
        assert (answer.status_code, answer.get_json()["error"]) == (400, error)
        assert answer.get_json().keys() == {"error", "error_description"}
        assert answer.headers["Cache-Control"] == "no-store"

    @pytest.mark.parametrize("body", ['{"user_id":"u","scopes":["admin"],"role":"admin"}', "{", ""])
    def test_json_is_refused(self, auth: Auth, body: str) -> None:
        """Nobody picks a role in a JSON body."""
        headers = {"Authorization": auth.basic("clinician")}
        answer = auth.client.post("/token", data=body, content_type="application/json", headers=headers)
        assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_request")

    @pytest.mark.parametrize(
        ("who", "secret"), [("clinician", "wrong"), ("nobody", None), ("078-05-1120", "x"), ("", "x")]
    )
    def test_wrong_credentials(self, auth: Auth, who: str, secret: str | None) -> None:
        """Wrong secret and unknown client get the same 401, byte for byte but the ids."""
        answer = auth.post("/token", GRANT, who=who, secret=secret)
        assert answer.status_code == 401
        assert answer.get_json() == {
            "error": "invalid_client",
            "error_description": "client authentication failed",
        }
        assert answer.headers["WWW-Authenticate"].startswith('Basic realm="')
        assert auth.sample("auth_login_attempts_total", result="failed") == 1

    def test_without_credentials(self, auth: Auth) -> None:
        """Not even an attempt at authentication."""
        assert auth.post("/token", GRANT, who=None).status_code == 401

    def test_counted_and_audited(self, auth: Auth) -> None:
        """One token, one sample, one entry that tells who and what, never the token."""
        token = auth.token()
        assert auth.sample("auth_tokens_issued_total", grant="client_credentials") == 1
        (entry,) = auth.entries("token.issued")
        assert (entry["outcome"], entry["actor"]["id"]) == ("ok", "clinician")
        assert entry["details"] == {"grant": "client_credentials", "scope": "patient:read"}
        assert token.rpartition(".")[2] not in json.dumps(entry)

    def test_denials_are_audited(self, auth: Auth) -> None:
        """A refused request has an entry of its own kind, without the invented name."""
        auth.post("/token", GRANT, who="078-05-1120", secret="x")
        auth.post("/token", {**GRANT, "scope": "root"})
        entries = auth.entries("token.denied")
        assert sorted(entry["outcome"] for entry in entries) == ["denied", "failed"]
        assert "078-05-1120" not in json.dumps(entries)
        assert auth.entries("token.issued") == []

    def test_nothing_secret_is_logged(self, auth: Auth) -> None:
        """Neither secret nor token is in a log line or span."""
        token = auth.token()
        left = json.dumps(auth.world.log_lines("auth-service")) + "".join(
            span.to_json() for span in auth.world.spans("auth-service")
        )
        assert auth.secret not in left
        assert token not in left


class TestLockout:
    """Ten failures lock a client for half an hour."""

    def test_right_secret_is_refused_after_ten(self, auth: Auth) -> None:
        """The locked client is answered as if the secret were wrong; another one is not touched."""
        refused = [auth.post("/token", GRANT, secret="wrong") for _ in range(10)]
        locked = auth.post("/token", GRANT)
        assert [answer.status_code for answer in [*refused, locked]] == [401] * 11
        assert locked.get_json() == refused[0].get_json()
        assert auth.post("/token", GRANT, who="billing").status_code == 200
        assert auth.sample("auth_login_attempts_total", result="locked") == 1
        assert auth.sample("auth_security_events_total", event_type="client_locked", severity="high") == 1

    def test_many_at_once_are_no_more_than_ten(self, auth: Auth) -> None:
        """Attempts that come together are judged one after the other: ten fail, all others find the lock, which is one."""
        auth.post("/token", GRANT, secret="wrong")
        with ThreadPoolExecutor(24) as threads:
            ready = Barrier(24)

            def attempt(_number: int) -> int:
                ready.wait(30)
                headers = {"Authorization": auth.basic("clinician", "wrong")}
                own = auth.world.client("auth-service")
                return int(own.post("/token", data=GRANT, headers=headers).status_code)

            assert set(threads.map(attempt, range(24))) == {401}
        attempts = [
            auth.sample("auth_login_attempts_total", result=result) for result in ("failed", "locked")
        ]
        assert attempts == [10, 15]
        assert auth.sample("auth_security_events_total", event_type="client_locked", severity="high") == 1

    def test_success_clears_the_count(self, auth: Auth) -> None:
        """Nine failures, a success, nine more: still open."""
        for _ in range(2):
            for _ in range(9):
                auth.post("/token", GRANT, secret="wrong")
            assert auth.post("/token", GRANT).status_code == 200

    def test_inventing_names_fills_no_table(self, auth: Auth) -> None:
        """Failures of unknown clients share rows; none of them locks a known client."""
        for number in range(12):
            assert auth.post("/token", GRANT, who=f"invented-{number}", secret="x").status_code == 401
        assert auth.post("/token", GRANT).status_code == 200


class TestIntrospect:
    """`POST /introspect` (RFC 7662)."""

    def test_active(self, auth: Auth) -> None:
        """A valid token is described to any authenticated client."""
        body = auth.post(
            "/introspect", {"token": auth.token(), "token_type_hint": "x"}, who="auditor"
        ).get_json()
        assert {name: body[name] for name in ("active", "scope", "client_id", "sub", "iss", "aud", "token_type", "roles")} == {
            "active": True, "scope": "patient:read", "client_id": "clinician", "sub": "clinician", "iss": ISSUER,
            "aud": AUDIENCE, "token_type": "Bearer", "roles": ["clinician"],
        }  # fmt: skip
        assert body["exp"] - body["iat"] == 300
        assert auth.sample("auth_tokens_validated_total", result="active") == 1
        (entry,) = auth.entries("token.introspected")
        assert (entry["outcome"], entry["actor"]["id"], entry["resource"]["id"]) == (
            "ok",
            "auditor",
            body["jti"],
        )

    @pytest.mark.parametrize("change", ["unknown", "truncated", "expired", "foreign"])
    def test_inactive(self, auth: Auth, change: str, tmp_path: Path) -> None:
        """RFC 7662 §2.2: nothing but that it is not active."""
        client = OAuthClient("clinician", "", (), ())
        old = access_claims(client, ["s"], issuer=ISSUER, audience=AUDIENCE, now_s=int(time.time()) - 306)
        token = {
            "unknown": "x",
            "truncated": auth.token()[:-1],
            "expired": SigningKey.load(auth.key_path).sign(old),
            "foreign": SigningKey.load(tmp_path / "other.pem").sign({**old, "exp": int(time.time()) + 100}),
        }[change]
        answer = auth.post("/introspect", {"token": token})
        assert (answer.status_code, answer.get_json()) == (200, {"active": False})
        assert auth.sample("auth_tokens_validated_total", result="inactive") == 1

    def test_caller_is_authenticated(self, auth: Auth) -> None:
        """RFC 7662 §2.1: no scanning for tokens."""
        answer = auth.post("/introspect", {"token": auth.token()}, who=None)
        assert (answer.status_code, answer.get_json()["error"]) == (401, "invalid_client")
        assert [entry["outcome"] for entry in auth.entries("token.introspected")] == ["denied"]

    def test_token_is_required(self, auth: Auth) -> None:
        """Without one there is nothing to describe."""
        assert auth.post("/introspect", {}).get_json()["error"] == "invalid_request"


class TestRevoke:
    """`POST /revoke` (RFC 7009)."""

    def test_revoked_is_inactive(self, auth: Auth) -> None:
        """At once, for good, and only that token."""
        token, other = auth.token(), auth.token()
        for _ in range(2):
            answer = auth.post("/revoke", {"token": token})
            assert (answer.status_code, answer.data) == (200, b"")
        assert auth.post("/introspect", {"token": token}).get_json() == {"active": False}
        assert auth.post("/introspect", {"token": other}).get_json()["active"] is True
        assert [entry["outcome"] for entry in auth.entries("token.revoked")] == ["ok", "ok"]

    def test_unknown_is_no_error(self, auth: Auth) -> None:
        """RFC 7009 §2.2: the purpose is reached already."""
        assert auth.post("/revoke", {"token": "x"}).status_code == 200
        (entry,) = auth.entries("token.revoked")
        assert (entry["resource"]["id"], entry["details"]) == (None, {"revoked": False})

    def test_of_another_client(self, auth: Auth) -> None:
        """A client revokes its own tokens only."""
        token = auth.token()
        answer = auth.post("/revoke", {"token": token}, who="billing")
        assert (answer.status_code, answer.get_json()["error"]) == (400, "invalid_grant")
        assert auth.post("/introspect", {"token": token}).get_json()["active"] is True

    def test_expired_entries_go(self, auth: Auth) -> None:
        """The denylist does not grow for ever."""
        from reference_services.auth.store import REVOKED, Store

        kit = auth.world["auth-service"].extensions["reference_services"]
        store = Store(kit.engine)
        with kit.transaction() as connection:
            store.revoke(connection, "old", 1_000, 1_000)
            store.revoke(connection, "new", 10_000, 10_000)
        assert (store.is_revoked("old"), store.is_revoked("new")) == (False, True)
        assert REVOKED.name == "revoked_token"


class TestWellKnown:
    """What anybody may read."""

    def test_keys(self, auth: Auth) -> None:
        """One public RSA key, from a file that only its owner can read."""
        (key,) = auth.client.get("/.well-known/jwks.json").get_json()["keys"]
        assert key.keys() == {"kty", "n", "e", "kid", "use", "alg"}
        assert key["kid"] == SigningKey.load(auth.key_path).kid
        assert stat.S_IMODE(auth.key_path.stat().st_mode) == 0o600

    def test_metadata(self, auth: Auth) -> None:
        """RFC 8414 §2."""
        body = auth.client.get("/.well-known/oauth-authorization-server").get_json()
        assert (body["issuer"], body["token_endpoint"]) == (ISSUER, f"{ISSUER}/token")
        assert body["grant_types_supported"] == ["client_credentials"]
        assert body["response_types_supported"] == []

    def test_readiness_watches_the_key(self, auth: Auth) -> None:
        """A look at the key file tells how old the key is."""
        check = auth.world.obs("auth-service").health
        assert check.readiness()[1]["checks"]["keys"] == "ready"
        assert auth.sample("auth_key_age_seconds") >= 0
        auth.key_path.chmod(0o644)
        assert not auth.world["auth-service"].extensions["auth-service"].keys_are_sound()


class TestCreateApp:
    """Start-up."""

    @pytest.mark.parametrize("content", [None, "{", '[{"client_id":"a"}]'])
    def test_wrong_clients_file(self, tmp_path: Path, content: str | None) -> None:
        """A service that would know no clients does not start in silence."""
        path = tmp_path / "clients.json"
        if content is not None:
            path.write_text(content)
        environ = {
            "HEALTHOBS_DATA_DIR": str(tmp_path),
            "AUTH_CLIENTS_FILE": str(path),
            "HEALTHOBS_CAPTURE_STDLIB": "false",
        }
        with pytest.raises(ConfigurationError, match="AUTH_CLIENTS_FILE"):
            api.create_app(ServiceSettings.from_env(api.INFO, environ))

    def test_clients_removed_from_the_file_are_forgotten(self, auth: Auth, tmp_path: Path) -> None:
        """The file decides, also at the next start."""
        token = auth.token()
        store = auth.world["auth-service"].extensions["auth-service"].store
        store.replace_clients([])
        assert store.client("clinician") is None
        assert auth.post("/introspect", {"token": token}).status_code == 401

    def test_verifier_refuses_other_issuers(self, auth: Auth) -> None:
        """The key alone is not enough."""
        jwks = auth.client.get("/.well-known/jwks.json").get_json()
        with pytest.raises(TokenError, match="wrong_issuer"):
            Verifier(lambda: jwks, issuer="https://other", audience=AUDIENCE).verify(auth.token())
