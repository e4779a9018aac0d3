"""Which histogram samples carry a trace id, what an exemplar may say, and where it is kept when prometheus_client keeps none.

OpenMetrics 1.0.0, "Exemplars". In multiprocess mode the client library drops them (its values live in files
that hold numbers only), so the worker that answers a scrape shows its own.

Limits: a worker's exemplars are in its memory: a scrape that another worker answers shows that one's.
"""

from __future__ import annotations

import re
import time
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from prometheus_client import utils
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

from healthobs.metrics.exposition import as_text
from healthobs.redaction import Redactor

#: At most this often does a series get an exemplar, slower calls than the last one excepted.
_INTERVAL_NS = 1_000_000_000

# The client library leaves it untyped.
_bound = cast("Callable[[float], str]", getattr(utils, "floatToGoString"))  # noqa: B009

#: Characters of an exemplar's names and values (OpenMetrics 1.0.0, "Exemplars").
_MOST_CHARACTERS = 128
_IDS = frozenset({"trace_id", "span_id"})
_ID = re.compile(r"[0-9a-f]{16}|[0-9a-f]{32}")
_LABEL = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]*")

#: Exemplar by name of the sample and its labels.
Kept = dict[tuple[str, frozenset[tuple[str, str]]], Exemplar]


class Pace:
    """Says of each measurement of one series whether it should carry an exemplar.

    The slowest do, the others once a second: an exemplar costs three times the sample, and Prometheus keeps
    one per scrape.
    """

    __slots__ = ("_due_ns", "_seconds")

    def __init__(self) -> None:
        self._due_ns: int | None = None
        self._seconds = 0.0

    def due(self, now_ns: int, seconds: float) -> bool:
        """Answer for a measurement of `seconds`, taken at the monotonic time `now_ns`."""
        if self._due_ns is None or now_ns >= self._due_ns or seconds > self._seconds:
            self._due_ns = now_ns + _INTERVAL_NS
            self._seconds = seconds
            return True
        return False


def redacted(exemplar: Mapping[str, str], redactor: Redactor) -> dict[str, str]:
    """Return `exemplar` as it may leave: ids as they are, other values like those of a label; a name that may not leave goes with its value.

    What does not fit, because a mark is longer than what it stands for, is left out; the ids come first.
    """
    ids = {name: value for name, value in exemplar.items() if name in _IDS and _ID.fullmatch(as_text(value))}
    kept: dict[str, str] = {}
    left = _MOST_CHARACTERS
    for name, value in {**ids, **exemplar}.items():
        clean, shown = as_text(name), as_text(value)
        if name not in ids:
            if not _LABEL.fullmatch(clean) or "[PHI:" in (clean := redactor.key(clean, signal="metric")):
                continue
            shown = redactor.label(clean, shown)
        if len(clean) + len(shown) <= left:
            left -= len(clean) + len(shown)
            kept[clean] = shown
    return kept


class RedactingHistogram:
    """One series of a histogram, whose exemplars are redacted when they come.

    Args:
        child: The series.
        redactor: Decides.
    """

    def __init__(self, child: Any, redactor: Redactor) -> None:
        self._child = child
        self._redactor = redactor

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Record one measurement."""
        self._child.observe(amount, redacted(exemplar, self._redactor) if exemplar else None)


class RememberingHistogram:
    """One series of a histogram in multiprocess mode, whose exemplars this process redacts and remembers.

    Args:
        child: The series.
        name: Name of the histogram.
        labels: Its labels.
        bounds: Upper bounds of its buckets.
        kept: Where exemplars are kept.
        redactor: Decides what they may say.
    """

    __slots__ = ("_bounds", "_child", "_kept", "_keys", "_redactor")

    def __init__(
        self,
        child: Any,
        name: str,
        labels: dict[str, str],
        bounds: Sequence[float],
        kept: Kept,
        redactor: Redactor | None = None,
    ) -> None:
        self._child = child
        self._redactor = redactor
        self._bounds = bounds
        self._kept = kept
        self._keys = [
            (f"{name}_bucket", frozenset({**labels, "le": _bound(bound)}.items()))
            for bound in (*bounds, float("inf"))
        ]

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Record one measurement."""
        self._child.observe(amount)
        if exemplar:
            if self._redactor is not None:
                exemplar = redacted(exemplar, self._redactor)
            key = self._keys[bisect_left(self._bounds, amount)]
            self._kept[key] = Exemplar(exemplar, amount, time.time())


def attach(family: Metric, kept: Kept) -> None:
    """Put the exemplars that are kept on the samples of `family`."""
    family.samples = [
        sample
        if (found := kept.get((sample.name, frozenset(sample.labels.items())))) is None
        else sample._replace(exemplar=found)
        for sample in family.samples
    ]


def redact(family: Metric, redactor: Redactor) -> None:
    """Redact the exemplars on the samples of `family`."""
    family.samples = [
        sample
        if (exemplar := sample.exemplar) is None
        else sample._replace(exemplar=exemplar._replace(labels=redacted(exemplar.labels, redactor)))
        for sample in family.samples
    ]
