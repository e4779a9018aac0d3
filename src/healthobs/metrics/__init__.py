"""Metrics: instruments on prometheus_client that stay bounded, and the exposition of a registry.

Formats: Prometheus text exposition 0.0.4 and OpenMetrics 1.0, by content negotiation. HTTP metrics are
recorded once, under the stable OpenTelemetry names, and shown a second time under the service's prefix.

Limits: in multiprocess mode (`PROMETHEUS_MULTIPROC_DIR`) a scrape shows the exemplars of the worker that
answers it, and a second registry of one process that records raises, because its samples would mix with the
first one's.
"""

from healthobs.metrics.exposition import PrefixCollector
from healthobs.metrics.foreign import OVERFLOW
from healthobs.metrics.instruments import DEFAULT_BUCKETS, Child, Instrument, Metrics

__all__ = ["DEFAULT_BUCKETS", "OVERFLOW", "Child", "Instrument", "Metrics", "PrefixCollector"]
