"""`python -m bench`: the table of one request against bare Flask, the hand-written floor and the peers, then the bars.

Calls are exact and gate a change. CPU is the median of interleaved rounds in one process, as a ratio to the
floor: never compare it between machines or runs. Exits 1 when a bar does not hold.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from statistics import median

from bench import apps, calls, peers

#: Bars of exact counts, added to bare Flask: name -> (most calls, measured on).
MOST_CALLS = {"healthobs": 300, "healthobs, multiprocess": 330}
MOST_FLOOR_CALLS = 240
MOST_PROBE_CALLS = 15
ROUNDS, REQUESTS = 15, 100


def stacks() -> dict[str, apps.WsgiApp]:
    """Return every stack that can be built here."""
    built: dict[str, apps.WsgiApp] = {
        "bare Flask": apps.bare(),
        "floor": apps.floor(),
        "healthobs": apps.ours(),
    }
    built["healthobs, unsampled"] = apps.ours_unsampled()
    built.update(peers.stacks())
    return built


def cpu(actions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return CPU seconds of `REQUESTS` requests for each stack: the median of interleaved rounds."""
    rounds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.process_time()
            for _ in range(REQUESTS):
                action()
            rounds[name].append(time.process_time() - start)
    return {name: median(values) for name, values in rounds.items()}


def table() -> dict[str, int]:
    """Print the table and return the added calls by stack."""
    actions = {name: apps.request(app) for name, app in stacks().items()}
    counted = {name: calls.count(action) for name, action in actions.items()}
    spent = cpu(actions)
    bare_calls, bare_cpu = counted["bare Flask"], spent["bare Flask"]
    floor_cpu = spent["floor"] - bare_cpu
    print(f"{'stack':<44}{'calls added':>12}{'x bare CPU':>12}{'added CPU / floor':>19}")
    for name in actions:
        added = spent[name] - bare_cpu
        print(
            f"{name:<44}{counted[name] - bare_calls:>12}{spent[name] / bare_cpu:>12.2f}{added / floor_cpu:>19.2f}"
        )
    for name in peers.missing():
        print(f"{name:<44}{'not installed':>12}")
    return {name: value - bare_calls for name, value in counted.items()}


def multiprocess_calls() -> int:
    """Count in a process of its own, because prometheus_client chooses its values at import."""
    code = "from bench import apps, calls; print(calls.count(apps.request(apps.ours())) - calls.count(apps.request(apps.bare())))"
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": folder}
        done = subprocess.run(
            [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
        )
    return int(done.stdout)


def main() -> int:
    """Measure, print, and hold the bars."""
    added = table()
    added["healthobs, multiprocess"] = multiprocess_calls()
    probe = calls.count(apps.request(apps.ours(), "/health")) - calls.count(
        apps.request(apps.with_health_view(), "/health")
    )
    print(f"{'healthobs, multiprocess':<44}{added['healthobs, multiprocess']:>12}")
    print(f"{'/health, against a Flask view of it':<44}{probe:>12}")
    failed = [
        f"{name}: {added[name]} calls, at most {most}"
        for name, most in MOST_CALLS.items()
        if added[name] > most
    ]
    if added["floor"] > MOST_FLOOR_CALLS:
        failed.append(
            f"the floor grew to {added['floor']} calls, at most {MOST_FLOOR_CALLS}: it is the measure, keep it lean"
        )
    if probe > MOST_PROBE_CALLS:
        failed.append(f"a probe costs {probe} calls more than a view, at most {MOST_PROBE_CALLS}")
    for line in failed:
        print(f"FAIL  {line}")
    print(f"{4 - len(failed)} bars passed, {len(failed)} bars failed")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
