"""The views of medical-device."""

from __future__ import annotations

import uuid
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from sqlalchemy.engine import Connection

from healthobs.audit import annotate
from reference_services._kit import Kit, Principal, Problem, add_new, by_id, invalid, moment, page
from reference_services.medical_device import alarms, domain, models, signing, store, udi, vitals

_TAKEN = ("accepted", "duplicate")


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        self.kit = kit
        seed = kit.secret("DEVICE_SIGNING_KEY_FILE", "medical_device.signing.key")
        self.signer = signing.Signer(seed)
        self.observations = kit.counter(
            "observations_total", "Observations received.",
            code=(*vitals.CODES, "other"), result=("accepted", "duplicate", "rejected"),
        )  # fmt: skip
        self.raised = kit.counter(
            "alarms_total", "Alarms raised.", priority=vitals.PRIORITIES, kind=("Phy", "Tec")
        )
        self.signed = kit.counter(
            "signatures_total", "Signatures asked for.",
            meaning=("review", "approval", "responsibility", "authorship"), result=("ok", "refused"),
        )  # fmt: skip
        self.parsed = kit.counter(
            "udi_parse_total", "Identifiers parsed.",
            issuer=("gs1", "hibcc", "iccbba", "unknown"), result=("ok", "issues", "refused"),
        )  # fmt: skip
        self.active = kit.gauge("alarms_active", "Alarms in force.", priority=vitals.PRIORITIES)
        self.devices = kit.gauge("devices", "Registered devices.", status=("active",))
        with kit.reading() as connection:
            self._gauge(connection)

    def parse(self, body: models.UdiInput) -> models.UdiView:
        """Show what an identifier says, and what is wrong with it."""
        parsed = self._parsed(body.udi)
        issues = [models.IssueView(**asdict(issue)) for issue in parsed.issues]
        return models.UdiView(**{**asdict(parsed), "issuer": "gs1", "issues": issues})

    def register(self, body: models.DeviceInput) -> tuple[models.Device, int, dict[str, str]]:
        """Register a device by its identifier."""
        parsed = self._parsed(body.udi)
        code = self.refusal_of(parsed)
        if code is not None:
            raise invalid("The identifier cannot be registered.", "/udi", code)
        device_id = str(uuid.uuid4())
        annotate(resource_id=device_id)
        values = {
            "id": device_id, "device_identifier": parsed.device_identifier, "serial": parsed.serial,
            "lot": parsed.lot, "manufactured": parsed.manufactured and parsed.manufactured.isoformat(),
            "expiry": parsed.expiry and parsed.expiry.isoformat(), "name": body.name, "status": "active",
            "registered_ns": self.kit.clock.wall_ns(),
        }  # fmt: skip
        with self.kit.transaction() as connection:
            if not add_new(connection, store.DEVICES, **values):
                title = "A device has this identifier and serial number."
                raise Problem(409, "device_registered", title, [("/udi", "taken")])
            self._gauge(connection)
            return self._shown(connection, values), 201, {"Location": f"/devices/{device_id}"}

    def read(self, device_id: uuid.UUID) -> models.Device:
        """Show a device."""
        with self.kit.reading() as connection:
            return self._shown(connection, self._found(connection, str(device_id)))

    def observe(self, device_id: uuid.UUID, body: models.Batch) -> models.BatchResult:
        """Take a batch; each item is accepted, known already, or refused with a code."""
        now_ms = self.kit.clock.wall_ns() // 1_000_000
        key, read, outcome = str(device_id), dict[int, domain.Observation](), dict[int, str]()
        for index, item in enumerate(body.observations):
            try:
                read[index] = domain.read_observation(**item.model_dump(), now_ms=now_ms)
            except domain.ItemError as refused:
                outcome[index] = refused.code
        with self.kit.transaction() as connection:
            # Of batches and calibrations of one device one comes after the other: none waits for another in a circle.
            self._found(connection, key, lock=True)
            calibrations = store.calibrations(connection, key)
            batch = [domain.judged(item, calibrations) for item in domain.first_of_each(read)]
            validities = [domain.validity(item.flags) for item in batch]
            new, stored = store.ingest(connection, key, batch, validities)
            self._alarm(connection, key, [item for item in batch if item.key in new])
            outcome |= domain.outcomes(read, new, stored)
            others = ((index, code) for index, code in sorted(outcome.items()) if code not in _TAKEN)
            rejected = [models.Rejected(index=index, code=code) for index, code in others]
            counted = {"accepted": len(new), "duplicate": len(outcome) - len(new) - len(rejected)}
            annotate(details={**counted, "rejected": len(rejected)})
        self._count(body, outcome)
        return models.BatchResult(**counted, rejected=rejected)

    def alarms(self, query: models.AlarmQuery) -> models.Alarms:
        """Show the latest alarms."""
        with self.kit.reading() as connection:
            total, rows = page(connection, store.LATEST_ALARMS, query.limit)
        shown = [
            models.AlarmView.of(
                row, first=moment(row["first_ms"] * 1_000_000), last=moment(row["last_ms"] * 1_000_000)
            )
            for row in rows
        ]
        return models.Alarms(total=total, alarms=shown)

    def calibrate(
        self, device_id: uuid.UUID, body: models.CalibrationInput, principal: Principal
    ) -> tuple[models.Calibration, int]:
        """Record a calibration."""
        if body.due <= self.kit.clock.now().date():
            raise invalid("The next calibration must be due in the future.", "/due", "not_in_the_future")
        with self.kit.transaction() as connection:
            self._found(connection, str(device_id), lock=True)
            values = {
                **body.model_dump(), "due": body.due.isoformat(), "id": str(uuid.uuid4()), "device_id": str(device_id),
                "recorded_by": principal.subject, "recorded_ns": self.kit.clock.wall_ns(),
            }  # fmt: skip
            store.add(connection, store.CALIBRATIONS, values)
        annotate(details={"calibration": values["id"], "due": values["due"]})
        return models.Calibration.of(values, recorded=moment(values["recorded_ns"])), 201

    def sign(
        self, kind: str, record_id: uuid.UUID, body: models.SignatureInput, principal: Principal
    ) -> tuple[models.SignatureView, int]:
        """Sign a record as the caller."""
        key, now_ns = str(record_id), self.kit.clock.wall_ns()
        manifest = {"name": principal.subject, "signed": moment(now_ns), **body.model_dump()}
        with self.kit.transaction() as connection:
            signed = self._found(connection, key, kind, lock=True)
            annotate(details={"kind": kind, "meaning": body.meaning})
            for earlier in self._signatures(connection, kind, key, signed):
                said = (earlier.printed_name, earlier.meaning, earlier.state)
                if said == (principal.subject, body.meaning, "valid"):
                    self.signed.labels(body.meaning, "refused").inc()
                    title = "The caller has signed this record with this meaning."
                    raise Problem(409, "signed_already", title)
            jws = self.signer.sign(kind, key, signed, manifest)
            row = {"id": str(uuid.uuid4()), "kind": kind, "record_id": key, "jws": jws, "signed_ns": now_ns}
            store.add(connection, store.SIGNATURES, row)
        annotate(details={"signature": row["id"]})
        self.signed.labels(body.meaning, "ok").inc()
        return self._signature(row, signed), 201

    def signatures(self, kind: str, record_id: uuid.UUID) -> models.Signatures:
        """Show who signed a record, and what each signature is worth now."""
        key = str(record_id)
        with self.kit.reading() as connection:
            signed = self._found(connection, key, kind)
            found = self._signatures(connection, kind, key, signed)
        digest = signing.digest(signed)
        return models.Signatures(kind=kind, record_id=key, record_sha256=digest, signatures=found)

    @staticmethod
    def refusal_of(parsed: udi.Udi) -> str | None:
        """Return why a device may not be registered under this identifier, or None."""
        if parsed.issues:
            return parsed.issues[0].code
        return "serial_missing" if parsed.serial is None else None

    def _parsed(self, text: str) -> udi.Udi:
        issuer = udi.issuer_of(text)
        try:
            parsed = udi.parse(text, year=self.kit.clock.now().year)
        except udi.UdiError as refused:
            self.parsed.labels(issuer, "refused").inc()
            raise invalid("The identifier cannot be read.", "/udi", refused.code) from None
        self.parsed.labels(issuer, "issues" if parsed.issues else "ok").inc()
        return parsed

    def _found(
        self, connection: Connection, record_id: str, kind: str = "devices", *, lock: bool = False
    ) -> dict[str, Any]:
        if kind not in store.RECORDS:
            raise Problem(404, "record_kind_unknown", "Records of this kind are not signed.")
        row = by_id(connection, store.RECORDS[kind], record_id, lock=lock)
        if row is None:
            raise Problem(404, "record_unknown", "There is no such record.")
        return row

    def _shown(self, connection: Connection, row: Mapping[str, Any]) -> models.Device:
        due = next((due for _, due in reversed(store.calibrations(connection, row["id"]))), None)
        return models.Device.of(row, registered=moment(row["registered_ns"]), calibration_due=due)

    def _alarm(self, connection: Connection, device_id: str, new: list[domain.Observation]) -> None:
        found = alarms.alarms_of(new)
        for alarm in store.raise_alarms(connection, device_id, found):
            self.raised.labels(alarm.priority, alarm.kind).inc()
            self.kit.log.warning("alarm_raised", priority=alarm.priority, kind=alarm.kind)
        self._gauge(connection)

    def _gauge(self, connection: Connection) -> None:
        priorities = store.counts(connection, store.ALARMS.c.priority)
        for priority in vitals.PRIORITIES:
            self.active.labels(priority).set(priorities.get(priority, 0))
        self.devices.labels("active").set(store.counts(connection, store.DEVICES.c.status).get("active", 0))

    def _count(self, body: models.Batch, outcome: Mapping[int, str]) -> None:
        for index, item in enumerate(body.observations):
            result = outcome[index] if outcome[index] in _TAKEN else "rejected"
            self.observations.labels(item.code if item.code in vitals.CODES else "other", result).inc()

    def _signatures(
        self, connection: Connection, kind: str, record_id: str, signed: Mapping[str, Any]
    ) -> list[models.SignatureView]:
        rows = store.signatures(connection, kind=kind, record_id=record_id)
        return [self._signature(row, signed) for row in rows]

    def _signature(self, row: Mapping[str, Any], signed: Mapping[str, Any]) -> models.SignatureView:
        """Show a signature from what the JWS itself says, so that no other column can belie it."""
        said = self.signer.manifest(row["jws"]) or {}
        state = self.signer.state(row["jws"], row["kind"], row["record_id"], signed)
        shown = {name: said.get(name, "") for name in ("signed", "meaning", "reason")}
        return models.SignatureView(
            id=row["id"], printed_name=said.get("name", ""), **shown, record_sha256=said.get("sha256", ""),
            state=state, jws=row["jws"],
        )  # fmt: skip
