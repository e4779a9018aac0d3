"""Samples of the eighteen identifiers of 45 CFR 164.514(b)(2)(i): what must not come out of any exit.

Limits: for the kinds without a pattern (names, places, pictures) only the key tells, so only there are they looked for.
"""

from __future__ import annotations

from typing import NamedTuple


class Identifier(NamedTuple):
    """A kind of identifier of 45 CFR 164.514(b)(2)(i) and a made-up sample of it."""

    letter: str
    title: str
    key: str
    sample: str
    in_text: bool  # whether a pattern finds it, so that free text must lose it


#: Letter, title, a key that denies, a sample, and whether a pattern finds it.
IDENTIFIERS: tuple[Identifier, ...] = (
    Identifier("A", "names", "patient_name", "Jane Canary", False),
    Identifier("B", "geographic subdivisions", "street_address", "12 Canary Lane", False),
    Identifier("C", "dates", "birth_date", "1961-04-12", True),
    Identifier("D", "telephone numbers", "phone", "212-555-0142", True),
    Identifier("E", "fax numbers", "fax", "(212) 555-0143", True),
    Identifier("F", "e-mail addresses", "email", "canary@example.org", True),
    Identifier("G", "social security numbers", "ssn", "078-05-1120", True),
    Identifier("H", "medical record numbers", "mrn", "MRN 48213377", True),
    Identifier("I", "health plan beneficiary numbers", "beneficiary", "1EG4-TE5-MK73", True),
    Identifier("J", "account numbers", "account_number", "account number 99182736", True),
    Identifier("K", "certificate and licence numbers", "license_number", "license number D4821337", True),
    Identifier("L", "vehicle identifiers", "vin", "1M8GDM9AXKP042788", True),
    Identifier("M", "device identifiers", "device_serial", "(01)00643169007222(21)A4821", True),
    Identifier("N", "URLs", "url.full", "https://example.org/patients/48213377", True),
    Identifier("O", "IP addresses", "ip", "198.51.100.23", True),
    Identifier("P", "biometric identifiers", "biometric", "fingerprint template canary", False),
    Identifier("Q", "full-face photographs", "photo", "face photograph canary", False),
    Identifier("R", "other unique identifiers", "patient_id", "canary unique code", False),
)


def telling(sample: str) -> str:
    """Return the part of a sample that identifies, without the words before it."""
    return sample.split(" number ")[-1].removeprefix("MRN ")
