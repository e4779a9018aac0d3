"""Legal hold of a subject on a trail with a map: whatever name its entries have, they stay."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tests.retention_bench import ALICE, BOB, SHORT, YEAR, Bench, signed

from healthobs.audit import AuditTrail, governance, holds, open_trail
from healthobs.audit.retention import Retention
from healthobs.audit.subjects import SubjectMap
from healthobs.exceptions import AuditError, RetentionError
from healthobs.testing import assert_no_phi

PATIENT = "Quixote-of-Barataria"
READ = {"action": "patient.read", "actor": "client-1", "subject": PATIENT}


class Mapped:
    """A trail that gets its map later on, as a service that switches it on does."""

    def __init__(self, bench: Bench, folder: Path) -> None:
        self.bench, self.file = bench, folder / "subjects.db"

    def switch_on(self) -> SubjectMap:
        """Open the trail with the map."""
        self.bench.trail.close()
        subjects = SubjectMap(self.file)
        self.bench.trail = open_trail(
            self.bench.url, service="s", clock=self.bench.time.clock(), subjects=subjects
        )
        return subjects

    def switch_off(self) -> None:
        """Open the trail without it, as the commands do."""
        self.bench.reopen()

    def hold(self, subject: str, **more: Any) -> int:
        return (
            self.bench.retention()
            .hold("case-17", actor="counsel", reason="litigation", subject=subject, **more)
            .index
        )

    def hold_of_before(self) -> None:
        """Place a hold that has the identifier itself, as there may be some from before the map."""
        self.bench.trail.append_own(
            {"action": governance.HOLD, "subject": PATIENT, "details": {"hold": "case-17"}}
        )

    def erase(self, **what: Any) -> tuple[int, ...]:
        return self.bench.retention().erase(actor="dpo-1", reason="request", **what)

    def subject_of(self, index: int) -> Any:
        (entry,) = self.bench.trail.read(cursor=str(index + 1), limit=1).entries
        return entry["subject"]


@pytest.fixture
def mapped(bench: Bench, tmp_path: Path) -> Mapped:
    return Mapped(bench, tmp_path)


class TestNames:
    """A hold keeps the entries of its subject under each name that they may have."""

    def test_token_that_is_nobodys(self, mapped: Mapped) -> None:
        """A token whose row was erased names its entries as before: it is held, erased and recorded as it is."""
        subjects = mapped.switch_on()
        mapped.bench.trail.append(READ)
        token = mapped.subject_of(0)
        assert subjects.erase(token)
        mapped.bench.time.advance(YEAR)
        held = mapped.hold(token)
        assert (mapped.subject_of(held), subjects.find(token)) == (token, None)
        with pytest.raises(RetentionError, match="entry 0 is under legal hold"):
            mapped.erase(subject=token)
        mapped.bench.retention().release("case-17", actor="counsel", reason="settled")
        assert mapped.erase(subject=token) == (0,)
        order = mapped.bench.trail.read(action=governance.ERASE).entries[0]
        assert (order["subject"], subjects.find(token)) == (token, None)

    @pytest.mark.parametrize("by", ["identifier", "token"])
    @pytest.mark.parametrize("after", ["", "row erased", "map off"])
    def test_entries_from_before_the_map(self, mapped: Mapped, by: str, after: str) -> None:
        """Entries that have the identifier itself are held, for good: also when the map has forgotten it, or is away."""
        mapped.bench.add(2)
        mapped.bench.trail.append(READ)
        subjects = mapped.switch_on()
        mapped.bench.trail.append(READ)
        token = mapped.subject_of(3)
        mapped.hold(PATIENT if by == "identifier" else token)
        (hold,) = mapped.bench.retention().holds()
        assert (hold.subject, hold.ranges) == (token, [(2, 2)])
        if after == "row erased":
            assert subjects.erase(token)
        if after == "map off":
            mapped.switch_off()
        mapped.bench.time.advance(YEAR)
        for index, what in ((2, {"subject": PATIENT}), (2, {"entries": (2, 2)}), (3, {"subject": token})):
            with pytest.raises(RetentionError, match=f"entry {index} is under legal hold"):
                mapped.erase(**what)
        assert mapped.erase(entries=(0, 1)) == (0, 1)

    def test_range_of_its_own_is_held_too(self, mapped: Mapped) -> None:
        """Entries that the hold names are held beside those of the subject, whoever they are about."""
        mapped.bench.trail.append(READ)
        mapped.bench.add(3)
        mapped.switch_on()
        mapped.hold(PATIENT, entries=(2, 9))
        assert mapped.bench.retention().holds()[0].ranges == [(0, 0), (2, 9)]

    def test_hold_from_before_the_map(self, mapped: Mapped) -> None:
        """A hold that has the identifier itself holds the entries to come, which have the token."""
        mapped.hold_of_before()
        mapped.switch_on()
        mapped.bench.trail.append(READ)
        mapped.bench.time.advance(YEAR)
        for what in ({"subject": PATIENT}, {"subject": mapped.subject_of(1)}, {"entries": (1, 1)}):
            with pytest.raises(RetentionError, match="entry 1 is under legal hold"):
                mapped.erase(**what)

    def test_such_a_hold_without_the_map(self, mapped: Mapped) -> None:
        """Where nobody can say whose a token is, every token may be the held one's; what is no token is judged as ever."""
        mapped.bench.add(1)
        mapped.hold_of_before()
        mapped.switch_on()
        mapped.bench.trail.append(READ)
        mapped.switch_off()
        mapped.bench.time.advance(YEAR)
        with pytest.raises(RetentionError, match=r"entry 2 may be under legal hold: .* open .* with its map"):
            mapped.erase(entries=(2, 2))
        assert mapped.erase(entries=(0, 0)) == (0,)

    def test_entry_that_comes_unrenamed_later(self, mapped: Mapped) -> None:
        """An entry that a process without the map records later is held as well."""
        mapped.switch_on()
        mapped.hold(PATIENT)
        mapped.switch_off()
        mapped.bench.trail.append(READ)
        mapped.switch_on()
        mapped.bench.time.advance(YEAR)
        with pytest.raises(RetentionError, match="entry 1 is under legal hold"):
            mapped.erase(subject=PATIENT)

    def test_token_without_entries(self, mapped: Mapped) -> None:
        """A token that the map knows is held before the first entry comes; one that is nobody's, and in no entry, is refused."""
        token = mapped.switch_on().token(PATIENT)
        other = "s-00000000-0000-4000-8000-000000000000"
        with pytest.raises(RetentionError, match="the map of subjects does not know") as refused:
            mapped.hold(other)
        assert other not in str(refused.value)
        assert mapped.hold(token) == 0
        assert mapped.bench.retention().entries_held("case-17") == 0
        mapped.bench.trail.append(READ)
        assert mapped.bench.retention().entries_held("case-17") == 1
        mapped.switch_off()
        assert mapped.bench.retention().entries_held("case-17") == 1

    def test_token_without_the_map(self, mapped: Mapped) -> None:
        """Where nobody can be asked whose a token is, as by the commands, it is held before its first entry comes."""
        token = mapped.switch_on().token(PATIENT)
        mapped.switch_off()
        mapped.hold(token)
        assert mapped.bench.retention().entries_held("case-17") == 0

    def test_identifier_is_nowhere(self, mapped: Mapped, tmp_path: Path) -> None:
        """A hold of somebody without entries gives a token, and the log never has the identifier."""
        subjects = mapped.switch_on()
        held = mapped.hold(PATIENT)
        assert mapped.subject_of(held) == subjects.find(PATIENT) is not None
        assert_no_phi({"identifier": PATIENT}, tmp_path)

    def test_more_than_an_entry_can_name(self, mapped: Mapped) -> None:
        """Where the text of the ranges gets too long, close ones are joined: more is held, never less."""
        mapped.bench.add(1_500)
        mapped.switch_on()
        mapped.hold("s-1")
        (hold,) = mapped.bench.retention().holds()
        assert len(hold.details["ranges"]) <= governance.MAX_RANGES_TEXT
        held = {index for first, last in hold.ranges for index in range(first, last + 1)}
        assert set(range(1, 1_500, 3)) <= held
        assert max(held) < 1_500

    def test_tampered_entry_is_held(self, mapped: Mapped) -> None:
        """An entry that somebody changed keeps nobody from placing a hold, which has it among its own."""
        mapped.bench.trail.append(READ)
        with mapped.bench.trail.changing() as connection, connection.amending():
            connection.execute("UPDATE entry SET body = replace(body, 'client-1', 'client-2')")
        mapped.switch_on()
        mapped.hold(PATIENT)
        assert mapped.bench.retention().holds()[0].ranges == [(0, 0)]


class TestDeed:
    """What is on record already is carried out by the same names."""

    def test_erasure_that_was_interrupted(self, mapped: Mapped) -> None:
        """An order that is carried out after the hold takes nothing of the held subject."""
        mapped.hold_of_before()
        mapped.switch_on()
        mapped.bench.trail.append(READ)
        mapped.bench.trail.append({**READ, "subject": "somebody-else"})
        mapped.bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "1-2"}})
        mapped.bench.retention().apply()
        assert mapped.bench.verify().erased == 1
        assert mapped.subject_of(1) is not None

    def test_hold_just_before(self, mapped: Mapped, monkeypatch: pytest.MonkeyPatch) -> None:
        """A hold that comes after the map was asked, before the writers' lock, is judged by its names too."""
        mapped.bench.trail.append(READ)
        mapped.switch_on()
        mapped.bench.time.advance(YEAR)
        retention = mapped.bench.retention()
        asked, told = holds.held, list[int]()

        def late(trail: AuditTrail, found: Any) -> Any:
            held = asked(trail, found)
            if len(told) < 2:
                told.append(
                    mapped.hold(PATIENT) if told else -1
                )  # the first asks for the check, the second to do it
            return held

        monkeypatch.setattr(holds, "held", late)
        with pytest.raises(RetentionError, match="entry 0 came under legal hold meanwhile"):
            retention.erase(actor="dpo-1", reason="request", subject=PATIENT)
        assert (len(told), mapped.bench.verify().erased) == (2, 0)

    def test_pruning(self, mapped: Mapped) -> None:
        """A pruning is kept by the token of a hold that has the identifier, at the check and at the deed."""
        subjects = mapped.switch_on()
        token = subjects.token(PATIENT)
        mapped.switch_off()
        mapped.bench.add(300, subject=token)
        mapped.bench.appoint()
        mapped.hold_of_before()
        mapped.switch_on()
        mapped.bench.time.advance(YEAR)
        retention = mapped.bench.retention()
        order = signed(retention.order(256), ALICE, BOB)
        with pytest.raises(RetentionError, match="entry 0 is under legal hold"):
            retention.prune(order, actor="a", reason="r")
        mapped.bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
        retention.apply()
        assert mapped.bench.verify().first == 0

    def test_map_that_is_away(self, mapped: Mapped) -> None:
        """While the map cannot be asked nothing goes that a hold may be about."""
        mapped.hold_of_before()
        mapped.switch_on()
        mapped.bench.trail.append(READ)
        mapped.bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "1"}})
        mapped.bench.time.advance(YEAR)
        mapped.file.rename(mapped.file.with_name("away"))
        retention = Retention(mapped.bench.trail, SHORT, clock=mapped.bench.time.clock())
        for attempt in (retention.apply, lambda: retention.erase(actor="a", reason="r", entries=(1, 1))):
            with pytest.raises(AuditError, match="subject map cannot be used"):
                attempt()
        assert mapped.bench.verify().erased == 0
