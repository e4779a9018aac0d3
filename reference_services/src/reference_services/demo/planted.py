"""Plants a named fault in a service's process, from outside: no code of the services or the library knows of it.

A `sitecustomize` module calls `plant` before anything else is imported (`reference_services.demo.faults`).
Each function below replaces one method or function by one that does the wrong thing.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from reference_services.demo.patching import Planter, replace
from reference_services.demo.planted_bugs import BUGS

PLANTERS: dict[str, Planter] = {}
_COMPLIANCE = ("compliance", "data-classification", "data-handling")


def plant(name: str) -> None:
    """Patch this process so that the fault `name` happens in it.

    Raises:
        KeyError: There is no such fault.
    """
    {**PLANTERS, **BUGS}[name]()


def _plants(name: str) -> Callable[[Planter], Planter]:
    def register(planter: Planter) -> Planter:
        PLANTERS[name] = planter
        return planter

    return register


def _without_headers(names: Iterable[str], only_status: int | None = None) -> None:
    from healthobs.http import Exchange

    dropped = frozenset(names)

    def respond(right: Any, exchange: Any, status: int, *rest: Any, **more: Any) -> Any:
        added = right(exchange, status, *rest, **more)
        if only_status not in (None, status):
            return added
        return [pair for pair in added if pair[0].lower() not in dropped]

    replace(Exchange, "respond", respond)


@_plants("header-lost-on-404")
def _header_lost() -> None:
    _without_headers(_COMPLIANCE, only_status=404)


@_plants("response-without-trace")
def _response_without_trace() -> None:
    _without_headers(("traceresponse",))


@_plants("orphan-span")
def _orphan_span() -> None:
    from opentelemetry.trace import SpanKind

    from healthobs.tracing import RedactingSpanExporter

    def export(right: Any, exporter: Any, spans: Iterable[Any]) -> Any:
        return right(exporter, [span for span in spans if span.kind is not SpanKind.CLIENT])

    replace(RedactingSpanExporter, "export", export)


@_plants("phi-in-log")
def _phi_in_log() -> None:
    from reference_services.phi.service import Service

    def shown(right: Any, service: Any, view: Any, patient: Any) -> Any:
        born = patient.record["date_of_birth"]
        service.kit.obs.logs.access({"event": "record_shown", "born": born})  # the way past the redactor
        return right(service, view, patient)

    replace(Service, "shown", shown)


@_plants("phi-in-span")
def _phi_in_span() -> None:
    from opentelemetry.trace import get_current_span

    from healthobs.tracing import RedactingSpanExporter
    from reference_services.phi.service import Service

    def shown(right: Any, service: Any, view: Any, patient: Any) -> Any:
        get_current_span().set_attribute("shown", patient.record["last_name"])
        setattr(RedactingSpanExporter, "_redact", unredacted)  # noqa: B010 - at start the canary would find it
        return right(service, view, patient)

    def unredacted(_exporter: Any, span: Any) -> Any:
        return span

    replace(Service, "shown", shown)


@_plants("counter-doubled")
def _counter_doubled() -> None:
    from reference_services.auth.service import GRANT, Service

    def token(right: Any, service: Any, body: Any) -> Any:
        answer = right(service, body)
        service.issued.labels(GRANT).inc()
        return answer

    replace(Service, "token", token)


@_plants("request-counted-twice")
def _request_counted_twice() -> None:
    from healthobs.http import HttpServer

    class Twice:
        def __init__(self, right: Any) -> None:
            self._right = right

        def labels(self, *values: str) -> Any:
            self._right.labels(*values).observe(0.0)
            return self._right.labels(*values)

    def initialise(right: Any, server: Any, *args: Any, **kwargs: Any) -> None:
        right(server, *args, **kwargs)
        server.duration = Twice(server.duration)

    replace(HttpServer, "__init__", initialise)


@_plants("probe-touches-database")
def _probe_touches_database() -> None:
    from reference_services._kit import Kit, database

    def finish(right: Any, kit: Any, **checks: Any) -> Any:
        app = right(kit, **checks)
        kit.obs.health.register("store", lambda: database.check(kit.engine), kind="liveness")
        return app

    replace(Kit, "finish", finish)


@_plants("readiness-stuck-true")
def _readiness_stuck() -> None:
    from healthobs.health import Health

    replace(Health, "readiness", lambda _right, _health: (200, {"ready": True, "checks": {}}))


@_plants("trace-id-missing-in-logs")
def _trace_id_missing() -> None:
    from healthobs.logs import Logs

    def access(right: Any, logs: Any, fields: Mapping[str, Any]) -> None:
        right(logs, {**fields, "trace_id": ""})

    replace(Logs, "access", access)


@_plants("log-measures-anew")
def _log_measures_anew() -> None:
    from healthobs.logs import Logs

    def access(right: Any, logs: Any, fields: Mapping[str, Any]) -> None:
        right(logs, {**fields, "duration_seconds": fields.get("duration_seconds", 0.0) + 0.001})

    replace(Logs, "access", access)


@_plants("trace-not-continued")
def _trace_not_continued() -> None:
    from healthobs import http

    replace(http, "parse_traceparent", lambda _right, _header: None)


@_plants("log-line-not-json")
def _log_line_not_json() -> None:
    from reference_services.auth.service import Service

    def token(right: Any, service: Any, body: Any) -> Any:
        print("issuing a token", flush=True)
        return right(service, body)

    replace(Service, "token", token)


@_plants("self-approval")
def _self_approval() -> None:
    from reference_services.payment_gateway import domain

    replace(domain, "check_separation", lambda _right, _initiator, _approver, _earlier: None)


@_plants("card-number-stored")
def _card_number_stored() -> None:
    from reference_services.payment_gateway.service import Service

    def tokenise(right: Any, service: Any, body: Any) -> Any:
        file = service.kit.settings.data_dir / "cards.csv"
        file.write_text(body.number.get_secret_value(), encoding="ascii")
        return right(service, body)

    replace(Service, "tokenise", tokenise)


@_plants("label-exploding")
def _label_exploding() -> None:
    from healthobs.wsgi import Middleware

    def call(right: Any, middleware: Any, environ: Any, start_response: Any) -> Any:
        paths = middleware.obs.metrics.counter("paths_total", "Requests by path", ("route",))
        paths.declare(
            environ.get("PATH_INFO", "")
        ).inc()  # as if paths were a closed set: neither masked nor capped
        return right(middleware, environ, start_response)

    replace(Middleware, "__call__", call)


@_plants("control-that-cannot-fail")
def _control_cannot_fail() -> None:
    from healthobs.compliance.control import Outcome
    from healthobs.compliance.engine import ControlEngine

    replace(ControlEngine, "_observe", lambda *_: Outcome("pass", "nobody looked"))


@_plants("idempotency-off")
def _idempotency_off() -> None:
    from reference_services._kit import Kit

    def answer(_right: Any, _kit: Any, operation: Any, _principal: Any, arguments: dict[str, Any]) -> Any:
        return operation.response(operation.view(**arguments))

    replace(Kit, "_answer_once", answer)


@_plants("probes-traced")
def _probes_traced() -> None:
    """Treat liveness and readiness as requests; not scrapes, which would count themselves for ever."""
    from healthobs.endpoints import LIVENESS, READINESS
    from healthobs.wsgi import Middleware

    def operational(right: Any, middleware: Any, environ: Any, start_response: Any) -> Any:
        path = environ["PATH_INFO"]
        if path not in (*LIVENESS, *READINESS):
            return right(middleware, environ, start_response)
        exchange = middleware._begin(environ)

        def start(status: str, headers: Any, *rest: Any) -> Any:
            exchange.respond(int(status[:3]), path)
            return start_response(status, headers, *rest)

        body = right(middleware, environ, start)
        exchange.finish(sum(map(len, body)))
        return body

    replace(Middleware, "_operational", operational)


@_plants("input-echoed")
def _input_echoed() -> None:
    from flask import request

    from reference_services._kit import errors

    def http(right: Any, exc: Any) -> Any:
        answer = right(exc)  # a problem's own title would be redacted
        body = json.loads(answer.get_data())
        answer.set_data(json.dumps({**body, "title": f"{body['title']}: {request.path}"}))
        return answer

    replace(errors, "_http", http)


@_plants("patient-in-audit")
def _patient_in_audit() -> None:
    from healthobs.audit.subjects import SubjectMap

    replace(SubjectMap, "token", lambda _right, _subjects, identifier, **_more: identifier)


@_plants("audit-without-trace")
def _audit_without_trace() -> None:
    from healthobs.audit import entry

    replace(entry, "_traced", lambda right, *arguments: ("null", right(*arguments)[1]))
