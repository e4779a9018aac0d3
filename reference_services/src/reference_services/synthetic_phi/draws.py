"""The generator's tables in the form it draws from: a weighted draw is one index, a code one look-up."""

from __future__ import annotations

from bisect import bisect
from collections.abc import Iterable
from datetime import date
from itertools import accumulate
from typing import Final, TypeVar

from reference_services.synthetic_phi import tables

_T = TypeVar("_T")
SLOTS: Final = 4096
#: Ages are counted to this day, so that a patient never changes.
REFERENCE_DAY: Final = date(2025, 1, 1)
ICD_10_CM: Final = "http://hl7.org/fhir/sid/icd-10-cm"
LOINC: Final = "http://loinc.org"
BASE36: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE: Final = {character: value for value, character in enumerate(BASE36)}


def spread(weighted: Iterable[tuple[_T, int]]) -> tuple[_T, ...]:
    """Return 4,096 entries in which each item is as frequent as its weight: a weighted draw is one index."""
    pairs = [(item, weight) for item, weight in weighted if weight]
    limits = list(accumulate(weight for _, weight in pairs))
    return tuple(pairs[bisect(limits, slot * limits[-1] // SLOTS)][0] for slot in range(SLOTS))


def band_conditions(sex: str, band: int) -> tuple[tables.Condition, ...]:
    """Return the diagnoses of a sex in a whole age band, spread by weight."""
    youngest, oldest = band * tables.BAND_YEARS, (band + 1) * tables.BAND_YEARS - 1
    return spread(
        (condition, condition.weight)
        for condition in tables.CONDITIONS
        if sex in condition.sexes and condition.youngest <= youngest and oldest <= condition.oldest
    )


CELLS = spread(
    ((sex, band), weights[place])
    for band, weights in enumerate(tables.PYRAMID)
    for place, sex in enumerate("MF")
)
CONDITIONS = {(sex, band): band_conditions(sex, band) for sex in "MF" for band in range(len(tables.PYRAMID))}
NAMES = {"F": spread(tables.FEMALE_NAMES), "M": spread(tables.MALE_NAMES)}
SURNAMES = spread(tables.SURNAMES)
STATES = spread(tables.STATES)
CODINGS: Final = {
    condition.code: {"code": condition.code, "system": ICD_10_CM, "display": condition.display}
    for condition in tables.CONDITIONS
}
SYSTOLIC, DIASTOLIC, HEART_RATE, SATURATION = (
    {"code": code, "system": LOINC, "display": display, "unit": unit} for code, display, unit in tables.VITALS
)
#: First possible birth day at each age: who is `age` on 1 January was born after 1 January of the year before.
FIRST_BIRTH_DAYS: Final = tuple(
    date(REFERENCE_DAY.year - 1 - age, 1, 2).toordinal()
    for age in range(tables.BAND_YEARS * len(tables.PYRAMID))
)
#: Next state of the check character's recurrence, by state and character.
STEPS: Final = tuple(
    {character: ((product + value) % 36 or 36) * 2 % 37 for character, value in VALUE.items()}
    for product in range(37)
)
