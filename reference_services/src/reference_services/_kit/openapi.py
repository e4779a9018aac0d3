"""OpenAPI 3.1 from the routes and their models.

The document is made from what runs, so it cannot disagree with it; a committed copy shows each change in
review.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pydantic
from pydantic.json_schema import models_json_schema

from reference_services._kit import shared
from reference_services._kit.routes import IDEMPOTENCY_KEY, PARAMETER, Operation
from reference_services._kit.settings import ServiceInfo
from reference_services._kit.shared import ProblemDetails

_CONVERTERS: Mapping[str | None, dict[str, Any]] = {
    "int": {"type": "integer", "minimum": 0},
    "uuid": {"type": "string", "format": "uuid"},
}
_REF = "#/components/schemas/{model}"


def document(info: ServiceInfo, operations: Sequence[Operation]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 description of a service."""
    keys = [(model, shared.SERIALIZATION) for model in shared.MODELS]
    for operation in operations:
        keys += _models(operation)
    refs, definitions = models_json_schema(list(dict.fromkeys(keys)), ref_template=_REF)
    paths: dict[str, dict[str, Any]] = {}
    for operation in operations:
        path = PARAMETER.sub(r"{\g<name>}", operation.rule)
        paths.setdefault(path, {})[operation.method.lower()] = _operation(operation, refs)
    paths.update(shared.paths(refs))
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
            "securitySchemes": _security_schemes(operations),
        },
    }


def _models(operation: Operation) -> Iterable[shared.Key]:
    for taken in (operation.body, operation.query):
        if taken is not None:
            yield taken, "validation"
    for returned in operation.returns.values():
        if returned is not None:
            yield returned, "serialization"


def _operation(operation: Operation, refs: Mapping[Any, Any]) -> dict[str, Any]:
    made: dict[str, Any] = {"summary": operation.summary, "operationId": _operation_id(operation)}
    parameters = [*_path_parameters(operation), *_query_parameters(operation)]
    for header in (*([IDEMPOTENCY_KEY] if operation.idempotent else []), *operation.headers):
        named = {"name": header.name, "in": "header", "description": header.description}
        parameters.append({**named, "required": header.required, "schema": dict(header.schema)})
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
    made["responses"] = dict(sorted(made["responses"].items()))
    if operation.scope is not None:
        made["security"] = [{"bearer": []}]
        made["description"] = f"Needs the scope `{operation.scope}`."
    if operation.client_auth:
        made["security"] = [{"client": []}, {}]
        made["description"] = "The client authenticates by HTTP Basic, or in the form (RFC 6749 §2.3.1)."
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
    return described


def _problem(refs: Mapping[Any, Any]) -> dict[str, Any]:
    schema = refs[ProblemDetails, "serialization"]
    return {"description": "Problem", "content": {"application/problem+json": {"schema": schema}}}


def _error_statuses(operation: Operation) -> list[int]:
    """Return the statuses of the problems that can occur beside what `returns` declares."""
    statuses = {500, *operation.problems}
    if operation.scope is not None or operation.audit is not None or operation.idempotent:
        statuses.add(503)  # keys, audit trail or store out of reach
    if operation.on_problem is not None:  # which turns the others into what `returns` declares
        return sorted(statuses)
    statuses.add(422)
    if operation.body is not None:
        statuses |= {400, 413, 415}
    if operation.idempotent:
        statuses |= {400, 409, 413}
    if operation.scope is not None:
        statuses |= {401, 403}
    if "<" in operation.rule:
        statuses.add(404)
    return sorted(statuses)


def _security_schemes(operations: Sequence[Operation]) -> dict[str, Any]:
    made: dict[str, Any] = {"bearer": {"type": "http", "scheme": "bearer", "bearerFormat": "at+jwt"}}
    if any(operation.client_auth for operation in operations):
        made["client"] = {"type": "http", "scheme": "basic"}
    return made
