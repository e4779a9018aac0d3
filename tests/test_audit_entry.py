"""What an audit entry records: drafts, annotation, canonical bytes, ids, redaction."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from enum import Enum
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry import trace
from opentelemetry.trace import NonRecordingSpan, SpanContext

from healthobs import _runtime
from healthobs.audit import AuditDraft, annotate, entry
from healthobs.exceptions import AuditWriteError, InstrumentationError
from healthobs.redaction import Phi, Redactor

MOMENT = datetime(2026, 3, 4, 5, 6, 7, 89, UTC)


#: Where text is cut, and at which length: how to fill the place, and how to read it back.
LIMITS: dict[str, tuple[int, Callable[[str], dict[str, Any]], Callable[[dict[str, Any]], str]]] = {
    "subject": (256, lambda text: {"subject": text}, lambda body: body["subject"]),
    "request_id": (256, lambda text: {"request_id": text}, lambda body: body["request_id"]),
    "trace_id": (256, lambda text: {"trace_id": text}, lambda body: body["trace_id"]),
    "reason": (1_024, lambda text: {"reason": text}, lambda body: body["reason"]),
    "details": (1_024, lambda text: {"details": {"memo": text}}, lambda body: body["details"]["memo"]),
}

#: Every field whose text is redacted; a trace id need not be one.
TEXTS = (
    "actor", "actor_kind", "subject", "resource_type", "resource_id", "purpose", "classification", "reason", "trace_id",
    "span_id", "request_id",
)  # fmt: skip


class Said(str, Enum):  # noqa: UP042 - StrEnum formats itself as its text
    """Members whose format is their name."""

    ACTION = "patient.write"
    OUTCOME = "denied"
    TRACE = "ab" * 16
    SPAN = "cd" * 8


def encoded(**draft: Any) -> dict[str, Any]:
    raw = entry.encode(
        {"action": "patient.read", **draft}, service="phi-service", moment=MOMENT, redactor=Redactor()
    )
    body: dict[str, Any] = json.loads(raw)
    assert entry.canonical(body).encode() == raw
    return body


@pytest.fixture
def draft() -> Iterator[AuditDraft]:
    """A draft in force, as inside an audited call."""
    made = AuditDraft("patient.read")
    token = _runtime.audit_draft.set(made)
    yield made
    _runtime.audit_draft.reset(token)


class TestCanonical:
    """The canonical form of RFC 8785."""

    def test_example_of_the_standard(self) -> None:
        """Members are ordered by UTF-16 code units, as in the example of RFC 8785 §3.2.3."""
        names = ["\u20ac", "\r", "\ufb33", "1", "\U0001f600", "\u0080", "\u00f6"]
        ordered = ["\r", "1", "\u0080", "\u00f6", "\u20ac", "\U0001f600", "\ufb33"]
        assert list(json.loads(entry.canonical(dict.fromkeys(names, 1)))) == ordered

    def test_strings_of_the_standard(self) -> None:
        """Only what must be escaped is escaped, in the short form where there is one (RFC 8785 §3.2.2.2)."""
        text = '\u20ac$\x0f\nA\'B"\\\\"/\x7f\u2028'
        assert entry.canonical(text) == '"\u20ac$\\u000f\\nA\'B\\"\\\\\\\\\\"/\x7f\u2028"'

    @given(
        st.recursive(
            st.none() | st.booleans() | st.integers(-(2**53) + 1, 2**53 - 1) | st.text(),
            lambda inner: st.dictionaries(st.text(), inner, max_size=4),
            max_leaves=10,
        )
    )
    def test_round_trips_and_ignores_order(self, value: Any) -> None:
        """The same content in any order has the same form, and reads back as itself."""
        form = entry.canonical(value)
        assert json.loads(form) == value
        assert (
            entry.canonical(json.loads(form, object_pairs_hook=lambda pairs: dict(reversed(pairs)))) == form
        )


class TestEncode:
    """From a draft to the bytes of an entry."""

    def test_every_field_has_its_place(self) -> None:
        """A full draft gives the whole entry, and nothing more."""
        body = encoded(
            outcome="denied", actor="client-1", actor_kind="client", subject="s-1", resource_type="patient",
            resource_id="r-1", purpose="TREAT", classification="R", reason="break glass",
            details={"view": "full", "count": 3, "emergency": True}, trace_id="a" * 32, span_id="b" * 16,
            request_id="q-1",
        )  # fmt: skip
        assert len(bytes.fromhex(body.pop("salt"))) == 16
        assert body == {
            "v": 1,
            "time": "2026-03-04T05:06:07.000089Z",
            "service": "phi-service",
            "action": "patient.read",
            "outcome": "denied",
            "actor": {"id": "client-1", "kind": "client"},
            "subject": "s-1",
            "resource": {"type": "patient", "id": "r-1"},
            "purpose": "TREAT",
            "classification": "R",
            "reason": "break glass",
            "details": {"view": "full", "count": 3, "emergency": True},
            "trace_id": "a" * 32,
            "span_id": "b" * 16,
            "request_id": "q-1",
        }

    @given(
        draft=st.fixed_dictionaries(
            {},
            optional={
                **{name: st.text() for name in TEXTS},
                "details": st.dictionaries(
                    st.text(), st.text() | st.integers(-9, 9) | st.booleans(), max_size=9
                ),
            },
        ),
        exchange=st.none() | st.builds(SimpleNamespace, request_id=st.text(), tenant=st.text()),
    )
    def test_whatever_the_text_the_form_is_canonical(self, draft: dict[str, Any], exchange: object) -> None:
        """No text, tenant or request breaks the form of RFC 8785, and the trail knows each entry as one of its own."""
        token = _runtime.exchange.set(exchange)
        try:
            body = encoded(**draft)
        finally:
            _runtime.exchange.reset(token)
        assert entry.action_of(entry.canonical(body).encode()) == "patient.read"
        assert ("tenant" in body) == bool(getattr(exchange, "tenant", ""))

    def test_what_is_not_given_is_null(self) -> None:
        """An entry always has every field, so that readers need no guesses."""
        body = encoded()
        assert body["outcome"] == "ok"
        assert (body["actor"], body["subject"], body["reason"]) == ({"id": None, "kind": None}, None, None)
        assert (body["details"], body["trace_id"], body["request_id"]) == ({}, None, None)

    def test_salt_differs(self) -> None:
        """Two entries of the same content have different bytes, so a leaf cannot be guessed."""
        assert encoded()["salt"] != encoded()["salt"]

    @pytest.mark.parametrize(
        "wrong",
        [
            {"patient": "078-05-1120"},
            {"action": None},
            {"action": 7},
            {"action": ""},
            {"action": "two words"},
            {"action": "x" * 200},
            {"outcome": "078-05-1120 said no"},
            {"actor": 7},
            {"subject": b"078-05-1120"},
            {"reason": ["078-05-1120"]},
            {"details": "078-05-1120"},
            {"details": {"a": 1.5}},
            {"details": {"a": None}},
            {"details": {"a": ["078-05-1120"]}},
            {"details": {7: "078-05-1120"}},
            {"details": {"a": 2**53}},
            {"details": {str(number): 1 for number in range(65)}},
            {"trace_id": 7},
        ],
    )
    def test_malformed_draft_is_refused_without_its_values(self, wrong: dict[str, Any]) -> None:
        """A field that is unknown or of the wrong type is refused; no value is repeated."""
        with pytest.raises(AuditWriteError) as caught:
            encoded(**wrong)
        assert "078-05" not in str(caught.value)

    def test_members_of_enumerations(self) -> None:
        """Text that formats itself otherwise is recorded as the text that it is."""
        recorded = encoded(action=Said.ACTION, outcome=Said.OUTCOME, trace_id=Said.TRACE, span_id=Said.SPAN)
        names = ("action", "outcome", "trace_id", "span_id")
        assert [recorded[name] for name in names] == [each.value for each in Said]

    def test_no_detail_takes_anothers_place(self) -> None:
        """Names that become equal when they are made valid or cut are numbered."""
        names = ("a\ud800", "a\udfff", "b" * 300 + "1", "b" * 300 + "2")
        details = {name: place for place, name in enumerate(names, 1)}
        raw = entry.encode(
            {"action": "a.b", "details": details}, service="s", moment=MOMENT, redactor=Redactor(mode="watch")
        )
        assert sorted(json.loads(raw)["details"].values()) == [1, 2, 3, 4]

    def test_action_is_needed(self) -> None:
        """There is no entry about nothing."""
        with pytest.raises(AuditWriteError, match="action"):
            entry.encode({}, service="s", moment=MOMENT, redactor=Redactor())

    def test_callers_text_cannot_break_or_flood_the_trail(self) -> None:
        """Lone surrogates and endless identifiers are made harmless rather than refused."""
        body = encoded(resource_id="x" * 5_000, subject="\ud800", details={"k\udfff": "v" * 5_000, "n": -1})
        assert (len(body["resource"]["id"]), body["resource"]["id"][-1]) == (256, "…")
        assert body["subject"] == "?"
        assert (len(body["details"]["k?"]), body["details"]["n"]) == (1_024, -1)

    def test_reason_and_details_are_redacted(self) -> None:
        """An identifier in free text, or a value under a telling name, is masked before it is recorded."""
        raw = json.dumps(
            encoded(
                reason="asked for 078-05-1120", details={"ssn": "078-05-1120", "step": "mail a@b.example"}
            )
        )
        assert "078-05-1120" not in raw
        assert "a@b.example" not in raw
        assert raw.count("[PHI:") == 3

    @pytest.mark.parametrize(
        "field",
        [
            "trace_id",
            "span_id",
            "actor",
            "actor_kind",
            "subject",
            "resource_type",
            "resource_id",
            "purpose",
            "classification",
            "request_id",
        ],
    )
    @pytest.mark.parametrize("value", ["078-05-1120", "MRN-0012345", "4111111111111111", "a@b.example"])
    def test_an_identifier_of_a_person_is_masked_in_every_field(self, field: str, value: str) -> None:
        """An access is not lost because of a bad id, and the id does not stay for good."""
        raw = json.dumps(encoded(**{field: value}))
        assert value not in raw
        assert raw.count("[PHI:") == 1

    @pytest.mark.parametrize("purpose", ["treatment of Jane Roe", "", "Jane Roe", "Ottoline", "ottoline"])
    def test_purpose_is_a_code(self, draft: AuditDraft, purpose: str) -> None:
        """Free text is refused where it is said, without its words, and a mark in an entry that comes otherwise."""
        with pytest.raises(InstrumentationError, match=r"takes a code such as 'TREAT', not free text$"):
            annotate(purpose=purpose, subject="s-1")
        assert (draft.purpose, draft.subject) == (None, None)
        assert encoded(purpose=purpose)["purpose"] == "[PHI:strict]"
        annotate(purpose="TREAT")
        assert encoded(purpose=draft.purpose)["purpose"] == "TREAT"

    def test_names_of_details_are_masked(self) -> None:
        """A name of a detail that is made of an identifier goes with its value."""
        raw = json.dumps(encoded(details={"078-05-1120": 1, "card 4111111111111111": True}))
        assert "078-05" not in raw
        assert "41111111" not in raw

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_what_was_revealed_is_recorded(self, draft: AuditDraft, mode: Any) -> None:
        """Kind, purpose and count are in the stored entry, whatever the kind's word is to the redactor."""
        kinds = ("name", "mrn", "ssn", "diagnosis", "email", "dob", "address", "note", "value", "patient")
        for kind in kinds * 2:
            Phi("x", kind).reveal("TREAT")
        raw = entry.encode(draft.as_mapping(), service="s", moment=MOMENT, redactor=Redactor(mode))
        assert json.loads(raw)["details"] == {f"revealed.{kind}.TREAT": 2 for kind in kinds}

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_what_it_was_revealed_for_is_redacted(self, draft: AuditDraft, mode: Any) -> None:
        """An identifier that has the form of a purpose's code is masked; what was revealed is still counted."""
        for purpose in ("S078-05-1120", "S536-90-4399", "X4111111111111111", "DOB.1961-04-12", "TREAT"):
            Phi("x", "name").reveal(purpose)
        raw = entry.encode(draft.as_mapping(), service="s", moment=MOMENT, redactor=Redactor(mode))
        assert json.loads(raw)["details"] == {
            "revealed.name.S[PHI:ssn]": 2,
            "revealed.name.X[PHI:card]": 1,
            "revealed.name.DOB.[PHI:date]": 1,
            "revealed.name.TREAT": 1,
        }

    def test_nobody_else_counts_what_was_revealed(self, draft: AuditDraft) -> None:
        """A number that the caller puts under such a name is redacted like any other, and counts for nothing."""
        annotate(details={"revealed.mrn.TREAT": 12345678, "revealed.ssn.TREAT": 78051120})
        Phi("x", "mrn").reveal("TREAT")
        details = encoded(details=draft.details)["details"]
        assert details == {"revealed.mrn.TREAT": 1, "revealed.ssn.TREAT": "[PHI:key]"}

    @given(
        secret=st.sampled_from(["4111111111111111", "4111 1111 1111 1111", "078-05-1120", "212-555-0123"]),
        place=st.sampled_from([*LIMITS]),
        before_limit=st.integers(-1, 20),
        rest=st.sampled_from(["", " paid", " " + "w " * 3_000]),
    )
    def test_no_limit_cuts_an_identifier_in_two(
        self, secret: str, place: str, before_limit: int, rest: str
    ) -> None:
        """Wherever the limit falls on an identifier, no digit of it is left, nor half of the mark in its place."""
        limit, draft, read = LIMITS[place]
        filler = "w " * 600
        text = filler[: limit - before_limit - 1] + " " + secret + rest
        stored = read(encoded(**draft(text)))
        assert not any(char.isdigit() for char in stored)
        assert len(stored) <= limit
        assert stored.count("[") == stored.count("]")
        assert Redactor().text(text).startswith(stored.removesuffix("…"))

    def test_watch_cuts_as_well(self) -> None:
        """A redactor that only watches changes nothing, and the limits hold all the same."""
        draft = {"action": "a", "reason": "r" * 2_000, "details": {"n" * 2_000: "v" * 2_000}}
        raw = entry.encode(draft, service="s", moment=MOMENT, redactor=Redactor("watch"))
        body = json.loads(raw)
        ((name, value),) = body["details"].items()
        assert (len(body["reason"]), len(name), len(value)) == (1_024, 256, 1_024)

    @pytest.mark.parametrize("prefix", ["", "s-", "pay_", "tok_", "Patient/", "urn:"])
    @pytest.mark.parametrize(
        "surrogate",
        [
            "4bf92f35-77b3-4da6-a3ce-929d0e0e4736", "0081941feb3ad2feb9ef12447ef2a819", "dea134ae271526ea",
            "b4feb939b840f72f3725d30e",
        ],
    )  # fmt: skip
    def test_surrogates_stay(self, prefix: str, surrogate: str) -> None:
        """A random id says nothing, even where a part of it looks like a date, and the trail is of no use without."""
        body = encoded(actor=prefix + surrogate, subject=prefix + surrogate, resource_id=prefix + surrogate)
        assert {body["actor"]["id"], body["subject"], body["resource"]["id"]} == {prefix + surrogate}

    def test_redactor_counts_what_it_masks(self) -> None:
        """Masking here is counted under the signal `audit`."""
        seen: list[tuple[str, str]] = []
        redactor = Redactor(on_redaction=lambda signal, kind: seen.append((signal, kind)))
        entry.encode({"action": "a", "reason": "078-05-1120"}, service="s", moment=MOMENT, redactor=redactor)
        assert seen == [("audit", "ssn")]


class TestContextIds:
    """The ids that tie an entry to the other signals."""

    CONTEXT = SpanContext(trace_id=0xABC, span_id=0xDEF, is_remote=False)

    def test_current_span_and_request(self) -> None:
        """Without any word of the caller, the ids are those of the current span and exchange."""
        token = _runtime.exchange.set(SimpleNamespace(request_id="q-7"))
        try:
            with trace.use_span(NonRecordingSpan(self.CONTEXT)):
                body = encoded()
        finally:
            _runtime.exchange.reset(token)
        assert body["trace_id"] == f"{0xABC:032x}"
        assert body["span_id"] == f"{0xDEF:016x}"
        assert body["request_id"] == "q-7"

    def test_caller_wins(self) -> None:
        """Ids in the draft replace those of the context, and are never mixed with another trace's span."""
        with trace.use_span(NonRecordingSpan(self.CONTEXT)):
            body = encoded(trace_id="1" * 32, request_id="q-8")
        assert (body["trace_id"], body["span_id"], body["request_id"]) == ("1" * 32, None, "q-8")

    @pytest.mark.parametrize("span_id", ["1234567890123456", "4111111111111111", None])
    def test_ids_of_digits_alone(self, span_id: str | None) -> None:
        """Random ids can lack letters; beside a trace id they are no numbers of anybody."""
        body = encoded(trace_id="1" * 32, span_id=span_id)
        assert (body["trace_id"], body["span_id"]) == ("1" * 32, span_id)

    @pytest.mark.parametrize("exchange", [None, object(), SimpleNamespace(request_id=7)])
    def test_odd_exchange(self, exchange: object) -> None:
        """An exchange without a textual id is no fault."""
        token = _runtime.exchange.set(exchange)
        try:
            assert encoded()["request_id"] is None
        finally:
            _runtime.exchange.reset(token)


class TestAuditDraft:
    """The draft of an entry."""

    def test_mapping_has_every_field(self) -> None:
        """The mapping is what `append` takes: all fields, flat."""
        mapping = AuditDraft("a.b", actor="x", details={"n": 1}).as_mapping()
        assert mapping == {
            "action": "a.b", "outcome": "ok", "actor": "x", "actor_kind": None, "subject": None,
            "resource_type": None, "resource_id": None, "purpose": None, "classification": None,
            "reason": None, "details": {"n": 1},
        }  # fmt: skip

    def test_has_no_room_for_anything_else(self) -> None:
        """A misspelt field cannot be set on a draft."""
        with pytest.raises(AttributeError):
            AuditDraft("a").patient = "x"  # type: ignore[attr-defined]


class TestAnnotate:
    """Filling the draft from inside of the call."""

    def test_sets_fields(self, draft: AuditDraft) -> None:
        """Named fields of the draft in force are replaced, the others stay."""
        annotate(subject="s-1", purpose="TREAT")
        annotate(subject="s-2", reason=None)
        assert (draft.action, draft.subject, draft.purpose) == ("patient.read", "s-2", "TREAT")

    def test_details_are_merged(self, draft: AuditDraft) -> None:
        """Each annotation adds its details; the caller's own mapping is left alone."""
        mine = {"view": "full"}
        annotate(details=mine)
        annotate(details={"count": 2})
        annotate(details=None)
        assert (draft.details, mine) == ({"view": "full", "count": 2}, {"view": "full"})

    def test_nothing_happens_outside_an_audited_call(self) -> None:
        """The same function can be called without a trail."""
        annotate(subject="s-1", details={"a": 1})
        assert _runtime.audit_draft.get() is None

    def test_unknown_name_is_refused_everywhere(self) -> None:
        """A misspelt field is a fault of the program, with or without a draft; no value is repeated."""
        with pytest.raises(InstrumentationError, match="resource_id") as caught:
            annotate(patient="078-05-1120")
        assert "078" not in str(caught.value)

    def test_details_must_be_a_mapping(self, draft: AuditDraft) -> None:
        """Details that are no mapping are refused before anything is set."""
        with pytest.raises(InstrumentationError, match="mapping"):
            annotate(subject="s-1", details="text")
        assert draft.subject is None
