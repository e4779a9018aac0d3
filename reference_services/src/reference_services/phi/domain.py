"""Who sees what of a patient's record, without HTTP, database or telemetry.

Minimum necessary (45 CFR 164.502(b)) as data: role and purpose of use (HL7 v3 PurposeOfUse) select a view, a
view lists its fields, and nothing is shown that no view lists. The research view is de-identified by the
Safe Harbor method (45 CFR 164.514(b)(2)(i)): of a diagnosis it has the code, and no text that somebody wrote.
A clinician who states an emergency (45 CFR 164.312(a)(2)(ii)) has the view of treatment: what differs is that a lost
audit store does not stop it.

Limits: no consent; break-glass takes a reason and insists on none, and knows no review; a code is told by its form, in no table.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from datetime import date
from types import MappingProxyType
from typing import Any

RECORD_FIELDS = (
    "first_name",
    "last_name",
    "date_of_birth",
    "gender",
    "address",
    "telecom",
    "identifiers",
    "conditions",
)
#: Three-digit ZIP areas of 20,000 or fewer people (HHS guidance on de-identification, 2000 Census).
SMALL_ZIP3 = frozenset(
    "036 059 063 102 203 556 692 790 821 823 830 831 878 879 884 890 893".split()  # noqa: SIM905
)
OLDEST_SHOWN_AGE = 89
#: The one system whose codes research sees, as FHIR names it, and their form: too narrow to write a person into.
ICD_10_CM = "http://hl7.org/fhir/sid/icd-10-cm"
_CODE = re.compile(r"[A-Z][0-9][0-9AB](\.[0-9A-Z]{1,4})?")


@dataclass(frozen=True, slots=True)
class View:
    """What one role sees for one purpose.

    Args:
        name: Its name in answers and audit entries.
        fields: Fields shown as they are; ``id`` and ``version`` count as fields.
        derived: Fields computed from the record; one with the name of the record's own shows less than that.
        may_search: Whether a record may be looked up by an identifier (that re-identifies).
        may_write: Whether records may be made and changed.
    """

    name: str
    fields: tuple[str, ...]
    derived: tuple[str, ...] = ()
    may_search: bool = False
    may_write: bool = False

    @property
    def withheld(self) -> tuple[str, ...]:
        """Names of the record's fields that this view does not show as they are."""
        return tuple(name for name in RECORD_FIELDS if name not in self.fields)


FULL = View("full", ("id", "version", *RECORD_FIELDS), may_search=True, may_write=True)
BILLING = View(
    "billing",
    ("id", "version", *(name for name in RECORD_FIELDS if name != "conditions")),
    may_search=True,
)
RESEARCH = View("deidentified", ("gender",), ("conditions", "birth_year", "age_group", "zip3"))
#: Nothing that is not in here is allowed.
POLICY: Mapping[tuple[str, str], View] = MappingProxyType(
    {
        ("clinician", "TREAT"): FULL,
        ("clinician", "BTG"): FULL,
        ("clinician", "ETREAT"): FULL,
        ("billing", "HPAYMT"): BILLING,
        ("researcher", "HRESCH"): RESEARCH,
    }
)
EMERGENCIES = ("BTG", "ETREAT")
PURPOSES = tuple(purpose for _, purpose in POLICY)


def view_for(roles: Collection[str], purpose: str) -> View | None:
    """Return the view of a caller with these roles for this purpose; None where nothing may be seen."""
    return next((POLICY[role, purpose] for role in roles if (role, purpose) in POLICY), None)


def project(
    view: View, patient_id: str, version: int, record: Mapping[str, Any], today: date
) -> dict[str, Any]:
    """Return what `view` shows of a record, and nothing else."""
    whole = {**record, "id": patient_id, "version": version}
    shown = {name: whole[name] for name in view.fields if whole.get(name) is not None}
    derived = {name: _DERIVED[name](record, today) for name in view.derived}
    return {
        "view": view.name,
        **shown,
        **{name: value for name, value in derived.items() if value is not None},
    }


def _birth_year(record: Mapping[str, Any], today: date) -> int | None:
    year = date.fromisoformat(record["date_of_birth"]).year
    # By year alone: a birth year that some 90-year-old shares is not shown for anyone.
    return year if today.year - year <= OLDEST_SHOWN_AGE else None


def _age_group(record: Mapping[str, Any], today: date) -> str | None:
    return None if _birth_year(record, today) else "90+"


def _zip3(record: Mapping[str, Any], today: date) -> str | None:  # noqa: ARG001 - one signature for all
    postal_code = str((record.get("address") or {}).get("postal_code") or "")
    if not re.match(r"[0-9]{5}", postal_code, re.ASCII):
        return None
    return "000" if postal_code[:3] in SMALL_ZIP3 else postal_code[:3]


def is_code(text: str) -> bool:
    """Tell whether a text has the form of an ICD-10-CM code.

    Example:
        >>> is_code("E11.9"), is_code("E11.9, seen at home")
        (True, False)
    """
    return _CODE.fullmatch(text) is not None


def _codes(record: Mapping[str, Any], today: date) -> list[dict[str, str]]:  # noqa: ARG001 - one signature for all
    return [
        {"code": condition["code"], "system": ICD_10_CM}
        for condition in record.get("conditions") or ()
        if condition.get("system") == ICD_10_CM and is_code(condition.get("code", ""))
    ]


_DERIVED: Mapping[str, Callable[[Mapping[str, Any], date], Any]] = MappingProxyType(
    {"birth_year": _birth_year, "age_group": _age_group, "zip3": _zip3, "conditions": _codes}
)


def undeclared_fields(today: date) -> dict[str, list[str]]:
    """Return, by view, marker values that the view shows of a record but does not declare (none, if it works)."""
    record: dict[str, Any] = {name: f"marker-{name}" for name in RECORD_FIELDS}
    record |= {"date_of_birth": "1931-07-04", "address": {"line": "marker-line", "postal_code": "03601-4711"}}
    known = {"code": "I10", "system": ICD_10_CM, "display": "x"}
    record["conditions"] = [{**known, member: "marker-conditions"} for member in known]
    found: dict[str, list[str]] = {}
    for view in POLICY.values():
        text = str(project(view, "marker-id", 1, record, today))
        secrets = {**record, "id": "marker-id", "address": "marker-line", "conditions": "marker-conditions"}
        leaks = [name for name, marker in secrets.items() if name not in view.fields and str(marker) in text]
        leaks += [
            name
            for name in project(view, "", 1, record, today)
            if name not in ("view", *view.fields, *view.derived)
        ]
        if leaks:
            found[view.name] = leaks
    return found


def etag(version: int) -> str:
    """Return the weak entity tag of a version, as FHIR R4 §3.1.0.4 writes it."""
    return f'W/"{version}"'


def version_of(if_match: str) -> int | None:
    """Return the version that an `If-Match` header names, or None when it is not one of ours."""
    found = re.fullmatch(r'(?:W/)?"([1-9][0-9]{0,8})"', if_match.strip(), re.ASCII)
    return int(found[1]) if found else None
