"""One run of the demo: start, walk, break, collect, judge."""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from healthobs import Observability, Settings, observe, use
from opentelemetry.trace import get_current_span

from reference_services.demo import experiments
from reference_services.demo.assertions import Result, judge
from reference_services.demo.cluster import running
from reference_services.demo.collector import Collector, collecting
from reference_services.demo.evidence import Evidence, Samples
from reference_services.demo.faults import Fault
from reference_services.demo.journey import CARD_CVC, IDENTITIES, Journey

SPAN_TIMEOUT_SECONDS = 10.0


class _Discard:
    """The demo's own log lines go nowhere: its report is its output."""

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None:
        return None


@contextmanager
def _scratch(keep: Path | None) -> Iterator[Path]:
    if keep is not None:
        keep.mkdir(parents=True, exist_ok=False)
        yield keep.resolve()
        return
    with tempfile.TemporaryDirectory(prefix="healthobs-demo-") as name:
        yield Path(name)


def run(progress: Callable[[str], None], *, fault: Fault | None = None, keep: Path | None = None) -> tuple[Evidence, list[Result]]:
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
        extra = fault.environment(base) if fault else {}
        with running(base, otlp_url, IDENTITIES, extra) as services:
            _walk(services, evidence, otlp_url, progress)
            progress("sending bad input")
            experiments.bad_input(services, evidence)
            _collect(services, evidence, collector, fault, base, progress)
            progress("calling made-up paths")
            experiments.hostile(services, evidence)
            progress("sabotaging a control")
            experiments.sabotage_controls(services, evidence)
            progress("destroying a database")
            experiments.break_database(services, evidence)
        evidence.logs_at_the_end = {name: service.log_lines() for name, service in services.items()}
    return evidence, judge(evidence)


def _walk(services: dict[str, object], evidence: Evidence, otlp_url: str, progress: Callable[[str], None]) -> None:
    settings = Settings(service_name="healthobs-demo", prefix="demo", otlp_endpoint=otlp_url)
    obs = Observability(settings, log_stream=_Discard())

    @observe("patient_journey")
    def walk(journey: Journey) -> str:
        journey.run()
        return f"{get_current_span().get_span_context().trace_id:032x}"

    journey = Journey(services, evidence, progress)
    try:
        with use(obs):
            evidence.trace_id = walk(journey)
    finally:
        journey.close()
        obs.close()


def _collect(services, evidence, collector: Collector, fault: Fault | None, base: Path, progress) -> None:
    """Wait until the spans of every answered request have arrived, then take a picture of everything."""
    progress("collecting spans, metrics, trails and files")
    expected = len(list(evidence.every_step()))
    deadline = time.monotonic() + SPAN_TIMEOUT_SECONDS
    seen = -1
    while time.monotonic() < deadline:
        spans = collector.spans()
        if len(spans) == seen and sum(span.is_server for span in spans) >= expected:
            break
        seen = len(spans)
        time.sleep(0.5)
    evidence.spans = collector.spans()
    evidence.logs = {name: service.log_lines() for name, service in services.items()}
    for name, service in services.items():
        evidence.metrics_text[name] = experiments.scrape(service)
        evidence.metrics[name] = Samples.parse(evidence.metrics_text[name])
    if fault and fault.afterwards:
        fault.afterwards(services)
    scratch = base / "copies"
    scratch.mkdir()
    experiments.collect_trails(services, evidence, scratch)
    experiments.collect_disk(services, evidence)


def to_terminal(text: str) -> None:
    """Write one line of progress to standard error."""
    print(f"· {text}", file=sys.stderr, flush=True)
