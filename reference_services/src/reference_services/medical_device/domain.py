"""Observations: which codes and units are taken, what is impossible, what raises an alarm. Pure.

Codes are LOINC as US Core's vital signs use them, units UCUM; both tables are closed, and a wrong unit is
refused, never guessed. Validity, alarm kind and priority use the words of IEEE 11073-10207 (BICEPS).
The limits are examples for adults, not clinical advice.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from decimal import Decimal
from types import MappingProxyType

#: What makes two transmissions one observation: code, instant, sequence.
Key = tuple[str, int, int]
MAX_SKEW_MS = 5 * 60 * 1000
LATE_MS = 24 * 3600 * 1000
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,4})?")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z", re.ASCII)


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one code in one unit: beyond `hard` is impossible, beyond `soft` is an alarm.

    Args:
        hard: Lowest and highest value that is taken.
        soft: Lowest and highest value without an alarm.
        low: Priority of the alarm below `soft`.
        high: Priority of the alarm above `soft`.
    """

    hard: tuple[str, str]
    soft: tuple[str, str]
    low: str = "Me"
    high: str = "Me"


_SATURATION = {"%": Limits(("0", "100"), ("90", "100"), "Hi")}
#: LOINC code -> UCUM unit -> limits.
CODES: Mapping[str, Mapping[str, Limits]] = MappingProxyType(
    {
        "8867-4": {"/min": Limits(("0", "350"), ("40", "130"), "Hi")},
        "9279-1": {"/min": Limits(("0", "120"), ("8", "30"), "Hi")},
        "59408-5": _SATURATION,
        "2708-6": _SATURATION,
        "8310-5": {
            "Cel": Limits(("20", "45"), ("35", "39.5")),
            "[degF]": Limits(("68", "113"), ("95", "103.1")),
        },
        "8480-6": {"mm[Hg]": Limits(("0", "300"), ("80", "180"), "Hi")},
        "8462-4": {"mm[Hg]": Limits(("0", "250"), ("40", "120"))},
        "8302-2": {"cm": Limits(("20", "275"), ("20", "275"))},
        "29463-7": {"kg": Limits(("0.2", "650"), ("0.2", "650"))},
        "39156-5": {"kg/m2": Limits(("5", "150"), ("5", "150"))},
    }
)
PRIORITIES = ("Lo", "Me", "Hi")


class ItemError(ValueError):
    """One observation is refused; carries a code, never a value."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Observation:
    """An accepted observation; `key` tells it from every other of its device."""

    code: str
    value: str
    unit: str
    effective_ms: int
    sequence: int
    flags: tuple[str, ...] = ()

    @property
    def key(self) -> Key:
        """What makes two transmissions one observation."""
        return self.code, self.effective_ms, self.sequence

    @property
    def same_as(self) -> tuple[Decimal, str]:
        """What must agree for a repeated key to be a repetition."""
        return Decimal(self.value), self.unit


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition of one device; the same cause again is the same alarm, seen once more."""

    cause: str
    kind: str
    priority: str
    first_ms: int
    last_ms: int
    count: int = 1

    def merged(self, other: Alarm) -> Alarm:
        """Return both sightings of one alarm as one."""
        first, last = min(self.first_ms, other.first_ms), max(self.last_ms, other.last_ms)
        return Alarm(self.cause, self.kind, self.priority, first, last, self.count + other.count)


def read_value(value: int | str) -> Decimal:
    """Return the exact value of an integer or of a plain decimal text.

    Raises:
        ItemError: It is neither; NaN, infinities and exponents are not.

    Example:
        >>> read_value("36.60")
        Decimal('36.60')
    """
    text = str(value)
    if not _DECIMAL.fullmatch(text):
        raise ItemError("value_malformed")
    return Decimal(text)


def read_instant_ms(text: str) -> int:
    """Return an RFC 3339 UTC instant as milliseconds since 1970.

    Raises:
        ItemError: It is not one, or not in UTC with ``Z``.
    """
    if not _INSTANT.fullmatch(text):
        raise ItemError("effective_malformed")
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        raise ItemError("effective_malformed") from None
    since = moment - datetime(1970, 1, 1, tzinfo=UTC)
    return since.days * 86_400_000 + since.seconds * 1000 + since.microseconds // 1000


def read_observation(
    code: str, value: int | str, unit: str, effective: str, sequence: int, *, now_ms: int
) -> Observation:
    """Check one item of a batch.

    Args:
        code: LOINC code.
        value: Integer or decimal text.
        unit: UCUM unit.
        effective: RFC 3339 instant with ``Z``.
        sequence: Number that the device gave it.
        now_ms: Current time, milliseconds since 1970.

    Returns:
        The observation, flagged ``soft_low``, ``soft_high`` or ``late`` where that applies.

    Raises:
        ItemError: It is refused.
    """
    units = CODES.get(code)
    if units is None:
        raise ItemError("code_unknown")
    limits = units.get(unit)
    if limits is None:
        raise ItemError("unit_not_permitted")
    number, effective_ms = read_value(value), read_instant_ms(effective)
    if not Decimal(limits.hard[0]) <= number <= Decimal(limits.hard[1]):
        raise ItemError("out_of_range")
    if effective_ms > now_ms + MAX_SKEW_MS:
        raise ItemError("in_the_future")
    flags = [
        flag
        for flag, applies in (
            ("soft_low", number < Decimal(limits.soft[0])),
            ("soft_high", number > Decimal(limits.soft[1])),
            ("late", effective_ms < now_ms - LATE_MS),
        )
        if applies
    ]
    return Observation(code, str(value), unit, effective_ms, sequence, tuple(flags))


def alarm_of(observation: Observation) -> Alarm | None:
    """Return the physiological alarm that an observation raises, or None."""
    limits, at = CODES[observation.code][observation.unit], observation.effective_ms
    if "soft_low" in observation.flags:
        return Alarm(f"{observation.code} low", "Phy", limits.low, at, at)
    if "soft_high" in observation.flags:
        return Alarm(f"{observation.code} high", "Phy", limits.high, at, at)
    return None


def calibration_alarm(effective_ms: int) -> Alarm:
    """Return the technical alarm of a device that measures without a calibration in force."""
    return Alarm("calibration", "Tec", "Lo", effective_ms, effective_ms)


def alarms_of(observations: Iterable[Observation], *, calibrated: bool) -> list[Alarm]:
    """Return the alarms that new observations raise, one for each cause."""
    merged: dict[str, Alarm] = {}
    for observation in observations:
        raised = [alarm_of(observation), None if calibrated else calibration_alarm(observation.effective_ms)]
        for alarm in raised:
            if alarm is not None:
                known = merged.get(alarm.cause)
                merged[alarm.cause] = alarm if known is None else known.merged(alarm)
    return list(merged.values())


def first_of_each(read: Mapping[int, Observation]) -> list[Observation]:
    """Return, for each key, the observation that comes first in its batch."""
    first: dict[Key, Observation] = {}
    for observation in read.values():
        first.setdefault(observation.key, observation)
    return list(first.values())


def outcomes(
    read: Mapping[int, Observation], new: Iterable[Key], stored: Mapping[Key, tuple[Decimal, str]]
) -> dict[int, str]:
    """Tell what became of each item of a batch.

    Args:
        read: The items by their index, in order.
        new: Keys that the store did not have.
        stored: Value and unit under the keys that it had.

    Returns:
        By index: ``accepted``, ``duplicate`` (the same again), or ``conflict`` (the key with another value).
    """
    new, truth = set(new), dict(stored)
    found: dict[int, str] = {}
    for index, observation in read.items():
        if observation.key in new and observation.key not in truth:
            truth[observation.key] = observation.same_as
            found[index] = "accepted"
        else:
            same = truth[observation.key] == observation.same_as
            found[index] = "duplicate" if same else "conflict"
    return found


def validity(flags: Iterable[str], *, calibrated: bool) -> str:
    """Return how far a measurement may be relied on: ``Vld``, or ``Qst`` when late or not calibrated."""
    return "Vld" if calibrated and "late" not in set(flags) else "Qst"
