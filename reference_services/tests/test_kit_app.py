"""The kit: problems, results, controls, and a service that is closed."""

from __future__ import annotations

import ast
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.exc import OperationalError
from werkzeug.exceptions import Conflict, HTTPException, TooManyRequests
from werkzeug.routing import RequestRedirect

from healthobs import AuditError, current
from healthobs.compliance import Control, Outcome
from healthobs.redaction import Redactor
from reference_services import services
from reference_services._kit import Kit, Problem, ServiceSettings
from reference_services._kit.routes import protected_routes
from things import Sparse, Thing, nothing

METADATA = sa.MetaData()


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
        assert set(threading.enumerate()) - before
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
