"""Healthy logs, and what somebody who can write the file does to a copy of one."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from healthobs.audit import Verification, open_trail, store, verification
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.sqlite import GUARDS, SqliteStore

ENTRIES = 6
LONG = 300


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, tuple[str, ...]]:
    """A healthy trail of six entries, each with a checkpoint of its own; its vkey, and its notes."""
    path = tmp_path_factory.mktemp("pristine") / "audit.db"
    trail = open_trail(f"sqlite:///{path}", service="s")
    notes = [trail.checkpoint().note]
    for number in range(ENTRIES):
        trail.append({"action": "patient.read", "details": {"number": number}})
        notes.append(trail.checkpoint().note)
    trail.close()
    return path, trail.vkey, tuple(notes)


@pytest.fixture
def copy(pristine: tuple[Path, str, tuple[str, ...]], tmp_path: Path) -> Path:
    """A copy to be damaged."""
    return Path(shutil.copy(pristine[0], tmp_path / "copy.db"))


def damage(path: Path, *statements: str, keep_guards: bool = True) -> None:
    """Run statements without guards; put the guards back, as a careful attacker would."""
    connection = sqlite3.connect(path)
    try:
        for name in GUARDS:
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        for statement in statements:
            connection.execute(statement)
        if keep_guards:
            for guard in GUARDS.values():
                with contextlib.suppress(sqlite3.OperationalError):  # of a table that is no longer there
                    connection.execute(guard)
        connection.commit()
    finally:
        connection.close()


def verify(path: Path, vkey: str, *known: str) -> Verification:
    connection = SqliteStore(path).connect(read_only=True)
    try:
        return verification.verify(connection, Verifier(vkey), known)
    finally:
        connection.close()


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trail of 300 entries, so that there is a kept node."""
    path = tmp_path_factory.mktemp("long") / "audit.db"
    trail = open_trail(f"sqlite:///{path}", service="s")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: trail.append({"action": "a"}), range(LONG)))
    trail.close()
    return path


def vkey_of(path: Path) -> str:
    connection = SqliteStore(path).connect(read_only=True)
    try:
        log = store.read_log(connection)
    finally:
        connection.close()
    assert log is not None
    return log[1]
