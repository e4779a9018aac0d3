"""Tells which members of a record are proven to be synthetic, and by what.

A member is proven by a range that nobody can be in (`domain` lists them), or by regenerating the record from
its seed. Limits: what has no reserved range (names, dates) is never proven without the seed.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any, Final

from reference_services.synthetic_phi import domain, draws

_SSN = re.compile(r"9[0-9]{2}-00-[0-9]{4}")
_PHONE = re.compile(r"\([2-9][0-9]{2}\) 555-01[0-9]{2}")
_EMAIL = re.compile(r"[a-z0-9.-]+@example\.(?:org|com|net)")
_POSTAL_CODE = re.compile(r"00[0-4][0-9]{2}")
_OID = re.compile(r"urn:oid:2\.999(?:\.[0-9]+)*")


def _is_mrn(value: Any) -> bool:
    text = value.removeprefix("SYN-") if isinstance(value, str) and value.startswith("SYN-") else ""
    return (
        len(text) == 9 and set(text) <= draws.VALUE.keys() and domain.check_character(text[:-1]) == text[-1]
    )


def _matches(pattern: re.Pattern[str]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, str) and pattern.fullmatch(value) is not None


def _each(value: Any, rule: Callable[[Any], bool]) -> bool:
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(item, dict) and rule(item) for item in value)
    )


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
        lambda value: (
            isinstance(value, dict) and _each(value.get("security"), lambda item: item.get("code") == "HTEST")
        ),
        "test_data_tag",
    ),
}


def verify(record: domain.Patient, seed: int | None = None, index: int = 0) -> dict[str, tuple[bool, str]]:
    """Return for each member whether it is proven synthetic, and by what.

    A range proves a member by itself. With the `seed` and `index` that a record was made from, every member
    that equals the regenerated one is proven too, names and dates included.

    Args:
        record: Members of a patient; those that the generator does not know are never proven.
        seed: Seed of the record, when known.
        index: Its index under that seed.
    """
    remade: domain.Patient = {} if seed is None else domain.patient(seed, index)
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
