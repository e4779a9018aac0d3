"""A service's description of itself, in OpenAPI 3.1 and 3.0."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml
from openapi_spec_validator import OpenAPIV30SpecValidator, OpenAPIV31SpecValidator

from reference_services import openapi as openapi_tool
from reference_services._kit import openapi as kit_openapi
from reference_services._kit.openapi30 import to_30
from reference_services._kit.routes import Header
from things import Sparse, Thing, nothing


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
