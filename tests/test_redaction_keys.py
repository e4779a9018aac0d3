"""What the words of a key say, what is remembered of keys, and how deep a value is looked into."""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from typing import Annotated, Any

import pytest
import yaml

from healthobs.redaction import PHI, Redactor
from healthobs.redaction.keys import ALLOWED, Action, classify

NEEDLE = "078-05-1120"
LEVELS = ["debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "notset"]


@dataclass
class Marked:
    """A class with a mark, and a field that holds anything."""

    held: Any
    name: Annotated[str, PHI("name")] = "J"


class Holding(enum.Enum):
    """An enumeration of structures."""

    THREE_DEEP = [[[NEEDLE]]]  # noqa: RUF012
    FOUR_DEEP = [[[[NEEDLE]]]]  # noqa: RUF012


class TestWords:
    """`classify` by the words of a key."""

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ("social", "security"), ("medical", "record"), ("api", "key"), ("track", "data"), ("track", "1"),
            ("track", "2"), ("private", "key"), ("exception", "message"), ("error", "message"), ("url", "full"),
            ("url", "path"), ("http", "url"), ("http", "target"), ("http", "path"), ("request", "path"), ("raw", "path"),
            ("request", "uri"), ("request", "url"), ("process", "command"), ("process", "owner"),
        ],
    )  # fmt: skip
    def test_pairs_of_words_that_are_harmless_alone(self, one: str, other: str) -> None:
        """Both in one key deny it, in either order; each of them alone is scanned."""
        actions = [classify(key, frozenset()) for key in (f"{one}.{other}", f"x_{other}_{one}", one, other)]
        assert actions == [Action.DENY, Action.DENY, Action.SCAN, Action.SCAN]

    @pytest.mark.parametrize(
        "word",
        ["socialsecurity", "dateofbirth", "birthdate", "birthday", "emailaddress", "phonenumber", "patientname", "patientid",
         "firstname", "lastname", "fullname", "surname", "medicalrecord", "creditcard", "cardnumber", "accountnumber",
         "ssnumber", "password"],
    )  # fmt: skip
    def test_long_words_without_a_boundary(self, word: str) -> None:
        """They are found inside a longer word."""
        assert classify(f"the{word}x", frozenset()) is Action.DENY

    @pytest.mark.parametrize(
        "key", ["patients", "mrns", "caseMRNs", "guardians", "prescriptions", "usernames", "cards", "open_accounts", "devices_serials"]
    )  # fmt: skip
    def test_several_of_what_is_denied(self, key: str) -> None:
        """How many there are passes, which ones does not."""
        redactor = Redactor()
        assert classify(key, frozenset()) is Action.MEASURE
        assert redactor.value(key, 12) == 12
        for value in ("Ottoline", ["Ottoline"], {"first": "Ottoline"}, [48213377]):
            assert redactor.value(key, value) == "[PHI:key]"

    @pytest.mark.parametrize(
        "key", ["class_names", "process_names", "status", "hosts", "file_names", "addressees_left"]
    )
    def test_several_of_what_is_not(self, key: str) -> None:
        """Things have names, and a word that ends in s need not be several."""
        assert classify(key, frozenset()) is Action.SCAN

    @pytest.mark.parametrize(
        "subject",
        ["patient", "member", "person", "subject", "plan", "policy", "claim", "encounter", "chart", "device", "serial",
         "record", "admission", "certificate", "visit", "case", "hospital", "household", "national", "tax"],
    )  # fmt: skip
    @pytest.mark.parametrize("word", ["id", "identifier", "number", "ref", "key", "serial"])
    def test_the_identifier_of_a_person_or_of_a_persons_thing(self, subject: str, word: str) -> None:
        """`claim_id` names somebody, and so does `claimid`."""
        assert classify(f"{subject}_{word}", frozenset()) is Action.DENY
        assert classify(f"{subject}{word}", frozenset()) is Action.DENY
        assert classify(f"old.{subject}{word}", frozenset()) is Action.DENY

    @pytest.mark.parametrize(
        "key",
        ["nhs", "nhs_number", "nhsNumber", "imei", "device_imei", "udi", "dea", "dea_no", "aadhaar", "health_number",
         "nin", "employer", "emergency_contact", "voiceprint", "initials", "addr"],
    )  # fmt: skip
    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_a_number_under_a_word_that_the_scan_knows(self, mode: Any, key: str) -> None:
        """A number is never scanned, so only the key can tell, in `strict` too."""
        assert Redactor(mode).value(key, 7654321) == "[PHI:key]"

    @pytest.mark.parametrize(
        "key",
        ["givenname", "familyname", "middlename", "maidenname", "homephone", "cellphone", "workphone", "phoneno",
         "patientmrn", "patientdob", "memberphone", "membername", "mrnnumber", "emailid", "accountno", "dateofdeath",
         "placeofbirth", "birthplace", "addressline", "nextofkin"],
    )  # fmt: skip
    def test_two_words_written_as_one(self, key: str) -> None:
        """They say what they say apart."""
        assert classify(key, frozenset()) is Action.DENY

    @pytest.mark.parametrize(
        "key", ["member_idle", "lowercase_id", "recorded", "case", "visit", "record", "national", "homebody", "mRNA_dose"]
    )  # fmt: skip
    def test_words_that_only_contain_one(self, key: str) -> None:
        """A word that begins or ends alike says nothing."""
        assert classify(key, frozenset()) is Action.SCAN

    @pytest.mark.parametrize(
        "key",
        ["policy_holder_name", "policyHolderName", "group_member_name", "test_subject_name", "program_participant_name",
         "key_worker_name", "social_worker_names", "resource_owner_name", "service_user_name", "name_of_file",
         "user_role_name", "file.owner.name", "service_full_name", "table_name_name"],
    )  # fmt: skip
    def test_the_name_of_a_person_beside_a_thing(self, key: str) -> None:
        """A thing excuses a name only where it stands right before it, and where no person is told of."""
        assert classify(key, frozenset()) is Action.DENY

    @pytest.mark.parametrize(
        "key", ["policy_name", "role_name", "worker_name", "celery.worker.name", "old_file_names", "user_file_count"]
    )  # fmt: skip
    def test_the_name_of_a_thing(self, key: str) -> None:
        """The thing stands right before it."""
        assert classify(key, frozenset()) is Action.SCAN


def test_own_keys_that_pass_unscanned_are_set_by_the_code() -> None:
    """A key of healthobs' that nothing sets would only be a hole for whoever finds it."""
    page = yaml.safe_load(files("healthobs").joinpath("telemetry.yaml").read_text(encoding="utf-8"))
    own = {key for key in ALLOWED if key.startswith("healthobs.")}
    assert own <= page["span_attributes"].keys()


class TestRedactor:
    """`Redactor`: what it remembers and how far it looks."""

    def test_only_clean_keys_are_remembered(self) -> None:
        """A key that holds an identifier, or is too long to be a name, is read again each time."""
        redactor = Redactor()
        for key in ("step", f"x {NEEDLE}", "k" * 129, "k" * 128):
            redactor.action(key)
        assert set(redactor._actions) == {"step", "k" * 128}

    @pytest.mark.parametrize("case", [str.lower, str.upper])
    def test_strict_knows_every_level(self, case: Callable[[str], str]) -> None:
        """A level passes, though no running function has it written."""
        redactor = Redactor("strict")
        assert [redactor.value("level", case(level)) for level in LEVELS] == [*map(case, LEVELS)]

    def test_what_is_masked_before_the_exporter_counts_as_trace(self) -> None:
        """`changed` is the question of the exporter of spans."""
        counted: Counter[str] = Counter()
        redactor = Redactor(on_redaction=lambda signal, kind: counted.update([f"{signal} {kind}"]))
        redactor.changed({"step": NEEDLE})
        assert counted == {"trace ssn": 1}

    def test_a_template_of_the_code_is_a_route_only(self) -> None:
        """What the application declared as a path is shown as `http_route`, whatever it looks like, and under no other name."""
        redactor = Redactor()
        redactor.template("/patients/7654321")
        assert redactor.label("http_route", "/patients/7654321") == "/patients/7654321"
        assert "7654322" not in redactor.label("http_route", "/patients/7654322")
        assert "7654321" not in redactor.label("step", "/patients/7654321")

    @pytest.mark.parametrize("name", ["step", "http_route"])
    def test_what_is_masked_in_a_label_counts_as_metric(self, name: str) -> None:
        """Whether the label is one of the conventions or one's own."""
        counted: Counter[str] = Counter()
        redactor = Redactor(on_redaction=lambda signal, kind: counted.update([f"{signal} {kind}"]))
        assert redactor.label(name, NEEDLE) == "[PHI:ssn]"
        assert counted == {"metric ssn": 1}

    @pytest.mark.parametrize(
        "wrap",
        [lambda value: [value], lambda value: (value,), lambda value: {"a": value}, Marked, lambda value: frozenset([value])],
        ids=["list", "tuple", "mapping", "marked", "set"],
    )  # fmt: skip
    def test_four_levels_are_looked_into(self, wrap: Callable[[object], object]) -> None:
        """Text in the fourth level is scanned; what holds a fifth is masked whole, whatever the levels are made of."""
        value: Any = NEEDLE
        for _ in range(4):
            value = wrap(value)
        assert "[PHI:ssn]" in str(Redactor().value("step", value))
        deeper = str(Redactor().value("step", wrap(value)))
        assert "[PHI:type]" in deeper
        assert "[PHI:ssn]" not in deeper

    def test_an_enumeration_is_a_level(self) -> None:
        """Its value is looked into one level less."""
        assert Redactor().value("step", Holding.THREE_DEEP) == [[["[PHI:ssn]"]]]
        assert Redactor().value("step", Holding.FOUR_DEEP) == [[["[PHI:type]"]]]

    def test_values_under_bare_words_are_learnt_where_they_are_written(self) -> None:
        """In strict what a running function has written passes later; what is no text is no fault."""
        redactor = Redactor("strict")

        def noting() -> str:
            redactor.note({"outcome": "declined_at_desk", "state": ["x"]})
            return "declined_at_desk"

        assert redactor.value("outcome", noting()).startswith("declined")


class TestValues:
    """What becomes of a value under its key."""

    @pytest.mark.parametrize(
        "key", ["age", "ages", "ages_seen", "patient_age", "patient_ages", "patient_age_years"]
    )
    def test_ages(self, key: str) -> None:
        """Ages over 89 go, whoever's; younger ones stay (45 CFR 164.514(b)(2)(i)(C))."""
        redactor = Redactor("mask")
        assert (redactor.value(key, 90), redactor.value(key, 89)) == ("[PHI:age]", 89)

    def test_behind_what_is_harmless(self) -> None:
        """Each attribute is looked at, whatever stands before it."""
        attributes = {"visits": 3, "done": True, "memo": "quiet", "lines": "ssn 078-05-1120", "ward": "west"}
        changed = Redactor("mask").changed(attributes, signal="trace")
        assert changed == {**attributes, "lines": "ssn [PHI:ssn]"}
