"""The same small service behind each front end, driven in process as a server would, for the contract suite."""

from __future__ import annotations

import io
import json
from collections.abc import AsyncIterator, Callable, Iterable, Iterator
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import django
from django.conf import settings
from django.core.asgi import get_asgi_application
from django.core.wsgi import get_wsgi_application
from fastapi import FastAPI
from fastapi import Response as FastResponse
from fastapi.responses import StreamingResponse
from flask import Flask, Response, abort
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from asgi_calls import Answer, call_asgi
from healthobs import Observability, Settings, asgi, wsgi
from healthobs.clock import Clock
from healthobs.django import init_app as init_django
from healthobs.exceptions import AuditWriteError

SECOND_NS = 1_000_000_000


class Front:
    """One front end with the service behind it, and what it left.

    The service has: `/patients/{patient_id}`, `/broken` (raises), `/gone` (410), `/stream` (two chunks, one
    second before each), `/unrecorded` (the audit store is down), `/own` (an own `Cache-Control`), `/look`
    (calls `look`).
    """

    template = "/patients/{patient_id}"

    def __init__(self, **options: Any) -> None:
        options = {"control_interval_seconds": 0, **options}
        authorize, trusted = options.pop("authorize", None), options.pop("trusted", None)
        self.conf = options.pop("conf", "N")
        self.now_ns = 0
        self.look: Callable[[], None] = lambda: None
        self.stream = io.StringIO()
        self.exporter = InMemorySpanExporter()
        self.obs = Observability(
            Settings(service_name="svc", prefix="svc", **options),
            clock=Clock(lambda: 1_700_000_000 * SECOND_NS, lambda: self.now_ns),
            span_exporters=[self.exporter],
            simple_spans=True,
            log_stream=self.stream,
        )
        self.app = self.build(authorize, trusted)

    def build(self, authorize: Any, trusted: Any) -> Any:
        """Return the observed application; `trusted` takes the value of the header `X-Inside`."""
        raise NotImplementedError

    def request(self, method: str = "GET", path: str = "/patients/pt-4711", **headers: str) -> Answer:
        """Make one request and read the answer to its end."""
        raise NotImplementedError

    def get(self, path: str, **headers: str) -> Answer:
        """Make a GET request."""
        return self.request("GET", path, **headers)

    def second(self) -> None:
        """Let a second pass."""
        self.now_ns += SECOND_NS

    def spans(self) -> tuple[ReadableSpan, ...]:
        """Return the exported spans."""
        return self.exporter.get_finished_spans()

    def access(self) -> list[dict[str, Any]]:
        """Return the access lines."""
        return self._lines("http_request")

    def faults(self) -> list[dict[str, Any]]:
        """Return the lines about faults of telemetry."""
        return self._lines("telemetry_fault")

    def _lines(self, event: str) -> list[dict[str, Any]]:
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line for line in lines if line["event"] == event]

    def samples(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return labels and value of every sample of that name."""
        families = self.obs.metrics.collect()
        return [(s.labels, s.value) for family in families for s in family.samples if s.name == name]

    def total(self, name: str, **labels: str) -> float:
        """Return the sum of the samples that have these labels among theirs."""
        return sum(value for found, value in self.samples(name) if labels.items() <= found.items())

    def telemetry(self) -> str:
        """Return everything that was recorded, as text."""
        spans = "".join(span.to_json() for span in self.spans())
        return spans + self.stream.getvalue() + self.obs.metrics.exposition(None)[1].decode()


class _Wsgi(Front):
    def request(self, method: str = "GET", path: str = "/patients/pt-4711", **headers: str) -> Answer:
        plain, _, query = path.partition("?")
        environ: dict[str, Any] = {
            "REQUEST_METHOD": method,
            "PATH_INFO": plain,
            "QUERY_STRING": query,
            "SCRIPT_NAME": "",
            "SERVER_PROTOCOL": "HTTP/1.1",
        }
        environ |= {f"HTTP_{name.upper()}": value for name, value in headers.items()}
        setup_testing_defaults(environ)
        seen: list[Any] = [500, []]

        def start_response(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
            seen[:] = [int(status[:3]), [(name.lower(), value) for name, value in fields]]
            return lambda data: None

        try:
            body = validator(self.app)(environ, start_response)
        except Exception:  # noqa: BLE001 - what a server does
            return Answer(500, [], b"")
        try:
            content = b"".join(body)
        finally:
            body.close()  # type: ignore[attr-defined]
        return Answer(seen[0], seen[1], content)


class PlainWsgi(_Wsgi):
    """A bare WSGI callable."""

    def build(self, authorize: Any, trusted: Any) -> Any:
        told = None if trusted is None else lambda environ: trusted(environ.get("HTTP_X_INSIDE"))
        return wsgi.Middleware(self._serve, self.obs, authorize=authorize, trusted=told, conf=self.conf)

    def _serve(self, environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        status, headers, body = "200 OK", [("Content-Type", "text/plain")], [b"active"]
        if path.startswith("/patients/"):
            environ["healthobs.route"] = self.template
        elif path in ("/broken", "/gone", "/stream", "/unrecorded", "/own", "/look"):
            environ["healthobs.route"] = path
        else:
            status = "404 Not Found"
        if path == "/broken":
            raise RuntimeError("078-05-1120")
        if path == "/unrecorded":
            raise AuditWriteError("the store is gone")
        if path == "/gone":
            status = "410 Gone"
        if path == "/own":
            headers.append(("Cache-Control", "private"))
        if path == "/look":
            self.look()
        if path != "/stream":
            headers.append(("Content-Length", "6"))
        start(status, headers)
        return self._chunks() if path == "/stream" else [] if environ["REQUEST_METHOD"] == "HEAD" else body

    def _chunks(self) -> Iterator[bytes]:
        for chunk in (b"a", b"b"):
            self.second()
            yield chunk


class FlaskFront(_Wsgi):
    """Flask."""

    template = "/patients/<patient_id>"

    def build(self, authorize: Any, trusted: Any) -> Any:
        from healthobs.flask import init_app

        app = Flask("svc")
        told = None if trusted is None else lambda environ: trusted(environ.get("HTTP_X_INSIDE"))

        @app.get("/patients/<patient_id>")
        def patient(patient_id: str) -> str:
            return "active"

        @app.get("/broken")
        def broken() -> str:
            raise RuntimeError("078-05-1120")

        @app.get("/gone")
        def gone() -> str:
            abort(410)

        @app.get("/stream")
        def stream() -> Response:
            def chunks() -> Iterator[str]:
                for chunk in "ab":
                    self.second()
                    yield chunk

            return Response(chunks(), mimetype="text/plain")

        @app.get("/unrecorded")
        def unrecorded() -> str:
            raise AuditWriteError("the store is gone")

        @app.get("/own")
        def own() -> Response:
            return Response("x", headers={"Cache-Control": "private"})

        @app.get("/look")
        def look() -> str:
            self.look()
            return "x"

        @app.get("/patients/<mrn>/icd10")
        @app.get("/patients/<mrn>/30-day-readmission")
        def chart(mrn: str) -> str:
            return "x"

        return init_app(app, self.obs, authorize=authorize, trusted=told, conf=self.conf)


class FastApiFront(Front):
    """FastAPI."""

    def build(self, authorize: Any, trusted: Any) -> Any:
        app = FastAPI()
        told = None if trusted is None else lambda scope: trusted(_text(scope, b"x-inside"))

        @app.api_route("/patients/{patient_id}", methods=["GET", "HEAD"])
        async def patient(patient_id: str) -> str:
            return "active"

        @app.get("/broken")
        async def broken() -> None:
            raise RuntimeError("078-05-1120")

        @app.get("/gone", status_code=410)
        def gone() -> None:
            return None

        @app.get("/stream")
        async def stream() -> StreamingResponse:
            async def chunks() -> AsyncIterator[str]:
                for chunk in "ab":
                    self.second()
                    yield chunk

            return StreamingResponse(chunks(), media_type="text/plain")

        @app.get("/unrecorded")
        async def unrecorded() -> None:
            raise AuditWriteError("the store is gone")

        @app.get("/own")
        async def own() -> FastResponse:
            return FastResponse("x", headers={"Cache-Control": "private"})

        @app.get("/look")
        async def look() -> None:
            self.look()

        @app.get("/patients/{mrn}/icd10")
        @app.get("/patients/{mrn}/30-day-readmission")
        async def chart(mrn: str) -> str:
            return "x"

        return asgi.init_app(app, self.obs, authorize=authorize, trusted=told, conf=self.conf)

    def request(self, method: str = "GET", path: str = "/patients/pt-4711", **headers: str) -> Answer:
        return call_asgi(self.app, method, path, **headers)


class _Django(Front):
    """Django; its settings and routes are the process's, so the views ask which front is being asked."""

    template = "/patients/<str:patient_id>"
    serving: Front

    def build(self, authorize: Any, trusted: Any) -> Any:
        if not settings.configured:
            settings.configure(
                ROOT_URLCONF=f"{__name__}_django",
                MIDDLEWARE=["django.middleware.common.CommonMiddleware"],
                ALLOWED_HOSTS=["*"],
                SECRET_KEY="for tests",
            )
            django.setup()
        _Django.serving = self
        return init_django(
            self.handler(), self.obs, authorize=authorize, trusted=self.told(trusted), conf=self.conf
        )

    def handler(self) -> Any:
        """Return Django's application."""
        raise NotImplementedError

    def told(self, trusted: Any) -> Any:
        """Return `trusted` for what this server calls it with."""
        raise NotImplementedError


class DjangoWsgi(_Django, _Wsgi):
    """Django under WSGI."""

    def handler(self) -> Any:
        return get_wsgi_application()

    def told(self, trusted: Any) -> Any:
        return None if trusted is None else lambda environ: trusted(environ.get("HTTP_X_INSIDE"))

    def request(self, method: str = "GET", path: str = "/patients/pt-4711", **headers: str) -> Answer:
        _Django.serving = self
        return super().request(method, path, **headers)


class DjangoAsgi(_Django):
    """Django under ASGI."""

    def handler(self) -> Any:
        return get_asgi_application()

    def told(self, trusted: Any) -> Any:
        return None if trusted is None else lambda scope: trusted(_text(scope, b"x-inside"))

    def request(self, method: str = "GET", path: str = "/patients/pt-4711", **headers: str) -> Answer:
        _Django.serving = self
        return call_asgi(self.app, method, path, **headers)


def _text(scope: Any, name: bytes) -> str | None:
    return next((value.decode() for found, value in scope["headers"] if found == name), None)


FRONTS: dict[str, type[Front]] = {
    "wsgi": PlainWsgi,
    "flask": FlaskFront,
    "fastapi": FastApiFront,
    "django": DjangoWsgi,
    "django-asgi": DjangoAsgi,
}
