"""Every way to change a trail behind its back is noticed and named, and what is healthy is not accused."""

from __future__ import annotations

import contextlib
import shutil
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st

from healthobs.audit import Verification, keys, merkle, open_trail, store, verification
from healthobs.audit.checkpoint import NoteError, Signer, Verifier, open_checkpoint
from healthobs.audit.command import main
from healthobs.audit.retention import Retention
from healthobs.audit.sqlite import GUARDS, SqliteStore, table_statements
from healthobs.exceptions import AuditError, AuditTamperedError, AuditWriteError

ENTRIES = 6
LONG = 300
FULL = 257 * 256
Damage = Callable[..., None]


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


#: A kept tile as it is, and more after it.
WIDER = "INSERT INTO tile SELECT level, n, {}, CAST(hashes || {} AS BLOB) FROM tile"

#: What is done, the first bad entry, and a word of what is said.
ATTACKS = {
    "edit a body": ("UPDATE entry SET body = replace(body, '\"ok\"', '\"no\"') WHERE idx = 2", 2, "body is not"),
    "one byte of a body": ("UPDATE entry SET body = body || ' ' WHERE idx = 0", 0, "body is not"),
    "erase a body": ("UPDATE entry SET body = NULL WHERE idx = 5", 5, "body is missing"),
    "edit a leaf": ("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 3", 3, "body is not"),
    "delete the first": ("DELETE FROM entry WHERE idx = 0", 0, "is missing"),
    "delete in the middle": ("DELETE FROM entry WHERE idx = 3", 3, "is missing"),
    "delete several": ("DELETE FROM entry WHERE idx IN (1, 2, 4)", 1, "is missing"),
    "truncate": ("DELETE FROM entry WHERE idx >= 4", 4, "missing from here on; 5 were signed"),
    "empty": ("DELETE FROM entry", 0, "missing from here on"),
    "renumber one": ("UPDATE entry SET idx = 9 WHERE idx = 2", 2, "is missing"),
    "renumber below": ("UPDATE entry SET idx = -3 WHERE idx = 2", -3, "out of order"),
    "append without signing": (
        "INSERT INTO entry SELECT 6, leaf, body FROM entry WHERE idx = 0", 6, "never signed",
    ),
    "replace": ("REPLACE INTO entry SELECT 1, leaf, body FROM entry WHERE idx = 4", 1, "entries 1 to 1 are not"),
    "swap all": (
        """UPDATE entry SET leaf = (SELECT leaf FROM entry AS other WHERE other.idx = 5 - entry.idx),
        body = (SELECT body FROM entry AS other WHERE other.idx = 5 - entry.idx)""", 0, "entries 0 to 0 are not",
    ),
}  # fmt: skip


class TestVerify:
    """The verdict on healthy and on tampered trails."""

    def test_healthy(self, pristine: tuple[Path, str, tuple[str, ...]]) -> None:
        """A trail that nobody touched verifies, with every checkpoint that ever was."""
        path, vkey, notes = pristine
        verdict = verify(path, vkey, *notes)
        latest = open_checkpoint(notes[-1], Verifier(vkey))
        assert (verdict.ok, verdict.problems, verdict.first_bad_index) == (True, (), None)
        assert (verdict.size, verdict.root, verdict.checkpoints) == (ENTRIES, latest.root, 2 * (ENTRIES + 1))

    @pytest.mark.parametrize("attack", ATTACKS)
    def test_attack_is_named(
        self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path, attack: str
    ) -> None:
        """Each change of the entries is found, and its first bad entry named."""
        statement, index, word = ATTACKS[attack]
        damage(copy, statement)
        verdict = verify(copy, pristine[1])
        assert not verdict.ok
        assert verdict.first_bad_index == index
        assert word in " ".join(map(str, verdict.problems))

    def test_consistent_rewrite(self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path) -> None:
        """An entry rewritten with its leaf is betrayed by the checkpoint that signed it."""
        body = '{"v":1}'
        leaf = merkle.leaf_hash(body.encode()).hex()
        damage(copy, f"UPDATE entry SET body = '{body}', leaf = x'{leaf}' WHERE idx = 2")
        verdict = verify(copy, pristine[1])
        assert (verdict.ok, verdict.first_bad_index) == (False, 2)
        assert [str(problem) for problem in verdict.problems] == [
            "entry 2: entries 2 to 2 are not those that were signed at size 3"
        ]

    @given(first=st.integers(0, ENTRIES - 1), second=st.integers(0, ENTRIES - 1))
    @settings(max_examples=30, deadline=None)
    def test_any_swap(
        self,
        pristine: tuple[Path, str, tuple[str, ...]],
        tmp_path_factory: pytest.TempPathFactory,
        first: int,
        second: int,
    ) -> None:
        """Two entries that changed places are noticed at the earlier one; unchanged ones are not accused."""
        path = Path(shutil.copy(pristine[0], tmp_path_factory.mktemp("swap") / "audit.db"))
        damage(
            path,
            f"UPDATE entry SET idx = 99 WHERE idx = {first}",
            f"UPDATE entry SET idx = {first} WHERE idx = {second} AND {first} <> {second}",
            f"UPDATE entry SET idx = {second} WHERE idx = 99",
        )
        verdict = verify(path, pristine[1])
        assert verdict.ok is (first == second)
        assert verdict.first_bad_index == (None if first == second else min(first, second))

    @pytest.mark.parametrize("guard", GUARDS)
    def test_missing_guard(self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path, guard: str) -> None:
        """A guard that was dropped, or replaced by one that does nothing, is named."""
        table = guard.partition("_")[0]
        damage(copy, keep_guards=True)
        assert verify(copy, pristine[1]).ok
        for replacement in (
            "SELECT 1",
            f"CREATE TRIGGER {guard} BEFORE UPDATE ON {table} BEGIN SELECT 1; END",
        ):
            connection = sqlite3.connect(copy)
            connection.execute(f"DROP TRIGGER IF EXISTS {guard}")
            connection.execute(replacement)
            connection.commit()
            connection.close()
            verdict = verify(copy, pristine[1])
            assert [str(problem) for problem in verdict.problems] == [
                f"the guard {guard} is missing or altered"
            ]

    @pytest.mark.parametrize("tables", [("entry",), ("checkpoint",), ("entry", "tile", "checkpoint")])
    def test_trigger_that_drops_what_is_written(self, tmp_path: Path, tables: tuple[str, ...]) -> None:
        """Nothing is acknowledged that a trigger of somebody else kept from the table, and the trigger is reported."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.append({"action": "a.b"})
        connection = sqlite3.connect(tmp_path / "audit.db")
        for table in tables:
            connection.execute(
                f"CREATE TRIGGER e_{table} BEFORE INSERT ON {table} BEGIN SELECT RAISE(IGNORE); END"
            )
        connection.commit()
        with pytest.raises(AuditWriteError, match="did not keep what was written"):
            trail.append({"action": "a.b"})
        named = ", ".join(f"trigger e_{table}" for table in sorted(tables))
        assert [str(problem) for problem in trail.verify().problems] == [
            f"what is not the log's is in its database ({len(tables)}): {named}"
        ]
        for table in tables:
            connection.execute(f"DROP TRIGGER e_{table}")
        connection.commit()
        connection.close()
        assert (trail.append({"action": "a.b"}).index, trail.verify().ok) == (1, True)
        trail.close()

    @pytest.mark.parametrize("on", ["entry", "checkpoint"])
    @pytest.mark.parametrize(
        "column", ["body = replace(body, 'a.b', 'c.d')", "body = NULL", "leaf = zeroblob(32)"]
    )
    def test_trigger_that_alters_what_is_written(self, tmp_path: Path, on: str, column: str) -> None:
        """Nothing is acknowledged, nor kept, that a trigger of somebody else altered on its way."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.append({"action": "a.b"})
        trigger = (
            f"CREATE TRIGGER e AFTER INSERT ON {on} BEGIN "
            f"UPDATE entry SET {column} WHERE idx = (SELECT max(idx) FROM entry); END"
        )
        with contextlib.closing(sqlite3.connect(tmp_path / "audit.db", isolation_level=None)) as connection:
            connection.execute("DROP TRIGGER entry_no_update")
            connection.execute(trigger)
            with pytest.raises(AuditWriteError, match="did not keep what was written"):
                trail.append({"action": "a.b"})
            assert trail.checkpoint().size == 1
            assert len(trail.verify().problems) == 2
            connection.execute("DROP TRIGGER e")
            connection.execute(GUARDS["entry_no_update"])
        assert (trail.append({"action": "a.b"}).index, trail.verify().ok) == (1, True)
        trail.close()

    def test_forged_checkpoint(self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path) -> None:
        """A checkpoint whose text was changed no longer verifies."""
        damage(
            copy,
            "UPDATE checkpoint SET note = replace(note, char(10) || '4', char(10) || '5') WHERE size = 4",
        )
        verdict = verify(copy, pristine[1])
        assert (verdict.ok, verdict.first_bad_index) == (False, None)
        assert "checkpoint of size 4 does not verify" in str(verdict.problems[0])

    @pytest.mark.parametrize(
        ("statement", "word"),
        [
            ("UPDATE checkpoint SET note = '' WHERE size = 4", "does not verify"),
            ("UPDATE checkpoint SET note = CAST(x'ff' AS TEXT) WHERE size = 4", "no text"),
            ("UPDATE checkpoint SET size = 9 WHERE size = 4", "filed under size 9 is of another size"),
            ("DELETE FROM checkpoint", "no checkpoint at all"),
            ("DELETE FROM checkpoint WHERE size = 6", "never signed"),
            ("UPDATE log SET vkey = 'x'", "not the expected key"),
            ("DROP TABLE tile", "cannot be read from here on"),
            ("INSERT INTO tile VALUES (1, 7, 1, zeroblob(32))", "kept tiles that belong to no entries"),
        ],
    )
    def test_other_damage(
        self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path, statement: str, word: str
    ) -> None:
        """What is not an entry is checked too."""
        damage(copy, statement)
        verdict = verify(copy, pristine[1])
        assert not verdict.ok
        assert word in " ".join(map(str, verdict.problems))

    def test_earlier_checkpoints_deleted(
        self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path
    ) -> None:
        """An earlier checkpoint is not missed, but the entries under it are held by the latest, and by a kept copy of it."""
        path, vkey, notes = pristine
        damage(copy, f"DELETE FROM checkpoint WHERE size < {ENTRIES}")
        assert (verify(copy, vkey, *notes).problems, verify(copy, vkey).checkpoints) == ((), 1)
        damage(copy, "UPDATE entry SET body = replace(body, '\"ok\"', '\"no\"') WHERE idx = 0")
        assert verify(copy, vkey).first_bad_index == 0
        assert verify(path, vkey).checkpoints == ENTRIES + 1

    def test_swapped_key(self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path) -> None:
        """A log that was rewritten and signed with another key fails against the key that is known."""
        name = Verifier(pristine[1]).name
        impostor = Signer(name, Ed25519PrivateKey.generate())
        note = impostor.checkpoint(0, merkle.EMPTY_ROOT).note
        damage(
            copy,
            "DELETE FROM entry",
            "DELETE FROM checkpoint",
            f"INSERT INTO checkpoint VALUES (0, '{note}')",
            f"UPDATE log SET vkey = '{impostor.vkey}'",
        )
        assert verify(copy, impostor.vkey).ok, "it is consistent in itself: only the pinned key tells"
        verdict = verify(copy, pristine[1])
        assert [str(problem) for problem in verdict.problems] == [
            "the checkpoint of size 0 does not verify: the note is not signed by the expected key",
            "the key written in the file is not the expected key",
        ]

    def test_old_file_restored(self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path) -> None:
        """An earlier state, whole and signed, is betrayed by a later checkpoint that was kept elsewhere."""
        _, vkey, notes = pristine
        damage(copy, "DELETE FROM entry WHERE idx >= 4", "DELETE FROM checkpoint WHERE size > 4")
        assert verify(copy, vkey).ok, "in itself it is a healthy log of four entries"
        assert verify(copy, vkey, *notes[:5]).ok
        verdict = verify(copy, vkey, notes[6])
        assert (verdict.ok, verdict.first_bad_index) == (False, 4)
        assert "6 were signed" in str(verdict.problems[0])

    def test_second_history(self, pristine: tuple[Path, str, tuple[str, ...]], tmp_path: Path) -> None:
        """A log rewritten by whoever has the key is betrayed by a checkpoint that was kept elsewhere."""
        path, _, _ = pristine
        url, key = f"sqlite:///{tmp_path}/audit.db", path.with_name("audit.db.key")
        histories = []
        for action in ("a.true", "a.false"):
            trail = open_trail(url, service="s", key_file=key, origin="example.org/log")
            trail.append({"action": action})
            trail.append({"action": action})
            histories.append(trail.checkpoint().note)
            trail.close()
            for name in ("audit.db", "audit.db.lock"):
                (tmp_path / name).rename(tmp_path / f"{action}-{name}")
            key.with_name("audit.db.key.logs").unlink()
        second = tmp_path / "a.false-audit.db"
        assert verify(second, trail.vkey, histories[1]).ok
        verdict = verify(second, trail.vkey, histories[0])
        assert (verdict.ok, verdict.first_bad_index) == (False, 0)

    @pytest.mark.parametrize("order", list(permutations(range(4))))
    def test_order_of_kept_checkpoints(
        self, pristine: tuple[Path, str, tuple[str, ...]], tmp_path: Path, order: tuple[int, ...]
    ) -> None:
        """A kept checkpoint of an earlier history betrays a longer rewritten log in whichever order notes are given."""
        path, vkey, notes = pristine
        trail = open_trail(
            f"sqlite:///{tmp_path}/audit.db",
            service="s",
            key_file=path.with_name("audit.db.key"),
            origin=Verifier(vkey).name,
        )
        later: list[str] = []
        for _ in range(5):
            trail.append({"action": "a.false"})
            later.append(trail.checkpoint().note)
        trail.close()
        given = (notes[2], later[0], later[3], later[4])
        verdict = verify(tmp_path / "audit.db", vkey, *(given[place] for place in order))
        assert (verdict.ok, verdict.first_bad_index) == (False, 1)
        good = [given[place] for place in order if place]
        assert verify(tmp_path / "audit.db", vkey, *good).ok
        assert verify(path, vkey, *(notes[place] for place in order)).ok

    def test_kept_checkpoint_must_be_this_logs(self, pristine: tuple[Path, str, tuple[str, ...]]) -> None:
        """A kept checkpoint that does not verify itself says nothing about the log."""
        path, vkey, notes = pristine
        with pytest.raises(NoteError):
            verify(path, vkey, notes[1].replace("\n1\n", "\n2\n"))

    def test_problems_are_bounded(self, tmp_path: Path) -> None:
        """A ruined file does not flood the report."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: trail.append({"action": "a"}), range(80)))
        trail.close()
        damage(trail.path, "UPDATE entry SET body = 'x'")
        verdict = trail.verify()
        assert (len(verdict.problems), verdict.first_bad_index) == (verification.MAX_PROBLEMS, 0)

    @pytest.mark.parametrize(
        ("statement", "word"),
        [
            ("UPDATE tile SET hashes = zeroblob(32)", "kept tile 0 of level 1"),
            ("DELETE FROM tile", "kept tile 0 of level 1"),
            (WIDER.format("width + 1", "zeroblob(32)"), "kept tile 0 of level 1"),
            (WIDER.format("width + 255", "zeroblob(255 * 32)"), "kept tile 0 of level 1"),
        ],
    )
    def test_kept_nodes_are_checked(self, long: Path, tmp_path: Path, statement: str, word: str) -> None:
        """A wrong node would make wrong proofs, so it is a problem though the entries are right."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        vkey = _vkey(path)
        assert verify(path, vkey).ok
        damage(path, statement)
        assert word in str(verify(path, vkey).problems[0])

    def test_kept_nodes_of_another_width(self, long: Path, tmp_path: Path) -> None:
        """A row that claims a width which its hashes do not have would block the tile, once the log has grown to it."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        loose = ("CREATE TABLE tile (level, n, width, hashes)", "INSERT INTO tile SELECT * FROM old")
        damage(path, "ALTER TABLE tile RENAME TO old", *loose)
        assert not any("kept tile" in problem.what for problem in verify(path, _vkey(path)).problems)
        for width in ("2", "NULL", "'x'"):
            damage(path, f"INSERT INTO tile SELECT level, n, {width}, hashes FROM tile LIMIT 1")
            assert "kept tile 0 of level 1" in str(verify(path, _vkey(path)).problems)
            damage(path, "DELETE FROM tile WHERE rowid > 1")

    def test_tile_that_grows_meanwhile(
        self, long: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A tile that a writer widened after verification began is wider than what was walked, and no problem."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        shutil.copy(long.with_name(f"{long.name}.key"), tmp_path / "key")
        trail = open_trail(f"sqlite:///{path}", service="s", key_file=tmp_path / "key")
        walk = verification._Run._walk

        def slow(run: Any, *args: Any) -> None:
            trail.sequence([(trail.new_key(), trail.encode({"action": "a"})) for _ in range(2 * LONG)])
            walk(run, *args)

        monkeypatch.setattr(verification._Run, "_walk", slow)
        verdict = verify(path, trail.vkey)
        assert (verdict.problems, verdict.size) == ((), LONG)
        monkeypatch.undo()
        assert trail.verify().size == 3 * LONG
        trail.close()

    def test_full_tile_is_checked(self, tmp_path: Path) -> None:
        """A tile of nodes that is full, as 65,536 entries make it, is held against them like one that still grows."""
        path = tmp_path / "audit.db"
        trail = open_trail(f"sqlite:///{path}", service="s")
        body = trail.encode({"action": "a.b"})
        leaf, tree, nodes = merkle.leaf_hash(body), merkle.CompactRange(), list[tuple[int, int, bytes]]()
        for _ in range(FULL):
            nodes += tree.append(leaf)
        signer = Signer(trail.origin, keys.load(tmp_path / "audit.db.key"))
        with trail.changing() as connection, connection.writing():
            rows = ((index, leaf, body.decode()) for index in range(FULL))
            store.insert(connection, rows, nodes, FULL, signer.checkpoint(FULL, tree.root()).note)
        trail.close()
        assert verify(path, trail.vkey).problems == ()
        damage(path, "UPDATE tile SET hashes = zeroblob(8192) WHERE level = 1 AND n = 0")
        problems = [str(problem) for problem in verify(path, trail.vkey).problems]
        assert problems == ["the kept tile 0 of level 1 is not that of the entries"]

    def test_in_pieces(self, long: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log longer than what is read at once verifies as one."""
        monkeypatch.setattr(store, "AT_ONCE", 7)
        verdict = verify(long, _vkey(long))
        assert (verdict.ok, verdict.size) == (True, LONG)

    def test_damaged_page(self, long: Path, tmp_path: Path) -> None:
        """A file whose pages were overwritten fails with the entry where reading ended."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        vkey = _vkey(path)
        page = int.from_bytes(path.read_bytes()[16:18])
        with path.open("r+b") as file:
            file.seek(page * (path.stat().st_size // page // 2))
            file.write(b"\xff" * page * 3)
        verdict = verify(path, vkey)
        assert not verdict.ok

    def test_loose_schema(self, pristine: tuple[Path, str, tuple[str, ...]], copy: Path) -> None:
        """Tables rebuilt without types hold values of any kind; they are problems, not crashes."""
        damage(
            copy,
            "ALTER TABLE entry RENAME TO old",
            "CREATE TABLE entry (idx INTEGER PRIMARY KEY, leaf, body)",
            "INSERT INTO entry SELECT * FROM old",
            "UPDATE entry SET leaf = 'text' WHERE idx = 1",
            "UPDATE entry SET body = 7 WHERE idx = 2",
            "ALTER TABLE checkpoint RENAME TO old_checkpoint",
            "CREATE TABLE checkpoint (size INTEGER PRIMARY KEY, note)",
            "INSERT INTO checkpoint VALUES (6, NULL)",
        )
        verdict = verify(copy, pristine[1])
        said = " ".join(map(str, verdict.problems))
        assert verdict.first_bad_index == 1
        assert "entry 1: the leaf is no hash" in said
        assert "entry 2: the body is not what was recorded" in said
        assert "checkpoint of size 6 does not verify: it is no text" in said

    def test_no_trail(self, tmp_path: Path) -> None:
        """A trail that is gone cannot be verified."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        trail.path.unlink()
        with pytest.raises(AuditError, match="cannot be used"):
            trail.verify()

    def test_while_entries_come(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log in use verifies as of the moment the verification began."""
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
        for _ in range(3):
            trail.append({"action": "a"})
        monkeypatch.setattr(store, "AT_ONCE", 1)
        original = verification._Run._entry

        def entry_and_more(run: verification._Run, index: int, leaf: object, body: object) -> None:
            trail.append({"action": "a"})
            original(run, index, leaf, body)

        monkeypatch.setattr(verification._Run, "_entry", entry_and_more)
        verdict = trail.verify()
        trail.close()
        assert (verdict.ok, verdict.size) == (True, 3)


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
        path, vkey = Path(shutil.copy(long, tmp_path / "copy.db")), _vkey(long)
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
        key_file, vkey = long.with_name(f"{long.name}.key"), _vkey(long)
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


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trail of 300 entries, so that there is a kept node."""
    path = tmp_path_factory.mktemp("long") / "audit.db"
    trail = open_trail(f"sqlite:///{path}", service="s")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: trail.append({"action": "a"}), range(LONG)))
    trail.close()
    return path


def _vkey(path: Path) -> str:
    connection = SqliteStore(path).connect(read_only=True)
    try:
        log = store.read_log(connection)
    finally:
        connection.close()
    assert log is not None
    return log[1]
