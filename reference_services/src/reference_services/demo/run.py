"""One run of the demo: start, walk, break, collect, judge."""

from __future__ import annotations

import io
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from opentelemetry.trace import get_current_span

from healthobs import Observability, Settings, observe, use
from reference_services.demo import experiments
from reference_services.demo.assertions import Result, judge
from reference_services.demo.cluster import Service, running
from reference_services.demo.collector import Collector, SpanRecord, collecting
from reference_services.demo.evidence import Evidence, Samples
from reference_services.demo.faults import Fault
from reference_services.demo.journey import CARD_CVC, IDENTITIES, Journey
from reference_services.services import SERVICES

#: Longer than a batch of spans waits for its export.
QUIET_SECONDS = 3.0
#: Long enough between two rounds of controls for a picture without their requests.
CONTROL_INTERVAL_SECONDS = "5"


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=False)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="healthobs-demo-") as name:
        yield Path(name)


def run(
    progress: Callable[[str], None], *, fault: Fault | None = None, keep: Path | None = None
) -> tuple[Evidence, list[Result]]:
    """Run the services, the journey and the experiments once.

    Args:
        progress: Told what happens, a line at a time.
        fault: What to plant, or None for a healthy run.
        keep: A directory that must not exist yet; everything written stays there.

    Returns:
        What was left behind, and what the assertions made of it.
    """
    evidence = Evidence()
    evidence.disk_needles.values["card verification code"] = f'"{CARD_CVC}"'
    with _scratch(keep) as base, collecting() as (collector, otlp_url):
        progress("starting five services")
        with running(base, otlp_url, IDENTITIES, _environment(fault, base)) as services:
            experiments.back_up(services)
            _walk(services, evidence, otlp_url, progress)
            progress("sending bad input")
            experiments.bad_input(services, evidence)
            progress("collecting spans, metrics, trails and files")
            _collect(services, evidence, collector, fault, base)
            progress("restarting a service before its witnesses")
            experiments.look_at_witnesses(services, evidence, fault.meanwhile if fault else None)
            progress("sabotaging a control")
            experiments.sabotage_control(services, evidence)
            progress("calling made-up paths")
            experiments.hostile(services, evidence)
            progress("destroying a database")
            experiments.break_database(services, evidence)
            progress("waiting for the sabotaged control")
            experiments.look_at_sabotaged_control(services, evidence)
        evidence.logs_at_the_end = {name: service.log_lines() for name, service in services.items()}
    return evidence, judge(evidence)


def _environment(fault: Fault | None, base: Path) -> dict[str, dict[str, str]]:
    """Return the variables of each service: one round of controls, but more where one is to be sabotaged."""
    planted = fault.environment(base) if fault else {}
    intervals = {"*": "3600", experiments.SABOTAGED: CONTROL_INTERVAL_SECONDS}
    made = {name: {"HEALTHOBS_CONTROL_INTERVAL_SECONDS": seconds} for name, seconds in intervals.items()}
    for name, variables in planted.items():
        made[name] = {**made.get(name, {}), **variables}
    return made


def _walk(
    services: Mapping[str, Service], evidence: Evidence, otlp_url: str, progress: Callable[[str], None]
) -> None:
    settings = Settings(service_name="healthobs-demo", prefix="demo", otlp_endpoint=otlp_url)
    journey = Journey(services, evidence, progress)

    @observe("patient_journey")
    def walk() -> str:
        journey.run()
        return f"{get_current_span().get_span_context().trace_id:032x}"

    obs = Observability(settings, log_stream=io.StringIO())  # its report is its output, not its log
    try:
        with use(obs):
            evidence.trace_id = walk()
    finally:
        journey.close()
        obs.close()


def _collect(
    services: Mapping[str, Service], evidence: Evidence, collector: Collector, fault: Fault | None, base: Path
) -> None:
    """Take a picture of everything."""
    settle(services, evidence, collector)
    if fault and fault.afterwards:
        fault.afterwards(services)
    scratch = base / "copies"
    scratch.mkdir()
    experiments.collect_trails(services, evidence, scratch)
    experiments.collect_disk(services, evidence)


def settle(services: Mapping[str, Service], evidence: Evidence, collector: Collector) -> None:
    """Take spans, log lines and metrics of each service at a moment when nothing is under way.

    Spans are exported in batches, a second late, and controls make requests of their own; so the picture is
    taken when the three counts of requests agree, or do not change any more although they differ.
    """
    waiting = dict(services)
    pictures: dict[str, list[SpanRecord]] = {}
    counts: dict[str, tuple[int, ...]] = {}
    changed = time.monotonic()
    while waiting and time.monotonic() < changed + QUIET_SECONDS:
        for name, service in tuple(waiting.items()):
            pictures[name] = [span for span in collector.spans() if span.service == name]
            seen = _picture(service, evidence, pictures[name])
            if len(set(seen)) == 1:
                del waiting[name]
            elif counts.get(name) != seen:
                counts[name], changed = seen, time.monotonic()
        time.sleep(0.1)
    others = [span for span in collector.spans() if span.service not in services]
    evidence.spans = others + [span for spans in pictures.values() for span in spans]


def _picture(service: Service, evidence: Evidence, spans: list[SpanRecord]) -> tuple[int, ...]:
    """Keep what a service shows now; return how many requests its spans, log lines and metrics tell of."""
    name = service.name
    evidence.logs[name] = service.log_lines()
    text = evidence.metrics_text[name] = experiments.scrape(service)
    samples = evidence.metrics[name] = Samples.parse(text)
    return (
        sum(span.is_server for span in spans),
        sum(line.get("event") == "http_request" for line in evidence.log_objects(name)),
        int(samples.total(f"{SERVICES[name].prefix}_request_duration_seconds_count")),
    )


def to_terminal(text: str) -> None:
    """Write one line of progress to standard error."""
    print(f"· {text}", file=sys.stderr, flush=True)
