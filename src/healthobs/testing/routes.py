"""`check_app`: every route of a Flask application leaves its span, sample, access line and request id.

It calls the application as it is, so it proves what runs and not what the source says (a search for
`start_span` proves neither).

Limits: each route is called once, without credentials or body: use an instance made for tests. A route whose
parameters cannot be guessed needs an example.
"""

from __future__ import annotations

import io
import uuid
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from typing import Any

from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanKind

from healthobs.decorators.above import passed_over
from healthobs.observability import Observability
from healthobs.testing.purity import impurities, watching
from healthobs.wsgi import Middleware

#: Tried in turn for the parameters of a route.
_GUESSES = (1, "1", uuid.UUID(int=1), 1.5)
_COUNT = "http_server_request_duration_seconds_count"


def check_app(app: Any, *, examples: Mapping[str, Mapping[str, Any]] | None = None) -> None:
    """Call each route of `app` once and prove that it leaves all four signals, and that its liveness probe is pure.

    Args:
        app: A Flask application after `init_app`.
        examples: Values for a route's parameters, by the route's template.

    Raises:
        AssertionError: With every signal that is missing, by route, what a liveness probe opens, and decorators
            that no request meets.
    """
    middleware = app.wsgi_app
    if not isinstance(middleware, Middleware):
        raise AssertionError("healthobs is not the outermost middleware: call init_app last")
    adapter = app.url_map.bind("localhost")
    problems = _impure(middleware)
    problems += [
        f"{view}: above the route decorator, where it never runs"
        for view in passed_over(middleware.own_views())
    ]
    with _listening(middleware.obs) as seen:
        for rule in app.url_map.iter_rules():
            method = (
                "GET" if "GET" in rule.methods else min(rule.methods - {"HEAD", "OPTIONS"}, default="OPTIONS")
            )
            path = _path(adapter, rule, method, (examples or {}).get(rule.rule))
            if path is None:
                problems.append(f"{rule.rule}: its parameters cannot be guessed, give an example")
            elif path not in middleware.unobserved:
                problems += [
                    f"{method} {rule.rule}: no {signal}"
                    for signal in seen(middleware, method, path, rule.rule)
                ]
    if problems:
        raise AssertionError("; ".join(problems))


def _impure(middleware: Middleware) -> list[str]:
    path = min(middleware.endpoints.liveness)
    with watching() as seen:
        _call(middleware, "GET", path)
    return [*impurities(middleware.obs), *(f"GET {path} opens {what}" for what in dict.fromkeys(seen))]


def _path(adapter: Any, rule: Any, method: str, example: Mapping[str, Any] | None) -> str | None:
    for guess in _GUESSES:
        values = example or dict.fromkeys(rule.arguments, guess)
        try:
            path = str(adapter.build(rule.endpoint, {**values, **(rule.defaults or {})}, method))
            if adapter.match(path, method, return_rule=True)[0].rule == rule.rule:
                return path
        except Exception:  # noqa: BLE001, S112 - werkzeug's, for a value that does not fit
            continue
    return None


@contextmanager
def _listening(obs: Observability) -> Generator[Callable[[Middleware, str, str, str], list[str]]]:
    """Give what makes one request and names the signals that it did not leave."""
    exporter, lines = InMemorySpanExporter(), list[Mapping[str, Any]]()
    processor = SimpleSpanProcessor(exporter)
    obs.tracing.provider.add_span_processor(processor)
    write = obs.logs.access

    def access(fields: Mapping[str, Any]) -> None:
        lines.append(fields)
        write(fields)

    def count(method: str, route: str) -> float:
        return sum(
            sample.value
            for family in obs.metrics.registry.collect()
            for sample in family.samples
            if sample.name == _COUNT
            and (sample.labels["http_route"], sample.labels["http_request_method"]) == (route, method)
        )

    def missing(middleware: Middleware, method: str, path: str, route: str) -> list[str]:
        exporter.clear()
        lines.clear()
        before = count(method, route)
        headers = _call(middleware, method, path)
        spans = [
            span
            for span in exporter.get_finished_spans()
            if span.kind is SpanKind.SERVER and (span.attributes or {}).get("http.route") == route
        ]
        left = {
            "server span": len(spans) == 1,
            "duration sample": count(method, route) == before + 1,
            "access line": [line.get("route") for line in lines if "route" in line] == [route],
            "X-Request-Id": any(name.lower() == "x-request-id" for name, _ in headers),
        }
        return [signal for signal, there in left.items() if not there]

    object.__setattr__(obs.logs, "access", access)
    try:
        yield missing
    finally:
        del obs.logs.__dict__["access"]
        exporter.shutdown()  # the provider keeps the processor; what it gets from here on is dropped


def _call(app: Middleware, method: str, path: str) -> list[tuple[str, str]]:
    environ: dict[str, Any] = {
        "REQUEST_METHOD": method, "PATH_INFO": path, "QUERY_STRING": "", "SCRIPT_NAME": "", "CONTENT_LENGTH": "0",
        "SERVER_NAME": "localhost", "SERVER_PORT": "80", "SERVER_PROTOCOL": "HTTP/1.1", "wsgi.url_scheme": "http",
        "wsgi.version": (1, 0), "wsgi.input": io.BytesIO(), "wsgi.errors": io.StringIO(), "wsgi.multithread": True,
        "wsgi.multiprocess": False, "wsgi.run_once": False,
    }  # fmt: skip
    sent: list[tuple[str, str]] = []

    def start_response(
        _status: str, headers: list[tuple[str, str]], _exc_info: Any = None
    ) -> Callable[[bytes], None]:
        sent[:] = headers
        return lambda _data: None

    body: Any = app(environ, start_response)
    for _ in body:
        pass
    getattr(body, "close", lambda: None)()
    return sent
