"""Non-interference: the same requests about two patients leave the same bytes in every signal of all five services.

Ids, clock, keys and random bytes are the same in both runs; the patients' data differ and have the same pattern of
equalities. The services log at DEBUG, SQLAlchemy tells its statements, and views log, annotate and raise with
patients' data in hand.
"""

from __future__ import annotations

import hashlib
import io
import json
import logging
import os
import random
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, date, datetime
from pathlib import Path
from typing import Any

import psycopg
import pydantic
import pytest
import sqlalchemy as sa
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import Status, StatusCode, get_current_span

from healthobs import Observability
from healthobs.testing import CountingIds, SteppingClock, assert_indistinguishable, assert_no_phi
from healthobs.tracing import RedactingSpanExporter
from reference_services._kit import Problem, ServiceSettings
from reference_services.phi.domain import RECORD_FIELDS
from reference_services.services import SERVICES
from reference_services.synthetic_phi import domain as synthetic
from service_world import World

#: The only differences that may be seen: how long an answer is, and the one key that synthetic-phi-service allows.
DECLARED = {
    "length": r'(?:"response_bytes": ?|Content-Length: )\d+',
    "id of a made-up patient": r'"logger":"synthetic-phi-service","patient_id":"[0-9a-f-]{36}"',
}
SCOPES = (
    "patient:read", "patient:write", "payment:write", "payment:read", "payment:approve", "device:read",
    "device:write", "device:sign", "audit:read", "compliance:read",
)  # fmt: skip
UDI = "(01)00844588003288(17)290101(10)LOT42(21)SN4711"
#: What is as short is not looked for: chance makes it, too.
SHORTEST = 5
COMMON = {"Baggage", "tracestate", "X-Request-Id", "User-Agent", "Referer"}


@dataclass(frozen=True)
class Person:
    """One twin.

    Args:
        index: Which synthetic patient.
        name: A name that no pattern finds.
        ssn: A social security number.
        card: A payment card number, of the same brand as the other twin's.
    """

    index: int
    name: str
    ssn: str
    card: str

    @property
    def record(self) -> dict[str, Any]:
        """The record that phi-service takes."""
        made: Mapping[str, Any] = synthetic.patient(42, self.index)
        return {name: made[name] for name in RECORD_FIELDS}

    def needles(self) -> dict[str, str]:
        """What must be found nowhere, by what it is."""
        record = self.record
        found = {
            "name": self.name,
            "ssn": self.ssn,
            "card": self.card,
            "birth date": str(record["date_of_birth"]),
            "street": record["address"]["line"],
            "last name": record["last_name"],
        }
        found |= {f"contact {n}": item["value"] for n, item in enumerate(record["telecom"])}
        found |= {f"identifier {n}": item["value"] for n, item in enumerate(record["identifiers"])}
        return {what: value for what, value in found.items() if len(value) > SHORTEST}


def _shape(index: int) -> tuple[int, ...]:
    made: Mapping[str, Any] = synthetic.patient(42, index)
    long = len(made["last_name"]) > SHORTEST
    return (
        len(made["diagnosis"]),
        long,
        *(len(made[name]) for name in ("telecom", "identifiers", "conditions")),
    )


FIRST = Person(0, "Ottoline Quassler", "219-09-9999", "4111111111111111")
SECOND = Person(
    next(index for index in range(1, 200) if _shape(index) == _shape(0)),
    "Bartholomew Vandersloot-Ní", "078-05-1120", "4000056655665556",
)  # fmt: skip


class Entropy:
    """Random bytes that are the same in each run; threads that another test left behind get real ones."""

    def __init__(self) -> None:
        self._calls = 0
        self._real = os.urandom
        self._others = set(threading.enumerate()) - {threading.current_thread()}

    def __call__(self, count: int) -> bytes:
        """Return the next `count` bytes."""
        if threading.current_thread() in self._others:
            return self._real(count)
        self._calls += 1
        return hashlib.shake_256(str(self._calls).encode()).digest(count)


class TwinWorld(World):
    """The five services with fixed ids, clock and keys, at DEBUG, the standard library's records captured.

    Args:
        folder: Of this twin's files.
        keys: Folder of key files, which both twins share.
    """

    def __init__(self, folder: Path, keys: Path) -> None:
        super().__init__(folder)
        self._secret = "a-secret-of-both-twins"
        self._keys = keys
        self.time = SteppingClock(datetime(2026, 11, 25, tzinfo=UTC), step_seconds=0.001)

    def _create(self, name: str) -> Any:
        service = SERVICES[name]
        environ = {
            "HEALTHOBS_DATA_DIR": str(self._folder / name),
            "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0",
            "HEALTHOBS_CAPTURE_STDLIB": "true",
            "HEALTHOBS_LOG_LEVEL": "debug",
            "AUTH_CLIENTS_FILE": str(self._clients_file()),
            "AUTH_SIGNING_KEY_FILE": str(self._keys / "auth.pem"),
            "AUDIT_KEY_FILE": str(self._keys / f"{name}.audit.key"),
            **self.environ.get(name, {}),
        }
        settings = ServiceSettings.from_env(service.info, environ)
        settings.data_dir.mkdir(parents=True, exist_ok=True)
        self._log[name], self._spans[name] = io.StringIO(), InMemorySpanExporter()
        self._obs[name] = Observability(
            settings.observability, clock=self.time.clock(), span_exporters=[self._spans[name]], simple_spans=True,
            log_stream=self._log[name], id_generator=CountingIds(),
        )  # fmt: skip
        return service.create_app(settings, obs=self._obs[name], transport=self)

    def recording(self) -> dict[str, str]:
        """Return everything that the services recorded, by signal."""
        found: dict[str, str] = {}
        for name in SERVICES:
            found[f"spans of {name}"] = "\n".join(span.to_json(indent=None) for span in self.spans(name))
            found[f"logs of {name}"] = self._log[name].getvalue()
            accept = "application/openmetrics-text; version=1.0.0"
            found[f"metrics of {name}"] = self.obs(name).metrics.exposition(accept)[1].decode()
        return found

    def close(self) -> None:
        """Close the services, the last first: each gives the root logger back as it found it."""
        for name in reversed(list(self._apps)):
            self._apps[name].extensions["reference_services"].close()
            self._obs[name].close()


class Story:
    """All requests about one person, and what came back.

    Args:
        world: The services.
        person: Whom they are about.
    """

    def __init__(self, world: TwinWorld, person: Person) -> None:
        self.world, self.person = world, person
        self.answers: list[str] = []
        self._tokens: dict[str, dict[str, str]] = {}
        self._keys = 0

    def ask(self, service: str, method: str, path: str, *, role: str | None = "admin", **options: Any) -> Any:
        """Make a request whose headers say something about the person, and keep what may not depend on it."""
        name = self.person.name.encode("ascii", "ignore").decode()
        headers = {
            "Baggage": f"patient={self.person.ssn}", "tracestate": f"vendor={self.person.ssn}", "User-Agent": name,
            "traceparent": f"00-{7:032x}-{9:016x}-01", "X-Request-Id": self.person.ssn, "Referer": f"https://x.example/{self.person.ssn}?q={name}",
            **options.pop("headers", {}),
        }  # fmt: skip
        if role is not None:
            if role not in self._tokens:
                self._tokens[role] = self.world.bearer(*SCOPES, role=role)
            headers |= self._tokens[role]
        if method in ("POST", "PUT") and "Idempotency-Key" not in headers:
            self._keys += 1
            headers["Idempotency-Key"] = f"key-{self._keys}"
        answer = self.world.client(service).open(path, method=method, headers=headers, **options)
        shown = [
            f"{service} {method} {answer.status_code}",
            *(f"{key}: {value}" for key, value in answer.headers),
        ]
        operational = path.partition("?")[0] in (
            "/health", "/readiness", "/metrics", "/compliance/status", "/audit/trail", "/", "/openapi.json",
        )  # fmt: skip
        if answer.content_type == "application/problem+json" or operational or answer.status_code >= 400:
            shown.append(answer.get_data(as_text=True))
        # ids that the services made may stand in `Location` and be asked for: they are the same in both runs
        self.answers.append("\n".join(shown))
        return answer

    def tell(self) -> None:
        """Make every request."""
        self.use()
        self.misuse()
        self.provoke()
        self.look()

    def use(self) -> None:
        """Use every endpoint as it is meant."""
        phi, pay, dev, person = "phi-service", "payment-gateway", "medical-device", self.person
        auth: Any = {"role": None, "headers": self._basic("admin")}
        token = self.world.bearer("patient:read")["Authorization"].removeprefix("Bearer ")
        for path in ("/introspect", "/revoke", "/introspect"):
            self.ask("auth-service", "POST", path, data={"token": token}, **auth)
        grant = {"grant_type": "client_credentials", "scope": "patient:read"}
        self.ask("auth-service", "POST", "/token", data=grant, **auth)
        for path in ("/.well-known/jwks.json", "/.well-known/oauth-authorization-server"):
            self.ask("auth-service", "GET", path)
        self.ask("synthetic-phi-service", "GET", f"/synthetic-patient?seed=42&index={person.index}")
        batch = {"count": 1, "seed": 42, "index": person.index}
        self.ask("synthetic-phi-service", "POST", "/synthetic-patient", json=batch)
        self.ask(
            "synthetic-phi-service", "POST", "/synthetic-patient/verify", json={"patient": person.record}
        )
        treat = {"Purpose-Of-Use": "TREAT"}
        made = self.ask(phi, "POST", "/patients", role="clinician", json=person.record, headers=treat)
        assert made.status_code == 201, made.get_data(as_text=True)
        patient = f"/patients/{made.get_json()['id']}"
        for role, purpose in (("clinician", "TREAT"), ("billing", "HPAYMT"), ("researcher", "HRESCH")):
            self.ask(phi, "GET", patient, role=role, headers={"Purpose-Of-Use": purpose})
        change = {**treat, "If-Match": '"1"'}
        self.ask(phi, "PUT", patient, role="clinician", json=person.record, headers=change)
        search = {"identifier": person.record["identifiers"][0]}
        self.ask(phi, "POST", "/patients/search", role="clinician", json=search, headers=treat)
        device = self.ask(
            dev, "POST", "/devices", role="device-engineer", json={"udi": UDI, "name": "Pulse oximeter"}
        )
        path = f"/devices/{device.get_json()['id']}"
        self.ask(dev, "GET", path)
        self.ask(dev, "POST", "/udi/parse", json={"udi": UDI})
        low = {
            "code": "59408-5",
            "value": 82,
            "unit": "%",
            "effective": "2026-11-24T06:00:00Z",
            "sequence": 1,
        }
        self.ask(dev, "POST", f"{path}/observations", role="device-engineer", json={"observations": [low]})
        done = {"as_found": "1.2", "as_left": "0.1", "performed_by": "engineer-7", "due": "2099-11-23"}
        made = self.ask(dev, "POST", f"{path}/calibrations", role="device-engineer", json=done)
        record = f"/records/calibrations/{made.get_json()['id']}/signatures"
        self.ask(dev, "POST", record, role="qa", json={"meaning": "approval", "reason": "as specified"})
        self.ask(dev, "GET", record)
        self.ask(dev, "GET", "/alarms")
        card = {"number": person.card, "exp_month": 12, "exp_year": 2035, "cvc": "737"}
        made = self.ask(pay, "POST", "/tokens", role="billing", json=card)
        assert made.status_code == 201, made.get_data(as_text=True)
        card_id = made.get_json()["id"]
        bill = {"amount": 12_500, "currency": "USD", "payment_method": card_id, "description": "visit"}
        self.ask(pay, "POST", "/charge", role="billing", json=bill)
        made = self.ask(pay, "POST", "/process", role="billing", json={**bill, "amount": 2_500_000})
        path = f"/payments/{made.get_json()['id']}"
        self.ask(pay, "GET", path)
        decision = {"decision": "approve", "reason": "invoice checked"}
        for role in ("billing", "approver"):
            self.ask(pay, "POST", f"{path}/approvals", role=role, json=decision)
        for way in ("capture", "void"):
            held = self.ask(pay, "POST", "/process", role="billing", json={**bill, "capture": False})
            self.ask(pay, "POST", f"/payments/{held.get_json()['id']}/{way}", role="billing", json={})
        self.ask(pay, "GET", "/alerts")

    def misuse(self) -> None:
        """Put the person's data where they do not belong: paths, queries, members, types, text that is no JSON."""
        name, ssn = self.person.name, self.person.ssn
        for service in SERVICES:
            kit = self.world[service].extensions["reference_services"]
            self.ask(service, "GET", f"/people/{name}/{ssn}?name={name}")
            self.ask(service, "GET", f"/?{ssn}={name}")
            self.ask(service, "DELETE", f"/openapi.json?{name}")
            self.ask(
                service,
                "BREW",
                "/",
                headers={"Authorization": f"Bearer {name}".encode("ascii", "ignore").decode()},
                role=None,
            )
            for operation in kit.operations:
                path = operation.rule.replace("<kind>", ssn)
                path = path.replace("<payment_id>", ssn) if "payment_id" in path else path
                for marker in ("<uuid:patient_id>", "<uuid:device_id>", "<uuid:record_id>"):
                    path = path.replace(marker, "00000000-0000-4000-8000-000000000000")
                purpose = {"Purpose-Of-Use": "TREAT", "If-Match": f'"{ssn}"'}
                for body in ({ssn: name, "count": name}, [name], name):
                    options: dict[str, Any] = {"data": {ssn: name}} if operation.form else {"json": body}
                    if operation.body is None:
                        options = {}
                    self.ask(service, operation.method, path, headers=purpose, role="clinician", **options)
                raw = f'{{"{ssn}": {name}'
                self.ask(service, operation.method, path, data=raw, content_type="application/json")

    def provoke(self) -> None:
        """Let a view of every service log, annotate and raise with the person's data in hand."""
        for service in SERVICES:
            kit = self.world[service].extensions["reference_services"]
            for raising in FAULTS:
                answer, kit._answer = (
                    kit._answer,
                    lambda *_, raising=raising, kit=kit: self._careless(kit, raising),
                )
                try:
                    self.ask(service, "GET", "/")
                finally:
                    kit._answer = answer

    def _careless(self, kit: Any, raising: Callable[[Person], object]) -> None:
        person, span, ordinary = self.person, get_current_span(), logging.getLogger("app")
        kit.log.debug(f"looking at {person.name}", person=person, note=person.name, ssn=person.ssn)  # noqa: G004
        kit.log.info(person.name, nested={"who": [person.name, {person.ssn: person}]})
        ordinary.debug("looking at %s, born %s", person.name, person)
        ordinary.info(f"looking at {person.name}")
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.warn(f"{person.name} is not on file", stacklevel=1)
        span.set_attribute("note", person.name)
        span.set_attribute("who", person)  # type: ignore[arg-type]
        span.add_event(person.name, {"note": person.name, "ssn": person.ssn})
        kit.obs.metrics.counter("visits_total", "Visits", ("visitor",)).labels(person.name).inc()
        with kit.obs.tracing.tracer.start_as_current_span(f"see {person.name}") as inner:
            inner.set_status(Status(StatusCode.ERROR, f"no {person.name}"))
        try:
            raising(person)
        except Exception as exc:
            span.record_exception(exc)
            kit.log.exception("it failed")
            ordinary.exception(f"it failed for {person.name}")
            raise

    def look(self) -> None:
        """Read every operational endpoint."""
        for service in SERVICES:
            for path in (
                "/health",
                "/readiness",
                "/compliance/status",
                "/audit/trail?limit=1000",
                "/openapi.json",
                "/metrics",
            ):
                self.ask(service, "GET", path, role="auditor")

    def _basic(self, role: str) -> dict[str, str]:
        import base64

        return {
            "Authorization": f"Basic {base64.b64encode(f'{role}:{self.world._secret}'.encode()).decode()}"
        }


class Visit(pydantic.BaseModel):
    """A model that tells what it was given."""

    age: int


def _pydantic(person: Person) -> object:
    return Visit.model_validate({"age": person.name})


def _sqlalchemy(person: Person) -> object:
    engine = sa.create_engine("sqlite://")
    table = sa.Table("people", sa.MetaData(), sa.Column("ssn", sa.String, primary_key=True))
    try:
        with engine.begin() as connection:
            table.create(connection)
            return connection.execute(sa.insert(table), [{"ssn": person.ssn}, {"ssn": person.ssn}])
    finally:
        engine.dispose()


def _psycopg(person: Person) -> object:
    raise psycopg.errors.UniqueViolation(
        'duplicate key value violates unique constraint "people_pkey"\n'
        f"DETAIL:  Key (ssn)=({person.ssn}) already exists. Failing row contains ({person.ssn}, {person.name})."
    )


#: What a view may raise with a patient's data in its text.
FAULTS: tuple[Callable[[Person], object], ...] = (
    _pydantic,
    _sqlalchemy,
    _psycopg,
    lambda person: int(person.ssn),
    lambda person: {}[person.name],
    lambda person: date.fromisoformat(person.record["date_of_birth"] + person.name),
    lambda person: json.loads(f"{{{person.name}"),
)


class InTurn(threading.Thread):
    """A thread that is waited for when it runs a health check: so checks run in the same order in both runs."""

    def start(self) -> None:
        """Start, and wait."""
        super().start()
        if self.name.startswith("healthobs-check"):
            self.join()


@contextmanager
def fixed_entropy() -> Iterator[pytest.MonkeyPatch]:
    """Make ids, salts and nonces the same in each run."""
    with pytest.MonkeyPatch.context() as patch:
        entropy = Entropy()
        patch.setattr(os, "urandom", entropy)
        patch.setattr(random, "_urandom", entropy)
        yield patch


@contextmanager
def told(folder: Path, keys: Path, person: Person) -> Iterator[tuple[TwinWorld, Story]]:
    """Run the whole story of one person."""
    levels = {name: logging.getLogger(name).level for name in ("sqlalchemy", "urllib3", "app")}
    for name in levels:
        logging.getLogger(name).setLevel(logging.DEBUG)  # before engines are made: they look only then
    folder.mkdir()
    with fixed_entropy() as patch:
        world = TwinWorld(folder, keys)
        # The SDK and prometheus_client read the time themselves for spans and exemplars that others make.
        patch.setattr("opentelemetry.sdk.trace.time_ns", world.time.wall_ns)
        patch.setattr(time, "time", lambda: world.time.wall_ns() / 1e9)
        patch.setattr(threading, "Thread", InTurn)
        try:
            for name in SERVICES:
                _ = world[name]
            yield world, Story(world, person)
        finally:
            world.close()
            for name, level in levels.items():
                logging.getLogger(name).setLevel(level)


@pytest.fixture(scope="module")
def keys(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Give the folder of the keys that both twins share, and make them."""
    folder = tmp_path_factory.mktemp("keys")
    scratch = tmp_path_factory.mktemp("scratch")
    world = TwinWorld(scratch, folder)
    for name in SERVICES:
        _ = world[name]
    world.close()
    return folder


@pytest.fixture(scope="module")
def twins(
    tmp_path_factory: pytest.TempPathFactory, keys: Path
) -> Iterator[dict[str, tuple[Path, Any, Any, Any]]]:
    """Give folder, recording, answers and routes of both runs."""
    found = {}
    for what, person in (("first", FIRST), ("second", SECOND)):
        folder = tmp_path_factory.mktemp(what) / "data"
        with told(folder, keys, person) as (world, story):
            story.tell()
            routes = {
                name: {(op.method, op.rule) for op in world[name].extensions["reference_services"].operations}
                for name in SERVICES
            }
            found[what] = (
                folder,
                {**world.recording(), "answers": "\n".join(story.answers)},
                routes,
                _routes(world),
            )
    return found


def _routes(world: TwinWorld) -> dict[str, set[tuple[str, str]]]:
    """Return the routes that were asked for and answered well, as the metrics say."""
    return {
        name: {
            (sample.labels["http_request_method"], sample.labels["http_route"])
            for family in world.obs(name).metrics.registry.collect()
            for sample in family.samples
            if sample.name == "http_server_request_duration_seconds_count"
            and sample.labels["http_response_status_code"].startswith("2")
        }
        for name in SERVICES
    }


def test_every_endpoint_takes_part(twins: Any) -> None:
    """Each operation of each service was answered well at least once: what is not asked proves nothing."""
    _, _, routes, asked = twins["first"]
    assert {name: routes[name] - asked[name] for name in SERVICES} == {name: set() for name in SERVICES}


def test_twins_are_indistinguishable(twins: Any) -> None:
    """Spans, logs, metrics, headers, problem bodies and operational endpoints are the same, byte for byte."""
    assert_indistinguishable(twins["first"][1], twins["second"][1], declared=DECLARED)


def test_the_twins_are_two(twins: Any) -> None:
    """The people differ in every value that is looked for, so that equal bytes mean something."""
    first, second = FIRST.needles(), SECOND.needles()
    assert first.keys() == second.keys()
    assert not set(first.values()) & set(second.values())


def test_no_needle_in_telemetry_files_or_databases(twins: Any) -> None:
    """None of the planted values is anywhere, in no form."""
    for what, person in (("first", FIRST), ("second", SECOND)):
        folder, recording, _, _ = twins[what]
        assert_no_phi(person.needles(), folder, *recording.values())


class TestPlanted:
    """What gets past the redactor on purpose is found, by the twins and by the needles."""

    @pytest.mark.parametrize("way", ["log", "span", "metric", "problem"])
    def test_it_is_found(self, tmp_path: Path, keys: Path, monkeypatch: pytest.MonkeyPatch, way: str) -> None:
        """One value past one exit: the twins differ there, and only there."""
        plant, signals = PLANTED[way]
        recordings = []
        for person in (FIRST, SECOND):
            with monkeypatch.context() as patch, told(tmp_path / person.ssn, keys, person) as (world, story):
                plant(patch, world.obs("phi-service"), person)
                story.ask("phi-service", "GET", f"/nowhere/{person.name}")
                recordings.append({**world.recording(), "answers": "\n".join(story.answers)})
            with pytest.raises(AssertionError, match="planted values can be read"):
                assert_no_phi({"name": person.name}, *recordings[-1].values())
        with pytest.raises(AssertionError) as found:
            assert_indistinguishable(*recordings, declared={"length": DECLARED["length"]})
        assert {what.partition(" differ")[0] for what in str(found.value).split("; ")} == signals


def _past_the_log(_: pytest.MonkeyPatch, obs: Observability, person: Person) -> None:
    obs.logs.access({"event": "shown", "who": person.name})


def _past_the_exporter(patch: pytest.MonkeyPatch, obs: Observability, person: Person) -> None:
    patch.setattr(RedactingSpanExporter, "_redact", lambda _, span: span)
    obs.tracing.tracer.start_span("shown", attributes={"who": person.name}).end()


def _past_the_labels(patch: pytest.MonkeyPatch, obs: Observability, person: Person) -> None:
    patch.setattr(obs.redactor, "label", lambda _, value, declared: value)
    obs.metrics.counter("shown_total", "Shown", ("who",)).labels(person.name).inc()


def _past_the_problem(patch: pytest.MonkeyPatch, _: Observability, person: Person) -> None:
    patch.setattr(
        "reference_services._kit.errors.of_status", lambda code, headers: Problem(code, "x", person.name)
    )


#: Way past the redactor -> what plants it, and the signals in which it must be seen.
PLANTED: dict[str, tuple[Callable[[pytest.MonkeyPatch, Observability, Person], None], set[str]]] = {
    "log": (_past_the_log, {"logs of phi-service"}),
    "span": (_past_the_exporter, {"spans of phi-service"}),
    "metric": (_past_the_labels, {"metrics of phi-service"}),
    "problem": (_past_the_problem, {"answers"}),
}
