"""Tests of medical-device over HTTP: registration, observations, alarms, calibrations, signatures."""

from __future__ import annotations

import stat
import uuid
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from healthobs.compliance import ProbeContext
from one_service import OneService, refusal
from reference_services._kit import ServiceSettings
from reference_services.medical_device import models, udi
from reference_services.medical_device.api import INFO, create_app
from reference_services.medical_device.controls import controls

UDI = "(01)00844588003288(11)250130(17)290101(10)LOT42(21)SN4711"


class Devices(OneService):
    """medical-device with what a test asks it most."""

    name = "medical-device"
    prefix = "medical_device"
    scopes = ("device:read", "device:write", "device:sign")
    role = "device-engineer"

    def device(self, udi: str = UDI) -> str:
        """Register a device and return its id."""
        answer = self.post("/devices", {"udi": udi, "name": "Pulse oximeter"})
        assert answer.status_code == 201, answer.get_data(as_text=True)
        return str(answer.get_json()["id"])

    def calibration(self, device: str) -> str:
        """Record a calibration and return its id."""
        body = {"as_found": "1.2", "as_left": "0.1", "performed_by": "engineer-7", "due": "2099-11-23"}
        answer = self.post(f"/devices/{device}/calibrations", body)
        assert answer.status_code == 201, answer.get_data(as_text=True)
        return str(answer.get_json()["id"])

    def observe(self, device: str, *items: dict[str, Any]) -> Any:
        """Send a batch."""
        return self.post(f"/devices/{device}/observations", {"observations": list(items)})

    def sign(self, path: str, role: str = "qa", meaning: str = "approval") -> Any:
        """Sign a record as the client of a role."""
        return self.post(
            f"/records/{path}/signatures", {"meaning": meaning, "reason": "as specified"}, role=role
        )


@pytest.fixture
def devices(world: Any, tmp_path: Path) -> Devices:
    """A running medical-device."""
    return Devices(world, tmp_path)


#: One moment for all: two equal items stay equal when a minute ends between them.
EFFECTIVE = (datetime.now(UTC) - timedelta(minutes=1)).strftime("%Y-%m-%dT%H:%M:00Z")


def ago(seconds: float = 0, **more: float) -> str:
    """Return the instant that much before now, to the millisecond."""
    moment = datetime.now(UTC) - timedelta(seconds=seconds, **more)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def item(sequence: int = 1, **changes: Any) -> dict[str, Any]:
    made = {
        "code": "8867-4",
        "value": 72,
        "unit": "/min",
        "effective": EFFECTIVE,
        "sequence": sequence,
    }
    return {**made, **changes}


class TestParse:
    """`POST /udi/parse`."""

    def test_elements(self, devices: Devices) -> None:
        """Every element by name; both forms say the same."""
        raw = "01008445880032881125013017290101" + "10LOT42\u001d21SN4711"
        found = [devices.post("/udi/parse", {"udi": text}).get_json() for text in (UDI, raw)]
        assert found[0] == found[1] == {
            "issuer": "gs1", "device_identifier": "00844588003288", "lot": "LOT42", "serial": "SN4711",
            "manufactured": "2025-01-30", "expiry": "2029-01-01", "issues": [],
        }  # fmt: skip
        assert devices.sample("udi_parse_total", issuer="gs1", result="ok") == 2

    def test_check_digit(self, devices: Devices) -> None:
        """A wrong check digit is reported, with the right one."""
        body = devices.post("/udi/parse", {"udi": "(01)00844588003289"}).get_json()
        assert body["issues"] == [{"code": "check_digit", "expected": "8", "found": "9"}]
        assert devices.sample("udi_parse_total", issuer="gs1", result="issues") == 1

    @pytest.mark.parametrize(
        ("text", "code", "issuer"),
        [
            ("+A123BJC5D6E71G", "issuer_not_supported", "hibcc"),
            ("(01)1", "element_malformed", "gs1"),
            ("?", "issuer_not_supported", "unknown"),
        ],
    )
    def test_refused(self, devices: Devices, text: str, code: str, issuer: str) -> None:
        """Refused with a code, counted by issuer."""
        assert refusal(devices.post("/udi/parse", {"udi": text})) == (
            422,
            "invalid_request",
            [("/udi", code)],
        )
        assert devices.sample("udi_parse_total", issuer=issuer, result="refused") == 1


class TestRegister:
    """`POST /devices` and `GET /devices/{id}`."""

    def test_registered_and_read(self, devices: Devices) -> None:
        """What the identifier says is stored; the entry names the device."""
        answer = devices.post("/devices", {"udi": UDI, "name": "Pulse oximeter"})
        body = answer.get_json()
        assert answer.headers["Location"] == f"/devices/{body['id']}"
        shown = {
            name: body[name] for name in ("device_identifier", "serial", "lot", "expiry", "name", "status")
        }
        assert shown == {
            "device_identifier": "00844588003288", "serial": "SN4711", "lot": "LOT42", "expiry": "2029-01-01",
            "name": "Pulse oximeter", "status": "active",
        }  # fmt: skip
        assert devices.get(answer.headers["Location"]).get_json() == body
        assert devices.sample("devices", status="active") == 1
        (entry,) = devices.entries("device.register")
        assert (entry["outcome"], entry["resource"]["id"]) == ("ok", body["id"])

    def test_once(self, devices: Devices) -> None:
        """Identifier and serial number make a device; another serial number is another one."""
        devices.device()
        again = devices.post("/devices", {"udi": UDI.replace("LOT42", "LOT43"), "name": "Other"})
        assert refusal(again) == (409, "device_registered", [("/udi", "taken")])
        devices.device(UDI.replace("SN4711", "SN4712"))
        assert devices.sample("devices", status="active") == 2

    def test_same_key(self, devices: Devices) -> None:
        """A repeated request gets the first one's answer."""
        body = {"udi": UDI, "name": "n"}
        assert devices.post("/devices", body, key="k").data == devices.post("/devices", body, key="k").data

    @pytest.mark.parametrize(
        ("body", "pointer", "code"),
        [
            ({"udi": UDI.replace("3288", "3289")}, "/udi", "check_digit"),
            ({"udi": "(01)00844588003288"}, "/udi", "serial_missing"),
            ({"udi": "(99)1"}, "/udi", "element_unknown"),
            ({"udi": "x" * 201}, "/udi", "string_too_long"),
            ({"udi": UDI, "name": ""}, "/name", "string_too_short"),
            ({"udi": UDI, "owner": "x"}, "", "extra_forbidden"),
        ],
    )
    def test_refused(self, devices: Devices, body: dict[str, Any], pointer: str, code: str) -> None:
        """A wrong check digit keeps a device out, and nothing is stored."""
        answer = devices.post("/devices", {"name": "n", **body})
        assert refusal(answer) == (422, "invalid_request", [(pointer, code)])
        assert devices.database("SELECT * FROM device") == []

    def test_unknown(self, devices: Devices) -> None:
        """404 for a device, an observation, a calibration."""
        other = uuid.uuid4()
        assert refusal(devices.get(f"/devices/{other}"))[:2] == (404, "record_unknown")
        assert devices.observe(str(other), item()).status_code == 404
        body = {"as_found": "1", "as_left": "1", "performed_by": "x", "due": "2099-01-01"}
        assert devices.post(f"/devices/{other}/calibrations", body).status_code == 404


class TestObservations:
    """`POST /devices/{id}/observations`."""

    def test_mixed_batch(self, devices: Devices) -> None:
        """Every item has its own fate; what is counted is what is answered."""
        device = devices.device()
        answer = devices.observe(
            device, item(1), item(2, value="36.6"), item(1), item(1, value=73), item(3, code="1-1"), item(4, unit="bpm"),
            item(5, value="NaN"), item(6, value=999), item(7, effective="2999-01-01T00:00:00Z"),
        )  # fmt: skip
        assert (answer.status_code, answer.get_json()) == (
            200,
            {
                "accepted": 2,
                "duplicate": 1,
                "rejected": [
                    {"index": 3, "code": "conflict"}, {"index": 4, "code": "code_unknown"},
                    {"index": 5, "code": "unit_not_permitted"}, {"index": 6, "code": "value_malformed"},
                    {"index": 7, "code": "out_of_range"}, {"index": 8, "code": "in_the_future"},
                ],
            },
        )  # fmt: skip
        counted = {
            (code, result): devices.sample("observations_total", code=code, result=result)
            for code in ("8867-4", "other")
            for result in ("accepted", "duplicate", "rejected")
        }
        assert counted == {
            ("8867-4", "accepted"): 2, ("8867-4", "duplicate"): 1, ("8867-4", "rejected"): 5, ("other", "accepted"): 0,
            ("other", "duplicate"): 0, ("other", "rejected"): 1,
        }  # fmt: skip
        assert len(devices.database("SELECT * FROM observation")) == 2
        (entry,) = devices.entries("observation.ingest")
        assert (entry["details"], entry["resource"]["id"]) == (
            {"accepted": 2, "duplicate": 1, "rejected": 6},
            device,
        )

    def test_sent_again(self, devices: Devices) -> None:
        """A batch sent again, in another order, is all duplicates and raises nothing new."""
        device = devices.device()
        batch = [item(number, value=140) for number in range(50)]
        assert devices.observe(device, *batch).get_json() == {"accepted": 50, "duplicate": 0, "rejected": []}
        alarms = devices.get("/alarms").get_json()
        assert devices.observe(device, *reversed(batch)).get_json() == {
            "accepted": 0,
            "duplicate": 50,
            "rejected": [],
        }
        assert devices.get("/alarms").get_json() == alarms

    def test_the_largest_batch(self, devices: Devices) -> None:
        """A thousand items at once; one more is refused whole, none too."""
        device = devices.device()
        batch = [item(number) for number in range(1001)]
        assert refusal(devices.observe(device, *batch))[2] == [("/observations", "too_long")]
        assert refusal(devices.observe(device))[2] == [("/observations", "too_short")]
        assert devices.observe(device, *batch[:1000]).get_json()["accepted"] == 1000
        assert devices.observe(device, *batch[:1000]).get_json()["duplicate"] == 1000

    @pytest.mark.parametrize("value", [36.6, True, None, [1]])
    def test_wrong_types(self, devices: Devices, value: Any) -> None:
        """A JSON float is no exact value: the body does not fit the schema."""
        status, _, errors = refusal(devices.observe(devices.device(), item(value=value)))
        assert status == 422
        assert all(pointer.startswith("/observations/0/value") for pointer, _ in errors)

    def test_of_each_device(self, devices: Devices) -> None:
        """The same key from another device is another observation."""
        one, other = devices.device(), devices.device(UDI.replace("SN4711", "SN4712"))
        assert [devices.observe(device, item()).get_json()["accepted"] for device in (one, other)] == [1, 1]

    def test_validity(self, devices: Devices) -> None:
        """Questionable before the device is calibrated, when late, and once the calibration has run out."""
        device = devices.device()
        devices.observe(device, item(1, effective=ago()))
        devices.calibration(device)
        first = item(2, effective=ago())
        devices.observe(device, first, item(3, effective=ago(days=1)), item(4, effective=ago(hours=23)))
        devices.database("UPDATE calibration SET due = '2020-01-01'")
        devices.observe(device, item(5, effective=ago()), first)
        rows = devices.database("SELECT sequence, validity, flags FROM observation ORDER BY sequence")
        assert rows == [
            (1, "Qst", "uncalibrated"), (2, "Vld", ""), (3, "Qst", "late uncalibrated"), (4, "Qst", "uncalibrated"),
            (5, "Qst", "uncalibrated"),
        ]  # fmt: skip

    def test_validity_at_its_time(self, devices: Devices) -> None:
        """What counts is the calibration in force when the observation was made, not the one that is now."""
        device = devices.device()
        for days, due in ((20, 12), (10, 2)):
            devices.calibration(device)
            recorded = f"recorded_ns = recorded_ns - {days} * 86400000000000, due = '{ago(days=due)[:10]}'"
            devices.database(f"UPDATE calibration SET {recorded} WHERE due = '2099-11-23'")
        days = (21, 19, 11, 9, 1)
        devices.observe(device, *(item(at, effective=ago(days=at, hours=-1)) for at in days))
        rows = devices.database("SELECT sequence, flags FROM observation ORDER BY effective_ms")
        assert rows == [
            (21, "late uncalibrated"), (19, "late"), (11, "late uncalibrated"), (9, "late"), (1, "uncalibrated"),
        ]  # fmt: skip

    def test_alarming_is_valid(self, devices: Devices) -> None:
        """The limits of an alarm are no limits of what is believed: 82 % of a calibrated device is a fact."""
        device = devices.device()
        devices.calibration(device)
        devices.observe(device, item(code="59408-5", unit="%", value=82, effective=ago()))
        assert devices.database("SELECT validity, flags FROM observation") == [("Vld", "soft_low")]


class TestAlarms:
    """`GET /alarms`."""

    def test_raised(self, devices: Devices) -> None:
        """82 % saturation is a high-priority alarm; a second one is the same alarm seen again."""
        device = devices.device()
        devices.calibration(device)
        low, (earlier, later) = {"code": "59408-5", "unit": "%", "value": 82}, (ago(), ago(seconds=-1))
        devices.observe(device, item(1, **low, effective=later))
        devices.observe(device, item(2, **low, effective=earlier), item(3, effective=later))
        body = devices.get("/alarms").get_json()
        assert body == {
            "total": 1,
            "alarms": [
                {
                    "device_id": device, "cause": "59408-5 low", "kind": "Phy", "priority": "Hi", "count": 2,
                    "first": earlier, "last": later,
                }
            ],
        }  # fmt: skip
        assert devices.sample("alarms_total", priority="Hi", kind="Phy") == 1
        assert devices.sample("alarms_active", priority="Hi") == 1
        assert [entry["outcome"] for entry in devices.entries("alarms.read")] == ["ok"]

    def test_of_long_ago(self, devices: Devices) -> None:
        """A reading of yesterday is no alarm of today; one of years ago is refused."""
        device, low = devices.device(), {"code": "59408-5", "unit": "%", "value": 82}
        devices.calibration(device)
        old = [item(1, **low, effective=ago(days=2)), item(2, **low, effective="0001-01-01T00:00:00Z")]
        answer = devices.observe(device, *old).get_json()
        assert (answer["accepted"], answer["rejected"]) == (1, [{"index": 1, "code": "too_old"}])
        assert [found["kind"] for found in devices.get("/alarms").get_json()["alarms"]] == ["Tec"]
        assert devices.sample("alarms_active", priority="Hi") == 0

    def test_uncalibrated(self, devices: Devices) -> None:
        """A device that measures without a calibration raises one technical alarm."""
        devices.observe(devices.device(), item(1), item(2))
        (alarm,) = devices.get("/alarms?limit=1").get_json()["alarms"]
        assert (alarm["cause"], alarm["kind"], alarm["priority"], alarm["count"]) == (
            "calibration",
            "Tec",
            "Lo",
            2,
        )


class TestCalibrations:
    """`POST /devices/{id}/calibrations`."""

    def test_recorded(self, devices: Devices) -> None:
        """As found, as left, by whom, due when; the device shows the date."""
        device = devices.device()
        body = {"as_found": "1.2", "as_left": "0.1", "performed_by": "engineer-7", "due": "2099-11-23"}
        answer = devices.post(f"/devices/{device}/calibrations", body).get_json()
        assert {name: answer[name] for name in body} == body
        assert (answer["device_id"], answer["recorded_by"]) == (device, "device-engineer")
        assert devices.get(f"/devices/{device}").get_json()["calibration_due"] == "2099-11-23"

    @pytest.mark.parametrize(
        ("changes", "pointer", "code"),
        [
            ({"due": "2020-01-01"}, "/due", "not_in_the_future"),
            ({"due": "soon"}, "/due", "date_from_datetime_parsing"),
            ({"as_found": "NaN"}, "/as_found", "string_pattern_mismatch"),
            ({"as_left": 0.1}, "/as_left", "string_type"),
        ],
    )
    def test_refused(self, devices: Devices, changes: dict[str, Any], pointer: str, code: str) -> None:
        """A precise pointer."""
        body = {"as_found": "1.2", "as_left": "0.1", "performed_by": "engineer-7", "due": "2099-11-23"}
        answer = devices.post(f"/devices/{devices.device()}/calibrations", {**body, **changes})
        assert answer.status_code == 422
        assert refusal(answer)[2][0][0] == pointer


@pytest.mark.server
@pytest.mark.parametrize("what", ["batch", "calibration"])
def test_one_after_the_other(world: Any, tmp_path: Path, postgres: Any, what: str) -> None:
    """On PostgreSQL, too, a batch or calibration waits for another of its device, and then sees what that wrote."""
    import psycopg

    database = postgres.database()
    world.environ["medical-device"] = {"DATABASE_URL": postgres.url(database)}
    devices = Devices(world, tmp_path)
    device = devices.device()
    with ThreadPoolExecutor(1) as thread, psycopg.connect(postgres.url(database)) as other:
        other.execute("SELECT 1 FROM device FOR NO KEY UPDATE")
        if what == "batch":
            waiting = thread.submit(lambda: devices.observe(device, item()).status_code == 200)
        else:
            waiting = thread.submit(lambda: bool(devices.calibration(device)))
        assert postgres.until_one_waits(database)
        other.commit()
        assert waiting.result(30)


class TestSignatures:
    """`/records/{kind}/{id}/signatures` (21 CFR 11.50, 11.70)."""

    def test_a_kind_that_is_none_is_not_audited(self, devices: Devices) -> None:
        """What a caller writes into the path is in no audit entry: it may be anybody's name."""
        answer = devices.sign(f"Jane-Roe/{uuid.uuid4()}")
        assert (answer.status_code, answer.get_json()["code"]) == (404, "record_kind_unknown")
        (entry,) = devices.entries("record.sign")
        assert "Roe" not in str(entry)

    def test_signed_and_shown(self, devices: Devices) -> None:
        """Name, time in UTC and meaning are in every rendering; the signature is valid and audited."""
        record = f"calibrations/{devices.calibration(devices.device())}"
        made = devices.sign(record)
        assert made.status_code == 201
        body = made.get_json()
        assert (body["printed_name"], body["meaning"], body["reason"], body["state"]) == (
            "qa",
            "approval",
            "as specified",
            "valid",
        )
        assert body["signed"].endswith("Z")
        shown = devices.get(f"/records/{record}/signatures").get_json()
        assert shown["signatures"] == [body]
        assert shown["record_sha256"] == body["record_sha256"]
        assert devices.sample("signatures_total", meaning="approval", result="ok") == 1
        (entry,) = devices.entries("record.sign")
        assert (entry["outcome"], entry["details"]["meaning"]) == ("ok", "approval")

    def test_changed_record(self, devices: Devices) -> None:
        """A record changed afterwards shows its signature as invalidated, and can be signed anew."""
        record = f"calibrations/{devices.calibration(devices.device())}"
        devices.sign(record)
        devices.database("UPDATE calibration SET as_left = '0.0'")
        shown = devices.get(f"/records/{record}/signatures").get_json()
        assert [found["state"] for found in shown["signatures"]] == ["invalidated"]
        assert devices.sign(record).status_code == 201
        shown = devices.get(f"/records/{record}/signatures").get_json()
        assert [found["state"] for found in shown["signatures"]] == ["invalidated", "valid"]

    def test_moved(self, devices: Devices) -> None:
        """A signature put under another record by hand is shown as forged."""
        device = devices.device()
        one, other = devices.calibration(device), devices.calibration(device)
        devices.sign(f"calibrations/{one}")
        devices.database(f"UPDATE signature SET record_id = '{other}'")
        shown = devices.get(f"/records/calibrations/{other}/signatures").get_json()
        assert [found["state"] for found in shown["signatures"]] == ["forged"]

    def test_rewritten(self, devices: Devices) -> None:
        """What is no signature of this service shows nothing of what it claims."""
        record = f"devices/{devices.device()}"
        devices.sign(record)
        devices.database("UPDATE signature SET jws = 'e30.e30.e30'")
        (found,) = devices.get(f"/records/{record}/signatures").get_json()["signatures"]
        assert (found["state"], found["printed_name"], found["meaning"]) == ("forged", "", "")

    def test_once_per_meaning(self, devices: Devices) -> None:
        """One person signs a record once with each meaning."""
        record = f"devices/{devices.device()}"
        codes = [devices.sign(record, role, meaning).status_code for role, meaning in (
            ("qa", "review"), ("qa", "review"), ("qa", "approval"), ("admin", "review"),
        )]  # fmt: skip
        assert codes == [201, 409, 201, 201]
        assert devices.sample("signatures_total", meaning="review", result="refused") == 1

    def test_scope(self, devices: Devices) -> None:
        """Signing is a right of its own."""
        device = devices.device()
        headers = {**devices.world.bearer("device:read", "device:write", role="qa"), "Idempotency-Key": "k"}
        body = {"meaning": "approval", "reason": "x"}
        answer = devices.client.post(f"/records/devices/{device}/signatures", json=body, headers=headers)
        assert refusal(answer)[:2] == (403, "scope_missing")

    def test_what_cannot_be_signed(self, devices: Devices) -> None:
        """Another kind of record, or none."""
        assert refusal(devices.sign(f"alarms/{uuid.uuid4()}"))[:2] == (404, "record_kind_unknown")
        assert refusal(devices.sign(f"devices/{uuid.uuid4()}"))[:2] == (404, "record_unknown")
        assert devices.sign(f"devices/{devices.device()}", meaning="whim").status_code == 422

    def test_the_key_is_private(self, devices: Devices) -> None:
        """0600."""
        key = devices.folder / "medical_device.signing.key"
        assert stat.S_IMODE(key.stat().st_mode) == 0o600


class TestControls:
    """The service's own controls pass on a sound service and fail on each sabotage from outside."""

    @pytest.fixture
    def run(self, devices: Devices) -> Callable[[], dict[str, tuple[str, int | None]]]:
        """Run the controls and return state and count of each."""
        service = devices.world["medical-device"].extensions["medical-device"]
        obs = devices.world.obs("medical-device")
        context = ProbeContext(settings=obs.settings, clock=obs.clock, redactor=obs.redactor, audit=obs.audit)

        def once() -> dict[str, tuple[str, int | None]]:
            outcomes = {
                control.id: control.probe and control.probe(context) for control in controls(lambda: service)
            }
            return {
                name: (outcome.state, outcome.n) for name, outcome in outcomes.items() if outcome is not None
            }

        return once

    def test_sound(self, devices: Devices, run: Any) -> None:
        """All pass, on nothing and on what is there."""
        assert run() == {"P-70": ("pass", 0), "P-50": ("pass", 0), "P-10h": ("pass", 0)}
        devices.sign(f"devices/{devices.device()}")
        assert run() == {"P-70": ("pass", 1), "P-50": ("pass", 1), "P-10h": ("pass", 1)}
        devices.sign(f"calibrations/{devices.calibration(devices.device(UDI.replace('4711', '4712')))}")
        assert run() == {"P-70": ("pass", 2), "P-50": ("pass", 2), "P-10h": ("pass", 1)}

    @pytest.mark.parametrize(
        ("statement", "expected"),
        [
            ("UPDATE signature SET record_id = 'other'", {"P-70": "fail", "P-10h": "pass"}),
            ("UPDATE signature SET kind = 'calibrations'", {"P-70": "fail", "P-10h": "pass"}),
            ("UPDATE signature SET jws = jws || 'A'", {"P-70": "fail", "P-10h": "pass"}),
            ("UPDATE device SET name = 'Other'", {"P-70": "fail", "P-10h": "pass"}),
            ("UPDATE device SET device_identifier = '00844588003289'", {"P-70": "fail", "P-10h": "fail"}),
            ("DELETE FROM device", {"P-70": "fail", "P-10h": "pass"}),
        ],
    )
    def test_sabotaged_database(
        self, devices: Devices, run: Any, statement: str, expected: dict[str, str]
    ) -> None:
        """A row changed by hand is found by the control that it concerns, and by no other."""
        devices.sign(f"devices/{devices.device()}")
        devices.database(statement)
        assert {name: state for name, (state, _) in run().items()} == {"P-50": "pass", **expected}

    def test_changed_calibration(self, devices: Devices, run: Any) -> None:
        """A signed calibration that nobody could have changed is found, whatever else is signed."""
        device = devices.device()
        devices.sign(f"devices/{device}")
        devices.sign(f"calibrations/{devices.calibration(device)}")
        devices.database("UPDATE calibration SET due = '2099-12-31'")
        assert run()["P-70"] == ("fail", 1)

    def test_deleted_signatures(self, devices: Devices, run: Any) -> None:
        """A signature that is gone is missed, one of several too, because its signing is in the audit trail."""
        device = devices.device()
        for meaning in ("approval", "review"):
            devices.sign(f"devices/{device}", meaning=meaning)
        assert run()["P-70"] == ("pass", 2)
        devices.database("DELETE FROM signature WHERE id = (SELECT max(id) FROM signature)")
        assert [run()[name] for name in ("P-70", "P-50")] == [("fail", 1), ("unknown", 1)]
        devices.database("DELETE FROM signature")
        assert [run()[name] for name in ("P-70", "P-50")] == [("fail", 2), ("unknown", 2)]

    @pytest.mark.parametrize("table", ["device", "calibration"])
    def test_deleted_record(self, devices: Devices, run: Any, table: str) -> None:
        """A signature of a record that is gone vouches for nothing, and is found."""
        device = devices.device()
        devices.sign(f"devices/{device}")
        devices.sign(f"calibrations/{devices.calibration(device)}")
        assert run()["P-70"] == ("pass", 2)
        devices.database(f"DELETE FROM {table}")
        assert run()["P-70"] == ("fail", 1)

    def test_signature_without_meaning(self, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A rule that would take a signature without meaning is found before there is one."""
        monkeypatch.setattr(models.SignatureInput, "model_validate", lambda _value: None)
        assert run()["P-50"] == ("fail", None)

    def test_sabotaged_key(self, devices: Devices, run: Any) -> None:
        """Signatures under a key that is not there any more do not hold."""
        devices.sign(f"devices/{devices.device()}")
        service = devices.world["medical-device"].extensions["medical-device"]
        service.signer = type(service.signer)(bytes(32))
        assert run()["P-70"] == ("fail", 1)

    def test_rules_switched_off(self, devices: Devices, run: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """A check digit that is always right, and a signature that always holds, are found."""
        service = devices.world["medical-device"].extensions["medical-device"]
        monkeypatch.setattr(service.signer, "state", lambda *_: "valid", raising=False)
        monkeypatch.setattr(udi, "check_digit", lambda digits: "9")
        assert {name: state for name, (state, _) in run().items()} == {
            "P-70": "fail", "P-50": "pass", "P-10h": "fail",
        }  # fmt: skip

    def test_they_are_observed(self, tmp_path: Path) -> None:
        """Started on its own the service shows them beside the library's."""
        environ = {"HEALTHOBS_DATA_DIR": str(tmp_path / "own"), "HEALTHOBS_CAPTURE_STDLIB": "false"}
        app = create_app(
            ServiceSettings.from_env(INFO, {**environ, "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0"})
        )
        kit = app.extensions["reference_services"]
        try:
            engine = kit.obs.controls
            assert engine is not None
            assert engine.run(["P-70", "P-10h"]) == {"P-70": "pass", "P-10h": "pass"}
        finally:
            kit.close()
