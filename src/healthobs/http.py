"""One HTTP exchange, without I/O: from the request's facts to span, metrics, access line and headers.

Standards: OpenTelemetry semantic conventions for HTTP (stable), W3C Trace Context level 1, RFC 9110
(methods), RFC 9457 (problem details). One pair of clock readings serves all signals. Nothing of path,
query, headers or body is recorded; `url.path` is left out, a deliberate deviation: `http.route` stands for it.

Limits: `tracestate` is not read.
"""

from __future__ import annotations

import os
import re
import socket
from collections import defaultdict
from collections.abc import Callable, Iterable
from contextvars import Token
from typing import TYPE_CHECKING, Any

from opentelemetry import context as otel_context
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    set_span_in_context,
)

from healthobs import headers as header_fields
from healthobs.decorators.plan import Classified
from healthobs.exceptions import ConfigurationError
from healthobs.metrics.exemplars import Pace
from healthobs.metrics.exposition import PrefixCollector
from healthobs.problems import Response, problem
from healthobs.redaction import ExceptionFacts, describe_exception
from healthobs.tenancy import ATTRIBUTE as TENANT
from healthobs.tenancy import bounded
from healthobs.tracing import (
    answering_span,
    enclosing_span,
    format_traceparent,
    parse_traceparent,
    read_baggage,
    record_exception,
)

if TYPE_CHECKING:
    from healthobs.audit import Receipt
    from healthobs.health.progress import Progress
    from healthobs.metrics import Child, Instrument
    from healthobs.observability import Observability

METHODS = frozenset({"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE"})
OTHER = "_OTHER"
#: Methods that frameworks add to a route by themselves.
IMPLIED = frozenset({"HEAD", "OPTIONS"})
UNMATCHED = "unmatched"
#: `error.type` of a request whose caller went away, and its status when none was sent (nginx's convention).
CANCELLED, CLIENT_CLOSED = "cancelled", 499
#: Only a UUID is taken from a caller: anything freer is room for an identifier of a person.
_REQUEST_ID = re.compile(r"[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}\Z")
#: A proxy's header or a server may put anything there.
_SCHEMES, _VERSIONS = frozenset({"http", "https"}), frozenset({"", "0.9", "1.0", "1.1", "2", "3"})
_ERROR_STATUS = Status(StatusCode.ERROR)
#: Names by which this machine is meant, whoever wrote them.
_OWN_NAMES = frozenset({"localhost", "127.0.0.1", "::1", socket.gethostname()})
_PORT_DIGITS = 5
_DURATION = "http_server_request_duration_seconds"
_ACTIVE = "http_server_active_requests"
_DURATION_LABELS = (
    "http_request_method",
    "url_scheme",
    "http_route",
    "http_response_status_code",
    "error_type",
    "network_protocol_version",
)


class HttpServer:
    """What all exchanges of one application share: instruments and prebuilt headers.

    Args:
        obs: Where to record.
        conf: HL7 v3 Confidentiality of responses that no `@classified` names.

    Raises:
        ConfigurationError: `conf` is none of its codes.
    """

    def __init__(self, obs: Observability, *, conf: str = "N") -> None:
        if conf not in header_fields.CONFIDENTIALITY:
            raise ConfigurationError(f"conf must be one of {', '.join(header_fields.CONFIDENTIALITY)}")
        self.obs = obs
        settings, metrics = obs.settings, obs.metrics
        self.on: bool = not settings.disabled
        self.duration: Instrument = metrics.histogram(
            _DURATION, "Duration of HTTP server requests", _DURATION_LABELS, by_tenant=True
        )
        self.active: Instrument = metrics.gauge(
            _ACTIVE, "HTTP server requests in progress", ("http_request_method", "url_scheme")
        )
        # Names of spans whose route is not known yet, and values of `error.type`.
        codes = map(str, range(500, 600))
        for name in (*METHODS, CANCELLED, *codes):
            obs.redactor.written(name)
        if settings.prefix:
            for view in _views(settings.prefix, {"tenant": "tenant"} if settings.tenants else {}):
                metrics.show_also_as(view)
        excluded = metrics.counter(
            "healthobs_excluded_requests_total", "Requests that no other signal shows", ("path",)
        )
        #: Paths whose requests leave nothing but this count.
        self.excluded: dict[str, Child] = {path: excluded.declare(path) for path in settings.excluded}
        self.paces: defaultdict[Child, Pace] = defaultdict(Pace)
        self._default = Classified(conf, settings.frameworks)
        self._headers: dict[Classified, list[tuple[str, str]]] = {}

    def declare(self, routes: Iterable[tuple[str, str]]) -> None:
        """Create the series of these methods and templates at 0, for plain HTTP/1.1: of success, and of failure."""
        tenant = ("",) if self.obs.settings.tenants else ()
        for method, template in routes:
            self.obs.redactor.template(template)
            for status, error in (("200", ""), ("500", "500")):
                self.duration.declare(method, "http", template, status, error, "1.1", *tenant)

    def declare_later(self, routes: Callable[[], Iterable[tuple[str, str]]]) -> None:
        """Do so at the first scrape, where the settings ask for it: by then the application has all its routes."""
        if self.on and self.obs.settings.series_from_zero:
            self.obs.metrics.before_first_scrape(lambda: self.declare(routes()))

    def conf_of(self, classified: Classified | None) -> str:
        """Return the confidentiality of a response so classified."""
        return (classified or self._default).conf

    def headers(self, classified: Classified | None, *, trusted: bool) -> list[tuple[str, str]]:
        """Return the prebuilt header list for this classification; not to be changed."""
        settings = self.obs.settings
        if not settings.headers:
            return []
        if settings.audience != "all" and not trusted:
            return list(header_fields.SECURITY)
        part = classified or self._default
        known = self._headers.get(part)
        if known is None:
            known = self._headers[part] = [
                *header_fields.compliance(
                    conf=part.conf,
                    frameworks=part.frameworks or settings.frameworks,
                    purpose=part.purpose,
                    retention_days=settings.audit_retention_days,
                ),
                *header_fields.SECURITY,
            ]
        return known


def _views(prefix: str, more: dict[str, str]) -> tuple[PrefixCollector, PrefixCollector]:
    labels = {
        "http_route": "endpoint",
        "http_request_method": "method",
        "http_response_status_code": "status",
    }
    return (
        PrefixCollector(
            _DURATION, f"{prefix}_request_duration_seconds", "Request duration in seconds", labels | more
        ),
        PrefixCollector(_ACTIVE, f"{prefix}_active_requests", "Number of active requests", {}),
    )


class Exchange:
    """One request and its response.

    Args:
        server: What it shares with the others.
        method: Request method as received.
        scheme: ``http`` or ``https``.
        host: Server name, port (for `server.address`, `server.port`).
        protocol: Protocol version such as ``1.1``.
        traceparent: The header as received, or None.
        request_id: `X-Request-Id` as received, or None.
        trusted: Whether the caller may see compliance headers when the audience is ``trusted``.
        silent: Leave no span, sample, access line or audit entry: the service asks itself, for a control.
        defers: Another instrumentation makes the server span, inside; one that is open already is seen anyway.
        trust_incoming: Continue the caller's trace and take its baggage; default the settings'.
        baggage: `baggage` as received, or None; only what the settings allow is taken.
        tenant: What `Settings.tenant_header` says, or None; taken where the trace is continued.
        claimed: `Host` as received, or None. A server name out of it is the client's word (gunicorn on a Unix socket, Mangum,
            werkzeug's ProxyFix), so it is not recorded.
    """

    __slots__ = (
        "_active", "_classified", "_context", "_first_byte_ns", "_method", "_protocol", "_receipt", "_route",
        "_scheme", "_server", "_start_ns", "_trusted", "_waits", "_wall_ns", "cancelled", "error", "progress",
        "request_id", "silent", "span", "status", "tenant",
    )  # fmt: skip

    def __init__(
        self,
        server: HttpServer,
        method: str,
        scheme: str,
        host: tuple[str, str],
        protocol: str,
        traceparent: str | None,
        request_id: str | None,
        *,
        trusted: bool = False,
        silent: bool = False,
        trust_incoming: bool | None = None,
        baggage: str | None = None,
        defers: bool = False,
        tenant: str | None = None,
        claimed: str | None = None,
    ) -> None:
        obs = server.obs
        self._server = server
        self._method = method if method in METHODS else OTHER
        self._scheme = scheme = scheme if scheme in _SCHEMES else OTHER
        self._protocol = protocol if protocol in _VERSIONS else OTHER
        self._classified: Classified | None = None
        self._receipt: Receipt | None = None
        self._route = UNMATCHED
        self._trusted = trusted
        self.status: int = 0
        self.error: BaseException | None = None
        self.cancelled: bool = False
        self.request_id: str = new_request_id(request_id)
        self._wall_ns = obs.clock.wall_ns()
        self._start_ns = obs.clock.monotonic_ns()
        self._first_byte_ns: int | None = None
        self.silent: bool = silent
        self.progress: Progress | None = None if silent else obs.health.progress
        self._active = server.active.labels(self._method, scheme) if server.on and not silent else None
        trusts = obs.settings.trust_incoming if trust_incoming is None else trust_incoming
        #: Whose request it is (`set_tenant`): one that is declared, the one for all others, or none.
        self.tenant: str = bounded(obs.settings.tenants, tenant) if tenant and trusts else ""
        theirs = enclosing_span()
        self._waits = defers and theirs is None
        if defers or theirs is not None:
            self.span: Span = INVALID_SPAN if theirs is None else NonRecordingSpan(theirs)
            self._context = otel_context.get_current()
        else:
            self.span = (
                INVALID_SPAN if silent else self._start_span(host, claimed, traceparent, trusts=trusts)
            )
            self._context = set_span_in_context(self.span)
            if baggage and trusts and obs.settings.baggage:
                self._context = read_baggage(baggage, obs.settings.baggage, self._context)
        # Last: what raised before, a processor or sampler of the process, leaves an exchange that nobody ends.
        if self.progress is not None:
            self.progress.begin(id(self))
        if self._active is not None:
            self._active.inc()

    def _start_span(
        self, host: tuple[str, str], claimed: str | None, traceparent: str | None, *, trusts: bool
    ) -> Span:
        remote = parse_traceparent(traceparent) if traceparent else None
        parent, links = None, None
        if remote is not None:
            if trusts:
                parent = set_span_in_context(NonRecordingSpan(remote), otel_context.Context())
            else:
                links = [Link(remote)]
        attributes: dict[str, Any] = {
            "http.request.method": self._method,
            "url.scheme": self._scheme,
            "network.protocol.version": self._protocol,
        }
        name, port = host
        if name and (name in _OWN_NAMES or claimed is None or name.lower() not in claimed.lower()):
            attributes["server.address"] = name
            if port.isascii() and port.isdecimal() and len(port) <= _PORT_DIGITS:
                attributes["server.port"] = int(port)
        try:
            return self._server.obs.tracing.tracer.start_span(
                self._method if self._method != OTHER else "HTTP",
                parent if parent is not None else otel_context.Context(),
                SpanKind.SERVER,
                attributes,
                links,
                self._wall_ns,
            )
        except Exception as exc:  # noqa: BLE001 - a processor or sampler of the process: headers, sample and line go on
            self._server.obs.fault("tracing", "start", exc)
            return INVALID_SPAN

    @property
    def route(self) -> str:
        """The route's template as far as it is known."""
        return self._route

    def matched(self, template: str) -> None:
        """Note the route's template of the application's own table, before there is a response.

        Where the server span is another instrumentation's, inside, this is its place too.
        """
        self._route = template
        self._server.obs.redactor.template(template)
        if self._waits:
            self._waits = False
            self.span = NonRecordingSpan(answering_span())

    @property
    def error_id(self) -> str:
        """The id of the failure that span event and access line will name; empty while there is none."""
        return "" if self.error is None else describe_exception(self.error).error_id

    @property
    def restricted(self) -> bool:
        """Whether no cache may keep the response, whatever the application says."""
        return self._server.conf_of(self._classified) in header_fields.RESTRICTED

    def enter(self) -> Token[otel_context.Context]:
        """Make the server span current; the token is for a caller whose context is not the exchange's own."""
        return otel_context.attach(self._context)

    def classify(self, part: Classified) -> None:
        """State the response's classification (`@classified`)."""
        self._classified = part

    def receipt(self, receipt: Receipt) -> None:
        """Remember the audit receipt for the response's header."""
        self._receipt = receipt

    @property
    def is_recorded(self) -> bool:
        """Whether an audit entry of this request is in the trail."""
        return self._receipt is not None

    def respond(self, status: int, route: str | None, *, stated: bool = False) -> list[tuple[str, str]]:
        """Note status and route template, and return the headers to add.

        Args:
            status: The response's status.
            route: The route's template; None when none matched.
            stated: The template comes from the request's environment, not from the application's own table of routes,
                so identifiers in it are masked.
        """
        self.status = status
        if self._waits:
            self.span = NonRecordingSpan(answering_span())
        if route is not None:
            self._route = route
            if not stated:
                self._server.obs.redactor.template(route)
        server = self._server
        added = [("X-Request-Id", self.request_id), *server.headers(self._classified, trusted=self._trusted)]
        if self._receipt is not None and server.obs.settings.headers:
            receipt = self._receipt
            added.append(header_fields.receipt(receipt.origin, receipt.index, receipt.root))
        if server.obs.settings.trace_response and (self._trusted or server.obs.settings.audience == "all"):
            context = self.span.get_span_context()
            if context.is_valid:
                added.append(("traceresponse", format_traceparent(context)))
        return added

    def first_byte(self) -> None:
        """Note that the first byte of a stream goes out, so that the time to it is recorded too."""
        if self._first_byte_ns is None:
            self._first_byte_ns = self._server.obs.clock.monotonic_ns()

    def unavailable(self) -> Response:
        """Return the 503 in place of what may not be answered without its audit entry."""
        context = self.span.get_span_context()
        return problem(
            503,
            "audit_unavailable",
            trace_id=f"{context.trace_id:032x}" if context.is_valid else "",
            request_id=self.request_id,
            headers=[("Retry-After", "1")],
        )

    def finish(self, response_bytes: int) -> None:
        """End every signal with one duration; called once, when the body was closed.

        Args:
            response_bytes: Length of the body as sent.
        """
        if self.silent:
            return
        if self._active is not None:
            self._active.dec()
        if self.progress is not None:
            self.progress.end(id(self))
        server = self._server
        obs = server.obs
        now_ns = obs.clock.monotonic_ns()
        duration_ns = now_ns - self._start_ns
        seconds = duration_ns / 1e9
        status = self.status or (CLIENT_CLOSED if self.cancelled else 500)
        code = str(status)
        facts = None if self.error is None else describe_exception(self.error)
        if self.cancelled:
            error = CANCELLED
        else:
            error = "" if self.error is None else type(self.error).__qualname__
            if not error and status >= 500:
                error = code
        span = self.span
        context = span.get_span_context()
        trace_id = span_id = ""
        if context.is_valid:
            trace_id, span_id = f"{context.trace_id:032x}", f"{context.span_id:016x}"
        line: dict[str, Any] = {
            "trace_id": trace_id,
            "span_id": span_id,
            "method": self._method,
            "route": self._route,
            "status": status,
            "duration_seconds": seconds,
            "response_bytes": response_bytes,
            "request_id": self.request_id,
        }
        if self.tenant:
            line["tenant"] = self.tenant
        if self._first_byte_ns is not None:
            line["first_byte_seconds"] = (self._first_byte_ns - self._start_ns) / 1e9
        if facts is not None:
            line |= _told(facts)
            obs.redactor.written(error)
        sampled = span.is_recording()
        try:
            self._end_span(span, status, error, facts, line.get("first_byte_seconds"))
            span.end(self._wall_ns + duration_ns)
        except Exception as exc:  # noqa: BLE001 - as at its start
            obs.fault("tracing", "end", exc)
        if server.on:
            values = (self._method, self._scheme, self._route, code, error, self._protocol)
            child = server.duration.labels(*values, *((self.tenant,) if obs.settings.tenants else ()))
            shown = sampled and obs.settings.exemplars and server.paces[child].due(now_ns, seconds)
            child.observe(seconds, {"trace_id": trace_id, "span_id": span_id} if shown else None)
        obs.logs.access(line)

    def _end_span(
        self, span: Span, status: int, error: str, facts: ExceptionFacts | None, first_byte: float | None
    ) -> None:
        if not span.is_recording():
            return
        route = self._route
        attributes: dict[str, Any] = {"http.response.status_code": status}
        if route != UNMATCHED:
            span.update_name(f"{self._method} {route}")
            attributes["http.route"] = route
        if self.tenant:
            attributes[TENANT] = self.tenant
        if first_byte is not None:
            attributes["healthobs.first_byte_seconds"] = first_byte
        if facts is not None:
            record_exception(span, facts)
        elif error:
            attributes["error.type"] = error
            if error != CANCELLED:
                span.set_status(_ERROR_STATUS)
        span.set_attributes(attributes)


def _told(facts: ExceptionFacts) -> dict[str, Any]:
    """Return the log fields of an exception, under the names of `Logs.emit`."""
    return {
        "exception_type": facts.type,
        "exception_frames": facts.frames,
        "exception_fingerprint": facts.fingerprint,
        "error_id": facts.error_id,
    }


def new_request_id(received: str | None) -> str:
    """Return the caller's request id when it is well-formed, else a new UUID (RFC 9562 version 4)."""
    if received and _REQUEST_ID.match(received):
        return received
    digits = os.urandom(16).hex()  # `uuid.uuid4` makes eight calls of these two
    variant = "89ab"[int(digits[16], 16) & 3]
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{variant}{digits[17:20]}-{digits[20:]}"
