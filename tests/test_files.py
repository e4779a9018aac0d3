"""Files of the process's own databases: a look into one lets no second writer in."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from another_writer import another_writer
from healthobs.audit.sqlite import SqliteStore
from healthobs.files import read_raw
from healthobs.testing import assert_no_phi


@pytest.fixture(params=["DELETE", "WAL"])
def writing(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Path]:
    """A database in the middle of a transaction of this process."""
    path = tmp_path / "own.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute(f"PRAGMA journal_mode = {request.param}")
        connection.execute("CREATE TABLE thing (name TEXT)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO thing VALUES ('needle')")
        yield path


def test_what_it_is_for(writing: Path) -> None:
    """The fault itself: a look with `open` and `close` takes the lock away, of a rollback journal's database at once."""
    assert another_writer(writing) == "database is locked"
    for path in writing.parent.iterdir():
        path.read_bytes()
    assert another_writer(writing) == "begun"


def test_a_look_keeps_the_locks(writing: Path) -> None:
    """However often, at every file beside it, through a link, and with all or only some of it read."""
    link = writing.with_name("link.db")
    link.symlink_to(writing)
    for _ in range(2):
        for path in writing.parent.iterdir():
            read_raw(path)
            read_raw(path, 100)
    assert another_writer(writing) == "database is locked"


def test_a_search_keeps_the_locks(writing: Path) -> None:
    """`assert_no_phi` looks through the database of an application that runs in the same process."""
    assert_no_phi({"mrn": "absent-4711"}, writing.parent)
    assert another_writer(writing) == "database is locked"


def test_what_is_read(tmp_path: Path) -> None:
    """All, or so much from the beginning; what was written since, and of a file that took another's place, its own."""
    path, text = tmp_path / "a.db", tmp_path / "a.txt"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("CREATE TABLE thing (name TEXT)")
        connection.commit()
        assert read_raw(path) == path.read_bytes()
        connection.execute("INSERT INTO thing VALUES (zeroblob(3000000))")
        connection.commit()
    content = path.read_bytes()
    assert len(content) > 3_000_000
    assert read_raw(path) == content
    assert read_raw(path, 1_500_000) == content[:1_500_000]
    text.write_bytes(b"plain" * 1000)
    assert (read_raw(text), read_raw(text, 7)) == (b"plain" * 1000, b"plainpl")
    text.replace(path)
    assert read_raw(path) == b"plain" * 1000
    path.write_bytes(b"")
    assert read_raw(path) == b""
    with pytest.raises(FileNotFoundError):
        read_raw(text)


def descriptors(folder: Path) -> int:
    """Return how many of this process lead under the folder; other threads open and close theirs meanwhile."""
    return sum(held.resolve().is_relative_to(folder) for held in Path("/proc/self/fd").iterdir())


def test_no_descriptor_is_lost(tmp_path: Path) -> None:
    """One stays open for a database, none for anything else."""
    for number in range(3):
        (tmp_path / f"{number}.txt").write_text("x")
    with closing(sqlite3.connect(tmp_path / "own.db")) as connection:
        connection.execute("CREATE TABLE thing (name TEXT)")
        before = descriptors(tmp_path)
        for _ in range(5):
            for path in tmp_path.iterdir():
                read_raw(path)
        assert descriptors(tmp_path) == before + 1


def test_to_open_a_trail_again_keeps_the_locks(tmp_path: Path) -> None:
    """A second opening in one process does not touch the file before SQLite does."""
    path = tmp_path / "audit.db"
    store = SqliteStore(path)
    with store.initialising():
        pass
    connection = store.connect()
    with closing(connection), connection.writing():
        opening = threading.Thread(target=lambda: store.initialising().__enter__())
        opening.start()
        opening.join(0.5)
        assert another_writer(path) == "database is locked"
    opening.join(20)
