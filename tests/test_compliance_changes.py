"""Changes of a control's state: told once, in order, and not lost where telling fails."""

from __future__ import annotations

from typing import Any

import pytest
from tests.small_world import World

from healthobs.compliance import (
    ControlEngine,
    Outcome,
)
from healthobs.compliance import engine as engine_module


class TestChanges:
    """Each change of state is told until it is taken."""

    def test_only_changes(self, world: World) -> None:
        """A state that stays is told once."""
        world.engine.run()
        world.engine.run()
        world.outcomes["C-1"] = Outcome("fail", "seen")
        world.engine.run()
        assert world.changes == [
            ("C-1", "unknown", "pass"),
            ("C-2", "unknown", "pass"),
            ("C-1", "pass", "fail"),
        ]

    def test_decay_is_a_change(self) -> None:
        """Evidence that went stale is told in the next round."""
        world = World(World.control("C-1", valid_for_s=60), World.control("C-2"))
        world.engine.run()
        world.time.elapsed = 61
        world.engine.run(["C-2"])
        assert world.changes[2:] == [("C-1", "pass", "unknown")]

    def test_refused_change_is_told_again(self, world: World) -> None:
        """While the trail is down the engine goes on; afterwards it catches up."""
        world.refuse = OSError()
        assert world.engine.run() == {"C-1": "pass", "C-2": "pass"}
        assert (world.changes, world.errors) == ([], ["controls", "controls"])
        world.refuse = None
        world.engine.run(["C-1"])
        assert world.changes == [("C-1", "unknown", "pass"), ("C-2", "unknown", "pass")]

    def test_change_that_reverted_is_told_too(self, world: World) -> None:
        """What changed while the trail was down is told in order once it is back, each with how late; nothing is lost."""
        world.engine.run()
        world.refuse = OSError()
        for state in ("fail", "pass", "fail", "pass"):
            world.time.elapsed += 60
            world.outcomes["C-1"] = Outcome(state, "seen")
            world.engine.run()
            (row, _) = world.engine.status(detail=True)["controls"]
            assert row["audit_index"] is None
        world.refuse = None
        world.time.elapsed += 60
        world.outcomes["C-2"] = Outcome("fail", "seen")
        world.engine.run()
        flapped = [("C-1", *change) for change in (("pass", "fail"), ("fail", "pass")) * 2]
        assert world.changes[2:] == [*flapped, ("C-2", "pass", "fail")]
        assert world.late[2:] == [240, 180, 120, 60, 0]
        assert [row["audit_index"] for row in world.engine.status(detail=True)["controls"]] == [5, 6]
        world.engine.run()
        assert len(world.changes) == 7

    def test_changes_of_one_control_stay_in_order(self) -> None:
        """While a change of a control is refused, its later ones wait; those of others do not."""
        told: list[Any] = []

        def change(control: Any, old: str, new: str, result: Any, late_s: int) -> None:
            if (control.id, new, refusing) == ("C-1", "fail", True):
                raise OSError
            told.append((control.id, new))

        world = World()
        world.engine._on_change = change
        refusing = True
        for states in (("fail", "pass"), ("pass", "fail")):
            world.outcomes.update(
                zip(("C-1", "C-2"), (Outcome(state, "seen") for state in states), strict=True)
            )
            world.engine.run()
        assert told == [("C-2", "pass"), ("C-2", "fail")]
        refusing = False
        world.engine.run()
        assert told[2:] == [("C-1", "fail"), ("C-1", "pass")]

    def test_untold_changes_are_bounded(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """Of a trail that stays away the latest changes are kept; that others were lost is counted, and shows in what is told."""
        monkeypatch.setattr(engine_module, "_MOST_UNTOLD", 3)
        world.engine.run()
        world.refuse = OSError()
        for state in ("fail", "pass", "fail", "pass"):
            world.outcomes["C-1"] = Outcome(state, "seen")
            world.engine.run()
        assert world.errors == ["controls"] * 5
        world.refuse = None
        world.engine.run()
        assert world.changes[2:] == [
            ("C-1", "fail", "pass"),
            ("C-1", "pass", "fail"),
            ("C-1", "fail", "pass"),
        ]

    def test_states_are_shown_whatever_the_trail_does(self, world: World) -> None:
        """Every round shows all states as they are, also while changes are refused; a fault of it is counted."""
        world.refuse = OSError()
        for state in ("fail", "pass", "pass"):
            world.outcomes["C-1"] = Outcome(state, "seen")
            world.engine.run(["C-1"])
        assert [shown["C-1"] for shown in world.shown] == ["fail", "pass", "pass"]
        assert world.shown[0]["C-2"] == "unknown"
        world.refuse, world.errors[:] = None, []
        world.engine._on_states = lambda _: 1 / 0
        world.engine.run(["C-1"])
        assert (world.errors, len(world.changes)) == (["controls"], 2)

    def test_first_round_is_told_at_once(self) -> None:
        """With `on_first` a process begins with all states in one message, told until taken; then come changes."""
        told: list[Any] = []

        def first(states: Any, late_s: int) -> int:
            told.append((dict(states), late_s))
            if len(told) == 1:
                raise OSError
            return 7

        world = World(on_first=first)
        world.engine.run(["C-1"])
        world.outcomes["C-2"] = Outcome("fail", "seen")
        world.time.elapsed += 60
        world.engine.run()
        begun = {"C-1": "pass", "C-2": "unknown"}
        assert told == [(begun, 0), (begun, 60)]
        assert (world.changes, world.errors) == ([("C-2", "unknown", "fail")], ["controls"])
        world.outcomes["C-2"] = Outcome("pass", "seen")
        world.engine.run()
        assert world.changes[1:] == [("C-2", "fail", "pass")]
        assert [row["audit_index"] for row in world.engine.status(detail=True)["controls"]] == [7, 1]

    def test_what_fails_at_first_and_each_change_after_is_noticed_once(self) -> None:
        """At once and never again, also while the trail refuses it; what else the first round finds is where things begin."""
        noticed: list[Any] = []

        def notice(control: Any, old: str, new: str, required: bool) -> None:
            noticed.append((control.id, old, new, required))

        world = World(World.control("C-1"), World.control("C-2", required=False), on_notice=notice)
        world.outcomes["C-1"] = Outcome("fail", "seen")
        world.engine.run()
        assert noticed == [("C-1", "unknown", "fail", True)]
        world.refuse = OSError()
        world.outcomes.update({"C-1": Outcome("pass", "seen"), "C-2": Outcome("fail", "seen")})
        world.engine.run()
        world.engine.run()
        world.refuse = None
        world.engine.run()
        assert noticed[1:] == [("C-1", "fail", "pass", True), ("C-2", "pass", "fail", False)]

    def test_notice_that_raises(self) -> None:
        """It is counted, and what is left is told and recorded all the same."""
        noticed: list[str] = []

        def notice(control: Any, *_: object) -> None:
            noticed.append(control.id)
            raise RuntimeError

        world = World(on_notice=notice)
        world.engine.run()
        world.outcomes.update(dict.fromkeys(("C-1", "C-2"), Outcome("fail", "seen")))
        world.engine.run()
        assert (noticed, world.errors) == (["C-1", "C-2"], ["controls", "controls"])
        assert world.changes[2:] == [("C-1", "pass", "fail"), ("C-2", "pass", "fail")]

    def test_index_is_shown(self, world: World) -> None:
        """The report names the entry that recorded the last change."""
        world.engine.run()
        assert [row["audit_index"] for row in world.engine.status(detail=True)["controls"]] == [0, 1]

    def test_broken_metrics(self, world: World) -> None:
        """A listener that raises is counted, and the round goes on."""

        def broken(result: object) -> None:
            raise RuntimeError

        def worse(component: str) -> None:
            errors.append(component)
            raise RuntimeError

        errors: list[str] = []
        engine = ControlEngine(
            [World.control("S-1"), World.control("S-2")],
            world._context,
            world.time.clock(),
            on_result=broken,
            on_error=worse,
        )
        assert (engine.run(), errors) == ({"S-1": "pass", "S-2": "pass"}, ["controls", "controls"])

    def test_nobody_listens(self, world: World) -> None:
        """Listeners are optional."""

        def broken(result: object) -> None:
            raise RuntimeError

        engine = ControlEngine([World.control("S-1")], world._context, world.time.clock(), on_result=broken)
        assert engine.run() == {"S-1": "pass"}
