"""An existing FastAPI service on logfire."""

from __future__ import annotations

import logfire
from fastapi import FastAPI
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
logfire.configure(
    send_to_logfire=False,
    console=False,
    inspect_arguments=False,
    additional_span_processors=[SimpleSpanProcessor(exporter)],
)
app = FastAPI()
logfire.instrument_fastapi(app)


@app.get("/patients/{number}")
async def patient(number: str) -> dict[str, str]:
    """Look a patient up."""
    with logfire.span("look up"):
        logfire.info("found", patient_name="Jane Roe", ward="in ward")
    return {"status": "active"}
