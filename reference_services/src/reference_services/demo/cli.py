"""The command `healthobs demo`."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from reference_services.demo import report
from reference_services.demo.assertions import Result
from reference_services.demo.cluster import StartError
from reference_services.demo.faults import FAULTS, Fault
from reference_services.demo.run import run, to_terminal


def parser() -> argparse.ArgumentParser:
    """Describe the command's arguments."""
    arguments = argparse.ArgumentParser(
        prog="healthobs demo",
        description="Start the five reference services, walk a patient's journey through them, and check what it left behind.",
    )
    arguments.add_argument("--json", action="store_true", help="print the report as JSON")
    arguments.add_argument(
        "--keep", type=Path, metavar="DIR", help="keep databases, logs and keys in DIR (must not exist)"
    )
    arguments.add_argument(
        "--break",
        dest="fault",
        metavar="NAME",
        choices=[*FAULTS, "all", "list"],
        help="plant a named fault; 'list' names them, 'all' runs healthy and then each of them",
    )
    return arguments


def main(argv: Sequence[str] | None = None) -> int:
    """Run the demo.

    Returns:
        0 when every assertion held (with ``--break all``: when each fault turned exactly its declared
        assertions red); 1 when an assertion is red; 2 when a planted fault was not found as declared
        or the services did not start.
    """
    chosen = parser().parse_args(argv)
    if chosen.fault == "list":
        for known in FAULTS.values():
            print(f"{known.name:<28} {known.what} (red: {_names(known.red)})")
        return 0
    try:
        if chosen.fault == "all":
            return _matrix()
        fault = FAULTS[chosen.fault] if chosen.fault else None
        return _single(fault, as_json=chosen.json, keep=chosen.keep)
    except StartError as exc:
        print(f"the services did not start: {exc}", file=sys.stderr)
        return 2


def _single(fault: Fault | None, *, as_json: bool, keep: Path | None) -> int:
    evidence, results = run(to_terminal, fault=fault, keep=keep)
    red = _red(results)
    if as_json:
        print(json.dumps(report.as_json(evidence, results), indent=2))
    else:
        sections = (
            (f"Trace {evidence.trace_id}", report.trace_tree(evidence.in_trace())),
            ("Requests and audit entries", report.counts(evidence)),
            ("Log lines of the trace", report.log_lines(evidence)),
            ("Assertions", report.verdict(results)),
        )
        for title, lines in sections:
            print(f"\n{title}\n{'-' * len(title)}")
            for line in lines:
                print(line)
        print(f"\n{len(results) - len(red)} passed, {len(red)} failed")
    if fault is not None and red != fault.red:
        print(f"planted {fault.name}: declared {_names(fault.red)}, red {_names(red)}", file=sys.stderr)
        return 2
    return 1 if red else 0


def _matrix() -> int:
    """Run healthy, then with each fault; print one line a run."""
    wrong = 0
    runs: tuple[Fault | None, ...] = (None, *FAULTS.values())
    for fault in runs:
        name, declared = ("healthy", frozenset[str]()) if fault is None else (fault.name, fault.red)
        _, results = run(lambda _: None, fault=fault)
        red = _red(results)
        wrong += red != declared
        print(f"{'ok  ' if red == declared else 'FAIL'}  {name:<28} red: {_names(red)}", flush=True)
        if red != declared:
            print(f"      declared: {_names(declared)}")
            for line in report.verdict([result for result in results if not result.ok]):
                print(f"      {line}", flush=True)
    print(f"{len(FAULTS) + 1 - wrong} passed, {wrong} failed")
    return 2 if wrong else 0


def _red(results: Sequence[Result]) -> frozenset[str]:
    return frozenset(result.assertion.name for result in results if not result.ok)


def _names(names: frozenset[str]) -> str:
    return ", ".join(sorted(names)) or "none"
