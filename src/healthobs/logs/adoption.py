"""A logging set-up that is there already: it keeps its format, and gains ids and redaction.

structlog gets processors (`healthobs.logs.chain`), the handlers of the standard library a filter
(`healthobs.logs.filtering`), OpenTelemetry's log records a processor (`healthobs.logs.otel`); `release` takes all out again.

Limits: those of the three.
"""

from __future__ import annotations

from healthobs.logs.chain import StructlogChain
from healthobs.logs.fields import Facts, FieldRedactor, Ids
from healthobs.logs.filtering import RecordFilter
from healthobs.logs.names import LoggerNames
from healthobs.logs.otel import OtelRecords
from healthobs.redaction import Redactor


class LogAdoption:
    """Redacts what an existing set-up writes, until `release`.

    Args:
        redactor: Decides.
        facts: Tells what may be said of an exception.
        ids: Tells where in a trace a line belongs.
        names: Decides on names of loggers.
    """

    def __init__(self, redactor: Redactor, facts: Facts, ids: Ids, names: LoggerNames) -> None:
        fields = FieldRedactor(redactor, facts, ids)
        self._chain = StructlogChain(redactor, fields, names)
        self._filter = RecordFilter(redactor, fields, names)
        self._records = OtelRecords(redactor, names)

    def release(self) -> None:
        """Take processors and filters out again."""
        self._chain.release()
        self._filter.release()
        self._records.release()
