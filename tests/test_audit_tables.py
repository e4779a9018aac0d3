"""Tables that hold what they should not, and what guards refuse."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from tests.tampered_logs import damage, verify, vkey_of

from healthobs.audit import merkle, open_trail
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.command import main
from healthobs.audit.retention import Retention
from healthobs.audit.sqlite import table_statements
from healthobs.exceptions import AuditError, AuditTamperedError, AuditWriteError


def loose(table: str, columns: str, *statements: str) -> tuple[str, ...]:
    """Return what makes a table anew, with columns that hold anything."""
    names = ", ".join(column.split()[0] for column in columns.split(", "))
    return (
        f"ALTER TABLE {table} RENAME TO old",
        f"CREATE TABLE {table} ({columns})",
        f"INSERT INTO {table} SELECT {names} FROM old",
        "DROP TABLE old",
        *statements,
    )


ENTRY, CHECKPOINT, TILE = "idx, leaf, body", "size, note", "level, n, width, hashes"
#: What is done to a log of 300, which table is named, and the first bad entry where one can be named.
REWRITTEN = {
    "text for a number": (loose("entry", ENTRY, "UPDATE entry SET idx = 'abc' WHERE idx = 3"), "entry", 3),
    "text for the last number": (loose("entry", ENTRY, "UPDATE entry SET idx = 'abc' WHERE idx = 299"), "entry", 299),
    "text for every number": (loose("entry", "idx TEXT, leaf, body"), "entry", 0),
    "a fraction": (loose("entry", ENTRY, "UPDATE entry SET idx = 2.5 WHERE idx = 3"), "entry", 3),
    "fractions": (loose("entry", "idx REAL, leaf, body"), "entry", 0),
    "bytes": (loose("entry", ENTRY, "UPDATE entry SET idx = x'ff' WHERE idx = 3"), "entry", 3),
    "no number": (loose("entry", ENTRY, "UPDATE entry SET idx = NULL WHERE idx = 3"), "entry", 3),
    "no leaf": (loose("entry", ENTRY, "UPDATE entry SET leaf = NULL WHERE idx = 3"), "entry", 3),
    "text for a leaf": (loose("entry", ENTRY, "UPDATE entry SET leaf = 'text' WHERE idx = 3"), "entry", 3),
    "a long leaf": (loose("entry", ENTRY, "UPDATE entry SET leaf = zeroblob(64) WHERE idx = 3"), "entry", 3),
    "a number for a body": (loose("entry", ENTRY, "UPDATE entry SET body = 7 WHERE idx = 3"), "entry", 3),
    "text for a size": (loose("checkpoint", CHECKPOINT, "UPDATE checkpoint SET size = 'zz' WHERE size = 0"), "checkpoint", None),
    "a fraction for a size": (loose("checkpoint", CHECKPOINT, "UPDATE checkpoint SET size = 0.5 WHERE size = 0"), "checkpoint", None),
    "bytes for a note": (loose("checkpoint", CHECKPOINT, "UPDATE checkpoint SET note = x'ff'"), "checkpoint", None),
    "no note": (loose("checkpoint", CHECKPOINT, "UPDATE checkpoint SET note = NULL"), "checkpoint", None),
    "text for a tile": (loose("tile", TILE, "UPDATE tile SET hashes = 'text'"), "tile", None),
    "a number for a tile": (loose("tile", TILE, "UPDATE tile SET hashes = 9"), "tile", None),
    "another column": (("ALTER TABLE entry ADD COLUMN note TEXT",), "entry", None),
    "no constraint": (loose("entry", "idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL, body TEXT"), "entry", None),
    "type that only looks like a key": (
        loose("entry", 'idx INTEGER "PRIMARY" KEY, leaf BLOB NOT NULL CHECK (length(leaf) = 32), body TEXT'), "entry", None,
    ),
    "not strict": (
        loose("entry", "idx INTEGER PRIMARY KEY, leaf BLOB NOT NULL CHECK (length(leaf) = 32), body TEXT"), "entry", None,
    ),
    "a view": (
        ("ALTER TABLE entry RENAME TO old", "CREATE VIEW entry AS SELECT * FROM old"), "entry", None,
    ),
    "no keys of an outbox": (("DROP TABLE sequenced",), "sequenced", None),
    "text for whose log": (loose("log", "one, format, origin, vkey", "UPDATE log SET vkey = x'ff'"), "log", None),
    "highest number": ((f"UPDATE entry SET idx = {2**63 - 1} WHERE idx = 3",), None, 3),
}  # fmt: skip


class TestTables:
    """Tables that were made anew, so that they hold what they should not."""

    @pytest.mark.parametrize("attack", REWRITTEN)
    def test_is_named(
        self, long: Path, tmp_path: Path, attack: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The table is named, and the first bad entry; commands find tampering or cannot say, and never break off."""
        statements, table, index = REWRITTEN[attack]
        path, vkey = Path(shutil.copy(long, tmp_path / "copy.db")), vkey_of(long)
        damage(path, *statements)
        verdict = verify(path, vkey)
        said = [problem.what for problem in verdict.problems]
        assert (verdict.ok, verdict.first_bad_index) == (False, index)
        assert [what for what in said if what.startswith("the table")] == (
            [] if table is None else [f"the table {table} is altered"]
        )
        for command in ("verify", "fsck"):
            assert main([command, str(path), "--vkey", vkey]) == 1
            told = capsys.readouterr()
            assert index is None or f"entry {index}" in told.out + told.err
        for command in (
            ["checkpoint"], ["prove", "3"], ["consistency", "1"], ["export"], ["export", "--csv"], ["export", "--fhir"],
            ["export", "--tiles", str(tmp_path / "tiles")], ["hold"], ["prune", "--below", "256"], ["approvers"],
        ):  # fmt: skip
            assert main([command[0], str(path), *command[1:]]) in {0, 1, 2}

    @pytest.mark.parametrize("attack", REWRITTEN)
    def test_open_trail(self, long: Path, tmp_path: Path, attack: str) -> None:
        """A trail that is in use answers with a verdict, or an error of its own, whatever it is asked."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        key_file = long.with_name(f"{long.name}.key")
        trail = open_trail(f"sqlite:///{path}", service="s", key_file=key_file)
        damage(path, *REWRITTEN[attack][0])
        assert not trail.verify().ok
        for ask in (
            trail.health, trail.checkpoint, trail.first_index, trail.read, trail.pruned, trail.accepted_changes,
            lambda: trail.append({"action": "a"}), lambda: trail.read(action="a"), lambda: trail.erased_by([3]),
            lambda: trail.inclusion_proof(3), lambda: trail.consistency_proof(7), lambda: trail.verify_since(merkle.CompactRange()),
            lambda: trail.sequence([(trail.new_key(), trail.encode({"action": "a"}))]),
            lambda: Retention(trail, ()).erase(actor="a", reason="r", entries=(1, 5)), Retention(trail).apply,
        ):  # fmt: skip
            with contextlib.suppress(AuditError):
                ask()
        trail.close()
        with contextlib.suppress(AuditError):
            open_trail(f"sqlite:///{path}", service="s", key_file=key_file).close()

    def test_append_and_health(self, long: Path, tmp_path: Path) -> None:
        """Neither takes a log for good whose last entry has no number."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        trail = open_trail(f"sqlite:///{path}", service="s", key_file=long.with_name(f"{long.name}.key"))
        damage(path, *REWRITTEN["text for a number"][0])
        with pytest.raises(AuditTamperedError, match="no number of one"):
            trail.health()
        with pytest.raises(AuditWriteError, match="does not verify: an entry is filed under"):
            trail.append({"action": "a"})
        trail.close()

    @pytest.mark.parametrize(
        ("attack", "word"),
        [
            (("DELETE FROM log",), "whose log it is is gone"),
            (("DELETE FROM log", "DELETE FROM checkpoint"), "whose log it is is gone"),
            (("DROP TABLE log",), "the table log is gone"),
        ],
    )
    def test_nobodys(
        self,
        long: Path,
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
        attack: tuple[str, ...],
        word: str,
    ) -> None:
        """A log that no longer says whose it is is no empty file: it was tampered with, and none is begun in its place."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        key_file, vkey = long.with_name(f"{long.name}.key"), vkey_of(long)
        with contextlib.closing(open_trail(f"sqlite:///{path}", service="s", key_file=key_file)) as trail:
            damage(path, *attack)
            assert not trail.verify().ok
        for command in ("verify", "fsck", "export", "hold"):
            pinned = [] if command == "hold" else ["--vkey", vkey]
            assert (main([command, str(path), *pinned]), word in capsys.readouterr().err) == (1, True)
        with pytest.raises(AuditTamperedError, match=word):
            open_trail(f"sqlite:///{path}", service="s", key_file=key_file)

    @pytest.mark.parametrize("version", [(3, 36), (3, 37)])
    def test_made_by_another_sqlite(self, tmp_path: Path, version: tuple[int, ...], monkeypatch: Any) -> None:
        """A log verifies wherever it was made: a SQLite before 3.37 has no STRICT."""
        statements = table_statements(version)
        monkeypatch.setattr("healthobs.audit.sqlite.table_statements", lambda *_: statements)
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        monkeypatch.undo()
        trail.append({"action": "a"})
        assert (trail.verify().problems, "STRICT" in statements["entry"]) == ((), version == (3, 37))
        trail.close()

    def test_laid_out_otherwise(self, copy: Path, pristine: tuple[Path, str, tuple[str, ...]]) -> None:
        """Spaces and line breaks are no difference; whatever else there is, is."""
        made = table_statements()["checkpoint"]
        move = (
            "ALTER TABLE checkpoint RENAME TO old",
            "INSERT INTO checkpoint SELECT * FROM old",
            "DROP TABLE old",
        )
        damage(copy, move[0], made.replace(",", "\n ,\n").replace("(", "( "), *move[1:])
        assert verify(copy, pristine[1]).ok
        for text in (made.replace("size", '"size"'), made.replace("NOT NULL", "NOT NULL DEFAULT ''")):
            damage(copy, move[0], text, *move[1:])
            assert [str(one) for one in verify(copy, pristine[1]).problems] == [
                "the table checkpoint is altered"
            ]

    @pytest.mark.parametrize(
        "body",
        [
            "x",
            "7",
            "[]",
            "{}",
            '{"action":"audit.hold"}',
            '{"action":"audit.key","action":[],"subject":null,"details":{}}',
            '{"action":"audit.hold","subject":[],"details":{"hold":"x"}}',
            '{"action":"audit.hold","subject":null,"details":{}}',
            '{"action":"audit.key","subject":null,"details":{"vkey":"ORIGIN+x"}}',
            '{"action":"audit.erase","subject":null,"details":{"ranges":"%s"}}' % ("9" * 5000),
            '{"action":"audit.prune","subject":null,"details":%s' % ("[" * 100_000),
        ],
    )  # fmt: skip
    def test_body_that_is_no_entry(
        self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path, body: str
    ) -> None:
        """A body and its leaf that were rewritten into anything are a verdict, and no entry of an export."""
        body = body.replace("ORIGIN", Verifier(pristine[1]).name)
        leaf = merkle.leaf_hash(body.encode()).hex()
        damage(copy, f"UPDATE entry SET body = '{body}', leaf = x'{leaf}' WHERE idx = 2")
        assert verify(copy, pristine[1]).first_bad_index == 2
        for command in (["export"], ["export", "--csv"], ["export", "--fhir"], ["hold"], ["approvers"]):
            assert main([command[0], str(copy), *command[1:]]) in {0, 1, 2}


class TestGuards:
    """What ordinary statements cannot do."""

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE entry SET body = NULL WHERE idx = 0",
            "DELETE FROM entry WHERE idx = 5",
            "REPLACE INTO entry SELECT idx, leaf, NULL FROM entry WHERE idx = 5",
            "INSERT OR REPLACE INTO entry SELECT idx, leaf, NULL FROM entry WHERE idx = 0",
            "INSERT INTO entry SELECT 7, leaf, body FROM entry WHERE idx = 0",
            "INSERT INTO entry SELECT -1, leaf, body FROM entry WHERE idx = 0",
            "INSERT INTO entry (leaf, body) SELECT leaf, body FROM entry WHERE idx = 0",
            "UPDATE entry SET idx = 6 WHERE idx = 5",
            "UPDATE checkpoint SET note = '' WHERE size = 1",
            "DELETE FROM checkpoint WHERE size = 6",
            "REPLACE INTO checkpoint VALUES (6, '')",
        ],
    )
    def test_refused(self, copy: Path, statement: str) -> None:
        """Ordinary statements cannot change, delete, replace or misnumber what is recorded."""
        connection = sqlite3.connect(copy)
        try:
            before = (
                list(connection.execute("SELECT * FROM entry")),
                list(connection.execute("SELECT * FROM checkpoint")),
            )
            with pytest.raises(sqlite3.IntegrityError, match="audit: "):
                connection.execute(statement)
            connection.commit()
            after = (
                list(connection.execute("SELECT * FROM entry")),
                list(connection.execute("SELECT * FROM checkpoint")),
            )
        finally:
            connection.close()
        assert before == after

    @pytest.mark.parametrize(
        "statement",
        [
            "UPDATE log SET vkey = 'x'",
            "DELETE FROM log",
            "REPLACE INTO log SELECT one, format, origin, 'x' FROM log",
            "UPDATE tile SET hashes = zeroblob(32)",
            "DELETE FROM tile",
            "REPLACE INTO tile VALUES (1, 0, 1, zeroblob(32))",
            "UPDATE sequenced SET idx = 0",
            "DELETE FROM sequenced",
            "REPLACE INTO sequenced VALUES ('key-1', 0)",
        ],
    )
    def test_refused_in_every_table(self, long: Path, tmp_path: Path, statement: str) -> None:
        """The same holds for who the log is, the kept nodes, and the marks of an outbox."""
        tables = ("log", "tile", "sequenced")
        connection = sqlite3.connect(shutil.copy(long, tmp_path / "copy.db"), isolation_level=None)
        try:
            connection.execute("INSERT INTO sequenced VALUES ('key-1', 5)")
            before = [list(connection.execute(f"SELECT * FROM {table}")) for table in tables]
            with pytest.raises(sqlite3.IntegrityError, match="audit: rows are never"):
                connection.execute(statement)
            after = [list(connection.execute(f"SELECT * FROM {table}")) for table in tables]
        finally:
            connection.close()
        assert before == after
        assert all(before)
