"""What a durable audit entry costs, against one durable single-row SQLite commit on the same disk.

The commit is one of SQLite as it comes (journal mode DELETE, ``synchronous=FULL``): that gates. Beside it is shown one in
the journal mode of the trail, which waits for the same syncs (`tests/test_audit_power.py` counts them): what is left of
that ratio is our CPU, and how soon a woken thread runs. All take turns, in every order, since a commit right after 32
entries is a tenth slower than after one; medians are compared. The calls are exact and gate; times under ``--times``.
Measured in a process of its own: in that of the whole bench 32 callers had 3.9 to 4.1, alone 4.4 to 5.2 (why was not
looked into).

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
from itertools import permutations
from pathlib import Path
from statistics import median
from typing import Any

from bench.bars import Bar, at_least, at_most, verdict
from bench.costs import in_own_process
from healthobs.audit import AuditTrail, open_trail
from healthobs.audit.sqlite import connect_pragmas

#: Appends a second against commits a second.
LEAST_ONE, LEAST_MANY = 0.7, 4.0
#: Calls of an append, Python's and C's, in the caller's thread and the writer's.
MOST_CALLS = 225
CALLERS, ROUNDS = 32, 150
#: SQLite as it comes, and as the trail opens it.
PLAIN, OURS = (
    ("PRAGMA journal_mode = DELETE", "PRAGMA synchronous = FULL"),
    connect_pragmas(journal="PERSIST"),
)
DRAFT = {"action": "patient.read", "actor": "client-1", "subject": "s-17", "resource_id": "r-1"}


def _commits(folder: str, name: str, pragmas: tuple[str, ...]) -> Callable[[], object]:
    """Return what makes one durable commit of one row as long as an entry."""
    connection = sqlite3.connect(Path(folder) / f"{name}.db", isolation_level=None)
    for pragma in pragmas:
        connection.execute(pragma)
    connection.execute("CREATE TABLE entry (idx INTEGER PRIMARY KEY, body TEXT)")
    return lambda: connection.execute("INSERT INTO entry (body) VALUES (?)", ("x" * 340,))


def measure() -> tuple[float, float, float, float]:
    """Return, of one caller and of 32 at once, the ratios to a commit of SQLite as it comes and in the trail's mode."""
    with tempfile.TemporaryDirectory(dir=".") as folder, ThreadPoolExecutor(CALLERS) as pool:
        trail = open_trail(f"sqlite:///{folder}/audit.db", service="bench")
        commits = _commits(folder, "plain", PLAIN), _commits(folder, "ours", OURS)
        one = _times([*commits, lambda: trail.append(DRAFT)], 3 * ROUNDS)
        callers = range(CALLERS)
        many = _times([*commits, lambda: list(pool.map(lambda _: trail.append(DRAFT), callers))], ROUNDS)
        trail.close()
    return one[0] / one[2], one[1] / one[2], CALLERS * many[0] / many[2], CALLERS * many[1] / many[2]


def _times(actions: list[Callable[[], object]], rounds: int) -> list[float]:
    """Return how long each takes, by its median; they take turns in every order."""
    spent: list[list[float]] = [[] for _ in actions]
    orders = list(permutations(range(len(actions))))
    for number in range(rounds + len(orders)):
        for which in orders[number % len(orders)]:
            start = time.perf_counter()
            actions[which]()
            if number >= len(orders):
                spent[which].append(time.perf_counter() - start)
    return [median(seconds) for seconds in spent]


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
    one, one_own, many, many_own = map(float, measured.split())
    counted = calls()
    mode = OURS[1].rpartition(" ")[2]
    print(
        f"durable audit entries against single-row SQLite commits (in DELETE mode; in ours, {mode}): "
        f"one caller {one:.2f}, at least {LEAST_ONE} ({one_own:.2f}); "
        f"{CALLERS} callers {many:.1f}, at least {LEAST_MANY} ({many_own:.1f}); {counted} calls an entry"
    )
    return [
        at_least("audit entries of one caller", one, LEAST_ONE, timed=True),
        at_least(f"audit entries of {CALLERS} callers", many, LEAST_MANY, timed=True),
        at_most("one audit entry, calls", counted, MOST_CALLS),
    ]


if __name__ == "__main__":
    sys.exit(verdict(report(), sys.argv[1:]))
