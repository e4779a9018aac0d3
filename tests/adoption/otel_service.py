"""An existing Flask service: OpenTelemetry's Flask and SQLAlchemy instrumentation, prometheus_flask_exporter, `logging`."""

from __future__ import annotations

import logging
import sys

from flask import Flask
from opentelemetry import trace
from opentelemetry.instrumentation.flask import FlaskInstrumentor
from opentelemetry.instrumentation.sqlalchemy import SQLAlchemyInstrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client import CollectorRegistry
from prometheus_flask_exporter import PrometheusMetrics
from sqlalchemy import create_engine, text
from sqlalchemy.pool import StaticPool

logging.basicConfig(
    stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s", force=True
)
log = logging.getLogger("ward")
exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(BatchSpanProcessor(exporter))
trace.set_tracer_provider(provider)

app = Flask("ward")
FlaskInstrumentor().instrument_app(app)
registry = CollectorRegistry()
PrometheusMetrics(app, registry=registry, group_by="url_rule")
engine = create_engine("sqlite://", poolclass=StaticPool, connect_args={"check_same_thread": False})
SQLAlchemyInstrumentor().instrument(engine=engine)


@app.get("/patients/<number>")
def patient(number: str) -> dict[str, str]:
    """Look a patient up."""
    with engine.connect() as connection:
        found = connection.execute(
            text("select 'active' where :number <> ''"), {"number": number}
        ).scalar_one()
    trace.get_current_span().set_attribute("patient.name", "Jane Roe")
    log.info("patient %s found, call %s", "in ward", "212-555-0123")
    return {"status": found}
