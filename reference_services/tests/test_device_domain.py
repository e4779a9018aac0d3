"""Observations: what is taken, flagged, refused; replay and order; signatures."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any, Self

import pytest
import sqlalchemy as sa
from hypothesis import given
from hypothesis import strategies as st

from reference_services.medical_device import alarms, domain, signing, store
from reference_services.medical_device.domain import ItemError, Observation
from reference_services.medical_device.signing import Signer
from reference_services.medical_device.vitals import CODES

NOW_MS = 1_795_000_000_000  # 2026-11-18T11:06:40Z
DAY_MS = 86_400_000


def read(**changes: Any) -> Observation:
    item = {"code": "8867-4", "value": 72, "unit": "/min", "effective": "2026-11-18T11:00:00Z", "sequence": 1}
    return domain.read_observation(**{**item, **changes}, now_ms=NOW_MS)


def refusal(**changes: Any) -> str:
    with pytest.raises(ItemError) as caught:
        read(**changes)
    return caught.value.code


class TestReadObservation:
    """`read_observation`."""

    def test_a_good_one(self) -> None:
        """Nothing is flagged."""
        found = read(value="72.50")
        assert found == Observation("8867-4", "72.50", "/min", NOW_MS - 400_000, 1, ())
        assert found.same_as == (Decimal("72.5"), "/min")

    @pytest.mark.parametrize(
        ("changes", "code"),
        [
            ({"code": "85354-9"}, "code_unknown"),
            ({"unit": "bpm"}, "unit_not_permitted"),
            ({"code": "8310-5", "value": 98, "unit": "Cel"}, "out_of_range"),
            ({"code": "8310-5", "value": 37, "unit": "degC"}, "unit_not_permitted"),
            *(
                ({"value": text}, "value_malformed")
                for text in ("NaN", "Infinity", "1e2", "", "0x1", "7\uff12", " 1", "1.", "--1", "1" * 9)
            ),
            ({"value": -1}, "out_of_range"),
            ({"value": 351}, "out_of_range"),
            ({"code": "59408-5", "unit": "%", "value": "100.1"}, "out_of_range"),
            *(
                ({"effective": text}, "effective_malformed")
                for text in (
                    "2026-11-18",
                    "2026-11-18T11:00:00",
                    "2026-11-18T11:00:00+00:00",
                    "2026-02-30T00:00:00Z",
                    "now",
                    "\uff12026-11-18T11:00:00Z",
                )
            ),
            ({"effective": "2026-11-18T11:11:40.001Z"}, "in_the_future"),
            ({"effective": "2025-11-17T11:06:39.999Z"}, "too_old"),
        ],
    )
    def test_refused(self, changes: dict[str, Any], code: str) -> None:
        """A closed vocabulary of reasons; nothing is guessed."""
        assert refusal(**changes) == code

    @pytest.mark.parametrize(
        ("code", "unit"), [(code, unit) for code, units in CODES.items() for unit in units]
    )
    def test_limits(self, code: str, unit: str) -> None:
        """Both limits belong to what they bound; a step beyond hard is refused, beyond soft is flagged."""
        limits, step = CODES[code][unit], Decimal("0.0001")
        (low, high), (soft_low, soft_high) = (
            tuple(map(Decimal, pair)) for pair in (limits.hard, limits.soft)
        )
        flags = {
            value: read(code=code, unit=unit, value=str(value)).flags
            for value in (low, soft_low, soft_high, high)
        }
        assert flags[soft_low] == flags[soft_high] == ()
        assert flags[low] == (() if low == soft_low else ("soft_low",))
        assert flags[high] == (() if high == soft_high else ("soft_high",))
        assert refusal(code=code, unit=unit, value=str(high + step)) == "out_of_range"
        assert refusal(code=code, unit=unit, value=str(low - step)) == "out_of_range"

    @given(st.decimals("0", "350", places=4))
    def test_exact_values(self, value: Decimal) -> None:
        """A decimal text is kept as it is."""
        assert domain.read_value(read(value=str(value)).value) == value

    def test_late(self) -> None:
        """Older than a day is flagged, up to a year; five minutes ahead is still taken."""
        assert read(effective="2025-11-17T11:06:40Z").flags == ("late",)
        assert read(effective="2026-11-17T11:06:39.999Z").flags == ("late",)
        assert read(effective="2026-11-17T11:06:40Z").flags == ()
        assert read(effective="2026-11-18T11:11:40Z").flags == ()


class TestReadInstant:
    """`read_instant_ms`."""

    @given(
        st.datetimes(
            datetime(1900, 1, 1),  # noqa: DTZ001 - Hypothesis wants it naive
            datetime(2200, 1, 1),  # noqa: DTZ001 - likewise
        )
    )
    def test_milliseconds(self, moment: Any) -> None:
        """Exact to the millisecond."""
        text = moment.isoformat(timespec="milliseconds") + "Z"
        found = domain.read_instant_ms(text)
        assert datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=found) == datetime.fromisoformat(
            text
        )


class TestAlarms:
    """`alarm_of` and `alarms_of`."""

    def test_low_saturation(self) -> None:
        """82 % oxygen saturation is a high-priority physiological alarm."""
        alarm = alarms.alarm_of(read(code="59408-5", unit="%", value=82))
        assert alarm is not None
        assert (alarm.cause, alarm.kind, alarm.priority) == ("59408-5 low", "Phy", "Hi")

    def test_high_pulse(self) -> None:
        """A fast pulse is a medium one, a normal pulse none."""
        alarm = alarms.alarm_of(read(value=131))
        assert alarm is not None
        assert (alarm.cause, alarm.priority) == ("8867-4 high", "Me")
        assert alarms.alarm_of(read()) is None

    def test_late(self) -> None:
        """A reading that comes a day late is no physiological alarm any more."""
        assert alarms.alarm_of(read(value=131, effective="2026-11-17T11:06:39Z")) is None

    def test_without_calibration(self) -> None:
        """One technical alarm for all the observations of a device without a calibration in force."""
        seen = [domain.judged(read(sequence=sequence), []) for sequence in (1, 2)]
        assert [
            (alarm.cause, alarm.kind, alarm.priority, alarm.count) for alarm in alarms.alarms_of(seen)
        ] == [("calibration", "Tec", "Lo", 2)]
        assert alarms.alarms_of([read()]) == []

    @pytest.mark.parametrize(
        ("flags", "word"),
        [
            ((), "Vld"),
            (("uncalibrated",), "Qst"),
            (("late",), "Qst"),
            (("soft_low",), "Vld"),
            (("soft_low", "late"), "Qst"),
        ],
    )
    def test_validity(self, flags: tuple[str, ...], word: str) -> None:
        """Late or uncalibrated is questionable; alarming is not."""
        assert domain.validity(flags) == word

    @pytest.mark.parametrize(
        ("calibrations", "flags"),
        [
            ([], ("uncalibrated",)),
            ([(NOW_MS - 400_000, "2026-11-18")], ()),
            ([(NOW_MS - 400_000, "2026-11-17")], ("uncalibrated",)),
            ([(NOW_MS - 399_999, "2026-11-18")], ("uncalibrated",)),
            ([(0, "2026-11-18"), (NOW_MS, "2026-11-17")], ()),
            ([(0, "2026-11-18"), (1, "2026-11-17")], ("uncalibrated",)),
        ],
    )
    def test_calibration_in_force(self, calibrations: list[tuple[int, str]], flags: tuple[str, ...]) -> None:
        """The latest one at the time of the observation counts, to the end of the day that it is due."""
        assert domain.judged(read(), calibrations).flags == flags


items = st.builds(
    lambda value, minute, sequence: read(
        value=value, effective=f"2026-11-18T10:{minute:02}:00Z", sequence=sequence
    ),
    st.integers(20, 140),
    st.integers(0, 3),
    st.integers(0, 3),
)


class Device:
    """A device in a store of its own."""

    def __enter__(self) -> Self:
        self.engine = sa.create_engine("sqlite://")
        self.connection = self.engine.connect()
        store.METADATA.create_all(self.connection)
        row = {
            "id": "d",
            "device_identifier": "1",
            "serial": "1",
            "name": "n",
            "status": "active",
            "registered_ns": 0,
        }
        store.add(self.connection, store.DEVICES, row)
        return self

    def __exit__(self, *_: object) -> None:
        self.connection.close()
        self.engine.dispose()

    def ingest(self, batch: list[Observation]) -> list[str]:
        """Store a batch and return what became of each item."""
        numbered = dict(enumerate(batch))
        unique = domain.first_of_each(numbered)
        new, stored = store.ingest(self.connection, "d", unique, ["Vld"] * len(unique))
        raised = alarms.alarms_of([item for item in unique if item.key in new])
        store.raise_alarms(self.connection, "d", raised)
        outcome = domain.outcomes(numbered, new, stored)
        return [outcome[index] for index in range(len(batch))]

    def state(self) -> tuple[Any, Any]:
        """Return everything stored, in an order of its own."""
        rows = [tuple(row) for row in self.connection.execute(sa.select(store.OBSERVATIONS))]
        return sorted(rows), sorted(tuple(row) for row in self.connection.execute(store.LATEST_ALARMS))


class TestReplay:
    """Batches sent again, split or in another order."""

    @given(st.lists(items, max_size=12), st.data())
    def test_any_order_any_split_any_repetition(self, sent: list[Observation], data: st.DataObject) -> None:
        """Of observations that do not contradict each other the store ends up the same, alarms included."""
        agreed = domain.first_of_each(dict(enumerate(sent)))
        shuffled = data.draw(st.permutations(agreed + agreed))
        cut = data.draw(st.integers(0, len(shuffled)))
        with Device() as one, Device() as other:
            assert one.ingest(agreed) == ["accepted"] * len(agreed)
            found = other.ingest(shuffled[:cut]) + other.ingest(shuffled[cut:])
            assert other.state() == one.state()
        assert sorted(found) == ["accepted"] * len(agreed) + ["duplicate"] * len(agreed)

    @given(st.lists(items, max_size=12))
    def test_against_a_dictionary(self, sent: list[Observation]) -> None:
        """The first under a key is accepted, the same again is a duplicate, another value is a conflict."""
        known: dict[Any, Any] = {}
        expected = []
        for item in sent:
            fresh = item.key not in known
            same = known.setdefault(item.key, item.same_as) == item.same_as
            expected.append("accepted" if fresh else "duplicate" if same else "conflict")
        with Device() as device:
            assert device.ingest(sent) == expected
            again = ["duplicate" if found != "conflict" else "conflict" for found in expected]
            assert device.ingest(sent) == again

    def test_nothing(self) -> None:
        """A batch of which nothing is left stores nothing."""
        with Device() as device:
            assert device.ingest([]) == []


RECORD = {"id": "r", "due": "2027-01-01", "count": 3, "lot": None}
MANIFEST = {"name": "ann", "signed": "2026-11-18T11:00:00.000Z", "meaning": "approval", "reason": "seen"}


class TestSigner:
    """21 CFR 11.50 and 11.70."""

    @pytest.fixture
    def signer(self) -> Signer:
        """A signer with a key of its own."""
        return Signer(bytes(range(32)))

    @pytest.fixture
    def jws(self, signer: Signer) -> str:
        """A good signature."""
        return signer.sign("devices", "r", RECORD, MANIFEST)

    def test_valid(self, signer: Signer, jws: str) -> None:
        """It holds for the record it was made for, whatever the order of its members."""
        assert signer.state(jws, "devices", "r", dict(reversed(RECORD.items()))) == "valid"
        found = signer.manifest(jws)
        assert found is not None
        assert {name: found[name] for name in MANIFEST} == MANIFEST

    @pytest.mark.parametrize("changed", [{**RECORD, "due": "2027-01-02"}, {**RECORD, "more": 1}, {"id": "r"}])
    def test_changed_record(self, signer: Signer, jws: str, changed: dict[str, Any]) -> None:
        """A record changed since is told from a forgery."""
        assert signer.state(jws, "devices", "r", changed) == "invalidated"

    @pytest.mark.parametrize(("kind", "record_id"), [("devices", "s"), ("calibrations", "r")])
    def test_moved(self, signer: Signer, jws: str, kind: str, record_id: str) -> None:
        """Under another record it is forged, even when that one reads the same."""
        assert signer.state(jws, kind, record_id, RECORD) == "forged"

    def test_another_key(self, jws: str) -> None:
        """Another key's signature is worth nothing."""
        assert Signer(b"x" * 32).state(jws, "devices", "r", RECORD) == "forged"

    def test_every_character_counts(self, signer: Signer, jws: str) -> None:
        """Any changed character makes it forged."""
        for place, character in enumerate(jws):
            changed = jws[:place] + ("A" if character != "A" else "B") + jws[place + 1 :]
            assert signer.manifest(changed) is None, place

    @pytest.mark.parametrize("text", ["", ".", "..", "a.b.c", "é.é.é", "e30.e30.", "\0"])
    def test_nonsense(self, signer: Signer, text: str) -> None:
        """What is no JWS at all."""
        assert signer.manifest(text) is None

    def test_another_header(self, signer: Signer) -> None:
        """Only the one header is taken, even under a good signature."""
        head = base64.urlsafe_b64encode(b'{"alg":"none"}').rstrip(b"=")
        signed = head + b"." + base64.urlsafe_b64encode(json.dumps(MANIFEST).encode()).rstrip(b"=")
        signature = base64.urlsafe_b64encode(signer._private.sign(signed)).rstrip(b"=")
        assert signer.manifest((signed + b"." + signature).decode()) is None

    @given(st.dictionaries(st.text(max_size=5), st.none() | st.integers() | st.text(max_size=5), max_size=5))
    def test_digest(self, record: dict[str, Any]) -> None:
        """Order does not matter, content does."""
        assert signing.digest(dict(reversed(record.items()))) == signing.digest(record)
        assert signing.digest({**record, "\0new": 1}) != signing.digest(record)
