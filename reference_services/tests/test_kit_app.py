"""The kit: settings, problems, tokens, transactions, peers and the description of itself."""

from __future__ import annotations

import ast
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
import yaml
from joserfc import jwt
from joserfc.jwk import RSAKey
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import Conflict, HTTPException, TooManyRequests
from werkzeug.routing import RequestRedirect

from healthobs import AuditError, ConfigurationError, current
from healthobs.compliance import Control, Outcome
from healthobs.exceptions import ClientError
from healthobs.redaction import Redactor
from reference_services import openapi as openapi_tool
from reference_services import services
from reference_services._kit import Kit, Model, Principal, Problem, ServiceSettings, database, launch
from reference_services._kit import openapi as kit_openapi
from reference_services._kit.openapi30 import to_30
from reference_services._kit.routes import Header, protected_routes
from reference_services._kit.settings import DEFAULT_AUDIENCE, DEFAULT_ISSUER, PEERS
from reference_services._kit.transport import WsgiPool

METADATA = sa.MetaData()
THINGS = sa.Table("things", METADATA, sa.Column("name", sa.String(20), primary_key=True))
KEY = RSAKey.generate_key(2048, parameters={"kid": "k1"}, private=True)


class Thing(Model):
    """A model with an optional member."""

    name: str
    size: int | None = None


class Sparse(Thing):
    """A model that leaves null members out."""

    omit_none = True


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


def nothing() -> dict[str, str]:
    return {}


def titles() -> Iterator[str]:
    """Yield every text that a service's code gives a problem."""
    makers = ("Problem", "invalid", "unavailable", "_refusal", "OAuthError")
    for path in Path(services.__file__).parent.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            called = isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in makers
            named = isinstance(node, ast.Assign) and ast.unparse(node.targets[0]).startswith("title")
            if called or named:
                texts = (part.value for part in ast.walk(node) if isinstance(part, ast.Constant))
                yield from (text for text in texts if isinstance(text, str) and " " in text)


class TestServiceSettings:
    """`ServiceSettings.from_env`."""

    def test_defaults(self, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without variables a service listens on its own port of the loopback address, state under .healthobs."""
        monkeypatch.chdir(tmp_path)
        made = ServiceSettings.from_env(bench.info, {})
        assert (made.host, made.port, made.workers, made.threads) == ("127.0.0.1", 8099, 1, 16)
        assert made.data_dir == tmp_path / ".healthobs"
        assert made.database_url == f"sqlite:///{tmp_path}/.healthobs/bench.db"
        assert made.observability.audit_database_url == f"sqlite:///{tmp_path}/.healthobs/bench.audit.db"
        assert made.observability.audit_key_file == tmp_path / ".healthobs/bench.audit.key"
        assert made.peers["auth-service"] == "http://127.0.0.1:8085"

    def test_variables_win(self, bench: Any) -> None:
        """Every place can be set."""
        made = ServiceSettings.from_env(
            bench.info,
            {
                "HOST": "0.0.0.0", "PORT": "9", "WORKERS": "2", "THREADS": "8", "DATABASE_URL": "sqlite:///x.db",
                "AUDIT_DATABASE_URL": "sqlite:///a.db", "AUDIT_KEY_FILE": "/k", "AUTH_SERVICE_URL": "http://auth/",
                "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a", "HEALTHOBS_HEADERS": "false", "OWN_FILE": "/own",
            },
        )  # fmt: skip
        assert (made.host, made.port, made.workers, made.threads) == ("0.0.0.0", 9, 2, 8)
        assert (made.database_url, made.issuer, made.audience) == ("sqlite:///x.db", "i", "a")
        assert made.observability.audit_database_url == "sqlite:///a.db"
        assert str(made.observability.audit_key_file) == "/k"
        assert made.observability.headers is False
        assert made.peers["auth-service"] == "http://auth"
        assert str(made.file("OWN_FILE", "other")) == "/own"
        assert made.file("OTHER_FILE", "other") == made.data_dir / "other"

    def test_with_and_without_a_trail(self, bench: Any) -> None:
        """A service without a trail is given none; places named in healthobs' own variables are kept."""
        without = ServiceSettings.from_env(replace(bench.info, audit=False), {})
        assert without.observability.audit_database_url is None
        named = {"HEALTHOBS_AUDIT_DATABASE_URL": "sqlite:///a", "HEALTHOBS_AUDIT_KEY_FILE": "/b"}
        kept = ServiceSettings.from_env(bench.info, named).observability
        assert (kept.audit_database_url, str(kept.audit_key_file)) == ("sqlite:///a", "/b")

    def test_map_of_subjects_is_where_the_log_is(self, bench: Any) -> None:
        """Who holds PHI has a map: in a file beside a log in a file, in the database that replicas share beside theirs, or as it is told."""
        info, server = replace(bench.info, frameworks=("hipaa",)), {"AUDIT_DATABASE_URL": "postgresql://db/a"}

        def mapped(**environ: str) -> tuple[str | None, ...]:
            made = ServiceSettings.from_env(info, {"HEALTHOBS_DATA_DIR": "/d", **environ}).observability
            places = made.audit_subjects_file, made.audit_subjects_url, made.audit_subjects_key_file
            return tuple(None if place is None else str(place) for place in places)

        assert mapped() == ("/d/bench.subjects.db", None, None)
        assert mapped(**server) == (None, "postgresql://db/a", "/d/bench.subjects.key")
        key = {"HEALTHOBS_AUDIT_SUBJECTS_KEY_FILE": "/k"}
        assert mapped(**server, **key) == (None, "postgresql://db/a", "/k")
        assert mapped(**server, **key, HEALTHOBS_AUDIT_SUBJECTS_URL="postgresql://db/b") == (
            None,
            "postgresql://db/b",
            "/k",
        )
        assert mapped(**server, HEALTHOBS_AUDIT_SUBJECTS_FILE="/m") == ("/m", None, None)

    @pytest.mark.parametrize("value", ["0", "65536", "x", "-1", "٣", "9" * 5000])
    def test_wrong_numbers(self, bench: Any, value: str) -> None:
        """All wrong numbers are named at once, without their value."""
        with pytest.raises(ConfigurationError) as raised:
            ServiceSettings.from_env(bench.info, {"PORT": value, "WORKERS": "none"})
        assert raised.value.problems == (
            "PORT must be a whole number from 1 to 65535",
            "WORKERS must be a whole number from 1 to 64",
        )

    def test_secrets_do_not_show(self, bench: Any) -> None:
        """Neither the database URL nor the environment appears in the representation."""
        made = ServiceSettings.from_env(bench.info, {"DATABASE_URL": "postgresql://u:hunter2@h/d"})
        assert "hunter2" not in repr(made)

    def test_peers_match_the_manifest(self) -> None:
        """The peers' default ports are the services' own."""
        assert {name: port for name, (_, port) in PEERS.items()} == {
            name: service.port for name, service in services.SERVICES.items()
        }


class TestProblems:
    """Errors as RFC 9457 problems."""

    @pytest.fixture
    def client(self, bench: Any) -> Any:
        """Give a service whose routes fail in every way."""
        raisers = {
            "problem": Problem(409, "taken", "Taken.", [("/name", "taken")], {"X-Why": "it is"}),
            "conflict": Conflict(),
            "busy": TooManyRequests(retry_after=3),
            "moved": RequestRedirect("/nowhere"),
            "odd": type("Odd", (HTTPException,), {"code": 499})(),
            "store": OperationalError("SELECT", {}, Exception("219-09-9999")),
            "fault": RuntimeError("219-09-9999"),
        }

        @bench.kit.get("/raise/<what>", returns={200: None}, summary="Raise")
        def view(what: str) -> None:
            raise raisers[what]

        @bench.kit.get("/wrong", returns={200: Thing}, summary="Undeclared status")
        def wrong() -> Any:
            return Thing(name="a"), 202

        @bench.kit.get("/wrong-model", returns={200: Thing}, summary="Undeclared model")
        def wrong_model() -> Any:
            return Sparse.__base__.__base__()

        @bench.kit.get(
            "/oauth",
            returns={200: None},
            summary="OAuth",
            on_problem=lambda p: bench.kit.app.make_response(({"error": p.code}, 400)),
        )
        def oauth() -> None:
            raise Problem(400, "invalid_request", "No.")

        return bench.client()

    @pytest.mark.parametrize(
        ("method", "path", "status", "code"),
        [
            ("GET", "/nowhere", 404, "not_found"),
            ("DELETE", "/", 405, "method_not_allowed"),
            ("GET", "/raise/problem", 409, "taken"),
            ("GET", "/raise/conflict", 409, "conflict"),
            ("GET", "/raise/busy", 429, "too_many_requests"),
            ("GET", "/raise/store", 503, "store_unavailable"),
            ("GET", "/raise/fault", 500, "internal_error"),
            ("GET", "/wrong", 500, "internal_error"),
            ("GET", "/wrong-model", 500, "internal_error"),
        ],
    )
    def test_every_error_is_a_problem(
        self, client: Any, bench: Any, method: str, path: str, status: int, code: str
    ) -> None:
        """Errors of the router, of views and of the store are problem+json, without the cause's text."""
        answer = client.open(path, method=method)
        assert (answer.status_code, answer.content_type) == (status, "application/problem+json")
        assert answer.get_json()["code"] == code
        assert "219-09-9999" not in answer.get_data(as_text=True) + bench.log.getvalue()

    def test_details(self, client: Any) -> None:
        """A problem carries its errors and headers; the router's own headers stay."""
        raised = client.get("/raise/problem")
        assert raised.get_json()["errors"] == [{"pointer": "/name", "code": "taken"}]
        assert raised.headers["X-Why"] == "it is"
        assert "GET" in client.delete("/").headers["Allow"]
        assert client.get("/raise/busy").headers["Retry-After"] == "3"
        assert client.get("/raise/store").headers["Retry-After"] == "1"

    def test_another_vocabulary(self, client: Any) -> None:
        """A route can render its problems in the words of its own protocol."""
        answer = client.get("/oauth")
        assert (answer.status_code, answer.get_json()) == (400, {"error": "invalid_request"})
        assert client.get("/oauth?x=1").get_json() == {"error": "invalid_request"}

    def test_an_abort_inside_a_view(self, client: Any) -> None:
        """A redirect stays one; a status without a name is a problem all the same."""
        moved = client.get("/raise/moved")
        assert (moved.status_code, moved.headers["Location"]) == (308, "/nowhere")
        assert client.get("/raise/odd").get_json()["code"] == "error"

    def test_no_audit_no_answer(self, bench: Any) -> None:
        """When the entry cannot be written the audited route is 503, and others go on."""
        bench.kit.get("/audited", returns={200: None}, audit="thing.read", summary="x")(nothing)
        client = bench.client()
        assert client.get("/audited").status_code == 200
        bench.obs.audit.close()
        answer = client.get("/audited")
        assert (answer.status_code, answer.get_json()["code"]) == (503, "audit_unavailable")
        assert answer.headers["Retry-After"] == "1"
        assert client.get("/").status_code == 200

    def test_a_slash_too_many_is_not_found(self, client: Any) -> None:
        """The router does not redirect, which would echo the path."""
        assert client.get("/raise//problem").status_code == 404

    def test_titles_pass_redaction(self) -> None:
        """No title of a service looks like what redaction removes, so every caller reads it whole."""
        made = set(titles())
        assert len(made) > 50
        redactor = Redactor("mask")
        assert [title for title in made if redactor.text(title, signal="problem") != title] == []


class TestResults:
    """What a view may return."""

    @pytest.fixture
    def client(self, bench: Any) -> Any:
        """Give a service whose routes return in every way."""
        kit = bench.kit
        for method in ("get", "put", "patch", "delete", "post"):
            register = kit.route(method.upper(), "/things", returns={200: Thing}, summary=method)
            register(lambda: Thing(name="a"))
        kit.get("/sparse", returns={200: Sparse}, summary="x")(lambda: Sparse(name="a"))
        kit.get("/mapping", returns={203: Thing}, media="application/fhir+json", summary="x")(
            lambda: {"name": "é"}
        )
        kit.route("DELETE", "/none", returns={204: None}, summary="x")(lambda: None)
        kit.get("/raw", returns={200: None}, summary="x")(lambda: kit.app.make_response(("raw", 418)))
        kit.get("/full", returns={201: Thing}, summary="x")(
            lambda: (Thing(name="b"), 201, {"Location": "/b"})
        )
        return bench.client()

    @pytest.mark.parametrize("method", ["GET", "PUT", "PATCH", "DELETE", "POST"])
    def test_methods(self, client: Any, method: str) -> None:
        """Every method can be registered on one rule."""
        assert client.open("/things", method=method).get_json() == {"name": "a", "size": None}

    def test_forms_of_a_result(self, client: Any) -> None:
        """A model, a mapping, nothing, a response, or one with status and headers."""
        assert client.get("/sparse").data == b'{"name":"a"}'
        mapping = client.get("/mapping")
        assert (mapping.status_code, mapping.content_type) == (203, "application/fhir+json")
        assert mapping.data == '{"name":"é"}'.encode()
        none = client.delete("/none")
        assert (none.status_code, none.data, none.content_type) == (204, b"", None)
        assert client.get("/raw").status_code == 418
        full = client.get("/full")
        assert (full.status_code, full.headers["Location"]) == (201, "/b")

    def test_head_has_no_body(self, client: Any) -> None:
        """HEAD is answered wherever GET is."""
        answer = client.head("/things")
        assert (answer.status_code, answer.data) == (200, b"")

    def test_index(self, client: Any) -> None:
        """The root names the service and its routes."""
        body = client.get("/").get_json()
        assert (body["service"], body["version"]) == ("bench-service", "1.2.3")
        assert body["links"]["DELETE /none"] == "x"
        assert "GET /health" in body["links"]


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
        assert client.get("/audit/trail", headers=token(bench)).status_code in {401, 403}
        assert client.get("/audit/trail", headers=token(bench, scope="audit:read")).status_code == 200


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


class TestDatabase:
    """Transactions and schema versions."""

    def test_a_transaction_commits_or_rolls_back(self, bench: Any) -> None:
        """What a block writes is kept when it ends and gone when it raises; inner blocks join the outer."""
        kit = bench.kit
        kit.migrate(METADATA)
        with kit.transaction() as outer, kit.transaction() as inner, kit.reading() as reader:
            assert outer is inner is reader
            inner.execute(THINGS.insert().values(name="kept"))

        def fail() -> None:
            with kit.transaction():
                with kit.transaction() as inner:
                    inner.execute(THINGS.insert().values(name="lost"))
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        with kit.reading() as connection:
            assert connection.execute(sa.select(THINGS.c.name)).scalars().all() == ["kept"]

    def test_a_reader_does_not_wait_for_the_writer_to_begin(self, bench: Any) -> None:
        """Reading works while another thread holds the write lock."""
        kit = bench.kit
        kit.migrate(METADATA)
        done: list[int] = []

        def read() -> None:
            with kit.reading() as connection:
                done.append(connection.execute(sa.select(sa.func.count()).select_from(THINGS)).scalar_one())

        with kit.transaction():
            thread = threading.Thread(target=read)
            thread.start()
            thread.join(3)
        assert done == [0]

    def test_writers_queue_at_the_start(self, bench: Any) -> None:
        """Eight read-then-write transactions all succeed: none fails for having read too early."""
        kit = bench.kit
        kit.migrate(METADATA)

        def add(number: int) -> None:
            with kit.transaction() as connection:
                count = connection.execute(sa.select(sa.func.count()).select_from(THINGS)).scalar_one()
                connection.execute(THINGS.insert().values(name=f"{number}-{count}"))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        with kit.reading() as connection:
            names = connection.execute(sa.select(THINGS.c.name)).scalars().all()
        assert sorted(int(name.split("-")[1]) for name in names) == list(range(8))

    def test_files_are_private(self, bench: Any) -> None:
        """The database is readable by its owner only."""
        bench.kit.migrate(METADATA)
        assert (bench.settings.data_dir / "bench.db").stat().st_mode & 0o777 == 0o600

    def test_steps_bring_an_older_schema_up(self, bench: Any) -> None:
        """Each missing step runs once, in order."""
        engine, ran = bench.kit.engine, []
        database.migrate(engine, METADATA)
        steps = {number: lambda _connection, number=number: ran.append(number) for number in (2, 3)}
        database.migrate(engine, METADATA, version=3, steps=steps)
        database.migrate(engine, METADATA, version=3, steps=steps)
        assert ran == [2, 3]
        database.check(engine, 3)

    def test_a_newer_schema_stops_the_start(self, bench: Any) -> None:
        """Code does not touch a schema it does not know, and is not ready on it."""
        engine = bench.kit.engine
        database.migrate(engine, METADATA, version=5)
        with pytest.raises(database.SchemaError, match="has schema 5"):
            database.migrate(engine, METADATA, version=4)
        with pytest.raises(database.SchemaError, match="has schema 5"):
            database.check(engine, 4)

    def test_a_missing_step_stops_the_start(self, bench: Any) -> None:
        """Without a step nothing is changed."""
        engine = bench.kit.engine
        database.migrate(engine, METADATA)
        with pytest.raises(database.SchemaError, match="no step leads to schema 2"):
            database.migrate(engine, METADATA, version=2)
        database.check(engine, 1)

    def test_parameters_stay_out_of_exceptions(self, bench: Any) -> None:
        """An exception of the store does not show what was written."""
        kit = bench.kit
        kit.migrate(METADATA)
        same = [{"name": "219-09-9999"}] * 2
        with pytest.raises(sa.exc.IntegrityError) as raised, kit.transaction() as connection:
            connection.execute(THINGS.insert(), same)
        assert "219-09-9999" not in str(raised.value)

    def test_readiness_follows_the_database(self, bench: Any) -> None:
        """The readiness check fails when the schema is gone."""
        bench.kit.migrate(METADATA)
        client = bench.client()
        assert client.get("/readiness").get_json()["checks"]["database"] == "ready"
        with bench.kit.transaction() as connection:
            connection.execute(sa.text("DROP TABLE schema_version"))
        with pytest.raises(OperationalError):
            database.check(bench.kit.engine)

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
    def test_memory_database(self, url: str) -> None:
        """A database that every thread would have for itself is refused."""
        with pytest.raises(ConfigurationError, match="must name a file"):
            database.make_engine(url)

    @pytest.mark.parametrize("gone", [True, False])
    def test_file_taken_from_under_the_pool(self, tmp_path: Path, gone: bool) -> None:
        """The check asks the file that has the name now, not one that a connection of the pool still holds."""
        engine = database.make_engine(f"sqlite:///{tmp_path}/x.db")
        database.migrate(engine, sa.MetaData())
        database.check(engine)
        (tmp_path / "x.db").rename(tmp_path / "kept.db")
        for beside in tmp_path.glob("x.db-*"):  # SQLite would restore the file from them
            beside.rename(tmp_path / f"kept.{beside.name}")
        if not gone:
            (tmp_path / "x.db").write_bytes(b"no database " * 512)
        with pytest.raises(sa.exc.SQLAlchemyError):
            database.check(engine)
        assert (tmp_path / "x.db").exists() is not gone
        engine.dispose()


class TestOpenapi:
    """The description of a service."""

    @pytest.fixture
    def document(self, bench: Any) -> dict[str, Any]:
        """Give the description of a service with every kind of route."""
        kit = bench.kit
        kit.post(
            "/things/<thing_id>/parts/<int:number>", body=Thing, query=Sparse, returns={201: Thing, 204: None},
            scope="thing:write", idempotent=True, summary="Make",
        )(lambda: None)  # fmt: skip
        kit.post("/form", body=Thing, form=True, returns={200: None}, summary="Form")(lambda: None)
        kit.finish()
        return kit_openapi.document(kit.info, kit.operations)

    def test_both_versions_are_valid(self, document: dict[str, Any]) -> None:
        """The 3.1 document and its 3.0.3 copy satisfy their specifications."""
        OpenAPIV31SpecValidator(document).validate()
        OpenAPIV30SpecValidator(to_30(document)).validate()

    def test_a_route_is_described(self, document: dict[str, Any]) -> None:
        """Parameters, header, body, answers and security of a route are all there."""
        made = document["paths"]["/things/{thing_id}/parts/{number}"]["post"]
        assert [(p["name"], p["in"], p["schema"]["type"]) for p in made["parameters"]] == [
            ("thing_id", "path", "string"), ("number", "path", "integer"), ("name", "query", "string"),
            ("size", "query", "integer"), ("Idempotency-Key", "header", "string"),
        ]  # fmt: skip
        assert list(made["requestBody"]["content"]) == ["application/json"]
        assert set(made["responses"]) == {
            "201", "204", "400", "401", "403", "404", "409", "413", "415", "422", "500", "503",
        }  # fmt: skip
        assert made["security"] == [{"bearer": []}]
        form = document["paths"]["/form"]["post"]
        assert list(form["requestBody"]["content"]) == ["application/x-www-form-urlencoded"]

    def test_each_route_has_its_own_problems(self, bench: Any) -> None:
        """A route lists the statuses that it can answer, and no others; declared headers are parameters."""
        kit = bench.kit
        match = Header("If-Match", "Version to replace.", {"type": "string"})
        kit.get("/open", returns={200: Thing}, summary="x")(nothing)
        kit.get("/audited", returns={200: Thing}, audit="x", summary="x")(nothing)
        kit.put("/it", body=Thing, returns={200: Thing}, headers=(match,), problems=(412, 428), summary="x")(
            nothing
        )
        kit.post(
            "/oauth", body=Thing, form=True, returns={200: None, 400: Thing}, client_auth=True,
            on_problem=lambda problem: kit.app.make_response(("", problem.status)), summary="x",
        )(nothing)  # fmt: skip
        made = kit_openapi.document(kit.info, kit.operations)
        statuses = {
            f"{method} {path}": " ".join(operation["responses"])
            for path, methods in made["paths"].items()
            for method, operation in methods.items()
        }
        assert statuses == {
            "get /open": "200 422 500",
            "get /audited": "200 422 500 503",
            "put /it": "200 400 412 413 415 422 428 500",
            "post /oauth": "200 400 500",
            "get /health": "200 503",
            "get /readiness": "200 503",
            "get /metrics": "200",
            "get /compliance/status": "200 401 403 409 422 503",
            "get /audit/trail": "200 401 403 422 503",
        }
        parameter = made["paths"]["/it"]["put"]["parameters"]
        assert [(p["name"], p["in"], p["required"]) for p in parameter] == [("If-Match", "header", True)]
        assert made["paths"]["/oauth"]["post"]["security"] == [{"client": []}, {}]
        assert "content" not in made["paths"]["/oauth"]["post"]["responses"]["200"]

    def test_null_becomes_nullable(self, document: dict[str, Any]) -> None:
        """3.0 has no null type."""
        size = to_30(document)["components"]["schemas"]["Thing"]["properties"]["size"]
        assert (size["nullable"], size["type"]) == (True, "integer")

    def test_words_of_31_are_translated(self) -> None:
        """const, numeric exclusive limits, examples and tuples have 3.0 forms."""
        schema = {
            "const": "a", "exclusiveMinimum": 0, "examples": [1], "prefixItems": [{"type": "string"}],
            "anyOf": [{"$ref": "#/x"}, {"type": "null"}],
        }  # fmt: skip
        doc = {
            "info": {"license": {"identifier": "x"}},
            "s": schema,
            "t": {"anyOf": [{}, {"type": "null"}, {"a": 1}]},
        }
        copy = to_30(doc)
        assert copy["s"] == {
            "enum": ["a"], "minimum": 0, "exclusiveMinimum": True, "example": 1,
            "items": {"anyOf": [{"type": "string"}]}, "nullable": True, "allOf": [{"$ref": "#/x"}],
        }  # fmt: skip
        assert copy["t"] == {"nullable": True, "anyOf": [{}, {"a": 1}]}

    def test_the_tool_writes_and_checks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """`--check` fails on a missing or changed file and passes after `--write`."""
        (tmp_path / "synthetic_phi").mkdir()
        monkeypatch.setattr(openapi_tool, "__file__", str(tmp_path / "openapi.py"))
        name = "synthetic-phi-service"
        assert openapi_tool.main(["--check", name]) == 1
        assert openapi_tool.main(["--write", name]) == 0
        assert openapi_tool.main(["--check", name]) == 0
        path = tmp_path / "synthetic_phi" / "openapi.yaml"
        assert yaml.safe_load(path.read_text())["openapi"] == "3.1.0"
        path.write_text(path.read_text().replace("/health:", "/healthy:"))
        capsys.readouterr()
        assert openapi_tool.main(["--check", name]) == 1
        assert capsys.readouterr().err.startswith("synthetic_phi/openapi.yaml differs from the routes")


class TestControls:
    """The control engine of a finished service."""

    def test_protected_routes_are_tried(self, bench: Any) -> None:
        """Every route with a scope is declared to the controls, with values in its parameters."""
        kit = bench.kit
        for rule in ("/a/<int:n>", "/b/<uuid:u>/c/<name>", "/open"):
            kit.get(rule, returns={200: None}, summary="x", scope=None if rule == "/open" else "s")(nothing)
        routes = protected_routes(kit.operations)
        assert [(route.method, route.path) for route in routes] == [
            ("GET", "/audit/trail"),
            ("GET", "/a/1"),
            ("GET", "/b/00000000-0000-4000-8000-000000000000/c/canary"),
        ]

    def test_they_can_call_the_service(self, bench: Any) -> None:
        """The engine is bound to the finished application: the header control has a verdict."""
        bench.client()
        assert bench.obs.controls.run(["HDR", "H-312.a1"]) == {"HDR": "pass", "H-312.a1": "pass"}

    def test_own_controls(self, tmp_path: Path, bench: Any) -> None:
        """A service's own controls run in the Observability that its kit makes and closes."""
        settings = ServiceSettings.from_env(
            bench.info, {"HEALTHOBS_DATA_DIR": str(tmp_path), "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "60"}
        )
        control = Control(
            id="X-1", cite="x", framework="hipaa", title="x", criterion="x", method="probe",
            probe=lambda _: Outcome("pass", f"{kit.info.name} looked"),
        )  # fmt: skip
        before = set(threading.enumerate())
        kit = Kit(bench.info, settings, controls=[control])
        kit.finish()
        assert kit.obs.controls.run(["X-1"]) == {"X-1": "pass"}
        assert set(threading.enumerate()) > before
        kit.close()
        assert set(threading.enumerate()) <= before


class TestClose:
    """The end of a service."""

    def test_nothing_is_left_behind(self, tmp_path: Path, bench: Any) -> None:
        """Closing takes the process default back, closes an own trail, and can be done twice."""
        settings = ServiceSettings.from_env(
            bench.info, {"HEALTHOBS_DATA_DIR": str(tmp_path), "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0"}
        )
        kit = Kit(bench.info, settings)
        kit.migrate(METADATA)
        kit.client("auth-service")
        kit.finish()
        assert current() is kit.obs
        kit.close()
        kit.close()
        assert current() is not kit.obs
        with pytest.raises(AuditError):
            kit.obs.audit.append({"action": "x"})


class TestLaunch:
    """The start under gunicorn."""

    def test_gunicorn_gets_the_settings(
        self, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The launcher hands host, port, workers and threads to gunicorn and makes the data folder."""
        served: dict[str, Any] = {}
        monkeypatch.setattr(
            "healthobs.gunicorn.serve", lambda uri, **options: served.update(uri=uri, **options)
        )
        monkeypatch.setenv("HEALTHOBS_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("PORT", "1234")
        launch(bench.info, "x:create_app()")
        assert (served["uri"], served["host"], served["port"]) == ("x:create_app()", "127.0.0.1", 1234)
        assert (served["workers"], served["threads"], served["ops_port"]) == (1, 16, 2234)
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
