"""What a durable audit entry costs, against one durable single-row SQLite commit on the same disk in the same mode.

Appends and commits take turns, one by one and each as often first, since a commit right after 32 of them is a tenth
slower than after one; medians are compared. Both wait for the same syncs (`tests/test_audit_power.py` counts them); the
rest of one caller's ratio is our CPU and how soon a woken thread runs. The calls are exact and gate; times under
``--times``. Measured in a process of its own: in that of the whole bench 32 callers had 3.9 to 4.1, alone 4.4 to 5.2
(why was not looked into).

Limits: only the ratio means anything, and only on that disk: the faster it syncs, the lower the ratio of one caller.
"""

from __future__ import annotations

import sqlite3
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median
from typing import Any

from bench.bars import Bar, at_least, at_most, verdict
from bench.costs import in_own_process
from healthobs.audit import AuditTrail, open_trail
from healthobs.audit.sqlite import connect_pragmas

#: Appends a second against commits a second. Of one caller 0.7 is wanted and not held, see the decisions.
LEAST_ONE, LEAST_MANY = 0.6, 4.0
#: Calls of an append, Python's and C's, in the caller's thread and the writer's.
MOST_CALLS = 225
CALLERS, ROUNDS = 32, 150
DRAFT = {"action": "patient.read", "actor": "client-1", "subject": "s-17", "resource_id": "r-1"}


def _commits(folder: str) -> Callable[[], object]:
    """Return what makes one durable commit of one row as long as an entry, in the journal mode of the trail."""
    connection = sqlite3.connect(Path(folder) / "plain.db", isolation_level=None)
    for pragma in connect_pragmas():
        connection.execute(pragma)
    connection.execute("CREATE TABLE entry (idx INTEGER PRIMARY KEY, body TEXT)")
    return lambda: connection.execute("INSERT INTO entry (body) VALUES (?)", ("x" * 340,))


def measure() -> tuple[float, float]:
    """Return the ratios of one caller and of 32 callers at once, as this process has them."""
    with tempfile.TemporaryDirectory(dir=".") as folder, ThreadPoolExecutor(CALLERS) as pool:
        trail = open_trail(f"sqlite:///{folder}/audit.db", service="bench")
        commit = _commits(folder)
        one = _ratio(commit, lambda: trail.append(DRAFT), 3 * ROUNDS)
        many = _ratio(commit, lambda: list(pool.map(lambda _: trail.append(DRAFT), range(CALLERS))), ROUNDS)
        trail.close()
    return one, CALLERS * many


def _ratio(theirs: Callable[[], object], ours: Callable[[], object], rounds: int) -> float:
    """Return how long theirs takes against ours, by their medians."""
    spent: tuple[list[float], list[float]] = ([], [])
    actions = [(theirs, spent[0]), (ours, spent[1])]
    for number in range(rounds + 5):
        for action, seconds in actions if number % 2 else reversed(actions):
            start = time.perf_counter()
            action()
            if number >= 5:
                seconds.append(time.perf_counter() - start)
    return median(spent[0]) / median(spent[1])


def calls() -> int:
    """Return the calls of one append, the lowest of some: a thread that waits for the interpreter makes none."""
    seen = 0

    def profile(_frame: object, event: str, _argument: Any) -> None:
        nonlocal seen
        seen += event in ("call", "c_call")

    def one(trail: AuditTrail) -> int:
        before = seen
        sys.setprofile(profile)
        trail.append(DRAFT)
        sys.setprofile(None)
        return seen - before

    with tempfile.TemporaryDirectory() as folder:
        trail = open_trail(f"sqlite:///{folder}/audit.db", service="bench")
        threading.setprofile(profile)  # for the writer's thread, which the first append starts
        counts = [one(trail) for _ in range(40)]
        threading.setprofile(None)
        trail.close()
    return min(counts)


def report() -> list[Bar]:
    """Print a line and return the bars."""
    measured = in_own_process("from bench import auditing; print(*auditing.measure())")
    one, many = map(float, measured.split())
    counted = calls()
    mode = connect_pragmas()[1].rpartition(" ")[2]
    print(
        f"durable audit entries against single-row SQLite commits (journal {mode}): one caller {one:.2f}, "
        f"at least {LEAST_ONE}; {CALLERS} callers {many:.1f}, at least {LEAST_MANY}; {counted} calls an entry"
    )
    return [
        at_least("audit entries of one caller", one, LEAST_ONE, timed=True),
        at_least(f"audit entries of {CALLERS} callers", many, LEAST_MANY, timed=True),
        at_most("one audit entry, calls", counted, MOST_CALLS),
    ]


if __name__ == "__main__":
    sys.exit(verdict(report(), sys.argv[1:]))
