"""Makes fictitious patients.

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

import json
import struct
from collections.abc import Sequence
from datetime import date
from hashlib import sha256, shake_128
from typing import Any, Final

from reference_services.synthetic_phi import draws, tables
from reference_services.synthetic_phi.tables import GENERATOR_VERSION as GENERATOR_VERSION

Patient = dict[str, Any]

MAX_SEED: Final = 2**53 - 1  # a JSON number that every language holds exactly (RFC 7493 §2.2)
MAX_INDEX: Final = 2**31 - 1
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

#: SHA-256 of the first 100 patients of seed 0 as compact JSON: what this version makes, for ever.
KNOWN_ANSWER: Final = "a71ef2a0a72076dcd99bfbf6596329fcfc20ea0f8dac86197508f47bf7c031cd"

_DRAWS: Final = struct.Struct("<16x28I")  # the first 16 bytes become the id
_BASE32: Final = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_VARIANT: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}  # RFC 9562 §4.1


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
    bits = shake_128(name.encode()).digest(_DRAWS.size)
    draw = _DRAWS.unpack(bits)
    cell = draws.CELLS[draw[0] % draws.SLOTS]
    sex, band = cell
    first_name, last_name = draws.NAMES[sex][draw[1] % draws.SLOTS], draws.SURNAMES[draw[2] % draws.SLOTS]
    age = band * tables.BAND_YEARS + draw[3] % tables.BAND_YEARS
    mrn = _mrn(draw[5] << 8 | draw[6] & 0xFF)
    ssn = f"9{draw[7] % 100:02d}-00-{1 + draw[8] % 9999:04d}"
    conditions = _diagnoses(cell, draw[9:15])
    mailbox = f"{first_name}.{last_name}.{draw[15] % 10_000}".lower()
    area_code = tables.AREA_CODES[draw[16] % len(tables.AREA_CODES)]
    return {
        "id": _uuid(bits[:16].hex()),
        "first_name": first_name,
        "last_name": last_name,
        "gender": "female" if sex == "F" else "male",
        "date_of_birth": date.fromordinal(draws.FIRST_BIRTH_DAYS[age] + draw[4] % 365).isoformat(),
        "medical_record_number": mrn,
        "ssn": ssn,
        "address": {
            "line": f"{1 + draw[17] % 9899} {tables.STREETS[draw[18] % len(tables.STREETS)]}",
            "city": tables.CITIES[draw[19] % len(tables.CITIES)],
            "state": draws.STATES[draw[20] % draws.SLOTS],
            "postal_code": f"00{draw[21] % 500:03d}",
            "country": "US",
        },
        "telecom": [
            {"system": "phone", "value": f"({area_code}) 555-01{draw[22] % 100:02d}"},
            {"system": "email", "value": f"{mailbox}@{tables.EMAIL_DOMAINS[draw[23] % 2]}"},
        ],
        "diagnosis": [condition.display for condition in conditions],
        "conditions": [draws.CODINGS[condition.code] for condition in conditions],
        "vitals": _vitals(band, conditions, draw[24], draw[25]),
        "identifiers": [{"system": MRN_SYSTEM, "value": mrn}, {"system": SSN_SYSTEM, "value": ssn}],
        "meta": {"security": [SECURITY]},
        "created_at": f"2025-01-01T{draw[26] % 24:02d}:{draw[27] % 60:02d}:00Z",
        "phi_tags": list(PHI_TAGS),
    }


def fingerprint(made: Sequence[Patient]) -> str:
    """Return the SHA-256 of patients as compact JSON."""
    return sha256(json.dumps(made, separators=(",", ":")).encode()).hexdigest()


def self_test() -> bool:
    """Tell whether this process generates what `GENERATOR_VERSION` promises (a known-answer test)."""
    return fingerprint(patients(0, 0, 100)) == KNOWN_ANSWER


def _diagnoses(cell: tuple[str, int], bits: Sequence[int]) -> list[tables.Condition]:
    """Draw one to four distinct diagnoses that the cell's sex and age allow; the old have more."""
    _, band = cell
    wanted = 1 + (bits[0] % 100 < 30 + 3 * band) + (bits[1] % 100 < 4 * band) + (bits[1] >> 16) % 100 // 90
    drawn: dict[str, tables.Condition] = {}
    table = draws.CONDITIONS[cell]
    for slot in bits[2:]:
        condition = table[slot % draws.SLOTS]
        drawn.setdefault(condition.group or condition.code, condition)
        if len(drawn) == wanted:
            break
    return list(drawn.values())


def _vitals(band: int, conditions: Sequence[tables.Condition], one: int, two: int) -> list[dict[str, Any]]:
    """Return vital signs that fit the age and move with the diagnoses."""
    child = max(0, 4 - band)
    systolic = (112 - 7 * child if child else 116 + band) + one % 17 - 8
    diastolic = (70 - 4 * child if child else 72 + band // 3) + (one >> 8) % 11 - 5
    heart_rate = 72 + 10 * child + two % 21 - 10
    saturation = 98 - (two >> 8) % 3
    for condition in conditions:
        shift = tables.VITAL_SHIFTS.get(condition.code)
        if shift is not None:
            systolic += shift[0]
            diastolic += shift[1]
            heart_rate += shift[2]
            saturation += shift[3]
    return [
        {**draws.SYSTOLIC, "value": systolic},
        {**draws.DIASTOLIC, "value": diastolic},
        {**draws.HEART_RATE, "value": heart_rate},
        {**draws.SATURATION, "value": saturation},
    ]


def _uuid(digits: str) -> str:
    """Return 32 hexadecimal digits as a UUID of version 4 (RFC 9562 §5.4)."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def _mrn(number: int) -> str:
    """Return a medical record number: ``SYN-``, 40 bits in base 32, a check character."""
    text = "".join([_BASE32[number >> shift & 31] for shift in (35, 30, 25, 20, 15, 10, 5, 0)])
    return f"SYN-{text}{check_character(text)}"


def check_character(text: str) -> str:
    """Return the ISO/IEC 7064 MOD 37,36 check character of upper-case letters and digits.

    Example:
        >>> check_character("A12425GABC1234002")
        'M'
    """
    product = 36
    for character in text:
        product = draws.STEPS[product][character]
    return draws.BASE36[(37 - product) % 36]
