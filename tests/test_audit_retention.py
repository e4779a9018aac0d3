"""Erasure, periods and legal hold: what goes, what stays provable, and what is refused."""

from __future__ import annotations

from functools import partial
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.audit_trails import in_files
from tests.retention_bench import ALICE, BOB, YEAR, Bench, encode, signed

from healthobs.audit import governance, merkle, store
from healthobs.audit.retention import RecordClass, Retention
from healthobs.audit.sqlite import connect_pragmas
from healthobs.exceptions import AuditError, AuditTamperedError, AuditWriteError, RetentionError


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
        """What was erased is in no page of the database any more nor in a log beside it, and pages show the entry without it."""
        bench.trail.append({"action": "a.b", "resource_id": "the-needle", "subject": "s-9"})
        bench.add(3)
        assert b"the-needle" in b"".join(in_files(bench.trail.path))
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", subject="s-9")
        assert b"the-needle" not in b"".join(in_files(bench.trail.path))
        shown = bench.trail.read(limit=10).entries[-1]
        assert (shown["index"], shown["action"], shown["unreadable"]) == (0, None, True)

    @pytest.mark.parametrize("again", [{"subject": "s-9"}, {"entries": (0, 0)}, None], ids=str)
    def test_somebody_reads_on(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, again: dict[str, Any] | None
    ) -> None:
        """In WAL mode an erasure under a reader says that what was before is still there; done again after it, nothing is."""
        wal = ("PRAGMA busy_timeout = 50", *connect_pragmas((3, 51, 3))[1:])
        monkeypatch.setattr("healthobs.audit.sqlite.connect_pragmas", lambda **_: wal)
        bench.trail.append({"action": "a.b", "resource_id": "the-needle", "subject": "s-9"})
        bench.time.advance(YEAR)
        retention = bench.retention()
        with bench.trail.connected() as reader, reader.reading():
            reader.execute("SELECT count(*) FROM entry")
            with pytest.raises(AuditError, match="reads what was before"):
                retention.erase(actor="dpo-1", reason="request", subject="s-9")
            assert b"the-needle" in b"".join(in_files(bench.trail.path))
            with pytest.raises(AuditError, match="do it again"):
                retention.apply()
        if again is None:
            retention.apply()
        else:
            assert retention.erase(actor="dpo-1", reason="request", **again) == ()
        assert b"the-needle" not in b"".join(in_files(bench.trail.path))
        assert bench.trail.read(action=governance.ERASE).total == 1

    def test_is_an_entry(self, bench: Bench) -> None:
        """Who erased what and why is on record, and appending goes on."""
        bench.add(4)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", entries=(1, 2))
        bench.trail.append({"action": "a.b"})
        entry = bench.trail.read(action=governance.ERASE).entries[0]
        assert (entry["index"], entry["actor"]["id"], entry["reason"]) == (4, "dpo-1", "request")
        assert entry["details"] == {"ranges": "1-2"}

    @pytest.mark.parametrize("name", ["vkey", "previous", "hold", "ranges", "below", "order", "lines"])
    def test_details_are_not_masked(self, bench: Bench, name: str) -> None:
        """What such an entry is for is kept to the letter, also where chance makes it look like a number of a person."""
        value = "078-05-1120"
        draft = {"action": governance.HOLD, "reason": value, "details": {name: value}}
        bench.trail.append_own(draft)
        entry = bench.trail.read().entries[0]
        assert (entry["details"], value in entry["reason"]) == ({name: value}, False)

    def test_without_an_order_it_is_tampering(self, bench: Bench) -> None:
        """A body that went without an order, or beyond its ranges, is named."""
        bench.add(6)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="dpo-1", reason="request", entries=(1, 2))
        with bench.trail.changing() as connection, connection.amending():
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
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx IN (0, 3)")
        assert bench.verify().first_bad_index == 3

    def test_order_that_names_what_governs(self, bench: Bench) -> None:
        """An order that names an entry by which the trail governs itself takes nothing of that, and is named."""
        bench.add(2)
        bench.retention().hold("case-17", actor="counsel", reason="r", entries=(0, 0))
        bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "1-3"}})
        bench.retention().apply()
        assert [order.index for order in bench.retention().holds()] == [2]
        assert [str(problem) for problem in bench.verify().problems] == [
            "entry 2: the entry governs the trail, and an erasure names it"
        ]

    def test_order_that_is_no_entry(self, bench: Bench) -> None:
        """What is longer than an entry can be orders nothing, so that no list without end is gone through."""
        bench.add(3)
        for spaces, found in ((60_000, 1), (66_000, 0)):
            text = (
                encode({"action": governance.ERASE, "details": {"ranges": "1"}}, bench.time).decode()
                + " " * spaces
            )
            with bench.trail.changing() as connection, connection.amending():
                connection.execute("DELETE FROM entry WHERE idx = 3")
                connection.execute(
                    "INSERT INTO entry VALUES (3, ?, ?)", (merkle.leaf_hash(text.encode()), text)
                )
                assert len(governance.orders(connection)) == found
            body = text.encode()
            assert (governance.order_of(3, merkle.leaf_hash(body), body) is not None) == found

    def test_ranges_are_joined(self) -> None:
        """Ranges of one or many orders are ascending and apart, and tell what is in them."""
        found = [
            governance.Order(20, governance.ERASE, None, {"ranges": "9-1,4-5,3,30-40,12-99,6-7"}),
            governance.Order(10, governance.ERASE, None, {"ranges": "5,1,0"}),
            governance.Order(30, governance.HOLD, None, {"ranges": "22-25"}),
        ]
        ranges = governance.erased(found)
        assert ranges == [(0, 1), (3, 7), (12, 19)]
        covered = {index for index in range(-2, 30) if governance.covers(ranges, index)}
        assert covered == {0, 1, *range(3, 8), *range(12, 20)}
        assert not governance.covers([], 0)

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
        bench.retention().hold("h", actor="a", reason="r", entries=(2, 2))
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
        with bench.trail.changing() as connection, connection.amending():
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

    @pytest.mark.parametrize(
        ("action", "name", "days"),
        [
            ("patient.read", "hipaa", 2_192),
            ("payment.charge", "finance", 2_557),
            ("transaction.post", "finance", 2_557),
            ("refund.issue", "finance", 2_557),
        ],
    )
    def test_default_periods(self, bench: Bench, action: str, name: str, days: int) -> None:
        """Everything is kept six years, and seven what is about money; then it may go."""
        bench.add(1, action)
        retention = Retention(bench.trail, clock=bench.time.clock())
        bench.time.advance(days * 86_400 - 1)
        with pytest.raises(RetentionError, match=f"class {name} and must be kept {days} days"):
            retention.erase(actor="a", reason="r", entries=(0, 0))
        bench.time.advance(1)
        assert retention.erase(actor="a", reason="r", entries=(0, 0)) == (0,)

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
        monkeypatch.setattr(store, "AT_ONCE", 2)
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

    @pytest.mark.parametrize(
        "names", [("x" * 1_030 + "a", "x" * 1_030 + "b"), ("x\ud800", "x?"), ("x" * 1_025, "y")]
    )
    def test_name_that_would_be_another(self, bench: Bench, names: tuple[str, str]) -> None:
        """A name that an entry would not keep as it is places nothing, and replaces no other hold; the longest does."""
        bench.add(3)
        retention = bench.retention()
        with pytest.raises(RetentionError, match="at most 1,024 characters") as refused:
            retention.hold(names[0], actor="counsel", reason="litigation", entries=(0, 0))
        assert "xxx" not in str(refused.value)
        assert (retention.holds(), bench.trail.checkpoint().size) == ([], 3)
        for number, name in enumerate(("x" * 1_023 + "é", "x" * 1_023 + "b")):
            retention.hold(name, actor="counsel", reason="litigation", entries=(number, number))
        assert [hold.ranges for hold in retention.holds()] == [[(0, 0)], [(1, 1)]]
        retention.release("x" * 1_023 + "é", actor="counsel", reason="settled")
        assert [hold.ranges for hold in retention.holds()] == [[(1, 1)]]

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

    @pytest.mark.parametrize("entries", [(4, 0), (-1, 4), (-4, -1), (0, 2**63), (10**20, 10**21)])
    def test_what_is_no_range(self, bench: Bench, entries: tuple[int, int]) -> None:
        """A range that would hold nothing is refused, for a hold and for an erasure; nothing is recorded."""
        bench.add(5)
        for attempt in (partial(bench.retention().hold, "h"), bench.retention().erase):
            with pytest.raises(RetentionError, match="the first and the last"):
                attempt(actor="a", reason="r", entries=entries)
        assert bench.trail.checkpoint().size == 5

    @pytest.mark.parametrize("subject", ["Ottoline Haverford", "MRN-7654321", "s-9", "", "\ud800", "x" * 300])
    def test_subject_that_is_none(self, bench: Bench, subject: str) -> None:
        """A subject that no entry has, or none would have as it is, is refused, also the second time, and comes into no entry."""
        bench.add(3)
        bench.trail.append_own({"action": governance.HOLD, "subject": subject, "details": {"hold": "old"}})
        with pytest.raises(RetentionError, match="the subject") as refused:
            bench.retention().hold("h", actor="a", reason="r", subject=subject)
        assert not subject or subject not in str(refused.value)
        assert bench.trail.checkpoint().size == 4

    @pytest.mark.parametrize(
        ("subject", "count"), [("Ottoline Haverford", 2), ("MRN-[PHI:id]", 1), ("case_" + "ab" * 16, 0)]
    )
    def test_subject_as_recorded(self, bench: Bench, subject: str, count: int) -> None:
        """What entries have is held, whatever it is; so is an opaque identifier that is still to come."""
        for name in ("Ottoline Haverford", "MRN-7654321", "Ottoline Haverford", "x Ottoline Haverford"):
            bench.trail.append({"action": "patient.read", "subject": name})
        retention = bench.retention()
        retention.hold("h", actor="a", reason="r", subject=subject)
        assert retention.entries_held("h") == count
        assert retention.holds()[0].subject == subject

    def test_how_many(self, bench: Bench) -> None:
        """Entries are counted once, those about the subject and those named, without the trail's own about it."""
        bench.add(9)
        retention = bench.retention()
        for _ in range(2):
            retention.hold("h", actor="a", reason="r", subject="s-1", entries=(0, 4))
        assert retention.entries_held("h") == len({0, 1, 2, 3, 4, 7})
        retention.hold("to-come", actor="a", reason="r", entries=(900, 999))
        assert retention.entries_held("to-come") == 0
        retention.hold("from-now", actor="a", reason="r", entries=(10, 999))
        assert retention.entries_held("from-now") == 3
        with pytest.raises(RetentionError, match="no hold of that name"):
            retention.entries_held("x")

    def test_of_what_was_pruned(self, bench: Bench) -> None:
        """A range of which nothing is left, and nothing can come, is refused; one that is left in part is held."""
        bench.add(600)
        bench.appoint()
        bench.time.advance(YEAR)
        retention = bench.retention()
        retention.prune(signed(retention.order(256), ALICE, BOB), actor="a", reason="r")
        size = bench.trail.checkpoint().size
        with pytest.raises(RetentionError, match="no longer has"):
            retention.hold("h", actor="a", reason="r", entries=(0, 255))
        assert bench.trail.checkpoint().size == size
        retention.hold("h", actor="a", reason="r", entries=(0, 256))
        assert retention.entries_held("h") == 1

    @pytest.mark.parametrize("name", ["MRN-7654321", "case of 1950-03-05"])
    def test_name_with_an_identifier(self, bench: Bench, name: str) -> None:
        """A name in which redaction finds an identifier is refused; one that is in force from before is released."""
        bench.add(1)
        with pytest.raises(RetentionError, match="the name of a hold") as refused:
            bench.retention().hold(name, actor="a", reason="r", entries=(0, 0))
        assert name not in str(refused.value)
        bench.trail.append_own({"action": governance.HOLD, "details": {"hold": name, "ranges": "0"}})
        bench.retention().release(name, actor="a", reason="r")
        assert bench.retention().holds() == []

    def test_mistakes(self, bench: Bench) -> None:
        """A hold on nothing and the release of an unknown one are refused."""
        with pytest.raises(RetentionError, match="names a subject or entries"):
            bench.retention().hold("h", actor="a", reason="r")
        with pytest.raises(RetentionError, match="no hold of that name"):
            bench.retention().release("h", actor="a", reason="r")


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
