"""What one run of the demo left behind, gathered in one place for the assertions to read."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client.parser import text_string_to_metric_families

from reference_services.demo.collector import SpanRecord


@dataclass(frozen=True, slots=True)
class Step:
    """One request of the journey or of an experiment, and its answer."""

    name: str
    service: str
    method: str
    route: str
    expected: int
    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Return the decoded answer, or None when it is not JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass(slots=True)
class Needles:
    """The planted values that must be found nowhere in telemetry, by kind."""

    values: dict[str, str] = field(default_factory=dict)

    def hits(self, text: str) -> list[str]:
        """Return the kinds (never the values) that `text` contains."""
        return [kind for kind, value in self.values.items() if value and value in text]


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of one `/metrics` answer."""

    values: dict[tuple[str, tuple[tuple[str, str], ...]], float]

    @classmethod
    def parse(cls, text: str) -> Samples:
        """Read the Prometheus text format."""
        return cls(
            {
                (sample.name, tuple(sorted(sample.labels.items()))): sample.value
                for family in text_string_to_metric_families(text)
                for sample in family.samples
            }
        )

    def total(self, name: str, **labels: str) -> float:
        """Sum the samples called `name` whose labels include `labels`."""
        wanted = set(labels.items())
        return sum(
            value for (found, pairs), value in self.values.items() if found == name and wanted <= set(pairs)
        )

    def series(self, prefix: str = "") -> int:
        """Count the series whose name starts with `prefix`; those of one histogram with the same labels are one."""
        own = (name for name, _ in self.values if not name.endswith(("_bucket", "_sum")))
        return sum(name.startswith(prefix) for name in own)


@dataclass(slots=True)
class Evidence:
    """Everything that the assertions look at."""

    trace_id: str = ""
    steps: list[Step] = field(default_factory=list)
    #: Requests made to see how the services behave when something is wrong.
    experiments: dict[str, list[Step]] = field(default_factory=lambda: defaultdict(list))
    needles: Needles = field(default_factory=Needles)
    #: Values that may be on no disk: card numbers, secrets, and what phi-service must encrypt.
    disk_needles: Needles = field(default_factory=Needles)
    #: Values that may be in no audit trail, besides: the ids of patients.
    audit_needles: Needles = field(default_factory=Needles)
    spans: list[SpanRecord] = field(default_factory=list)
    #: Log lines when the journey and the bad input were over, and when everything was.
    logs: dict[str, list[str]] = field(default_factory=dict)
    logs_at_the_end: dict[str, list[str]] = field(default_factory=dict)
    metrics_text: dict[str, str] = field(default_factory=dict)
    metrics: dict[str, Samples] = field(default_factory=dict)
    audit: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    audit_verify: dict[str, tuple[int, str]] = field(default_factory=dict)
    disk: dict[str, bytes] = field(default_factory=dict)
    series_before: dict[str, int] = field(default_factory=dict)
    series_after: dict[str, int] = field(default_factory=dict)
    controls: dict[str, dict[str, str]] = field(default_factory=dict)
    sabotaged_at: str = ""
    controls_after_sabotage: dict[str, dict[str, str]] = field(default_factory=dict)
    #: State of a service's H-312.c when its witnesses have been asked, and what it rests on.
    witnessed: dict[str, tuple[str, str]] = field(default_factory=dict)

    def step(self, name: str) -> Step | None:
        """Return the step called `name`, or None when the journey did not get there."""
        return next((step for step in self.steps if step.name == name), None)

    def every_step(self) -> Iterable[Step]:
        """Yield the journey's steps and the experiments' requests."""
        yield from self.steps
        for steps in self.experiments.values():
            yield from steps

    def in_trace(self, service: str | None = None) -> list[SpanRecord]:
        """Return the spans of the journey's trace, of one service or of all."""
        return [
            span
            for span in self.spans
            if span.trace_id == self.trace_id and (service is None or span.service == service)
        ]

    def log_objects(self, service: str) -> list[dict[str, Any]]:
        """Return the log lines of a service that are JSON objects."""
        objects: list[dict[str, Any]] = []
        for line in self.logs.get(service, ()):
            try:
                decoded = json.loads(line)
            except ValueError:
                continue
            if isinstance(decoded, dict):
                objects.append(decoded)
        return objects
