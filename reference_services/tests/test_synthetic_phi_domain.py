"""The generator: reserved ranges, stable seeds, plausible distributions, honest verdicts."""

from __future__ import annotations

import re
from collections import Counter
from datetime import date
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_services.synthetic_phi import domain, draws, proofs, tables

RECORDS = 10_000
#: Stated here a second time and by other means than the generator's own rules.
OUTSIDE = {
    "ssn": lambda p: not (p["ssn"][0] == "9" and p["ssn"][4:6] == "00" and len(p["ssn"]) == 11),
    "phone": lambda p: " 555-01" not in p["telecom"][0]["value"] or len(p["telecom"][0]["value"]) != 14,
    "email": lambda p: p["telecom"][1]["value"].split("@")[1] not in {"example.org", "example.com"},
    "postal_code": lambda p: not 0 <= int(p["address"]["postal_code"]) <= 499,
    "mrn": lambda p: not re.fullmatch("SYN-[0-9A-Z]{9}", p["medical_record_number"]),
    "systems": lambda p: not all(i["system"].startswith("urn:oid:2.999.") for i in p["identifiers"]),
    "tag": lambda p: p["meta"]["security"][0]["code"] != "HTEST",
    "uuid": lambda p: (
        not re.fullmatch("[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", p["id"])
    ),
}


@pytest.fixture(scope="module")
def many() -> list[domain.Patient]:
    return domain.patients(2025, 0, RECORDS)


def age(patient: domain.Patient) -> int:
    born, today = date.fromisoformat(patient["date_of_birth"]), draws.REFERENCE_DAY
    return today.year - born.year - ((today.month, today.day) < (born.month, born.day))


def chi_squared(observed: Counter[Any], weights: dict[Any, int]) -> float:
    total, all_weights = sum(observed.values()), sum(weights.values())
    expected = {cell: total * weight / all_weights for cell, weight in weights.items()}
    return sum((observed[cell] - expected[cell]) ** 2 / expected[cell] for cell in expected)


class TestReservedRanges:
    """Identifiers nobody can have."""

    @pytest.mark.parametrize("rule", OUTSIDE)
    def test_no_record_leaves_them(self, many: list[domain.Patient], rule: str) -> None:
        """Of 10,000 records none has an identifier outside its reserved range."""
        assert [p["id"] for p in many if OUTSIDE[rule](p)] == []

    def test_every_record_proves_itself(self, many: list[domain.Patient]) -> None:
        """The verifier proves each ranged member of each record."""
        unproven = [
            name
            for p in many
            for name, (ok, _) in proofs.verify(p).items()
            if name in proofs.PROOFS and not ok
        ]
        assert unproven == []


class TestSeeds:
    """The same seed, the same patients."""

    def test_known_answer(self) -> None:
        """Seed 0 gives what this generator version has always given."""
        assert domain.fingerprint(domain.patients(0, 0, 100)) == domain.KNOWN_ANSWER
        assert domain.self_test() is True

    def test_a_changed_table_fails_the_self_test(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The self-test notices a table that changed without a new version."""
        monkeypatch.setattr(tables, "CITIES", ("Elsewhere", *tables.CITIES[1:]))
        assert domain.self_test() is False

    def test_the_version_changes_every_patient(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another generator version shares no patient with this one."""
        before = domain.patient(7, 0)
        monkeypatch.setattr(tables, "GENERATOR_VERSION", "other")
        assert domain.patient(7, 0)["id"] != before["id"]

    @given(
        seed=st.integers(0, domain.MAX_SEED),
        first=st.integers(0, domain.MAX_INDEX - 40),
        cuts=st.lists(st.integers(0, 20), max_size=4),
    )
    def test_a_batch_split_anywhere_is_the_same(self, seed: int, first: int, cuts: list[int]) -> None:
        """Splitting a batch changes none of its patients."""
        edges = sorted({0, 20, *cuts})
        parts = [
            patient
            for start, end in pairwise(edges)
            for patient in domain.patients(seed, first + start, end - start)
        ]
        assert parts == domain.patients(seed, first, 20)

    @given(seed=st.integers(0, domain.MAX_SEED), index=st.integers(0, domain.MAX_INDEX - 40))
    def test_one_patient_is_the_batch_s(self, seed: int, index: int) -> None:
        """A patient made alone is the one that a batch has in its place."""
        assert [domain.patient(seed, index + place) for place in range(20)] == domain.patients(
            seed, index, 20
        )

    def test_one_patient_does_not_give_away_the_next(self, many: list[domain.Patient]) -> None:
        """Neighbours share what their tables make them share and no more: each drawn member is its own draw."""
        alike = Counter(
            name
            for one, two in pairwise(many)
            for name in ("id", "medical_record_number", "ssn", "date_of_birth", "address", "telecom")
            if one[name] == two[name]
        )
        assert alike.keys() <= {"ssn", "date_of_birth"}
        assert max(alike.values(), default=0) <= 3

    def test_ids_and_record_numbers_are_unique(self, many: list[domain.Patient]) -> None:
        """No id and no record number repeats in 10,000 records."""
        assert len({p["id"] for p in many}) == RECORDS
        assert len({p["medical_record_number"] for p in many}) == RECORDS


class TestDistributions:
    """Plausible people."""

    def test_age_and_sex_follow_the_pyramid(self, many: list[domain.Patient]) -> None:
        """Counts per age band and sex fit the table (chi-squared, 39 degrees of freedom, p = 0.001)."""
        weights = {
            (band, sex): pair[place]
            for band, pair in enumerate(tables.PYRAMID)
            for place, sex in enumerate(("male", "female"))
        }
        observed = Counter((age(p) // 5, p["gender"]) for p in many)
        assert observed.keys() <= weights.keys()
        assert chi_squared(observed, weights) < 72.1

    def test_the_statistic_notices_a_wrong_pyramid(self, many: list[domain.Patient]) -> None:
        """Moving a tenth of the men to the women is found by the same bound."""
        flipped = Counter("female" if i % 10 == 0 else p["gender"] for i, p in enumerate(many))
        men, women = (sum(pair[place] for pair in tables.PYRAMID) for place in (0, 1))
        assert chi_squared(flipped, {"male": men, "female": women}) > 10.8

    def test_births_fall_on_every_day_of_the_year(self, many: list[domain.Patient]) -> None:
        """No month and day is left out, the leap day and New Year's Day included."""
        days = Counter(p["date_of_birth"][5:] for p in many)
        assert (len(days), days["02-29"] > 0, days["01-01"] > 0) == (366, True, True)
        leap = {p["date_of_birth"][:4] for p in many if p["date_of_birth"].endswith("02-29")}
        assert {int(year) % 4 for year in leap} == {0}

    @pytest.mark.parametrize(("band", "shares"), [(0, (63, 34, 3, 0)), (19, (3, 28, 63, 7))])
    def test_the_old_have_more_diagnoses(self, band: int, shares: tuple[int, ...]) -> None:
        """Of the youngest and the oldest these many percent are meant to have one, two, three and four diagnoses."""
        limits = (0, *draws.number_limits(band), draws.SLOTS)
        assert tuple(round(100 * (b - a) / draws.SLOTS) for a, b in pairwise(limits)) == shares

    def test_surnames_follow_their_weights(self, many: list[domain.Patient]) -> None:
        """Counts per surname fit the table (63 degrees of freedom, p = 0.001)."""
        assert chi_squared(Counter(p["last_name"] for p in many), dict(tables.SURNAMES)) < 103.5

    def test_diagnoses_fit_age_and_sex(self, many: list[domain.Patient]) -> None:
        """Nobody has a diagnosis that age or sex rules out."""
        known = {condition.code: condition for condition in tables.CONDITIONS}
        wrong = [
            (p["id"], coding["code"])
            for p in many
            for coding in p["conditions"]
            if p["gender"][0].upper() not in known[coding["code"]].sexes
            or not known[coding["code"]].youngest <= age(p) <= known[coding["code"]].oldest
        ]
        assert wrong == []

    def test_a_normal_pregnancy_excludes_diabetes(self) -> None:
        """ICD-10-CM, Excludes1 of Z34: with diabetes, gestational or older, supervision is not of a normal pregnancy."""
        group = {condition.code: condition.group for condition in tables.CONDITIONS}
        assert {group[code] for code in ("Z34.90", "O24.419", "E10.9", "E11.9")} == {"diabetes"}

    def test_some_women_and_no_men_are_pregnant(self, many: list[domain.Patient]) -> None:
        """Pregnancy occurs, in women of 20 to 44 only."""
        pregnant = [p for p in many if any(c["code"] == "Z34.90" for c in p["conditions"])]
        assert len(pregnant) > 20
        assert {p["gender"] for p in pregnant} == {"female"}
        assert all(20 <= age(p) <= 44 for p in pregnant)

    def test_diagnoses_are_distinct_and_described(self, many: list[domain.Patient]) -> None:
        """One to four diagnoses, none twice, with the display text in the same order."""
        for p in many:
            codes = [c["code"] for c in p["conditions"]]
            assert 1 <= len(codes) == len(set(codes)) <= 4
            assert p["diagnosis"] == [c["display"] for c in p["conditions"]]
            assert sum(code in {"E10.9", "E11.9", "O24.419"} for code in codes) <= 1

    def test_hypertension_raises_blood_pressure(self, many: list[domain.Patient]) -> None:
        """Among those of 50 to 79 the mean systolic pressure is higher with hypertension than without."""
        grouped: dict[bool, list[int]] = {True: [], False: []}
        for p in many:
            if 50 <= age(p) <= 79:
                grouped[any(c["code"] == "I10" for c in p["conditions"])].append(p["vitals"][0]["value"])
        with_it, without = (sum(grouped[key]) / len(grouped[key]) for key in (True, False))
        assert 14 < with_it - without < 22

    def test_vitals_are_possible(self, many: list[domain.Patient]) -> None:
        """Every vital sign lies within what a living patient can have."""
        limits = {"8480-6": (60, 220), "8462-4": (35, 130), "8867-4": (40, 220), "59408-5": (80, 100)}
        outside = [
            v
            for p in many
            for v in p["vitals"]
            if not limits[v["code"]][0] <= v["value"] <= limits[v["code"]][1]
        ]
        assert outside == []


class TestCheckCharacter:
    """ISO/IEC 7064 MOD 37,36."""

    def test_published_example(self) -> None:
        """The Global Release Identifier's example, the best known use of MOD 37,36, comes out right."""
        assert domain.check_character("A12425GABC1234002") == "M"

    @given(st.text("0123456789ABCDEFGHJKMNPQRSTVWXYZ", min_size=8, max_size=8), st.integers(0, 7), st.data())
    def test_one_wrong_character_is_found(self, text: str, place: int, data: st.DataObject) -> None:
        """Every single substitution changes the check character."""
        other = data.draw(st.sampled_from(sorted(set("0123456789ABCDEFGHJKMNPQRSTVWXYZ") - {text[place]})))
        changed = text[:place] + other + text[place + 1 :]
        assert domain.check_character(changed) != domain.check_character(text)


class TestVerify:
    """What proves a record synthetic."""

    def test_names_are_unproven_without_a_seed(self) -> None:
        """What has no reserved range is not claimed to be proven."""
        verdicts = proofs.verify(domain.patient(7, 3))
        assert verdicts["last_name"] == (False, "no_reserved_range_exists")
        assert verdicts["ssn"] == (True, "unassignable_range")

    def test_everything_is_proven_with_the_seed(self) -> None:
        """Regenerating the record proves names and dates too."""
        assert set(proofs.verify(domain.patient(7, 3), seed=7, index=3).values()) == {(True, "regenerated")}

    @pytest.mark.parametrize(
        ("member", "value"),
        [
            ("ssn", "123-45-6789"),
            ("ssn", "912-70-1234"),  # an ITIN
            ("ssn", "912-00-1234 "),
            ("ssn", "٩12-00-1234"),
            ("ssn", None),
            ("medical_record_number", "SYN-00000000Z"),
            ("medical_record_number", "MRN-12345678A"),
            ("medical_record_number", 5),
            ("telecom", [{"system": "phone", "value": "(212) 555-0200"}]),
            ("telecom", [{"system": "email", "value": "someone@example.org.evil.test"}]),
            ("telecom", [{"system": "pager", "value": "(212) 555-0101"}]),
            ("telecom", []),
            ("telecom", "x"),
            ("address", {"postal_code": "10001"}),
            ("address", []),
            ("identifiers", [{"system": "urn:oid:2.16.840.1.113883.4.1", "value": "912-00-1234"}]),
            ("identifiers", ["urn:oid:2.999"]),
            ("meta", {"security": [{"code": "N"}]}),
            ("meta", {}),
        ],
    )
    def test_what_could_be_somebody_is_not_proven(self, member: str, value: object) -> None:
        """A value outside its range is unproven, whatever its type."""
        assert proofs.verify({member: value}) == {member: (False, "outside_reserved_range")}
