"""A PostgreSQL server for tests: its own cluster in a temporary folder, reached by a Unix socket only."""

from __future__ import annotations

import os
import pwd
import secrets
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


def binaries() -> Path | None:
    """Return where `initdb` and `pg_ctl` are (Debian keeps them off the PATH); None when there is no server."""
    on_path = shutil.which("pg_ctl")
    places = [Path(on_path).parent] if on_path else []
    places += sorted(Path("/usr/lib/postgresql").glob("*/bin"), reverse=True)
    return next((place for place in places if (place / "initdb").exists()), None)


class Postgres:
    """A server that runs as an unprivileged user; `start` and `stop` may be repeated.

    Args:
        programs: Folder of `initdb` and `pg_ctl`.
    """

    def __init__(self, programs: Path) -> None:
        self._programs = programs
        self.folder = Path(tempfile.mkdtemp(prefix="healthobs-pg-", dir="/tmp"))
        self._as: dict[str, Any] = {"cwd": self.folder, "check": True, "stdout": subprocess.DEVNULL}
        if os.geteuid() == 0:  # the server refuses to run as root
            user = next(
                name for name in ("postgres", "nobody") if name in {u.pw_name for u in pwd.getpwall()}
            )
            entry = pwd.getpwnam(user)
            os.chown(self.folder, entry.pw_uid, entry.pw_gid)
            self._as |= {"user": entry.pw_uid, "group": entry.pw_gid, "extra_groups": []}
        data = str(self.folder / "data")
        self._run("initdb", "--pgdata", data, "--username", "owner", "--auth", "trust", "--encoding", "UTF8",
                  "--locale", "C", "--no-sync")  # fmt: skip
        self.start()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [self._programs / program, *arguments], stderr=subprocess.STDOUT, timeout=60, **self._as
        )

    def start(self) -> None:
        """Start the server and wait until it answers."""
        options = f"-c listen_addresses='' -k {self.folder} -c max_connections=60"
        log = str(self.folder / "log")
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-l", log, "-o", options, "start")

    def stop(self, mode: str = "fast") -> None:
        """Stop it; `immediate` is a crash."""
        self._run("pg_ctl", "-D", str(self.folder / "data"), "-w", "-m", mode, "stop")

    @property
    def pid(self) -> int:
        """The server's process."""
        return int((self.folder / "data" / "postmaster.pid").read_text().split("\n", 1)[0])

    def url(self, database: str, user: str = "owner") -> str:
        """Return how `user` connects to `database`."""
        return f"postgresql://{user}@/{database}?host={self.folder}"

    def execute(self, url: str, *statements: str) -> list[tuple[Any, ...]]:
        """Run statements, each on its own, and return the rows of the last."""
        import psycopg

        with psycopg.connect(url, autocommit=True) as connection:
            rows: list[tuple[Any, ...]] = []
            for statement in statements:
                cursor = connection.execute(statement.encode())
                rows = cursor.fetchall() if cursor.description else []
            return rows

    def until_one_waits(self, database: str, seconds: float = 10.0) -> bool:
        """Wait until a connection to `database` waits for a lock of another, and return whether one does."""
        waiting = f"SELECT 1 FROM pg_stat_activity WHERE datname = '{database}' AND wait_event_type = 'Lock'"
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self.execute(self.url("postgres"), waiting):
                return True
            time.sleep(0.02)
        return False

    def database(self) -> str:
        """Make a new, empty database and return its name."""
        name = f"t{secrets.token_hex(6)}"
        self.execute(self.url("postgres"), f"CREATE DATABASE {name}")
        return name


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    """Give a running PostgreSQL server."""
    programs = binaries()
    if programs is None:
        assert not os.environ.get("HEALTHOBS_MUST_HAVE_SERVERS"), (
            "the gate must not skip what needs PostgreSQL"
        )
        pytest.skip("no PostgreSQL server is installed (Debian: apt-get install postgresql)")
    server = Postgres(programs)
    yield server
    server.stop("immediate")
    shutil.rmtree(server.folder, ignore_errors=True)
