"""One WSGI application under observation, asked as a strict server would, and everything that it left."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs import Observability, Settings
from healthobs.clock import Clock
from healthobs.wsgi import Middleware

TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
WsgiApp = Callable[[dict[str, Any], Callable[..., Any]], Iterable[bytes]]


class Ticks:
    """A monotonic clock that moves only when told to."""

    def __init__(self) -> None:
        self.now_ns = 0

    def __call__(self) -> int:
        return self.now_ns


class Kit:
    """One observed application and what it left."""

    def __init__(self, app: WsgiApp, **settings: Any) -> None:
        authorize, trusted = settings.pop("authorize", None), settings.pop("trusted", None)
        self.ticks = Ticks()
        self.stream = io.StringIO()
        self.exporter = InMemorySpanExporter()
        self.obs = Observability(
            Settings(service_name="svc", prefix="svc", **settings),
            clock=Clock(lambda: 1_700_000_000_000_000_000, self.ticks),
            span_exporters=[self.exporter],
            simple_spans=True,
            log_stream=self.stream,
        )
        self.middleware = Middleware(app, self.obs, authorize=authorize, trusted=trusted)

    def request(
        self, method: str = "GET", path: str = "/x", **headers: str
    ) -> tuple[int, dict[str, str], bytes]:
        """Make one request as a strict server would; return status, headers in lower case, body."""
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": path,
            "SERVER_PROTOCOL": "HTTP/1.1",
            "QUERY_STRING": "",
            "SCRIPT_NAME": "",
        }
        environ.update({f"HTTP_{name.upper()}": value for name, value in headers.items()})
        setup_testing_defaults(environ)
        seen: list[Any] = []

        def start_response(
            status: str, fields: list[tuple[str, str]], exc_info: Any = None
        ) -> Callable[[bytes], Any]:
            assert not seen or exc_info is not None, "started twice"
            seen[:] = [int(status[:3]), {name.lower(): value for name, value in fields}, len(fields)]
            return lambda data: None

        body = validator(self.middleware)(environ, start_response)
        try:
            content = b"".join(body)
        finally:
            body.close()  # type: ignore[attr-defined]
        assert seen[2] == len(seen[1]), "a header was sent twice"
        return seen[0], seen[1], content

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Return the exported spans."""
        return self.exporter.get_finished_spans()

    def lines(self) -> list[dict[str, Any]]:
        """Return the log lines."""
        return [json.loads(line) for line in self.stream.getvalue().splitlines()]

    def sample(self, name: str, **labels: str) -> float | None:
        """Return one sample of the exposition."""
        for family in self.obs.metrics.collect():
            for sample in family.samples:
                if sample.name == name and labels.items() <= sample.labels.items():
                    return float(sample.value)
        return None


def plain_environ() -> dict[str, Any]:
    environ: dict[str, Any] = {"PATH_INFO": "/x"}
    setup_testing_defaults(environ)
    return environ


def answer(
    status: str = "200 OK", body: bytes = b"ok", route: str | None = "/x/{id}", **extra: str
) -> WsgiApp:
    """Return an application that gives a fixed answer."""

    def app(environ: dict[str, Any], start_response: Callable[..., Any]) -> Iterable[bytes]:
        if route is not None:
            environ["healthobs.route"] = route
        headers = [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(body))),
            *[(name.replace("_", "-"), value) for name, value in extra.items()],
        ]
        if environ["REQUEST_METHOD"] == "HEAD":
            start_response(status, headers)
            return []
        start_response(status, headers)
        return [body]

    return app
