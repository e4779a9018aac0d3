"""The log as static files: C2SP tlog-tiles, what a client needs of them, and what damage to them shows."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from pathlib import Path
from threading import Thread
from typing import Any, cast

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.retention_bench import ALICE, BOB, YEAR, Bench, signed

from healthobs.audit import disposal, governance, keys, merkle, open_trail, store, tiles
from healthobs.audit.checkpoint import Signer, Verifier
from healthobs.audit.command import main
from healthobs.audit.entry import encode
from healthobs.audit.reader import inclusion
from healthobs.audit.retention import Retention
from healthobs.audit.sqlite import SqliteConnection, SqliteStore
from healthobs.audit.store import Row, insert
from healthobs.exceptions import AuditError, AuditTamperedError
from healthobs.redaction import Redactor
from healthobs.testing import SteppingClock

SIZE = 700
MILLION = 1_000_000


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str, Path]:
    """A log of 700 entries and its tiles; its vkey."""
    base = tmp_path_factory.mktemp("exported")
    path, vkey = build(base, SIZE)
    with contextlib.closing(SqliteStore(path).connect(read_only=True)) as connection:
        trail = open_trail(f"sqlite:///{path}", service="s")
        count = tiles.export(connection, trail.checkpoint(), base / "tiles")
        trail.close()
    assert count == 1 + 3 + 3 + 1
    return base / "tiles", vkey, path


def build(base: Path, size: int) -> tuple[Path, str]:
    """Make a log of `size` entries in one batch."""
    trail = open_trail(f"sqlite:///{base}/audit.db", service="s")
    moment = SteppingClock().clock().now()
    tree = merkle.CompactRange()
    rows: list[tuple[int, bytes, str]] = []
    nodes: list[tuple[int, int, bytes]] = []
    for index in range(size):
        body = encode({"action": "a.b"}, service="s", moment=moment, redactor=Redactor())
        leaf = merkle.leaf_hash(body)
        nodes += tree.append(leaf)
        rows.append((index, leaf, body.decode()))
    signer = Signer(trail.origin, keys.load(base / "audit.db.key"))
    with trail.changing() as connection, connection.writing():
        insert(connection, rows, nodes, tree.size, signer.checkpoint(tree.size, tree.root()).note)
    trail.close()
    assert trail.path is not None
    return trail.path, trail.vkey


def from_files(directory: Path, reads: list[str]) -> merkle.Fetch:
    """Return a fetch from files that notes what it reads."""

    def fetch(level: int, number: int, width: int) -> bytes:
        reads.append(tiles.tile_path(level, number, width))
        return (directory / reads[-1]).read_bytes()

    return fetch


def leaf_of(index: int) -> bytes:
    """Return the leaf of an entry that exists only where it is asked for."""
    return index.to_bytes(32)


class Counted:
    """A connection that has a million leaves, and counts the rows of tiles that are read through it."""

    def __init__(self, connection: SqliteConnection) -> None:
        self._connection = connection
        self.tile_rows = 0
        self.leaf_runs = 0

    def execute(self, statement: str, parameters: Sequence[object] = ()) -> list[Row]:
        if "FROM entry" in statement:
            self.leaf_runs += 1
            start, end = cast("tuple[int, int]", parameters)
            return [(index, leaf_of(index)) for index in range(start, end)]
        rows = self._connection.execute(statement, parameters)
        self.tile_rows += len(rows)
        return rows

    def __getattr__(self, name: str) -> Any:
        return getattr(self._connection, name)


class TestPaths:
    """Names of tiles, from the standard's examples."""

    @pytest.mark.parametrize(
        ("arguments", "path"),
        [
            ((0, 0), "tile/0/000"),
            ((0, 1234067), "tile/0/x001/x234/067"),
            ((2, 999), "tile/2/999"),
            ((1, 1000, 17), "tile/1/x001/000.p/17"),
            (("entries", 273, 112), "tile/entries/273.p/112"),
        ],
    )
    def test_path(self, arguments: tuple[int | str, int], path: str) -> None:
        """Three digits a part, x before all but the last, the width of a partial tile behind."""
        assert tiles.tile_path(*arguments) == path

    def test_70_000(self) -> None:
        """The example of the standard: 273 full and one partial of 112, one full and one of 17, one of width 1."""
        size = 70_000
        widths = [(size >> 8 * level) for level in range(merkle.tile_levels(size))]
        assert [divmod(nodes, 256) for nodes in widths] == [(273, 112), (1, 17), (0, 1)]


class TestExport:
    """What `export` writes is what the standard describes."""

    def test_files(self, exported: tuple[Path, str, Path]) -> None:
        """A log of 700 has two full and one partial tile, their bundles, one partial tile above, and a checkpoint."""
        names = sorted(
            str(path.relative_to(exported[0])) for path in exported[0].rglob("*") if path.is_file()
        )
        assert names == [
            "checkpoint",
            "tile/0/000", "tile/0/001", "tile/0/002.p/188",
            "tile/1/000.p/2",
            "tile/entries/000", "tile/entries/001", "tile/entries/002.p/188",
        ]  # fmt: skip
        assert (exported[0] / "tile/0/000").stat().st_size == 8192

    def test_by_hand(self, exported: tuple[Path, str, Path]) -> None:
        """Entries hash to the leaves, full tiles hash to the tile above, all hash to the signed root."""
        bundle, leaves = ((exported[0] / "tile" / kind / "000").read_bytes() for kind in ("entries", "0"))
        first = bundle[2 : 2 + int.from_bytes(bundle[:2])]
        assert merkle.leaf_hash(first) == leaves[:32]
        above = (exported[0] / "tile/1/000.p/2").read_bytes()
        assert merkle.root_of([leaves[place : place + 32] for place in range(0, 8192, 32)]) == above[:32]
        assert "\n700\n" in Verifier(exported[1]).open((exported[0] / "checkpoint").read_text())

    def test_checks(self, exported: tuple[Path, str, Path]) -> None:
        """The files alone verify against the log's key."""
        verdict = tiles.check(exported[0], Verifier(exported[1]))
        assert (verdict.ok, verdict.size, verdict.problems, verdict.checkpoints) == (True, SIZE, (), 1)

    @pytest.mark.parametrize(
        ("name", "change", "index"),
        [
            ("tile/entries/001", lambda content: content.replace(b'"ok"', b'"no"', 1), 256),
            ("tile/entries/002.p/188", lambda content: content[:-1], 699),
            ("tile/entries/000", lambda _content: b"", 0),
            ("tile/0/001", lambda content: bytes(32) + content[32:], 256),
            ("tile/0/002.p/188", lambda content: content[:-32], 699),
            ("tile/1/000.p/2", lambda content: content[32:] + content[:32], None),
        ],
    )
    def test_damage_is_named(
        self,
        exported: tuple[Path, str, Path],
        tmp_path: Path,
        name: str,
        change: Callable[[bytes], bytes],
        index: int | None,
    ) -> None:
        """A changed entry, leaf or node is found, and the first bad entry named."""
        copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
        (copy / name).write_bytes(change((copy / name).read_bytes()))
        verdict = tiles.check(copy, Verifier(exported[1]))
        assert (verdict.ok, verdict.first_bad_index) == (False, index)

    @pytest.mark.parametrize(
        ("name", "whole", "length"),
        [
            ("tile/entries/002.p/{}", "tile/entries/002.p/188", "entry"),
            ("tile/entries/001.p/{}", "tile/entries/001", "entry"),
            ("tile/0/002.p/{}", "tile/0/002.p/188", "hash"),
            ("tile/1/000.p/{}", "tile/1/000.p/2", "hash"),
        ],
    )
    def test_narrower_tiles_are_whole(
        self, exported: tuple[Path, str, Path], tmp_path: Path, name: str, whole: str, length: str
    ) -> None:
        """A narrower tile or bundle has the name that it was exported under, and ends where its last piece does."""
        copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
        content = (copy / whole).read_bytes()
        end = 32 if length == "hash" else 2 + int.from_bytes(content[:2])

        def is_good(width: str, part: bytes) -> bool:
            path = copy / name.format(width)
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(part)
            ok = tiles.check(copy, Verifier(exported[1])).ok
            path.unlink()
            return ok

        assert is_good("1", content[:end])
        bad = [("1", content[: end - 1]), ("1", content[: end + 1]), ("1", content[:1]), ("1", b"")]
        bad += [(width, content[:end]) for width in ("001", "\u0661", "+1", "1 ", "0", "2")]
        assert [pair for pair in bad if is_good(*pair)] == []

    @pytest.mark.parametrize("name", ["tile/entries/x001", "tile/0/000.p", "extra", "tile/entries/000"])
    def test_links_are_no_tiles(self, exported: tuple[Path, str, Path], tmp_path: Path, name: str) -> None:
        """A link to a folder or a file elsewhere is a problem, also in place of a tile that is true by now."""
        copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
        aside = tmp_path / "aside"
        if (copy / name).exists():
            (copy / name).rename(aside)
        else:
            aside.mkdir()
            (aside / "999").write_bytes(b"forged")
        (copy / name).symlink_to(aside)
        verdict = tiles.check(copy, Verifier(exported[1]))
        assert (verdict.ok, len(verdict.problems)) == (False, 1)

    def test_what_cannot_be_looked_at(self, exported: tuple[Path, str, Path], tmp_path: Path) -> None:
        """A folder that cannot be read, or what is no file, is a problem and keeps nobody waiting."""
        copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
        os.mkfifo(copy / "tile/0/002.p/1")
        assert not tiles.check(copy, Verifier(exported[1])).ok
        (copy / "tile/0/002.p/1").unlink()
        (copy / "more").mkdir(mode=0)
        verdict = tiles.check(copy, Verifier(exported[1]))
        assert verdict.ok == (os.geteuid() == 0)

    @pytest.mark.parametrize(
        ("name", "more"),
        [
            ("tile/entries/002.p/188", b"\0\2{}"),
            ("tile/entries/000", b"\0\2{}"),
            ("tile/entries/002.p/188", b"\0"),
            ("tile/entries/002.p/188", b"\0\0"),
            ("tile/0/002.p/188", bytes(32)),
            ("tile/0/000", b"\0"),
            ("tile/1/000.p/2", bytes(32)),
            ("tile/entries/002.p/200", b"\0\2{}"),
            ("tile/entries/002.p/1", b"\0\2{}"),
            ("tile/entries/002", b"\0\2{}"),
            ("tile/entries/003", b"\0\2{}"),
            ("tile/entries/note", b"text"),
            ("tile/entries/002.p/x", b"text"),
            ("tile/0/002.p/1", bytes(32)),
            ("tile/2/000.p/1", bytes(32)),
            ("tile/2/000.p/\u0661", bytes(32)),
            ("tile/0/000.p/0", b""),
            ("tile/0/000.p/256", b""),
            ("entries.jsonl", b"text"),
            ("Tile/0/000", b"text"),
            (".new", b"text"),
        ],
    )
    def test_more_than_was_signed_is_a_problem(
        self, exported: tuple[Path, str, Path], tmp_path: Path, name: str, more: bytes
    ) -> None:
        """Entries, leaves and files beyond the signed size are none that `check` vouches for."""
        copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
        (copy / name).parent.mkdir(parents=True, exist_ok=True)
        with (copy / name).open("ab") as file:
            file.write(more)
        verdict = tiles.check(copy, Verifier(exported[1]), erased=True)
        assert (verdict.ok, verdict.first_bad_index, len(verdict.problems)) == (False, None, 1)

    def test_exported_again_when_it_has_grown(self, tmp_path: Path) -> None:
        """Narrower tiles of an earlier export may stay, without the entries that were erased by order since."""
        path, vkey = build(tmp_path, 300)
        trail = open_trail(f"sqlite:///{path}", service="s")

        def check() -> bool:
            with trail.connected() as connection:
                tiles.export(connection, trail.checkpoint(), tmp_path / "tiles")
            return tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True).ok

        assert check()
        trail.sequence([(trail.new_key(), trail.encode({"action": "a"})) for _ in range(300)])
        assert (check(), (tmp_path / "tiles/tile/entries/001.p/44").exists()) == (True, True)
        narrower = tmp_path / "tiles/tile/entries/001.p/44"
        before = narrower.read_bytes()
        Retention(trail, classes=()).erase(actor="a", reason="r", entries=(298, 298))
        assert check()
        after = narrower.read_bytes()
        assert len(after) == len(before) - len(before) // 44 + 2
        with trail.changing() as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx = 299")
        assert not check(), "nobody ordered that"
        assert narrower.read_bytes() == after, "what may be the last copy stays"
        trail.close()

    def test_exported_again_at_once_after_an_erasure(self, tmp_path: Path) -> None:
        """A bundle that is not full yet keeps no erased entry under its earlier widths; what is none of ours is left for `check`."""
        path, vkey = build(tmp_path, 6)
        trail = open_trail(f"sqlite:///{path}", service="s")
        command = ["export", str(path), "--tiles", str(tmp_path / "tiles")]
        assert main(command) == 0
        whole = (tmp_path / "tiles/tile/entries/000.p/6").read_bytes()
        forged = tmp_path / "tiles/tile/entries/000.p/3"
        forged.write_bytes(whole[: len(whole) // 2] + b"\0")
        Retention(trail, classes=()).erase(actor="a", reason="r", entries=(1, 1))
        assert main(command) == 0
        assert forged.read_bytes() == whole[: len(whole) // 2] + b"\0"
        forged.unlink()
        verdict = tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True)
        assert (verdict.ok, verdict.erased) == (True, 1)
        assert (tmp_path / "tiles/tile/entries/000.p/6").stat().st_size == len(whole) - len(whole) // 6 + 2
        trail.close()

    def test_erased_at_the_end_of_an_earlier_export(self, tmp_path: Path) -> None:
        """The last entry of a narrower bundle goes from it as any other, once it is erased."""
        path, vkey = build(tmp_path, 6)
        trail = open_trail(f"sqlite:///{path}", service="s")
        command = ["export", str(path), "--tiles", str(tmp_path / "tiles")]
        assert main(command) == 0
        narrower = tmp_path / "tiles/tile/entries/000.p/6"
        whole = narrower.read_bytes()
        Retention(trail, classes=()).erase(actor="a", reason="r", entries=(5, 5))
        assert main(command) == 0
        trail.close()
        kept = whole[: 5 * len(whole) // 6]
        assert narrower.read_bytes() == kept + bytes(2)
        assert tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True).ok

    def test_order_that_nobody_signed(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """An erasure that somebody files behind the signed entries has no export begin again: it is named."""
        path, _ = build(tmp_path, 6)
        order = {"action": governance.ERASE, "details": {"ranges": "0-1"}}
        body = encode(order, service="s", moment=SteppingClock().clock().now(), redactor=governance.REDACTOR)
        with contextlib.closing(sqlite3.connect(path)) as raw:
            raw.execute("INSERT INTO entry VALUES (6, ?, ?)", (merkle.leaf_hash(body), body.decode()))
            raw.commit()
        assert main(["export", str(path), "--tiles", str(tmp_path / "tiles")]) == 1
        assert "entry 6: the entries from here on were never signed" in capsys.readouterr().err

    def test_export_that_broke_off(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each file is there as it was before or as it is to be, and the next export finishes."""
        path, vkey = build(tmp_path, 6)
        trail = open_trail(f"sqlite:///{path}", service="s")
        to = tmp_path / "tiles"

        def export() -> None:
            with trail.connected() as connection:
                tiles.export(connection, trail.checkpoint(), to)

        def content() -> dict[str, bytes]:
            return {str(file): file.read_bytes() for file in to.rglob("*") if file.is_file()}

        export()
        before = content()
        Retention(trail, classes=()).erase(actor="a", reason="r", entries=(1, 1))
        replace, left = Path.replace, 0

        def broken(self: Path, target: Path) -> Path:
            nonlocal left
            if not left:
                raise OSError
            left -= 1
            return replace(self, target)

        for calls in range(4):  # tile, bundle, the bundle before, checkpoint
            left = calls
            with monkeypatch.context() as patch:
                patch.setattr(Path, "replace", broken)
                with pytest.raises(OSError):
                    export()
            now = content()
            assert now.keys() >= before.keys()
            assert sum(now[name] != before[name] for name in before) == (calls == 3)
        (to / ".new").write_bytes(b"left behind")
        export()
        assert tiles.check(to, Verifier(vkey), erased=True).ok
        trail.close()

    def test_others_write_meanwhile(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An export keeps nobody from writing, and what was erased since it began is erased in it, too, with its order."""
        path, vkey = build(tmp_path, 300)
        trail = open_trail(f"sqlite:///{path}", service="s")
        trail.append(
            {"action": "a.b"}
        )  # in WAL mode a command on a log that nobody has open sees nothing of what begins meanwhile
        retention, write, written = Retention(trail, classes=()), tiles._write, list[str]()

        def meanwhile(directory: Path, name: str, content: bytes) -> None:
            if len(written) in (2, 4):  # before a tile of which entries go, and behind
                retention.erase(actor="a", reason="r", entries=(298, 298 + len(written) // 4))
            written.append(name)
            write(directory, name, content)

        monkeypatch.setattr(tiles, "_write", meanwhile)
        assert main(["export", str(path), "--tiles", str(tmp_path / "tiles")]) == 0
        trail.close()
        assert capsys.readouterr() == ("6 files written\n", "")
        verdict = tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True)
        assert (verdict.ok, verdict.size, verdict.erased) == (True, 303, 2)

    def test_erased_meanwhile_by_an_earlier_order(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What was ordered before an export begins, and is carried out during it, is erased in it, too."""
        path, vkey = build(tmp_path, 300)
        trail = open_trail(f"sqlite:///{path}", service="s")
        retention, write, written = Retention(trail, classes=()), tiles._write, list[str]()
        retention._record(governance.ERASE, "a", "r", {"ranges": "298-298"}, None)

        def meanwhile(directory: Path, name: str, content: bytes) -> None:
            if len(written) == 4:
                disposal.carry_out(trail)
            written.append(name)
            write(directory, name, content)

        monkeypatch.setattr(tiles, "_write", meanwhile)
        assert main(["export", str(path), "--tiles", str(tmp_path / "tiles")]) == 0
        trail.close()
        assert capsys.readouterr().err == ""
        verdict = tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True)
        assert (verdict.ok, verdict.size, verdict.erased) == (True, 301, 1)

    def test_checked_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who checks a directory that is being written to waits, and finds nothing that is not signed yet."""
        path, vkey = build(tmp_path, 6)
        trail = open_trail(f"sqlite:///{path}", service="s")
        to, write, told = tmp_path / "tiles", tiles._write, list[bool]()
        checking = Thread(target=lambda: told.append(tiles.check(to, Verifier(vkey)).ok))

        def export() -> None:
            with trail.connected() as connection, tiles.alone(to):
                tiles.export(connection, trail.checkpoint(), to)

        def meanwhile(directory: Path, name: str, content: bytes) -> None:
            if name == "checkpoint":
                checking.start()
                checking.join(0.3)
            write(directory, name, content)

        export()
        trail.append({"action": "a.b"})
        monkeypatch.setattr(tiles, "_write", meanwhile)
        export()
        checking.join()
        trail.close()
        assert told == [True]

    def test_exported_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two exports into one directory the one that knows less does not write behind the other."""
        path, vkey = build(tmp_path, 6)
        to, erased = tmp_path / "tiles", store.erased
        other = Thread(target=main, args=(["export", str(path), "--tiles", str(to)],))

        def meanwhile(connection: Any, size: int) -> Any:
            monkeypatch.setattr(store, "erased", erased)
            trail = open_trail(f"sqlite:///{path}", service="s")
            trail.append({"action": "a.b"})
            trail.close()
            other.start()
            other.join(1)
            return erased(connection, size)

        monkeypatch.setattr(store, "erased", meanwhile)
        assert main(["export", str(path), "--tiles", str(to)]) == 0
        other.join()
        verdict = tiles.check(to, Verifier(vkey))
        assert (verdict.ok, verdict.size) == (True, 7)

    @pytest.mark.parametrize("before", range(8))
    def test_pruned_meanwhile(
        self,
        bench: Bench,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
        before: int,
    ) -> None:
        """Where the beginning goes during an export, nothing can be said: neither that all is there, nor that it was tampered with."""
        bench.add(600)
        bench.appoint()
        bench.time.advance(YEAR)
        order = signed(bench.retention().order(512), ALICE, BOB)
        write, written = tiles._write, list[str]()

        def meanwhile(directory: Path, name: str, content: bytes) -> None:
            if len(written) == before:
                bench.retention().prune(order, actor="a", reason="r")
            written.append(name)
            write(directory, name, content)

        monkeypatch.setattr(tiles, "_write", meanwhile)
        assert main(["export", str(bench.trail.path), "--tiles", str(tmp_path / "tiles")]) == 2
        assert "pruned while it was exported" in capsys.readouterr().err
        assert main(["export", str(bench.trail.path), "--tiles", str(tmp_path / "again")]) == 0
        assert tiles.check(tmp_path / "again", Verifier(bench.trail.vkey)).ok

    def test_forged_or_missing_checkpoint(self, exported: tuple[Path, str, Path], tmp_path: Path) -> None:
        """Without a checkpoint of the log's key nothing can be said."""
        copy = Path(shutil.copytree(exported[0], tmp_path / "copy"))
        note = (copy / "checkpoint").read_text()
        (copy / "checkpoint").write_text(note.replace("\n700\n", "\n600\n"))
        with pytest.raises(AuditError, match="NoteError"):
            tiles.check(copy, Verifier(exported[1]))
        (copy / "checkpoint").unlink()
        with pytest.raises(AuditError, match="FileNotFoundError"):
            tiles.check(copy, Verifier(exported[1]))

    def test_missing_entry(self, exported: tuple[Path, str, Path], tmp_path: Path) -> None:
        """A log with a hole is not exported as if it were whole."""
        copy = Path(shutil.copy(exported[2], tmp_path / "copy.db"))
        trail = open_trail(f"sqlite:///{exported[2]}", service="s")
        with contextlib.closing(sqlite3.connect(copy)) as raw:
            raw.execute("DROP TRIGGER entry_no_delete")
            raw.execute("DELETE FROM entry WHERE idx = 300")
            raw.commit()
        with (
            contextlib.closing(SqliteStore(copy).connect(read_only=True)) as connection,
            pytest.raises(AuditTamperedError, match="300"),
        ):
            tiles.export(connection, trail.checkpoint(), tmp_path / "tiles")
        trail.close()

    def test_erased_entries(self, tmp_path: Path) -> None:
        """An erased body is an empty entry: accepted only where that is asked for, and an order among the entries says so."""
        path, vkey = build(tmp_path, 6)
        trail = open_trail(f"sqlite:///{path}", service="s")
        Retention(trail, classes=()).erase(actor="a", reason="r", entries=(1, 2))
        with trail.connected() as connection:
            tiles.export(connection, trail.checkpoint(), tmp_path / "tiles")
        trail.close()
        assert tiles.check(tmp_path / "tiles", Verifier(vkey)).first_bad_index == 1
        verdict = tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True)
        assert (verdict.ok, verdict.erased) == (True, 2)
        bundle = tmp_path / "tiles/tile/entries/000.p/7"
        good = bundle.read_bytes()
        length = 2 + int.from_bytes(good[:2])
        bundle.write_bytes(b"\0\0" + good[length:])
        verdict = tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True)
        assert (verdict.ok, verdict.first_bad_index, len(verdict.problems)) == (False, 0, 1)
        bundle.write_bytes(bytes(14))
        verdict = tiles.check(tmp_path / "tiles", Verifier(vkey), erased=True)
        assert [problem.index for problem in verdict.problems] == list(range(7))


class TestProofs:
    """Proofs from tiles alone."""

    @given(index=st.integers(0, SIZE - 1))
    @settings(max_examples=40, deadline=None)
    def test_same_as_from_the_log(self, exported: tuple[Path, str, Path], index: int) -> None:
        """A path made of exported tiles is the one that the log gives, and leads to the signed root."""
        with contextlib.closing(SqliteStore(exported[2]).connect(read_only=True)) as connection:
            proof = inclusion(connection, index, SIZE, Verifier(exported[1]))
        tree = merkle.TileTree(SIZE, from_files(exported[0], []))
        assert merkle.inclusion_path(index, SIZE, tree.subtree) == proof.path
        assert tree.subtree(index, index + 1) == proof.leaf
        assert proof.verify(tiles.check(exported[0], Verifier(exported[1])).root)

    def test_each_tile_once(self, exported: tuple[Path, str, Path]) -> None:
        """A proof reads its own tile, the one above, and the right edge; none of them twice."""
        reads: list[str] = []
        merkle.inclusion_path(5, SIZE, merkle.TileTree(SIZE, from_files(exported[0], reads)).subtree)
        assert sorted(reads) == ["tile/0/000", "tile/0/002.p/188", "tile/1/000.p/2"]

    def test_reads_in_a_million(self, tmp_path: Path) -> None:
        """A proof in a tree of 1,000,000 entries reads at most four rows of tiles, and two runs of leaves."""
        place = SqliteStore(tmp_path / "audit.db")
        tree, nodes = merkle.CompactRange(), list[tuple[int, int, bytes]]()
        for index in range(MILLION):
            nodes += tree.append(leaf_of(index))
        with place.initialising() as connection:
            insert(connection, [], nodes, MILLION, "")
        with contextlib.closing(place.connect(read_only=True)) as connection:
            root = tree.root()
            for index in (0, 65_535, 500_000, 983_039, 999_935, MILLION - 1):
                counted = Counted(connection)
                path = merkle.inclusion_path(index, MILLION, store.tree(counted, MILLION).subtree)
                assert merkle.verify_inclusion(leaf_of(index), index, MILLION, path, root)
                assert (counted.tile_rows <= 4, counted.leaf_runs <= 2) == (True, True)
            assert counted.tile_rows > 0

    def test_short_tile(self) -> None:
        """A tile with fewer hashes than the size asks for is no tile."""
        with pytest.raises(AuditTamperedError, match="as many hashes"):
            merkle.TileTree(300, lambda _level, _number, _width: b"").subtree(0, 1)

    def test_other_key(self, exported: tuple[Path, str, Path]) -> None:
        """Tiles that another key signed are not this log's."""
        other = Signer(Verifier(exported[1]).name, Ed25519PrivateKey.generate())
        with pytest.raises(AuditError, match="NoteError"):
            tiles.check(exported[0], Verifier(other.vkey))
