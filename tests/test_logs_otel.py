"""OpenTelemetry's own log records and samples where the service declares PHI."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from typing import Any

import pytest
from opentelemetry import _logs, metrics
from opentelemetry._logs import LogRecord
from opentelemetry.sdk._logs import LoggerProvider
from opentelemetry.sdk._logs.export import InMemoryLogRecordExporter, SimpleLogRecordProcessor
from opentelemetry.sdk.metrics import MeterProvider
from opentelemetry.sdk.metrics.export import InMemoryMetricReader

from healthobs import Observability, Settings
from healthobs.logs.sinks import raw_sinks

NAME, SSN = "Ottoline Quex", "078-05-1120"
#: Not in a test, where its keys would be written in a function that is running.
FAILED = {
    "exception.type": "LookupError",
    "exception.message": "[PHI:key]",
    "exception.stacktrace": "[PHI:key]",
}


@pytest.fixture
def exporter(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemoryLogRecordExporter]:
    """Give what the process's LoggerProvider exports to."""
    exporter, provider = InMemoryLogRecordExporter(), LoggerProvider(shutdown_on_exit=False)
    provider.add_log_record_processor(SimpleLogRecordProcessor(exporter))
    monkeypatch.setattr("opentelemetry._logs._internal._LOGGER_PROVIDER", provider)
    yield exporter
    provider.shutdown()


def shown(exporter: InMemoryLogRecordExporter) -> list[Any]:
    """Return event name, body and attributes of what was exported."""
    records = [one.log_record for one in exporter.get_finished_logs()]
    exporter.clear()
    return [(record.event_name, record.body, dict(record.attributes or {})) for record in records]


def emit() -> None:
    """Emit records of each kind."""
    logger = _logs.get_logger_provider().get_logger("x")
    logger.emit(LogRecord(body=f"seen {NAME} {SSN}", attributes={"ssn": SSN, "n": 3}, event_name=f"e {SSN}"))
    logger.emit(LogRecord(body={"patient": {"name": NAME}, "list": [SSN]}, attributes={"note": [SSN]}))


@pytest.mark.parametrize("mode", ["mask", "strict"])
def test_records_are_redacted(exporter: InMemoryLogRecordExporter, mode: Any) -> None:
    """Body, attributes and event name leave redacted, until healthobs is closed."""
    obs = Observability(Settings(frameworks=("hipaa",), redaction=mode), log_stream=io.StringIO())
    assert raw_sinks() == []
    emit()
    told = shown(exporter)
    assert len(told) == 2
    assert SSN not in str(told)
    assert (NAME in str(told)) is (mode == "mask"), "no pattern finds a name in free text"
    assert told[0][2]["n"] == 3
    obs.close()
    emit()
    assert SSN in str(shown(exporter)[0])


@pytest.mark.parametrize("mode", ["mask", "strict"])
def test_an_exception(exporter: InMemoryLogRecordExporter, mode: Any) -> None:
    """Its type stays, under the convention's names for the rest there are marks, and no exporter has the exception itself."""
    obs = Observability(Settings(frameworks=("hipaa",), redaction=mode), log_stream=io.StringIO())
    logger: Any = _logs.get_logger_provider().get_logger("x")
    try:
        raise LookupError(f"no chart of {NAME}")
    except LookupError as exc:
        try:
            logger.emit(body="failed", exception=exc)
        except TypeError:
            pytest.skip("this SDK's records take no exception")
        finally:
            obs.close()
    (told,) = exporter.get_finished_logs()
    assert dict(told.log_record.attributes or {}) == FAILED
    assert NAME not in str(vars(told.log_record))


@pytest.mark.parametrize("mode", ["mask", "strict"])
def test_severity_and_scope(exporter: InMemoryLogRecordExporter, mode: Any) -> None:
    """What is made of data is not kept; names of levels, modules and of the code's own loggers are."""
    obs = Observability(Settings(frameworks=("hipaa",), redaction=mode), log_stream=io.StringIO())
    get = _logs.get_logger_provider().get_logger
    get(f"x {SSN}", SSN, f"urn:{SSN}", {"ssn": SSN}).emit(LogRecord(severity_text=SSN))
    get(f"ward.{NAME}", NAME, attributes={NAME: 1}).emit(LogRecord(severity_text=NAME))
    for severity in ("FATAL4", "Warning", "urgent"):
        get("opentelemetry.sdk._logs", "1.2.3").emit(LogRecord(severity_text=severity))
    get("ledger").emit(LogRecord())
    obs.close()
    records = exporter.get_finished_logs()
    told = [
        (one.log_record.severity_text, scope.name, scope.version, dict(scope.attributes or {}))
        for one in records
        if (scope := one.instrumentation_scope) is not None
    ]
    assert SSN not in str(told)
    assert SSN not in str([one.instrumentation_scope for one in records])
    assert (NAME in str(told)) is (mode == "mask")
    module = ("opentelemetry.sdk._logs", "1.2.3", {})
    assert told[2:] == [
        ("FATAL4", *module),
        ("Warning", *module),
        ("urgent", *module),
        (None, "ledger", None, {}),
    ]


@pytest.mark.filterwarnings("ignore:.*LoggingHandler.*:DeprecationWarning")
def test_records_of_the_standard_library(exporter: InMemoryLogRecordExporter) -> None:
    """What a handler covered on its way is not judged again, and carries no mark of ours."""
    handler = pytest.importorskip("opentelemetry.sdk._logs").LoggingHandler()
    logger = logging.getLogger("clinic")
    logger.addHandler(handler)
    obs = Observability(Settings(frameworks=("hipaa",)), log_stream=io.StringIO())
    try:
        logger.warning("seen %s", SSN, extra={"count": 3})
        ((_, body, attributes),) = shown(exporter)
    finally:
        logger.removeHandler(handler)
        obs.close()
    assert body.startswith("seen [PHI:")
    assert not [key for key in attributes if "healthobs" in key]


def test_a_record_that_cannot_be_redacted(
    exporter: InMemoryLogRecordExporter, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nothing of it passes."""
    obs = Observability(Settings(frameworks=("hipaa",)), log_stream=io.StringIO())
    monkeypatch.setattr("healthobs.redaction.Redactor.mapping", None)
    emit()
    assert shown(exporter) == [(None, "[PHI:error]", {})] * 2
    obs.close()


def test_what_is_not_covered_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    """A LoggerProvider that came later, one that works at once, and meters fail the control that guards the exits."""
    obs = Observability(Settings(frameworks=("hipaa",), endpoints=True), log_stream=io.StringIO())
    assert obs.controls is not None
    assert obs.controls.run(["G-wrap"]) == {"G-wrap": "pass"}
    provider = LoggerProvider(shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry._logs._internal._LOGGER_PROVIDER", provider)
    assert raw_sinks() == [], "it exports nothing"
    provider.add_log_record_processor(SimpleLogRecordProcessor(InMemoryLogRecordExporter()))
    meters = MeterProvider([InMemoryMetricReader()], shutdown_on_exit=False)
    monkeypatch.setattr("opentelemetry.metrics._internal._METER_PROVIDER", meters)
    assert metrics.get_meter_provider() is meters
    assert raw_sinks() == ["OpenTelemetry's LoggerProvider", "OpenTelemetry's MeterProvider"]
    assert obs.controls.run(["G-wrap"]) == {"G-wrap": "fail"}
    obs.close()
    meters.shutdown()
    provider.shutdown()
