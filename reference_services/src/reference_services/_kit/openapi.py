"""OpenAPI 3.1 from the routes and their models.

The document is made from what runs, so it cannot disagree with it; a committed copy shows each change in
review.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal

import pydantic
from pydantic.json_schema import models_json_schema

from reference_services._kit.routes import PARAMETER, Operation
from reference_services._kit.settings import ServiceInfo
from reference_services._kit.validation import Model

#: What healthobs mounts beside the service's own routes.
OPERATIONAL_LINKS: Mapping[str, str] = {
    "GET /health": "Liveness",
    "GET /readiness": "Readiness",
    "GET /metrics": "Metrics for Prometheus",
    "GET /compliance/status": "State of every control",
    "GET /audit/trail": "Audit entries (scope audit:read)",
}
_CONVERTERS: Mapping[str | None, dict[str, Any]] = {
    "int": {"type": "integer", "minimum": 0},
    "uuid": {"type": "string", "format": "uuid"},
}
_REF = "#/components/schemas/{model}"
_Mode = Literal["validation", "serialization"]
_Key = tuple[type[pydantic.BaseModel], _Mode]


class ProblemError(Model):
    """One thing that is wrong with a request."""

    pointer: str
    code: str


class ProblemDetails(pydantic.BaseModel):
    """RFC 9457 problem details."""

    model_config = pydantic.ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    code: str
    instance: str | None = None
    trace_id: str | None = None
    errors: list[ProblemError] | None = None


class Index(Model):
    """Answer of `GET /`."""

    service: str
    version: str
    description: str
    links: dict[str, str]


class Liveness(Model):
    """Answer of `GET /health`."""

    status: Literal["healthy", "unhealthy"]
    service: str
    version: str
    timestamp: str
    checks: dict[str, str] | None = None


class Readiness(Model):
    """Answer of `GET /readiness`."""

    ready: bool
    checks: dict[str, str]


def document(info: ServiceInfo, operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of a service."""
    keys: list[_Key] = [
        (ProblemDetails, "serialization"),
        (Liveness, "serialization"),
        (Readiness, "serialization"),
    ]
    for operation in operations:
        keys += _models(operation)
    refs, definitions = models_json_schema(list(dict.fromkeys(keys)), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = PARAMETER.sub(r"{\g<name>}", operation.rule)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, refs)
    paths.update(_operational(refs))
    return {
        "openapi": "3.1.0",
        "info": {
            "title": info.title,
            "version": info.version,
            "description": info.description,
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "servers": [{"url": f"http://127.0.0.1:{info.port}"}],
        "paths": dict(sorted(paths.items())),
        "components": {
            "schemas": definitions.get("$defs", {}),
            "securitySchemes": {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "at+jwt"}},
        },
    }


def _models(operation: Operation) -> Iterable[_Key]:
    for taken in (operation.body, operation.query):
        if taken is not None:
            yield taken, "validation"
    for returned in operation.returns.values():
        if returned is not None:
            yield returned, "serialization"


def _operation(operation: Operation, refs: Mapping[Any, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"summary": operation.summary, "operationId": _operation_id(operation)}
    parameters = [*_path_parameters(operation), *_query_parameters(operation)]
    if operation.idempotent:
        parameters.append(
            {
                "name": "Idempotency-Key",
                "in": "header",
                "required": True,
                "schema": {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-\\[\\]-~]+$"},
            }
        )
    if parameters:
        made["parameters"] = parameters
    if operation.body is not None:
        media = "application/x-www-form-urlencoded" if operation.form else "application/json"
        schema = refs[operation.body, "validation"]
        made["requestBody"] = {"required": True, "content": {media: {"schema": schema}}}
    made["responses"] = {
        str(status): _response(model, operation.media, refs, status)
        for status, model in operation.returns.items()
    }
    for status in _error_statuses(operation):
        made["responses"].setdefault(str(status), _problem(refs))
    if operation.scope is not None:
        made["security"] = [{"bearer": []}]
        made["description"] = f"Needs the scope `{operation.scope}`."
    return made


def _operation_id(operation: Operation) -> str:
    return re.sub(r"[^a-z0-9]+", "_", f"{operation.method} {operation.rule}".lower()).strip("_")


def _path_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    for found in PARAMETER.finditer(operation.rule):
        schema = _CONVERTERS.get(found["kind"], {"type": "string"})
        yield {"name": found["name"], "in": "path", "required": True, "schema": dict(schema)}


def _query_parameters(operation: Operation) -> Iterable[dict[str, Any]]:
    if operation.query is None:
        return
    schema = operation.query.model_json_schema(by_alias=True)
    required = schema.get("required", [])
    for name, definition in schema.get("properties", {}).items():
        yield {"name": name, "in": "query", "required": name in required, "schema": _without_null(definition)}


def _without_null(schema: dict[str, Any]) -> dict[str, Any]:
    """Drop the null alternative: a query parameter is absent, never null."""
    choices = [choice for choice in schema.get("anyOf", []) if choice.get("type") != "null"]
    if len(choices) != 1:
        return schema
    rest = {word: value for word, value in schema.items() if word not in ("anyOf", "default")}
    return {**rest, **choices[0]}


def _response(
    model: type[pydantic.BaseModel] | None, media: str, refs: Mapping[Any, Any], status: int
) -> dict[str, Any]:
    if status >= 400 and model is None:
        return _problem(refs)
    described: dict[str, Any] = {"description": "Success" if status < 400 else "Refused"}
    if model is not None:
        described["content"] = {media: {"schema": refs[model, "serialization"]}}
    elif status != 204:
        described["content"] = {media: {"schema": {"type": "object"}}}
    return described


def _problem(refs: Mapping[Any, Any]) -> dict[str, Any]:
    schema = refs[ProblemDetails, "serialization"]
    return {"description": "Problem", "content": {"application/problem+json": {"schema": schema}}}


def _error_statuses(operation: Operation) -> list[int]:
    statuses = {422, 500, 503}
    if operation.body is not None or operation.idempotent:
        statuses |= {400, 413, 415}
    if operation.idempotent:
        statuses.add(409)
    if operation.scope is not None:
        statuses |= {401, 403}
    if "<" in operation.rule:
        statuses.add(404)
    return sorted(statuses)


def _operational(refs: Mapping[Any, Any]) -> dict[str, Any]:
    def get(summary: str, content: Mapping[int, dict[str, Any]], **more: Any) -> dict[str, Any]:
        responses = {
            str(status): {"description": summary, "content": body} for status, body in content.items()
        }
        operation_id = re.sub(r"\W+", "_", summary.lower()).strip("_")
        return {"get": {"summary": summary, "operationId": operation_id, "responses": responses, **more}}

    def json_of(schema: Any) -> dict[str, Any]:
        return {"application/json": {"schema": schema}}

    problem = {"application/problem+json": {"schema": refs[ProblemDetails, "serialization"]}}
    text = {"text/plain": {"schema": {"type": "string"}}}
    live, ready = (json_of(refs[model, "serialization"]) for model in (Liveness, Readiness))
    anything = json_of({"type": "object"})
    trail = get("Audit entries", {200: anything, 400: problem, 401: problem, 403: problem, 422: problem})
    trail["get"]["security"] = [{"bearer": []}]
    return {
        "/health": get("Liveness", {200: live, 503: live}),
        "/readiness": get("Readiness", {200: ready, 503: ready}),
        "/metrics": get("Metrics", {200: text}),
        "/compliance/status": get("Controls", {200: anything, 409: anything}),
        "/audit/trail": trail,
    }
