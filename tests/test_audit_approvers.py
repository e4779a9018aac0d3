"""The rule of two: whom the log names to approve prunings, and who may change them."""

from __future__ import annotations

from base64 import b64encode
from collections.abc import Callable
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st
from tests.retention_bench import ALICE, BOB, EVE, TOO_FEW, UNSIGNED, YEAR, Bench, signed

from healthobs.audit import (
    approval,
    governance,
    verification,
)
from healthobs.audit.checkpoint import COSIGNATURE, NoteError, Signer, Verifier, from_base64, key_id
from healthobs.exceptions import AuditWriteError, RetentionError

CAROL = Signer("approver.example/carol", Ed25519PrivateKey.generate())


ALICE_KEY = from_base64(ALICE.vkey.split("+", 2)[2])[1:]


#: Alice's key as a witness's.
AS_WITNESS = f"{ALICE.name}+{key_id(ALICE.name, COSIGNATURE, ALICE_KEY).hex()}+{b64encode(COSIGNATURE + ALICE_KEY).decode()}"


CHANGED = "the approvers were changed without two of those before"


def _interrupted(monkeypatch: pytest.MonkeyPatch, bench: Bench, other: Callable[[], object]) -> None:
    """Let somebody else do `other` just before the trail records its next own entry."""
    append_own = bench.trail.append_own

    def late(*arguments: Any) -> object:
        monkeypatch.undo()
        other()
        return append_own(*arguments)

    monkeypatch.setattr(bench.trail, "append_own", late)


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
        with bench.trail.changing() as connection, connection.amending():
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

    @pytest.mark.parametrize("below", [256, 512])
    def test_pruning_while_others_are_named(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, below: int
    ) -> None:
        """A pruning whose approvers are replaced just before it is recorded is refused: on record it would never verify."""
        bench.add(300)
        bench.appoint()
        bench.add(300)
        bench.time.advance(YEAR)
        order = signed(bench.retention().order(below), ALICE, BOB)
        _interrupted(monkeypatch, bench, lambda: bench.appoint(ALICE, EVE, by=(ALICE, BOB)))
        with pytest.raises(RetentionError, match="named meanwhile"):
            bench.retention().prune(order, actor="a", reason="r")
        assert (bench.verify().problems, bench.trail.first_index()) == ((), 0)
        bench.retention().prune(signed(order.partition("\n\n")[0] + "\n", EVE, ALICE), actor="a", reason="r")
        assert (bench.verify().problems, bench.trail.first_index()) == ((), below)

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
