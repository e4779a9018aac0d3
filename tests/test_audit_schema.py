"""What a log's schema holds beside what was made, or in its place, is counted and named, however it was slipped in."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
from pathlib import Path

import pytest

from healthobs.audit import AuditTrail, Verification, merkle, open_trail, store, verification
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.command import main
from healthobs.audit.entry import canonical
from healthobs.audit.retention import Retention
from healthobs.audit.sqlite import GUARDS, SqliteStore, table_statements
from healthobs.exceptions import AuditTamperedError, AuditWriteError

ENTRIES = 15
#: What SQLite takes for no blank, though Unicode does: each makes PRIMARY KEY the name of a type.
NO_BLANKS = ["\u00a0", "\u2003", "\u3000", "\u0085", "\ufeff"]


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A healthy log, and its vkey."""
    path = tmp_path_factory.mktemp("pristine") / "audit.db"
    trail = open_trail(f"sqlite:///{path}", service="s")
    for number in range(ENTRIES - 1):
        trail.append({"action": "patient.read", "subject": "s-17", "details": {"number": number}})
    Retention(trail).hold("case-17", actor="counsel", reason="litigation", subject="s-17")
    trail.close()
    return path, trail.vkey


@pytest.fixture
def copy(pristine: tuple[Path, str], tmp_path: Path) -> Path:
    """A copy to be damaged, with its key beside it."""
    shutil.copy(pristine[0].with_name("audit.db.key"), tmp_path / "copy.db.key")
    return Path(shutil.copy(pristine[0], tmp_path / "copy.db"))


def damage(path: Path, *statements: str) -> None:
    """Run statements without guards; put the guards back, as a careful attacker would."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        for name in GUARDS:
            connection.execute(f"DROP TRIGGER {name}")
        for statement in statements:
            connection.execute(statement)
        for guard in GUARDS.values():
            connection.execute(guard)


def run(path: Path, *statements: str) -> None:
    """Run statements one after the other, the schema being open to writes, and nothing else."""
    with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        for statement in statements:
            connection.execute(statement)


def rebuilt(**texts: str) -> list[str]:
    """Return what makes every table anew without STRICT, as an older SQLite has them, but for those in `texts`."""
    return [
        statement
        for name, text in {**table_statements((3, 36)), **texts}.items()
        for statement in (
            f"ALTER TABLE {name} RENAME TO old",
            text,
            f"INSERT INTO {name} SELECT * FROM old",
            "DROP TABLE old",
        )
    ]


def verify(path: Path, vkey: str) -> Verification:
    with contextlib.closing(SqliteStore(path).connect(read_only=True)) as connection:
        return verification.verify(connection, Verifier(vkey))


def said(path: Path, vkey: str) -> list[str]:
    return [str(problem) for problem in verify(path, vkey).problems]


class TestText:
    """Tables made anew, with a text that is nearly the one that was."""

    @pytest.mark.parametrize("blank", NO_BLANKS)
    @pytest.mark.parametrize("name", table_statements())
    def test_what_is_no_blank(self, copy: Path, pristine: tuple[Path, str], name: str, blank: str) -> None:
        """What only Unicode holds for a blank is a difference: to SQLite the key is none then."""
        made = table_statements((3, 36))[name].replace("INTEGER NOT NULL", f"INTEGER{blank}NOT NULL")
        damage(copy, *rebuilt(**{name: made.replace("INTEGER PRIMARY KEY", f"INTEGER PRIMARY{blank}KEY")}))
        assert f"the table {name} is altered" in said(copy, pristine[1])

    @pytest.mark.parametrize("blank", [" ", "\t", "\n", "\f", "\r", "\r\n \t"])
    def test_what_is_a_blank(self, copy: Path, pristine: tuple[Path, str], blank: str) -> None:
        """What SQLite itself holds for a blank is no difference."""
        texts = {name: text.replace(" ", blank) for name, text in table_statements((3, 36)).items()}
        damage(copy, *rebuilt(**texts))
        assert said(copy, pristine[1]) == []

    def test_numbered_twice_between_two_reads(
        self, copy: Path, pristine: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A second entry under the last number that is read at once is told, and what it orders is not believed alone."""
        monkeypatch.setattr(store, "AT_ONCE", 5)
        twice = table_statements((3, 36))["entry"].replace("PRIMARY KEY", "PRIMARY\u00a0KEY")
        forged = _forged(copy, 2, action="audit.erase", details={"ranges": "0-3"})
        damage(
            copy,
            *rebuilt(entry=twice),
            f"INSERT INTO entry VALUES (4, x'{merkle.leaf_hash(forged.encode()).hex()}', '{forged}')",
            "UPDATE entry SET body = NULL WHERE idx < 4",
        )
        told = said(copy, pristine[1])
        assert "the table entry is altered" in told
        assert "there are 16 entries up to the last one, but 15 in their order" in told
        for command in ("verify", "fsck"):
            assert main([command, str(copy), "--vkey", pristine[1]]) == 1

    def test_numbered_twice_in_its_page(
        self, copy: Path, pristine: tuple[Path, str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """So is one that was put into the table's page past SQLite, with all of the schema as it was made."""
        monkeypatch.setattr(store, "AT_ONCE", 5)
        body = _forged(copy, 2, action="audit.erase", details={"ranges": "0-3"})
        damage(
            copy,
            "PRAGMA journal_mode = DELETE",
            "PRAGMA page_size = 65536",
            "VACUUM",  # one page holds all entries
            f"INSERT INTO entry VALUES ({ENTRIES}, x'{merkle.leaf_hash(body.encode()).hex()}', '{body}')",
            "UPDATE entry SET body = NULL WHERE idx < 4",
        )
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            ((root,),) = connection.execute("SELECT rootpage FROM sqlite_master WHERE name = 'entry'")
        file = bytearray(copy.read_bytes())
        page = (root - 1) * 65536
        places = [page + 8 + 2 * cell for cell in range(ENTRIES + 1)]
        cells = [bytes(file[place : place + 2]) for place in places]
        forged = page + int.from_bytes(cells[-1])
        assert file[forged + 2] == ENTRIES  # after the length, of two bytes
        file[forged + 2] = 4
        for place, cell in zip(places, (*cells[:5], cells[-1], *cells[5:-1]), strict=True):
            file[place : place + 2] = cell
        copy.write_bytes(file)
        assert said(copy, pristine[1]) == ["there are 16 entries up to the last one, but 15 in their order"]


class TestBody:
    """Tables that need not hold what their columns say, as SQLite before 3.37 makes them."""

    def test_made_by_an_older_sqlite(self, copy: Path, pristine: tuple[Path, str]) -> None:
        """Without STRICT a log is one all the same."""
        damage(copy, *rebuilt())
        assert said(copy, pristine[1]) == []

    def test_hold_in_bytes(
        self, copy: Path, pristine: tuple[Path, str], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A body of the right bytes that is no text is no body: what governs could be hidden so. Nothing is erased past it."""
        damage(
            copy,
            *rebuilt(),
            "UPDATE entry SET body = CAST(body AS BLOB) WHERE body LIKE '%audit.hold%'",
        )
        verdict = verify(copy, pristine[1])
        assert (verdict.ok, verdict.first_bad_index) == (False, ENTRIES - 1)
        for command in ("verify", "fsck"):
            assert main([command, str(copy), "--vkey", pristine[1]]) == 1
            assert f"entry {ENTRIES - 1}" in "".join(capsys.readouterr())
        with contextlib.closing(_opened(copy)) as trail, pytest.raises(AuditTamperedError):
            Retention(trail).erase(actor="a", reason="r", subject="s-17")

    def test_text_that_is_none(self, copy: Path, pristine: tuple[Path, str]) -> None:
        """A body whose text has another encoding's bytes is no body either, whatever its leaf says."""
        leaf = merkle.leaf_hash(b"\xff").hex()
        damage(copy, f"UPDATE entry SET body = CAST(x'ff' AS TEXT), leaf = x'{leaf}' WHERE idx = 2")
        assert "entry 2: the body is not what was recorded" in said(copy, pristine[1])


IGNORES = "CREATE TRIGGER zz BEFORE INSERT ON {} BEGIN SELECT RAISE(IGNORE); END"
STOPS = "CREATE UNIQUE INDEX stop ON entry(length(leaf)) WHERE idx > 14"
NONE_OF_OURS = "what is not the log's is in its database (1): {}"
#: What is done, and what is told.
FOREIGN = {
    "an index that stops the log": ((STOPS,), "index stop"),
    "an index that answers": (("CREATE INDEX f ON entry(idx, body, leaf)",), "index f"),
    "a trigger": ((IGNORES.format("sequenced"),), "trigger zz"),
    "a trigger in another writing": (
        (IGNORES.format("sequenced"), "UPDATE sqlite_master SET type = 'Trigger' WHERE name = 'zz'"), "trigger zz",
    ),
    "a table": (("CREATE TABLE more (x)",), "table more"),
    "a view": (("CREATE VIEW more AS SELECT * FROM entry",), "view more"),
    "a name that is not plain": (('CREATE TABLE "two words\n" (x)',), "table"),
}  # fmt: skip

#: What is filed under what it is not, and what is told where SQLite takes it.
MISFILED = {
    "a trigger as a table": (
        (IGNORES.format("sequenced"), "UPDATE sqlite_master SET type = 'table' WHERE name = 'zz'"),
        NONE_OF_OURS.format("table zz"),
    ),
    "a trigger as nothing": (
        (IGNORES.format("sequenced"), "UPDATE sqlite_master SET type = 'x y' WHERE name = 'zz'"),
        NONE_OF_OURS.format("object zz"),
    ),
    "a trigger as what SQLite makes": (
        (
            IGNORES.format("sequenced"),
            "UPDATE sqlite_master SET type = 'index', name = 'sqlite_autoindex_tile_1' WHERE name = 'zz'",
        ),
        NONE_OF_OURS.format("index sqlite_autoindex_tile_1"),
    ),
    "a trigger as what ANALYZE makes": (
        (
            IGNORES.format("sequenced"),
            "UPDATE sqlite_master SET type = 'table', name = 'sqlite_stat1' WHERE name = 'zz'",
        ),
        NONE_OF_OURS.format("table sqlite_stat1"),
    ),
    "a trigger as a guard, after it": (
        (
            IGNORES.format("entry"),
            "UPDATE sqlite_master SET name = 'entry_no_gap' WHERE name = 'zz'",
        ),
        "the guard entry_no_gap is missing or altered",
    ),
    "a trigger as a guard, before it": (
        (
            IGNORES.format("entry"),
            "UPDATE sqlite_master SET name = 'entry_no_gap' WHERE name = 'zz'",
            "UPDATE sqlite_master SET rowid = rowid + 100 WHERE sql LIKE '%entry_no_gap%'",
        ),
        "the guard entry_no_gap is missing or altered",
    ),
    "a guard under another table": (
        ("UPDATE sqlite_master SET tbl_name = 'log' WHERE name = 'entry_no_gap'",),
        "the guard entry_no_gap is missing or altered",
    ),
    "a table under another": (
        ("UPDATE sqlite_master SET tbl_name = 'log' WHERE name = 'entry'",),
        "the table entry is altered",
    ),
}  # fmt: skip


class TestForeign:
    """What is beside the log's own tables and guards."""

    @pytest.mark.parametrize("made", FOREIGN)
    def test_is_named(
        self, copy: Path, pristine: tuple[Path, str], made: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It is counted and named, by its kind alone where the name is not plain."""
        statements, name = FOREIGN[made]
        run(copy, *statements)
        assert said(copy, pristine[1]) == [NONE_OF_OURS.format(name)]
        for command in ("verify", "fsck"):
            assert main([command, str(copy), "--vkey", pristine[1]]) == 1
            assert NONE_OF_OURS.format(name) in capsys.readouterr().out

    def test_many(self, copy: Path, pristine: tuple[Path, str]) -> None:
        """Many are counted, and a few of them named."""
        run(copy, *(f"CREATE TABLE t{number:02} (x)" for number in range(99)))
        (told,) = said(copy, pristine[1])
        assert told == "what is not the log's is in its database (99): table t00, table t01, table t02, ..."

    @pytest.mark.parametrize("made", MISFILED)
    def test_misfiled(self, copy: Path, pristine: tuple[Path, str], made: str) -> None:
        """What is filed under another kind, name or table than its text has is named; most SQLite read no such file."""
        statements, what = MISFILED[made]
        run(copy, *statements)
        (told,) = said(copy, pristine[1])
        assert told in {what, "entry 0: the store cannot be read from here on (SQLITE_CORRUPT)"}
        for command in ("verify", "fsck"):
            assert main([command, str(copy), "--vkey", pristine[1]]) in {1, 2}

    def test_schema_that_is_indexed(self, copy: Path, pristine: tuple[Path, str]) -> None:
        """An index over the schema itself, which SQLite would read in its place, hides nothing."""
        run(
            copy,
            "CREATE TABLE more (type, name, tbl_name, rootpage, sql)",
            "INSERT INTO more SELECT type, name, tbl_name, rootpage, sql FROM sqlite_master WHERE name <> 'more'",
            "CREATE INDEX hides ON more (type, name, tbl_name, rootpage, sql)",
            STOPS,
            "DELETE FROM sqlite_master WHERE name = 'more'",
            "UPDATE sqlite_master SET tbl_name = 'sqlite_master', sql = replace(sql, 'more', 'sqlite_master')"
            " WHERE name = 'hides'",
        )
        with contextlib.closing(sqlite3.connect(copy)) as connection:
            seen = connection.execute("SELECT name FROM sqlite_master WHERE type = 'index'").fetchall()
        assert ("stop",) not in seen
        assert said(copy, pristine[1]) == [
            "what is not the log's is in its database (2): index hides, index stop"
        ]

    def test_what_is_no_fault(self, copy: Path, pristine: tuple[Path, str]) -> None:
        """What SQLite makes for itself is none, whatever is in it: it orders reads, and changes none."""
        run(copy, "ANALYZE", "UPDATE sqlite_stat1 SET stat = '1 1 1 1'", "VACUUM")
        assert said(copy, pristine[1]) == []

    def test_stale_index(self, copy: Path, pristine: tuple[Path, str]) -> None:
        """An index that was made before entries were rewritten, and answers with what they were, is named."""
        run(
            copy,
            "CREATE INDEX f ON entry(idx, body, leaf)",
            "CREATE TABLE kept AS SELECT * FROM sqlite_master WHERE name = 'f'",
            "ANALYZE",
            "UPDATE sqlite_stat1 SET stat = '2 1 1 1' WHERE idx = 'f'",
            "INSERT INTO sqlite_stat1 VALUES ('entry', NULL, '100000000 sz=100000')",
            "DELETE FROM sqlite_master WHERE name = 'f'",
        )
        damage(copy, "UPDATE entry SET body = replace(body, 'patient', 'payment') WHERE idx = 3")
        run(copy, "INSERT INTO sqlite_master SELECT * FROM kept", "DROP TABLE kept")
        assert NONE_OF_OURS.format("index f") in said(copy, pristine[1])

    def test_row_of_an_outbox_comes_in_once(self, copy: Path) -> None:
        """What a trigger keeps from being marked as recorded is not recorded: it would come in again."""
        with contextlib.closing(_opened(copy)) as trail:
            row = ("key-1", trail.encode({"action": "pay.done"}))
            run(copy, IGNORES.format("sequenced"))
            for _ in range(2):
                with pytest.raises(AuditWriteError, match="did not keep what was written"):
                    trail.sequence([row])
            run(copy, "DROP TRIGGER zz")
            receipts = [trail.sequence([row]) for _ in range(2)]
            assert [one.index for (one,) in receipts if one is not None] == [ENTRIES, ENTRIES]
            assert trail.verify().ok

    def test_mark_that_is_altered(self, copy: Path) -> None:
        """Nor is what a trigger marks as another entry; many rows at once are looked at as one is."""
        with contextlib.closing(_opened(copy)) as trail:
            rows = [(f"key-{number}", trail.encode({"action": "pay.done"})) for number in range(999)]
            run(
                copy,
                "DROP TRIGGER sequenced_no_update",
                "CREATE TRIGGER zz AFTER INSERT ON sequenced WHEN new.id = 'key-998'"
                " BEGIN UPDATE sequenced SET idx = 0 WHERE id = new.id; END",
            )
            with pytest.raises(AuditWriteError, match="did not keep what was written"):
                trail.sequence(rows)
            run(copy, "DROP TRIGGER zz")
            assert len(trail.sequence(rows)) == len(rows)


def _opened(path: Path) -> AuditTrail:
    return open_trail(f"sqlite:///{path}", service="s")


def _forged(path: Path, index: int, **changes: object) -> str:
    """Return the body of an entry with other members."""
    with contextlib.closing(sqlite3.connect(path)) as connection:
        ((body,),) = connection.execute("SELECT body FROM entry WHERE idx = ?", (index,))
    return canonical({**json.loads(body), **changes})
