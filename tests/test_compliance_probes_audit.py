"""Probes of the audit trail: it records, proves, is whole, and names who acted."""

from __future__ import annotations

import io
import json
import logging
import re
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import structlog
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.controlled_service import Service, context

from healthobs import Observability, Settings
from healthobs.audit import AuditTrail, governance
from healthobs.audit.checkpoint import Signer
from healthobs.audit.entry import canonical
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.retention import Retention, approve
from healthobs.compliance import (
    CANARY_ACTION,
    CANARY_SUBJECT,
    Rehearsal,
)
from healthobs.compliance.history import FIRST_ACTION
from healthobs.compliance.probes_audit import (
    CANARY_SECONDS,
    FULL_SECONDS,
    Integrity,
    Recording,
    canary,
    copies_entries,
    names_actors,
    notices_refusals,
    reaches_in_emergencies,
    records_events,
    samples_entries,
)
from healthobs.decorators.audit_entry import rehearse


class TestRefusals:
    """What becomes of a call whose entry the trail refuses."""

    @pytest.mark.parametrize(
        ("answered", "counted", "told", "state", "says"),
        [
            (False, ("audit",), ("audit_entry_lost",), "pass", "denied, counted and logged"),
            (True, ("audit",), ("audit_entry_lost",), "fail", "is answered: the policy is alert"),
            (False, (), ("audit_entry_lost",), "fail", "but not counted"),
            (False, ("audit",), (), "fail", "but not logged"),
            (False, (), (), "fail", "but not counted nor logged"),
        ],
    )
    def test_judgement(
        self, build: Callable[..., Service], answered: bool, counted: Any, told: Any, state: str, says: str
    ) -> None:
        """It must not be answered, and must raise both alarms."""
        outcome = notices_refusals(
            context(
                audit=build().trail,
                settings=Settings(audit_policy="alert"),
                rehearse=lambda: Rehearsal(answered, counted, told),
            )
        )
        assert outcome.state == state
        assert outcome.text.endswith(says)

    def test_nothing_to_rehearse(self, build: Callable[..., Service]) -> None:
        """Without a trail or an application nothing is known."""
        assert notices_refusals(context()).state == "unknown"
        assert notices_refusals(context(audit=build().trail)).state == "unknown"

    @pytest.mark.parametrize("policy", ["deny", "alert"])
    def test_in_service(self, build: Callable[..., Service], policy: str) -> None:
        """A service's own policy and trail decide; nothing is recorded, counted or logged by the rehearsal."""
        service = build(policy=policy)
        service.obs.controls.bind(lambda *_: None)  # type: ignore[union-attr, arg-type, return-value]
        before = service.trail.checkpoint(), service.metric("healthobs_internal_errors_total")
        seen = service.engine._context().rehearse
        assert seen is not None
        assert seen() == Rehearsal(policy == "alert", ("audit",), ("audit_entry_lost",))
        assert (service.trail.checkpoint(), service.metric("healthobs_internal_errors_total")) == before

    @pytest.mark.parametrize(
        ("settings", "logs", "told"),
        [
            ({}, "own", True),
            ({"log_level": "critical"}, "own", False),
            ({"disabled": True}, "own", False),
            ({}, "off", False),
            ({}, "processor", True),
        ],
    )
    def test_what_is_not_written(
        self, build: Callable[..., Service], settings: dict[str, Any], logs: Any, told: bool
    ) -> None:
        """An alarm that this service writes nowhere is none."""
        trail = build().trail
        obs = Observability(Settings(**settings), logs=logs, log_stream=io.StringIO(), audit=trail)
        seen = rehearse(obs)
        outcome = notices_refusals(context(audit=trail, rehearse=lambda: seen))
        obs.close()
        assert (seen.answered, bool(seen.told)) == (False, told)
        assert outcome.state == ("pass" if told else "fail")

    @pytest.mark.parametrize("configured", [False, True])
    def test_what_logging_drops(
        self, build: Callable[..., Service], monkeypatch: pytest.MonkeyPatch, configured: bool
    ) -> None:
        """Where lines go through `logging`, its level counts; past it, as structlog may be set up, it does not."""
        monkeypatch.setattr(logging.getLogger("healthobs"), "isEnabledFor", lambda _level: False)
        if configured:
            structlog.configure(logger_factory=structlog.testing.CapturingLoggerFactory())
        obs = Observability(Settings(), logs="processor", audit=build().trail)
        seen = rehearse(obs)
        obs.close()
        structlog.reset_defaults()
        assert seen.told == (("audit_entry_lost",) if configured else ())

    def test_trail_that_takes_everything(
        self, build: Callable[..., Service], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """A trail that took the entry would leave the call answered, and the control failing."""
        service = build()
        monkeypatch.setattr(AuditTrail, "append", lambda _self, _draft: None)
        assert service.engine.run(["C-10.7"]) == {"C-10.7": "fail"}


class TestEvents:
    """Which events are recorded, and with what."""

    def test_kinds(self, build: Callable[..., Service]) -> None:
        """Kinds that are among the newest entries are shown, the others named; two nobody but the service can tell."""
        service = build()
        seen = []
        service.trail.append({"action": CANARY_ACTION, "subject": CANARY_SUBJECT})
        admin, reading, refused, begun = "10.2.1.2", "10.2.1.3", "10.2.1.4", "10.2.1.6"
        never = ["10.2.1.5", "10.2.1.7"]
        for draft in (
            None,
            {"action": "card.read", "actor": "c-1", "resource_id": "tok-1"},
            {"action": "card.read", "outcome": "denied"},
            {"action": "audit.read", "actor": "auditor"},
            {"action": FIRST_ACTION, "actor": "phi-service"},
            {"action": governance.HOLD, "actor": "counsel", "details": {"hold": "x"}},
            {"action": "card.read", "resource_id": "tok-1"},
        ):
            if draft is not None:
                service.trail.append_own(draft)
            outcome = records_events(context(audit=service.trail))
            found = [re.findall(r"10[0-9.]+", name)[0] for name in outcome.missing]
            seen.append((outcome.state, outcome.n, found))
        assert seen == [
            ("unknown", 0, []),
            ("partial", 1, [admin, reading, refused, begun, *never]),
            ("partial", 2, [admin, reading, begun, *never]),
            ("partial", 3, [admin, begun, *never]),
            ("partial", 3, [admin, *never]),
            ("partial", 4, never),
            ("fail", 5, []),
        ]
        assert records_events(context()).state == "unknown"

    @pytest.mark.parametrize("actor", [" ", "ann@clinic.example"])
    def test_actor_that_is_everybody(self, build: Callable[..., Service], actor: str) -> None:
        """An actor that is blank, or masked whole, lacks."""
        service = build()
        service.trail.append({"action": "card.read", "actor": actor, "resource_id": "tok-1"})
        assert records_events(context(audit=service.trail)).text == "1 of 1 entries lack their actor"

    @pytest.mark.parametrize(
        ("reasons", "state", "says"),
        [
            ((), "partial", "0 uses of break-glass have their reason"),
            (("unconscious",), "partial", "1 uses of break-glass have their reason"),
            (("unconscious", None), "fail", "1 of 2 uses of break-glass have no reason"),
        ],
    )
    def test_break_glass(self, build: Callable[..., Service], reasons: Any, state: str, says: str) -> None:
        """Each use that was answered has its reason; that each was reviewed nobody shows."""
        service = build(policy="spool")
        service.trail.append({"action": "patient.read", "outcome": "denied", "purpose": "ETREAT"})
        service.trail.append({"action": "patient.read", "purpose": "TREAT"})
        for reason in reasons:
            service.trail.append({"action": "patient.read", "purpose": "ETREAT", "reason": reason})
        outcome = reaches_in_emergencies(context(audit=service.trail, settings=service.obs.settings))
        assert (outcome.state, outcome.missing == ("a review of each use",)) == (state, state == "partial")
        assert outcome.text.endswith(says)

    def test_no_spool(self, build: Callable[..., Service]) -> None:
        """Without a spool, or a trail, nothing is known."""
        for audit in (None, build().trail):
            assert reaches_in_emergencies(context(audit=audit)).state == "unknown"


class TestCopies:
    """What is copied, and held against what was recorded."""

    def test_run_of_entries(self, build: Callable[..., Service]) -> None:
        """A run is copied whole, anywhere in the log; of an empty one there is none."""
        service = build()
        assert copies_entries(context(audit=service.trail)).state == "unknown"
        for _ in range(12):
            service.trail.append({"action": "a.b"})
        outcome = copies_entries(context(audit=service.trail))
        assert (outcome.state, outcome.n) == ("pass", 8)
        service.unguarded("UPDATE entry SET body = replace(body, 'a.b', 'a.c') WHERE idx = 6")
        states = {copies_entries(context(audit=service.trail)).state for _ in range(20)}
        assert states == {"fail"}  # of twelve, whichever run of eight

    def test_erased_by_order(self, build: Callable[..., Service]) -> None:
        """What was erased by order needs no copy; without one it does."""
        service = build()
        for _ in range(3):
            service.trail.append({"action": "a.b"})
        service.trail.append_own({"action": governance.ERASE, "details": {"ranges": "1"}})
        seen = []
        for index in (1, 2):
            service.unguarded(f"UPDATE entry SET body = NULL WHERE idx = {index}")
            outcome = copies_entries(context(audit=service.trail))
            seen.append((outcome.state, outcome.text))
        assert seen == [
            ("pass", "3 entries were copied as JSON, CSV, AuditEvent and tlog-proof, and match"),
            ("fail", "of 4 entries copied 1 are not as recorded"),
        ]

    def test_missing(self, build: Callable[..., Service]) -> None:
        """Where entries are missing nothing can be proved."""
        service = build()
        for _ in range(3):
            service.trail.append({"action": "a.b"})
        service.unguarded("DELETE FROM entry WHERE idx = 1")
        assert (
            copies_entries(context(audit=service.trail)).text == "copying entries raised AuditTamperedError"
        )
        assert copies_entries(context()).state == "unknown"


class TestAuditProbes:
    """Who acted, and what is drawn."""

    @pytest.mark.parametrize(
        ("drafts", "state", "n"),
        [
            ([], "unknown", 0),
            ([{"subject": CANARY_SUBJECT}], "unknown", 0),
            ([{"subject": "p-1", "actor": "dr-1"}], "pass", 1),
            ([{"subject": "p-1", "outcome": "denied"}] * 3, "unknown", 0),
            ([{"subject": "p-1", "outcome": "denied"}, {"subject": "p-1", "actor": "dr-1"}], "pass", 1),
            ([{"subject": "p-1", "actor": "dr-1"}, {"subject": "p-2", "actor": ""}], "fail", 2),
            ([{"subject": "p-2", "actor": ""}, {"subject": "p-1", "outcome": "denied"}], "fail", 1),
            ([{"subject": "p-1", "actor": " "}], "fail", 1),
            ([{"subject": "p-1", "actor": "ann@clinic.example"}], "fail", 1),
            ([{"subject": "p-1", "actor": "555-123-4567 555-987-6543"}], "fail", 1),
            ([{"subject": "p-1", "actor": "job of ann@clinic.example"}], "pass", 1),
        ],
    )
    def test_actors(
        self, build: Callable[..., Service], drafts: list[dict[str, str]], state: str, n: int
    ) -> None:
        """Entries about a person that were answered must name who acted; canaries and refusals need not, and count for nothing.

        Who is blank, or masked whole, is the same as everybody.
        """
        service = build()
        for draft in drafts:
            service.trail.append({"action": "patient.read", **draft})
        outcome = names_actors(context(audit=service.trail))
        assert (outcome.state, outcome.n) == (state, n)

    def test_drawn_from_the_whole_trail(self, build: Callable[..., Service]) -> None:
        """One bad entry among few is always drawn, wherever it is; of an empty trail nothing can be said."""
        service = build()
        outcome = samples_entries(context(audit=service.trail))
        assert (outcome.state, outcome.n) == ("unknown", 0)
        for number in range(6):
            service.trail.append({"action": f"a.{number}"})
        assert samples_entries(context(audit=service.trail)).n == 6
        service.unguarded("UPDATE entry SET body = replace(body, 'a.4', 'b.4') WHERE idx = 4")
        outcome = samples_entries(context(audit=service.trail))
        assert (outcome.state, outcome.text) == ("fail", "of 6 entries drawn 1 are not as recorded")

    def test_drawn_after_an_erasure(self, build: Callable[..., Service]) -> None:
        """A body that went by order is proved by its leaf, and so is the order; nothing else may lack one."""
        service = build()
        for number in range(6):
            service.trail.append({"action": f"a.{number}"})
        Retention(service.trail, (), clock=service.clock).erase(actor="a", reason="r", entries=(1, 2))
        assert service.trail.verify().ok
        outcome = samples_entries(context(audit=service.trail))
        text = (
            "5 of 7 entries were read and match; the leaves of 2 that were erased by order are in their place"
        )
        assert (outcome.state, outcome.text, outcome.n) == ("pass", text, 7)
        service.unguarded("UPDATE entry SET body = NULL WHERE idx = 4")
        assert (
            samples_entries(context(audit=service.trail)).text == "of 7 entries drawn 1 are not as recorded"
        )

    def test_drawn_while_erased(self, build: Callable[..., Service], monkeypatch: pytest.MonkeyPatch) -> None:
        """An erasure that comes while entries are drawn is no fault."""
        service = build()
        for number in range(6):
            service.trail.append({"action": f"a.{number}"})
        retention, checkpoint = Retention(service.trail, (), clock=service.clock), service.trail.checkpoint()
        retention.erase(actor="a", reason="r", entries=(1, 2))
        told = [checkpoint]
        latest = service.trail.checkpoint
        monkeypatch.setattr(service.trail, "checkpoint", lambda: told.pop() if told else latest())
        outcome = samples_entries(context(audit=service.trail))
        assert (outcome.state, outcome.n, told) == ("pass", 6, [])

    @pytest.mark.parametrize(
        "statement",
        [
            # The leaf of what went.
            "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 1",
            # A body that an order covers is changed, and not gone.
            "UPDATE entry SET body = '{}' WHERE idx = 1",
        ],
    )
    def test_erased_and_altered(self, build: Callable[..., Service], statement: str) -> None:
        """An order is no leave to change an entry."""
        service = build()
        for number in range(6):
            service.trail.append({"action": f"a.{number}"})
        Retention(service.trail, (), clock=service.clock).erase(actor="a", reason="r", entries=(1, 2))
        service.unguarded(statement)
        assert samples_entries(context(audit=service.trail)).state == "fail"

    def test_order_that_was_never_recorded(self, build: Callable[..., Service]) -> None:
        """An entry that was made into an order afterwards, body and leaf, covers nothing: it is under no signed root."""
        service = build()
        for number in range(40):
            service.trail.append({"action": f"a.{number}"})
        order = canonical({"action": governance.ERASE, "subject": None, "details": {"ranges": "0-38"}})
        leaf = leaf_hash(order.encode()).hex()
        service.unguarded(f"UPDATE entry SET body = '{order}', leaf = x'{leaf}' WHERE idx = 39")
        service.unguarded("UPDATE entry SET body = NULL WHERE idx < 39")
        assert samples_entries(context(audit=service.trail)).state == "fail"

    def test_drawn_after_a_pruning(self, build: Callable[..., Service]) -> None:
        """Entries that went with the beginning by order are not drawn; of those that went without one each is missing."""
        service = build()
        service.trail._access.writer().append_all(
            [(None, service.trail.encode({"action": "a.b"})) for _ in range(300)], 10
        )
        signers = [Signer(f"approver.example/{name}", Ed25519PrivateKey.generate()) for name in ("a", "b")]
        retention = Retention(service.trail, (), clock=service.clock)
        retention.appoint(retention.appointment([signer.vkey for signer in signers]), actor="a", reason="r")
        order = retention.order(256)
        for signer in signers:
            order = approve(order, signer)
        assert retention.prune(order, actor="a", reason="r") == 256
        left = service.trail.checkpoint().size - 256
        for _ in range(3):
            outcome = samples_entries(context(audit=service.trail))
            assert (outcome.state, outcome.text) == ("pass", f"16 of {left} entries were read and match")
        service.unguarded("DELETE FROM entry WHERE idx BETWEEN 256 AND 295")
        assert samples_entries(context(audit=service.trail)).state == "fail"


class TestTableMadeAnew:
    """Every control that looks at a trail whose table was made anew fails: it is no fault of the probe."""

    @pytest.mark.parametrize(
        ("change", "failing"),
        [
            (
                "UPDATE entry SET idx = 'abc' WHERE idx = 3",
                {"H-312.a2i", "H-312.b", "H-312.c", "P-10c", "C-10.3"},
            ),
            ("UPDATE entry SET idx = NULL WHERE idx = 3", {"H-312.c", "P-10c"}),
            ("UPDATE entry SET leaf = NULL WHERE idx = 3", {"H-312.b", "H-312.c", "P-10c"}),
        ],
    )
    def test_fails(self, build: Callable[..., Service], change: str, failing: set[str]) -> None:
        """An entry's number or leaf is of another type."""
        service = build()
        for _ in range(6):
            service.trail.append({"action": "patient.read", "subject": "p-1", "actor": "dr-1"})
        service.run()
        service.unguarded(
            "ALTER TABLE entry RENAME TO old",
            "CREATE TABLE entry (idx, leaf, body)",
            "INSERT INTO entry SELECT * FROM old",
            "DROP TABLE old",
            change,
        )
        states = service.run()
        found = {name: states[name] for name in ("H-312.a2i", "H-312.b", "H-312.c", "P-10c", "C-10.3")}
        assert {name for name, state in found.items() if state == "fail"} >= failing
        assert "unknown" not in found.values()


class TestCanary:
    """`H-312.b`: one canary for all that share a trail."""

    def canaries(self, service: Service) -> int:
        return service.trail.read(action=CANARY_ACTION).total

    def test_shared(self, build: Callable[..., Service]) -> None:
        """Ten processes on one trail append one canary in its time, and one more after it."""
        service = build()
        probes = [Recording() for _ in range(10)]
        looked = context(audit=service.trail, clock=service.clock)
        assert [(probe(looked).state, self.canaries(service)) for probe in probes] == [("pass", 1)] * 10
        service.elapsed = CANARY_SECONDS
        assert [(probe(looked).state, self.canaries(service)) for probe in probes] == [("pass", 2)] * 10

    def test_clock_that_stands_still(self, build: Callable[..., Service]) -> None:
        """A canary that is young by the wall clock alone is not recent."""
        service = build()
        probe, looked = Recording(), context(audit=service.trail, clock=service.clock)
        probe(looked)
        service.elapsed, service.wall_step = CANARY_SECONDS, -CANARY_SECONDS
        assert (probe(looked).state, self.canaries(service)) == ("pass", 2)

    def test_from_the_future(self, build: Callable[..., Service]) -> None:
        """A canary whose time is still to come is not recent."""
        service = build()
        looked = context(audit=service.trail, clock=service.clock)
        Recording()(looked)
        service.wall_step = -1
        assert (Recording()(looked).state, self.canaries(service)) == ("pass", 2)

    @pytest.mark.parametrize("time", ["yesterday", "2026-11-26T03:00:00", None])
    def test_of_no_time(self, build: Callable[..., Service], time: str | None) -> None:
        """A canary that somebody else planted and whose time is none does not stand for one, and stops no probe."""
        service = build()
        looked = context(audit=service.trail, clock=service.clock)
        body = {**json.loads(service.trail.encode(canary())), "time": time}
        service.trail._access.writer().append(canonical(body).encode(), 10)
        assert (Recording()(looked).state, self.canaries(service)) == ("pass", 2)

    def test_spool_that_cannot_be_merged(self, build: Callable[..., Service]) -> None:
        """A canary does not stand for one while something waits in the spool: an append merges it first, or fails."""
        service = build(policy="spool")
        probe, looked = Recording(), context(audit=service.trail, clock=service.clock)
        spool = service.path.with_name("spool")
        line = b"00000000000000000001-aaaaaaaaaaaaaaaa {}"  # of no entry, so that it is kept aside
        seen = [probe(looked).state]
        aside = spool.with_name("spool.refused")
        aside.mkdir()
        spool.write_bytes(b"%08x %b\n" % (zlib.crc32(line), line))
        seen += [probe(looked).state, probe(looked).state]
        aside.rmdir()
        seen += [probe(looked).state, probe(looked).state]
        assert seen == ["pass", "fail", "fail", "pass", "pass"]
        assert (self.canaries(service), spool.read_bytes()) == (2, b"")

    def test_another_process_that_cannot_append(self, build: Callable[..., Service]) -> None:
        """The canary of another process does not stand for one that could not append."""
        service = build()
        Recording()(context(audit=service.trail, clock=service.clock))
        service.trail.close()
        assert Recording()(context(audit=service.trail, clock=service.clock)).state == "fail"


class TestIntegrity:
    """`H-312.c`: what came since, each time; all of it, in its time."""

    @pytest.fixture
    def probe(self, build: Callable[..., Service]) -> Any:
        """Return a service with 300 verified entries, and what runs the probe on it."""
        service, probe = build(), Integrity()
        with ThreadPoolExecutor(16) as pool:
            list(pool.map(lambda _: service.trail.append({"action": "a.b"}), range(300)))
        looked = context(audit=service.trail, clock=service.clock)
        assert probe(looked).n == 300
        return service, lambda: probe(looked)

    def test_only_what_came_since(self, probe: Any) -> None:
        """Between two whole verifications as many entries are verified as there are new ones."""
        service, run = probe
        seen = [run().n]
        for _ in range(3):
            service.trail.append({"action": "a.b"})
        seen += [run().n, run().n]
        service.elapsed = FULL_SECONDS
        seen += [run().n, run().n]
        assert seen == [0, 3, 0, 303, 0]

    def test_old_body_within_the_interval(self, probe: Any) -> None:
        """A body that was verified and changed since, leaf and all else left as it was, is found by the whole one."""
        service, run = probe
        service.unguarded("UPDATE entry SET body = replace(body, 'a.b', 'c.d') WHERE idx = 7")
        seen = [run().state]
        service.elapsed = FULL_SECONDS
        seen += [run().state, run().state]
        assert seen == ["pass", "fail", "fail"]

    @pytest.mark.parametrize("change", [
        "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 299",
        "UPDATE tile SET hashes = zeroblob(32)",
        "UPDATE entry SET body = replace(body, 'a.b', 'c.d') WHERE idx = 301",
        "UPDATE entry SET body = NULL WHERE idx = 301",
        "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 301",
        "DELETE FROM entry WHERE idx = 301",
        "DELETE FROM entry WHERE idx >= 299",
        "UPDATE entry SET idx = 999 WHERE idx = 301",
        "UPDATE checkpoint SET note = replace(note, char(10) || '302' || char(10), char(10) || '303' || char(10))",
        "DELETE FROM checkpoint WHERE size = 302",
        "UPDATE checkpoint SET note = 'x' WHERE size = 301",
        "UPDATE log SET origin = 'example.org/other'",
        "INSERT INTO tile VALUES (1, 0, 9, zeroblob(288))",
        "DROP TRIGGER entry_no_update",
        "CREATE TRIGGER e AFTER INSERT ON entry BEGIN SELECT 1; END",
    ])  # fmt: skip
    def test_found_at_once(self, probe: Any, change: str) -> None:
        """Any change of what is new, of the tree over what is old, of the head or of a guard is found in the next round."""
        service, run = probe
        service.trail.append({"action": "a.b"})
        service.trail.append({"action": "a.b"})
        (service.raw if "TRIGGER" in change else service.unguarded)(change)
        assert [run().state, run().state] == ["fail", "fail"]

    @pytest.mark.parametrize(("action", "details"), [
        (governance.PRUNE, {"below": 256}),
        (governance.APPROVERS, {"order": "x"}),
        (governance.ERASE, {"ranges": "300"}),
    ])  # fmt: skip
    def test_order_that_is_none(self, probe: Any, action: str, details: dict[str, object]) -> None:
        """An order that all of it finds fault with is found in the next round, as by a process that starts then."""
        service, run = probe
        service.trail.append_own({"action": governance.HOLD, "details": {"hold": "case", "ranges": "0"}})
        assert run().state == "pass"
        service.trail.append_own({"action": action, "details": details})
        whole = Integrity()(context(audit=service.trail, clock=service.clock))
        assert whole.state == "fail"
        assert [run().text, run().text] == [whole.text, whole.text]

    def test_beginning_deleted(self, probe: Any) -> None:
        """A beginning that went without an order is found in the next round, though all that is left fits."""
        service, run = probe
        service.unguarded("DELETE FROM entry WHERE idx < 256", "DELETE FROM checkpoint WHERE size < 256")
        assert [run().state, run().state] == ["fail", "fail"]

    def test_beginning_pruned_by_order(self, probe: Any) -> None:
        """A beginning that went by order of two since the last round is no fault."""
        service, run = probe
        signers = [Signer(f"approver.example/{n}", Ed25519PrivateKey.generate()) for n in "ab"]
        retention = Retention(service.trail, (), clock=service.clock)
        note = retention.appointment([signer.vkey for signer in signers])
        retention.appoint(note, actor="a", reason="r")
        order = retention.order(256)
        for signer in signers:
            order = approve(order, signer)
        assert retention.prune(order, actor="a", reason="r") == 256
        assert [run().state, run().state, run().n] == ["pass", "pass", 0]

    def test_key_that_vouches_for_itself(self, probe: Any) -> None:
        """An entry that names a new key does not make what that key signed good."""
        service, run = probe
        foreign = Signer(service.trail.origin, Ed25519PrivateKey.generate())
        details = {"vkey": foreign.vkey, "previous": service.trail.vkey}
        service.trail.append_own({"action": governance.KEY, "actor": "x", "details": details})
        latest = service.trail.checkpoint()
        note = foreign.checkpoint(latest.size, latest.root).note
        service.unguarded(f"UPDATE checkpoint SET note = '{note}' WHERE size = {latest.size}")
        assert run().state == "fail"

    def test_erased_by_order(self, probe: Any) -> None:
        """A body that went by order since the last round is no fault."""
        service, run = probe
        service.trail.append({"action": "a.b"})
        retention = Retention(service.trail, (), clock=service.clock)
        assert retention.erase(actor="a", reason="r", entries=(299, 300)) == (299, 300)
        assert [run().state, run().state] == ["pass", "pass"]
