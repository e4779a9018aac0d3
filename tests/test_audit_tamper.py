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
from tests.tampered_logs import ENTRIES, LONG, damage, verify, vkey_of

from healthobs.audit import keys, merkle, open_trail, store, verification
from healthobs.audit.checkpoint import NoteError, Signer, Verifier, open_checkpoint
from healthobs.audit.sqlite import GUARDS
from healthobs.exceptions import AuditError, AuditWriteError

FULL = 257 * 256
Damage = Callable[..., None]

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
        vkey = vkey_of(path)
        assert verify(path, vkey).ok
        damage(path, statement)
        assert word in str(verify(path, vkey).problems[0])

    def test_kept_nodes_of_another_width(self, long: Path, tmp_path: Path) -> None:
        """A row that claims a width which its hashes do not have would block the tile, once the log has grown to it."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        loose = ("CREATE TABLE tile (level, n, width, hashes)", "INSERT INTO tile SELECT * FROM old")
        damage(path, "ALTER TABLE tile RENAME TO old", *loose)
        assert not any("kept tile" in problem.what for problem in verify(path, vkey_of(path)).problems)
        for width in ("2", "NULL", "'x'"):
            damage(path, f"INSERT INTO tile SELECT level, n, {width}, hashes FROM tile LIMIT 1")
            assert "kept tile 0 of level 1" in str(verify(path, vkey_of(path)).problems)
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
        verdict = verify(long, vkey_of(long))
        assert (verdict.ok, verdict.size) == (True, LONG)

    def test_damaged_page(self, long: Path, tmp_path: Path) -> None:
        """A file whose pages were overwritten fails with the entry where reading ended."""
        path = Path(shutil.copy(long, tmp_path / "copy.db"))
        vkey = vkey_of(path)
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
