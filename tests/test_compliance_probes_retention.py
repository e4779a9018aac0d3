"""Probes of retention: what is stated, what went, when, by whose order and under which hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.controlled_service import context
from tests.retention_bench import YEAR, Bench

from healthobs import Settings
from healthobs.audit import AuditTrail, governance
from healthobs.compliance import Outcome
from healthobs.compliance.probes_retention import Looks, Retained
from healthobs.exceptions import AuditError

STATED = Settings(audit_retention_days=2_557)


def seen(bench: Bench, days: int = 365, **options: Any) -> Outcome:
    """Return what a new probe of `days` sees of the bench's trail."""
    probe = Retained(Looks(), days, **options)
    return probe(context(audit=bench.trail, clock=bench.time.clock(), settings=STATED))


def erased_after(bench: Bench, years: float) -> None:
    """Erase an entry in the middle, with that age."""
    bench.add(3)
    bench.time.advance(int(years * YEAR))
    bench.retention().erase(actor="a", reason="r", entries=(1, 1))


class TestRetained:
    """`Retained`."""

    def test_young_log(self, bench: Bench) -> None:
        """Of a log from which nothing went it says how old it is; of one without an entry nothing can be said."""
        assert seen(bench).state == "unknown"
        bench.add(3)
        bench.time.advance(YEAR)
        assert seen(bench) == Outcome(
            "pass", "the first entry that can be read is 366 days old; nothing went", 3
        )

    @pytest.mark.parametrize(
        ("years", "days", "others", "state"),
        [
            (1.1, 365, 365, "pass"),
            (0.9, 365, 365, "fail"),
            (6.5, 2_557, 2_192, "partial"),  # it may have been what is kept for six years
            (5.9, 2_557, 2_192, "fail"),
            (7.1, 2_557, 2_192, "pass"),
        ],
    )
    def test_age_of_what_went(self, bench: Bench, years: float, days: int, others: int, state: str) -> None:
        """What went too young fails; what may have been is shown in part; what was old enough passes."""
        erased_after(bench, years)
        outcome = seen(bench, days, others=others)
        assert outcome.state == state
        if state == "fail":
            assert outcome.text == "1 removals took entries before their time"
        if state == "partial":
            assert outcome.missing == ("the age of what went by 1 of 1 orders",)
        if state == "pass":
            assert outcome.text.endswith("1 removals, each in its time")

    def test_age_that_nothing_bounds(self, bench: Bench) -> None:
        """Of the first entries nobody can say that they were too young, nor that they were not."""
        bench.add(2)
        bench.time.advance(YEAR)
        bench.add(1)
        bench.retention().erase(actor="a", reason="r", entries=(0, 1))
        assert seen(bench).state == "partial"

    @pytest.mark.parametrize(("stated", "state"), [(364, "fail"), (365, "pass")])
    def test_stated(self, bench: Bench, stated: int, state: str) -> None:
        """A service that states less than the period fails, whatever it kept."""
        bench.add(1)
        probe = Retained(Looks(), 400, stated=365)
        settings = replace(STATED, audit_retention_days=stated)
        outcome = probe(context(audit=bench.trail, clock=bench.time.clock(), settings=settings))
        assert outcome.state == state
        assert (outcome.text == "the service states 364 days, which are less than 365") == (state == "fail")

    def test_under_a_hold(self, bench: Bench) -> None:
        """What a hold keeps may not go, however old it is."""
        bench.add(3)
        bench.retention().hold("case", actor="a", reason="r", entries=(1, 1))
        bench.time.advance(2 * YEAR)
        bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "1"}})
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("UPDATE entry SET body = NULL WHERE idx = 1")
        outcome = seen(bench)
        assert (outcome.state, outcome.text) == (
            "fail",
            "1 removals took entries that a hold keeps or that govern the trail",
        )

    def test_without_an_order(self, bench: Bench) -> None:
        """What is missing and nobody ordered fails."""
        bench.add(3)
        with bench.trail.changing() as connection, connection.amending():
            connection.execute("DELETE FROM entry WHERE idx = 0")
        outcome = seen(bench)
        assert (outcome.state, outcome.text) == ("fail", "1 entries are missing, and no order says so")

    def test_no_trail(self) -> None:
        """Without a trail nothing is known."""
        assert Retained(Looks(), 1)(context()).state == "unknown"

    def test_unreadable(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """What cannot be read is not kept."""

        def broken(_self: AuditTrail, **_options: Any) -> Any:
            raise AuditError

        monkeypatch.setattr(AuditTrail, "connected", broken)
        assert seen(bench).text == "what is kept cannot be read (AuditError)"

    def test_nothing_is_written(self, bench: Bench) -> None:
        """It only reads."""
        bench.add(2)
        before = bench.trail.checkpoint()
        seen(bench)
        assert bench.trail.checkpoint() == before
