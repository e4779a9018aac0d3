"""A real PostgreSQL tells the row in its errors (`DETAIL: Key (ssn)=(…)`); no signal repeats it."""

from __future__ import annotations

import logging
from typing import Any

import psycopg
import pytest
from opentelemetry.trace import Status, StatusCode
from tests.postgres import Postgres

from healthobs import Settings, observe
from healthobs.testing import Capture, assert_no_phi

pytestmark = pytest.mark.server

NEEDLES = {"ssn": "219-09-9999", "name": "Ottoline Quassler"}
STATEMENTS = {
    "a key that is there already": ("Key (ssn)=(219-09-9999)", "INSERT INTO people VALUES (%s, %s)"),
    "a row that a check refuses": ("Failing row contains", "UPDATE people SET name = %s || '!' || %s"),
    "text that is no number": ("invalid input syntax", "SELECT (%s || %s)::integer"),
}


@pytest.fixture(scope="module")
def url(postgres: Postgres) -> str:
    """Give a database with one patient in it."""
    url = postgres.url(postgres.database())
    postgres.execute(
        url,
        "CREATE TABLE people (ssn text PRIMARY KEY, name text CHECK (name NOT LIKE '%!%'))",
        "INSERT INTO people VALUES ('219-09-9999', 'Ottoline Quassler')",
    )
    return url


@pytest.mark.parametrize("what", STATEMENTS)
@pytest.mark.parametrize("mode", ["mask", "strict"])
def test_the_servers_text_reaches_no_signal(url: str, what: str, mode: Any) -> None:
    """The driver's exception has the values in its text; span, log line, metric and standard-library record do not."""
    told, statement = STATEMENTS[what]

    @observe("store", log="info")
    def store() -> None:
        with psycopg.connect(url) as connection:
            connection.execute(statement.encode(), tuple(NEEDLES.values()))

    with Capture(Settings(redaction=mode, capture_stdlib=True)) as capture:
        with pytest.raises(psycopg.Error, match=r".") as raised:
            store()
        logging.getLogger("app").error("the store refused", exc_info=raised.value)
        logging.getLogger("app").error("the store said %s", raised.value)
        with capture.obs.tracing.tracer.start_as_current_span("by hand") as span:
            span.record_exception(raised.value)
            span.set_status(Status(StatusCode.ERROR, f"{type(raised.value).__name__}: {raised.value}"))
    text = str(raised.value)
    assert told in text
    with pytest.raises(AssertionError):
        assert_no_phi(NEEDLES, text)  # or this test would show nothing
    assert_no_phi(NEEDLES, *capture.telemetry().values())
