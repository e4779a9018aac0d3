"""Makes fictitious patients and tells what about a record proves that it is fictitious.

Patient *i* depends on `(seed, i, GENERATOR_VERSION)` alone: its bits are SHAKE128 of them (FIPS 202), so a
batch split anywhere, on any machine and Python, gives the same patients. Every identifier lies in a range
that cannot belong to anybody:

* SSN ``9xx-00-xxxx``: neither the SSA nor the IRS (ITIN, ATIN) assigns group 00 or, to the SSA, area 9xx.
* Phone ``(NPA) 555-01xx``: reserved for fiction in every area code.
* E-mail at ``example.org`` and ``example.com`` (RFC 2606 §3).
* Postal code ``000xx`` to ``004xx``: prefixes that are not in use.
* Identifier systems under ``urn:oid:2.999``, the OID arc for examples (ITU-T X.660); MRN ``SYN-`` with an
  ISO/IEC 7064 MOD 37,36 check character; `meta.security` carries v3-ActReason ``HTEST``.

Limits: names and birth dates are drawn freely, so a namesake can exist; distributions are coarse.
"""

from __future__ import annotations

import re
import struct
from bisect import bisect
from collections.abc import Callable, Iterable, Sequence
from datetime import date, timedelta
from hashlib import shake_128
from itertools import accumulate
from typing import Any, Final, TypeVar

from reference_services.synthetic_phi import tables
from reference_services.synthetic_phi.tables import GENERATOR_VERSION as GENERATOR_VERSION

_T = TypeVar("_T")
Patient = dict[str, Any]

#: Ages are counted to this day, so that a patient never changes.
REFERENCE_DAY: Final = date(2025, 1, 1)
MAX_SEED: Final = 2**53 - 1  # a JSON number that every language holds exactly (RFC 7493 §2.2)
MAX_INDEX: Final = 2**31 - 1
ICD_10_CM: Final = "http://hl7.org/fhir/sid/icd-10-cm"
LOINC: Final = "http://loinc.org"
MRN_SYSTEM: Final = "urn:oid:2.999.1.1"
SSN_SYSTEM: Final = "urn:oid:2.999.1.2"
SECURITY: Final = {
    "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
    "code": "HTEST",
    "display": "test health data",
}
#: Members that would be protected health information if the patient existed (45 CFR 164.514(b)(2)).
PHI_TAGS: Final = (
    "first_name", "last_name", "date_of_birth", "medical_record_number", "ssn", "address", "telecom",
    "identifiers",
)  # fmt: skip

_SLOTS: Final = 4096
_DRAWS: Final = struct.Struct("<32I")
_BASE36: Final = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZ"
_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VALUE: Final = {character: value for value, character in enumerate(_BASE36)}


def _spread(weighted: Iterable[tuple[_T, int]]) -> tuple[_T, ...]:
    """Return 4,096 entries in which each item is as frequent as its weight: a weighted draw is one index."""
    pairs = [(item, weight) for item, weight in weighted if weight]
    limits = list(accumulate(weight for _, weight in pairs))
    return tuple(pairs[bisect(limits, slot * limits[-1] // _SLOTS)][0] for slot in range(_SLOTS))


def _band_conditions(sex: str, band: int) -> tuple[tables.Condition, ...]:
    youngest, oldest = band * tables.BAND_YEARS, (band + 1) * tables.BAND_YEARS - 1
    return _spread(
        (condition, condition.weight)
        for condition in tables.CONDITIONS
        if sex in condition.sexes and condition.youngest <= youngest and oldest <= condition.oldest
    )


_CELLS = _spread(
    ((sex, band), weights[place])
    for band, weights in enumerate(tables.PYRAMID)
    for place, sex in enumerate("MF")
)
_CONDITIONS = {
    (sex, band): _band_conditions(sex, band) for sex in "MF" for band in range(len(tables.PYRAMID))
}
_NAMES = {"F": _spread(tables.FEMALE_NAMES), "M": _spread(tables.MALE_NAMES)}
_SURNAMES = _spread(tables.SURNAMES)
_STATES = _spread(tables.STATES)
_NO_SHIFT: Final = (0, 0, 0, 0)


def patients(seed: int, first: int, count: int) -> list[Patient]:
    """Return patients `first` to `first + count - 1` of `seed`."""
    return [patient(seed, index) for index in range(first, first + count)]


def patient(seed: int, index: int) -> Patient:
    """Return patient `index` of `seed`.

    Args:
        seed: 0 to `MAX_SEED`.
        index: 0 to `MAX_INDEX`.

    Example:
        >>> patient(7, 0) == patient(7, 0)
        True
    """
    name = f"healthobs.synthetic/{tables.GENERATOR_VERSION}/{seed}/{index}"
    draw = _DRAWS.unpack(shake_128(name.encode()).digest(_DRAWS.size))
    cell = _CELLS[draw[0] % _SLOTS]
    sex, band = cell
    first_name, last_name = _NAMES[sex][draw[1] % _SLOTS], _SURNAMES[draw[2] % _SLOTS]
    days = (band * tables.BAND_YEARS + draw[3] % tables.BAND_YEARS) * 365.2425 + 1 + draw[4] % 365
    born = REFERENCE_DAY - timedelta(days=int(days))
    mrn = _mrn(draw[5] << 8 | draw[6] & 0xFF)
    ssn = f"9{draw[7] % 100:02d}-00-{1 + draw[8] % 9999:04d}"
    conditions = _diagnoses(cell, draw[9:15])
    mailbox = f"{first_name}.{last_name}.{draw[15] % 10_000:04d}".lower()
    return {
        "id": f"{draw[16]:08x}-{draw[17] >> 16:04x}-4{draw[17] & 0xFFF:03x}"
        f"-{0x8000 | draw[18] >> 18:04x}-{draw[19]:08x}{draw[20] & 0xFFFF:04x}",
        "first_name": first_name,
        "last_name": last_name,
        "gender": "female" if sex == "F" else "male",
        "date_of_birth": born.isoformat(),
        "medical_record_number": mrn,
        "ssn": ssn,
        "address": {
            "line": f"{1 + draw[21] % 9899} {tables.STREETS[draw[22] % len(tables.STREETS)]}",
            "city": tables.CITIES[draw[23] % len(tables.CITIES)],
            "state": _STATES[draw[24] % _SLOTS],
            "postal_code": f"{draw[25] % 500:05d}",
            "country": "US",
        },
        "telecom": [
            {
                "system": "phone",
                "value": f"({tables.AREA_CODES[draw[26] % len(tables.AREA_CODES)]}) 555-01{draw[27] % 100:02d}",
            },
            {"system": "email", "value": f"{mailbox}@{tables.EMAIL_DOMAINS[draw[28] % 2]}"},
        ],
        "diagnosis": [condition.display for condition in conditions],
        "conditions": [
            {"code": condition.code, "system": ICD_10_CM, "display": condition.display}
            for condition in conditions
        ],
        "vitals": _vitals(band, conditions, draw[29], draw[30]),
        "identifiers": [{"system": MRN_SYSTEM, "value": mrn}, {"system": SSN_SYSTEM, "value": ssn}],
        "meta": {"security": [SECURITY]},
        "created_at": f"2024-{1 + draw[31] % 12:02d}-{1 + (draw[31] >> 8) % 28:02d}T{(draw[31] >> 16) % 24:02d}:00:00Z",
        "phi_tags": list(PHI_TAGS),
    }


def _diagnoses(cell: tuple[str, int], draws: Sequence[int]) -> list[tables.Condition]:
    """Draw one to four distinct diagnoses that the cell's sex and age allow; the old have more."""
    _, band = cell
    wanted = 1 + (draws[0] % 100 < 30 + 3 * band) + (draws[1] % 100 < 4 * band) + (draws[1] >> 16) % 100 // 90
    drawn: dict[str, tables.Condition] = {}
    table = _CONDITIONS[cell]
    for bits in draws[2:]:
        condition = table[bits % _SLOTS]
        drawn.setdefault(condition.group or condition.code, condition)
        if len(drawn) == wanted:
            break
    return list(drawn.values())


def _vitals(band: int, conditions: Sequence[tables.Condition], one: int, two: int) -> list[dict[str, Any]]:
    """Return vital signs that fit the age and move with the diagnoses."""
    child = max(0, 4 - band)
    values = [
        (116 + band if not child else 112 - 7 * child) + one % 17 - 8,
        (72 + band // 3 if not child else 70 - 4 * child) + (one >> 8) % 11 - 5,
        (72 if not child else 74 + 10 * child) + two % 21 - 10,
        98 - (two >> 8) % 3,
    ]
    for condition in conditions:
        shift = tables.VITAL_SHIFTS.get(condition.code, _NO_SHIFT)
        values = [value + moved for value, moved in zip(values, shift, strict=True)]
    return [
        {"code": code, "system": LOINC, "display": display, "value": value, "unit": unit}
        for (code, display, unit), value in zip(tables.VITALS, values, strict=True)
    ]


def _mrn(number: int) -> str:
    """Return a medical record number: ``SYN-``, 40 bits in base 32, a check character."""
    text = "".join(_BASE32[number >> shift & 31] for shift in (35, 30, 25, 20, 15, 10, 5, 0))
    return f"SYN-{text}{check_character(text)}"


def check_character(text: str) -> str:
    """Return the ISO/IEC 7064 MOD 37,36 check character of upper-case letters and digits.

    Example:
        >>> check_character("A12425GABC1234002")
        'M'
    """
    product = 36
    for character in text:
        product = ((product + _VALUE[character]) % 36 or 36) * 2 % 37
    return _BASE36[(37 - product) % 36]


# ---- what proves that a record is synthetic

_SSN = re.compile(r"9[0-9]{2}-00-[0-9]{4}", re.ASCII)
_PHONE = re.compile(r"\([2-9][0-9]{2}\) 555-01[0-9]{2}", re.ASCII)
_EMAIL = re.compile(r"[a-z0-9.-]+@example\.(?:org|com|net)", re.ASCII)
_POSTAL_CODE = re.compile(r"00[0-4][0-9]{2}", re.ASCII)
_OID = re.compile(r"urn:oid:2\.999(?:\.[0-9]+)*", re.ASCII)


def _is_mrn(value: Any) -> bool:
    text = value.removeprefix("SYN-") if isinstance(value, str) and value.startswith("SYN-") else ""
    return len(text) == 9 and set(text) <= _VALUE.keys() and check_character(text[:-1]) == text[-1]


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _each(value: Any, rule: Callable[[Any], bool]) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(item, dict) and rule(item) for item in value)


def _is_contact(item: dict[str, Any]) -> bool:
    pattern = {"phone": _PHONE, "email": _EMAIL}.get(str(item.get("system")))
    return pattern is not None and _matches(pattern)(item.get("value"))


#: What proves a member synthetic by itself, and the words for it.
PROOFS: Final[dict[str, tuple[Callable[[Any], bool], str]]] = {
    "ssn": (_matches(_SSN), "unassignable_range"),
    "medical_record_number": (_is_mrn, "synthetic_prefix_and_check_character"),
    "telecom": (lambda value: _each(value, _is_contact), "reserved_for_examples"),
    "address": (
        lambda value: isinstance(value, dict) and _matches(_POSTAL_CODE)(value.get("postal_code")),
        "unused_postal_prefix",
    ),
    "identifiers": (
        lambda value: _each(value, lambda item: _matches(_OID)(item.get("system"))),
        "example_oid_arc",
    ),
    "meta": (
        lambda value: isinstance(value, dict)
        and _each(value.get("security"), lambda item: item.get("code") == "HTEST"),
        "test_data_tag",
    ),
}


def verify(record: Patient, seed: int | None = None, index: int = 0) -> dict[str, tuple[bool, str]]:
    """Return for each member whether it is proven synthetic, and by what.

    A range proves a member by itself. With the `seed` and `index` that a record was made from, every member
    that equals the regenerated one is proven too, names and dates included.

    Args:
        record: Members of a patient; those that the generator does not know are never proven.
        seed: Seed of the record, when known.
        index: Its index under that seed.
    """
    remade: Patient = {} if seed is None else patient(seed, index)
    verdicts: dict[str, tuple[bool, str]] = {}
    for name, value in record.items():
        rule, reason = PROOFS.get(name, (None, ""))
        if name in remade and remade[name] == value:
            verdicts[name] = (True, "regenerated")
        elif rule is not None and rule(value):
            verdicts[name] = (True, reason)
        else:
            verdicts[name] = (False, "outside_reserved_range" if rule else "no_reserved_range_exists")
    return verdicts
