"""Pruning: by order of two approvers only, never what is too young or held, and every proof still holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.audit_trails import in_files
from tests.retention_bench import ALICE, BOB, TOO_FEW, UNSIGNED, YEAR, Bench, signed

from healthobs.audit import (
    governance,
    store,
    tiles,
)
from healthobs.audit.checkpoint import NoteError, Signer, Verifier
from healthobs.audit.command import main
from healthobs.audit.governance import prune_order
from healthobs.audit.records import Checkpoint
from healthobs.audit.sqlite import GUARDS, connect_pragmas
from healthobs.exceptions import AuditError, RetentionError


class TestPrune:
    """C2SP pruning, by order of two."""

    def test_the_rest_verifies(self, bench: Bench) -> None:
        """What is left verifies, proves, grows and verifies again; what went can no longer be proved."""
        bench.add(700)
        bench.appoint()
        kept = bench.trail.checkpoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        order = signed(retention.order(600), ALICE, BOB)
        assert retention.prune(order, actor="a", reason="r", dry_run=True) == 512
        assert bench.verify().first == 0
        assert retention.prune(order, actor="a", reason="r") == 512
        bench.reopen().append({"action": "a.b"})
        verdict = bench.verify(kept.note)
        assert (verdict.ok, verdict.first, verdict.size) == (True, 512, 191)
        latest = bench.trail.checkpoint()
        assert bench.trail.inclusion_proof(512).verify(latest.root)
        assert bench.trail.inclusion_proof(702).verify(latest.root)
        assert bench.trail.consistency_proof(kept.size).verify(kept.root, latest.root)
        with pytest.raises(ValueError, match="no longer there"):
            bench.trail.inclusion_proof(511)
        assert len(bench.trail.read(limit=1000).entries) == 191
        assert bench.trail.first_index() == 512

    @pytest.mark.parametrize(("size", "known"), [(511, True), (512, False), (600, False)])
    def test_earlier_checkpoint_of_another_log(self, bench: Bench, size: int, known: bool) -> None:
        """From its first entry on the log can be held against an earlier checkpoint; one of what went says nothing."""
        bench.add(700)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(512), ALICE, BOB), actor="a", reason="r")
        earlier = Checkpoint(bench.trail.origin, size, b"x" * 32, "")
        with bench.trail.connected() as connection:
            assert store.extends(connection, store.head(connection)[0], earlier) is known

    def test_commands_on_what_went(self, bench: Bench, capsys: pytest.CaptureFixture[str]) -> None:
        """What went by order cannot be proved, which is no sign of tampering; what went without is one."""
        bench.add(700)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(600), ALICE, BOB), actor="a", reason="r")
        path = str(bench.trail.path)

        def status(*arguments: str) -> int:
            return main([arguments[0], path, *arguments[1:]])

        assert [status("prove", index) for index in ("0", "511", "512")] == [2, 2, 0]
        assert [status("consistency", old) for old in ("10", "256", "511", "512", "513")] == [2, 0, 2, 0, 0]
        assert [status("export"), status("export", "--csv"), status("export", "--fhir")] == [0, 0, 0]
        assert "pruned by order" in capsys.readouterr().err
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx < 520")
        assert [status("prove", index) for index in ("0", "512", "520")] == [1, 1, 1]
        assert [status("consistency", "600"), status("export")] == [1, 1]

    @pytest.mark.parametrize(("count", "below"), [(700, 600), (300, 256), (66_300, 65_536), (66_300, 66_100)])
    def test_tiles(
        self, bench: Bench, tmp_path: Path, count: int, below: int, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """An export of a pruned log verifies by itself: the order is one of its entries, and kept tiles stand for the rest."""
        bench.add(count)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(below), ALICE, BOB), actor="a", reason="r")
        to = tmp_path / "tiles"
        assert main(["export", str(bench.trail.path), "--tiles", str(to)]) == 0
        assert not (to / "tile/0/000").exists()
        capsys.readouterr()
        check = ["fsck", str(to), "--vkey", bench.trail.vkey]
        assert main(check) == 0
        assert f"by order: entries before {below // 256 * 256} pruned" in capsys.readouterr().out
        top = max(path for path in (to / "tile").iterdir() if path.name != "entries")
        for path in [path for path in top.rglob("*") if path.is_file()]:
            content = path.read_bytes()
            path.write_bytes(bytes(32) + content[32:])
            assert main(check) == 1
            path.unlink()
            assert main(check) == 1
            path.write_bytes(content)
        assert main(check) == 0
        first = tiles.tile_path(0, below // 256)
        for name in (first, first.replace("tile/0", "tile/entries")):
            for path in [*to.glob(name), *to.glob(f"{name}.p/*")]:
                path.unlink()
        assert main(check) == 1

    def test_tiles_without_their_beginning(
        self, bench: Bench, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """What is missing from an export without an order is missing."""
        bench.add(700)
        to = tmp_path / "tiles"
        assert main(["export", str(bench.trail.path), "--tiles", str(to)]) == 0
        (to / "tile/0/000").unlink()
        (to / "tile/entries/000").unlink()
        assert main(["fsck", str(to), "--vkey", bench.trail.vkey]) == 1
        assert "first bad entry 0" in capsys.readouterr().out

    def test_order_that_is_none_of_two(self, bench: Bench) -> None:
        """An order that lacks its approvers is no order: what it would have taken is missing."""
        bench.add(600)
        details = {"below": 256, "order": prune_order(bench.trail.origin, 256)}
        bench.trail.append_own({"action": governance.PRUNE, "actor": "a", "details": details})
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx < 256")
        assert bench.trail.pruned() == 0
        assert main(["prove", str(bench.trail.path), "3"]) == 1

    @pytest.mark.parametrize(("earlier", "named"), [(0, 1), (1, 2)])
    def test_who_may_approve_is_named_again(self, bench: Bench, earlier: int, named: int) -> None:
        """Where the entry that names the approvers would go, another names them first; the first that stays is enough."""
        bench.add(256 - earlier)
        bench.appoint()
        bench.add(300)
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        actions = [entry["action"] for entry in bench.trail.read(limit=1000).entries]
        assert (actions.count(governance.APPROVERS), bench.verify().ok) == (1, True)
        assert bench.trail.read(limit=1).entries[0]["index"] == 556 - earlier + named

    def test_checkpoint_from_before_says_nothing(self, bench: Bench) -> None:
        """A kept checkpoint of what was pruned can no longer be compared: neither good nor bad."""
        bench.add(10)
        old = bench.trail.checkpoint().note
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        with pytest.raises(NoteError, match="pruned"):
            bench.verify(old)

    @pytest.mark.parametrize("statement", [
        "DELETE FROM entry WHERE idx < 300",
        "DELETE FROM tile WHERE level = 1 AND n = 0",
        "UPDATE tile SET hashes = zeroblob(32 * width) WHERE level = 1 AND n = 0",
    ])  # fmt: skip
    def test_tampering_after_it(self, bench: Bench, statement: str) -> None:
        """Taking more than the order said, or touching the nodes that stand for what went, is noticed."""
        bench.add(600)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        assert bench.verify().ok
        with bench.trail.changing() as connection, connection.amending():
            for guard in ("tile_no_update", "tile_no_delete"):
                connection.execute(f"DROP TRIGGER {guard}")
            connection.execute(statement)
            for guard in ("tile_no_update", "tile_no_delete"):
                connection.execute(GUARDS[guard])
        verdict = bench.verify()
        assert not verdict.ok
        assert verdict.first_bad_index in ({256} if "entry" in statement else {None, 256})

    @pytest.mark.parametrize("signers", TOO_FEW.values(), ids=TOO_FEW)
    def test_entry_without_two_signatures_is_not_obeyed(
        self, bench: Bench, signers: tuple[Signer, ...]
    ) -> None:
        """A pruning on record whose order lacks two approvers takes nothing away, whoever recorded it, and is named."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        order = signed(bench.retention().order(256), *signers)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
        bench.retention().apply()
        assert (bench.verify().first, bench.trail.read().total) == (0, 302)
        said = UNSIGNED if signers else "the pruning names no order for this log and entry"
        assert list(map(str, bench.verify().problems)) == [f"entry 301: {said}"]

    @pytest.mark.parametrize("order", [None, "256", prune_order("example.org/other", 256)])
    def test_entry_without_an_order_is_not_believed(self, bench: Bench, order: str | None) -> None:
        """Entries that went by a pruning on record that names no order for this log are missed."""
        bench.add(300)
        details = {"below": 256} if order is None else {"below": 256, "order": signed(order, ALICE, BOB)}
        bench.trail.append_own({"action": governance.PRUNE, "details": details})
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx < 256")
        assert "entry 300: the pruning names no order for this log and entry" in map(
            str, bench.verify().problems
        )

    @pytest.mark.parametrize("below", [300, 257, 255, 5, True, False, "256", -256])
    def test_entry_goes_no_further_than_its_order(self, bench: Bench, below: object) -> None:
        """An entry that names another first entry than the order in it, by however little, takes nothing away, and is named."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        named = below if isinstance(below, int) else 256
        order = signed(prune_order(bench.trail.origin, named), ALICE, BOB)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": below, "order": order}})
        bench.retention().apply()
        assert bench.trail.first_index() == 0
        assert list(map(str, bench.verify().problems)) == [
            "entry 301: the pruning names no order for this log and entry"
        ]

    @pytest.mark.parametrize("signers", [*TOO_FEW.values(), (ALICE, BOB)])
    def test_entry_that_takes_nothing(self, bench: Bench, signers: tuple[Signer, ...]) -> None:
        """A pruning of no entry that two approvers signed is no fault; it takes nothing away, and excuses nothing that went."""
        bench.add(300)
        bench.appoint()
        order = signed(prune_order(bench.trail.origin, 0), *signers)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 0, "order": order}})
        assert bench.verify().ok is (signers == (ALICE, BOB))
        bench.retention().apply()
        assert (bench.trail.first_index(), bench.trail.pruned()) == (0, 0)
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx < 256")
        assert not bench.verify().ok

    def test_entry_that_takes_nothing_where_nobody_approves(self, bench: Bench) -> None:
        """Such an entry in a log that names no approvers is one that nobody approved."""
        order = signed(prune_order(bench.trail.origin, 0), ALICE, BOB)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 0, "order": order}})
        assert list(map(str, bench.verify().problems)) == [
            "entry 0: the log named no approvers when it was pruned"
        ]

    def test_interrupted(self, bench: Bench) -> None:
        """A pruning that a crash kept from being carried out is carried out by the next."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        order = signed(bench.retention().order(256), ALICE, BOB)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
        assert (bench.verify().ok, bench.verify().first) == (True, 0)
        bench.retention().apply()
        assert (bench.verify().ok, bench.verify().first) == (True, 256)

    def test_tiles_of_an_interrupted_one(self, bench: Bench, tmp_path: Path) -> None:
        """Tiles verify whose log is ordered to go further than it went by now, from where they begin."""
        bench.add(600)
        bench.appoint()
        bench.time.advance(YEAR)
        first, second = (signed(bench.retention().order(below), ALICE, BOB) for below in (256, 512))
        bench.retention().prune(first, actor="a", reason="r")
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 512, "order": second}})
        assert main(["export", str(bench.trail.path), "--tiles", str(tmp_path / "tiles")]) == 0
        verdict = tiles.check(tmp_path / "tiles", Verifier(bench.trail.vkey))
        assert (verdict.ok, verdict.first) == (True, 256)

    @pytest.mark.parametrize("signers", TOO_FEW.values(), ids=TOO_FEW)
    def test_needs_two_approvers(self, bench: Bench, signers: tuple[Signer, ...]) -> None:
        """One approver, the same one twice, or somebody who is none, is not enough."""
        word = "two distinct approvers" if signers else "no signed note"
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        with pytest.raises(RetentionError, match=word):
            retention.prune(signed(retention.order(256), *signers), actor="a", reason="r")
        assert bench.verify().first == 0

    def test_one_key_under_two_names_is_one(self, bench: Bench) -> None:
        """The same key named as two approvers does not approve twice, nor make two of one."""
        key = Ed25519PrivateKey.generate()
        twins = [Signer(f"approver.example/{name}", key) for name in ("a", "b")]
        bench.add(300)
        with pytest.raises(RetentionError, match="fewer than two keys"):
            bench.appoint(*twins)
        bench.appoint(*twins, ALICE)
        bench.time.advance(YEAR)
        retention = bench.retention()
        with pytest.raises(RetentionError, match="two distinct"):
            retention.prune(signed(retention.order(256), *twins), actor="a", reason="r")

    def test_order_with_more_signatures_than_an_entry_holds(self, bench: Bench) -> None:
        """Such an order is refused before anything is recorded: it would be cut, and two of its signatures with it."""
        bench.appoint()
        bench.add(300)
        bench.time.advance(YEAR)
        strangers = [Signer(f"approver.example/{n}", Ed25519PrivateKey.generate()) for n in range(9)]
        order = signed(bench.retention().order(256), *strangers, ALICE, BOB)
        with pytest.raises(RetentionError, match="too long for an entry"):
            bench.retention().prune(order, actor="a", reason="r")
        assert (bench.trail.checkpoint().size, bench.verify().ok) == (301, True)

    def test_row_marked_as_one_that_was_pruned(self, bench: Bench) -> None:
        """Whoever marks a row of an outbox as done under an entry that is gone does not have it dropped."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        key = bench.trail.new_key()
        with bench.trail.changing() as connection, connection.writing():
            store.insert_sequenced(connection, [(key, 7)])
        assert bench.trail.hand_over([(key, bench.trail.encode({"action": "chart.read"}))]) == [None]

    def test_order_is_for_one_log_and_index(self, bench: Bench) -> None:
        """An order for another log, for part of a tile or with an altered index is none."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        for text in (
            prune_order("example.org/other", 256),
            prune_order(bench.trail.origin, 256).replace("256", "257"),
        ):
            with pytest.raises(RetentionError, match="another log, or was altered"):
                retention.prune(signed(text, ALICE, BOB), actor="a", reason="r")
        altered = signed(prune_order(bench.trail.origin, 0), ALICE, BOB).replace("\n0\n", "\n256\n")
        with pytest.raises(RetentionError, match="two distinct"):
            retention.prune(altered, actor="a", reason="r")

    def test_too_young(self, bench: Bench) -> None:
        """Two approvers cannot shorten the minimum period."""
        bench.add(300)
        bench.appoint()
        retention = bench.retention()
        with pytest.raises(RetentionError, match="entry 0 is of class short"):
            retention.prune(signed(retention.order(256), ALICE, BOB), actor="a", reason="r")

    def test_beyond_the_log(self, bench: Bench) -> None:
        """An order names an entry that is kept."""
        bench.add(3)
        with pytest.raises(RetentionError, match="no such entry"):
            bench.retention().order(4)

    @pytest.mark.parametrize("below", [1, 255])
    def test_less_than_a_tile(self, bench: Bench, below: int) -> None:
        """No order is made that would take nothing away: as an entry it would be none that verifies."""
        bench.add(300)
        with pytest.raises(RetentionError, match="whole tiles of 256 entries"):
            bench.retention().order(below)

    @pytest.mark.parametrize("below", [-256, 0, 512])
    def test_signed_order_that_takes_nothing(self, bench: Bench, below: int) -> None:
        """An order for no tile that the log has is refused, and not recorded, whoever signed it."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        order = signed(prune_order(bench.trail.origin, below), ALICE, BOB)
        with pytest.raises(RetentionError, match="no whole tile that the log has"):
            bench.retention().prunable(order)
        with pytest.raises(RetentionError, match="no whole tile that the log has"):
            bench.retention().prune(order, actor="a", reason="r")
        assert (bench.verify().ok, bench.verify().size) == (True, 301)

    def test_somebody_reads_on(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """In WAL mode a pruning under a reader says that what was before is still there; done again after it, nothing is."""
        wal = ("PRAGMA busy_timeout = 50", *connect_pragmas((3, 51, 3))[1:])
        monkeypatch.setattr("healthobs.audit.sqlite.connect_pragmas", lambda **_: wal)
        bench.trail.append({"action": "a.b", "resource_id": "the-needle"})
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        order = signed(retention.order(256), ALICE, BOB)
        with bench.trail.connected() as reader, reader.reading():
            reader.execute("SELECT count(*) FROM entry")
            for _ in range(2):
                with pytest.raises(AuditError, match="reads what was before"):
                    retention.prune(order, actor="a", reason="r")
            assert b"the-needle" in b"".join(in_files(bench.trail.path))
        size = bench.trail.checkpoint().size
        with pytest.raises(RetentionError, match="entries before 256 are gone already"):
            retention.prune(order, actor="a", reason="r")
        assert b"the-needle" not in b"".join(in_files(bench.trail.path))
        assert (bench.trail.checkpoint().size, bench.verify().ok) == (size, True)

    def test_what_is_gone_already(self, bench: Bench) -> None:
        """No order is made, checked or recorded, signed or not, for entries that all went before."""
        bench.add(700)
        bench.appoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        earlier, order = (signed(retention.order(below), ALICE, BOB) for below in (256, 512))
        retention.prune(order, actor="a", reason="r")
        size = bench.trail.checkpoint().size
        for below in (256, 512, 600):
            with pytest.raises(RetentionError, match="entries before 512 are gone already"):
                retention.order(below)
        for again in (earlier, order):
            with pytest.raises(RetentionError, match="entries before 512 are gone already"):
                retention.prunable(again)
            with pytest.raises(RetentionError, match="entries before 512 are gone already"):
                retention.prune(again, actor="a", reason="r")
        assert (bench.trail.checkpoint().size, bench.verify().ok) == (size, True)

    def test_another_process_goes_on(self, bench: Bench) -> None:
        """A process that last looked before the pruning appends and verifies afterwards."""
        bench.add(10)
        other = bench.open()
        other.append({"action": "a.b"})
        bench.add(600)
        bench.appoint()
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(512), ALICE, BOB), actor="a", reason="r")
        other.append({"action": "a.b"})
        assert other.verify().ok
        other.close()
