"""The generator's tables in the form it draws from: a weighted draw is one index, a code one look-up."""

from __future__ import annotations

from bisect import bisect
from calendar import isleap
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date, timedelta
from itertools import accumulate
from typing import Final, TypeVar

from reference_services.synthetic_phi import tables

_T = TypeVar("_T")
SLOTS: Final = 4096
#: Ages are counted to this day, so that a patient never changes; the last of a year, so that they follow from the year.
REFERENCE_DAY: Final = date(2024, 12, 31)
ICD_10_CM: Final = "http://hl7.org/fhir/sid/icd-10-cm"
LOINC: Final = "http://loinc.org"
BASE36: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
VALUE: Final = {character: value for value, character in enumerate(BASE36)}


def spread(weighted: Iterable[tuple[_T, int]]) -> tuple[_T, ...]:
    """Return 4,096 entries in which each item is as frequent as its weight: a weighted draw is one index."""
    pairs = [(item, weight) for item, weight in weighted if weight]
    limits = list(accumulate(weight for _, weight in pairs))
    return tuple(pairs[bisect(limits, slot * limits[-1] // SLOTS)][0] for slot in range(SLOTS))


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """A diagnosis as a record shows it, and what it adds to the vital signs; two of one group exclude each other."""

    group: str
    coding: dict[str, str]
    systolic: int
    diastolic: int
    heart_rate: int
    saturation: int


@dataclass(frozen=True, slots=True)
class Cell:
    """A sex and five years of age: what its patients are drawn from, and their lowest vital signs without a diagnosis."""

    gender: str
    names: tuple[str, ...]
    years: tuple[tuple[int, int], ...]
    diagnoses: tuple[Diagnosis, ...]
    limits: tuple[int, ...]
    systolic: int
    diastolic: int
    heart_rate: int


def diagnoses(sex: str, band: int) -> tuple[Diagnosis, ...]:
    """Return the diagnoses of a sex in a whole age band, spread by weight."""
    youngest, oldest = band * tables.BAND_YEARS, (band + 1) * tables.BAND_YEARS - 1
    return spread(
        (DIAGNOSES[condition.code], condition.weight)
        for condition in tables.CONDITIONS
        if sex in condition.sexes and condition.youngest <= youngest and oldest <= condition.oldest
    )


def number_limits(band: int) -> tuple[int, ...]:
    """Return from which slots on a patient has two, three and four diagnoses: one, and up to three more by chance."""
    shares = [1]
    for percent in (30 + 3 * band, 4 * band, 10):
        shares = [
            less * (100 - percent) + more * percent
            for less, more in zip((*shares, 0), (0, *shares), strict=True)
        ]
    return tuple(limit * SLOTS // 100**3 for limit in accumulate(shares[:-1]))


def birth_years(band: int) -> tuple[tuple[int, int], ...]:
    """Return the years in which those of an age band were born, each with its days."""
    youngest = REFERENCE_DAY.year - band * tables.BAND_YEARS
    years = range(youngest, youngest - tables.BAND_YEARS, -1)
    return tuple((year, 365 + isleap(year)) for year in years)


def cell(sex: str, band: int) -> Cell:
    """Return what the patients of a sex in an age band are drawn from."""
    child = max(0, 4 - band)
    return Cell(
        gender={"F": "female", "M": "male"}[sex],
        names=NAMES[sex],
        years=birth_years(band),
        diagnoses=diagnoses(sex, band),
        limits=number_limits(band),
        systolic=104 - 7 * child if child else 108 + band,
        diastolic=65 - 4 * child if child else 67 + band // 3,
        heart_rate=62 + 10 * child,
    )


NAMES = {"F": spread(tables.FEMALE_NAMES), "M": spread(tables.MALE_NAMES)}
SURNAMES = spread(tables.SURNAMES)
STATES = spread(tables.STATES)
DIAGNOSES: Final = {
    condition.code: Diagnosis(
        condition.group or condition.code,
        {"code": condition.code, "system": ICD_10_CM, "display": condition.display},
        *tables.VITAL_SHIFTS.get(condition.code, (0, 0, 0, 0)),
    )
    for condition in tables.CONDITIONS
}
CELLS = spread(
    (cell(sex, band), weights[place])
    for band, weights in enumerate(tables.PYRAMID)
    for place, sex in enumerate("MF")
)
#: Each vital sign by its value.
SYSTOLIC, DIASTOLIC, HEART_RATE, SATURATION = (
    [
        {"code": code, "system": LOINC, "display": display, "unit": unit, "value": value}
        for value in range(256)
    ]
    for code, display, unit in tables.VITALS
)
#: The days of a leap year, the leap day last: of another year the first 365.
DAYS: Final = sorted(
    (f"{date(2024, 1, 1) + timedelta(days):%m-%d}" for days in range(366)), key=lambda day: day == "02-29"
)
PHONES: Final = tuple(f"({area}) 555-01{line:02d}" for area in tables.AREA_CODES for line in range(100))
POSTAL_CODES: Final = tuple(f"00{number:03d}" for number in range(500))
MINUTES: Final = tuple(
    f"2025-01-01T{hour:02d}:{minute:02d}:00Z" for hour in range(24) for minute in range(60)
)
BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
PAIRS: Final = tuple(high + low for high in BASE32 for low in BASE32)
#: Next state of the check character's recurrence, by state and character.
STEPS: Final = tuple(
    {character: ((product + value) % 36 or 36) * 2 % 37 for character, value in VALUE.items()}
    for product in range(37)
)
#: The same for two digits of base 32 at once.
PAIR_STEPS: Final = tuple(
    bytes(STEPS[STEPS[product][high]][low] for high in BASE32 for low in BASE32) for product in range(37)
)
