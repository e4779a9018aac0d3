"""Which histogram samples carry a trace id, and where it is kept when prometheus_client keeps none.

OpenMetrics 1.0.0, "Exemplars". In multiprocess mode the client library drops them (its values live in files
that hold numbers only), so the worker that answers a scrape shows its own.

Limits: a worker's exemplars are in its memory: a scrape that another worker answers shows that one's.
"""

from __future__ import annotations

import time
from bisect import bisect_left
from collections.abc import Callable, Sequence
from typing import Any, cast

from prometheus_client import utils
from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Exemplar

#: At most this often does a series get an exemplar, slower calls than the last one excepted.
_INTERVAL_NS = 1_000_000_000

# The client library leaves it untyped.
_bound = cast("Callable[[float], str]", getattr(utils, "floatToGoString"))  # noqa: B009

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


class RememberingHistogram:
    """One series of a histogram in multiprocess mode, whose exemplars this process remembers.

    Args:
        child: The series.
        name: Name of the histogram.
        labels: Its labels.
        bounds: Upper bounds of its buckets.
        kept: Where exemplars are kept.
    """

    __slots__ = ("_bounds", "_child", "_kept", "_keys")

    def __init__(
        self, child: Any, name: str, labels: dict[str, str], bounds: Sequence[float], kept: Kept
    ) -> None:
        self._child = child
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
