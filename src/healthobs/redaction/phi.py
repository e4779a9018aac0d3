"""`Phi[T]`: a value that masks itself wherever it is rendered; `PHI`: a mark on a field of a plain class.

A field typed `Phi[str]` cannot reach a log line, a span or an error text by accident: `str`, `repr`,
`format` and f-strings give ``[PHI:<kind>]``; only `reveal(purpose)` gives the value, and says so in the
audit entry of the call (45 CFR 164.502(b), minimum necessary; 164.312(b)).

A dataclass, named tuple or pydantic model with a marked field, ``name: Annotated[str, PHI("name")]``, reaches
telemetry as its fields with the marked ones masked; without any mark such an object is masked whole
(`healthobs.redaction.marks`).

Limits: it is a guard against accidents, not against code that reads private attributes. It is no `str`
subclass on purpose: `"".join`, regular expressions and C code see through those. A mark does not change what
`str` and `repr` of the object show.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any, Generic, NoReturn, TypeVar, cast

from healthobs import _runtime

T = TypeVar("T")

_KIND = re.compile(r"[a-z][a-z_]{0,31}")
_PURPOSE = re.compile(r"[A-Z][A-Z0-9_.-]{0,63}")


def is_purpose(code: object) -> bool:
    """Return whether `code` has the form of a purpose's code, such as ``TREAT``: capitals, digits, ``_``, ``.`` and ``-``.

    Example:
        >>> is_purpose("TREAT"), is_purpose("treatment of John Smith"), is_purpose("Smith")
        (True, False, False)
    """
    return isinstance(code, str) and _PURPOSE.fullmatch(code) is not None


class Revealed(int):
    """How often a kind of value was revealed for a purpose: a count of `Phi`, which an audit entry keeps as it is."""


class Phi(Generic[T]):
    """Wrap `value` so that rendering it gives a mark instead.

    Args:
        value: What to protect; any type.
        kind: What it is, for the mark: lower-case letters and underscores, such as ``name``.

    Raises:
        ValueError: When `kind` is not of that form.

    Example:
        >>> name = Phi("John Smith", "name")
        >>> f"patient {name}"
        'patient [PHI:name]'
        >>> name.reveal("TREAT")
        'John Smith'
    """

    __slots__ = ("__value", "kind")

    def __init__(self, value: T, kind: str = "value") -> None:
        if _KIND.fullmatch(kind) is None:
            raise ValueError("kind names the sort of data in lower-case letters, such as 'name'")
        self.__value = value
        self.kind: str = kind

    def reveal(self, purpose: str) -> T:
        """Return the value, and add kind, purpose and count to the audit entry of the current call.

        Args:
            purpose: Why, as a code such as ``TREAT`` (HL7 v3 PurposeOfUse); never free text.

        Raises:
            ValueError: When `purpose` is not a code.
        """
        if not is_purpose(purpose):
            raise ValueError("purpose is a code such as 'TREAT', not free text")
        draft: Any = _runtime.open_draft()
        if draft is not None:
            name = f"revealed.{self.kind}.{purpose}"
            before = draft.details.get(name)
            draft.details[name] = Revealed(before + 1 if isinstance(before, Revealed) else 1)
        return self.__value

    def __str__(self) -> str:
        return f"[PHI:{self.kind}]"

    __repr__ = __str__

    def __format__(self, format_spec: str) -> str:
        return str(self)

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Phi):
            return NotImplemented
        return bool(self.__value == cast("Phi[object]", other).__value)

    __hash__: None = None  # type: ignore[assignment]  # a hash of the value would be a token of it

    def __copy__(self) -> Phi[T]:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> Phi[T]:
        return self

    def __reduce__(self) -> NoReturn:
        raise TypeError(
            "Phi values are not pickled, because a pickle holds them in the clear; reveal() first"
        )


@dataclasses.dataclass(frozen=True, slots=True)
class PHI:
    """Mark a field as protected health information: ``Annotated[str, PHI("name")]``.

    Args:
        kind: What it is, for the mark: lower-case letters and underscores.

    Raises:
        ValueError: When `kind` is not of that form.

    Example:
        >>> from dataclasses import dataclass
        >>> from typing import Annotated
        >>> from healthobs.redaction import Redactor
        >>> @dataclass
        ... class Visit:
        ...     patient: Annotated[str, PHI("name")]
        ...     beds: int
        >>> Redactor().value("visit", Visit("John Smith", 3))
        {'patient': '[PHI:name]', 'beds': 3}
    """

    kind: str = "value"

    def __post_init__(self) -> None:
        """Check the kind."""
        Phi(None, self.kind)
