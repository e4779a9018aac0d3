"""The gate: what opens and shuts it, waivers and attestations."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from tests.small_world import World

from healthobs.clock import Clock
from healthobs.compliance import (
    Control,
    ControlEngine,
    Outcome,
)
from healthobs.compliance.documents import Document, Documents, Signed
from healthobs.compliance.report import gate_is_open
from healthobs.exceptions import ConfigurationError

DOCUMENT = Document("attestation", "A-1", "2026-01-01", "2026-11-23", "all were trained", "ab" * 32)


WAIVER = Document("waiver", "C-1", "2026-11-01", "2026-11-23", "mended in release 7")


def signed(*documents: Document, refused: int = 0) -> Documents:
    """Return what a folder with these documents holds."""
    kinds: dict[str, dict[str, tuple[Signed, ...]]] = {"attestation": {}, "waiver": {}}
    for document in documents:
        kind = kinds[document.kind]
        kind[document.control] = (*kind.get(document.control, ()), Signed(document, "privacy-officer"))
    return Documents(kinds["attestation"], kinds["waiver"], refused)


class TestGate:
    """`gate_open` and `gate_failures`."""

    @pytest.mark.parametrize(
        ("state", "is_open"),
        [("pass", True), ("not-applicable", True), ("partial", False), ("fail", False), ("unknown", False)],
    )
    def test_required_control(self, world: World, state: Any, is_open: bool) -> None:
        """Only what is shown, or excluded by a declaration, opens it."""
        world.outcomes["C-1"] = Outcome(state, "")
        world.engine.run()
        assert (world.engine.gate_open(), world.engine.gate_failures()) == (
            is_open,
            () if is_open else ("C-1",),
        )

    def test_shut_at_start_and_after_decay(self, world: World) -> None:
        """Without fresh evidence it is shut."""
        seen = [world.engine.gate_open()]
        world.engine.run()
        seen.append(world.engine.gate_open())
        world.time.elapsed = 601
        assert [*seen, world.engine.gate_open()] == [False, True, False]

    def test_optional_control(self) -> None:
        """What is not required does not hold it shut."""
        world = World(World.control("C-1"), World.control("C-2", required=False))
        world.outcomes["C-2"] = Outcome("fail", "")
        world.engine.run()
        assert world.engine.gate_open()

    def test_attested(self) -> None:
        """A valid attestation opens it."""
        world = World(
            World.control("A-1", method="attestation", probe=None), documents=lambda: signed(DOCUMENT)
        )
        world.engine.run()
        assert world.engine.gate_open()

    def test_what_was_attested_once_is_required(self) -> None:
        """An attestation of what nothing observes opens the gate while it holds; expired, it shuts it."""
        control = World.control("A-1", probe=None, required=False)
        world = World(control, World.control("C-1"), documents=lambda: signed(DOCUMENT))
        seen = [(world.engine.run()["A-1"], world.engine.gate_open())]
        world.time.elapsed = 24 * 3600
        seen.append((world.engine.run()["A-1"], world.engine.gate_open()))
        assert seen == [("attested", True), ("fail", False)]

    @pytest.mark.parametrize("of", ["attestation", "probe"])
    def test_attestation_that_is_gone(self, of: Any) -> None:
        """An attestation that is taken away shuts the gate as one that expired does, until somebody attests it again."""
        control = World.control("A-1", probe=None, required=False, method=of)
        held = [DOCUMENT]
        world = World(control, World.control("C-1"), documents=lambda: signed(*held))
        seen: list[Any] = []
        for documents in ([DOCUMENT], [], [], [DOCUMENT]):
            held[:] = documents
            state, row = world.engine.run()["A-1"], world.engine.status(detail=True)["controls"][0]
            seen.append((state, row["required"], row["evidence"]["text"], world.engine.gate_open()))
        text = "it was attested before, and no document that counts does so now"
        until = f"attested by privacy-officer until 2026-11-23, document {'ab' * 6}"
        assert seen == [
            ("attested", True, until, True),
            ("unknown", True, text, False),
            ("unknown", True, text, False),
            ("attested", True, until, True),
        ]
        assert world.engine.once_attested == {"A-1"}

    def test_documents_that_cannot_be_read_any_more(self) -> None:
        """Nor does a folder that cannot be read, or an expired attestation that is taken away, open it."""
        control = World.control("A-1", probe=None, required=False)
        seen: list[Any] = []
        for first in (DOCUMENT, replace(DOCUMENT, expires="2026-11-22")):
            there = [True]

            def documents(first: Document = first, there: list[bool] = there) -> Documents:
                if not there:
                    raise OSError
                return signed(first)

            world = World(control, World.control("C-1"), documents=documents)
            seen.append((world.engine.run()["A-1"], world.engine.gate_open()))
            there.clear()
            seen.append((world.engine.run()["A-1"], world.engine.gate_open()))
        assert seen == [("attested", True), ("unknown", False), ("fail", False), ("unknown", False)]

    def test_attested_in_an_earlier_process(self) -> None:
        """What was attested before this process began is asked for until it can be told, then once; a probe or a scope ends it."""
        asked: list[int] = []

        def before() -> set[str]:
            asked.append(len(asked))
            if len(asked) == 1:
                raise OSError
            return {"A-1", "A-2", "C-1", "X-9"}

        world = World(
            World.control("A-1", probe=None, required=False),
            World.control("A-2", probe=None, required=False, scope="chd"),
            World.control("A-3", probe=None, required=False),
            World.control("C-1", required=False),
            World.control("C-2"),
            attested_before=before,
            excluded={"chd": lambda: None},
        )
        world.outcomes["C-1"] = Outcome("fail", "seen")
        seen: list[Any] = []
        for _ in range(3):
            world.engine.run()
            seen.append((world.engine.gate_failures(), list(world.errors)))
        assert seen == [((), ["controls"]), (("A-1",), ["controls"]), (("A-1",), ["controls"])]
        assert world.engine.once_attested == {"A-1", "A-2"}
        assert asked == [0, 1]

    def test_renewal_counts_from_its_first_day(self) -> None:
        """A renewal that lies beside what it renews takes nothing away before its first day, and counts from it without a round."""
        control = World.control("A-1", probe=None, required=False)
        held = [
            DOCUMENT,
            WAIVER,
            replace(DOCUMENT, issued="2026-11-24", expires="2026-11-25"),
            replace(WAIVER, issued="2026-11-24", expires="2026-11-25"),
            replace(WAIVER, issued="2026-11-20", expires="2026-11-22"),  # newer than the first, and over
        ]
        world = World(control, World.control("C-1"), documents=lambda: signed(*held))
        world.outcomes["C-1"] = Outcome("fail", "seen")
        seen: list[Any] = []
        for day in range(4):
            world.time.elapsed = day * 24 * 3600
            waived = world.engine.status()["controls"][1]["waived_until"]
            seen.append((world.engine.run()["A-1"], waived, world.engine.gate_open()))
        assert seen == [
            ("attested", None, True),  # no round had read the folder
            ("attested", "2026-11-25", True),
            ("attested", "2026-11-25", True),
            ("fail", None, False),
        ]

    def test_attestation_ends_without_a_round(self) -> None:
        """After its last day it is believed no more, also where no round came since; the gate says so, and so does the row."""
        control = World.control("A-1", probe=None, required=False)
        world = World(control, World.control("C-1"), documents=lambda: signed(DOCUMENT))
        world.engine.run()
        seen = [(world.engine.states()["A-1"], world.engine.gate_open())]
        world.time.wall_step = 24 * 3600
        seen.append((world.engine.states()["A-1"], world.engine.gate_open()))
        row = world.engine.status(detail=True)["controls"][0]
        assert seen == [("attested", True), ("fail", False)]
        assert row["state"] == "fail"
        assert row["evidence"]["text"].startswith("stale; was attested: attested by privacy-officer until ")

    @pytest.mark.parametrize("scheduled", [True, False])
    def test_attestation_is_judged_in_each_round(self, scheduled: bool) -> None:
        """Whatever else a round runs, and however seldom: a document that comes or goes is seen in the first one after."""
        control = World.control("A-1", probe=None, required=False, every_s=300)
        held: list[Document] = []
        world = World(control, World.control("C-1"), documents=lambda: signed(*held))
        seen: list[Any] = []
        for documents in ([replace(DOCUMENT, expires="2026-11-22")], [DOCUMENT], []):
            held[:] = documents
            if scheduled:
                world.engine.run_due()
            else:
                assert world.engine.run(["C-1"]) == {"C-1": "pass"}
            evidence = world.engine.status(detail=True)["controls"][0]["evidence"]["text"]
            seen.append((world.engine.states()["A-1"], evidence.split()[0]))
        assert seen == [("fail", "the"), ("attested", "attested"), ("unknown", "it")]

    def test_first_attestation_that_is_not_yet(self) -> None:
        """What is to be attested from some day on is nothing before it, and no more required than without."""
        control = World.control("A-1", probe=None, required=False)
        later = replace(DOCUMENT, issued="2026-11-24", expires="2026-11-25")
        world = World(control, World.control("C-1"), documents=lambda: signed(later))
        seen: list[Any] = []
        for day in (0, 1, 3):
            world.time.elapsed = day * 24 * 3600
            seen.append((world.engine.run()["A-1"], world.engine.gate_open()))
        assert seen == [("unknown", True), ("attested", True), ("fail", False)]

    def test_attestation_replaces_no_probe(self, world: World) -> None:
        """What a probe sees counts, whatever somebody declares."""
        document = replace(DOCUMENT, control="C-1")
        world = World(World.control("C-1"), documents=lambda: signed(document))
        world.outcomes["C-1"] = Outcome("fail", "seen")
        assert (world.engine.run(), world.engine.gate_open()) == ({"C-1": "fail"}, False)
        attestation = world.engine.status(detail=True)["controls"][0]["attestation"]
        assert (attestation["person"], attestation["statement"]) == ("privacy-officer", "all were trained")

    def test_waived_failure_stays_a_failure(self) -> None:
        """A waiver opens the gate until its last day; the state, the counts and the report stay as they are."""
        world = World(World.control("C-1"), documents=lambda: signed(WAIVER))
        world.outcomes["C-1"] = Outcome("fail", "seen")
        seen: list[Any] = []
        for elapsed in (0, 24 * 3600):
            world.time.elapsed = elapsed
            world.engine.run()
            status = world.engine.status()
            (row,) = status["controls"]
            seen.append(
                (row["state"], status["counts"]["fail"], row["waived_until"], world.engine.gate_open())
            )
        assert seen == [("fail", 1, "2026-11-23", True), ("fail", 1, None, False)]

    def test_waivers_are_told(self) -> None:
        """A waiver that begins, is replaced or ends is told once, and again while nobody takes it."""
        held = [WAIVER]
        told: list[Any] = []
        refuse = [True]

        def on_waiver(control: Control, old: Any, new: Any) -> None:
            if refuse:
                raise OSError
            told.append((control.id, *(each and each.document for each in (old, new))))

        world = World(World.control("C-1"), documents=lambda: signed(*held), on_waiver=on_waiver)
        world.engine.run()
        refuse.clear()
        world.engine.run()
        world.engine.run()
        longer = replace(WAIVER, expires="2026-11-24")
        held[0] = longer
        world.engine.run()
        world.time.elapsed = 2 * 24 * 3600
        world.engine.run()
        world.engine.run()
        assert told == [("C-1", None, WAIVER), ("C-1", WAIVER, longer), ("C-1", longer, None)]
        assert world.errors == ["controls"]

    def test_waivers_of_an_earlier_process(self) -> None:
        """One that began before this process and is gone is told as ended, once that can be told; one that was told is not again."""
        told: list[Any] = []
        unread, refuse = [True], [False]

        def before() -> set[str]:
            if unread[0]:
                raise OSError
            return {"C-1", "C-2", "X-9"}

        def on_waiver(control: Control, old: Any, new: Any) -> None:
            if refuse[0]:
                raise OSError
            told.append((control.id, *(each and each.document for each in (old, new))))

        world = World(documents=lambda: signed(WAIVER), waived_before=before, on_waiver=on_waiver)
        seen: list[Any] = []
        for unread[0], refuse[0] in ((True, False), (False, True), (False, False), (False, False)):
            world.engine.run()
            seen.append((set(world.engine.waived), len(world.errors)))
        assert told == [("C-1", None, WAIVER), ("C-2", None, None)]
        assert seen == [({"C-1"}, 1), ({"C-1", "C-2"}, 2), ({"C-1"}, 2), ({"C-1"}, 2)]

    def test_required_by_the_service(self) -> None:
        """A service may ask for more than its probes; an id that is not there is a mistake."""
        control = World.control("A-1", probe=None, required=False)
        world = World(control, World.control("C-1"), required=["A-1"])
        world.engine.run()
        assert world.engine.gate_failures() == ("A-1",)
        with pytest.raises(
            ConfigurationError, match=r"^required_controls: name 2, 3 is no control that is there: "
        ):
            World(control, required=["A-1", "A-2", "A-3"])

    def test_documents_that_count_for_nothing(self) -> None:
        """A refused document, and a folder that cannot be read, are counted; the round goes on."""

        def broken() -> Documents:
            raise OSError

        world = World(World.control("C-1"), documents=lambda: signed(refused=1))
        worse = World(World.control("C-1"), documents=broken)
        assert [world.engine.run(), worse.engine.run()] == [{"C-1": "pass"}] * 2
        assert (world.errors, worse.errors) == (["documents"], ["documents"])

    def test_no_controls(self) -> None:
        """A service that observes nothing has shown nothing."""
        assert ControlEngine([], World()._context, Clock()).gate_open() is False
        assert gate_is_open([]) is False
