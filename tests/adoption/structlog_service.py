"""An existing Flask service with a structlog set-up of its own, and `logging` beside it."""

from __future__ import annotations

import logging
import sys

import structlog
from flask import Flask

logging.basicConfig(
    stream=sys.stdout, level=logging.INFO, format="%(levelname)s %(name)s %(message)s", force=True
)
structlog.configure(
    processors=[
        structlog.contextvars.merge_contextvars,
        structlog.processors.add_log_level,
        structlog.processors.format_exc_info,
        structlog.processors.JSONRenderer(sort_keys=True),
    ],
    logger_factory=structlog.WriteLoggerFactory(),
    cache_logger_on_first_use=True,
)
log = structlog.get_logger("ward")
app = Flask("ward")


@app.get("/patients/<number>")
def patient(number: str) -> dict[str, str]:
    """Look a patient up."""
    log.info("patient_found", ward="in ward", patient_name="Jane Roe", bed=3)
    logging.getLogger("ward").info("call %s", "212-555-0123")
    try:
        raise LookupError(f"no bed for {number} Jane Roe")
    except LookupError:
        log.exception("no_bed")
    return {"status": "active"}
