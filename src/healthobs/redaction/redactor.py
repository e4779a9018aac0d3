"""The redactor: masks a value by its type, then its key, then its content."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Callable, Iterable, Mapping
from datetime import date, time, timedelta
from decimal import Decimal
from enum import Enum
from typing import Any, Literal, cast
from uuid import UUID

from healthobs.redaction.apart import Apart
from healthobs.redaction.keys import ALLOWED, LABELS, WORDS, Action, classify
from healthobs.redaction.literals import Literals
from healthobs.redaction.marks import marked_fields
from healthobs.redaction.phi import Phi

_MAX_DEPTH = 4
#: Items of one mapping or record that are looked at; a mark stands for the rest.
MAX_ITEMS = 1000
_MAX_KEYS = 2048
_MAX_KEY_LENGTH = 128
_MAX_TEMPLATES = 4096
#: Numbers with as many digits as a date or an SSN are scanned as text.
_LONG_NUMBER = 10_000_000
#: Names of levels, as set-ups write them.
_LEVELS = ("debug", "info", "warning", "warn", "error", "exception", "critical", "fatal", "notset")
#: Not `cast`, because each attribute of each span passes here.
_type_of: Callable[[object], type[object]] = type
_SCALARS = (str, int, float, bool)
#: Numbers that can be an age; in a longer one nothing is lost by masking.
_AGES = re.compile(r"\d{1,9}")
_AGE_OF_90 = 90 * 365 * 86_400.0  #: 90 years, in seconds.
_UUID = re.compile("[0-9a-fA-F]{8}(?:-[0-9a-fA-F]{4}){3}-[0-9a-fA-F]{12}")


class Redactor:
    """Mask what identifies a person.

    Args:
        mode: ``watch`` counts what ``mask`` would change and changes nothing; ``mask`` scans text under unknown
            keys; ``strict`` replaces it, and names that are not written in the code.
        allowed_keys: Exact key names whose primitive values pass, besides the semantic conventions; in ``strict``
            also names of spans, events and log lines that pass.
        on_redaction: Called with signal and kind for each mark made; its faults are swallowed.

    Example:
        >>> redactor = Redactor()
        >>> redactor.mapping({"patient_name": "John Smith", "note_count": 3, "step": "call 212-555-0123"})
        {'patient_name': '[PHI:key]', 'note_count': 3, 'step': 'call [PHI:phone]'}
    """

    def __init__(
        self,
        mode: Literal["watch", "mask", "strict"] = "mask",
        *,
        allowed_keys: Iterable[str] = (),
        on_redaction: Callable[[str, str], None] | None = None,
    ) -> None:
        from healthobs.redaction.scan import scan  # keeps its patterns out of `import healthobs`

        self._scan = scan
        self.mode: Literal["watch", "mask", "strict"] = mode
        self._strict = mode == "strict"
        self._watch = mode == "watch"
        self._allowed = frozenset(allowed_keys)
        self._literals = Literals(
            (*self._allowed, *ALLOWED, *WORDS, *_LEVELS, *map(str.upper, _LEVELS), *_MARKS)
        )
        self._on_redaction = on_redaction
        self._actions: dict[str, Action] = {}
        self._templates: set[str] = set()

    def value(self, key: str, value: object, *, signal: str = "log") -> Any:
        """Return `value` as it may leave under `key`: JSON-safe, and the same object when nothing changed.

        Args:
            key: Name of the attribute, field or label.
            value: Anything.
            signal: ``log``, ``trace``, ``metric`` or ``audit``, for the counter.

        Returns:
            A primitive, None, a list or a dict; a mark where the value may not leave.
        """
        kind = type(value)
        if self._actions.get(key) is Action.ALLOW and (kind is str or kind is int or kind is bool):
            return value
        try:
            redacted = _Walk(self, signal).value(key, value, _MAX_DEPTH)
        except Exception:  # noqa: BLE001  # fail closed: no fault may let the value through
            redacted = self._mark(signal, "error")
        return value if self._watch else redacted

    def text(self, text: str, *, signal: str = "log") -> str:
        """Return free `text` with every identifier replaced; the same object when there was none, and it is no subclass of `str`.

        Example:
            >>> Redactor().text("seen on 2024-03-01 by a@b.org")
            'seen on [PHI:date] by [PHI:email]'
        """
        try:
            plain = str.__str__(text)
            redacted, kinds = self._scan(plain)
            for kind in kinds:
                self._count(signal, kind)
        except Exception:  # noqa: BLE001  # fail closed
            plain = redacted = self._mark(signal, "error")
            kinds = ()
        return text if self._watch else redacted if kinds else plain

    def name(self, text: str, *, signal: str = "log") -> str:
        """Return the name of a span, an event or a log line as it may leave.

        Like `text`; in ``strict`` a name that is not written in the code is replaced (`healthobs.redaction.literals`).
        """
        if self._strict:
            plain = text if type(text) is str else self.text(text, signal="")  # not what it takes itself for
            if not self.is_written(plain):
                return self.drop(text, signal=signal)
        return self.text(text, signal=signal)

    def drop(self, text: str, *, signal: str) -> str:
        """Return the mark of `strict`; what patterns find in `text` is counted all the same."""
        self.text(text, signal=signal)
        return self._mark(signal, "strict")

    def is_written(self, text: str) -> bool:
        """Return whether `text` is known to be written in the code."""
        return self._literals.has(text)

    def note(self, fields: Mapping[str, object]) -> None:
        """Learn, in ``strict``, what of `fields` is written in the code of the functions that are running.

        That are their names, and values under bare words such as `status`.
        """
        if not self._strict:
            return
        self._literals.note(fields)
        if not WORDS.isdisjoint(fields):
            values = (fields[word] for word in WORDS.intersection(fields))
            self._literals.note([value for value in values if type(value) is str])

    def written(self, text: str) -> str:
        """Remember that `text` is written in the code, and return it as it may leave."""
        self._literals.add(text)
        return self.text(text, signal="")

    def template(self, route: str) -> None:
        """Remember `route` as a path template of the code: `/patients/<mrn>/icd10` names no record number."""
        if len(self._templates) < _MAX_TEMPLATES:
            self._templates.add(route)

    def is_template(self, route: object) -> bool:
        """Return whether `route` is known to be a path template of the code."""
        return route in self._templates

    def label(self, name: str, value: str, *, declared: bool = False) -> str:
        """Return the value of a metric's label as it may leave.

        Args:
            name: Name of the label.
            value: Its value.
            declared: Whether the value was declared beforehand (`Instrument.seed`).
        """
        if name == "http_route" and value in self._templates:
            return value
        if name in LABELS or declared or (self.action(name) is Action.SCAN and self.is_written(value)):
            return self.text(value, signal="metric")
        return str(self.value(name, value, signal="metric"))

    def mapping(self, fields: Mapping[str, object], *, signal: str = "log") -> dict[str, Any]:
        """Return the redacted copy of `fields`, nested values to depth 4; keys are scanned too."""
        try:
            redacted = _Walk(self, signal).mapping(fields, _MAX_DEPTH)
        except Exception:  # noqa: BLE001  # fail closed
            redacted = {"redaction": self._mark(signal, "error")}
        return {str(key): value for key, value in fields.items()} if self._watch else redacted

    def changed(self, attributes: Mapping[str, Any], *, signal: str = "trace") -> dict[str, Any] | None:
        """Return the redacted copy of `attributes`, or None when every one of them may leave as it is.

        Telemetry whose keys are all allow-listed costs one look-up per attribute here.
        """
        actions, strict = self._actions, self._strict
        doubtful: list[str] = []
        for key, value in attributes.items():
            # Only keys that were scanned clean are remembered, so a known action vouches for the key itself.
            action = actions.get(key)
            kind = _type_of(value)
            if action is Action.ALLOW and kind in _SCALARS:
                continue
            if (
                action is Action.SCAN
                and (not strict or self._literals.knows(key))
                and (
                    (kind is str and not strict and not self._scan(value)[1])
                    or kind is bool
                    or (kind is int and -_LONG_NUMBER < value < _LONG_NUMBER)
                )
            ):
                continue
            doubtful.append(key)
        return self._doubtful(doubtful, attributes, signal) if doubtful else None

    def _doubtful(self, keys: list[str], attributes: Mapping[str, Any], signal: str) -> dict[str, Any] | None:
        """Decide on the values that `changed` could not let pass at a glance."""
        unknown = keys if self._strict else [key for key in keys if key not in self._actions]
        # In strict each look at the stack costs: `mapping` looks once at each key.
        looks = self._strict and not all(map(self._literals.knows, keys))
        if self._watch or looks or any(self.key(key, signal="") != key for key in unknown):
            redacted = self.mapping(attributes, signal=signal)
            return None if self._watch else redacted
        new = {key: self.value(key, attributes[key], signal=signal) for key in keys}
        return {**attributes, **new} if any(new[key] is not attributes[key] for key in keys) else None

    def key(self, key: object, *, signal: str = "log") -> str:
        """Return `key` as it may leave: scanned like text, and masked when it is no short plain name.

        In ``strict`` it must be allow-listed or written in the code, like any name.
        """
        if type(key) is not str:
            if isinstance(key, str):
                key = str.__str__(key)
            elif type(key) in _SCALARS:
                key = str(key)
            else:
                return self._mark(signal, "key")
        if self._strict and not self.is_written(key):
            return self.drop(key, signal=signal)
        if key in self._actions:  # only keys that were scanned clean are remembered
            return key
        clean = self.text(key, signal=signal)
        return clean if len(clean) <= _MAX_KEY_LENGTH else self._mark(signal, "key")

    def action(self, key: str) -> Action:
        """Return what happens to values under `key`."""
        known = self._actions.get(key)
        if known is not None:
            return known
        action = classify(key, self._allowed)
        if len(key) <= _MAX_KEY_LENGTH and self._scan(key)[0] is key:
            if len(self._actions) >= _MAX_KEYS:
                self._actions.clear()  # keys made of data must not grow the memory
            self._actions[key] = action
        return action

    def allows(self, key: str) -> bool:
        """Return whether the settings let values under `key` pass, besides what is allowed everywhere."""
        return key in self._allowed

    def uncounted(self) -> Redactor:
        """Return one that decides alike and counts nothing, for samples of one's own."""
        return Redactor(self.mode, allowed_keys=self._allowed)

    @property
    def strict(self) -> bool:
        """Whether unknown text is replaced rather than scanned."""
        return self._strict

    def _mark(self, signal: str, kind: str) -> str:
        self._count(signal, kind)
        return f"[PHI:{kind}]"

    def _count(self, signal: str, kind: str) -> None:
        if self._on_redaction is None or not signal:
            return
        # A broken counter must break neither the caller nor the redaction
        with contextlib.suppress(Exception):
            self._on_redaction(signal, kind)


class _Walk:
    """One pass over one value or mapping, with a budget of items, so that nesting cannot multiply the work."""

    __slots__ = ("_left", "_redactor", "_signal")

    def __init__(self, redactor: Redactor, signal: str) -> None:
        self._redactor = redactor
        self._signal = signal
        self._left = MAX_ITEMS

    def value(self, key: str, value: object, depth: int) -> Any:
        kind = type(value)
        action = self._redactor.action(key)
        if action is Action.ALLOW and (kind is str or kind is int or kind is bool):
            return value
        if isinstance(value, Phi):
            return self._mark(cast("Phi[object]", value).kind)
        if value is None:
            return None
        if action is Action.DENY or (
            action is Action.MEASURE and not isinstance(value, (bool, int, float, Decimal, timedelta))
        ):
            return value if type(value) is str and value in _MARKS else self._mark("key")
        if isinstance(value, str):
            return self._string(key, value, action)
        if isinstance(value, (bool, int, float, Decimal)):
            return self._number(value, action)
        return self._other(key, value, depth)

    def mapping(self, fields: Mapping[Any, object], depth: int, above: str | None = None) -> dict[str, Any]:
        result: dict[str, Any] = {}
        apart = Apart()
        for key, value in fields.items():
            self._left -= 1
            if self._left < 0:
                result["redaction"] = self._mark("length")
                break
            name = self._redactor.key(key, signal=self._signal)
            unique = apart.free(name, result)
            if name != key and "[PHI:" in name:
                # A key made of an identifier makes its value one about that person.
                result[unique] = self._mark("key")
                continue
            try:
                asked = name if above is None else self._asked(above, name)
                result[unique] = self.value(asked, value, depth)
            except Exception:  # noqa: BLE001  # one bad value must not cost the others
                result[unique] = self._mark("error")
        return result

    def _asked(self, above: str, name: str) -> str:
        """Return under which key a nested value is judged: an `id` in a `member` is what `member.id` is."""
        action = self._redactor.action
        if action(name) is not Action.SCAN:
            return name
        if action(above) is Action.AGE:
            return above
        both = f"{above.removesuffix('s')}.{name}"  # one of several `members` is a member
        return both if action(both) in (Action.DENY, Action.MEASURE) else name

    def _string(self, key: str, value: str, action: Action) -> Any:
        plain = value if type(value) is str else str.__str__(value)
        if action is Action.ALLOW or not plain:
            return plain
        if self._redactor.strict and _UUID.fullmatch(plain) is None:  # a UUID is a surrogate, no text
            if key in WORDS and self._redactor.is_written(plain):
                return self._redactor.text(plain, signal=self._signal)
            return plain if plain in _MARKS else self._redactor.drop(plain, signal=self._signal)
        if action is Action.AGE and any(int(digits) > 89 for digits in _AGES.findall(plain)):
            return self._mark("age")
        return self._redactor.text(plain, signal=self._signal)

    def _number(self, value: float | Decimal, action: Action) -> Any:
        if isinstance(value, bool):
            return value
        if isinstance(value, Decimal):
            exact = Decimal(value)
            if action is Action.AGE and exact > 89:
                return self._mark("age")
            return self._redactor.text(str(exact), signal=self._signal)
        if type(value) is not int and type(value) is not float:  # a subclass may say what it likes of itself
            value = int.__add__(value, 0) if isinstance(value, int) else float.__float__(value)
        if action is not Action.ALLOW and abs(value) < math.inf:
            if action is Action.AGE and value > 89:
                return self._mark("age")
            if abs(value) >= _LONG_NUMBER and value == int(value):
                digits = str(abs(int(value)))
                if len(digits) > 40:
                    return self._mark("number")
                scanned = self._redactor.text(digits, signal=self._signal)
                if scanned is not digits:
                    return scanned
        # JSON has no NaN and no infinity (RFC 8259 §6); these are the words of protobuf's JSON mapping.
        if isinstance(value, int) or math.isfinite(value):
            return value
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"

    def _other(self, key: str, value: object, depth: int) -> Any:
        if isinstance(value, Enum):
            return self.value(key, value.value, depth - 1) if depth else self._mark("type")
        if isinstance(value, UUID):
            return self._string(key, str(value), self._redactor.action(key))
        if isinstance(value, (date, time)):
            return self._mark("date")
        if isinstance(value, timedelta):
            seconds = timedelta.total_seconds(value)
            if seconds > _AGE_OF_90 and self._redactor.action(key) is Action.AGE:
                return self._mark("age")
            return seconds
        if depth > 0:
            marked = marked_fields(value)
            if marked is not None:
                return self._nested(key, cast("Mapping[object, object]", marked), depth - 1)
            if not _is_named(type(value)) and isinstance(value, (list, tuple)):
                return self._sequence(key, cast("list[object] | tuple[object, ...]", value), depth - 1)
            if isinstance(value, (set, frozenset)):
                items = self._sequence(key, list(cast("set[object]", value)), depth - 1)
                return sorted(items, key=str)
            if isinstance(value, Mapping):
                return self._nested(key, cast("Mapping[object, object]", value), depth - 1)
        return self._mark("type")

    def _nested(self, key: str, value: Mapping[object, object], depth: int) -> Any:
        action = self._redactor.action(key)
        if self._redactor.strict and action is not Action.ALLOW:
            return self._mark("strict")
        return self.mapping(value, depth, None if action is Action.ALLOW else key)

    def _sequence(self, key: str, items: list[object] | tuple[object, ...], depth: int) -> Any:
        result: list[Any] = []
        for item in items:
            self._left -= 1
            if self._left < 0:
                result.append(self._mark("length"))
                break
            result.append(self.value(key, item, depth))
        same = type(items) in (list, tuple) and len(result) == len(items)
        if same and all(new is old for new, old in zip(result, items, strict=True)):
            return items
        return result

    def _mark(self, kind: str) -> str:
        return self._redactor._mark(self._signal, kind)  # pyright: ignore[reportPrivateUsage]


def _is_named(kind: type[object]) -> bool:
    """Return whether this is a class of named tuples, Python's own such as `time.struct_time` included: objects, no sequences."""
    return hasattr(kind, "_fields") or hasattr(kind, "n_fields")


_KINDS = (
    "age card date dea email error iban id ip key length mac mbi npi number phone secret ssn strict type udi url "
    "value vin"
)
#: Marks that a second pass leaves alone; a closed list, because a name in this form is still a name.
_MARKS = frozenset(f"[PHI:{kind}]" for kind in _KINDS.split())
