"""`python -m bench.redaction`: what redaction costs against making a span, and what it finds in clinical sentences.

Costs are medians of interleaved rounds in one process, as ratios to creating and ending one span with the same 12
attributes, and gate under ``--times`` alone; calls are exact, recall and false alarms exact for the seed, and gate always.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from statistics import median
from typing import Any

from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from bench import calls, sentences
from bench.bars import Bar, at_least, at_most, verdict
from healthobs import Settings
from healthobs.redaction import Redactor
from healthobs.redaction.scan import scan
from healthobs.tracing import RedactingSpanExporter, build_tracing

MOST_EXPORT, MOST_SCAN = 0.45, 0.2
MOST_EXPORT_CALLS, MOST_SCAN_CALLS = 66, 20
LEAST_RECALL, MOST_FALSE_ALARMS = 0.95, 0.02
ROUNDS, TIMES = 31, 300
SEED, EACH, CLEAN = 20_261_125, 400, 4_000

#: What instrumentation and a service's own code set: nine conventional attributes, three of its own.
USUAL: dict[str, Any] = {
    "http.request.method": "GET", "http.route": "/patients/{id}", "http.response.status_code": 200,
    "server.address": "localhost", "server.port": 8080, "url.scheme": "http", "network.protocol.version": "1.1",
    "db.system.name": "postgresql", "db.operation.name": "SELECT", "cache.hit": True, "claim.lines": 12,
    "workflow.step": "eligibility check",
}  # fmt: skip
#: The worst that is clean: every key unknown, every value text with digits.
DIGITS: dict[str, Any] = {
    f"step.{name}": f"took {n}.5 ms for {n + 3} items" for n, name in enumerate("abcdefghijkl")
}
#: Three values that must go.
FOUND: dict[str, Any] = {
    **USUAL,
    "cache.hit": "call 212-555-0123",
    "claim.lines": "seen 2024-03-01",
    "patient.name": "x",
}
del FOUND["workflow.step"]


class _Nowhere(SpanExporter):
    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:  # noqa: ARG002 - the SDK's
        """Forget them."""
        return SpanExportResult.SUCCESS


def _actions() -> dict[str, Callable[[], object]]:
    tracer = build_tracing(Settings(), Redactor()).tracer
    actions: dict[str, Callable[[], object]] = {
        "create and end the span": lambda: tracer.start_span("op", attributes=USUAL).end()
    }
    cases = (
        ("usual", USUAL, "mask"),
        ("usual", USUAL, "strict"),
        ("all unknown, with digits", DIGITS, "mask"),
        ("3 masked", FOUND, "mask"),
    )
    for name, attributes, mode in cases:
        redactor = Redactor(mode)  # type: ignore[arg-type]
        for key in ("op", *attributes):  # as a span notes them where they are set
            redactor.written(key)
        span: Any = tracer.start_span("op", attributes=attributes)
        span.end()
        exporter = RedactingSpanExporter(_Nowhere(), redactor)
        actions[f"wrapped export: {name}, {mode}"] = partial(exporter.export, [span])
        actions[f"scan of the values: {name}, {mode}"] = partial(redactor.changed, attributes)
    return actions


def costs() -> dict[str, float]:
    """Return the cost of each action as a ratio to creating the span."""
    actions = _actions()
    rounds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.process_time()
            for _ in range(TIMES):
                action()
            rounds[name].append(time.process_time() - start)
    unit = median(rounds["create and end the span"])
    return {name: median(values) / unit for name, values in rounds.items()}


def recall(kind: str) -> float:
    """Return the share of sentences from which the identifier is gone."""
    made = [(scan(text)[0], telling) for text, telling in sentences.with_one(kind, EACH, SEED)]

    def gone(text: str, telling: str) -> bool:
        parts = [part for part in telling.split() if sum(char.isdigit() for char in part) > 2]
        return not any(part in text for part in parts or [telling])

    return sum(gone(text, telling) for text, telling in made) / len(made)


def main() -> int:
    """Measure, print, and hold the bars."""
    print(f"{'against creating a span with 12 attributes':<52}{'calls':>8}{'ratio':>8}")
    actions, ratios, bars = _actions(), costs(), list[Bar]()
    counted = {name: calls.count(action) for name, action in actions.items()}
    for name, ratio in ratios.items():
        print(f"{name:<52}{counted[name]:>8}{ratio:>8.2f}")
    for name, most, most_calls in (
        ("wrapped export: usual, mask", MOST_EXPORT, MOST_EXPORT_CALLS),
        ("scan of the values: usual, mask", MOST_SCAN, MOST_SCAN_CALLS),
    ):
        bars += [
            at_most(name, ratios[name], most, timed=True),
            at_most(f"{name}, calls", counted[name], most_calls),
        ]
    print(f"\n{'found in ' + str(EACH) + ' sentences each':<52}{'recall':>8}")
    for kind in (*sentences.IDENTIFIERS, *sentences.NOT_BY_PATTERN):
        share = recall(kind)
        print(f"{kind:<52}{share:>8.3f}")
        if kind in sentences.IDENTIFIERS:
            bars.append(at_least(f"recall of {kind}", share, LEAST_RECALL))
    alarms = [kinds for kinds in (scan(text)[1] for text in sentences.clean(CLEAN, SEED)) if kinds]
    print(f"{'false alarms in ' + str(CLEAN) + ' sentences without any':<52}{len(alarms) / CLEAN:>8.4f}")
    for kind in sorted({kind for kinds in alarms for kind in kinds}):
        print(f"{'  taken for ' + kind:<52}{sum(kind in kinds for kinds in alarms) / CLEAN:>8.4f}")
    bars.append(at_most("false alarms", len(alarms) / CLEAN, MOST_FALSE_ALARMS))
    return verdict(bars, sys.argv[1:])


if __name__ == "__main__":
    sys.exit(main())
