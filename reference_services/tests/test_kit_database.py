"""A service's own database: transactions, schema versions, and a file that vanishes."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import sqlalchemy as sa
from sqlalchemy.engine import Engine
from sqlalchemy.exc import OperationalError

from healthobs import ConfigurationError
from healthobs.audit import Outbox
from reference_services._kit import database
from reference_services._kit.storage import Storage
from reference_services.auth.domain import OAuthClient
from reference_services.auth.store import CLIENTS, Store

METADATA = sa.MetaData()
THINGS = sa.Table("things", METADATA, sa.Column("name", sa.String(20), primary_key=True))


class TestDatabase:
    """Transactions and schema versions."""

    def test_a_transaction_commits_or_rolls_back(self, bench: Any) -> None:
        """What a block writes is kept when it ends and gone when it raises; inner blocks join the outer."""
        kit = bench.kit
        kit.migrate(METADATA)
        with kit.transaction() as outer, kit.transaction() as inner, kit.reading() as reader:
            assert outer is inner is reader
            inner.execute(THINGS.insert().values(name="kept"))

        def fail() -> None:
            with kit.transaction():
                with kit.transaction() as inner:
                    inner.execute(THINGS.insert().values(name="lost"))
                raise KeyError

        with pytest.raises(KeyError):
            fail()
        with kit.reading() as connection:
            assert connection.execute(sa.select(THINGS.c.name)).scalars().all() == ["kept"]

    def test_a_reader_does_not_wait_for_the_writer_to_begin(self, bench: Any) -> None:
        """Reading works while another thread holds the write lock."""
        kit = bench.kit
        kit.migrate(METADATA)
        done: list[int] = []

        def read() -> None:
            with kit.reading() as connection:
                done.append(connection.execute(sa.select(sa.func.count()).select_from(THINGS)).scalar_one())

        with kit.transaction():
            thread = threading.Thread(target=read)
            thread.start()
            thread.join(3)
        assert done == [0]

    def test_writers_queue_at_the_start(self, bench: Any) -> None:
        """Eight read-then-write transactions all succeed: none fails for having read too early."""
        kit = bench.kit
        kit.migrate(METADATA)

        def add(number: int) -> None:
            with kit.transaction() as connection:
                count = connection.execute(sa.select(sa.func.count()).select_from(THINGS)).scalar_one()
                connection.execute(THINGS.insert().values(name=f"{number}-{count}"))

        threads = [threading.Thread(target=add, args=(number,)) for number in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(10)
        with kit.reading() as connection:
            names = connection.execute(sa.select(THINGS.c.name)).scalars().all()
        assert sorted(int(name.split("-")[1]) for name in names) == list(range(8))

    def test_files_are_private(self, bench: Any) -> None:
        """The database is readable by its owner only."""
        bench.kit.migrate(METADATA)
        assert (bench.settings.data_dir / "bench.db").stat().st_mode & 0o777 == 0o600

    def test_steps_bring_an_older_schema_up(self, bench: Any) -> None:
        """Each missing step runs once, in order."""
        engine, ran = bench.kit.engine, []
        database.migrate(engine, METADATA)
        steps = {number: lambda _connection, number=number: ran.append(number) for number in (2, 3)}
        database.migrate(engine, METADATA, version=3, steps=steps)
        database.migrate(engine, METADATA, version=3, steps=steps)
        assert ran == [2, 3]
        database.check(engine, 3)

    def test_a_newer_schema_stops_the_start(self, bench: Any) -> None:
        """Code does not touch a schema it does not know, and is not ready on it."""
        engine = bench.kit.engine
        database.migrate(engine, METADATA, version=5)
        with pytest.raises(database.SchemaError, match="has schema 5"):
            database.migrate(engine, METADATA, version=4)
        with pytest.raises(database.SchemaError, match="has schema 5"):
            database.check(engine, 4)

    def test_a_missing_step_stops_the_start(self, bench: Any) -> None:
        """Without a step nothing is changed."""
        engine = bench.kit.engine
        database.migrate(engine, METADATA)
        with pytest.raises(database.SchemaError, match="no step leads to schema 2"):
            database.migrate(engine, METADATA, version=2)
        database.check(engine, 1)

    def test_parameters_stay_out_of_exceptions(self, bench: Any) -> None:
        """An exception of the store does not show what was written."""
        kit = bench.kit
        kit.migrate(METADATA)
        same = [{"name": "219-09-9999"}] * 2
        with pytest.raises(sa.exc.IntegrityError) as raised, kit.transaction() as connection:
            connection.execute(THINGS.insert(), same)
        assert "219-09-9999" not in str(raised.value)

    def test_readiness_follows_the_database(self, bench: Any) -> None:
        """The readiness check fails when the schema is gone."""
        bench.kit.migrate(METADATA)
        client = bench.client()
        assert client.get("/readiness").get_json()["checks"]["database"] == "ready"
        with bench.kit.transaction() as connection:
            connection.execute(sa.text("DROP TABLE schema_version"))
        with pytest.raises(OperationalError):
            database.check(bench.kit.engine)

    @pytest.mark.parametrize("url", ["sqlite://", "sqlite:///:memory:"])
    def test_memory_database(self, url: str) -> None:
        """A database that every thread would have for itself is refused."""
        with pytest.raises(ConfigurationError, match="must name a file"):
            database.make_engine(url)

    @pytest.mark.parametrize("gone", [True, False])
    def test_file_taken_from_under_the_pool(self, tmp_path: Path, gone: bool) -> None:
        """The check asks the file that has the name now, not one that a connection of the pool still holds."""
        engine = database.make_engine(f"sqlite:///{tmp_path}/x.db")
        database.migrate(engine, sa.MetaData())
        database.check(engine)
        (tmp_path / "x.db").rename(tmp_path / "kept.db")
        for beside in tmp_path.glob("x.db-*"):  # SQLite would restore the file from them
            beside.rename(tmp_path / f"kept.{beside.name}")
        if not gone:
            (tmp_path / "x.db").write_bytes(b"no database " * 512)
        with pytest.raises(sa.exc.SQLAlchemyError):
            database.check(engine)
        assert (tmp_path / "x.db").exists() is not gone
        engine.dispose()


def _migrated(bench: Any, url: str) -> Engine:
    storage = Storage(replace(bench.settings, database_url=url))
    storage.outbox = Outbox(bench.obs.audit, storage.engine.begin)
    storage.migrate(METADATA)
    return storage.engine


def _clients_known(_bench: Any, url: str) -> Engine:
    engine = database.make_engine(url)
    Store(engine).replace_clients([OAuthClient("billing", "0" * 64, ("payment:read",), ())])
    return engine


@pytest.mark.server
@pytest.mark.parametrize("start", [_migrated, _clients_known])
def test_replicas_start_together(
    bench: Any, postgres: Any, monkeypatch: pytest.MonkeyPatch, start: Callable[[Any, str], Engine]
) -> None:
    """Of two that start on an empty PostgreSQL database at once, the second waits for the first and goes on."""
    name, make, made = postgres.database(), database.make_engine, threading.Event()
    url = postgres.url(name)
    if start is _clients_known:
        engine = make(url)
        database.migrate(engine, CLIENTS.metadata)
        engine.dispose()

    def slow(url: str) -> Engine:
        engine = make(url)

        @sa.event.listens_for(engine, "commit")
        def _commit(_connection: object) -> None:
            made.set()
            postgres.until_one_waits(name, 3)

        return engine

    monkeypatch.setattr(database, "make_engine", slow)
    with ThreadPoolExecutor(2) as threads:
        first = threads.submit(start, bench, url)
        assert made.wait(20)
        monkeypatch.setattr(database, "make_engine", make)
        second = threads.submit(start, bench, url)
        for engine in (first.result(60), second.result(60)):
            database.check(engine)
            engine.dispose()


def test_postgresql_without_a_driver() -> None:
    """A URL as libpq has it is for the driver that is installed, whatever SQLAlchemy would take."""
    assert database.make_engine("postgresql://somewhere/records").driver == "psycopg"
