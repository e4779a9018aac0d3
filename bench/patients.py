"""Synthetic patients: ours against Faker, filling the same members in the same shapes, in batches of 100 as the service does.

Counted is the CPU of the records as Python objects, each side keeping a batch at a time; neither serialises. Faker is
used as its documentation says, one object shared by all records, and gets codes, displays and units for nothing. It
is not asked for what it does not do: a seed of each record's own, diagnoses that fit age and sex, vital signs that
move with them, check characters, identifiers that nobody can have. Ours does all of that inside the time counted.

Limits: beside the bar, Faker at its fastest (no weights, no proxy) is reported; few write it so.
"""

from __future__ import annotations

import gc
import os
import sys
import time
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

from bench import calls
from bench.bars import Bar, at_least, at_most, verdict
from reference_services.synthetic_phi import domain, draws, tables

LEAST = 40.0
#: Calls of one patient, Python's and C's.
MOST_CALLS = 27
BATCH, ROUNDS = 100, 15
#: Batches of ours that are timed together, so that both sides take about as long.
OURS = 20

Make = Callable[[], dict[str, Any]]


def by_faker(fake: Any) -> Make:
    """Return what makes one patient with `fake`: the members and shapes of `domain.patient`."""
    first_names = {"female": fake.first_name_female, "male": fake.first_name_male}
    diagnoses = [draws.DIAGNOSES[condition.code] for condition in tables.CONDITIONS]
    vitals = (
        (draws.SYSTOLIC, 90, 160),
        (draws.DIASTOLIC, 50, 100),
        (draws.HEART_RATE, 50, 110),
        (draws.SATURATION, 92, 100),
    )

    def make() -> dict[str, Any]:
        gender = fake.random_element(("female", "male"))
        mrn, ssn = fake.bothify("SYN-########?"), fake.ssn()
        chosen = fake.random_elements(diagnoses, length=2, unique=True)
        return {
            "id": fake.uuid4(),
            "first_name": first_names[gender](),
            "last_name": fake.last_name(),
            "gender": gender,
            "date_of_birth": fake.date_of_birth(maximum_age=99).isoformat(),
            "medical_record_number": mrn,
            "ssn": ssn,
            "address": {
                "line": fake.street_address(),
                "city": fake.city(),
                "state": fake.state_abbr(),
                "postal_code": fake.postcode(),
                "country": "US",
            },
            "telecom": [
                {"system": "phone", "value": fake.phone_number()},
                {"system": "email", "value": fake.safe_email()},
            ],
            "diagnosis": [diagnosis.coding["display"] for diagnosis in chosen],
            "conditions": [diagnosis.coding for diagnosis in chosen],
            "vitals": [vital[fake.random_int(lowest, highest)] for vital, lowest, highest in vitals],
            "identifiers": [
                {"system": domain.MRN_SYSTEM, "value": mrn},
                {"system": domain.SSN_SYSTEM, "value": ssn},
            ],
            "meta": domain.META,
            "created_at": fake.date_time().isoformat() + "Z",
            "phi_tags": domain.PHI_TAGS,
        }

    return make


def shape(value: Any) -> Any:
    """Return the names and types of a record, of a list those of its first item: what both sides must agree in."""
    if isinstance(value, dict):
        return {name: shape(member) for name, member in value.items()}
    return [shape(value[0])] if isinstance(value, list) else type(value)


def ratios() -> dict[str, float]:
    """Return how many times as fast ours is as each Faker: the least disturbed of interleaved rounds of each side."""
    from faker import Faker

    fastest = Faker("en_US", use_weighting=False)
    makes = {
        "one shared Faker": by_faker(Faker("en_US")),
        "Faker at its fastest": by_faker(fastest[fastest.locales[0]]),
    }
    for name, make in makes.items():
        if shape(make()) != shape(domain.patient(0, 0)):
            raise AssertionError(f"{name} does not make the record that ours is")
    gc.collect()
    least = dict.fromkeys(("ours", *makes), float("inf"))
    for number in range(ROUNDS):
        start = time.process_time()
        for batch in range(OURS):
            domain.patients(number, batch * BATCH, BATCH)
        least["ours"] = min(least["ours"], (time.process_time() - start) / OURS)
        for name, make in makes.items():
            start = time.process_time()
            _ = [make() for _ in range(BATCH)]
            least[name] = min(least[name], time.process_time() - start)
    return {name: least[name] / least["ours"] for name in makes}


def report() -> list[Bar]:
    """Print one line a Faker and return the bars."""
    if find_spec("faker") is None:
        print("patients against one shared Faker: not installed")
        must = os.environ.get("HEALTHOBS_MUST_HAVE_PEERS")
        return [Bar(False, "Faker: not installed")] if must else []
    counted = calls.count(lambda: domain.patients(0, 0, BATCH)) / BATCH
    print(f"a patient: {counted:.0f} calls")
    measured = ratios()
    for name, ratio in measured.items():
        print(f"patients in batches of {BATCH} against {name}: {ratio:.0f} times as fast")
    return [
        at_most("a patient, calls", counted, MOST_CALLS),
        at_least("patients against one shared Faker", measured["one shared Faker"], LEAST, timed=True),
    ]


if __name__ == "__main__":
    sys.exit(verdict(report(), sys.argv[1:]))
