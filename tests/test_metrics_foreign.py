"""Series that somebody else put into an adopted registry: redacted on our `/metrics` where PHI is declared."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.gc_collector import GCCollector
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.platform_collector import PlatformCollector

from healthobs import Observability, Settings
from healthobs.metrics import foreign

#: Not in a test, where it would be written in a function that is running.
NAME, SSN = "Ottoline Morrell", "078-05-1120"
OPENMETRICS = "application/openmetrics-text; version=1.0.0"


MAKE = """from prometheus_client import Counter
from healthobs import Observability, Settings
obs = Observability(Settings(frameworks=("hipaa",)), logs="off")
"""
WRITE = f"""{MAKE}
obs.metrics.counter("app_own_total", "x", ("ward",)).labels("north").inc()
Counter("app_foreign", "x", ["ward"], registry=obs.metrics.registry).labels("north").inc()
"""
SCRAPE = f"""{MAKE}
print(obs.metrics.exposition(None)[1].decode())
"""


@pytest.fixture
def registry() -> CollectorRegistry:
    """Return what the process has already."""
    return CollectorRegistry()


def shown(registry: CollectorRegistry, accept: str | None = None, **options: Any) -> str:
    """Return one scrape of an `Observability` that adopts `registry`, twice the same."""
    obs = Observability(Settings(**{"frameworks": ("hipaa",), **options}), registry=registry, logs="off")
    try:
        text = obs.metrics.exposition(accept)[1].decode()
        again = obs.metrics.exposition(accept)[1].decode()
    finally:
        obs.close()
    assert of_app(text) == of_app(again)
    return text


def of_app(text: str) -> list[str]:
    """Return the samples of the application's own series."""
    return [line for line in text.splitlines() if line.startswith("app_")]


class TestForeignSeries:
    """What `/metrics` shows of them."""

    def test_strict(self, registry: CollectorRegistry) -> None:
        """Values that are not allow-listed by their label go; the registry itself is as it was."""
        counter = Counter("app_reads", "x", ["patient", "ward", "http_request_method"], registry=registry)
        counter.labels(f"{NAME} {SSN}", NAME, "GET").inc()
        before = generate_latest(registry)
        text = shown(registry)
        assert of_app(text) == [
            'app_reads_total{http_request_method="GET",patient="[PHI:key]",ward="[PHI:strict]"} 1.0'
        ]
        assert generate_latest(registry) == before
        assert of_app(shown(registry, allowed_keys=("ward",))) == [
            f'app_reads_total{{http_request_method="GET",patient="[PHI:key]",ward="{NAME}"}} 1.0'
        ]

    @pytest.mark.parametrize(
        ("options", "ward"),
        [
            ({"redaction": "mask"}, "[PHI:ssn]"),
            ({"redaction": "watch"}, SSN),
            ({"frameworks": (), "redaction": "strict"}, "[PHI:strict]"),
            ({"frameworks": ()}, SSN),
        ],
    )
    def test_other_steps(self, registry: CollectorRegistry, options: dict[str, Any], ward: str) -> None:
        """As the ladder says where PHI is declared or `strict` is asked for; elsewhere they are nobody's business."""
        Gauge("app_beds", "x", ["ward"], registry=registry).labels(SSN).set(3)
        assert of_app(shown(registry, **options)) == [f'app_beds{{ward="{ward}"}} 3.0']

    def test_series_that_become_one(self, registry: CollectorRegistry) -> None:
        """They are added up, buckets by bound: no sample comes twice, which a scraper would refuse."""
        histogram = Histogram("app_seconds", "x", ["patient"], buckets=(1.0, 5.0), registry=registry)
        for number in range(3):
            histogram.labels(f"{NAME} {number}").observe(2 * number)
        text = shown(registry)
        assert of_app(text) == [
            'app_seconds_bucket{le="1.0",patient="[PHI:key]"} 1.0',
            'app_seconds_bucket{le="5.0",patient="[PHI:key]"} 3.0',
            'app_seconds_bucket{le="+Inf",patient="[PHI:key]"} 3.0',
            'app_seconds_count{patient="[PHI:key]"} 3.0',
            'app_seconds_sum{patient="[PHI:key]"} 6.0',
        ]
        assert list(text_string_to_metric_families(text))

    def test_exemplars(self, registry: CollectorRegistry) -> None:
        """Their labels are redacted too; a trace id stays."""
        counter = Counter("app_reads", "x", registry=registry)
        trace_id = "4bf92f3577b34da6a3ce929d0e0e4736"
        counter.inc(exemplar={"trace_id": trace_id, "ward": NAME})
        (line,) = of_app(shown(registry, OPENMETRICS))
        assert f'# {{trace_id="{trace_id}",ward="[PHI:strict]"}}' in line

    @pytest.mark.parametrize("name", ["trace_id", "span_id", "quantile"])
    def test_what_is_no_id_and_no_bound(self, registry: CollectorRegistry, name: str) -> None:
        """Under the names of ids and bounds only an id or a number passes unread."""
        family = CounterMetricFamily("app_kept", "x", labels=[name])
        for value in (NAME, "0.5", "4bf92f3577b34da6"):
            family.add_metric([value], 1)
        registry.register(type("Kept", (), {"collect": lambda _self: [family]})())
        shown_values = [line.partition('="')[2].partition('"')[0] for line in of_app(shown(registry))]
        assert shown_values == ["[PHI:strict]", "0.5", "4bf92f3577b34da6"]

    def test_info(self, registry: CollectorRegistry) -> None:
        """What is said by labels alone as well."""
        Info("app", "x", registry=registry).info({"service_version": "1.2", "owner": NAME})
        assert of_app(shown(registry)) == ['app_info{owner="[PHI:strict]",service_version="1.2"} 1.0']

    def test_what_python_says_of_itself(self, registry: CollectorRegistry) -> None:
        """The collectors of prometheus_client itself stay as they are, and a collector's own objects are not changed."""
        PlatformCollector(registry)
        GCCollector(registry)

        class Kept:
            family = CounterMetricFamily("app_kept", "x", labels=["ward"])

            def collect(self) -> Iterator[Any]:
                yield self.family

        Kept.family.add_metric([NAME], 1)
        registry.register(Kept())
        text = shown(registry)
        assert 'implementation="CPython"' in text
        assert 'python_gc_collections_total{generation="2"}' in text
        assert of_app(text) == ['app_kept_total{ward="[PHI:strict]"} 1.0']
        assert Kept.family.samples[0].labels == {"ward": NAME}

    def test_own_series_are_not_touched(self, registry: CollectorRegistry) -> None:
        """They were judged when they were born, while the code that names them was running."""
        obs = Observability(Settings(frameworks=("hipaa",)), registry=registry, logs="off")
        obs.metrics.counter("app_own_total", "x", ("ward",)).labels("north").inc()
        text = obs.metrics.exposition(None)[1].decode()
        obs.close()
        assert of_app(text) == ['app_own_total{ward="north"} 1.0']

    def test_own_series_of_another_process(self, tmp_path: Path) -> None:
        """Among several processes what another one made is known as ours, and what is foreign there is judged."""
        environ = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        for what in (WRITE, SCRAPE):
            done = subprocess.run(
                [sys.executable, "-c", what], env=environ, capture_output=True, text=True, check=True
            )
        assert sorted(of_app(done.stdout)) == [
            'app_foreign_total{ward="[PHI:strict]"} 1.0',
            'app_own_total{ward="north"} 1.0',
        ]

    def test_bounded(self, registry: CollectorRegistry, monkeypatch: pytest.MonkeyPatch) -> None:
        """A scrape looks at so many values at most; the rest is one series, and the next scrape says the same."""
        monkeypatch.setattr(foreign, "_MOST_VALUES", 2)
        gauge = Gauge("app_beds", "x", ["ward"], registry=registry)
        for number in range(5):
            gauge.labels(f"w{number}").set(1)
        assert of_app(shown(registry, redaction="mask")) == [
            'app_beds{ward="w0"} 1.0',
            'app_beds{ward="w1"} 1.0',
            'app_beds{ward="_other"} 3.0',
        ]

    def test_each_value_is_counted_once(self, registry: CollectorRegistry) -> None:
        """A scrape does not count the marks of the one before again."""
        Gauge("app_beds", "x", ["ward"], registry=registry).labels(NAME).set(1)
        obs = Observability(Settings(frameworks=("hipaa",)), registry=registry, logs="off")
        for _ in range(3):
            obs.metrics.exposition(None)
        text = obs.metrics.exposition(None)[1].decode()
        obs.close()
        assert 'healthobs_redactions_total{kind="strict",signal="metric"} 1.0' in text

    @given(st.lists(st.tuples(st.text(), st.sampled_from("abc"), st.integers(0, 99)), max_size=20))
    def test_sums_stay(self, rows: list[tuple[str, str, int]]) -> None:
        """However values are masked, nothing is lost: the total is the same, and no series comes twice."""
        registry = CollectorRegistry()
        counter = Counter("app_reads", "x", ["ward", "method"], registry=registry)
        for ward, method, amount in rows:
            counter.labels(ward, method).inc(amount)
        lines = of_app(shown(registry))
        assert sum(float(line.rpartition(" ")[2]) for line in lines) == sum(amount for *_, amount in rows)
        assert len({line.rpartition(" ")[0] for line in lines}) == len(lines)


class TestMemory:
    """What is remembered of values that were judged."""

    @pytest.mark.parametrize(("wards", "judged"), [(["a"], ["a"]), (["a", "b"], ["a", "b", "a", "b"])])
    def test_is_bounded(self, monkeypatch: pytest.MonkeyPatch, wards: list[str], judged: list[str]) -> None:
        """A value is judged once, until there are too many of them; then all are forgotten before a scrape."""
        monkeypatch.setattr(foreign, "_MOST_VALUES", 2)
        seen: list[str] = []

        def clean(_label: str, value: str) -> str:
            seen.append(value)
            return value

        family = CounterMetricFamily("visits", "x", labels=["ward"])
        for ward in wards:
            family.add_metric([ward], 1)
        series = foreign.ForeignSeries(clean)
        for _ in range(2):
            series.begin()
            assert series.redact(family) is family
        assert seen == judged
