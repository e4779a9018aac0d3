"""Erasure, pruning, legal hold, change of key: what goes, what stays provable, and what is refused."""

from __future__ import annotations

import contextlib
from base64 import b64encode
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from healthobs.audit import (
    AuditTrail,
    Verification,
    approval,
    governance,
    keys,
    merkle,
    open_trail,
    store,
    verification,
)
from healthobs.audit import retention as retention_module
from healthobs.audit.checkpoint import COSIGNATURE, NoteError, Signer, Verifier, from_base64, key_id
from healthobs.audit.governance import prune_order
from healthobs.audit.retention import RecordClass, Retention, approve
from healthobs.audit.sqlite import GUARDS, SqliteStore
from healthobs.exceptions import AuditTamperedError, AuditWriteError, ConfigurationError, RetentionError
from healthobs.testing import SteppingClock

YEAR = 366 * 86_400
ALICE = Signer("approver.example/alice", Ed25519PrivateKey.generate())
BOB = Signer("approver.example/bob", Ed25519PrivateKey.generate())
SHORT = (RecordClass("short", 1),)
EVE = Signer("approver.example/eve", Ed25519PrivateKey.generate())
CAROL = Signer("approver.example/carol", Ed25519PrivateKey.generate())
ALICE_KEY = from_base64(ALICE.vkey.split("+", 2)[2])[1:]
#: Alice's key as a witness's.
AS_WITNESS = f"{ALICE.name}+{key_id(ALICE.name, COSIGNATURE, ALICE_KEY).hex()}+{b64encode(COSIGNATURE + ALICE_KEY).decode()}"
#: Who signed, where that is not two approvers.
TOO_FEW = {"nobody": (), "one": (ALICE,), "one twice": (ALICE, ALICE), "a stranger": (ALICE, EVE)}
UNSIGNED = "the pruning lacks the signatures of two approvers that the log names"
CHANGED = "the approvers were changed without two of those before"


class Bench:
    """A trail whose time can be moved, and its retention."""

    def __init__(self, directory: Path) -> None:
        self.time = SteppingClock(datetime(2020, 1, 1, tzinfo=UTC))
        self.url = f"sqlite:///{directory}/audit.db"
        self.key_file = directory / "audit.db.key"
        self.trail = self.open()

    def open(self) -> AuditTrail:
        return open_trail(self.url, service="s", clock=self.time.clock())

    def reopen(self) -> AuditTrail:
        self.trail.close()
        self.trail = self.open()
        return self.trail

    def retention(self, *classes: RecordClass) -> Retention:
        return Retention(self.trail, classes or SHORT, clock=self.time.clock())

    def appoint(self, *approvers: Signer, by: tuple[Signer, ...] = ()) -> int:
        """Name approvers, by order of those before; return the entry that names them."""
        retention = self.retention()
        text = retention.appointment([approver.vkey for approver in approvers or (ALICE, BOB)])
        return retention.appoint(signed(text, *by), actor="dpo-1", reason="r").index

    def add(self, count: int, action: str = "patient.read", **fields: object) -> None:
        """Append entries in one batch, as another process with the key would."""
        with self.trail.connected(read_only=False) as connection, connection.writing():
            size, _ = store.head(connection)
            tree = store.load_range(connection, size)
            rows: list[tuple[int, bytes, str]] = []
            nodes: list[tuple[int, int, bytes]] = []
            for index in range(size, size + count):
                draft = {"action": action, "subject": f"s-{index % 3}", **fields}
                body = encode(draft, self.time)
                nodes += tree.append(merkle.leaf_hash(body))
                rows.append((index, merkle.leaf_hash(body), body.decode()))
            signer = Signer(self.trail.origin, *_keys(self.key_file))
            store.insert(connection, rows, nodes, tree.size, signer.checkpoint(tree.size, tree.root()).note)

    def verify(self, *known: str) -> Verification:
        return self.trail.verify(known=known)


def encode(draft: dict[str, object], time: SteppingClock) -> bytes:
    from healthobs.audit.entry import encode as encode_entry

    return encode_entry(draft, service="s", moment=time.clock().now(), redactor=governance.REDACTOR)


def _keys(path: Path) -> tuple[Ed25519PrivateKey, list[Ed25519PrivateKey]]:
    current, *retiring = keys.load_all(path)
    return current, retiring


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    held = Bench(tmp_path)
    yield held
    held.trail.close()


def signed(text: str, *signers: Signer) -> str:
    for signer in signers:
        text = approve(text, signer)
    return text


def _interrupted(monkeypatch: pytest.MonkeyPatch, bench: Bench, other: Callable[[], object]) -> None:
    """Let somebody else do `other` just before the trail records its next own entry."""
    append_own = bench.trail.append_own

    def late(*arguments: Any) -> object:
        monkeypatch.undo()
        other()
        return append_own(*arguments)

    monkeypatch.setattr(bench.trail, "append_own", late)


class TestErase:
    """Bodies go, leaves and proofs stay."""

    def test_proofs_hold(self, bench: Bench) -> None:
        """After an erasure the log verifies, kept checkpoints still fit, and an old proof still leads to the root."""
        bench.add(6)
        kept = bench.trail.checkpoint()
        before = bench.trail.inclusion_proof(1)
        bench.time.advance(YEAR)
        erased = bench.retention().erase(actor="dpo-1", reason="request", subject="s-1")
        assert erased == (1, 4)
        verdict = bench.verify(kept.note)
        assert (verdict.ok, verdict.erased, verdict.size) == (True, 2, 7)
        assert bench.trail.inclusion_proof(1, 6) == before
        assert before.verify(kept.root)

    def test_body_is_gone_from_the_file(self, bench: Bench) -> None:
        """What was erased is in no page of the database any more, and pages show the entry without it."""
        bench.trail.append({"action": "a.b", "resource_id": "the-needle", "subject": "s-9"})
        bench.add(3)
        assert bench.trail.path is not None
        assert b"the-needle" in bench.trail.path.read_bytes()
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", subject="s-9")
        bench.trail.close()
        assert b"the-needle" not in bench.trail.path.read_bytes()
        shown = bench.trail.read(limit=10).entries[-1]
        assert (shown["index"], shown["action"], shown["unreadable"]) == (0, None, True)

    def test_is_an_entry(self, bench: Bench) -> None:
        """Who erased what and why is on record, and appending goes on."""
        bench.add(4)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", entries=(1, 2))
        bench.trail.append({"action": "a.b"})
        entry = bench.trail.read(action=governance.ERASE).entries[0]
        assert (entry["index"], entry["actor"]["id"], entry["reason"]) == (4, "dpo-1", "request")
        assert entry["details"] == {"ranges": "1-2"}

    def test_without_an_order_it_is_tampering(self, bench: Bench) -> None:
        """A body that went without an order, or beyond its ranges, is named."""
        bench.add(6)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", entries=(1, 2))
        with bench.trail.connected(read_only=False) as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx = 4")
        verdict = bench.verify()
        assert [str(problem) for problem in verdict.problems] == ["entry 4: the body is missing"]

    def test_order_cannot_be_forged_by_a_caller(self, bench: Bench) -> None:
        """An application cannot record an order through `append`."""
        for action in governance.RESERVED:
            with pytest.raises(AuditWriteError, match="only the trail itself"):
                bench.trail.append({"action": action, "details": {"ranges": "0-9"}})

    def test_order_covers_only_what_was_before_it(self, bench: Bench) -> None:
        """A range that reaches beyond its own entry allows nothing there."""
        bench.add(2)
        bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "0-99"}})
        bench.add(2)
        with bench.trail.connected(read_only=False) as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx IN (0, 3)")
        assert bench.verify().first_bad_index == 3

    def test_interrupted(self, bench: Bench) -> None:
        """An order that a crash kept from being carried out is carried out by the next."""
        bench.add(4)
        bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "2"}})
        assert bench.verify().erased == 0
        bench.retention().apply()
        bench.retention().apply()
        verdict = bench.verify()
        assert (verdict.ok, verdict.erased) == (True, 1)

    def test_guards_are_back(self, bench: Bench) -> None:
        """Right after an erasure the database again refuses every change."""
        bench.add(4)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", entries=(0, 0))
        assert bench.trail.accepted_changes() == ()
        assert bench.verify().ok

    def test_nothing_to_do(self, bench: Bench) -> None:
        """Nothing matching is nothing done and nothing recorded; nothing named is refused."""
        bench.add(2)
        bench.time.advance(YEAR)
        assert bench.retention().erase(actor="a", reason="r", subject="nobody") == ()
        assert bench.trail.checkpoint().size == 2
        with pytest.raises(RetentionError, match="names a subject or entries"):
            bench.retention().erase(actor="a", reason="r")

    def test_governing_entries_stay(self, bench: Bench) -> None:
        """The entries that explain what went are themselves never erased."""
        bench.add(2)
        bench.retention().hold("h", actor="a", reason="r", subject="nobody")
        bench.time.advance(YEAR)
        with pytest.raises(RetentionError, match="entry 2 governs the trail"):
            bench.retention().erase(actor="a", reason="r", entries=(0, 9))


class TestTampered:
    """What was tampered with is evidence: it is neither judged by nor taken away."""

    @pytest.mark.parametrize("pruning", [False, True])
    def test_stays(self, bench: Bench, pruning: bool) -> None:
        """A body whose time or subject was changed to make it go is named, and nothing goes."""
        bench.add(300)
        bench.appoint()
        bench.retention().hold("case-1", actor="counsel", reason="litigation", subject="s-1")
        with bench.trail.connected(read_only=False) as connection, connection.amending():
            connection.execute(
                """UPDATE entry SET body = replace(replace(body, 'time":"2020', 'time":"1999'), '"s-1"', '"s-2"')
                WHERE idx < 300"""
            )
        size = bench.trail.checkpoint().size
        with pytest.raises(AuditTamperedError, match="not what was recorded") as caught:
            if pruning:
                bench.retention().prune(
                    signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r"
                )
            else:
                bench.retention().erase(actor="a", reason="r", entries=(1, 2))
        assert caught.value.index == (0 if pruning else 1)
        assert (bench.trail.checkpoint().size, bench.verify().erased) == (size, 0)


class TestPeriods:
    """Minimum periods per class."""

    def test_the_longest_wins(self, bench: Bench) -> None:
        """An entry of several classes is kept for the longest; one day before is refused, one day after allowed."""
        classes = (RecordClass("hipaa", 100), RecordClass("finance", 200, ("payment.*",)))
        bench.add(1, "patient.read")
        bench.add(1, "payment.charge")
        bench.time.advance(101 * 86_400)
        retention = bench.retention(*classes)
        assert retention.erase(actor="a", reason="r", entries=(0, 0)) == (0,)
        with pytest.raises(RetentionError, match="entry 1 is of class finance and must be kept 200 days"):
            retention.erase(actor="a", reason="r", entries=(1, 1))
        bench.time.advance(98 * 86_400)
        with pytest.raises(RetentionError, match="finance"):
            retention.erase(actor="a", reason="r", entries=(1, 1))
        bench.time.advance(2 * 86_400)
        assert retention.erase(actor="a", reason="r", entries=(1, 1)) == (1,)

    def test_default_is_six_years(self, bench: Bench) -> None:
        """Five years are too young for HIPAA; seven are not enough of a payment by the default policy."""
        bench.add(1)
        bench.add(1, "payment.charge")
        retention = Retention(bench.trail, clock=bench.time.clock())
        bench.time.advance(5 * YEAR)
        with pytest.raises(RetentionError, match="hipaa"):
            retention.erase(actor="a", reason="r", entries=(0, 0))
        bench.time.advance(1.5 * YEAR)
        assert retention.erase(actor="a", reason="r", entries=(0, 0)) == (0,)
        with pytest.raises(RetentionError, match="finance"):
            retention.erase(actor="a", reason="r", entries=(1, 1))

    def test_to_the_second(self, bench: Bench) -> None:
        """An entry is kept for the whole period and may go the moment it is over."""
        bench.add(1)
        bench.time.advance(86_399)
        with pytest.raises(RetentionError, match="class short"):
            bench.retention().erase(actor="a", reason="r", entries=(0, 0))
        bench.time.advance(1)
        assert bench.retention().erase(actor="a", reason="r", entries=(0, 0)) == (0,)

    def test_in_pieces(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """A log longer than what is read at once is looked at whole."""
        monkeypatch.setattr(retention_module, "_AT_ONCE", 2)
        bench.add(7)
        bench.time.advance(YEAR)
        assert bench.retention().erase(actor="a", reason="r", entries=(0, 6)) == tuple(range(7))

    def test_all_or_nothing(self, bench: Bench) -> None:
        """One entry that is too young keeps all that were named."""
        bench.add(2)
        bench.time.advance(YEAR)
        bench.add(1)
        with pytest.raises(RetentionError, match="entry 2"):
            bench.retention().erase(actor="a", reason="r", entries=(0, 2))
        assert bench.verify().erased == 0


class TestHold:
    """Legal hold blocks both, until it is released."""

    def test_by_subject(self, bench: Bench) -> None:
        """Entries about a held subject cannot be erased, others can; after the release they can too."""
        bench.add(6)
        bench.time.advance(YEAR)
        retention = bench.retention()
        retention.hold("case-1", actor="counsel", reason="litigation", subject="s-1")
        with pytest.raises(RetentionError, match="entry 1 is under legal hold"):
            retention.erase(actor="a", reason="r", subject="s-1")
        assert retention.erase(actor="a", reason="r", subject="s-2") == (2, 5)
        assert [order.details["hold"] for order in retention.holds()] == ["case-1"]
        retention.release("case-1", actor="counsel", reason="settled")
        assert retention.holds() == []
        assert retention.erase(actor="a", reason="r", subject="s-1") == (1, 4)

    def test_exactly_its_entries(self, bench: Bench) -> None:
        """A held range keeps its first and its last entry, and no other."""
        bench.add(5)
        bench.time.advance(YEAR)
        retention = bench.retention()
        retention.hold("case-1", actor="counsel", reason="litigation", entries=(1, 3))
        for index in (1, 3):
            with pytest.raises(RetentionError, match=f"entry {index} is under legal hold"):
                retention.erase(actor="a", reason="r", entries=(index, index))
        for index in (0, 4):
            assert retention.erase(actor="a", reason="r", entries=(index, index)) == (index,)

    def test_by_range_blocks_pruning(self, bench: Bench) -> None:
        """A held range keeps a prune order from being carried out, signatures or not."""
        bench.add(600)
        bench.appoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        retention.hold("case-1", actor="counsel", reason="litigation", entries=(100, 110))
        order = signed(retention.order(512), ALICE, BOB)
        with pytest.raises(RetentionError, match="entry 100 is under legal hold"):
            retention.prune(order, actor="a", reason="r")

    def test_hold_itself_is_not_pruned(self, bench: Bench) -> None:
        """The entry that placed a hold in force may not go either."""
        bench.retention().hold("case-1", actor="counsel", reason="litigation", entries=(900, 999))
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        with pytest.raises(RetentionError, match="hold in force"):
            bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")

    @pytest.mark.parametrize("by", ["subject", "range"])
    @pytest.mark.parametrize("late", ["before the order", "after the order"])
    def test_placed_meanwhile(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, by: str, late: str
    ) -> None:
        """A hold that comes between the check and the deed keeps what it holds, and the caller hears of it."""
        bench.add(6)
        bench.time.advance(YEAR)
        retention, counsel = bench.retention(), bench.retention()
        record = retention._record

        def interrupted(*arguments: Any) -> object:
            done = record(*arguments) if late == "after the order" else None
            held: dict[str, Any] = {"subject": "s-1"} if by == "subject" else {"entries": (1, 1)}
            counsel.hold("case-1", actor="counsel", reason="litigation", **held)
            return done or record(*arguments)

        monkeypatch.setattr(retention, "_record", interrupted)
        with pytest.raises(RetentionError, match="entry 1 came under legal hold meanwhile"):
            retention.erase(actor="a", reason="r", entries=(0, 2))
        retention.apply()
        assert (bench.verify().ok, bench.verify().erased) == (True, 2)
        assert bench.trail.read(limit=10).entries[-2]["subject"] == "s-1"
        counsel.release("case-1", actor="counsel", reason="settled")
        retention.apply()
        assert (bench.verify().ok, bench.verify().erased) == (True, 3)

    @pytest.mark.parametrize("by", [{"subject": "s-1"}, {"entries": (100, 110)}, {"entries": (900, 999)}])
    def test_placed_while_pruning(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, by: dict[str, Any]
    ) -> None:
        """A hold that comes between the check and the pruning keeps everything that it holds."""
        bench.add(300)
        bench.appoint()
        bench.time.advance(YEAR)
        retention, counsel = bench.retention(), bench.retention()
        record = retention._record

        def interrupted(*arguments: Any) -> object:
            counsel.hold("case-1", actor="counsel", reason="litigation", **by)
            return record(*arguments)

        monkeypatch.setattr(retention, "_record", interrupted)
        order = signed(retention.order(256), ALICE, BOB)
        if by == {"entries": (900, 999)}:
            assert retention.prune(order, actor="a", reason="r") == 256
            return
        with pytest.raises(RetentionError, match="came meanwhile"):
            retention.prune(order, actor="a", reason="r")
        assert (bench.verify().ok, bench.verify().first) == (True, 0)

    @pytest.mark.parametrize("entries", [(4, 0), (-1, 4), (-4, -1)])
    def test_what_is_no_range(self, bench: Bench, entries: tuple[int, int]) -> None:
        """A range that would hold nothing is refused, for a hold and for an erasure; nothing is recorded."""
        bench.add(5)
        for attempt in (partial(bench.retention().hold, "h"), bench.retention().erase):
            with pytest.raises(RetentionError, match="the first and the last"):
                attempt(actor="a", reason="r", entries=entries)
        assert bench.trail.checkpoint().size == 5

    def test_mistakes(self, bench: Bench) -> None:
        """A hold on nothing and the release of an unknown one are refused."""
        with pytest.raises(RetentionError, match="names a subject or entries"):
            bench.retention().hold("h", actor="a", reason="r")
        with pytest.raises(RetentionError, match="no hold of that name"):
            bench.retention().release("h", actor="a", reason="r")


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
        with bench.trail.connected(read_only=False) as connection, connection.amending():
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
        with bench.trail.connected(read_only=False) as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx < 256")
        assert "entry 300: the pruning names no order for this log and entry" in map(
            str, bench.verify().problems
        )

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
        with bench.trail.connected(read_only=False) as connection, connection.writing():
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
        assert bench.retention().order(3) == prune_order(bench.trail.origin, 0)

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


class TestApprovers:
    """Who may approve a pruning is what the log says, and changes only by two of them."""

    def prune(self, bench: Bench, below: int, *signers: Signer) -> int:
        order = signed(bench.retention().order(below), *signers)
        return bench.retention().prune(order, actor="a", reason="r")

    def test_nobody_named(self, bench: Bench) -> None:
        """A log that names nobody is not pruned, whoever signs; and a pruning on record is not believed."""
        bench.add(300)
        bench.time.advance(YEAR)
        with pytest.raises(RetentionError, match="the log names no approvers"):
            self.prune(bench, 256, ALICE, BOB)
        order = signed(bench.retention().order(256), ALICE, BOB)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
        bench.retention().apply()
        said = ["entry 300: the log named no approvers when it was pruned"]
        assert (bench.verify().first, list(map(str, bench.verify().problems))) == (0, said)

    def test_change_needs_two_of_those_before(self, bench: Bench) -> None:
        """With the log's key alone the set is not changed; two of it change it, and it is an entry each time."""
        assert bench.appoint() == 0
        for by in TOO_FEW.values():
            with pytest.raises(RetentionError, match="signatures of two approvers"):
                bench.appoint(EVE, CAROL, by=by)
        assert bench.appoint(BOB, CAROL, by=(ALICE, BOB)) == 1
        assert (bench.retention().approvers().vkeys, bench.verify().ok) == ((BOB.vkey, CAROL.vkey), True)
        actions = [entry["action"] for entry in bench.trail.read().entries]
        assert actions == [governance.APPROVERS, governance.APPROVERS]

    def test_those_before_no_longer_approve(self, bench: Bench) -> None:
        """After a change only the new ones count for a pruning, and verification holds each to its time."""
        bench.appoint()
        bench.add(600)
        bench.time.advance(YEAR)
        assert self.prune(bench, 256, ALICE, BOB) == 256
        bench.appoint(BOB, CAROL, by=(ALICE, BOB))
        with pytest.raises(RetentionError, match="two distinct approvers"):
            self.prune(bench, 512, ALICE, BOB)
        assert bench.verify().ok
        assert self.prune(bench, 512, BOB, CAROL) == 512
        bench.add(300)
        bench.time.advance(YEAR)
        assert self.prune(bench, 768, BOB, CAROL) == 768
        assert (bench.verify().ok, bench.verify().first) == (True, 768)

    def test_change_is_of_one_set(self, bench: Bench) -> None:
        """An order to change the set does not bring it back later, when another one was named since."""
        bench.appoint()
        old = signed(bench.retention().appointment([ALICE.vkey, EVE.vkey]), ALICE, BOB)
        bench.appoint(ALICE, BOB, CAROL, by=(ALICE, BOB))
        with pytest.raises(RetentionError, match="not for this log as it is now"):
            bench.retention().appoint(old, actor="a", reason="r")
        bench.trail.append_own({"action": governance.APPROVERS, "details": {"order": old}})
        assert list(map(str, bench.verify().problems)) == [
            "entry 2: the entry names no approvers for this log after those before"
        ]
        assert bench.retention().approvers().index == 1

    @pytest.mark.parametrize("by", [*TOO_FEW.values(), (EVE, CAROL)])
    def test_change_on_record_without_two(self, bench: Bench, by: tuple[Signer, ...]) -> None:
        """Whoever writes a change into the log with its key alone is named, and so is what they prune by it."""
        bench.add(300)
        bench.appoint()
        text = bench.retention().appointment([EVE.vkey, CAROL.vkey])
        bench.trail.append_own({"action": governance.APPROVERS, "details": {"order": signed(text, *by)}})
        order = signed(bench.retention().order(256), EVE, CAROL)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
        with bench.trail.connected(read_only=False) as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx < 256")
        said = list(map(str, bench.verify().problems))
        assert said[:2] == [f"entry 301: {CHANGED}", f"entry 302: {UNSIGNED}"]
        assert "entry 0: the entry is missing" in said

    def test_pruning_that_takes_the_naming(self, bench: Bench) -> None:
        """A pruning names its approvers again; one that would take them away is not carried out, and is named."""
        bench.appoint()
        bench.add(300)
        bench.time.advance(YEAR)
        order = signed(bench.retention().order(256), ALICE, BOB)
        bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
        bench.retention().apply()
        assert list(map(str, bench.verify().problems)) == [
            "entry 301: the pruning takes the entry that names its approvers"
        ]
        assert bench.verify().first == 0

    def test_pinned(self, bench: Bench) -> None:
        """Who names approvers of their own in a log that named nobody is betrayed by those who should have been."""
        bench.add(300)
        bench.appoint(EVE, CAROL)
        bench.time.advance(YEAR)
        self.prune(bench, 256, EVE, CAROL)
        assert bench.verify().ok, "it is consistent in itself: only pinned approvers tell"
        with bench.trail.connected() as connection:
            verdicts = [
                verification.verify(connection, Verifier(bench.trail.vkey), (), [one.vkey for one in pinned])
                for pinned in ((EVE, CAROL), (ALICE, BOB))
            ]
            with pytest.raises(NoteError):
                verification.verify(connection, Verifier(bench.trail.vkey), (), ["no key"])
        assert [verdict.ok for verdict in verdicts] == [True, False]
        assert [str(problem) for problem in verdicts[1].problems[:2]] == [
            f"entry 300: {CHANGED}",
            f"entry 301: {UNSIGNED}",
        ]

    @pytest.mark.parametrize("vkeys", [
        [], [ALICE.vkey], ["x", "y"], [ALICE.vkey, "y"],
        [ALICE.vkey, f"{ALICE.vkey} "], [ALICE.vkey, f"{ALICE.vkey} ", BOB.vkey], [ALICE.vkey, AS_WITNESS],
    ])  # fmt: skip
    def test_what_names_nobody(self, bench: Bench, vkeys: list[str]) -> None:
        """Fewer than two keys, one in two disguises, or what is none, is no set of approvers."""
        retention = bench.retention()
        with pytest.raises(RetentionError, match="fewer than two keys"):
            retention.appoint(retention.appointment(vkeys), actor="a", reason="r")

    def test_too_many(self, bench: Bench) -> None:
        """More than one entry holds are refused, or their names would be cut."""
        many = [Signer(f"approver.example/{n}", Ed25519PrivateKey.generate()) for n in range(20)]
        with pytest.raises(RetentionError, match="too long"):
            bench.appoint(*many)
        assert bench.appoint(*many[:5]) == 0
        assert bench.appoint(*many[5:10], by=tuple(many[:2])) == 1
        assert bench.verify().ok

    def test_two_at_once(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two appointments that follow the same approvers the second is refused, and the log verifies."""
        retention, other = bench.retention(), bench.retention()
        note = retention.appointment([ALICE.vkey, BOB.vkey])
        _interrupted(monkeypatch, bench, lambda: other.appoint(note, actor="b", reason="r"))
        with pytest.raises(RetentionError, match="named meanwhile"):
            retention.appoint(note, actor="a", reason="r")
        assert (retention.approvers().index, bench.verify().ok) == (0, True)
        assert bench.appoint(BOB, CAROL, by=(ALICE, BOB)) == 1

    def test_two_prunings_at_once(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of two operators who carry out one order the second is told, and the log verifies."""
        bench.appoint()
        bench.add(300)
        bench.time.advance(YEAR)
        _interrupted(monkeypatch, bench, lambda: self.prune(bench, 256, ALICE, BOB))
        with pytest.raises(RetentionError, match="named meanwhile"):
            self.prune(bench, 256, ALICE, BOB)
        assert (bench.verify().first, bench.verify().problems) == (256, ())

    def test_store_that_takes_no_appointment(self, bench: Bench) -> None:
        """Where nobody else was named, the store's own reason is what is heard."""
        bench.trail.close()
        with pytest.raises(AuditWriteError):
            bench.appoint()

    @given(order=st.text(max_size=200) | st.lists(st.text(max_size=9), max_size=6).map("\n".join))
    def test_any_text(self, order: str) -> None:
        """Whatever somebody wrote into such an entry is judged, and names nobody."""
        found = [governance.Order(3, governance.APPROVERS, None, {"order": order})]
        judged = approval.judge(found, "example.org/log")
        assert (judged.approvers.vkeys, set(judged.faults)) == ((), {3})


class TestRotation:
    """A change of key is an entry, and a chain of trust."""

    def rotate(self, bench: Bench) -> None:
        keys.rotate(bench.key_file)
        bench.reopen()

    def test_both_sign_for_a_while(self, bench: Bench) -> None:
        """After a rotation, checkpoints open with the old key and with the new one; the change is an entry."""
        old = bench.trail.vkey
        bench.add(2)
        self.rotate(bench)
        entry = bench.trail.read().entries[0]
        assert (entry["action"], entry["index"]) == (governance.KEY, 2)
        assert entry["details"] == {"vkey": bench.trail.vkey, "previous": old}
        note = bench.trail.checkpoint().note
        assert Verifier(old).open(note) == Verifier(bench.trail.vkey).open(note)
        bench.reopen()
        assert bench.trail.checkpoint().size == 3, "it is recorded once"

    def test_whole_life(self, bench: Bench) -> None:
        """After two rotations and the end of every overlap, each pinned key of the chain verifies the whole log."""
        vkeys = [bench.trail.vkey]
        for _ in range(2):
            bench.add(3)
            self.rotate(bench)
            vkeys.append(bench.trail.vkey)
            bench.add(3)
            assert keys.retire(bench.key_file) >= 1
            bench.reopen().append({"action": "a.b"})
        assert len(set(vkeys)) == 3
        with contextlib.closing(
            SqliteStore(Path(bench.url.removeprefix("sqlite:///"))).connect()
        ) as connection:
            for vkey in vkeys:
                assert verification.verify(connection, Verifier(vkey)).problems == ()
        with pytest.raises(NoteError, match="not signed by the expected key"):
            Verifier(vkeys[0]).open(bench.trail.checkpoint().note)

    def test_key_exchanged_without_overlap(self, bench: Bench) -> None:
        """A key file that holds none of the log's keys is refused."""
        bench.trail.close()
        bench.key_file.unlink()
        keys.load_or_create(bench.key_file)
        with pytest.raises(ConfigurationError, match="does not hold the key"):
            open_trail(bench.url, service="s")

    def test_swapped_key_is_named(self, bench: Bench) -> None:
        """A key that somebody slipped in, with an entry that vouches for it but no known key over it, is named."""
        bench.add(3)
        origin, vkey = bench.trail.origin, bench.trail.vkey
        thief = Signer(origin, Ed25519PrivateKey.generate())
        with bench.trail.connected(read_only=False) as connection, connection.writing():
            size, _ = store.head(connection)
            tree = store.load_range(connection, size)
            draft: dict[str, object] = {
                "action": governance.KEY,
                "details": {"vkey": thief.vkey, "previous": vkey},
            }
            body = encode(draft, bench.time)
            tree.append(merkle.leaf_hash(body))
            row = (size, merkle.leaf_hash(body), body.decode())
            store.insert(connection, [row], [], tree.size, thief.checkpoint(tree.size, tree.root()).note)
        verdict = bench.verify()
        assert [str(problem) for problem in verdict.problems] == [
            "the checkpoint of size 4 is signed by a key that no known key vouches for"
        ]

    def test_open_to_others(self, bench: Bench) -> None:
        """Rotation keeps the file its owner's alone."""
        keys.rotate(bench.key_file)
        assert bench.key_file.stat().st_mode & 0o077 == 0
        assert len(keys.load_all(bench.key_file)) == 2
        assert keys.retire(bench.key_file) == 1
        assert len(keys.load_all(bench.key_file)) == 1

    def test_keys_of_two_logs_are_no_ring(self) -> None:
        """A verifier's keys are of one log."""
        with pytest.raises(NoteError, match="one log"):
            Verifier(ALICE.vkey, BOB.vkey)


@given(st.sets(st.integers(0, 3_000), max_size=1_500))
def test_ranges_round_trip(indices: set[int]) -> None:
    """Ranges name exactly the indices they were made of, and no text is too long for one entry."""
    texts = list(governance.format_ranges(sorted(indices)))
    named = {
        index
        for text in texts
        for first, last in governance.parse_ranges(text)
        for index in range(first, last + 1)
    }
    assert named == indices
    assert all(len(text) <= governance.MAX_RANGES_TEXT for text in texts)
