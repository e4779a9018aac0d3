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

from healthobs.redaction import Redactor

#: At most this often does a series get an exemplar, slower calls than the last one excepted.
_INTERVAL_NS = 1_000_000_000

# The client library leaves it untyped.
_bound = cast("Callable[[float], str]", getattr(utils, "floatToGoString"))  # noqa: B009

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
    """Return `exemplar` as it may leave: ids as they are, other values like those of a label; a name that may not leave goes with its value."""
    kept: dict[str, str] = {}
    for name, value in exemplar.items():
        if name in _IDS and type(value) is str and _ID.fullmatch(value):
            kept[name] = value
        elif _LABEL.fullmatch(name) and "[PHI:" not in (clean := redactor.key(name, signal="metric")):
            kept[clean] = redactor.label(clean, str.__str__(value))
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
