"""Series that somebody else put into the registry: their label values are redacted when they are collected.

Series that become one by it are added up, because a scraper refuses a sample that comes twice.

Limits: what the code says is not known at a scrape, so in ``strict`` only allow-listed labels keep their values. Who reads the
registry past healthobs (another endpoint, a push gateway) gets it raw. Sums of gauges are sums.
"""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Mapping
from typing import Any

from prometheus_client.metrics_core import Metric
from prometheus_client.samples import Sample

OVERFLOW = "_other"
#: Values that one scrape looks at, at most.
_MOST_VALUES = 10_000
#: What prometheus_client says of Python itself.
_PLATFORM = frozenset(
    {"python_info", "python_gc_objects_collected", "python_gc_objects_uncollectable", "python_gc_collections"}
)
_STRUCTURE = frozenset({"le", "quantile", "trace_id", "span_id"})
#: A bound, or an id of a trace or span.
_PLAIN = re.compile(r"[+-]?(?:\d+(?:\.\d+)?(?:e[+-]?\d+)?|Inf)|[0-9a-f]{16}|[0-9a-f]{32}")


class ForeignSeries:
    """Redacts families, and remembers what it made of each label's value.

    Args:
        clean: Returns a label's value as it may leave.
    """

    def __init__(self, clean: Callable[[str, str], str]) -> None:
        self._clean = clean
        self._known: dict[tuple[str, str], str] = {}

    def begin(self) -> None:
        """Forget what is known when it is too much, before a scrape."""
        if len(self._known) >= _MOST_VALUES:
            self._known.clear()

    def redact(self, family: Metric) -> Metric:
        """Return `family` itself when every label may leave as it is, else a redacted copy."""
        if family.name in _PLATFORM:
            return family
        samples = [self._sample(sample) for sample in family.samples]
        if all(new is old for new, old in zip(samples, family.samples, strict=True)):
            return family
        redacted = copy.copy(family)
        redacted.samples = _added_up(samples)
        return redacted

    def _sample(self, sample: Sample) -> Sample:
        labels, exemplar = self._labels(sample.labels), sample.exemplar
        if exemplar is not None:
            exemplar = exemplar._replace(labels=self._labels(exemplar.labels))
        if labels == sample.labels and exemplar == sample.exemplar:
            return sample
        return sample._replace(labels=labels, exemplar=exemplar)

    def _labels(self, labels: Mapping[str, str]) -> dict[str, str]:
        return {
            name: value if name in _STRUCTURE and _PLAIN.fullmatch(value) else self._value(name, value)
            for name, value in labels.items()
        }

    def _value(self, name: str, value: str) -> str:
        known = self._known.get((name, value))
        if known is not None:
            return known
        if len(self._known) >= _MOST_VALUES:
            return OVERFLOW
        clean = self._known[name, value] = self._clean(name, value)
        return clean


def _added_up(samples: list[Sample]) -> list[Sample]:
    found: dict[tuple[Any, ...], Sample] = {}
    for sample in samples:
        key = (sample.name, *sorted(sample.labels.items()))
        first = found.get(key)
        found[key] = sample if first is None else first._replace(value=first.value + sample.value)
    return list(found.values())
