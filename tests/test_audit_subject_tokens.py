"""A trail with a map of subjects: entries have tokens on every way into the log, and identifiers find them."""

from __future__ import annotations

import io
import json
import sqlite3
import threading
import uuid
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest

from healthobs import Observability, Settings, audited, use
from healthobs.audit import AuditTrail, Outbox, annotate, open_trail, subjects
from healthobs.audit.command import main as command
from healthobs.audit.retention import RecordClass, Retention
from healthobs.audit.subjects import SubjectMap
from healthobs.clock import Clock
from healthobs.compliance import ProbeContext
from healthobs.compliance.probes_audit import Recording
from healthobs.endpoints import Endpoints, Request
from healthobs.exceptions import AuditWriteError, ConfigurationError
from healthobs.redaction import Redactor
from healthobs.testing import Capture, assert_no_phi
from subject_places import FilePlace

#: No pattern of redaction finds it, so only the map keeps it out of the log.
PATIENT = "Quixote-of-Barataria"
NEEDLES = {"identifier": PATIENT}
READ = {"action": "patient.read", "actor": "client-1", "subject": PATIENT}
CARE = {**READ, "purpose": "BTG"}


class Service:
    """A trail in one folder, with its spool and its map, which may be elsewhere."""

    def __init__(self, place: FilePlace) -> None:
        self.place = place
        self.folder = place.folder
        self.trail = self.open()

    def open(self) -> AuditTrail:
        return open_trail(
            f"sqlite:///{self.folder}/audit.db",
            service="s",
            spool_file=self.folder / "spool",
            subjects=self.place.open(),
        )

    @property
    def subjects(self) -> SubjectMap:
        assert self.trail.subjects is not None
        return self.trail.subjects

    def bodies(self) -> list[dict[str, Any]]:
        """Return what the log holds, oldest first."""
        with closing(sqlite3.connect(self.folder / "audit.db")) as connection:
            return [json.loads(body) for (body,) in connection.execute("SELECT body FROM entry ORDER BY idx")]

    def rows(self) -> int:
        """Return how many subjects the map knows."""
        return int(self.place.execute("SELECT count(*) FROM subject")[0][0])

    def lose_map(self) -> Callable[[], object]:
        """Take the map away; return what puts it back."""
        return self.place.lose()


@pytest.fixture
def service(place: FilePlace) -> Iterator[Service]:
    made = Service(place)
    yield made
    made.trail.close()


def by_outbox(service: Service) -> None:
    connection = sqlite3.connect(service.folder / "business.db")
    with closing(connection):
        outbox = Outbox(service.trail, lambda: connection)
        outbox.create_table()
        with connection:
            outbox.add(connection, READ)
        assert_no_phi(NEEDLES, service.folder)  # while it waits, too
        outbox.flush()


def by_spool(service: Service) -> None:
    service.trail.close()
    assert service.trail.append_or_spool(CARE) is None
    assert_no_phi(NEEDLES, service.folder)
    service.trail = service.open()
    service.trail.append({"action": "service.begun"})


def by_decorator(service: Service) -> None:
    @audited("patient.read")
    def read() -> None:
        annotate(subject=PATIENT, resource_id=PATIENT)

    with use(Observability(Settings(), audit=service.trail, log_stream=io.StringIO())):
        read()


WAYS: dict[str, Callable[[Service], object]] = {
    "append": lambda service: service.trail.append(READ),
    "care": lambda service: service.trail.append_or_spool(CARE),
    "decorator": by_decorator,
    "outbox": by_outbox,
    "spool": by_spool,
    "hold": lambda service: Retention(service.trail).hold("h", actor="a", reason="r", subject=PATIENT),
}


class TestWays:
    """No way into the log takes an identifier along."""

    @pytest.mark.parametrize("way", WAYS)
    def test_entry_has_the_token(self, service: Service, way: str) -> None:
        """The entry is about the subject's token, and no file of the service can be read for the identifier."""
        WAYS[way](service)
        assert {body["subject"] for body in service.bodies()} - {None} == {service.subjects.find(PATIENT)}
        assert_no_phi(NEEDLES, service.folder)

    @pytest.mark.parametrize("way", [way for way in WAYS if way != "hold"])  # which is refused there
    def test_search_finds_it_without_the_map(self, tmp_path: Path, way: str) -> None:
        """The planted fault: a trail without its map writes the identifier, and the search of the files is red."""
        planted = Service(FilePlace(tmp_path))
        planted.trail._encoder.subjects = None
        planted.open = lambda: open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")  # type: ignore[method-assign]
        with pytest.raises(AssertionError, match="identifier as plain in"):
            (WAYS[way](planted), assert_no_phi(NEEDLES, tmp_path))
        planted.trail.close()

    def test_resource_that_is_the_subject(self, service: Service) -> None:
        """A resource id that is the subject's identifier becomes the token, too; any other stays."""
        for resource in (PATIENT, "chart-7"):
            service.trail.append({**READ, "resource_id": resource})
        token = service.subjects.find(PATIENT)
        assert [body["resource"]["id"] for body in service.bodies()] == [token, "chart-7"]

    def test_token_stays(self, service: Service) -> None:
        """Who hands over a token of the map, as an application that asks for it by hand does, gets no second one."""
        token = service.subjects.token(PATIENT)
        service.trail.append({**READ, "subject": token})
        assert (service.bodies()[0]["subject"], service.rows()) == (token, 1)

    def test_token_of_digits_is_no_card_number(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Redaction leaves every token as it is, also one that chance made of digits alone."""
        digits = uuid.UUID("42424242-4242-4242-8242-424242424242")
        monkeypatch.setattr(subjects.uuid, "uuid4", lambda: digits)
        service.trail.append(READ)
        assert service.bodies()[0]["subject"] == f"s-{digits}"

    def test_without_a_map(self, tmp_path: Path) -> None:
        """A trail without a map records subjects as they are given."""
        with closing(open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")) as trail:
            trail.append({**READ, "subject": "subject-17"})
            assert [entry["subject"] for entry in trail.read(subject="subject-17").entries] == ["subject-17"]


class TestReading:
    """The identifier finds the entries; looking makes nothing."""

    def test_by_identifier_and_by_token(self, service: Service) -> None:
        """Both find the same entries, also as the resource that is the subject."""
        service.trail.append({**READ, "resource_id": PATIENT})
        service.trail.append({**READ, "subject": "somebody-else"})
        for wanted in (PATIENT, service.subjects.token(PATIENT)):
            assert [entry["index"] for entry in service.trail.read(subject=wanted).entries] == [0]
            assert [entry["index"] for entry in service.trail.read(resource_id=wanted).entries] == [0]

    def test_unknown_identifier(self, service: Service) -> None:
        """Who is not in the map has no entries, and is not put into it."""
        service.trail.append(READ)
        page = service.trail.read(subject="nobody-here")
        assert (page.entries, page.total, service.rows()) == ([], 0, 1)

    def test_entries_from_before_the_map(self, service: Service) -> None:
        """Entries that were recorded while there was no map are found beside those with the token."""
        service.trail._encoder.subjects, kept = None, service.trail.subjects
        service.trail.append(READ)
        service.trail._encoder.subjects = kept
        service.trail.append(READ)
        assert [entry["index"] for entry in service.trail.read(subject=PATIENT).entries] == [1, 0]

    def test_endpoint(self, tmp_path: Path, place: FilePlace) -> None:
        """`GET /audit/trail?subject=` takes the identifier, and what it answers does not have it."""
        settings = Settings(
            endpoints=True,
            control_interval_seconds=0,
            audit_database_url=f"sqlite:///{tmp_path}/audit.db",
            **place.settings,
        )
        with Capture(settings) as capture:
            assert capture.obs.audit is not None
            capture.obs.audit.append({**READ, "resource_id": PATIENT})
            endpoints = Endpoints(capture.obs, lambda _request, _scope: Auditor())
            counts = []
            for wanted in (PATIENT, "nobody-here"):
                query = {"subject": [wanted]}
                asked = Request("GET", "/audit/trail", query, {"authorization": "Bearer t"})
                answer = endpoints.handle(asked)
                assert answer is not None
                assert_no_phi(NEEDLES, answer.body)
                counts.append(json.loads(answer.body)["total_entries"])
            assert counts == [1, 0]
        assert_no_phi(NEEDLES, tmp_path)

    def test_commands_need_no_map(self, service: Service, capsys: pytest.CaptureFixture[str]) -> None:
        """Verification and every export work on the log alone; they show tokens, FHIR's as the patient's identifier."""
        service.trail.append(READ)
        token = service.subjects.find(PATIENT)
        service.lose_map()
        path = str(service.folder / "audit.db")
        assert command(["verify", path]) == 0
        for form in ([], ["--csv"], ["--fhir"]):
            capsys.readouterr()
            assert command(["export", path, *form]) == 0
            shown = capsys.readouterr().out
            assert str(token) in shown
            assert_no_phi(NEEDLES, shown)


class Auditor:
    """Who may read."""

    subject = "auditor-7"


class TestFaults:
    """A fault of the map is a fault of the audit trail."""

    def test_deny(self, service: Service) -> None:
        """Without the map an entry about somebody is refused, in words without the identifier; others are recorded."""
        service.lose_map()
        with pytest.raises(AuditWriteError, match="subject map cannot be used") as caught:
            service.trail.append(READ)
        assert_no_phi(
            NEEDLES, repr(caught.value), repr(caught.value.__cause__), repr(caught.value.__context__)
        )
        service.trail.append({"action": "service.begun"})
        assert [body["action"] for body in service.bodies()] == ["service.begun"]

    def test_nothing_leaves_under_deny(self, tmp_path: Path, place: FilePlace) -> None:
        """A function whose entry gets no token is not answered, and no signal tells of whom."""

        @audited("patient.read", policy="deny")
        def read() -> str:
            annotate(subject=PATIENT)
            return "record"

        settings = Settings(audit_database_url=f"sqlite:///{tmp_path}/audit.db", **place.settings)
        with Capture(settings) as capture:
            place.lose()
            with pytest.raises(AuditWriteError, match="not answered"):
                read()
            assert [line["event"] for line in capture.log_lines] == ["audit_entry_lost"]
            assert_no_phi(NEEDLES, json.dumps(capture.telemetry()))

    def test_identifier_that_is_no_unicode(self, service: Service) -> None:
        """Half a surrogate, which cannot be encoded, makes no error that quotes the identifier, and one token."""
        strange = f"{PATIENT}\udc80"
        tokens = {service.subjects.token(strange) for _ in range(2)}
        assert {service.subjects.identifier(token) for token in tokens} == {strange}
        service.trail.append({**READ, "subject": strange})
        assert {body["subject"] for body in service.bodies()} == tokens

    def test_is_not_made_anew_meanwhile(self, service: Service) -> None:
        """A map that vanished under a running service is not replaced by an empty one."""
        service.lose_map()
        with pytest.raises(AuditWriteError):
            service.trail.append(READ)
        assert not service.place.is_there()

    def test_readiness_and_control_tell(self, service: Service) -> None:
        """The health check of the trail and the probe of H-312.b fail while the map cannot be used."""
        context = ProbeContext(settings=Settings(), clock=Clock(), redactor=Redactor(), audit=service.trail)
        service.trail.health()
        assert Recording()(context).state == "pass"
        back = service.lose_map()
        with pytest.raises(subjects.AuditError, match="subject map"):
            service.trail.health()
        assert Recording()(context).state == "fail"
        back()
        service.trail.health()

    def test_damaged_map(self, tmp_path: Path) -> None:
        """Readiness fails on a file that is there and is no map."""
        service = Service(FilePlace(tmp_path))
        service.place.file.write_bytes(b"no database" * 100)
        with closing(service.trail), pytest.raises(subjects.AuditError, match="subject map"):
            service.trail.health()

    def test_known_subject_waits_for_no_writer(self, tmp_path: Path) -> None:
        """While another process writes, a known subject has its token; a new one waits as long as it is told."""
        service = Service(FilePlace(tmp_path))
        token = service.subjects.token(PATIENT)
        with (
            closing(service.trail),
            closing(sqlite3.connect(service.place.file, isolation_level=None)) as other,
        ):
            other.execute("BEGIN IMMEDIATE")
            assert service.subjects.token(PATIENT) == token
            with pytest.raises(subjects.AuditError, match="SQLITE_BUSY"):
                service.subjects.token("somebody-new", wait_seconds=0)

    def test_without_its_key(self, service: Service) -> None:
        """A service whose map lost its key does not start."""
        service.trail.append(READ)
        service.place.key.unlink()
        with pytest.raises(ConfigurationError, match="key file is missing"):
            service.open()

    def test_without_its_map(self, tmp_path: Path) -> None:
        """A service whose map in a file is gone does not start, and begins none."""
        service = Service(FilePlace(tmp_path))
        service.trail.close()
        back = service.lose_map()
        with pytest.raises(ConfigurationError, match=r"subject map .* is gone"):
            service.open()
        assert not service.place.is_there()
        back()
        service.open().close()


class TestCare:
    """Care under break-glass goes on without the map, and the spool has no identifier."""

    def test_goes_on_sealed(self, service: Service) -> None:
        """The entry waits in the spool with a stand-in; merged, it is about the token that the subject has."""
        service.trail.append(READ)
        back = service.lose_map()
        assert service.trail.append_or_spool({**CARE, "resource_id": PATIENT}) is None
        assert_no_phi(NEEDLES, service.folder)
        back()
        service.trail.append(READ)
        bodies = service.bodies()
        assert {body["subject"] for body in bodies} == {service.subjects.find(PATIENT)}
        assert [body["resource"]["id"] for body in bodies] == [None, bodies[0]["subject"], None]
        assert service.trail.verify().ok
        assert_no_phi(NEEDLES, service.folder)

    def test_waits_for_the_map_as_for_the_store(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Care waits two seconds for a token, any other entry as long as an append."""
        waited: list[float] = []

        def token(_subjects: SubjectMap, _identifier: str, *, wait_seconds: float) -> str:
            waited.append(wait_seconds)
            return "s-1"

        monkeypatch.setattr(SubjectMap, "token", token)
        service.trail.append_or_spool(CARE)
        service.trail.append(READ)
        assert waited == [2.0, 10.0]

    def test_subject_that_was_new(self, service: Service) -> None:
        """Several entries about somebody whom the map does not know yet are about one token in the end."""
        back = service.lose_map()
        for _ in range(3):
            service.trail.append_or_spool(CARE)
        back()
        service.trail.append(READ)
        assert [body["subject"] for body in service.bodies()] == [service.subjects.find(PATIENT)] * 4

    def test_merge_waits_for_the_map(self, service: Service) -> None:
        """While the map is away the spooled entry stays, and nothing is recorded before it."""
        back = service.lose_map()
        service.trail.append_or_spool(CARE)
        with pytest.raises(AuditWriteError, match="subject map"):
            service.trail.append({"action": "service.begun"})
        assert service.bodies() == []
        back()
        service.trail.append({"action": "service.begun"})
        assert [body["action"] for body in service.bodies()] == ["patient.read", "service.begun"]

    def test_merged_once(self, service: Service) -> None:
        """A merge that was cut off after the log had the entry leaves one entry."""
        back = service.lose_map()
        service.trail.append_or_spool(CARE)
        back()
        spooled = (service.folder / "spool").read_bytes()
        service.trail.append({"action": "service.begun"})
        (service.folder / "spool").write_bytes(spooled)
        service.trail.append({"action": "service.begun"})
        assert [body["action"] for body in service.bodies()].count("patient.read") == 1
        assert service.trail.refused_rows == 0

    def test_lost_map(self, service: Service) -> None:
        """With an empty map, begun on purpose under the same key, the sealed entries are still about somebody."""
        service.lose_map()
        service.place.give_up()
        service.trail.append_or_spool(CARE)
        service.trail.close()
        service.trail = service.open()
        service.trail.append({"action": "service.begun"})
        token = service.bodies()[0]["subject"]
        assert service.subjects.identifier(token) == PATIENT

    @pytest.mark.parametrize("seal", ["", "AAAA", "no base64!", "é"])
    def test_forged_seal(self, service: Service, seal: str) -> None:
        """A line whose seal was altered is about its stand-in, which is nobody's; it holds up no other."""
        back = service.lose_map()
        service.trail.append_or_spool(CARE)
        back()
        spool, trail = service.trail.spool, service.trail
        assert spool is not None
        rows: list[tuple[str, bytes]] = []
        spool.merge(rows.extend)
        ((key, body),) = rows
        spool.add(f"{key.partition('+')[0]}+{seal}", body)
        trail.append(READ)
        merged = [body["subject"] for body in service.bodies()]
        assert merged[-1] == service.subjects.find(PATIENT)
        assert [service.subjects.identifier(token or "") for token in merged[:-1]] in ([], [None])

    def test_policy_of_a_function(self, tmp_path: Path, place: FilePlace) -> None:
        """Under the policy `spool` care is answered with an alarm while the map is away, all else is denied."""
        settings = Settings(
            audit_policy="spool",
            audit_database_url=f"sqlite:///{tmp_path}/audit.db",
            audit_spool_file=tmp_path / "spool",
            **place.settings,
        )

        @audited("patient.read")
        def read(purpose: str) -> str:
            annotate(subject=PATIENT, purpose=purpose)
            return "record"

        with Capture(settings) as capture:
            back = place.lose()
            assert read("BTG") == "record"
            with pytest.raises(AuditWriteError):
                read("TREAT")
            events = [line["event"] for line in capture.log_lines]
            assert events == ["audit_entry_spooled", "audit_entry_lost"]
            assert_no_phi(NEEDLES, tmp_path, json.dumps(capture.telemetry()))
            back()


class TestErasure:
    """Whoever erases a subject's row makes its entries about nobody."""

    def test_entries_are_about_nobody(self, service: Service) -> None:
        """The log verifies as before, the identifier finds nothing, the token leads nowhere, and what comes is new."""
        service.trail.append(READ)
        token = service.bodies()[0]["subject"]
        assert service.subjects.erase(PATIENT)
        assert service.subjects.identifier(token) is None
        assert service.trail.read(subject=PATIENT).entries == []
        assert [entry["index"] for entry in service.trail.read(subject=token).entries] == [0]
        assert service.trail.verify().ok
        service.trail.append(READ)
        assert [entry["index"] for entry in service.trail.read(subject=PATIENT).entries] == [1]

    @pytest.mark.parametrize("recorded", [False, True])
    def test_sealed_entry_that_waits_comes_first(self, service: Service, recorded: bool) -> None:
        """Forgetting merges the spool before, so that nothing in it brings the row back, also after a merge cut off."""
        service.trail.append(READ)
        back = service.lose_map()
        service.trail.append_or_spool(CARE)
        back()
        spool = service.folder / "spool"
        sealed = spool.read_bytes()
        if recorded:
            service.trail.append({"action": "service.begun"})
            spool.write_bytes(sealed)
        assert service.trail.forget(PATIENT)
        service.trail.append({"action": "service.ended"})
        assert (service.rows(), service.subjects.find(PATIENT), service.trail.refused_rows) == (0, None, 0)
        assert len({body["subject"] for body in service.bodies()} - {None}) == 1
        assert not service.trail.forget(PATIENT)

    def test_nothing_is_forgotten_while_the_spool_waits(
        self, service: Service, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the store is down, or more was spooled during the merge, forgetting is refused and can be asked again."""
        service.trail.append(READ)
        back = service.lose_map()
        service.trail.append_or_spool(CARE)
        back()
        log, spool, settled = service.folder / "audit.db", service.trail.spool, SubjectMap.settled
        assert spool is not None
        hidden = log.rename(service.folder / "hidden")
        with pytest.raises(AuditWriteError):
            service.trail.forget(PATIENT)
        hidden.rename(log)
        row = service.trail.new_key(), service.trail.encode({"action": "service.begun"})

        def busy(*arguments: Any) -> bytes:
            spool.add(*row)
            return settled(*arguments)

        with monkeypatch.context() as patched:
            patched.setattr(SubjectMap, "settled", busy)
            with pytest.raises(subjects.AuditError, match="wait in the spool"):
                service.trail.forget(PATIENT)
        assert service.rows() == 1
        assert service.trail.forget(PATIENT)

    def test_merged_by_another_meanwhile(self, service: Service, monkeypatch: pytest.MonkeyPatch) -> None:
        """What another process had read from the spool, and is about to seal again, is no way back into the map."""
        service.trail.append(READ)
        back = service.lose_map()
        service.trail.append_or_spool(CARE)
        back()
        settled, forgotten = SubjectMap.settled, list[bool]()
        forgetting = threading.Thread(target=lambda: forgotten.append(service.trail.forget(PATIENT)))

        def meanwhile(*arguments: Any) -> bytes:
            monkeypatch.setattr(SubjectMap, "settled", settled)
            forgetting.start()
            forgetting.join(1)
            return settled(*arguments)

        with closing(service.open()) as other:
            monkeypatch.setattr(SubjectMap, "settled", meanwhile)
            other.append({"action": "service.begun"})
        forgetting.join()
        assert (forgotten, service.rows(), service.trail.refused_rows) == ([True], 0, 0)
        assert len({body["subject"] for body in service.bodies()} - {None}) == 1

    def test_without_a_map(self, tmp_path: Path) -> None:
        """A trail without a map has nobody to forget."""
        with (
            closing(open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")) as trail,
            pytest.raises(subjects.AuditError, match="no map of subjects") as caught,
        ):
            trail.forget(PATIENT)
        assert_no_phi(NEEDLES, str(caught.value))

    def test_bodies_by_identifier(self, service: Service) -> None:
        """Holding and erasing entries takes the identifier where the trail has the map."""
        service.trail.append(READ)
        service.trail.append({**READ, "subject": "somebody-else"})
        retention = Retention(service.trail, [RecordClass("none", 0)])
        retention.hold("case", actor="a", reason="r", subject=PATIENT)
        with pytest.raises(subjects.AuditError, match="legal hold"):
            retention.erase(actor="a", reason="r", subject=PATIENT)
        retention.release("case", actor="a", reason="r")
        assert retention.erase(actor="a", reason="r", subject=PATIENT) == (0,)
        assert_no_phi(NEEDLES, service.folder)
