"""Health, readiness, metrics, compliance and audit endpoints, without I/O: a request in, a response out.

Probes and scrapes are open; the audit trail and the evidence behind compliance states need a principal
with the scope ``audit:read`` or ``compliance:read``, and reading them is itself an entry
(PCI DSS 10.2.1.3), an attempt with refused credentials too (10.2.1.4). Without any credentials an attempt is only
counted: else anybody could fill the trail. A witness for other logs (C2SP tlog-witness) is open too: it believes signatures, not callers.
Nothing here is a constant.
"""

from __future__ import annotations

import base64
import json
import warnings
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from opentelemetry.context import Context
from opentelemetry.trace import INVALID_SPAN, NonRecordingSpan, set_span_in_context, use_span

from healthobs.exceptions import AuditError, HealthobsWarning
from healthobs.headers import NO_STORE
from healthobs.health import formats
from healthobs.problems import Response, problem
from healthobs.tracing import parse_traceparent

if TYPE_CHECKING:
    from healthobs.audit.witness import Answer, Witness
    from healthobs.observability import Observability

AUDIT_SCOPE = "audit:read"
COMPLIANCE_SCOPE = "compliance:read"
MAX_LIMIT = 1000
LIVENESS = ("/health", "/livez")
READINESS = ("/readiness", "/readyz", "/startupz")
#: Submission prefix of a witness.
WITNESS = "/witness"
OPERATIONAL = ("/metrics", "/compliance/status", "/audit/trail")


class Request(NamedTuple):
    """What an endpoint needs of a request; header names in lower case, a body where `Endpoints.posted` has the path.

    It is the process's `own` where a control asks.
    """

    method: str
    path: str
    query: Mapping[str, Sequence[str]]
    headers: Mapping[str, str]
    body: bytes = b""
    own: bool = False


class Principal(Protocol):
    """Who asks."""

    @property
    def subject(self) -> str:
        """An opaque identifier."""
        ...


#: Returns the caller when its credentials carry the scope, else None, or raises `InsufficientScope`, which says who it
#: is; raises `InvalidCredentials` for bad ones, and `AuthorizationUnavailable` while it cannot tell.
Authorize = Callable[[Request, str], "Principal | None"]


class InvalidCredentials(Exception):  # noqa: N818 - an answer to credentials, not an error
    """Raised by an `Authorize` whose caller sent credentials that are not good: answered 401, not 403."""


class InsufficientScope(Exception):  # noqa: N818 - an answer, as above
    """Raised by an `Authorize` that knows the caller, who may not read this: answered 403, and recorded with its name.

    Args:
        principal: Who asks.
    """

    def __init__(self, principal: Principal) -> None:
        self.principal = principal
        super().__init__("the caller's credentials lack the scope")


class AuthorizationUnavailable(Exception):  # noqa: N818 - an answer, as above
    """Raised by an `Authorize` that cannot tell now, as it has no keys to verify with: answered 503, not 403.

    Args:
        retry_after_s: Whole seconds after which another try may find it able to (`Retry-After`).
    """

    def __init__(self, retry_after_s: int = 2) -> None:
        self.retry_after_s = retry_after_s
        super().__init__("whether the caller may cannot be told now")


class _Refused(Exception):  # noqa: N818 - a response, not an error
    def __init__(
        self, status: int, code: str, errors: Sequence[tuple[str, str]] = (), *headers: tuple[str, str]
    ) -> None:
        self.status, self.code, self.errors, self.headers = status, code, errors, headers
        super().__init__(code)


class Endpoints:
    """The endpoints of one service.

    Args:
        obs: What they show.
        authorize: Checks credentials; without it, what needs a scope answers 403.
        witness: What cosigns other logs' checkpoints under ``/witness``.
        private: Show what the ops port shows: probes, readiness with causes, metrics; nothing else.
    """

    def __init__(
        self,
        obs: Observability,
        authorize: Authorize | None = None,
        *,
        witness: Witness | None = None,
        private: bool = False,
    ) -> None:
        self._obs = obs
        self._authorize = authorize
        self._private = private
        table: dict[str, Callable[[Request], Response]] = dict.fromkeys(LIVENESS, self._liveness)
        table |= dict.fromkeys(READINESS, self._readiness)
        if private:
            table["/metrics"] = self._metrics
        elif obs.settings.endpoints:
            handlers = (self._metrics, self._compliance, self._audit_trail)
            table |= dict(zip(OPERATIONAL, handlers, strict=True))
        self._prefix = "" if private else obs.settings.endpoint_prefix
        #: Paths that take a POST and nothing else, and how many bytes of its body are read at most.
        self.posted: dict[str, int] = {}
        if witness is not None:
            table |= _witnessing(witness)
            self.posted[f"{self._prefix}{WITNESS}/add-checkpoint"] = witness.max_body_bytes
        #: What is answered, by its path, and the paths among them that only ask whether the process lives.
        self.paths: Mapping[str, Callable[[Request], Response]] = {
            self._prefix + path: handler for path, handler in table.items()
        }
        self.liveness: frozenset[str] = frozenset(self._prefix + path for path in LIVENESS)
        self._probes = obs.metrics.counter(
            "healthobs_probe_requests_total", "Requests to operational endpoints", ("probe", "code")
        )

    def handle(self, request: Request) -> Response | None:
        """Answer, or return None when the path is not an endpoint."""
        handler = self.paths.get(request.path)
        if handler is None:
            return None
        response = self._answer(handler, request)
        if self._private or not self._obs.settings.headers:  # which every response gets otherwise
            response = Response(response.status, [*response.headers, NO_STORE], response.body)
        path = request.path.removeprefix(self._prefix)
        self._probes.declare(path, str(response.status)).inc()  # both of closed sets
        return response

    def shadowed(self, templates: Iterable[str]) -> tuple[str, ...]:
        """Return which of the application's route templates are never asked, because an endpoint has their path."""
        return tuple(sorted({one for one in templates if one.rstrip("/") in self.paths}))

    def warn_of_shadowed(self, templates: Iterable[str]) -> None:
        """Warn when a route of the application has the path of an endpoint."""
        shadowed = self.shadowed(templates)
        if shadowed:
            warnings.warn(
                f"healthobs now answers {', '.join(shadowed)} instead of this application's own routes: "
                "set Settings.endpoint_prefix, or remove those routes",
                HealthobsWarning,
                stacklevel=3,
            )

    def _answer(self, handler: Callable[[Request], Response], request: Request) -> Response:
        allowed = ("POST",) if request.path in self.posted else ("GET", "HEAD")
        if request.method not in allowed:
            return problem(405, "method_not_allowed", headers=[("Allow", ", ".join(allowed))])
        try:
            return handler(request)
        except _Refused as refused:
            challenge = [("WWW-Authenticate", "Bearer")] if refused.status == 401 else []
            headers = [*challenge, *refused.headers]
            return problem(refused.status, refused.code, errors=refused.errors, headers=headers)
        except AuditError:
            return problem(503, "audit_unavailable")
        except Exception as exc:  # noqa: BLE001 - a collector of somebody else's, a trail that cannot be decoded: no server logs it
            component = "ops" if self._private else "endpoints"
            self._obs.fault(component, request.path, exc)
            return problem(500, "internal_error")

    def _liveness(self, request: Request) -> Response:
        status, body = self._obs.health.liveness()
        return self._probe(request, status, body, body.get("checks", {}))

    def _readiness(self, request: Request) -> Response:
        health = self._obs.health
        status, body = health.readiness()
        shown = formats.with_causes(health, body) if self._private else body
        return self._probe(request, status, shown, body["checks"])

    def _probe(
        self, request: Request, status: int, body: Mapping[str, Any], words: Mapping[str, str]
    ) -> Response:
        media = "application/json"
        if formats.MEDIA_TYPE in request.headers.get("accept", ""):
            media, body = formats.MEDIA_TYPE, formats.draft06(self._obs.health, status, words)
        return _json(status, body, media)

    def _metrics(self, request: Request) -> Response:
        content_type, body = self._obs.metrics.exposition(request.headers.get("accept"))
        return Response(200, [("Content-Type", content_type)], body)

    def _compliance(self, request: Request) -> Response:
        engine = self._obs.controls
        if engine is None:
            raise _Refused(404, "no_controls")
        gate = _flag(request, "gate")
        detail = "authorization" in request.headers
        if detail:
            subject = self._reader(request, COMPLIANCE_SCOPE, "compliance.read")
            self._note_reading(request, "compliance.read", subject)
        status = engine.status(detail=detail)
        from healthobs.compliance.report import (  # where there are controls, it is there already
            gate_failures,
            gate_is_open,
        )

        if not gate or gate_is_open(status["controls"]):
            return _json(200, status)
        why = gate_failures(status["controls"])
        status["controls"] = [
            {**row, "shuts_gate": why[row["id"]]} if row["id"] in why else row for row in status["controls"]
        ]
        return _json(409, status)

    def _audit_trail(self, request: Request) -> Response:
        trail = self._obs.audit
        if trail is None:
            raise _Refused(404, "no_audit_trail")
        subject = self._reader(request, AUDIT_SCOPE, "audit.read")
        filters = _filters(request)
        self._note_reading(request, "audit.read", subject)
        page = trail.read(**filters)
        checkpoint = trail.checkpoint()
        return _json(
            200,
            {
                "total_entries": page.total,
                "retention_days": self._obs.settings.audit_retention_days,
                "checkpoint": {
                    "origin": checkpoint.origin,
                    "size": checkpoint.size,
                    "root": base64.b64encode(checkpoint.root).decode(),
                },
                "recent_entries": [_shown(entry) for entry in page.entries],
                "next_cursor": page.next_cursor,
            },
        )

    def _note_reading(
        self, request: Request, action: str, subject: str | None, *, outcome: str = "ok"
    ) -> None:
        """Record who reads; without that entry nothing is shown."""
        if self._obs.audit is None:
            return
        draft: dict[str, object] = {"action": action, "outcome": outcome}
        if subject is not None:
            draft |= {"actor": subject, "actor_kind": "client"}
        with self._span(request, action):
            self._obs.audit.append({**draft, "request_id": request.headers.get("x-request-id")})

    def _note_refusal(self, request: Request, action: str, subject: str | None) -> None:
        """Record who was refused; a refusal that cannot be recorded stays one, and the loss is counted and logged."""
        if request.own:  # a control of this process tries what must be refused
            return
        try:
            self._note_reading(request, action, subject, outcome="denied")
        except Exception as exc:  # noqa: BLE001 - whatever it is, there is no entry
            self._obs.metrics.count_internal_error("audit")
            own = {"action": action, "policy": "alert"}
            self._obs.logs.emit("error", "audit_entry_lost", {"exc_info": exc}, own=own)

    @contextmanager
    def _span(self, request: Request, name: str) -> Generator[None]:
        """Make the span of a reading, in the caller's trace where callers are trusted with theirs."""
        header = request.headers.get("traceparent")
        remote = parse_traceparent(header) if header and self._obs.settings.trust_incoming else None
        context = Context() if remote is None else set_span_in_context(NonRecordingSpan(remote), Context())
        try:
            span = self._obs.tracing.tracer.start_span(name, context)
        except Exception as exc:  # noqa: BLE001 - a processor or sampler of the process is not the reader's
            self._obs.fault("tracing", "start", exc)
            span = INVALID_SPAN
        try:
            with use_span(span, record_exception=False):
                yield
        finally:
            try:
                span.end()
            except Exception as exc:  # noqa: BLE001 - as at its start
                self._obs.fault("tracing", "end", exc)

    def _reader(self, request: Request, scope: str, action: str) -> str:
        """Return who reads; credentials that were sent and refused leave an entry about `action`."""
        if self._authorize is None:
            raise _Refused(403, "no_authorization_configured")
        if "authorization" not in request.headers:
            raise _Refused(401, "credentials_required")
        subject: str | None = None
        refused = _Refused(403, "scope_required")
        try:
            principal = self._authorize(request, scope)
            if principal is not None:
                return _subject(principal)
        except InvalidCredentials:
            refused = _Refused(401, "credentials_refused")
        except InsufficientScope as lacking:
            with suppress(TypeError):
                subject = _subject(lacking.principal)
        except AuthorizationUnavailable as away:
            retry = ("Retry-After", str(away.retry_after_s))
            raise _Refused(503, "authorization_unavailable", (), retry) from None
        except Exception as exc:  # noqa: BLE001 - a hook's fault, which may name the credentials, counts as no
            self._obs.fault("hook", "authorize", exc)
        self._note_refusal(request, action, subject)
        raise refused


def _subject(principal: object) -> str:
    subject = getattr(principal, "subject", None)
    if not isinstance(subject, str):
        raise TypeError("authorize must return a principal with a subject, or None")
    return subject


def _witnessing(witness: Witness) -> dict[str, Callable[[Request], Response]]:
    def add(request: Request) -> Response:
        return _told(witness.add_checkpoint(request.body))

    def read(digest: str) -> Callable[[Request], Response]:
        return lambda _request: _told(witness.checkpoint(digest))

    reads = {f"{WITNESS}/{digest}/checkpoint": read(digest) for digest in witness.digests}
    return {f"{WITNESS}/add-checkpoint": add, **reads}


def _told(answer: Answer) -> Response:
    return Response(answer.status, [("Content-Type", answer.content_type)], answer.body)


def _flag(request: Request, name: str) -> bool:
    """Return the one parameter that there is; another name may be this one, written wrongly."""
    if request.query.keys() - {name}:
        raise _Refused(422, "invalid_query", [("/", "unknown_parameter")])
    values = request.query.get(name, ())
    if list(values) not in ([], ["0"], ["1"]):
        raise _Refused(422, "invalid_query", [(f"/{name}", "must_be_0_or_1")])
    return list(values) == ["1"]


_TEXT_FILTERS = {
    "actor": "actor",
    "action": "action",
    "subject": "subject",
    "transaction_id": "resource_id",
    "trace_id": "trace_id",
    "cursor": "cursor",
}


def _filters(request: Request) -> dict[str, Any]:
    """Turn the query into the arguments of `AuditTrail.read`; every problem is named, no value echoed."""
    read: dict[str, Any] = {}
    errors: list[tuple[str, str]] = []
    for name, values in request.query.items():
        if len(values) != 1:
            errors.append((f"/{name}", "repeated"))
        elif name == "cursor" and not (
            values[0].isascii() and values[0].isdecimal() and len(values[0]) <= 18
        ):
            errors.append(("/cursor", "not_from_an_earlier_page"))
        elif name in _TEXT_FILTERS:
            read[_TEXT_FILTERS[name]] = values[0]
        elif name in ("start_date", "end_date"):
            try:
                moment = datetime.fromisoformat(values[0])
            except ValueError:
                errors.append((f"/{name}", "must_be_rfc3339"))
                continue
            if moment.tzinfo is None:
                errors.append((f"/{name}", "must_name_its_offset"))
            read["start" if name == "start_date" else "end"] = moment
        elif name == "limit":
            plain = values[0].isascii() and values[0].isdecimal() and len(values[0]) <= 9
            if not plain or not 1 <= int(values[0]) <= MAX_LIMIT:
                errors.append(("/limit", f"must_be_1_to_{MAX_LIMIT}"))
            else:
                read["limit"] = int(values[0])
        else:
            errors.append(("/", "unknown_parameter"))
    if errors:
        raise _Refused(422, "invalid_query", errors)
    return read


def _shown(entry: Mapping[str, Any]) -> dict[str, Any]:
    actor: Mapping[str, Any] = entry.get("actor") or {}
    resource: Mapping[str, Any] = entry.get("resource") or {}
    return {
        "index": entry["index"],
        "timestamp": entry["time"],
        "action": entry["action"],
        "user": actor.get("id"),
        "outcome": entry["outcome"],
        "subject": entry.get("subject"),
        "resource_type": resource.get("type"),
        "resource_id": resource.get("id"),
        "transaction_id": resource.get("id"),
        "purpose": entry.get("purpose"),
        "reason": entry.get("reason"),
        "classification": entry.get("classification"),
        "details": entry.get("details") or {},
        "trace_id": entry.get("trace_id"),
        "request_id": entry.get("request_id"),
        "hash": entry["hash"],
        **({"unreadable": True} if entry.get("unreadable") else {}),
    }


def _json(status: int, body: Mapping[str, Any], media: str = "application/json") -> Response:
    content = json.dumps(body, separators=(",", ":"), ensure_ascii=False).encode()
    return Response(status, [("Content-Type", media)], content)
