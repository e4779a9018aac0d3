"""Trails of one test, and what somebody who can write the file does to them."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import healthobs.audit
from healthobs.audit import merkle, open_trail
from healthobs.audit.trail import AuditTrail

MakeTrail = Callable[..., AuditTrail]
READ = {"action": "patient.read"}


@pytest.fixture
def make_trail(tmp_path: Path) -> Iterator[MakeTrail]:
    """Opens the trail of this test; closes every one at the end."""
    made: list[AuditTrail] = []

    def make(**options: Any) -> AuditTrail:
        made.append(open_trail(f"sqlite:///{tmp_path}/audit.db", service="phi-service", **options))
        return made[-1]

    yield make
    for trail in made:
        trail.close()


@pytest.fixture
def trail(make_trail: MakeTrail) -> AuditTrail:
    return make_trail()


def unmeasured() -> dict[str, str]:
    """Return the environment, without coverage, for a process that forks while its threads work.

    coverage's tracer takes a lock for each new file; a child forked while another thread holds it waits for ever.
    """
    return {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}


def copied(path: Path, target: Path) -> Path:
    """Copy a log as it stands, with what is only in its write-ahead log yet."""
    with (
        contextlib.closing(sqlite3.connect(path)) as source,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        source.backup(copy)
    return target


def in_files(path: Path | None) -> list[bytes]:
    """Return the bytes of a database and of the logs that SQLite keeps beside it."""
    assert path is not None
    return [found.read_bytes() for found in path.parent.glob(f"{path.name}*") if found.suffix != ".key"]


def cut_off(path: Path) -> None:
    """Leave a log as a writer does that is killed while it commits: pages written, and what undoes that in a journal."""
    journal = path.with_name(f"{path.name}-journal")
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as writer:
        writer.execute("PRAGMA cache_size = 1")  # pages are written before the end
        writer.execute("BEGIN IMMEDIATE")
        writer.executemany("INSERT INTO sequenced VALUES (?, 0)", [(f"{n:04000d}",) for n in range(100)])
        files = path.read_bytes(), journal.read_bytes()
    path.write_bytes(files[0])
    journal.write_bytes(files[1])


def put_back(old: Path, path: Path) -> None:
    """Put a copy in the place of a log, whatever stands beside it."""
    for suffix in ("-wal", "-shm", "-journal"):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    old.rename(path)


def leaves(path: Path) -> list[bytes]:
    """Recompute every leaf from the stored bodies."""
    connection = sqlite3.connect(path)
    try:
        rows = connection.execute("SELECT body FROM entry ORDER BY idx").fetchall()
    finally:
        connection.close()
    return [merkle.leaf_hash(body.encode()) for (body,) in rows]


def _execute(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    try:
        for statement in statements:
            connection.execute(statement)
        connection.commit()
    finally:
        connection.close()


def _damage(path: Path, *statements: str) -> None:
    """Do to the file what only somebody with write access to it can: drop the guards first."""
    guards = list(healthobs.audit.sqlite.GUARDS)
    _execute(path, *(f"DROP TRIGGER IF EXISTS {name}" for name in guards), *statements)


def read_only(*_: object) -> None:
    """Stand in for what puts a file there, in a folder that takes none."""
    raise OSError(errno.EROFS, os.strerror(errno.EROFS))
