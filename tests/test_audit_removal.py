"""What is gone from a log: by which order, of what age, under which hold, and what without any."""

from __future__ import annotations

import pytest
from tests.retention_bench import ALICE, BOB, YEAR, Bench, signed

from healthobs.audit import governance, removal
from healthobs.audit.removal import Kept, Removals

DAYS = YEAR / 86_400


def took(bench: Bench, *statements: str) -> None:
    """Take bodies and entries away, as somebody who can write the file does."""
    with bench.trail.changing() as connection, connection.amending():
        for statement in statements:
            connection.execute(statement)


def rounded(kept: Kept) -> list[tuple[int, int, int | None, int | None, bool]]:
    """Return what went, with ages in whole days."""
    return [
        (each.first, each.last, *(age and round(age) for age in (each.least_days, each.most_days)), each.held)
        for each in kept.removals
    ]


class TestErased:
    """Bodies that are gone."""

    def test_nothing_went(self, bench: Bench) -> None:
        """Of an empty log, and of one that is whole, nothing is gone."""
        removals = Removals()
        assert removals.look(bench.trail) == (0, None, (), 0)
        bench.add(5)
        kept = removals.look(bench.trail)
        assert (kept.size, kept.removals, kept.missing) == (5, (), 0)
        assert kept.since is not None
        assert kept.since.year == 2020

    def test_ages_are_between_those_of_the_neighbours(self, bench: Bench) -> None:
        """What went is no older than what is before it and no younger than what is behind it; of the first nothing bounds it."""
        bench.add(1)
        bench.time.advance(YEAR)
        bench.add(1)
        bench.time.advance(YEAR)
        bench.add(1)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="a", reason="r", entries=(1, 1))
        bench.retention().erase(actor="a", reason="r", entries=(0, 0))
        assert rounded(Removals().look(bench.trail)) == [
            (1, 1, DAYS, None, False),
            (0, 0, DAYS, None, False),
        ]

    def test_found_when_it_came(self, bench: Bench) -> None:
        """What was looked at when it went keeps the bounds that it had then."""
        removals = Removals()
        seen = []
        for first in (1, 0):
            if first:
                bench.add(1)
                bench.time.advance(YEAR)
                bench.add(2)
                bench.time.advance(YEAR)
            bench.retention().erase(actor="a", reason="r", entries=(first, first))
            seen.append(rounded(removals.look(bench.trail)))
        assert seen == [
            [(1, 1, DAYS, 2 * DAYS, False)],
            [(1, 1, DAYS, 2 * DAYS, False), (0, 0, DAYS, None, False)],
        ]

    def test_order_that_was_not_carried_out(self, bench: Bench) -> None:
        """Nothing is gone before it is, and once it is, it is found."""
        bench.add(3)
        bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "1"}})
        removals = Removals()
        seen = [len(removals.look(bench.trail).removals)]
        bench.time.advance(YEAR)
        bench.retention().apply()
        seen += [len(removals.look(bench.trail).removals), removals.look(bench.trail).missing]
        assert seen == [0, 1, 0]

    @pytest.mark.parametrize(
        ("held", "shows"),
        [
            ({"subject": "s-1"}, True),
            ({"entries": (0, 1)}, True),
            ({"entries": (5, 5)}, False),
            ({"subject": "s-2"}, False),
        ],
    )
    def test_under_a_hold(self, bench: Bench, held: dict[str, object], shows: bool) -> None:
        """What a hold keeps that was placed before the order, by entries or by subject, went wrongly."""
        bench.add(6)
        bench.retention().hold("case", actor="a", reason="r", **held)  # type: ignore[arg-type]
        bench.trail.append_own({"action": governance.ERASE, "subject": "s-1", "details": {"ranges": "1,4"}})
        took(bench, "UPDATE entry SET body = NULL WHERE idx IN (1, 4)")
        kept = Removals().look(bench.trail)
        assert (any(each.held for each in kept.removals), kept.missing) == (shows, 0)

    def test_hold_itself(self, bench: Bench) -> None:
        """Whoever looked before knows a hold that was erased, and what it keeps."""
        bench.add(3)
        bench.retention().hold("case", actor="a", reason="r", entries=(0, 0))
        removals = Removals()
        removals.look(bench.trail)
        for ranges in ("3", "0"):
            bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": ranges}})
            took(bench, f"UPDATE entry SET body = NULL WHERE idx = {ranges}")
            assert removals.look(bench.trail).removals[-1].held

    def test_hold_that_came_after(self, bench: Bench) -> None:
        """A hold that came after the order, or was released, makes nothing wrong."""
        bench.add(6)
        retention = bench.retention()
        retention.hold("old", actor="a", reason="r", entries=(1, 1))
        retention.release("old", actor="a", reason="r")
        bench.time.advance(YEAR)
        retention.erase(actor="a", reason="r", entries=(1, 1))
        retention.hold("new", actor="a", reason="r", entries=(0, 5))
        assert [each.held for each in Removals().look(bench.trail).removals] == [False]

    @pytest.mark.parametrize(
        ("statement", "missing"),
        [
            ("UPDATE entry SET body = NULL WHERE idx IN (3, 4)", 2),
            ("DELETE FROM entry WHERE idx = 3", 1),
            ("DELETE FROM entry WHERE idx < 3", 3),
        ],
    )
    def test_without_an_order(self, bench: Bench, statement: str, missing: int) -> None:
        """What went without an order is counted; what went by one is not."""
        bench.add(6)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="a", reason="r", entries=(5, 5))
        took(bench, statement)
        assert Removals().look(bench.trail).missing == missing

    def test_drawn_from_all_of_it(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """The run that is drawn can be anywhere, and is read no further than it goes."""
        monkeypatch.setattr(removal, "_DRAWN", 2)
        bench.add(8)
        took(bench, "UPDATE entry SET body = NULL WHERE idx = 3")
        removals = Removals()
        assert {removals.look(bench.trail).missing for _ in range(200)} == {0, 1}

    def test_tampered_neighbours_say_nothing(self, bench: Bench) -> None:
        """A body that is not what its leaf says bounds no age."""
        bench.add(3)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="a", reason="r", entries=(1, 1))
        took(bench, "UPDATE entry SET body = replace(body, '2020', '2010') WHERE idx IN (0, 2)")
        ((_, _, least, most, _),) = rounded(Removals().look(bench.trail))
        assert (least, most) == (0, None)

    def test_another_log(self, bench: Bench) -> None:
        """A log that was put back is looked at anew."""
        bench.add(3)
        removals = Removals()
        removals.look(bench.trail)
        took(bench, "DELETE FROM entry WHERE idx = 2", "DELETE FROM checkpoint WHERE size = 3")
        assert removals.look(bench.trail).size == 2
        assert removals._next == 2


class TestPruned:
    """Beginnings that are gone."""

    def test_by_order(self, bench: Bench) -> None:
        """Of several prunings the last is judged, by the first entry that is left; what was erased before is part of it."""
        bench.appoint()
        seen = []
        removals = Removals()
        for below in (256, 512):
            bench.add(300)
            bench.time.advance(YEAR)
            bench.add(300)
            bench.retention().erase(actor="a", reason="r", entries=(below - 8, below - 7))
            order = signed(bench.retention().order(below), ALICE, BOB)
            bench.retention().prune(order, actor="a", reason="r")
            seen.append(rounded(Removals().look(bench.trail)))
            assert removals.look(bench.trail).missing == 0
        assert seen == [[(0, 255, DAYS, None, False)], [(0, 511, DAYS, None, False)]]

    def test_more_than_was_ordered(self, bench: Bench) -> None:
        """What went beyond the order is missing."""
        bench.appoint()
        bench.add(300)
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        took(bench, "DELETE FROM entry WHERE idx < 260")
        assert Removals().look(bench.trail).missing == 4
