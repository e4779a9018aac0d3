"""One audit entry: its fields, its canonical bytes (RFC 8785, JCS) and its salt.

What is recorded follows 45 CFR 164.312(b) and PCI DSS 4.0 requirement 10.2.2 (who, what, when, outcome,
origin, what it touched). The canonical form makes the bytes, and so the leaf, depend on the content alone; the
random salt makes a leaf useless for guessing the content, should the body be erased one day.

Identifiers (actor, subject, resource, request) must be opaque: UUIDs and long hexadecimal tokens, with a short prefix
or without, are recorded as they are; what a pattern finds in others is masked, as in `reason`, `details` and all other text.
Text is cut after that, never before: no pattern finds half an identifier. What `Phi.reveal` counted stays under its name.
A `purpose` that has not the form of a code is dropped for a mark.

Limits: a name has no pattern. `action` and `outcome` are words of the code and are not looked at. Floats, nulls in
details and nested details are refused.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Container, Mapping
from datetime import datetime
from json.encoder import encode_basestring
from typing import Any, NoReturn, cast

from opentelemetry import trace

from healthobs import _runtime
from healthobs.audit.draft import FIELDS
from healthobs.clock import rfc3339
from healthobs.exceptions import AuditWriteError
from healthobs.redaction import Redactor
from healthobs.redaction.apart import Apart
from healthobs.redaction.phi import Revealed, is_purpose
from healthobs.tenancy import stated

#: Format of the entries that this release writes (`v` of the body).
FORMAT = 1
SALT_BYTES = 16
#: Longer text is cut; no honest identifier is longer, and a caller must not be able to fill the disk.
MAX_TEXT = 256
MAX_REASON = 1_024
MAX_DETAILS = 64
#: Bytes of one entry; its length must fit the prefix in an entry bundle (C2SP tlog-tiles, "Log entries").
MAX_BODY = 65_535
#: Integers beyond it are not exact in every JSON reader (RFC 8785 §3.2.2.3, RFC 7493 §2.2).
MAX_INTEGER = 2**53 - 1

_SORTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"), sort_keys=True)
_UNSORTED = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
_NULL = "null"
_IDS = ("trace_id", "span_id", "request_id")
_KNOWN = frozenset((*FIELDS, *_IDS))
#: Fields of text, and how long each may be.
_LIMITS = dict.fromkeys(_KNOWN - {"action", "outcome", "details"}, MAX_TEXT) | {"reason": MAX_REASON}
_MEMBERS = frozenset({"v", "time", "service", "action", "outcome", "actor", "subject", "resource", "purpose",
                      "classification", "reason", "details", "salt", *_IDS})  # fmt: skip
#: A member of entries where the settings declare tenants; entries without it are of the same format.
_TENANT = "tenant"
#: A trace id, and a span id or None.
_TRACED = re.compile(r"[0-9a-f]{32} (?:[0-9a-f]{16}|None)")
_MARK = re.compile(r"\[PHI:[a-z_]+\]")
_WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}")
#: An identifier that says nothing. Of random digits a part can look like a date or a licence; a letter tells them from
#: a card's number.
_SURROGATE = re.compile(
    r"(?:[A-Za-z]{1,16}[_:/-])?(?:[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}"
    r"|(?=[0-9]*[a-f])(?:[0-9a-f]{16}|[0-9a-f]{24}|[0-9a-f]{32}|[0-9a-f]{64}))"
)


def canonical(value: Any) -> str:
    """Return the RFC 8785 form of JSON made of text, whole numbers, booleans, nulls and objects.

    Example:
        >>> canonical({"b": {"d": 1, "c": True}, "a": "€"})
        '{"a":"€","b":{"c":true,"d":1}}'
    """
    text = _SORTED.encode(value)
    # The encoder sorts by code points, which is the order of UTF-16 code units for ASCII and not for all else.
    return text if text.isascii() else _UNSORTED.encode(_ordered(value))


def _ordered(value: Any) -> Any:
    """Order the members of every object by UTF-16 code units (RFC 8785 §3.2.3)."""
    if isinstance(value, dict):
        members = cast("dict[str, Any]", value)
        return {name: _ordered(members[name]) for name in sorted(members, key=_utf16)}
    return value


def _utf16(name: str) -> bytes:
    return name.encode("utf-16-be")


def encode(
    draft: Mapping[str, object],
    *,
    service: str,
    moment: datetime,
    redactor: Redactor,
    signal: str = "audit",
) -> bytes:
    """Return the canonical bytes of the entry that `draft` describes, as it happened here and now.

    Args:
        draft: Fields of `AuditDraft`; `trace_id`, `span_id` and `request_id` win over those of the context.
        service: Who writes.
        moment: When it happened.
        redactor: Decides on all text but `action` and `outcome`.
        signal: Under which redactions are counted; with an empty one they are not.

    Raises:
        AuditWriteError: A field is unknown, missing or of the wrong type; the message names it, never its value.
    """
    if not _KNOWN.issuperset(draft):
        unknown = len(draft.keys() - _KNOWN)
        raise AuditWriteError(
            f"the audit entry has {unknown} unknown field(s); use {', '.join(FIELDS)} and put the rest into details"
        )
    texts = dict.fromkeys(_LIMITS, _NULL)
    for name, value in draft.items():
        if value is not None and name in texts:
            texts[name] = encode_basestring(_masked(name, value, _LIMITS[name], redactor, signal))
    trace_id, span_id = _traced(draft, texts["trace_id"], texts["span_id"])
    request_id, current = texts["request_id"], getattr(_runtime.exchange.get(), "request_id", None)
    if request_id == _NULL and isinstance(current, str):
        request_id = encode_basestring(_masked("request_id", current, MAX_TEXT, redactor, signal))
    tenant = stated()
    whose = f'"{_TENANT}":{encode_basestring(tenant)},' if tenant else ""
    # Written out in the order of RFC 8785, for half of what it costs to make a dictionary, sort and encode it.
    encoded = (
        f'{{"action":"{_word(draft, "action")}","actor":{{"id":{texts["actor"]},"kind":{texts["actor_kind"]}}},'
        f'"classification":{texts["classification"]},"details":{_details(draft.get("details"), redactor, signal)},'
        f'"outcome":"{_word(draft, "outcome", "ok")}","purpose":{texts["purpose"]},'
        f'"reason":{texts["reason"]},"request_id":{request_id},'
        f'"resource":{{"id":{texts["resource_id"]},"type":{texts["resource_type"]}}},'
        f'"salt":"{os.urandom(SALT_BYTES).hex()}","service":{encode_basestring(service)},"span_id":{span_id},'
        f'"subject":{texts["subject"]},{whose}"time":"{rfc3339(moment)}","trace_id":{trace_id},"v":{FORMAT}}}'
    ).encode()
    if len(encoded) > MAX_BODY:
        raise AuditWriteError("the audit entry is longer than 65,535 bytes; record less in its details")
    return encoded


def as_recorded(text: str, redactor: Redactor, limit: int = MAX_TEXT) -> str:
    """Return what an entry would have of an identifier, or of other text of that length at most."""
    return _masked("subject", text, limit, redactor, "")


def is_opaque(identifier: str) -> bool:
    """Return whether an identifier has the form of one that says nothing, and so is recorded as it is."""
    return _SURROGATE.fullmatch(identifier) is not None


def decode(body: bytes) -> dict[str, Any] | None:
    """Return what an entry's bytes say; None when they are not of the form that `encode` gives them."""
    try:
        found = json.loads(body)
        if b"\\u" in body:
            _UNSORTED.encode(found).encode()  # half a character could not be written out again
        return found if found.keys() - {_TENANT} == _MEMBERS and _is_shaped(found) else None
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return None  # whoever can write the row can write anything


def action_of(body: bytes) -> str | None:
    """Return the action of an entry's bytes; None when they are none that `encode` could have made."""
    if len(body) > MAX_BODY:
        return None
    try:
        found = json.loads(body, parse_float=_refused, parse_constant=_refused)
        if canonical(found).encode() != body or found.keys() - {_TENANT} != _MEMBERS or found["v"] != FORMAT:
            return None
        if not _is_shaped(found):
            return None
    except (ValueError, AttributeError, TypeError, OverflowError, RecursionError):
        return None  # whoever can write the row can write anything
    action = found["action"]
    return action if isinstance(action, str) and _WORD.fullmatch(action) else None


def _is_shaped(found: dict[str, Any]) -> bool:
    """Return whether members are of the types that `encode` writes: all who read entries rely on that."""
    actor, resource = found["actor"], found["resource"]
    maybe = [found[name] for name in ("subject", "purpose", "classification", "reason", *_IDS)]
    return (
        actor.keys() == {"id", "kind"}
        and resource.keys() == {"type", "id"}
        and all(
            text is None or isinstance(text, str) for text in (*maybe, *actor.values(), *resource.values())
        )
        and all(isinstance(found.get(name, ""), str) for name in ("service", "outcome", "salt", _TENANT))
        and all(isinstance(value, (str, int)) for value in found["details"].values())
        and rfc3339(datetime.fromisoformat(found["time"])) == found["time"]
    )


def _refused(_text: str) -> None:
    raise ValueError


def _traced(draft: Mapping[str, object], trace_id: str, span_id: str) -> tuple[str, str]:
    """Return the ids of trace and span, as JSON: those of the draft, else those of the current span."""
    if trace_id != _NULL:
        span = draft.get("span_id")
        # Joined, because members of an enumeration format themselves as they like.
        given = " ".join(cast("tuple[str, str]", (draft["trace_id"], "None" if span is None else span)))
        if _TRACED.fullmatch(given) is None:
            return trace_id, span_id
        return f'"{given[:32]}"', _NULL if span_id == _NULL else f'"{given[33:]}"'  # now and then all digits
    context = trace.get_current_span().get_span_context()
    if not context.is_valid:
        return _NULL, span_id
    return f'"{context.trace_id:032x}"', f'"{context.span_id:016x}"' if span_id == _NULL else span_id


def _word(draft: Mapping[str, object], name: str, default: str | None = None) -> str:
    value = draft.get(name)
    value = default if value is None else value
    if not isinstance(value, str) or not _WORD.fullmatch(value):
        _refuse(name)
    return str.__str__(value)  # a member of an enumeration formats itself as it likes


def _masked(name: str, text: object, limit: int, redactor: Redactor, signal: str) -> str:
    if not isinstance(text, str):
        _refuse(name)
    if not text.isascii():
        text = _valid(text)
    if name == "purpose" and not is_purpose(text):
        return redactor.drop(text, signal=signal)
    if _SURROGATE.fullmatch(text) is not None:  # `is_opaque`, without a call in each entry
        return text
    redacted = redactor.text(text, signal=signal)
    return redacted if len(redacted) <= limit else _cut(redacted, limit)


def _refuse(name: str) -> NoReturn:
    """Raise for a field that is not what it must be; a literal each, because log lines keep no other message."""
    match name:
        case "action":
            raise AuditWriteError(
                "the audit entry's action must be a short name such as 'patient.read': letters, digits and _ . : / -"
            )
        case "outcome":
            raise AuditWriteError(
                "the audit entry's outcome must be a short name such as 'ok': letters, digits and _ . : / -"
            )
        case "actor":
            raise AuditWriteError("the audit entry's actor must be text or None; reveal a Phi first")
        case "actor_kind":
            raise AuditWriteError("the audit entry's actor_kind must be text or None; reveal a Phi first")
        case "subject":
            raise AuditWriteError("the audit entry's subject must be text or None; reveal a Phi first")
        case "resource_type":
            raise AuditWriteError("the audit entry's resource_type must be text or None; reveal a Phi first")
        case "resource_id":
            raise AuditWriteError("the audit entry's resource_id must be text or None; reveal a Phi first")
        case "purpose":
            raise AuditWriteError("the audit entry's purpose must be text or None; reveal a Phi first")
        case "classification":
            raise AuditWriteError("the audit entry's classification must be text or None; reveal a Phi first")
        case "reason":
            raise AuditWriteError("the audit entry's reason must be text or None; reveal a Phi first")
        case _:
            raise AuditWriteError("the audit entry's trace_id, span_id and request_id must be text or None")


def _valid(text: str) -> str:
    """Return `text` as valid Unicode (RFC 7493 §2.1 forbids lone surrogates)."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode()


def _cut(text: str, limit: int) -> str:
    """Return `text`, redacted before so that no identifier is cut in two, in `limit` characters and without half a mark."""
    if len(text) <= limit:
        return text
    end = limit - 1
    start = text.rfind("[", 0, end)
    mark = _MARK.match(text, start)
    return text[: start if mark is not None and mark.end() > end else end] + "…"


def _details(details: object, redactor: Redactor, signal: str) -> str:
    """Return the canonical form of the redacted details; a mark takes the place of what may not be recorded."""
    if details is None:
        return "{}"
    if not isinstance(details, Mapping):
        raise AuditWriteError("the audit entry's details must be a mapping of names to values")
    facts = cast("Mapping[object, object]", details)
    if len(facts) > MAX_DETAILS:
        raise AuditWriteError(f"the audit entry has more than {MAX_DETAILS} details; record a count instead")
    checked: dict[str, str | int | bool] = {}
    counts: dict[str, int] = {}
    for name, value in facts.items():
        if not isinstance(name, str) or not isinstance(value, (str, int)):
            raise AuditWriteError(
                "the audit entry's details take text, whole numbers and booleans under text names"
            )
        if not isinstance(value, str) and not -MAX_INTEGER <= value <= MAX_INTEGER:
            raise AuditWriteError(
                "a whole number in the audit entry's details needs more than 53 bits; pass it as text"
            )
        if isinstance(
            value, Revealed
        ):  # made by `Phi.reveal` alone: of its name, all but the purpose is the code's
            *ours, purpose = name.split(".", 2)
            shown = ".".join((*ours, redactor.text(purpose, signal=signal)))
            counts[shown] = counts.get(shown, 0) + value
            continue
        checked[_apart(_valid(name), checked)] = _valid(value) if isinstance(value, str) else value
    masked = redactor.mapping(checked, signal=signal) if checked else {}
    kept: dict[str, str | int | bool] = {}
    for name, value in masked.items():
        kept[_apart(_cut(name, MAX_TEXT), kept)] = (
            _cut(value, MAX_REASON) if isinstance(value, str) else value
        )
    return canonical(kept | counts)


def _apart(name: str, taken: Container[str]) -> str:
    """Return a name that no other detail has: two can become equal when they are made valid or cut."""
    return Apart().free(name, taken) if name in taken else name
