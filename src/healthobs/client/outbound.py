"""The telemetry of outgoing HTTP calls: one CLIENT span and two duration samples for each attempt.

OpenTelemetry semantic conventions for HTTP spans and metrics (stable set). Whatever fails in here is
counted under ``client`` and goes no further. Where another instrumentation makes the client span around this one, its
span is used; inside, the others are told to make none.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

from opentelemetry.context import (
    _SUPPRESS_HTTP_INSTRUMENTATION_KEY,  # pyright: ignore[reportPrivateUsage] - what all of contrib agrees on
    Context,
    get_value,
    set_value,
)
from opentelemetry.trace import (
    INVALID_SPAN,
    NonRecordingSpan,
    Span,
    SpanKind,
    Status,
    StatusCode,
    get_current_span,
)

from healthobs import _runtime
from healthobs.tracing import format_traceparent, write_baggage

if TYPE_CHECKING:
    from healthobs.metrics import Instrument
    from healthobs.observability import Observability
    from healthobs.redaction import Redactor

_METRIC: Final = "http_client_request_duration_seconds"
#: Stands for a method that is none of RFC 9110's.
OTHER: Final = "_OTHER"
_SEMCONV_LABELS: Final = (
    "http_request_method",
    "server_address",
    "server_port",
    "http_response_status_code",
    "error_type",
)


class Recorder:
    """Records the calls to one peer.

    Args:
        peer: The peer's short name.
        address: Host of its base URL.
        port: Port of its base URL.
    """

    def __init__(self, peer: str, address: str, port: int) -> None:
        self.peer = peer
        self.address = address
        self.port = port
        self._instruments: tuple[Observability, Instrument, Instrument | None] | None = None

    def __getstate__(self) -> dict[str, object]:
        """Leave the instruments behind: a session that is pickled or copied finds those of its process."""
        return {**vars(self), "_instruments": None}

    def start(
        self, method: str, route: str | None, resend_count: int, *, declared: bool = False
    ) -> Recording | None:
        """Open the span of one attempt; None when nothing is being recorded, or that failed.

        Args:
            method: HTTP method.
            route: Path template; None when none is known.
            resend_count: How often the call was sent before.
            declared: The template comes from a table that was declared beforehand.
        """
        obs = _runtime.current_or_none()
        if obs is None:
            return None
        try:
            wall_ns, monotonic_ns = obs.clock.wall_ns(), obs.clock.monotonic_ns()
            if get_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY):
                span: Span = NonRecordingSpan(get_current_span().get_span_context())
            else:
                shown = None if route is None else _shown(route, obs.redactor, declared=declared)
                span = self._span(obs, method, shown, resend_count, wall_ns)
            return Recording(obs, self, method, span, wall_ns, monotonic_ns)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            obs.fault("client", "begin", exc)
            return None

    def _span(
        self, obs: Observability, method: str, route: str | None, resend_count: int, wall_ns: int
    ) -> Span:
        attributes: dict[str, str | int] = {
            "http.request.method": method,
            "server.address": self.address,
            "server.port": self.port,
        }
        if route is not None:
            attributes["url.template"] = route
        if resend_count:
            attributes["http.request.resend_count"] = resend_count
        verb = "HTTP" if method == OTHER else method
        name = obs.redactor.written(verb) if route is None else f"{verb} {route}"
        try:
            return obs.tracing.tracer.start_span(
                name, kind=SpanKind.CLIENT, attributes=attributes, start_time=wall_ns
            )
        except Exception as exc:  # noqa: BLE001 - a processor or sampler of the process: the sample goes on
            obs.fault("client", "start", exc)
            return INVALID_SPAN

    def instruments(self, obs: Observability) -> tuple[Instrument, Instrument | None]:
        """Return the duration histograms of `obs`: the semantic conventions' and the service's own."""
        held = self._instruments
        if held is None or held[0] is not obs:
            prefix, histogram = obs.settings.prefix, obs.metrics.histogram
            semconv = histogram(_METRIC, "Duration of HTTP client requests.", _SEMCONV_LABELS)
            own = None
            if prefix:
                name = f"{prefix}_outbound_request_duration_seconds"
                own = histogram(name, "Duration of calls to other services.", ("peer", "method", "status"))
            held = self._instruments = (obs, semconv, own)
        return held[1:]


def _shown(route: str, redactor: Redactor, *, declared: bool) -> str:
    if declared or redactor.is_written(route):
        redactor.template(route)
        return route
    return redactor.name(route, signal="trace")  # known only now, so it can be made of data


def inside() -> Context:
    """Return the context for the transport, in which other instrumentations of HTTP clients make no span."""
    return set_value(_SUPPRESS_HTTP_INSTRUMENTATION_KEY, True)


@dataclass(frozen=True, slots=True)
class Recording:
    """One attempt being recorded."""

    obs: Observability
    recorder: Recorder
    method: str
    span: Span
    wall_ns: int
    monotonic_ns: int

    def headers(self) -> dict[str, str]:
        """Return what makes the peer's telemetry join this one's; of the baggage only what is allowed."""
        context = self.span.get_span_context()
        fields: dict[str, str] = {}
        if context.is_valid:
            fields["traceparent"] = format_traceparent(context)
            if context.trace_state:
                fields["tracestate"] = context.trace_state.to_header()
        if self.obs.settings.baggage and (carried := write_baggage(self.obs.settings.baggage)):
            fields["baggage"] = carried
        request_id = getattr(_runtime.exchange.get(), "request_id", None)
        if isinstance(request_id, str) and request_id:
            fields["X-Request-Id"] = request_id
        return fields

    def finish(self, status: int | None, error: str) -> None:
        """Close the span and take the two samples, all with one duration.

        Args:
            status: Status code of the answer; None when none came.
            error: A word of a closed vocabulary; empty when the call went well.
        """
        try:
            elapsed_ns = max(0, self.obs.clock.monotonic_ns() - self.monotonic_ns)
            self._end_span(status, error, elapsed_ns)
            self._sample("" if status is None else str(status), error, elapsed_ns / 1e9)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self.obs.fault("client", "finish", exc)

    def _end_span(self, status: int | None, error: str, elapsed_ns: int) -> None:
        try:
            if status is not None:
                self.span.set_attribute("http.response.status_code", status)
            if error:
                self.obs.redactor.written(error)
                self.span.set_attribute("error.type", error)
                self.span.set_status(Status(StatusCode.ERROR, error if status is None else None))
            self.span.end(self.wall_ns + elapsed_ns)
        except Exception as exc:  # noqa: BLE001 - a processor of the process: the sample goes on
            self.obs.fault("client", "end", exc)

    def _sample(self, status: str, error: str, seconds: float) -> None:
        recorder, method = self.recorder, self.method
        semconv, own = recorder.instruments(self.obs)
        context = self.span.get_span_context()
        exemplar = None
        if self.obs.settings.exemplars and context.trace_flags.sampled:
            exemplar = {"trace_id": f"{context.trace_id:032x}", "span_id": f"{context.span_id:016x}"}
        semconv.labels(method, recorder.address, str(recorder.port), status, error).observe(seconds, exemplar)
        if own is not None:
            own.declare(recorder.peer, method, status).observe(seconds, exemplar)
