"""Tests of the control engine: six states, decay, changes told until taken, a thread that survives forks."""

from __future__ import annotations

import asyncio
import json
import threading
from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tests.small_world import World

from healthobs.clock import Clock
from healthobs.compliance import (
    CATALOGUE_VERSION,
    STATES,
    ControlEngine,
    Outcome,
    ProbeContext,
    Reply,
    Route,
)
from healthobs.compliance.report import DISCLAIMER
from healthobs.exceptions import ConfigurationError


class TestControl:
    """`Control` refuses what cannot be observed or cited."""

    @pytest.mark.parametrize(
        "wrong",
        [
            {"name": "has blank"},
            {"name": ""},
            {"name": "x" * 33},
            {"name": "C-1\n"},
            {"framework": "HIPAA"},
            {"cite": ""},
            {"title": ""},
            {"criterion": ""},
            {"method": "guess"},
            {"probe": None},
            {"method": "attestation"},
            {"valid_for_s": 0},
            {"every_s": -1},
            {"valid_for_s": 60, "every_s": 60},
        ],
    )
    def test_wrong_field(self, wrong: dict[str, Any]) -> None:
        """Each wrong field is refused by itself."""
        name = wrong.pop("name", "C-1")
        with pytest.raises(ConfigurationError) as caught:
            World.control(name, **wrong)
        assert len(caught.value.problems) == 1

    def test_every_problem_is_named(self) -> None:
        """All problems come at once."""
        with pytest.raises(ConfigurationError) as caught:
            World.control("", framework="X", cite="", method="guess", valid_for_s=0)
        assert len(caught.value.problems) == 5


class TestStates:
    """What state a control is in."""

    def test_unknown_at_start(self, world: World) -> None:
        """Nothing passes before it ran."""
        assert world.engine.states() == {"C-1": "unknown", "C-2": "unknown"}
        assert world.runs == []

    @pytest.mark.parametrize("state", [state for state in STATES if state != "attested"])
    def test_outcome_of_the_probe(self, world: World, state: Any) -> None:
        """A probe's outcome is the state."""
        world.outcomes["C-1"] = Outcome(state, "seen")
        assert world.engine.run(["C-1"]) == {"C-1": state}

    def test_state_that_no_probe_may_return(self, world: World) -> None:
        """Only a person attests."""
        world.outcomes["C-1"] = Outcome("attested", "seen")
        assert world.engine.run(["C-1"]) == {"C-1": "unknown"}
        (evidence, *_) = (row["evidence"] for row in world.engine.status(detail=True)["controls"])
        assert evidence["text"] == "the probe returned a state that no probe may return"

    @pytest.mark.parametrize("state", ["ok", "PASS", "", None, ["pass"]])
    def test_there_are_no_other_states(self, state: Any) -> None:
        """A word that is none is refused where it is written, by a message that names all and echoes nothing."""
        with pytest.raises(ValueError, match=r"^the state of an outcome is one of ") as caught:
            Outcome(state, "seen")
        told = str(caught.value).removeprefix("the state of an outcome is one of ")
        assert told == ", ".join(STATES)

    def test_probe_that_raises(self, world: World) -> None:
        """An error is no evidence either way; its text does not come out."""
        world.outcomes["C-1"] = KeyError("patient Jane")
        world.engine.run()
        shown = world.engine.status(detail=True)["controls"][0]
        assert (shown["state"], shown["evidence"]["text"]) == ("unknown", "the probe raised KeyError")
        assert "Jane" not in json.dumps(world.engine.status(detail=True))
        assert world.engine.states()["C-2"] == "pass"

    @pytest.mark.parametrize("returned", [None, "pass", True, Outcome, 0])
    def test_probe_that_returns_no_outcome(self, world: World, returned: Any) -> None:
        """A forgotten return is not a pass, nor is a word; the evidence says so."""
        told: list[tuple[str, BaseException]] = []
        engine = ControlEngine(
            [World.control("S-1", probe=lambda context: returned)],
            world._context,
            world.time.clock(),
            on_fault=lambda control, exc: told.append((control.id, exc)),
        )
        assert engine.run() == {"S-1": "unknown"}
        (row,) = engine.status(detail=True)["controls"]
        assert row["evidence"]["text"] == "the probe returned something else than an Outcome"
        ((name, exc),) = told
        assert (name, type(exc).__name__) == ("S-1", "NoOutcomeError")

    def test_faults_of_probes_are_told_once_per_change(self, world: World) -> None:
        """Not in each round: when a fault is new, when it is another one, and when it comes back."""
        told: list[tuple[str, str]] = []
        world.engine._on_fault = lambda control, exc: told.append((control.id, type(exc).__name__))
        for outcome in (
            KeyError("Jane"),
            KeyError("June"),
            OSError(),
            OSError(),
            Outcome("pass", ""),
            OSError(),
        ):
            world.outcomes["C-1"] = outcome
            world.engine.run()
        assert told == [("C-1", "KeyError"), ("C-1", "OSError"), ("C-1", "OSError")]
        assert world.errors == []

    def test_telling_of_a_fault_that_raises(self, world: World) -> None:
        """Telemetry that is broken is counted, and the round goes on."""

        def broken(_control: object, _exc: object) -> None:
            raise RuntimeError

        world.engine._on_fault = broken
        world.outcomes["C-1"] = OSError()
        assert world.engine.run() == {"C-1": "unknown", "C-2": "pass"}
        assert world.errors == ["controls"]

    def test_probe_that_is_broken(self, world: World) -> None:
        """No probe ends the engine."""
        world.outcomes["C-1"] = SystemExit(3)
        assert world.engine.run() == {"C-1": "unknown", "C-2": "pass"}

    @pytest.mark.parametrize(
        "wrong",
        [
            {"text": object()},
            {"missing": "names"},
            {"missing": (5,)},
            {"missing": 5},
            {"n": float("nan")},
            {"n": True},
            {"n": "3"},
        ],
    )
    def test_outcome_that_is_no_evidence(self, wrong: dict[str, Any]) -> None:
        """What cannot be written down as it is is refused, and never shown."""
        with pytest.raises(ValueError, match=r"^(an outcome has|the n of an outcome)") as caught:
            Outcome(**{"state": "pass", "text": "", **wrong})
        assert repr(next(iter(wrong.values()))) not in str(caught.value)

    def test_name_that_is_no_utf8(self) -> None:
        """A name of a file that is not UTF-8 can be told, and is JSON."""
        name = b"caf\xe9".decode("utf-8", "surrogateescape")
        outcome = Outcome("partial", f"open: {name}", 1, (name,))
        assert (outcome.text, outcome.missing) == ("open: caf?", ("caf?",))

    @pytest.mark.parametrize("raised", [asyncio.CancelledError(), GeneratorExit(), BaseException("Jane")])
    def test_probe_that_is_cancelled(self, world: World, raised: BaseException) -> None:
        """What is no `Exception` is no evidence either: what was seen before counts no more, and the others are asked."""
        world.engine.run()
        world.outcomes.update({"C-1": raised, "C-2": Outcome("fail", "seen")})
        assert world.engine.run() == {"C-1": "unknown", "C-2": "fail"}
        text = world.engine.status(detail=True)["controls"][0]["evidence"]["text"]
        assert text == f"the probe raised {type(raised).__name__}"

    def test_interrupt(self, world: World) -> None:
        """Who interrupts the program ends it; on another thread the word is a probe's own, and ends nothing."""
        world.outcomes["C-1"] = KeyboardInterrupt()
        with pytest.raises(KeyboardInterrupt):
            world.engine.run()
        states: list[Any] = []
        thread = threading.Thread(target=lambda: states.append(world.engine.run()))
        thread.start()
        thread.join(30)
        assert states == [{"C-1": "unknown", "C-2": "pass"}]

    def test_context_that_raises(self, world: World) -> None:
        """Without a context nothing can be seen."""

        def broken() -> ProbeContext:
            raise OSError

        engine = ControlEngine([World.control("S-1")], broken, world.time.clock())
        assert engine.run() == {"S-1": "unknown"}

    @given(st.floats(0, 2_000), st.integers(1, 1_000))
    def test_decay(self, age_s: float, valid_for_s: int) -> None:
        """A pass is a pass for as long as it is valid, and unknown after that."""
        world = World(World.control("C-1", valid_for_s=valid_for_s))
        world.engine.run()
        world.time.elapsed = age_s
        expected = "pass" if int(age_s * 1e9) <= valid_for_s * 10**9 else "unknown"
        assert world.engine.states() == {"C-1": expected}

    def test_failure_decays_too(self, world: World) -> None:
        """An old failure is no knowledge either."""
        world.outcomes["C-1"] = Outcome("fail", "seen")
        world.engine.run()
        world.time.elapsed = 601
        assert world.engine.states() == {"C-1": "unknown", "C-2": "unknown"}

    def test_wall_clock_set_back_refreshes_nothing(self, world: World) -> None:
        """Ages are monotonic."""
        world.engine.run()
        world.time.elapsed, world.time.wall_step = 601, -3600
        assert world.engine.states()["C-1"] == "unknown"

    def test_scope(self) -> None:
        """A declared scope excludes a control without running it; an undeclared one does not."""
        controls = [World.control(f"C-{name}", scope=name) for name in ("chd", "phi")]
        world = World(*controls, World.control("C-none"), excluded={"chd": lambda: None})
        assert world.engine.run() == {"C-chd": "not-applicable", "C-phi": "pass", "C-none": "pass"}
        assert world.runs == ["C-phi", "C-none"]
        assert world.results == [("C-phi", "pass"), ("C-none", "pass")]  # as only these two ran

    def test_contradicted_scope(self) -> None:
        """A declaration that what was seen contradicts is a failure, and says by what."""
        seen: list[str] = []
        world = World(World.control("C-1", scope="chd"), excluded={"chd": lambda: seen[0] if seen else None})
        states = [world.engine.run()["C-1"]]
        seen.append("a card number was masked")
        states.append(world.engine.run()["C-1"])
        assert states == ["not-applicable", "fail"]
        text = world.engine.status(detail=True)["controls"][0]["evidence"]["text"]
        assert text == "declared: chd is not in scope; but a card number was masked"
        assert world.results == []

    def test_nothing_observes_it(self) -> None:
        """A requirement without a probe stays unknown, was never observed, and is no run of a probe."""
        world = World(World.control("C-1", probe=None, required=False), World.control("C-2"))
        assert world.engine.run() == {"C-1": "unknown", "C-2": "pass"}
        row = world.engine.status(detail=True)["controls"][0]
        assert (row["observed_at"], row["required"], row["evidence"]["text"]) == (
            None,
            False,
            "nothing observes it here, and nobody has attested it",
        )
        assert world.results == [("C-2", "pass")]


class TestRun:
    """`ControlEngine.run` and `run_due`."""

    def test_only_those_asked_for(self, world: World) -> None:
        """Others stay as they were."""
        assert world.engine.run(["C-2"]) == {"C-2": "pass"}
        assert (world.runs, world.engine.states()["C-1"]) == (["C-2"], "unknown")

    def test_unknown_id(self, world: World) -> None:
        """An id that is not there is an error, and nothing runs."""
        with pytest.raises(ConfigurationError):
            world.engine.run(["C-1", "X-1"])
        assert world.runs == []

    def test_reading_runs_nothing(self, world: World) -> None:
        """Requests only read."""
        world.engine.status(detail=True)
        world.engine.gate_open()
        world.engine.states()
        assert world.runs == []

    def test_due(self) -> None:
        """A scheduled round runs what never ran, and what is older than its `every_s`."""
        world = World(World.control("C-1"), World.control("C-2", every_s=60))
        seen = []
        for elapsed in (0, 59.9, 60):
            world.time.elapsed = elapsed
            world.runs.clear()
            world.engine.run_due()
            seen.append(list(world.runs))
        assert seen == [["C-1", "C-2"], ["C-1"], ["C-1", "C-2"]]

    def test_results_are_told_once_per_run(self, world: World) -> None:
        """Each run counts, whether or not the state changed."""
        world.engine.run()
        world.outcomes["C-2"] = ValueError()
        world.engine.run()
        assert world.results == [("C-1", "pass"), ("C-2", "pass"), ("C-1", "pass"), ("C-2", "unknown")]

    def test_rounds_do_not_overlap(self) -> None:
        """Two callers at once run one probe at a time."""
        inside, most, lock = 0, 0, threading.Lock()
        gate = threading.Barrier(2, timeout=30)

        def probe(context: ProbeContext) -> Outcome:
            nonlocal inside, most
            with lock:
                inside += 1
                most = max(most, inside)
            threading.Event().wait(0.02)
            with lock:
                inside -= 1
            return Outcome("pass", "")

        engine = ControlEngine([World.control("S-1", probe=probe)], World()._context, Clock())

        def run() -> None:
            gate.wait()
            engine.run()

        threads = [threading.Thread(target=run) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert most == 1

    def test_bind(self, world: World) -> None:
        """What the application adds reaches the probes; before that there is nothing to call."""

        def call(*_: object) -> Reply:
            return Reply(200, {}, b"")

        def tokens() -> dict[str, str]:
            return {}

        world.engine.run(["C-1"])
        world.engine.bind(call, [Route("GET", "/p")])
        world.engine.run(["C-1"])
        world.engine.bind(call, [Route("GET", "/p")], tokens)
        world.engine.run(["C-1"])
        world.engine.bind(call)
        world.engine.run(["C-1"])
        world.engine.bind(call, [])
        world.engine.run(["C-1"])
        seen = [(context.call, context.protected, context.refused_tokens) for context in world.contexts]
        assert seen == [
            (None, (), None),
            (call, (Route("GET", "/p"),), None),
            (call, (Route("GET", "/p"),), tokens),
            (call, (Route("GET", "/p"),), tokens),
            (call, (), tokens),
        ]


class TestStatus:
    """The body of `GET /compliance/status`."""

    def test_before_any_run(self, world: World) -> None:
        """Everything is unknown, and says so."""
        assert world.engine.status() == {
            "service": "phi-service",
            "catalogue_version": CATALOGUE_VERSION,
            "disclaimer": DISCLAIMER,
            "counts": {"pass": 0, "fail": 0, "partial": 0, "not-applicable": 0, "unknown": 2, "attested": 0},
            "controls": [
                {
                    "id": name,
                    "cite": "policy 1",
                    "framework": "company",
                    "title": "Title",
                    "state": "unknown",
                    "observed_at": None,
                    "valid_for_s": 600,
                    "required": True,
                    "waived_until": None,
                }
                for name in ("C-1", "C-2")
            ],
        }

    def test_detail(self, world: World) -> None:
        """Readers who may see evidence get criterion, method, evidence with its digest, and the audit index."""
        world.outcomes["C-1"] = Outcome("partial", "1 of 2 seen", 1, ("names",))
        world.engine.run()
        row = world.engine.status(detail=True)["controls"][0]
        canonical = (
            '{"control":"C-1","criterion":"criterion","missing":["names"],"n":1,'
            '"observed_at":"2026-11-23T07:30:00.000000Z","state":"partial","text":"1 of 2 seen"}'
        )
        assert row == {
            "id": "C-1",
            "cite": "policy 1",
            "framework": "company",
            "title": "Title",
            "state": "partial",
            "observed_at": "2026-11-23T07:30:00.000000Z",
            "valid_for_s": 600,
            "criterion": "criterion",
            "evidence": {
                "text": "1 of 2 seen",
                "n": 1,
                "digest": sha256(canonical.encode()).hexdigest(),
                "missing": ["names"],
            },
            "method": "probe",
            "required": True,
            "waived_until": None,
            "scope": None,
            "audit_index": 0,
            "waiver": None,
            "attestation": None,
        }

    def test_detail_before_any_run(self, world: World) -> None:
        """There is no evidence of what never ran."""
        row = world.engine.status(detail=True)["controls"][0]
        assert (row["evidence"], row["audit_index"]) == (
            {"text": "not run yet", "n": None, "digest": None},
            None,
        )

    def test_stale_evidence_is_named_so(self, world: World) -> None:
        """What was seen last is still shown, as what it was."""
        world.engine.run()
        world.time.elapsed = 601
        row = world.engine.status(detail=True)["controls"][0]
        assert (row["state"], row["evidence"]["text"]) == ("unknown", "stale; was pass: seen")

    def test_summary_holds_no_evidence(self, world: World) -> None:
        """Who may not see evidence sees none."""
        world.outcomes["C-1"] = Outcome("fail", "the secret detail")
        world.engine.run()
        assert "secret" not in json.dumps(world.engine.status(detail=False))

    @given(st.lists(st.sampled_from(STATES), max_size=12))
    def test_counts_add_up(self, states: list[Any]) -> None:
        """Every control is in exactly one state."""
        world = World(*(World.control(f"C-{number}") for number in range(len(states) + 1)))
        for number, state in enumerate(states):
            world.outcomes[f"C-{number}"] = Outcome(state, "")
        world.engine.run()
        status = world.engine.status()
        shown = [row["state"] for row in status["controls"]]
        assert status["counts"] == {state: shown.count(state) for state in STATES}


class TestIds:
    """Ids of controls."""

    @pytest.mark.parametrize("name", ["C-1", "c-1"])
    def test_duplicate_control(self, name: str) -> None:
        """Ids differ, and in more than case."""
        with pytest.raises(
            ConfigurationError, match=r"^two controls have the same id, or ids that differ in"
        ):
            World(World.control("C-1"), World.control(name))
