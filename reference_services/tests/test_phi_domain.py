"""Tests of phi-service's policy and encryption, without HTTP or database."""

from __future__ import annotations

import json
from collections import Counter
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_services.phi import domain
from reference_services.phi.crypto import SealError, Vault
from reference_services.phi.domain import BILLING, FULL, POLICY, RECORD_FIELDS, RESEARCH, View

ICD_10_CM = "http://hl7.org/fhir/sid/icd-10-cm"
TODAY = date(2026, 11, 23)
RECORD: dict[str, Any] = {
    "first_name": "Olivia",
    "last_name": "Okafor",
    "date_of_birth": "1970-05-17",
    "gender": "female",
    "address": {
        "line": "12 Oak Avenue",
        "city": "Testford",
        "state": "NY",
        "postal_code": "10203-4567",
        "country": "US",
    },
    "telecom": [{"system": "phone", "value": "(202) 555-0123"}],
    "identifiers": [{"system": "urn:oid:2.999.1.1", "value": "SYN-000000017"}],
    "conditions": [{"code": "I10", "system": "http://hl7.org/fhir/sid/icd-10-cm", "display": "Hypertension"}],
}


def shown(view: View, **changes: Any) -> dict[str, Any]:
    return domain.project(view, "p-1", 3, {**RECORD, **changes}, TODAY)


class TestViewFor:
    """Role and purpose of use decide together."""

    @pytest.mark.parametrize(
        ("role", "purpose", "view"),
        [
            ("clinician", "TREAT", FULL),
            ("clinician", "BTG", FULL),
            ("clinician", "ETREAT", FULL),
            ("billing", "HPAYMT", BILLING),
            ("researcher", "HRESCH", RESEARCH),
        ],
    )
    def test_permitted(self, role: str, purpose: str, view: View) -> None:
        """The permitted pairs."""
        assert domain.view_for(["auditor", role], purpose) is view

    @given(
        st.lists(
            st.sampled_from(
                ["clinician", "billing", "researcher", "nurse", "auditor", "admin", "", "CLINICIAN"]
            )
        ),
        st.sampled_from(
            ["TREAT", "BTG", "ETREAT", "HPAYMT", "HRESCH", "HOPERAT", "HMARKT", "other", "", "treat", "btg"]
        ),
    )
    def test_everything_else_is_refused(self, roles: list[str], purpose: str) -> None:
        """No role sees anything for another role's purpose, and none does without a purpose."""
        care = {("clinician", purpose) for purpose in ("TREAT", "BTG", "ETREAT")}
        expected = {*care, ("billing", "HPAYMT"), ("researcher", "HRESCH")}
        allowed = any((role, purpose) in expected for role in roles)
        assert (domain.view_for(roles, purpose) is not None) == allowed


class TestProject:
    """A view shows its fields, and nothing else gets through."""

    def test_full(self) -> None:
        """Treatment sees the record."""
        assert shown(FULL) == {"view": "full", "id": "p-1", "version": 3, **RECORD}

    def test_billing(self) -> None:
        """Payment sees demographics and identifiers, no diagnosis."""
        expected = {name: value for name, value in RECORD.items() if name != "conditions"}
        assert shown(BILLING) == {"view": "billing", "id": "p-1", "version": 3, **expected}
        assert BILLING.withheld == ("conditions",)

    def test_research(self) -> None:
        """Research sees no name, number, contact, exact date or place: 45 CFR 164.514(b)(2)(i)."""
        assert shown(RESEARCH) == {
            "view": "deidentified",
            "gender": "female",
            "conditions": [{"code": "I10", "system": ICD_10_CM}],
            "birth_year": 1970,
            "zip3": "102" if "102" not in domain.SMALL_ZIP3 else "000",
        }
        assert set(RESEARCH.withheld) == {
            "first_name",
            "last_name",
            "date_of_birth",
            "address",
            "telecom",
            "identifiers",
            "conditions",
        }

    @pytest.mark.parametrize("code", ["I10", "E78.5", "O24.419", "F32.A", "C7A.092", "S52.501A", "U07.1"])
    def test_research_sees_codes(self, code: str) -> None:
        """A code of the one known classification is shown, without the words beside it."""
        written = {"code": code, "system": ICD_10_CM, "display": "Jane Real, tel 617-555-2368"}
        assert shown(RESEARCH, conditions=[written])["conditions"] == [{"code": code, "system": ICD_10_CM}]

    @pytest.mark.parametrize(
        ("code", "system"),
        [
            ("I10 Jane Real", ICD_10_CM),
            ("I10\n", ICD_10_CM),
            ("I10.12345", ICD_10_CM),
            ("i10", ICD_10_CM),
            ("I\u0661\u0660", ICD_10_CM),
            ("123-45-6789", ICD_10_CM),
            ("", ICD_10_CM),
            ("I10", "http://hl7.org/fhir/sid/icd-10"),
            ("I10", "Jane Real, SSN 123-45-6789"),
        ],
    )
    def test_research_sees_no_free_text(self, code: str, system: str) -> None:
        """What is no code of the known classification is text that somebody wrote, and stays ((b)(2)(i)(R))."""
        known = {"code": "I10", "system": ICD_10_CM, "display": "x"}
        written = {"code": code, "system": system, "display": "x"}
        assert shown(RESEARCH, conditions=[written, known])["conditions"] == [
            {"code": "I10", "system": ICD_10_CM}
        ]
        assert shown(RESEARCH, conditions=[written])["conditions"] == []

    @pytest.mark.parametrize(
        ("born", "expected"),
        [
            ("1937-01-01", {"birth_year": 1937}),
            ("1936-12-31", {"age_group": "90+"}),
            ("1936-01-01", {"age_group": "90+"}),
            ("1900-01-01", {"age_group": "90+"}),
            ("2026-11-23", {"birth_year": 2026}),
        ],
    )
    def test_ages_over_89_are_one_group(self, born: str, expected: dict[str, Any]) -> None:
        """No element may tell an age above 89, its year of birth included ((b)(2)(i)(C))."""
        found = shown(RESEARCH, date_of_birth=born)
        assert {name: found[name] for name in ("birth_year", "age_group") if name in found} == expected

    @pytest.mark.parametrize(
        ("postal_code", "zip3"),
        [
            ("94103", "941"),
            ("94103-1234", "941"),
            ("03601", "000"),
            ("89301", "000"),
            ("9410", None),
            ("SW1A 1AA", None),
            ("٩٤١٠٣", None),
        ],
    )
    def test_zip(self, postal_code: str, zip3: str | None) -> None:
        """Three digits, 000 where few live, nothing where it is no ZIP code ((b)(2)(i)(B))."""
        assert shown(RESEARCH, address={**RECORD["address"], "postal_code": postal_code}).get("zip3") == zip3

    def test_no_address(self) -> None:
        """What is missing stays missing."""
        assert "zip3" not in shown(RESEARCH, address=None)
        assert "address" not in shown(FULL, address=None)

    @given(st.dictionaries(st.text(max_size=20), st.text(max_size=20)))
    def test_unknown_fields_never_leave(self, extra: dict[str, str]) -> None:
        """A field that no view lists is shown by none, whatever the store holds."""
        for view in POLICY.values():
            projected = domain.project(view, "p-1", 1, {**extra, **RECORD}, TODAY)
            assert projected.keys() <= {"view", *view.fields, *view.derived}

    def test_small_areas_are_the_seventeen(self) -> None:
        """The list of the HHS guidance is complete."""
        assert len(domain.SMALL_ZIP3) == 17


class TestUndeclaredFields:
    """The control's measurement finds a leak when there is one."""

    def test_none(self) -> None:
        """The policy as it is leaks nothing."""
        assert domain.undeclared_fields(TODAY) == {}

    def test_planted(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A derived field that shows the whole address is found."""
        monkeypatch.setattr(
            domain, "_DERIVED", {**domain._DERIVED, "zip3": lambda record, _today: record["address"]}
        )
        assert domain.undeclared_fields(TODAY) == {"deidentified": ["address"]}

    @pytest.mark.parametrize("member", ["code", "system", "display"])
    def test_words_of_a_condition(self, monkeypatch: pytest.MonkeyPatch, member: str) -> None:
        """A derivation that repeats what stands in a condition is found, whichever member it is."""

        def repeating(record: Any, _today: date) -> Any:
            return [{member: condition[member]} for condition in record["conditions"]]

        monkeypatch.setattr(domain, "_DERIVED", {**domain._DERIVED, "conditions": repeating})
        assert domain.undeclared_fields(TODAY) == {"deidentified": ["conditions"]}


class TestVersions:
    """Entity tags are weak and carry the version."""

    @given(st.integers(1, 999_999_999))
    def test_round_trip(self, version: int) -> None:
        """What was sent comes back."""
        assert domain.version_of(domain.etag(version)) == version

    @pytest.mark.parametrize(
        "text", ["", "*", "1", 'W/"0"', 'W/"-1"', 'W/"1", W/"2"', 'W/"\u0661"', 'w/"1"', '"x"']
    )
    def test_others(self, text: str) -> None:
        """Anything else names no version of ours."""
        assert domain.version_of(text) is None


class TestVault:
    """What is sealed opens only where it belongs."""

    KEK, INDEX = bytes(range(32)), bytes(range(32, 64))

    def vault(self, kek: bytes = KEK) -> tuple[Vault, Counter[tuple[str, str]]]:
        """Return a vault and its counts."""
        counts: Counter[tuple[str, str]] = Counter()

        def count(operation: str, result: str) -> None:
            counts[operation, result] += 1

        return Vault(kek, self.INDEX, count), counts

    @given(st.binary(max_size=300), st.integers(1, 10**6))
    def test_round_trip(self, record: bytes, version: int) -> None:
        """For any record and version, and through the wrapped key."""
        vault, counts = self.vault()
        key, wrapped = vault.new_key("p-1")
        sealed = vault.encrypt(key, "p-1", version, record)
        assert vault.decrypt(vault.unwrap("p-1", wrapped), "p-1", version, sealed) == record
        assert counts == {("wrap", "ok"): 1, ("encrypt", "ok"): 1, ("unwrap", "ok"): 1, ("decrypt", "ok"): 1}

    def test_moved_or_rolled_back(self) -> None:
        """A ciphertext of another row or version does not open."""
        vault, counts = self.vault()
        key, _ = vault.new_key("p-1")
        sealed = vault.encrypt(key, "p-1", 2, b"record")
        for row, version in (("p-2", 2), ("p-1", 1), ("p-1", 3)):
            with pytest.raises(SealError):
                vault.decrypt(key, row, version, sealed)
        assert counts["decrypt", "failed"] == 3

    def test_wrapped_key_of_another_row(self) -> None:
        """A data key put beside another patient's record does not unwrap."""
        vault, _ = self.vault()
        _, wrapped = vault.new_key("p-1")
        with pytest.raises(SealError):
            vault.unwrap("p-2", wrapped)

    def test_field_is_bound(self) -> None:
        """A record does not unwrap as a key, even under one row and version."""
        vault, _ = self.vault()
        sealed = vault._seal(vault._kek, b"x" * 32, b'["phi-service","patient","p-1","record",0]')
        with pytest.raises(SealError):
            vault.unwrap("p-1", sealed)

    @given(st.integers(0, 10_000), st.integers(1, 255))
    def test_any_altered_byte(self, position: int, mask: int) -> None:
        """No byte of what is stored can change unnoticed."""
        vault, _ = self.vault()
        key, _ = vault.new_key("p-1")
        sealed = bytearray(vault.encrypt(key, "p-1", 1, b"record").encode())
        sealed[position % len(sealed)] ^= mask
        with pytest.raises(SealError):
            vault.decrypt(key, "p-1", 1, sealed.decode("latin-1"))

    @pytest.mark.parametrize("text", ["", "hx1", "hx2.a.b.c", '{"last_name":"Okafor"}', "hx1.x.y.z", "....."])
    def test_not_an_envelope(self, text: str) -> None:
        """Plain text in the column is refused like a forged ciphertext."""
        vault, _ = self.vault()
        with pytest.raises(SealError, match="restore it"):
            vault.decrypt(bytes(32), "p-1", 1, text)

    def test_other_key(self) -> None:
        """Another KEK is told by its id before anything is tried."""
        vault, _ = self.vault()
        other, _ = self.vault(bytes(32))
        assert vault.kek_id != other.kek_id
        with pytest.raises(SealError):
            other.unwrap("p-1", vault.new_key("p-1")[1])

    def test_nothing_readable(self) -> None:
        """Equal records give different ciphertexts, and neither shows its record."""
        vault, _ = self.vault()
        key, _ = vault.new_key("p-1")
        plain = json.dumps(RECORD).encode()
        first, second = (vault.encrypt(key, "p-1", 1, plain) for _ in range(2))
        assert first != second
        assert "Okafor" not in first

    def test_blind_index(self) -> None:
        """Equal identifiers are found, system and value are not run together, the key decides."""
        vault, _ = self.vault()
        assert vault.blind_index("a", "b") == vault.blind_index("a", "b")
        assert (
            len(
                {
                    vault.blind_index("a", "bc"),
                    vault.blind_index("ab", "c"),
                    Vault(self.KEK, bytes(32), print).blind_index("a", "bc"),
                }
            )
            == 3
        )

    @pytest.mark.parametrize("typed", ["Caf\u00e9 1", "Cafe\u0301 1", " Caf\u00e9 1\t"])
    def test_blind_index_of_what_was_typed_otherwise(self, typed: str) -> None:
        """Another Unicode form, or a blank around it, is the same identifier; another letter is not."""
        vault, _ = self.vault()
        assert (
            vault.blind_index("a", typed)
            == vault.blind_index("a", "Caf\u00e9 1")
            != vault.blind_index("a", "Cafe 1")
        )


def test_record_fields_are_the_models() -> None:
    """Every field of the record is either shown or withheld by each view."""
    for view in POLICY.values():
        assert set(view.withheld) | set(view.fields) >= set(RECORD_FIELDS)
