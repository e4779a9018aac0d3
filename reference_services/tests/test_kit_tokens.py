"""Who calls and who is called: access tokens, what is recorded of who is refused, and the clients of other services."""

from __future__ import annotations

import json
from typing import Any

import pytest
from joserfc import jwt
from joserfc.jwk import RSAKey

from healthobs import tokens
from healthobs.clock import Clock
from healthobs.exceptions import ClientError
from reference_services._kit import Principal
from reference_services._kit.settings import DEFAULT_AUDIENCE, DEFAULT_ISSUER
from reference_services._kit.transport import WsgiPool
from things import nothing

KEY = RSAKey.generate_key(2048, parameters={"kid": "k1"}, private=True)


def token(bench: Any, *, scope: str = "thing:read", lifetime: int = 60, **changes: object) -> dict[str, str]:
    now = bench.kit.clock.wall_ns() // 1_000_000_000
    claims = {
        "iss": DEFAULT_ISSUER, "aud": DEFAULT_AUDIENCE, "sub": "client-1", "client_id": "client-1",
        "jti": "j", "iat": now, "exp": now + lifetime, "scope": scope, "roles": ["nurse"], **changes,
    }  # fmt: skip
    made = jwt.encode({"alg": "RS256", "kid": "k1", "typ": "at+jwt"}, claims, KEY)
    return {"Authorization": f"Bearer {made}"}


def keys() -> dict[str, Any]:
    return {"keys": [{**KEY.as_dict(private=False), "use": "sig", "alg": "RS256"}]}


class TestTokens:
    """Bearer tokens on a route."""

    @pytest.fixture
    def client(self, bench: Any) -> Any:
        """Give a service with one protected route."""
        bench.kit.jwks = keys

        @bench.kit.get(
            "/things",
            returns={200: None},
            scope="thing:read",
            audit="thing.read",
            resource_type="Thing",
            summary="x",
        )
        def things(principal: Principal) -> dict[str, Any]:
            return {"subject": principal.subject, "client": principal.client_id, "roles": principal.roles}

        return bench.client()

    def test_a_good_token(self, client: Any, bench: Any) -> None:
        """The view gets the caller, and the audit entry names it."""
        answer = client.get("/things", headers=token(bench))
        assert answer.get_json() == {"subject": "client-1", "client": "client-1", "roles": ["nurse"]}
        entry = bench.obs.audit.read(action="thing.read").entries[-1]
        assert (entry["outcome"], entry["actor"]["id"]) == ("ok", "client-1")

    @pytest.mark.parametrize("header", [None, "", "Bearer", "Bearer ", "Basic abc", "abc"])
    def test_no_token(self, client: Any, header: str | None) -> None:
        """Without a bearer token it is 401 with a bare challenge (RFC 6750 §3.1)."""
        answer = client.get("/things", headers={} if header is None else {"Authorization": header})
        assert (answer.status_code, answer.get_json()["code"]) == (401, "token_missing")
        assert answer.headers["WWW-Authenticate"] == 'Bearer realm="bench-service"'

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"lifetime": -60}, "expired"),
            ({"iss": "https://other.example"}, "wrong_issuer"),
            ({"aud": "other"}, "wrong_audience"),
        ],
    )
    def test_a_bad_token(self, client: Any, bench: Any, changes: dict[str, Any], code: str) -> None:
        """A refused token is 401 with its code; the attempt is audited as denied."""
        answer = client.get("/things", headers=token(bench, **changes))
        assert (answer.status_code, answer.get_json()["code"]) == (401, code)
        assert 'error="invalid_token"' in answer.headers["WWW-Authenticate"]
        assert bench.obs.audit.read(action="thing.read").entries[-1]["outcome"] == "denied"

    def test_no_scope(self, client: Any, bench: Any) -> None:
        """A token without the route's scope is 403 and names the scope."""
        answer = client.get("/things", headers=token(bench, scope="thing:write thing:readx"))
        assert (answer.status_code, answer.get_json()["code"]) == (403, "scope_missing")
        assert 'scope="thing:read"' in answer.headers["WWW-Authenticate"]

    def test_no_keys(self, client: Any, bench: Any, make_bench: Any) -> None:
        """While the issuer's keys cannot be had nothing is judged: 503, and try again."""

        def down() -> dict[str, Any]:
            raise ClientError("down")

        other = make_bench("other")
        other.kit.jwks = down
        other.kit.get("/x", returns={200: None}, scope="x", summary="x")(nothing)
        caller = other.client()
        answer = caller.get("/x", headers=token(other))
        assert (answer.status_code, answer.get_json()["code"]) == (503, "keys_unavailable")
        assert answer.headers["Retry-After"] == "2"
        for path, scope in (("/audit/trail", "audit:read"), ("/compliance/status", "compliance:read")):
            asked = caller.get(path, headers=token(other, scope=scope))
            assert (asked.status_code, asked.headers.get("Retry-After")) == (503, "2"), path

    def test_the_trail_needs_its_scope(self, client: Any, bench: Any) -> None:
        """`/audit/trail` is for callers with audit:read."""
        assert client.get("/audit/trail").status_code == 401
        for path, action in (("/audit/trail", "audit.read"), ("/compliance/status", "compliance.read")):
            assert client.get(path, headers=token(bench)).status_code == 403
            assert client.get(path, headers={"Authorization": "Bearer x"}).status_code == 401
            refused = [
                (entry["outcome"], entry["actor"]["id"])
                for entry in bench.obs.audit.read(action=action).entries
            ]
            assert refused == [("denied", None), ("denied", "client-1")], path
        assert client.get("/audit/trail", headers=token(bench, scope="audit:read")).status_code == 200


class TestKeysAtHand:
    """The readiness check `token_keys`."""

    def made(self, make_bench: Any, *, scope: str | None = "x") -> tuple[Any, dict[str, Any]]:
        """Return a service with a route, and its source of keys: whether it is away, its time, how often it was asked."""
        bench, source = make_bench("other"), {"away": True, "now_s": 0.0, "asked": 0}

        def fetch() -> dict[str, Any]:
            source["asked"] += 1
            if source["away"]:
                raise ClientError("down")
            return keys()

        clock = Clock(monotonic_ns=lambda: int(source["now_s"] * 1e9))
        bench.kit.jwks = tokens.CachedJwks(fetch, clock=clock)
        bench.kit.get("/x", returns={200: None}, scope=scope, summary="x")(nothing)
        return bench, source

    def test_not_ready_without_keys(self, make_bench: Any) -> None:
        """A service that can verify no token is not ready, and starts all the same: nobody waits for another's start."""
        bench, source = self.made(make_bench)
        client = bench.client()
        assert source["asked"] == 0
        answer = client.get("/readiness")
        assert (answer.status_code, answer.get_json()["checks"]["token_keys"]) == (503, "not_ready")
        assert client.get("/health").status_code == 200

    def test_ready_while_keys_may_be_used(self, make_bench: Any) -> None:
        """The check fetches what is missing; once there is a set an hour's outage of auth-service changes nothing."""
        bench, source = self.made(make_bench)
        source["away"] = False
        answer = bench.client().get("/readiness")
        assert (answer.status_code, answer.get_json()["checks"]["token_keys"]) == (200, "ready")
        source["away"] = True
        for source["now_s"] in (301.0, 3599.0):
            bench.kit.token_keys()
        assert source["asked"] == 1
        source["now_s"] = 3600.0
        with pytest.raises(ClientError):
            bench.kit.token_keys()
        source["away"] = False
        bench.kit.token_keys()

    def test_only_where_tokens_are_needed(self, make_bench: Any) -> None:
        """A service whose routes are open does not depend on auth-service."""
        bench, _ = self.made(make_bench, scope=None)
        assert "token_keys" not in bench.client().get("/readiness").get_json()["checks"]

    def test_the_services(self, world: Any) -> None:
        """Three have it; the issuer, whose keys are its own, waits for nobody."""
        having = {name for name in world if "token_keys" in world.obs(name).health.readiness()[1]["checks"]}
        assert having == {"phi-service", "payment-gateway", "medical-device"}


class TestRefusals:
    """The audit entry of a call that is refused says who wanted what."""

    ID = "00000000-0000-4000-8000-00000000ca7a"
    SURROGATE = "pay_" + "0123456789abcdef" * 2

    @pytest.fixture
    def client(self, bench: Any) -> Any:
        """Give a service with records that are named by their path."""
        bench.kit.jwks = keys
        options = {"returns": {200: None}, "scope": "thing:read", "audit": "thing.read", "summary": "x"}
        bench.kit.get("/things/<uuid:thing_id>", **options)(nothing)
        bench.kit.get("/persons/<uuid:person_id>", person=True, **options)(nothing)
        bench.kit.get("/payments/<payment_id>", **options)(nothing)
        bench.kit.get("/of/<kind>/<uuid:thing_id>/parts", **options)(nothing)
        bench.kit.get("/kinds/<kind>", **options)(nothing)
        return bench.client()

    @pytest.mark.parametrize(
        ("headers", "status", "actor"),
        [("none", 401, None), ("garbage", 401, None), ("low", 403, "client-1"), ("good", 200, "client-1")],
    )
    def test_who_and_what(
        self, client: Any, bench: Any, headers: str, status: int, actor: str | None
    ) -> None:
        """The caller is in it once the token is verified, what the path names whatever becomes of the token."""
        sent = {
            "none": {},
            "garbage": {"Authorization": "Bearer x"},
            "low": token(bench, scope="other:read"),
            "good": token(bench),
        }[headers]
        assert client.get(f"/things/{self.ID}", headers=sent).status_code == status
        (entry,) = bench.obs.audit.read(action="thing.read").entries
        assert (entry["actor"]["id"], entry["resource"]["id"], entry["subject"]) == (actor, self.ID, None)
        assert entry["outcome"] == ("ok" if status == 200 else "denied")

    @pytest.mark.parametrize(
        ("path", "found"),
        [
            (f"/of/kind/{ID}/parts", ID),
            (f"/payments/{SURROGATE}", SURROGATE),
            ("/payments/JaneDoe", None),
            ("/payments/pay_jane", None),
            (f"/payments/{SURROGATE}-jane", None),
            ("/kinds/JaneDoe", None),
        ],
    )
    def test_only_what_can_be_an_id(self, client: Any, bench: Any, path: str, found: str | None) -> None:
        """A path is a caller's text: of it only an identifier that says nothing of its own goes into an entry."""
        assert client.get(path).status_code == 401
        (entry,) = bench.obs.audit.read(action="thing.read").entries
        assert entry["resource"]["id"] == found

    def test_a_person_is_the_subject(self, client: Any, bench: Any) -> None:
        """Where the record is a person, the entry is about that person."""
        assert client.get(f"/persons/{self.ID}").status_code == 401
        (entry,) = bench.obs.audit.read(action="thing.read").entries
        assert entry["subject"] == entry["resource"]["id"]
        assert bench.obs.audit.read(subject=self.ID).total == 1


class TestPeers:
    """Calls to other services."""

    def test_keys_come_from_auth_service(self, make_bench: Any) -> None:
        """Keys are fetched through the traced client, once for many tokens."""
        calls: list[str] = []

        def auth(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            calls.append(environ["PATH_INFO"] + " " + environ.get("HTTP_TRACEPARENT", ""))
            start_response("200 OK", [("Content-Type", "application/json")])
            return [json.dumps(keys()).encode()]

        bench = make_bench("caller", transport={"auth-service": auth})
        bench.kit.get("/x", returns={200: None}, scope="thing:read", summary="x")(nothing)
        client = bench.client()
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        headers = {**token(bench), "traceparent": f"00-{trace_id}-00f067aa0ba902b7-01"}
        assert [client.get("/x", headers=headers).status_code for _ in range(3)] == [200, 200, 200]
        assert len(calls) == 1
        assert calls[0].startswith("/.well-known/jwks.json 00-" + trace_id)

    @pytest.mark.parametrize(("status", "body"), [("500 X", b"{}"), ("200 OK", b"[]"), ("200 OK", b"x")])
    def test_no_keys_from_auth_service(self, make_bench: Any, status: str, body: bytes) -> None:
        """An answer that is no key set is 503 for the caller, not 401."""

        def auth(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            start_response(status, [("Content-Type", "application/json")])
            return [body]

        bench = make_bench("caller", transport={"auth-service": auth})
        bench.kit.get("/x", returns={200: None}, scope="thing:read", summary="x")(nothing)
        assert bench.client().get("/x", headers=token(bench)).status_code == 503

    def test_the_transport_carries_everything(self) -> None:
        """Method, path, query, headers and body arrive; status, headers and body come back."""
        seen: dict[str, Any] = {}

        def app(environ: dict[str, Any], start_response: Any) -> list[bytes]:
            seen.update(environ, body=environ["wsgi.input"].read())
            start_response("207 Multi", [("X-A", "b")])
            return [b"one", b"two"]

        answer = WsgiPool(app).request(
            "PUT", "http://peer:80/a%2Fb%20c/d?x=1&y=%26", headers={"X-Up": "1", "Content-Type": "text/x"}, body=b"in",
            timeout=1.0, retries=False, redirect=False,
        )  # fmt: skip
        assert (answer.status, answer.headers["X-A"], answer.data) == (207, "b", b"onetwo")
        assert (seen["REQUEST_METHOD"], seen["PATH_INFO"], seen["QUERY_STRING"]) == (
            "PUT",
            "/a/b c/d",
            "x=1&y=%26",
        )
        assert (seen["HTTP_X_UP"], seen["CONTENT_TYPE"], seen["body"]) == ("1", "text/x", b"in")
