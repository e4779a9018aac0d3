"""Makes fictitious patients.

Patient *i* depends on `(seed, i, GENERATOR_VERSION)` alone: its bits are part *i* mod 8 of SHAKE128 of seed,
version and *i* div 8 (FIPS 202), so a batch split anywhere, on any machine and Python, gives the same patients.
Every identifier lies in a range that cannot belong to anybody:

* SSN ``9xx-00-xxxx``: neither the SSA nor the IRS (ITIN, ATIN) assigns group 00 or, to the SSA, area 9xx.
* Phone ``(NPA) 555-01xx``: reserved for fiction in every area code.
* E-mail at ``example.org`` and ``example.com`` (RFC 2606 §3).
* Postal code ``000xx`` to ``004xx``: prefixes that are not in use.
* Identifier systems under ``urn:oid:2.999``, the OID arc for examples (ITU-T X.660); MRN ``SYN-`` with an
  ISO/IEC 7064 MOD 37,36 check character; `meta.security` carries v3-ActReason ``HTEST``.

Limits: names and birth dates are drawn freely, so a namesake can exist; distributions are coarse. Parts that
patients have alike (codings, vital signs, tags) are the same objects: copy a patient before changing it.
"""

from __future__ import annotations

import json
import struct
from bisect import bisect
from collections.abc import Sequence
from hashlib import sha256, shake_128
from typing import Any, Final

from reference_services.synthetic_phi import draws, tables
from reference_services.synthetic_phi.tables import GENERATOR_VERSION as GENERATOR_VERSION

Patient = dict[str, Any]

MAX_SEED: Final = 2**53 - 1  # a JSON number that every language holds exactly (RFC 7493 §2.2)
MAX_INDEX: Final = 2**31 - 1
MRN_SYSTEM: Final = "urn:oid:2.999.1.1"
SSN_SYSTEM: Final = "urn:oid:2.999.1.2"
META: Final = {
    "security": [
        {
            "system": "http://terminology.hl7.org/CodeSystem/v3-ActReason",
            "code": "HTEST",
            "display": "test health data",
        }
    ]
}
#: Members that would be protected health information if the patient existed (45 CFR 164.514(b)(2)).
PHI_TAGS: Final = [
    "first_name", "last_name", "date_of_birth", "medical_record_number", "ssn", "address", "telecom",
    "identifiers",
]  # fmt: skip

#: SHA-256 of the first 100 patients of seed 0 as compact JSON: what this version makes, for ever.
KNOWN_ANSWER: Final = "4d90d5626d550d6741e186a88bf61f28bd28b0d02760bd21a06bac900d1f4668"

#: Patients that share one SHAKE128, whose set-up costs as much as six of its blocks.
_TOGETHER: Final = 8
#: What a person is drawn from: the bits of the id, 14 short numbers, 4 long ones where a short one would favour some.
_PERSON: Final = struct.Struct("<16s14H4I")
#: And what is found in them: how many diagnoses, four tries at one, four vital signs.
_FINDINGS: Final = struct.Struct("<9H")
_SIZE: Final = _PERSON.size + _FINDINGS.size
_VARIANT: Final = {digit: "89ab"[int(digit, 16) % 4] for digit in "0123456789abcdef"}  # RFC 9562 §4.1


def patients(seed: int, first: int, count: int) -> list[Patient]:
    """Return patients `first` to `first + count - 1` of `seed`."""
    made: list[Patient] = []
    bits = b""
    for index in range(first, first + count):
        number, place = divmod(index, _TOGETHER)
        if not bits or place == 0:
            name = f"healthobs.synthetic/{tables.GENERATOR_VERSION}/{seed}/{number}"
            bits = shake_128(name.encode()).digest(_TOGETHER * _SIZE)
        made.append(_patient(bits, place * _SIZE))
    return made


def patient(seed: int, index: int) -> Patient:
    """Return patient `index` of `seed`.

    Args:
        seed: 0 to `MAX_SEED`.
        index: 0 to `MAX_INDEX`.

    Example:
        >>> patient(7, 0) == patient(7, 0)
        True
    """
    return patients(seed, index, 1)[0]


def _patient(bits: bytes, start: int) -> Patient:
    """Return the patient whose bits begin at `start`."""
    (
        identity, place, given, family, age, day, high, middle, low, lowest, street, city, state,
        postal_code, minute, serial, mailbox, phone, house,
    ) = _PERSON.unpack_from(bits, start)  # fmt: skip
    cell = draws.CELLS[place % draws.SLOTS]
    first_name, last_name = cell.names[given % draws.SLOTS], draws.SURNAMES[family % draws.SLOTS]
    year, days = cell.years[age % tables.BAND_YEARS]
    mrn = _mrn(high, middle, low, lowest)
    ssn = f"{900 + serial % 100}-00-{1 + (serial >> 8) % 9999:04d}"
    diagnosis, conditions, vitals = _findings(cell, bits, start + _PERSON.size)
    mailbox = f"{first_name}.{last_name}.{mailbox % 10_000}@{tables.EMAIL_DOMAINS[mailbox >> 16 & 1]}"
    return {
        "id": _uuid(identity.hex()),
        "first_name": first_name,
        "last_name": last_name,
        "gender": cell.gender,
        "date_of_birth": f"{year}-{draws.DAYS[day % days]}",
        "medical_record_number": mrn,
        "ssn": ssn,
        "address": {
            "line": f"{1 + house % 9899} {tables.STREETS[street % len(tables.STREETS)]}",
            "city": tables.CITIES[city % len(tables.CITIES)],
            "state": draws.STATES[state % draws.SLOTS],
            "postal_code": draws.POSTAL_CODES[postal_code % len(draws.POSTAL_CODES)],
            "country": "US",
        },
        "telecom": [
            {"system": "phone", "value": draws.PHONES[phone % len(draws.PHONES)]},
            {"system": "email", "value": mailbox.lower()},
        ],
        "diagnosis": diagnosis,
        "conditions": conditions,
        "vitals": vitals,
        "identifiers": [{"system": MRN_SYSTEM, "value": mrn}, {"system": SSN_SYSTEM, "value": ssn}],
        "meta": META,
        "created_at": draws.MINUTES[minute % len(draws.MINUTES)],
        "phi_tags": PHI_TAGS,
    }


def fingerprint(made: Sequence[Patient]) -> str:
    """Return the SHA-256 of patients as compact JSON."""
    return sha256(json.dumps(made, separators=(",", ":")).encode()).hexdigest()


def self_test() -> bool:
    """Tell whether this process generates what `GENERATOR_VERSION` promises (a known-answer test)."""
    return fingerprint(patients(0, 0, 100)) == KNOWN_ANSWER


def _findings(
    cell: draws.Cell, bits: bytes, start: int
) -> tuple[list[str], list[dict[str, str]], list[dict[str, Any]]]:
    """Draw one to four distinct diagnoses that the cell allows, and vital signs that fit its age and move with them."""
    number, first, second, third, last, one, two, three, four = _FINDINGS.unpack_from(bits, start)
    wanted = 1 + bisect(cell.limits, number % draws.SLOTS)
    drawn: dict[str, draws.Diagnosis] = {}
    for place in (first, second, third, last):
        found = cell.diagnoses[place % draws.SLOTS]
        drawn.setdefault(found.group, found)
        if len(drawn) == wanted:
            break
    systolic, diastolic = cell.systolic + one % 17, cell.diastolic + two % 11
    heart_rate, saturation = cell.heart_rate + three % 21, 98 - four % 3
    displays: list[str] = []
    codings: list[dict[str, str]] = []
    for found in drawn.values():
        displays.append(found.coding["display"])
        codings.append(found.coding)
        systolic += found.systolic
        diastolic += found.diastolic
        heart_rate += found.heart_rate
        saturation += found.saturation
    vitals = [
        draws.SYSTOLIC[systolic], draws.DIASTOLIC[diastolic], draws.HEART_RATE[heart_rate],
        draws.SATURATION[saturation],
    ]  # fmt: skip
    return displays, codings, vitals


def _uuid(digits: str) -> str:
    """Return 32 hexadecimal digits as a UUID of version 4 (RFC 9562 §5.4)."""
    return f"{digits[:8]}-{digits[8:12]}-4{digits[13:16]}-{_VARIANT[digits[16]]}{digits[17:20]}-{digits[20:]}"


def _mrn(one: int, two: int, three: int, four: int) -> str:
    """Return a medical record number: ``SYN-``, 10 bits of each number in base 32, a check character."""
    one, two, three, four = one % 1024, two % 1024, three % 1024, four % 1024
    pairs, steps = draws.PAIRS, draws.PAIR_STEPS
    product = steps[steps[steps[steps[36][one]][two]][three]][four]
    return f"SYN-{pairs[one]}{pairs[two]}{pairs[three]}{pairs[four]}{draws.BASE36[(37 - product) % 36]}"


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
