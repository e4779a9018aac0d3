"""The redactor: type, then key, then content; it never raises, never passes on error and never echoes."""

from __future__ import annotations

import copy
import enum
import json
import pickle
import sys
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from types import SimpleNamespace
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs import _runtime
from healthobs.redaction import Phi, Redactor
from healthobs.redaction.keys import ALLOWED, Action, classify, words
from healthobs.redaction.literals import Looks, globals_nearby, is_in_a_module

NEEDLE = "078-05-1120"
#: Not in a test, where it would be written in a function that is running.
NAME = "Ottoline"


@dataclass
class Patient:
    """What a service might log by mistake."""

    name: str = "John Smith"


class Counted(str):
    """A name that counts how often another was made of it."""

    __slots__ = ()
    made = 0

    def __format__(self, spec: str) -> str:
        Counted.made += 1
        return super().__format__(spec)


class Broken:
    """An object whose every rendering fails, with the needle in the error."""

    def __str__(self) -> str:
        raise ValueError(NEEDLE)

    __repr__ = __str__

    def __eq__(self, other: object) -> bool:
        raise ValueError(NEEDLE)

    def __hash__(self) -> int:
        raise ValueError(NEEDLE)


class BrokenMapping(Mapping[str, object]):
    """A mapping that fails half-way, with the needle in the error."""

    def __getitem__(self, key: str) -> object:
        raise ValueError(NEEDLE)

    def __iter__(self) -> Iterator[str]:
        return iter(["a", "b"])

    def __len__(self) -> int:
        return 2


class Colour(enum.Enum):
    """A plain enumeration."""

    RED = "red"
    ODD = (1, 2)


class Level(enum.IntEnum):
    """An enumeration of numbers."""

    LOW = 1


class Word(enum.StrEnum):
    """An enumeration of words."""

    STEP = "step"


class TestPhi:
    """`Phi`: shows a mark, reveals on purpose."""

    def test_every_rendering_is_a_mark(self) -> None:
        """No conversion to text gives the value."""
        name = Phi("John Smith", "name")
        shown = {
            str(name),
            repr(name),
            f"{name}",
            f"{name!r:>5}",
            f"{name}",
            format(name, ">40"),
            f"{[name]}"[1:-1],
        }
        assert shown == {"[PHI:name]"}

    def test_reveal_returns_the_value(self) -> None:
        """With a purpose the value comes out as it went in."""
        value = object()
        assert Phi(value).reveal("TREAT") is value

    def test_reveal_is_counted_in_the_audit_entry_of_the_call(self) -> None:
        """Kind, purpose and count go into the entry in progress (45 CFR 164.312(b))."""
        draft = SimpleNamespace(details={})
        token = _runtime.audit_draft.set(draft)
        try:
            for purpose in ("TREAT", "TREAT", "HPAYMT"):
                Phi("x", "name").reveal(purpose)
        finally:
            _runtime.audit_draft.reset(token)
        assert draft.details == {"revealed.name.TREAT": 2, "revealed.name.HPAYMT": 1}

    @pytest.mark.parametrize("purpose", ["", "for John Smith", "1", "X" * 65, "Ottoline", "treat"])
    def test_a_purpose_is_a_code(self, purpose: str) -> None:
        """Free text would carry PHI into the audit entry, and the refusal does not quote it."""
        with pytest.raises(ValueError, match="purpose is a code such as 'TREAT', not free text"):
            Phi("x").reveal(purpose)

    @pytest.mark.parametrize("kind", ["", "Name", "a b", "x" * 33, "[PHI"])
    def test_a_kind_is_a_word(self, kind: str) -> None:
        """The kind is shown, so it may not hold data."""
        with pytest.raises(ValueError, match="kind names the sort of data"):
            Phi("x", kind)

    def test_is_not_pickled(self) -> None:
        """A pickle would hold the value in the clear."""
        with pytest.raises(TypeError, match="not pickled"):
            pickle.dumps(Phi("x"))

    def test_copies_are_the_same(self) -> None:
        """Copying a structure keeps the protection."""
        phi = Phi(["x"])
        assert copy.copy(phi) is phi
        assert copy.deepcopy([phi])[0] is phi

    def test_equality_compares_values_among_phis_only(self) -> None:
        """A Phi never equals its bare value, so a comparison cannot probe it."""
        assert Phi("x") == Phi("x", "name")
        assert Phi("x") != Phi("y")
        assert Phi("x") != "x"

    def test_has_no_hash_and_no_attributes(self) -> None:
        """Neither `hash` nor `vars` tells about the value."""
        with pytest.raises(TypeError):
            hash(Phi("x"))
        assert not hasattr(Phi("x"), "__dict__")

    def test_json_does_not_show_it(self) -> None:
        """The standard encoder refuses, and its error names the type only."""
        with pytest.raises(TypeError, match="Object of type Phi is not JSON serializable"):
            json.dumps(Phi(NEEDLE))


class TestClassify:
    """`classify`: what a key says about its value."""

    @pytest.mark.parametrize(
        "key",
        [
            "patientSSN", "patient.dob", "PATIENT_DOB", "dateOfBirth", "patientname", "first-name", "name",
            "http.request.header.authorization", "url.full", "url.path", "url.query", "http.target", "http.url",
            "db.statement", "db.query.text", "exception.message", "exception.stacktrace", "user.email", "phone2",
            "homeAddress", "zip", "card_number", "cvv", "access_token", "clientSecret", "apiKey", "password",
            "member_id", "device.serial", "patient", "patient_id", "medical_record", "account", "ip", "note",
            "diagnosis.code", "http.request.header.cookie", "body", "process.command_args", "client.address",
            "diagnosis_at_age_40", "age_and_gender", "patient_name_age_group", "patientIDs", "memberIDs", "SSNs",
            "fname", "pt_lname",
        ],
    )  # fmt: skip
    def test_denies_by_the_words_in_the_key(self, key: str) -> None:
        """camelCase, dots, dashes and underscores are all word boundaries."""
        assert classify(key, frozenset()) is Action.DENY

    @pytest.mark.parametrize(
        "key",
        [
            "step", "className", "classname", "file_name", "operation.name", "table_name", "file_count",
            "oldest_age_seconds", "patients_generated_total", "table_size", "user_agent.original", "request_id",
             "message", "cache_age", "max_age", "sender", "passed", "", "\u540d\u524d", "capital",
            "shipment", "session", "description",
        ],
    )  # fmt: skip
    def test_scans_what_it_does_not_know(self, key: str) -> None:
        """Names of things and measures are no identifiers of a person."""
        assert classify(key, frozenset()) is Action.SCAN

    @pytest.mark.parametrize("key", [*sorted(ALLOWED), "telemetry.sdk.name", "k8s.pod.name", "mine"])
    def test_allows_the_conventions_and_what_it_is_told(self, key: str) -> None:
        """The allow-list wins over the words: `service.name` is no person's name."""
        assert classify(key, frozenset({"mine"})) is Action.ALLOW

    @pytest.mark.parametrize(
        "key", ["age", "patient.age", "patientAge", "age_years", "ageInYears", "age_at_visit"]
    )
    def test_knows_ages(self, key: str) -> None:
        """Ages over 89 identify (45 CFR 164.514(b)(2)(i)(C))."""
        assert classify(key, frozenset()) is Action.AGE

    def test_splits_words(self) -> None:
        """Runs of capitals are one word."""
        assert words("HTTPRequest.patientSSN-last_4") == ["http", "request", "patient", "ssn", "last", "4"]
        assert words("patientIDs.URLs.HTTPsAs") == ["patient", "ids", "urls", "https", "as"]


class TestValue:
    """`Redactor.value`: one value under its key."""

    @pytest.mark.parametrize("value", ["2024-01-02", 19500301, True, "4bf92f3577b34da6a3ce929d0e0e4736", 1.5])
    def test_allow_listed_primitives_pass_unread(self, value: object) -> None:
        """Ids and timestamps under our own keys are not identifiers."""
        assert Redactor(allowed_keys=["mine"]).value("mine", value) is value

    @pytest.mark.parametrize("key", ["http.route", "step", "patient.name"])
    @pytest.mark.parametrize("value", [Phi(NEEDLE, "ssn"), [Phi(NEEDLE, "ssn")], {"a": Phi(NEEDLE, "ssn")}])
    def test_phi_is_masked_under_any_key(self, key: str, value: object) -> None:
        """The type decides before the key does."""
        shown = json.dumps(Redactor().value(key, value))
        assert "[PHI:" in shown
        assert NEEDLE not in shown

    @pytest.mark.parametrize(
        "value",
        [b"x", bytearray(b"x"), object(), Patient(), Broken(), Patient, len, 1j, iter([1]), ValueError("x")],
    )
    @pytest.mark.parametrize("key", ["step", "http.route"])
    def test_what_is_no_primitive_is_masked(self, key: str, value: object) -> None:
        """Its rendering is never called."""
        assert Redactor().value(key, value) == "[PHI:type]"

    @pytest.mark.parametrize("value", ["x", "", 1, 1.5, True, ["x"], {"a": 1}, Broken(), Decimal(1)])
    def test_denied_keys_mask_everything(self, value: object) -> None:
        """Under a key that names an identifier nothing passes, not even a number."""
        assert Redactor().value("patient.name", value) == "[PHI:key]"

    @pytest.mark.parametrize(
        ("value", "expected"),
        [
            (None, None),
            ("plain", "plain"),
            (42, 42),
            (78051120, 78051120),
            (780511209, "[PHI:ssn]"),
            (-780511209, "[PHI:ssn]"),
            (780511209.0, "[PHI:ssn]"),
            (4111111111111111, "[PHI:card]"),
            (10**60, "[PHI:number]"),
            (0.1234567891, 0.1234567891),
            (float("nan"), "NaN"),
            (float("inf"), "Infinity"),
            (float("-inf"), "-Infinity"),
            (Decimal("12.50"), "12.50"),
            (Level.LOW, 1),
            (Word.STEP, "step"),
            (Colour.RED, "red"),
            (Colour.ODD, (1, 2)),
            (UUID(int=1), "00000000-0000-0000-0000-000000000001"),
            (date(1950, 3, 1), "[PHI:date]"),
            (datetime(1950, 3, 1), "[PHI:date]"),  # noqa: DTZ001
            (time(1, 2), "[PHI:date]"),
            (timedelta(seconds=90), 90.0),
            ([1, NEEDLE], [1, "[PHI:ssn]"]),
            ((1, "b"), (1, "b")),
            ({2, 1}, [1, 2]),
            (OrderedDict(a=1), {"a": 1}),
        ],
    )
    def test_unknown_keys_are_scanned(self, value: object, expected: object) -> None:
        """Primitives keep their type unless they identify; containers are searched."""
        result = Redactor().value("step", value)
        assert result == expected
        assert type(result) is type(expected)

    @pytest.mark.parametrize(
        ("age", "expected"),
        [
            (89, 89), (90, "[PHI:age]"), ("94", "[PHI:age]"), ("42", "42"), ("97 years", "[PHI:age]"),
            ("7 years", "7 years"), (Decimal(97), "[PHI:age]"), (Decimal(89), "89"), (97.5, "[PHI:age]"),
            (timedelta(days=97 * 366), "[PHI:age]"), (timedelta(days=2), 172_800.0),
            (timedelta(days=90 * 365, seconds=1), "[PHI:age]"), (timedelta(days=90 * 365), 2_838_240_000.0),
            ({"value": 97, "unit": "a"}, {"value": "[PHI:age]", "unit": "a"}), ({"value": 9}, {"value": 9}),
            ({"name": "x"}, {"name": "[PHI:key]"}),
        ],
    )  # fmt: skip
    @pytest.mark.parametrize("key", ["patient.age", "ageInYears"])
    def test_ages_over_89_are_masked(self, key: str, age: object, expected: object) -> None:
        """Safe harbor lets ages up to 89 pass, in whatever type and under whatever key with that word."""
        assert Redactor().value(key, age) == expected

    @pytest.mark.parametrize(
        ("value", "expected"),
        [(3, 3), (True, True), (2.5, 2.5), (timedelta(seconds=2), 2.0), ("HIV", "[PHI:key]"), (["HIV"], "[PHI:key]"),
         (None, None)],
    )  # fmt: skip
    @pytest.mark.parametrize("key", ["diagnosis_type", "medication_count", "email_sent"])
    def test_a_measure_of_what_is_denied_is_no_text(self, key: str, value: object, expected: object) -> None:
        """How many, and whether, passes; which one does not."""
        assert Redactor().value(key, value) == expected

    @pytest.mark.parametrize(
        ("value", "expected"),
        [("x", "[PHI:strict]"), ("", ""), (3, 3), (True, True), (1.5, 1.5), ({"a": 1}, "[PHI:strict]"),
         (["x", 2], ["[PHI:strict]", 2]), (UUID(int=1), str(UUID(int=1))), (None, None)],
    )  # fmt: skip
    def test_strict_mode_drops_unknown_text(self, value: object, expected: object) -> None:
        """Only numbers pass under keys that nobody vouched for."""
        assert Redactor("strict").value("step", value) == expected

    def test_strict_mode_keeps_allow_listed_keys(self) -> None:
        """What is vouched for passes in both modes."""
        assert Redactor("strict").value("http.route", "/patients/{id}") == "/patients/{id}"

    def test_a_str_subclass_cannot_hide_its_text(self) -> None:
        """Only the characters count, not what the subclass answers."""

        class Sly(str):
            __slots__ = ()

            def __str__(self) -> str:
                return "clean"

            def lower(self) -> str:
                return "clean"

        result = Redactor().value("step", Sly(NEEDLE))
        assert result == "[PHI:ssn]"
        assert type(Redactor().value("http.route", Sly("x"))) is str

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_what_a_subclass_says_of_itself(self, mode: Any) -> None:
        """Numbers, spans of time and texts come out as Python's own, which render as what they are."""

        class Sly:
            def __str__(self) -> str:
                return NAME

            __repr__ = total_seconds = __str__

            def __format__(self, _spec: str) -> str:
                return NAME

            def __gt__(self, _other: object) -> bool:
                return False

        class Real(Sly, float): ...

        class Whole(Sly, int): ...

        class Exact(Sly, Decimal): ...

        class Span(Sly, timedelta): ...

        redactor = Redactor(mode)
        for value, plain in (
            (Real(1.5), 1.5),
            (Real(-0.0), -0.0),
            (Real("nan"), "NaN"),
            (Whole(3), 3),
            (Exact("1.50"), "1.50"),
            (Span(seconds=2), 2.0),
        ):
            shown = redactor.value("argument", value)
            assert (type(shown), repr(shown)) == (type(plain), repr(plain))
            assert redactor.value("age", value) == shown
        assert [redactor.value("age", one) for one in (Real(95), Whole(95), Exact(95))] == ["[PHI:age]"] * 3

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_a_text_that_is_none_of_pythons(self, mode: Any) -> None:
        """Text and name come out as Python's own, whatever a subclass says of itself or takes itself for."""

        class Sly(str):
            __slots__ = ()

            def __str__(self) -> str:
                return NAME

            def __eq__(self, _other: object) -> bool:
                return True

            def __hash__(self) -> int:
                return hash("info")

        redactor = Redactor(mode)
        for shown in (redactor.text(Sly("patient admitted")), redactor.name(Sly("patient admitted"))):
            assert (type(shown), repr(shown)) == (str, "'patient admitted'")
        assert redactor.name(Sly(NAME)) == (NAME if mode == "mask" else "[PHI:strict]")
        given = Sly("x")
        assert Redactor("watch").text(given) is given

    def test_nesting_beyond_four_is_masked(self) -> None:
        """Depth is bounded."""
        value: Any = NEEDLE
        for _ in range(6):
            value = [value]
        assert Redactor().value("step", value) == [[[["[PHI:type]"]]]]

    def test_a_cycle_ends(self) -> None:
        """A structure that holds itself is cut at the depth limit."""
        cycle: list[Any] = []
        cycle.append(cycle)
        assert Redactor().value("step", cycle) == [[[["[PHI:type]"]]]]

    def test_width_is_bounded(self) -> None:
        """A budget of items holds for the whole value, however it branches."""
        wide = [[list(range(100))] * 100] * 100
        flat = json.dumps(Redactor().value("step", wide))
        assert flat.count(",") < 2_000
        assert "[PHI:length]" in flat

    def test_an_allow_listed_primitive_passes_at_once_the_second_time(self) -> None:
        """The decision about a key is remembered."""
        redactor = Redactor()
        assert [redactor.value("http.route", "/x"), redactor.value("http.route", "/x")] == ["/x", "/x"]

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_a_second_pass_changes_nothing(self, mode: Any) -> None:
        """What was masked stays as it was masked."""
        redactor = Redactor(mode)
        fields = {
            "patient.name": "J",
            "step": f"x {NEEDLE}",
            "b": b"x",
            "n": 780511209,
            "d": date(1950, 1, 1),
        }
        once = redactor.mapping(fields)
        assert redactor.mapping(once) == once

    def test_a_name_in_the_form_of_a_mark_is_still_a_name(self) -> None:
        """The marks that pass are a closed list."""
        assert Redactor().value("patient.name", "[PHI:smith]") == "[PHI:key]"
        assert Redactor().value("patient.name", "[PHI:key]") == "[PHI:key]"


class TestModules:
    """Names of what is in a module."""

    def test_a_long_name_is_none(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A name made of data costs no search of its parts."""
        for length in (256, 257):
            monkeypatch.setitem(sys.modules, "m" * length, sys)
        assert is_in_a_module("m" * 256)
        assert not is_in_a_module("m" * 257)
        assert not is_in_a_module("json.decoder.nothing")

    def test_those_of_running_functions(self) -> None:
        """Each once, however many of its functions are running."""

        def inner(depth: int) -> list[str]:
            if depth:
                return inner(depth - 1)
            return [str(names["__name__"]) for names in globals_nearby()]

        found = inner(8)
        assert found[0] == __name__
        assert len(found) == len(set(found)) > 1

    def test_looks_in_vain(self) -> None:
        """Names made of data are forgotten when they are too many, and looked for again."""
        looks = Looks()
        assert [looks.again("a") for _ in range(65)] == [True] * 64 + [False]
        for n in range(4_096):
            looks.again(n)
        assert looks.again("a")


class TestMapping:
    """`Redactor.mapping`: fields with their keys."""

    def test_keys_are_scanned_too(self) -> None:
        """A dictionary keyed by an identifier leaks neither it nor what it is told of that person."""
        result = Redactor().mapping({NEEDLE: 1, "a": {"john@example.org": 2, "987-65-4321": 3}})
        assert result == {
            "[PHI:ssn]": "[PHI:key]",
            "a": {"[PHI:email]": "[PHI:key]", "[PHI:ssn]": "[PHI:key]"},
        }

    @pytest.mark.parametrize(
        ("nested", "shown"),
        [
            ({"member": {"id": "A765", "tier": "gold"}}, {"member": {"id": "[PHI:key]", "tier": "gold"}}),
            ({"subject": {"reference": "Patient/A765"}}, {"subject": {"reference": "[PHI:key]"}}),
            (
                {"members": [{"id": "A765"}, {"id": 7}]},
                {"members": [{"id": "[PHI:key]"}, {"id": "[PHI:key]"}]},
            ),
            ({"members": [{"number": 7654321}]}, {"members": [{"number": "[PHI:key]"}]}),
            ({"members": {"count": 7654321}}, {"members": {"count": 7654321}}),
            ({"request": {"path": "/x", "size": 5}}, {"request": {"path": "[PHI:key]", "size": 5}}),
            ({"error": {"message": "of Jane", "code": 5}}, {"error": {"message": "[PHI:key]", "code": 5}}),
            ({"a": {"device": {"number": "X1"}}}, {"a": {"device": {"number": "[PHI:key]"}}}),
            ({"beds": {"id": "A765", "count": 2}}, {"beds": {"id": "A765", "count": 2}}),
        ],
    )
    def test_a_nested_key_is_read_with_the_one_above_it(
        self, nested: dict[str, Any], shown: dict[str, Any]
    ) -> None:
        """An `id` in a `member` is what `member_id` is."""
        assert Redactor().mapping(nested) == shown

    def test_under_an_allowed_key_each_nested_one_is_read_alone(self) -> None:
        """Who lets `member` pass says that it names nobody."""
        redactor = Redactor(allowed_keys=["member"])
        fields = {"member": {"id": "A765", "mrn": "A765"}}
        assert redactor.mapping(fields) == {"member": {"id": "A765", "mrn": "[PHI:key]"}}

    def test_keys_that_become_equal_stay_apart(self) -> None:
        """Masking two keys must not lose a field."""
        result = Redactor().mapping({"078-05-1120": 1, "078-05-1121": 2, "078-05-1122": 3})
        assert result == dict.fromkeys(["[PHI:ssn]", "[PHI:ssn]_2", "[PHI:ssn]_3"], "[PHI:key]")

    def test_many_keys_that_become_equal(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Each takes the number behind the last one's: none is asked for twice."""
        Counted.made = 0
        monkeypatch.setattr(Redactor, "key", lambda *_, **__: Counted("[PHI:ssn]"))
        assert len(Redactor().mapping(dict.fromkeys(map(str, range(500)), 1))) == 500
        assert Counted.made == 499

    def test_keys_that_are_no_text(self) -> None:
        """Numbers are written out, objects are masked."""
        fields: Any = {5: 1, None: 2, Word.STEP: 3, 780511209: 4, "k" * 200: 5}
        assert list(Redactor().mapping(fields)) == ["5", "[PHI:key]", "step", "[PHI:ssn]", "[PHI:key]_2"]

    def test_one_broken_value_does_not_cost_the_others(self) -> None:
        """Each field fails closed by itself."""
        result = Redactor().mapping({"a": 1, "b": BrokenMapping(), "c": 2})
        assert result == {"a": 1, "b": "[PHI:error]", "c": 2}

    def test_a_broken_mapping_fails_closed(self) -> None:
        """Nothing is passed and nothing is raised."""
        assert Redactor().mapping(BrokenMapping()) == {"redaction": "[PHI:error]"}

    def test_a_flood_of_fields_is_cut(self) -> None:
        """The number of fields is bounded."""
        result = Redactor().mapping({f"f{n}": n for n in range(5_000)})
        assert len(result) == 1_001
        assert result["redaction"] == "[PHI:length]"


class TestFaults:
    """Whatever goes wrong inside yields a mark."""

    def test_a_fault_of_the_scan_masks(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The value is not passed because it could not be read."""

        def fail(_text: str) -> tuple[str, tuple[str, ...]]:
            raise RuntimeError(NEEDLE)

        counted: Counter[tuple[str, str]] = Counter()
        monkeypatch.setattr("healthobs.redaction.scan.scan", fail)
        redactor = Redactor(on_redaction=lambda signal, kind: counted.update([(signal, kind)]))
        assert redactor.text("x", signal="trace") == "[PHI:error]"
        assert redactor.value("step", "x") == "[PHI:error]"
        assert redactor.mapping({"step": "x"}) == {"[PHI:error]": "[PHI:key]"}
        assert redactor.changed({"step": "x"}) == {"[PHI:error]": "[PHI:key]"}
        assert counted["trace", "error"] >= 1

    def test_each_mark_is_counted_by_signal_and_kind(self) -> None:
        """The hook feeds `healthobs_redactions_total{signal,kind}`."""
        counted: Counter[tuple[str, str]] = Counter()
        redactor = Redactor(on_redaction=lambda signal, kind: counted.update([(signal, kind)]))
        redactor.mapping({"dob": 1, "step": f"{NEEDLE} a@b.org", "o": object()}, signal="trace")
        redactor.text(NEEDLE)
        expected = {("trace", "key"): 1, ("trace", "ssn"): 1, ("trace", "email"): 1, ("trace", "type"): 1}
        assert counted == {**expected, ("log", "ssn"): 1}

    def test_a_broken_counter_changes_nothing(self) -> None:
        """A fault in the hook reaches neither the caller nor the result."""

        def broken(signal: str, kind: str) -> None:
            raise RuntimeError(signal + kind)

        assert Redactor(on_redaction=broken).text(NEEDLE) == "[PHI:ssn]"

    def test_keys_made_of_data_do_not_grow_the_memory(self) -> None:
        """The cache of key actions is bounded."""
        redactor = Redactor()
        for number in range(5_000):
            redactor.value(f"field{number}x", "y")
        assert len(redactor._actions) <= 2_048


class TestChanged:
    """`Redactor.changed`: the exporter's question."""

    def test_nothing_to_do_is_none(self) -> None:
        """Attributes that may all leave are not copied."""
        attributes = {"http.route": "/x", "http.response.status_code": 200, "step": "plain", "n": (1, 2)}
        redactor = Redactor()
        assert [redactor.changed(attributes), redactor.changed(attributes)] == [None, None]

    @pytest.mark.parametrize(
        "attributes",
        [{"http.route": "/x", "step": NEEDLE}, {"patient.name": "J"}, {NEEDLE: 1}, {"a": b"x"}, {"a": (1, NEEDLE)},
         {"http.route": b"x"}],
    )  # fmt: skip
    def test_anything_else_is_the_redacted_copy(self, attributes: dict[str, Any]) -> None:
        """One finding, in a key or a value, and the whole mapping is redacted."""
        redactor = Redactor()
        assert redactor.changed(attributes) == Redactor().mapping(attributes)
        assert NEEDLE not in str(redactor.changed(attributes))

    def test_marks_are_counted_once(self) -> None:
        """Looking does not count, masking does."""
        counted: list[str] = []
        Redactor(on_redaction=lambda _signal, kind: counted.append(kind)).changed({"step": NEEDLE})
        assert counted == ["ssn"]


plain = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20), st.binary(max_size=5)
)
planted = st.sampled_from(
    [NEEDLE, f"x {NEEDLE}", NEEDLE.encode(), Phi(NEEDLE), ValueError(NEEDLE), SimpleNamespace(ssn=NEEDLE)]
) | st.builds(Broken)
#: Under a key of the semantic conventions a value passes unscanned.
names = st.text(max_size=12).filter(lambda name: name not in ALLOWED)
keys = st.one_of(names, st.sampled_from(["step", "ssn", NEEDLE, f"k {NEEDLE}"]), st.integers())
trees = st.recursive(
    st.one_of(plain, planted),
    lambda inner: st.one_of(
        st.lists(inner, max_size=4),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(keys, inner, max_size=4),
    ),
    max_leaves=25,
)


class TestProperties:
    """What holds for any value."""

    @given(names, trees, st.sampled_from(["mask", "strict"]))
    def test_the_needle_never_comes_out(self, key: str, tree: object, mode: Any) -> None:
        """Nested, in keys, in bytes, in objects and in exceptions: the result is JSON without it."""
        redactor = Redactor(mode)
        shown = json.dumps([redactor.value(key, tree), redactor.mapping({key: tree})], allow_nan=False)
        assert NEEDLE not in shown

    @given(st.dictionaries(st.text(max_size=12), trees, max_size=4))
    def test_a_second_pass_changes_nothing(self, fields: dict[str, object]) -> None:
        """Redaction is idempotent."""
        redactor = Redactor()
        once = redactor.mapping(fields)
        assert json.dumps(redactor.mapping(once)) == json.dumps(once)

    def test_the_needle_is_seen_without_redaction(self) -> None:
        """The property above would notice: the same dump without redaction shows the needle."""
        assert NEEDLE in json.dumps({"a": [f"x {NEEDLE}"]})


class TestSensitiveAuthenticationData:
    """PCI DSS 3.3.1: what proves a card may be recorded nowhere."""

    @pytest.mark.parametrize(
        "key",
        ["cvv", "cvc2", "cav2", "cid", "pin", "pin_block", "pinBlock", "track1", "track2", "track_data"],
    )
    def test_masked_by_key(self, key: str) -> None:
        """Verification codes, PINs and track data are masked whatever their form."""
        assert Redactor().value(key, "1234") == "[PHI:key]"

    @pytest.mark.parametrize("key", ["pinned", "tracking", "candidate"])
    def test_words_that_only_look_alike(self, key: str) -> None:
        """A key is read word by word: part of a word masks nothing."""
        assert Redactor().value(key, "1234") == "1234"
