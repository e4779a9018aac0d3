"""Where a map of subjects may be kept, for tests that hold for each: a file, a schema in PostgreSQL."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from tests.postgres import Postgres

from healthobs.audit.subjects import SubjectMap

#: The parameters of a fixture that gives each place in turn.
PLACES = ["file", pytest.param("server", marks=pytest.mark.server)]


class FilePlace:
    """A map in a file of `folder`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.file = folder / "subjects.db"
        self.place: Path | str = self.file
        self.key = folder / "subjects.key"

    @property
    def settings(self) -> dict[str, Any]:
        return {"audit_subjects_file": self.file, "audit_subjects_key_file": self.key}

    def open(self, key: Path | None = None) -> SubjectMap:
        """Open the map, as another process does."""
        return SubjectMap(self.place, key or self.key)

    def another(self) -> FilePlace:
        """Return a place for a second map."""
        other = FilePlace(self.folder)
        other.place = other.file = self.folder / "another.db"
        return other

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        """Run a statement, past the map."""
        with closing(sqlite3.connect(self.file, isolation_level=None)) as connection:
            return connection.execute(statement, parameters).fetchall()

    def lose(self) -> Callable[[], object]:
        """Take the map away; return what puts it back."""
        kept = self.file.rename(self.folder / "kept")
        return lambda: kept.rename(self.file)

    def give_up(self) -> None:
        """Say that a map that was taken away does not come back, so that another may be begun."""
        self.key.with_name(f"{self.key.name}.logs").unlink()

    def is_there(self) -> bool:
        return self.file.exists()


class ServerPlace(FilePlace):
    """A map in a database of its own."""

    def __init__(self, folder: Path, server: Postgres) -> None:
        super().__init__(folder)
        self.server = server
        self._name = server.database()
        self.place = self.url = server.url(self._name)

    @property
    def settings(self) -> dict[str, Any]:
        return {"audit_subjects_url": self.url, "audit_subjects_key_file": self.key}

    def another(self) -> FilePlace:
        return ServerPlace(self.folder, self.server)

    def execute(self, statement: str, *parameters: object) -> list[tuple[Any, ...]]:
        import psycopg

        options = "-c search_path=healthobs_subjects"
        with psycopg.connect(self.url, autocommit=True, options=options) as connection:
            cursor = connection.execute(statement.replace("?", "%s").encode(), parameters)
            return cursor.fetchall() if cursor.description else []

    def lose(self) -> Callable[[], object]:
        self.execute("ALTER SCHEMA healthobs_subjects RENAME TO kept")
        return lambda: self.execute("ALTER SCHEMA kept RENAME TO healthobs_subjects")

    def give_up(self) -> None:
        """Nothing says where a map in a database was begun but its own mark."""

    def drop(self) -> None:
        """Take the database away: a server with many is slow to stop and to start."""
        self.server.execute(self.server.url("postgres"), f"DROP DATABASE {self._name} WITH (FORCE)")

    def is_there(self) -> bool:
        return bool(self.execute("SELECT FROM pg_namespace WHERE nspname = 'healthobs_subjects'"))


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[FilePlace]:
    """Give each place in turn."""
    if request.param == "file":
        yield FilePlace(tmp_path)
        return
    made = ServerPlace(tmp_path, request.getfixturevalue("postgres"))
    yield made
    made.drop()
