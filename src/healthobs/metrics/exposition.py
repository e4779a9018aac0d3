"""Writes metric families as text, and derives a second family from samples that are recorded once.

Formats: Prometheus text 0.0.4 and OpenMetrics 1.0.0 (exemplars only in the latter).
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, cast

from prometheus_client import exposition as prometheus_text
from prometheus_client.metrics_core import Metric
from prometheus_client.openmetrics import exposition as openmetrics_text
from prometheus_client.samples import Sample


def as_text(value: object) -> str:
    """Return a label's value as a text that an exposition can hold: without half of a surrogate pair.

    Example:
        >>> as_text(404), as_text("a" + chr(0xD800))
        ('404', 'a?')
    """
    text = value if isinstance(value, str) else str(value)
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class PrefixCollector:
    """One derived family: the samples of `source`, summed over the labels that are not in `labels`.

    Args:
        source: Family that is recorded.
        name: Name of the derived family.
        documentation: Its help text.
        labels: Derived label name by recorded label name.
    """

    source: str
    name: str
    documentation: str
    labels: Mapping[str, str]

    def views(self, families: Mapping[str, Metric]) -> Iterator[Metric]:
        """Yield the derived family, when the recorded one has samples."""
        recorded = families.get(self.source)
        if recorded is None:
            return
        totals: defaultdict[tuple[str, tuple[tuple[str, str], ...]], float] = defaultdict(float)
        exemplars: dict[tuple[str, tuple[tuple[str, str], ...]], Any] = {}
        for sample in recorded.samples:
            suffix = sample.name[len(self.source) :]
            pairs = tuple(
                [(new, sample.labels.get(old, "")) for old, new in self.labels.items()]
                + [(label, value) for label, value in sample.labels.items() if label == "le"]
            )
            totals[suffix, pairs] += sample.value
            if sample.exemplar is not None:
                exemplars[suffix, pairs] = sample.exemplar
        derived = Metric(self.name, self.documentation, recorded.type)
        derived.samples = [
            Sample(self.name + suffix, dict(pairs), value, None, exemplars.get((suffix, pairs)))
            for (suffix, pairs), value in totals.items()
        ]
        yield derived


class _Families:
    """What prometheus_client's writers ask of a registry: `collect`."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = list(families)

    def collect(self) -> list[Metric]:
        """Return the families."""
        return self._families


# The client library leaves its writers untyped.
_text = cast("Callable[[_Families], bytes]", getattr(prometheus_text, "generate_latest"))  # noqa: B009
_openmetrics = cast("Callable[[_Families], bytes]", getattr(openmetrics_text, "generate_latest"))  # noqa: B009


def render(families: Iterable[Metric], accept: str | None) -> tuple[str, bytes]:
    """Return content type and body.

    Args:
        families: What to write.
        accept: `Accept` of the request; None means the text format.
    """
    held = _Families(families)
    if accept and "application/openmetrics-text" in accept:
        return openmetrics_text.CONTENT_TYPE_LATEST, _openmetrics(held)
    return "text/plain; version=0.0.4; charset=utf-8", _text(held)
