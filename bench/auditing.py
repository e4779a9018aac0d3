"""What a durable audit entry costs, against one durable single-row SQLite commit on the same disk in the same mode.

Limits: the disk decides, and what else it has to do; only the ratio of interleaved rounds means anything.
"""

from __future__ import annotations

import sqlite3
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from statistics import median

from healthobs.audit import open_trail
from healthobs.audit.sqlite import connect_pragmas

#: Appends a second against commits a second; printed, not gated.
WANTED_ONE, WANTED_MANY = 0.7, 4.0
CALLERS, ROUNDS, EACH = 32, 7, 20


def ratios() -> tuple[str, float, float]:
    """Return the journal mode, and the ratios of one caller and of 32 callers at once."""
    with tempfile.TemporaryDirectory(dir=".") as folder, ThreadPoolExecutor(CALLERS) as pool:
        plain = sqlite3.connect(Path(folder) / "plain.db", isolation_level=None)
        for pragma in connect_pragmas():
            plain.execute(pragma)
        (mode,) = plain.execute("PRAGMA journal_mode").fetchone()
        plain.execute("CREATE TABLE entry (idx INTEGER PRIMARY KEY, body TEXT)")
        trail = open_trail(f"sqlite:///{folder}/audit.db", service="bench")
        draft = {"action": "patient.read", "actor": "client-1", "subject": "s-17", "resource_id": "r-1"}

        def commit() -> None:
            plain.execute("INSERT INTO entry (body) VALUES (?)", ("x" * 340,))

        def append() -> None:
            trail.append(draft)

        def many() -> None:
            list(pool.map(lambda _: trail.append(draft), range(CALLERS)))

        rates = _rates({"commit": commit, "one": append, "many": many})
        trail.close()
        plain.close()
    return mode, rates["one"] / rates["commit"], CALLERS * rates["many"] / rates["commit"]


def _rates(actions: dict[str, Callable[[], None]]) -> dict[str, float]:
    """Return runs a second of each action: the median of interleaved rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in actions}
    for _ in range(ROUNDS):
        for name, action in actions.items():
            start = time.perf_counter()
            for _ in range(EACH):
                action()
            seconds[name].append(time.perf_counter() - start)
    return {name: EACH / median(values) for name, values in seconds.items()}


def report() -> str:
    """Return one line for the bench."""
    mode, one, many = ratios()
    return (
        f"durable audit entries against single-row SQLite commits (journal {mode}): one caller {one:.2f}, "
        f"wanted {WANTED_ONE}; {CALLERS} callers {many:.1f}, wanted {WANTED_MANY}"
    )


if __name__ == "__main__":
    print(report())
