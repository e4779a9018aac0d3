"""Observations: which are taken, what is questionable about them, and when two are one. Pure.

Validity uses the words of IEEE 11073-10207 (BICEPS).
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal

from reference_services.medical_device.vitals import CODES

#: What makes two transmissions one observation: code, instant, sequence.
Key = tuple[str, int, int]
MAX_SKEW_MS = 5 * 60 * 1000
LATE_MS = 24 * 3600 * 1000
#: A clock that is off by more than a year tells nothing of when.
TOO_OLD_MS = 366 * LATE_MS
_DECIMAL = re.compile(r"-?(0|[1-9][0-9]{0,5})(\.[0-9]{1,4})?")
_INSTANT = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,3})?Z", re.ASCII)


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
    try:
        if not _INSTANT.fullmatch(text):
            raise ValueError
        since = datetime.fromisoformat(text) - datetime(1970, 1, 1, tzinfo=UTC)
    except ValueError:
        raise ItemError("effective_malformed") from None
    return since // timedelta(milliseconds=1)


def read_observation(
    code: str, value: int | str, unit: str, effective: str, sequence: int, *, now_ms: int
) -> Observation:
    """Check one item of a batch: LOINC code, value, UCUM unit, RFC 3339 instant, and the device's number for it.

    Returns:
        The observation, flagged ``soft_low``, ``soft_high`` or ``late`` where that applies.

    Raises:
        ItemError: It is refused.
    """
    if code not in CODES:
        raise ItemError("code_unknown")
    limits = CODES[code].get(unit)
    if limits is None:
        raise ItemError("unit_not_permitted")
    number, effective_ms = read_value(value), read_instant_ms(effective)
    if not Decimal(limits.hard[0]) <= number <= Decimal(limits.hard[1]):
        raise ItemError("out_of_range")
    if effective_ms > now_ms + MAX_SKEW_MS:
        raise ItemError("in_the_future")
    if effective_ms < now_ms - TOO_OLD_MS:
        raise ItemError("too_old")
    found = {
        "soft_low": number < Decimal(limits.soft[0]),
        "soft_high": number > Decimal(limits.soft[1]),
        "late": effective_ms < now_ms - LATE_MS,
    }
    flags = tuple(flag for flag, applies in found.items() if applies)
    return Observation(code, str(value), unit, effective_ms, sequence, flags)


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


def judged(observation: Observation, calibrations: Iterable[tuple[int, str]]) -> Observation:
    """Flag an observation as ``uncalibrated`` where no calibration was in force when it was made.

    Args:
        observation: One that was read.
        calibrations: Of its device, oldest first: when each was recorded, in milliseconds, and the day it is due.
    """
    known = [due for recorded_ms, due in calibrations if recorded_ms <= observation.effective_ms]
    day = datetime.fromtimestamp(observation.effective_ms / 1000, UTC).date().isoformat()
    in_force = bool(known) and day <= known[-1]
    return observation if in_force else replace(observation, flags=(*observation.flags, "uncalibrated"))


def validity(flags: Iterable[str]) -> str:
    """Return how far a measurement may be relied on: ``Vld``, or ``Qst`` when late or not calibrated.

    What is alarming is not questionable: `soft` bounds an alarm, not what is believed.
    """
    return "Qst" if {"late", "uncalibrated"} & set(flags) else "Vld"
