"""A run that uses every part of the library that leaves telemetry; returns the names of what it left."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from flask import Flask, Response
from sqlalchemy import create_engine, text

from healthobs import Settings, audited, classified, job, observe
from healthobs.audit import annotate
from healthobs.client import Client
from healthobs.flask import init_app, remove_app
from healthobs.sql import observe_engine
from healthobs.testing import Capture

SETTINGS = Settings(
    service_name="telemetry",
    prefix="service",
    frameworks=("hipaa",),
    headers=True,
    audience="all",
    trace_response=True,
    tenants=("north",),
    tenant_header="X-Tenant",
    allowed_keys=("healthobs.db.shape",),  # which `strict` leaves out
)


class _Pool:
    """Answers every outgoing call."""

    status = 503
    headers: dict[str, str] = {}  # noqa: RUF012 - never changed
    data = b"{}"

    def request(self, *_arguments: object, **_options: object) -> _Pool:
        return self


def _app() -> Flask:
    app = Flask("telemetry")
    app.logger.disabled = True
    client = Client("http://peer:80", peer="peer", retries=1, backoff_seconds=0, pool=_Pool())  # type: ignore[arg-type]

    @app.get("/read")
    @classified(conf="R", purpose=("TREAT",))
    @audited("phi.read", resource_type="Patient")
    @observe("read", log="info")
    def read() -> str:
        annotate(subject="s", resource_id="r", purpose="TREAT", actor="a", details={"count": 1})
        client.request("GET", "/x/{id}", path_params={"id": 1})
        return "x"

    @app.get("/stream")
    def stream() -> Response:
        def chunks() -> Iterator[str]:
            yield "x"

        return Response(chunks())

    @app.get("/broken")
    @observe("broken", log="info")
    def broken() -> str:
        try:
            raise KeyError("a literal")
        except KeyError as exc:
            raise RuntimeError("a literal") from exc

    return app


def run() -> dict[str, list[str]]:
    """Return the names that the run left, by kind."""
    headers: set[str] = set()
    with Capture(SETTINGS, audit=True, validate=False) as capture:
        app = init_app(_app(), capture.obs)
        for path in ("/read", "/stream", "/broken", "/health"):
            with app.test_client().get(path, headers={"X-Tenant": "north"}) as response:
                headers |= {name for name, _ in response.headers}
        engine = create_engine("sqlite://")
        remove = observe_engine(engine)
        with job("nightly"), engine.connect() as connection:
            connection.execute(text("select 1"))
            capture.obs.tracing.tracer.start_span("x", attributes={"patient.name": "Jane"}).end()
        remove()
        engine.dispose()
        capture.obs.health.readiness()
        remove_app(app)
    attributes = {key for span in capture.spans for key in _keys(span)}
    fields = {key for line in capture.log_lines for key in line}
    entries = {key for entry in capture.audit_entries for key in entry}
    return {
        "span_attributes": sorted(attributes - {"patient.name"}),
        "log_fields": sorted(fields),
        "headers": sorted(headers - {"Content-Type", "Content-Length"}),
        "audit_fields": sorted(entries),
    }


def _keys(span: Any) -> Iterator[str]:
    yield from span.attributes or {}
    yield from (key for key in span.resource.attributes if not re.match(r"telemetry\.|process\.|host\.", key))
    for event in span.events:
        yield from event.attributes or {}
