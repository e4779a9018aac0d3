"""Counters, gauges and histograms on prometheus_client whose number of series is bounded."""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol, cast

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.metrics_core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from healthobs.config import Settings
from healthobs.exceptions import LabelError, MetricNameError
from healthobs.metrics import exemplars, multiprocess
from healthobs.metrics.exposition import PrefixCollector, as_text, render
from healthobs.metrics.foreign import OVERFLOW, ForeignSeries
from healthobs.redaction import Redactor

#: Go's `DefBuckets`, in seconds; explicit, because the Python client's defaults have three bounds more.
DEFAULT_BUCKETS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)
TENANT = "tenant"
_NAME = re.compile(r"[a-zA-Z_:][a-zA-Z0-9_:]*\Z")
_LABEL = re.compile(r"(?!__)[a-zA-Z_][a-zA-Z0-9_]*\Z")
_RESERVED = frozenset({"le", "quantile"})
#: Series that code names do not count towards the cap; names made of data in a loop end here all the same.
_MOST_DECLARED = 10_000


class Child(Protocol):
    """One series: the part of prometheus_client's children that is used."""

    def inc(self, amount: float = 1) -> None:
        """Add."""

    def dec(self, amount: float = 1) -> None:
        """Subtract (gauges)."""

    def set(self, value: float) -> None:
        """Set (gauges)."""

    def observe(self, amount: float, exemplar: dict[str, str] | None = None) -> None:
        """Record one measurement (histograms); of `exemplar` only ids of traces and spans leave unjudged."""


class Instrument:
    """A counter, gauge or histogram whose number of series is capped.

    Args:
        metric: The prometheus_client metric.
        shape: What it was declared as.
        metrics: Where overflow is counted and label values are redacted.
    """

    def __init__(self, metric: Any, shape: tuple[Any, ...], metrics: Metrics) -> None:
        self.name: str = shape[1]
        #: Name under which it is collected.
        self.family: str = self.name.removesuffix("_total") if shape[0] is Counter else self.name
        self._metric = metric
        self.shape: tuple[Any, ...] = shape
        self._labelnames: tuple[str, ...] = shape[2]
        self._metrics = metrics
        self._children: dict[tuple[str, ...], Child] = {}
        self._beyond: Child | None = None
        self._declared = 0
        self._cap = metrics.max_series * (len(metrics.tenants) + 2 if TENANT in self._labelnames else 1)
        self._lock = threading.Lock()
        if not self._labelnames:
            self._children[()] = self._series(metric, ())

    def labels(self, *values: str) -> Child:
        """Return the series of these label values; beyond the cap, the shared overflow series.

        Args:
            *values: One value per declared label, in order.

        Raises:
            LabelError: The number of values is not the number of labels.
        """
        child = self._children.get(values)
        return child if child is not None else self._new(values, declared=False)

    def declare(self, *values: str) -> Child:
        """Return a series that code names, not data: it starts at 0 and does not count towards the cap.

        Args:
            *values: One value per declared label, in order.

        Raises:
            LabelError: The number of values is not the number of labels.
        """
        return self._children.get(values) or self._new(values, declared=True)

    def seed(self, *rows: tuple[str, ...]) -> None:
        """Declare series in advance: one born above 0 is invisible to `rate()`; their values are nobody's."""
        for row in rows:
            self.declare(*row)

    def inc(self, amount: float = 1) -> None:
        """Add `amount` (counters without labels: at least 0)."""
        self._children[()].inc(amount)

    def dec(self, amount: float = 1) -> None:
        """Subtract `amount` (gauges without labels)."""
        self._children[()].dec(amount)

    def set(self, value: float) -> None:
        """Set the value (gauges without labels)."""
        self._children[()].set(value)

    def observe(self, value: float, exemplar: dict[str, str] | None = None) -> None:
        """Record one measurement (histograms without labels); `exemplar` as in `Child.observe`."""
        self._children[()].observe(value, exemplar)

    def unregister(self, registry: CollectorRegistry) -> None:
        """Take the metric off `registry`; recording goes on, unseen."""
        with contextlib.suppress(KeyError):  # off already
            registry.unregister(self._metric)

    def _new(self, values: tuple[str, ...], *, declared: bool) -> Child:
        if len(values) != len(self._labelnames):
            raise LabelError(f"{self.name} takes {len(self._labelnames)} label values, not {len(values)}")
        with self._lock:
            known = self._children.get(values)
            if known is not None:
                return known
            exempt = declared and self._declared < _MOST_DECLARED
            if not exempt and len(self._children) - self._declared >= self._cap:
                return self._overflow()
            named = zip(self._labelnames, values, strict=True)
            clean = tuple(self._metrics.clean(label, value, declared=declared) for label, value in named)
            child = self._children[values] = self._series(self._metric.labels(*clean), clean)
            self._declared += exempt
            return child

    def _series(self, child: Any, values: tuple[str, ...]) -> Child:
        kind, name, labels, options = self.shape
        redactor = self._metrics.redactor
        if kind is Histogram and self._metrics.multiprocess:
            named, bounds = dict(zip(labels, values, strict=True)), dict(options)["buckets"]
            child = exemplars.RememberingHistogram(child, name, named, bounds, self._metrics.kept, redactor)
        elif kind is Histogram and redactor is not None:
            child = exemplars.RedactingHistogram(child, redactor)
        return cast("Child", child)

    def _overflow(self) -> Child:
        if self is not self._metrics.overflow:  # which must not count itself
            self._metrics.overflow.labels(self.name).inc()
        if self._beyond is None:
            values = (OVERFLOW,) * len(self._labelnames)
            self._beyond = self._series(self._metric.labels(*values), values)
        return self._beyond


class Metrics:
    """The instruments of one `Observability`.

    Args:
        settings: Prefix, series cap and build information.
        registry: Where the metrics are registered; default a new one.
        redactor: Cleans label values.

    Raises:
        ConfigurationError: The multiprocess directory is not there, or may not be written to.
        MetricNameError: `registry` has a metric of one of our names; nothing of ours is left in it.

    Example:
        >>> metrics = Metrics(Settings())
        >>> metrics.counter("claims_total", "Claims received", ("kind",)).labels("dental").inc()
        >>> b'claims_total{kind="dental"} 1.0' in metrics.exposition(None)[1]
        True
    """

    def __init__(
        self,
        settings: Settings,
        *,
        registry: CollectorRegistry | None = None,
        redactor: Redactor | None = None,
    ) -> None:
        self.registry: CollectorRegistry = (
            CollectorRegistry(auto_describe=True) if registry is None else registry
        )
        self._given = registry is not None
        self.multiprocess: bool = multiprocess.check()
        self.max_series: int = settings.max_series
        self.tenants: tuple[str, ...] = settings.tenants
        self.kept: exemplars.Kept = {}
        self.redactor: Redactor | None = redactor
        judged = redactor is not None and (redactor.strict or "hipaa" in settings.frameworks)
        self._foreign = ForeignSeries(partial(self.clean, declared=False)) if judged else None
        self._instruments: dict[str, Instrument] = {}
        self._lock = threading.RLock()
        with contextlib.ExitStack() as undo:
            undo.callback(self.release)
            self.overflow: Instrument = self.counter(
                "healthobs_label_overflow_total", "Label sets beyond the cap", ("metric",)
            )
            self.redactions: Instrument = self.counter(
                "healthobs_redactions_total", "Values masked before they left", ("signal", "kind")
            )
            #: Kinds that this process has masked so far.
            self.redacted_kinds: set[str] = set()
            self._errors = self.counter(
                "healthobs_internal_errors_total", "Faults of telemetry itself", ("component",)
            )
            build = self.gauge(
                "healthobs_build_info", "What runs", ("service", "version"), multiprocess_mode="mostrecent"
            )
            build.declare(settings.service_name, settings.service_version).set(1)
            undo.pop_all()
        self._views: tuple[PrefixCollector, ...] = ()
        self._before_first_scrape: list[Callable[[], object]] = []

    def counter(
        self, name: str, documentation: str, labelnames: Sequence[str] = (), *, by_tenant: bool = False
    ) -> Instrument:
        """Return the counter called `name` (ends in ``_total``).

        `by_tenant` adds the label ``tenant``, last, where the settings declare tenants; so it does to a histogram.

        Raises:
            MetricNameError: The name is invalid, or taken by another shape.
            LabelError: A label name is invalid.
        """
        return self._instrument(Counter, name, documentation, self._labelled(labelnames, by_tenant), {})

    def gauge(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        multiprocess_mode: str = "livesum",
    ) -> Instrument:
        """Return the gauge called `name`; `multiprocess_mode` says how workers' values combine."""
        return self._instrument(
            Gauge, name, documentation, labelnames, {"multiprocess_mode": multiprocess_mode}
        )

    def histogram(
        self,
        name: str,
        documentation: str,
        labelnames: Sequence[str] = (),
        *,
        buckets: Sequence[float] = DEFAULT_BUCKETS,
        by_tenant: bool = False,
    ) -> Instrument:
        """Return the histogram called `name`; `buckets` are upper bounds in the unit that the name ends in."""
        labels = self._labelled(labelnames, by_tenant)
        return self._instrument(Histogram, name, documentation, labels, {"buckets": tuple(buckets)})

    def count_internal_error(self, component: str) -> None:
        """Count a fault of telemetry; never raises."""
        with contextlib.suppress(Exception):  # counting a fault must not be one
            self._errors.declare(component).inc()

    def count_redaction(self, signal: str, kind: str) -> None:
        """Count one masked value."""
        self.redacted_kinds.add(kind)
        self.redactions.declare(signal, kind).inc()

    def clean(self, label: str, value: str, *, declared: bool) -> str:
        """Return a label's value as it may leave (`Redactor.label`)."""
        text = as_text(value)
        return text if self.redactor is None else self.redactor.label(label, text, declared=declared)

    def show_also_as(self, view: PrefixCollector) -> None:
        """Expose one more view of samples that are recorded already; nothing when one of its name is there."""
        if view.name not in {known.name for known in self._views}:
            self._views = (*self._views, view)

    def before_first_scrape(self, declare: Callable[[], object]) -> None:
        """Have `declare` create series at the first scrape of this process: what it names is all there by then."""
        self._before_first_scrape.append(declare)

    def release(self) -> None:
        """Take every metric off a registry that was given; it exposes what it did before."""
        if self._given:
            for instrument in list(self._instruments.values()):
                instrument.unregister(self.registry)

    def exposition(self, accept: str | None) -> tuple[str, bytes]:
        """Return content type and body for a scrape.

        Args:
            accept: The `Accept` header; OpenMetrics is sent only when it is asked for.
        """
        return render(self.collect(), accept)

    def collect(self) -> Iterator[Metric]:
        """Yield every metric family, the prefixed views included."""
        if self._before_first_scrape:
            with self._lock:  # a scrape beside the first waits for what it declares
                for declare in list(self._before_first_scrape):
                    try:
                        declare()
                    except Exception:  # noqa: BLE001 - a fault of telemetry costs no scrape
                        self.count_internal_error("metrics")
                    self._before_first_scrape.remove(declare)
        path = multiprocess.directory() if self.multiprocess else None
        if path is None:
            families = list(_without_created(self.registry.collect()))
        else:
            with multiprocess.reading(path):
                files = multiprocess.readable(path)
                families = list(_without_created(_merged(files)))
            families.append(
                GaugeMetricFamily("healthobs_metric_files", "Files that a scrape adds up", len(files))
            )
        if self._foreign is not None:
            families = self._redacted(families, self._foreign, path)
        recorded = {name.removesuffix("_bucket") for name, _ in list(self.kept)}  # requests add to it
        counters = {one.family for one in list(self._instruments.values()) if one.shape[0] is Counter}
        for family in families:
            if family.name in recorded:
                exemplars.attach(family, self.kept)
            if self.redactor is not None and family.name in counters:
                exemplars.redact(family, self.redactor)
        yield from families
        by_name: Mapping[str, Metric] = {family.name: family for family in families}
        for view in self._views:
            yield from view.views(by_name)

    def _redacted(
        self, families: Iterable[Metric], foreign: ForeignSeries, path: Path | None
    ) -> list[Metric]:
        own = {one.family for one in list(self._instruments.values())}
        if path is not None:
            own |= multiprocess.own_families(path)
        foreign.begin()
        return [family if family.name in own else foreign.redact(family) for family in families]

    def _labelled(self, labelnames: Sequence[str], by_tenant: bool) -> Sequence[str]:
        return (*labelnames, TENANT) if by_tenant and self.tenants else labelnames

    def _instrument(
        self, kind: Any, name: str, documentation: str, labelnames: Sequence[str], options: dict[str, Any]
    ) -> Instrument:
        labels = tuple(labelnames)
        if not _NAME.match(name):
            raise MetricNameError(f"metric name must match {_NAME.pattern[:-2]}: see prometheus.io naming")
        wrong = [label for label in labels if not _LABEL.match(label) or label in _RESERVED]
        if wrong or len(set(labels)) != len(labels):
            raise LabelError(f"{name} has label names that are invalid, reserved or repeated")
        shape = (kind, name, labels, tuple(sorted(options.items())))
        with self._lock:
            known = self._instruments.get(name)
            if known is None:
                metric = kind(name, documentation, labels, registry=None, **options)
                self._register(metric, name)
                if self.redactor is not None:
                    self.redactor.written(name)  # the label of its overflow
                known = self._instruments[name] = Instrument(metric, shape, self)
                path = multiprocess.directory() if self.multiprocess and self._foreign is not None else None
                if path is not None:
                    multiprocess.note_own(path, known.family)
            elif known.shape != shape:
                raise MetricNameError(f"{name} is taken by an instrument of another kind, labels or buckets")
            return known

    def _register(self, metric: Collector, name: str) -> None:
        try:
            self.registry.register(metric)
        except ValueError:
            remedy = "rename one of the two"
            if self._given:
                remedy = f"close the Observability that records there, give another registry, or {remedy}"
            raise MetricNameError(f"{name} is taken by another metric of the registry: {remedy}") from None


def _merged(files: Sequence[str]) -> Iterable[Metric]:
    from prometheus_client.multiprocess import MultiProcessCollector

    merge = cast("Callable[[Sequence[str]], Iterable[Metric]]", getattr(MultiProcessCollector, "merge"))  # noqa: B009
    return merge(files)


def _without_created(families: Iterable[Metric]) -> Iterator[Metric]:
    for family in families:
        family.samples = [sample for sample in family.samples if sample.name != f"{family.name}_created"]
        yield family
