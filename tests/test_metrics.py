"""Instruments, their bounds, and the exposition."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest, values
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse_text
from prometheus_client.samples import Exemplar

from healthobs.config import Settings
from healthobs.exceptions import LabelError, MetricNameError
from healthobs.metrics import DEFAULT_BUCKETS, Metrics, instruments, multiprocess
from healthobs.metrics.exemplars import Kept, Pace, RememberingHistogram, attach
from healthobs.metrics.exposition import PrefixCollector
from healthobs.redaction import Redactor

#: Not in a test, where it would be written in a function that is running.
NAME = "Ottoline"


def samples(metrics: Metrics) -> dict[tuple[str, tuple[tuple[str, str], ...]], float]:
    """Return every sample of the text exposition."""
    _, body = metrics.exposition(None)
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse_text(body.decode())
        for sample in family.samples
    }


class TestInstrument:
    """Counters, gauges and histograms."""

    def test_each_kind_records(self) -> None:
        """What is recorded is what is exposed."""
        metrics = Metrics(Settings())
        metrics.counter("claims_total", "Claims", ("kind",)).labels("dental").inc(2)
        beds = metrics.gauge("beds", "Beds")
        beds.inc(5)
        beds.dec(2)
        metrics.gauge("temperature", "Degrees").set(21)
        metrics.histogram("wait_seconds", "Wait").observe(0.3)
        found = samples(metrics)
        assert found["claims_total", (("kind", "dental"),)] == 2
        assert (found["beds", ()], found["temperature", ()]) == (3, 21)
        assert found["wait_seconds_bucket", (("le", "0.25"),)] == 0
        assert found["wait_seconds_bucket", (("le", "0.5"),)] == 1

    def test_one_by_default(self) -> None:
        """Without an amount one is added, and taken away."""
        metrics = Metrics(Settings())
        beds = metrics.gauge("beds", "Beds")
        beds.inc()
        assert samples(metrics)["beds", ()] == 1
        beds.dec()
        assert samples(metrics)["beds", ()] == 0

    @pytest.mark.parametrize("redactor", [None, Redactor("mask")], ids=["raw", "mask"])
    def test_values_that_no_exposition_can_hold(self, redactor: Redactor | None) -> None:
        """Half of a surrogate pair, as in a file's name or in JSON, costs one sign and no scrape; a number is written out."""
        metrics = Metrics(Settings(), redactor=redactor)
        reads: Any = metrics.counter("reads_total", "", ("ward", "http_response_status_code"))
        reads.labels("a\ud800", 404).inc()
        found = samples(metrics)
        assert found["reads_total", (("http_response_status_code", "404"), ("ward", "a?"))] == 1

    def test_same_declaration_is_the_same_instrument(self) -> None:
        """Declaring again returns what is there, so that modules need not share it."""
        metrics = Metrics(Settings())
        assert metrics.counter("a_total", "A", ("x",)) is metrics.counter("a_total", "other words", ("x",))

    @pytest.mark.parametrize(
        "declare",
        [
            lambda metrics: metrics.gauge("a_total", "A", ("x",)),
            lambda metrics: metrics.counter("a_total", "A", ("y",)),
            lambda metrics: metrics.histogram("h_seconds", "H", buckets=(1,)),
        ],
    )
    def test_another_shape_is_refused(self, declare: object) -> None:
        """One name has one kind, one set of labels, one set of buckets."""
        metrics = Metrics(Settings())
        metrics.counter("a_total", "A", ("x",))
        metrics.histogram("h_seconds", "H")
        with pytest.raises(MetricNameError, match="taken"):
            declare(metrics)  # type: ignore[operator]

    @pytest.mark.parametrize("name", ["", "1st", "with-dash", "with space", "é_total"])
    def test_invalid_name(self, name: str) -> None:
        """A name that Prometheus refuses is refused at once."""
        with pytest.raises(MetricNameError):
            Metrics(Settings()).counter(name, "")

    @pytest.mark.parametrize("labels", [("le",), ("__name__",), ("a-b",), ("a", "a")])
    def test_invalid_labels(self, labels: tuple[str, ...]) -> None:
        """Reserved, malformed and repeated labels are refused at once."""
        with pytest.raises(LabelError):
            Metrics(Settings()).counter("a_total", "", labels)

    def test_wrong_number_of_values(self) -> None:
        """Each declared label gets one value; the message names the metric, not the values."""
        counter = Metrics(Settings()).counter("a_total", "", ("x", "y"))
        with pytest.raises(LabelError, match="a_total takes 2 label values, not 1"):
            counter.labels("only")

    @given(st.lists(st.text(max_size=5), max_size=40), st.integers(1, 8))
    def test_series_are_capped_and_nothing_is_lost(self, values: list[str], cap: int) -> None:
        """However many label values come, there are `cap` series and one overflow, and their sum is the count."""
        metrics = Metrics(Settings(max_series=cap))
        counter = metrics.counter("a_total", "", ("x",))
        for value in values:
            counter.labels(value).inc()
        series = {labels: value for (name, labels), value in samples(metrics).items() if name == "a_total"}
        assert len(series) <= cap + 1
        assert sum(series.values()) == len(values)
        beyond = max(
            0,
            len(values)
            - sum(1 for value in values if value in dict.fromkeys(list(dict.fromkeys(values))[:cap])),
        )
        assert series.get((("x", "_other"),), 0) == beyond

    def test_overflow_is_counted(self) -> None:
        """An operator sees which metric overflows."""
        metrics = Metrics(Settings(max_series=1))
        counter = metrics.counter("a_total", "", ("x",))
        for value in ("kept", "b", "c"):
            counter.labels(value).inc()
        assert samples(metrics)["healthobs_label_overflow_total", (("metric", "a_total"),)] == 2

    def test_each_tenant_adds_to_the_cap(self) -> None:
        """Where series are by tenant, the cap is so much for each, for none, and for those not declared."""
        metrics = Metrics(Settings(max_series=2, tenants=("north", "south")))
        counter = metrics.counter("a_total", "", ("x",), by_tenant=True)
        for value in range(20):
            counter.labels(str(value), "north").inc()
        found = [labels for (name, labels) in samples(metrics) if name == "a_total"]
        assert len(found) == 2 * (2 + 2) + 1

    def test_overflows_are_capped_too(self) -> None:
        """However many metrics overflow, their counter has its cap; a metric labelled like it is any other."""
        metrics = Metrics(Settings(max_series=1))
        for name in ("a_total", "b_total"):
            counter = metrics.counter(name, "", ("metric",))
            for value in ("kept", "beyond"):
                counter.labels(value).inc()
        found = {labels: n for (name, labels), n in samples(metrics).items() if "overflow_total" in name}
        assert found == {(("metric", "a_total"),): 1, (("metric", "_other"),): 1}

    def test_declared_series_do_not_eat_the_cap(self) -> None:
        """A hundred functions with three outcomes each leave the whole cap to labels that come from data."""
        metrics = Metrics(Settings(max_series=2))
        counter = metrics.counter("a_total", "", ("operation", "outcome"))
        for operation in range(100):
            for outcome in ("ok", "error", "cancelled"):
                counter.declare(str(operation), outcome).inc()
        for value in ("x", "y", "z"):
            counter.labels(value, "ok").inc()
        found = {labels for name, labels in samples(metrics) if name == "a_total"}
        assert len(found) == 300 + 2 + 1
        assert samples(metrics)["healthobs_label_overflow_total", (("metric", "a_total"),)] == 1

    def test_declaring_without_end_is_bounded_too(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name made of data, declared in a loop, ends in the overflow series like a label would."""
        monkeypatch.setattr(instruments, "_MOST_DECLARED", 5)
        metrics = Metrics(Settings(max_series=1))
        counter = metrics.counter("a_total", "", ("operation",))
        for operation in range(50):
            counter.declare(str(operation)).inc()
        found = {labels: value for (name, labels), value in samples(metrics).items() if name == "a_total"}
        assert len(found) == 5 + 1 + 1
        assert sum(found.values()) == 50

    def test_seeded_series_are_born_at_zero(self) -> None:
        """A series that exists before its first event is visible to `rate()`."""
        metrics = Metrics(Settings())
        metrics.counter("a_total", "", ("x",)).seed(("ok",), ("error",))
        found = samples(metrics)
        assert (found["a_total", (("x", "ok"),)], found["a_total", (("x", "error"),)]) == (0, 0)

    def test_label_values_are_redacted(self) -> None:
        """A label value that holds an identifier leaves masked."""
        metrics = Metrics(Settings(), redactor=Redactor())
        metrics.counter("a_total", "", ("x",)).labels("078-05-1120").inc()
        _, body = metrics.exposition(None)
        assert b"078-05-1120" not in body
        assert b"[PHI:ssn]" in body


class TestMetrics:
    """One registry and its exposition."""

    def test_buckets_are_those_of_go(self) -> None:
        """The default bounds equal Go's DefBuckets, so that quantiles of both compare."""
        assert DEFAULT_BUCKETS == (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0)

    def test_text_by_default(self) -> None:
        """Without `Accept` the text format is sent, without exemplars and `_created` series."""
        metrics = Metrics(Settings())
        metrics.histogram("h_seconds", "").observe(0.1, {"trace_id": "ab"})
        content_type, body = metrics.exposition(None)
        assert content_type == "text/plain; version=0.0.4; charset=utf-8"
        assert b"_created" not in body
        assert b"trace_id" not in body

    def test_openmetrics_by_negotiation(self) -> None:
        """OpenMetrics is sent when asked for, valid, with exemplars."""
        metrics = Metrics(Settings())
        metrics.histogram("h_seconds", "").observe(0.1, {"trace_id": "ab"})
        content_type, body = metrics.exposition("application/openmetrics-text;version=1.0.0,text/plain;q=0.5")
        assert content_type.startswith("application/openmetrics-text")
        exemplars = [
            sample.exemplar.labels
            for family in parse_openmetrics(body.decode())
            for sample in family.samples
            if sample.exemplar
        ]
        assert exemplars == [{"trace_id": "ab"}]

    def test_internal_errors_are_counted(self) -> None:
        """A fault of telemetry shows in telemetry."""
        metrics = Metrics(Settings())
        metrics.count_internal_error("logs")
        assert samples(metrics)["healthobs_internal_errors_total", (("component", "logs"),)] == 1

    def test_masked_values_are_counted(self) -> None:
        """By signal and kind, as the redactor tells; this process knows which kinds it has masked."""
        metrics = Metrics(Settings())
        metrics.count_redaction("logs", "ssn")
        metrics.count_redaction("logs", "ssn")
        assert samples(metrics)["healthobs_redactions_total", (("kind", "ssn"), ("signal", "logs"))] == 2
        assert metrics.redacted_kinds == {"ssn"}

    def test_by_tenant_only_where_asked(self) -> None:
        """Declared tenants are a label of the metrics that ask for it, and of no other."""
        metrics = Metrics(Settings(tenants=("north",)))
        metrics.counter("a_total", "").inc()
        metrics.histogram("a_seconds", "").observe(1.0)
        metrics.histogram("b_seconds", "", by_tenant=True).labels("north").observe(1.0)
        found = samples(metrics)
        assert found["a_total", ()] == found["a_seconds_count", ()] == 1
        assert found["b_seconds_count", (("tenant", "north"),)] == 1

    def test_a_gauge_may_be_called_created(self) -> None:
        """Only what the client library adds to a family goes; a family of that name stays."""
        metrics = Metrics(Settings())
        metrics.gauge("order_created", "When").set(7)
        metrics.counter("bills_total", "").inc()
        found = samples(metrics)
        assert found["order_created", ()] == 7
        assert [name for name, _ in found if name.endswith("_created")] == ["order_created"]

    def test_adopts_a_registry(self) -> None:
        """Metrics are registered where they are asked to be."""
        registry = CollectorRegistry()
        Metrics(Settings(service_name="s", service_version="1"), registry=registry)
        assert registry.get_sample_value("healthobs_build_info", {"service": "s", "version": "1"}) == 1

    def test_a_name_that_an_adopted_registry_has(self) -> None:
        """Is refused by name and with the remedy; what was registered until then is off again."""
        registry = CollectorRegistry(auto_describe=True)
        theirs = Counter("healthobs_redactions_total", "Theirs", registry=registry)
        before = generate_latest(registry)
        with pytest.raises(MetricNameError, match=r"healthobs_redactions_total is taken .*another registry"):
            Metrics(Settings(), registry=registry)
        assert generate_latest(registry) == before
        registry.unregister(theirs)
        metrics = Metrics(Settings(), registry=registry)
        with pytest.raises(MetricNameError, match=r"healthobs_label_overflow_total is taken .*close"):
            Metrics(Settings(), registry=registry)
        metrics.release()
        Metrics(Settings(), registry=registry)

    @pytest.mark.parametrize("name", ["a", "a_created"])
    def test_a_name_that_another_family_has(self, name: str) -> None:
        """A counter holds the name of its family and of its sample's age, too."""
        metrics = Metrics(Settings())
        metrics.counter("a_total", "")
        with pytest.raises(MetricNameError, match=f"{name} is taken"):
            metrics.gauge(name, "")


class TestPrefixCollector:
    """A second family from samples that are recorded once."""

    def test_sums_over_dropped_labels(self) -> None:
        """The derived family has the same counts and sums, by the labels that remain."""
        metrics = Metrics(Settings())
        recorded = metrics.histogram("http_seconds", "", ("method", "route"))
        for method, route, value in (("GET", "/a", 0.1), ("POST", "/a", 0.2), ("GET", "/b", 3.0)):
            recorded.labels(method, route).observe(value)
        metrics.show_also_as(PrefixCollector("http_seconds", "own_seconds", "", {"route": "endpoint"}))
        found = samples(metrics)
        assert found["own_seconds_count", (("endpoint", "/a"),)] == 2
        assert found["own_seconds_sum", (("endpoint", "/a"),)] == pytest.approx(0.3)
        assert found["own_seconds_bucket", (("endpoint", "/b"), ("le", "2.5"))] == 0
        assert found["own_seconds_bucket", (("endpoint", "/b"), ("le", "+Inf"))] == 1

    def test_nothing_recorded_nothing_shown(self) -> None:
        """A view of a family that does not exist is left out."""
        metrics = Metrics(Settings())
        metrics.show_also_as(PrefixCollector("no_such", "own", "", {}))
        assert not any(name == "own" for name, _ in samples(metrics))

    def test_shown_once(self) -> None:
        """However often a view is asked for: a scraper refuses a family that comes twice."""
        metrics = Metrics(Settings())
        metrics.counter("http_total", "").inc()
        for _ in range(2):
            metrics.show_also_as(PrefixCollector("http", "own", "", {}))
        assert metrics.exposition(None)[1].count(b"# TYPE own_total counter") == 1


class TestExemplars:
    """Which samples carry a trace id."""

    def test_the_slowest_and_one_a_second(self) -> None:
        """The first sample carries one, then those a second later, and at once what is slower."""
        pace, second = Pace(), 1_000_000_000
        asked = [
            (0, 0.2),
            (1, 0.1),
            (2, 0.3),
            (3, 0.3),
            (second + 1, 0.1),
            (second + 2, 0.1),
            (2 * second + 2, 0.1),
        ]
        assert [pace.due(*one) for one in asked] == [True, False, True, False, False, True, True]

    def test_remembered_on_its_own_bucket(self) -> None:
        """A measurement is recorded, and its exemplar shown on the bucket whose bound it does not exceed."""
        registry, kept = CollectorRegistry(), Kept()
        child = Histogram("h_seconds", "", ("x",), buckets=(1.0, 2.0), registry=registry).labels("a")
        series = RememberingHistogram(child, "h_seconds", {"x": "a"}, (1.0, 2.0), kept)
        series.observe(1.0, {"trace_id": "t"})
        series.observe(5.0)
        (family,) = registry.collect()
        attach(family, kept)
        shown = {(s.labels["le"], s.exemplar.labels["trace_id"]) for s in family.samples if s.exemplar}
        assert shown == {("1.0", "t")}
        assert registry.get_sample_value("h_seconds_count", {"x": "a"}) == 2


def exemplars_of(metrics: Metrics) -> list[dict[str, str]]:
    """Return the labels of each exemplar: as it is exposed, in multiprocess mode as it is kept."""
    if metrics.multiprocess:
        return [dict(exemplar.labels) for exemplar in metrics.kept.values()]
    text = metrics.exposition("application/openmetrics-text; version=1.0.0")[1].decode()
    return [s.exemplar.labels for family in parse_openmetrics(text) for s in family.samples if s.exemplar]


class TestRedactedExemplars:
    """What an exemplar of our own series may say."""

    @pytest.mark.parametrize("several", [False, True])
    def test_they_are_redacted(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
        """Ids stay, other values are judged as those of labels, and a name that may not leave goes with its value."""
        if several:
            monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path))
            monkeypatch.setattr(multiprocess, "readable", lambda _path: [])
        metrics = Metrics(Settings(max_series=1), redactor=Redactor("strict"))
        series = metrics.histogram("wait_seconds", "", ("ward",))
        ids = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736", "span_id": "00f067aa0ba902b7"}
        for ward, amount in (("a", 0.3), ("beyond the cap", 99.0)):
            series.labels(ward).observe(amount, {**ids, "patient": NAME, NAME: "1", "step": NAME})
            series.labels(ward).observe(0.04, {"trace_id": NAME})
        shown = exemplars_of(metrics)
        safe = [{"trace_id": "[PHI:strict]"}, {**ids, "patient": "[PHI:key]", "step": "[PHI:strict]"}]
        assert sorted(shown, key=len) == [safe[0], safe[0], safe[1], safe[1]]

    def test_at_the_weaker_steps(self) -> None:
        """`mask` looks for patterns; `watch` and no redactor at all leave everything."""
        for redactor, shown in (
            (Redactor("mask"), "[PHI:ssn]"),
            (Redactor("watch"), "078-05-1120"),
            (None, "078-05-1120"),
        ):
            metrics = Metrics(Settings(), redactor=redactor)
            metrics.histogram("wait_seconds", "").observe(0.3, {"step": "078-05-1120"})
            text = metrics.exposition("application/openmetrics-text; version=1.0.0")[1].decode()
            assert f'# {{step="{shown}"}}' in text

    @pytest.mark.parametrize("several", [False, True])
    def test_what_does_not_fit(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, several: bool) -> None:
        """OpenMetrics allows 128 characters, which marks can exceed: what is beyond them is left out, and nothing raised."""
        if several:
            monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path))
            monkeypatch.setattr(multiprocess, "readable", lambda _path: [])
        metrics = Metrics(Settings(), redactor=Redactor("mask"))
        series = metrics.histogram("wait_seconds", "")
        ids = {"trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"}
        whole: Any = {f"step{n}": "a@b" for n in range(9)} | ids
        series.observe(0.3, whole)
        no_texts: Any = {"step": 5, 5: "x", "ward": "\ud800"}
        series.observe(0.04, no_texts)
        shown = exemplars_of(metrics)
        marks = {f"step{n}": "[PHI:email]" for n in range(5)}
        assert sorted(shown, key=len) == [{"step": "5", "ward": "?"}, {**ids, **marks}]

    def test_of_a_counter(self) -> None:
        """prometheus_client's counters take exemplars, too: those are redacted when they are asked for."""
        metrics = Metrics(Settings(), redactor=Redactor("strict"))
        child: Any = metrics.counter("reads_total", "", ("ward",)).labels("a")
        child.inc(1, exemplar={"patient": NAME})
        child = metrics.counter("writes_total", "", ("ward",)).labels("a")
        child.inc()
        text = metrics.exposition("application/openmetrics-text; version=1.0.0")[1].decode()
        assert '# {patient="[PHI:key]"}' in text


class TestSeveralWorkers:
    """prometheus_client's multiprocess mode: each worker writes files, and the one that is asked adds them up."""

    @pytest.fixture(autouse=True)
    def _one_of_several(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
        """Make this process one of several workers, which prometheus_client otherwise decides at its import."""
        files: list[Any] = []

        def opened(*arguments: Any) -> Any:
            files.append(MmapedDict(*arguments))
            return files[-1]

        monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path))
        monkeypatch.setattr(values, "MmapedDict", opened)
        monkeypatch.setattr(values, "ValueClass", values.MultiProcessValue())
        yield
        for file in files:
            file.close()

    def test_all_files_are_added_up(self, tmp_path: Path) -> None:
        """A counter is the sum of all workers', and how many files that took is shown; an empty one is none."""
        metrics = Metrics(Settings())
        metrics.counter("claims_total", "Claims").inc(2)
        theirs = MmapedDict(str(tmp_path / "counter_1.db"))  # type: ignore[no-untyped-call]
        key = json.dumps(["claims", "claims_total", {}, "Claims"])
        theirs.write_value(key, 5.0, 0.0)  # type: ignore[no-untyped-call]
        theirs.close()  # type: ignore[no-untyped-call]
        (tmp_path / "counter_2.db").touch()
        found = samples(metrics)
        assert found["claims_total", ()] == 7
        assert found["healthobs_metric_files", ()] == len(list(tmp_path.glob("*.db"))) - 1

    def test_exemplars_are_the_workers_own(self) -> None:
        """prometheus_client drops exemplars here; the worker that answers shows its own, valid."""
        metrics = Metrics(Settings())
        series = metrics.histogram("wait_seconds", "", ("ward", "bed"))
        series.labels("B2", "7").observe(0.02)
        series.labels("B2", "7").observe(0.03, {"trace_id": "ab"})
        series.labels("B2", "8").observe(99.0, {"trace_id": "cd"})
        metrics.histogram("plain_seconds", "").observe(0.5, {"trace_id": "ef"})
        metrics.show_also_as(PrefixCollector("wait_seconds", "own_seconds", "", {"ward": "endpoint"}))
        text = metrics.exposition("application/openmetrics-text; version=1.0.0")[1].decode()
        shown = sorted(
            (
                sample.name,
                sample.labels.get("bed", sample.labels.get("endpoint", "-")),
                sample.labels["le"],
                sample.exemplar.labels["trace_id"],
                sample.value,
            )
            for family in parse_openmetrics(text)
            for sample in family.samples
            if sample.exemplar
        )
        assert shown == [
            ("own_seconds_bucket", "B2", "+Inf", "cd", 3.0),
            ("own_seconds_bucket", "B2", "0.05", "ab", 2.0),
            ("plain_seconds_bucket", "-", "0.5", "ef", 1.0),
            ("wait_seconds_bucket", "7", "0.05", "ab", 2.0),
            ("wait_seconds_bucket", "8", "+Inf", "cd", 1.0),
        ]

    def test_an_exemplar_that_comes_during_a_scrape(self) -> None:
        """A request that records one while they are looked through costs no scrape."""
        metrics = Metrics(Settings())
        late = ("late_seconds_bucket", frozenset[tuple[str, str]]())

        class Slow(str):
            def removesuffix(self, suffix: str) -> str:
                metrics.kept[late] = Exemplar({}, 1.0)
                return super().removesuffix(suffix)

        metrics.kept[Slow("wait_seconds_bucket"), frozenset()] = Exemplar({}, 1.0)
        assert b"healthobs_build_info" in metrics.exposition(None)[1]
        assert late in metrics.kept
