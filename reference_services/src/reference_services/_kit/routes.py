"""A route as data: what it takes, what it returns, who may call it; and how a view's result becomes a response."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pydantic
from flask import Response, request

from healthobs.compliance import Route
from reference_services._kit import validation
from reference_services._kit.auth import Principal
from reference_services._kit.problems import Problem

View = Callable[..., Any]
#: A UUID, or 32 hexadecimal digits after a short prefix.
_ID = re.compile(r"[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}|[a-z]{1,8}_[0-9a-f]{32}")
#: A parameter in a Flask rule.
PARAMETER = re.compile(r"<(?:(?P<kind>[a-z]+)(?:\([^)]*\))?:)?(?P<name>[a-z_]+)>")
#: What a view may return: a model, a plain mapping, None, or one of them with status and headers.
Returns = Mapping[int, type[pydantic.BaseModel] | None]


@dataclass(frozen=True, slots=True)
class Header:
    """A request header that a route reads, for its description.

    Args:
        name: Its name.
        description: What it says, in a line.
        schema: JSON schema of its text.
        required: Whether the request is refused without it.
    """

    name: str
    description: str
    schema: Mapping[str, Any]
    required: bool = True


IDEMPOTENCY_KEY = Header(
    "Idempotency-Key",
    "Names this request; the same key again gets the first answer again, for 24 hours.",
    {"type": "string", "minLength": 1, "maxLength": 255, "pattern": "^[!#-\\[\\]-~]+$"},
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Operation:
    """One method on one rule.

    Args:
        method: HTTP method.
        rule: Flask rule, such as ``/patients/<patient_id>``.
        view: Called with what its signature names of `body`, `query`, `principal` and the path parameters.
        summary: One line for OpenAPI.
        returns: Model of the body for each status; None where there is no body.
        body: Model of the request body.
        query: Model of the query parameters.
        scope: Scope that the caller's token needs; None leaves the route open.
        audit: Action of the audit entry that each call makes, refused ones included.
        resource_type: Kind of record that the entry is about; which one, a path parameter whose name ends in ``_id`` says.
        person: Whether that record is a person: then it is the entry's subject too.
        conf: HL7 v3 confidentiality of the answer; default: the service's.
        form: Whether the body is a form and not JSON.
        idempotent: Whether `Idempotency-Key` is required.
        remembered: By member of the body, what tells two requests with one key apart in its place; None leaves it out.
            For what may not be stored in any form, a keyed hash included (PCI DSS 3.3.1).
        before: Called with what its signature names of the view's arguments, when the request is authenticated and
            valid but no transaction is open: the place to ask other services. An answer that is remembered is
            given without it (two requests with one key that meet in different processes may both call it).
        headers: Request headers that the view reads.
        problems: Statuses of the problems that the view itself raises, beside those that every such route can.
        client_auth: Whether the caller authenticates as an OAuth client (RFC 6749 §2.3.1).
        media: Media type of JSON answers.
        on_problem: Renders errors in another vocabulary (RFC 6749 §5.2, FHIR); default problem+json.
        wanted: Names of the view's parameters.
        wanted_before: Names of the parameters of `before`.
        record: Name of the path parameter that says which record it is.
    """

    method: str
    rule: str
    view: View
    summary: str
    returns: Returns
    body: type[pydantic.BaseModel] | None = None
    query: type[pydantic.BaseModel] | None = None
    scope: str | None = None
    audit: str | None = None
    resource_type: str | None = None
    person: bool = False
    conf: str | None = None
    form: bool = False
    idempotent: bool = False
    remembered: Mapping[str, Callable[[Any], object] | None] = field(
        default_factory=dict[str, Callable[[Any], object] | None]
    )
    before: View | None = None
    headers: Sequence[Header] = ()
    problems: Sequence[int] = ()
    client_auth: bool = False
    media: str = "application/json"
    on_problem: Callable[[Problem], Response] | None = None
    wanted: frozenset[str] = field(init=False)
    wanted_before: frozenset[str] = field(init=False)
    record: str | None = field(init=False)

    def __post_init__(self) -> None:
        """Read the signatures once.

        Raises:
            TypeError: `before` asks for what the view does not, or `remembered` names what the body does not have.
        """
        names = [found["name"] for found in PARAMETER.finditer(self.rule)]
        object.__setattr__(self, "record", next((name for name in names if name.endswith("_id")), None))
        object.__setattr__(self, "wanted", _parameters(self.view))
        object.__setattr__(self, "wanted_before", _parameters(self.before) if self.before else frozenset())
        if not self.wanted_before <= self.wanted:
            raise TypeError(
                f"before= of {self.method} {self.rule} asks for more than the view; name it there"
            )

        if not self.remembered.keys() <= (set() if self.body is None else self.body.model_fields.keys()):
            raise TypeError(f"remembered= of {self.method} {self.rule} names what the body does not have")

    def default_status(self) -> int:
        """Return the status of a result that names none: the lowest success that is declared."""
        return min(status for status in self.returns if status < 400)

    def named(self, path: Mapping[str, Any]) -> dict[str, str]:
        """Return what the audit entry says of the record that the path names, whether or not there is one.

        It is known before anybody is asked who calls, so that a refusal tells what was reached for. A path is a caller's
        text: only what has the form of an id of ours is taken from it.
        """
        said = str(path.get(self.record or "", ""))
        if not _ID.fullmatch(said):
            return {}
        return {"resource_id": said, "subject": said} if self.person else {"resource_id": said}

    def arguments(self, principal: Principal | None, path: Mapping[str, Any]) -> dict[str, Any]:
        """Read and validate the request, and return what the view's signature asks for.

        Raises:
            Problem: The request is not acceptable.
        """
        if not all(map(_storable, path.values())):
            raise Problem(404, "not_found", "Not Found")
        given: dict[str, Any] = {**path, "principal": principal}
        given["query"] = validation.query(request, self.query or validation.NoQuery)
        if self.body is not None:
            read = validation.form_body if self.form else validation.json_body
            given["body"] = read(request, self.body)
        return {name: value for name, value in given.items() if name in self.wanted}

    def prepare(self, arguments: Mapping[str, Any]) -> None:
        """Call `before`, if there is one, with its part of the view's `arguments`."""
        if self.before is not None:
            self.before(**{name: arguments[name] for name in self.wanted_before})

    def response(self, result: Any) -> Response:
        """Return the response for what the view returned.

        Raises:
            TypeError: The result is not what `returns` declares; a fault of the view, so a 500.
        """
        if isinstance(result, Response):
            return result
        parts: tuple[Any, ...] = result if isinstance(result, tuple) else (result,)
        payload = parts[0]
        status: int = parts[1] if len(parts) > 1 else self.default_status()
        headers: Mapping[str, str] = parts[2] if len(parts) > 2 else {}
        declared = self.returns.get(status)
        # A plain mapping is taken as it is: the fast path of large answers, held to the model by tests.
        wrong = isinstance(payload, pydantic.BaseModel) and not (declared and isinstance(payload, declared))
        if status not in self.returns or wrong:
            raise TypeError(f"{self.method} {self.rule} answers {status} with what it does not declare")
        response = Response(_encode(payload), status, dict(headers), content_type=self.media)
        if payload is None:
            del response.headers["Content-Type"]
        return response


def _parameters(function: View) -> frozenset[str]:
    return frozenset(inspect.signature(function).parameters)


def _storable(value: object) -> bool:
    """Tell whether a path parameter could name something: no store holds U+0000 or more than 64 bits."""
    return "\0" not in value if isinstance(value, str) else not isinstance(value, int) or value < 2**63


def _encode(payload: Any) -> bytes:
    if payload is None:
        return b""
    if isinstance(payload, pydantic.BaseModel):
        omit_none = bool(getattr(payload, "omit_none", False))
        return payload.model_dump_json(by_alias=True, exclude_none=omit_none).encode()
    return json.dumps(payload, separators=(",", ":"), ensure_ascii=False, allow_nan=False).encode()


def canonical_request(operation: Operation, principal: Principal | None) -> bytes:
    """Return what decides the current request's answer, in one form that equal requests share.

    That is method, path, query, body (as far as the operation lets it be remembered), the headers that the route
    reads, and the caller's roles: an answer made for one purpose of use, or one role, is never repeated for another.
    """
    raw = request.get_data(cache=True)
    try:
        body = json.loads(raw)
    except ValueError:
        body = raw.decode("latin-1")
    for name in operation.remembered.keys() & (body.keys() if isinstance(body, dict) else ()):
        given, stand_in = body.pop(name), operation.remembered[name]
        if stand_in is not None:
            body[name] = stand_in(given)
    read = [request.headers.get(header.name) for header in operation.headers]
    roles = [] if principal is None else sorted(principal.roles)
    content = [request.method, request.path, sorted(request.args.items(multi=True)), body, read, roles]
    return json.dumps(content, sort_keys=True, separators=(",", ":")).encode()


#: Put in for path parameters where only the refusal matters.
_CANARIES: Mapping[str | None, str] = {"int": "1", "uuid": "00000000-0000-4000-8000-000000000000"}


def protected_routes(operations: Iterable[Operation]) -> list[Route]:
    """Return what must refuse callers without credentials, for the controls that try it."""
    own = [
        Route(op.method, PARAMETER.sub(lambda found: _CANARIES.get(found["kind"], "canary"), op.rule))
        for op in operations
        if op.scope is not None
    ]
    return [Route("GET", "/audit/trail"), *own]
