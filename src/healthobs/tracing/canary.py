"""At start a canary span with all eighteen HIPAA identifiers goes through the exporter's redaction and must not pass.

Limits: it tells that redaction works as it is built and set, not that every exporter is wrapped (control G-wrap).
"""

from __future__ import annotations

from opentelemetry.sdk.trace import Event, ReadableSpan
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext, Status, StatusCode

from healthobs.exceptions import RedactionError
from healthobs.redaction import Redactor
from healthobs.redaction.canary import IDENTIFIERS, holes, telling
from healthobs.tracing.exporters import RedactingSpanExporter


def release_canary(redactor: Redactor) -> None:
    """Export a span that holds a sample of each identifier, in every place of it, to memory.

    Keys that the settings allow are left out: a hole that was asked for is the control H-514's business. In
    ``watch`` everything passes by definition, so nothing is tried.

    Raises:
        RedactionError: A sample, or the whole span, came out; the message names the kinds.
    """
    if redactor.mode == "watch":
        return
    sink, tried = InMemorySpanExporter(), redactor.uncounted()
    keyed = [each for each in IDENTIFIERS if not tried.allows(each.key)]
    found = " and ".join(each.sample for each in IDENTIFIERS if each.in_text)
    for each in keyed:  # in `strict` a key that nobody wrote would take its value along, untried
        tried.written(each.key)
    by_key = {each.key: each.sample for each in keyed}
    span = ReadableSpan(
        f"canary {found}",
        SpanContext(1, 1, is_remote=False),
        attributes={**by_key, "canary": found},
        events=[Event(f"event {found}", {**by_key, "canary": found})],
        status=Status(StatusCode.ERROR, f"failed for {found}"),
    )
    RedactingSpanExporter(sink, tried).export([span])
    shown = "".join(exported.to_json() for exported in sink.get_finished_spans())
    passed = [
        f"({each.letter}) {each.title}"
        for each in IDENTIFIERS
        if telling(each.sample) in shown and (each.in_text or each in keyed)
    ]
    passed += [f"any under the key {key}" for key in holes(redactor)]
    if passed or not shown:
        raise RedactionError(
            f"redaction let a canary pass at start: {', '.join(passed) or 'no span came out at all'}; "
            "nothing is recorded with such a redactor"
        )
