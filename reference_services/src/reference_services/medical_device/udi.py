"""GS1 unique device identifiers, in the bracketed and in the raw form. Pure.

21 CFR 830.10 (UDI: device identifier and production identifiers); GS1 General Specifications, sections
on application identifiers (01, 10, 11, 17, 21, 30, 240), on the check digit, on determining the century,
and on day 00. A wrong check digit is reported, not hidden: published identifiers have them too.

Limits: GS1 only; HIBCC and ICCBBA identifiers are told apart and refused. In the bracketed form a value
that itself contains a known identifier in brackets cannot be told from two elements.
"""

from __future__ import annotations

import calendar
import re
from dataclasses import dataclass, field
from datetime import date

GS = "\x1d"
_SYMBOLOGIES = ("]C1", "]d2", "]Q3", "]e0", "]J1")
#: GS1 AI encodable character set 82.
_CSET82 = re.compile(r"[!\"%&'()*+,\-./0-9:;<=>?A-Z_a-z]+")
#: Identifier -> name, pattern of its value, whether its length is fixed (and so needs no separator).
_ELEMENTS = {
    "01": ("device_identifier", re.compile(r"[0-9]{14}"), 14),
    "11": ("manufactured", re.compile(r"[0-9]{6}"), 6),
    "17": ("expiry", re.compile(r"[0-9]{6}"), 6),
    "10": ("lot", re.compile(r".{1,20}"), None),
    "21": ("serial", re.compile(r".{1,20}"), None),
    "30": ("quantity", re.compile(r"[0-9]{1,8}"), None),
    "240": ("additional_id", re.compile(r".{1,30}"), None),
}
_BRACKETED = re.compile(r"\((01|10|11|17|21|30|240)\)")
MAX_LENGTH = 200


class UdiError(ValueError):
    """A text is no GS1 identifier; carries a code, never the text."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


@dataclass(frozen=True, slots=True)
class Issue:
    """What is wrong with an identifier that can be read all the same."""

    code: str
    expected: str
    found: str


@dataclass(frozen=True, slots=True)
class Udi:
    """A parsed identifier; what it does not carry is None."""

    device_identifier: str
    lot: str | None = None
    serial: str | None = None
    manufactured: date | None = None
    expiry: date | None = None
    quantity: int | None = None
    additional_id: str | None = None
    issues: tuple[Issue, ...] = field(default=())


def check_digit(digits: str) -> str:
    """Return the GS1 check digit for the digits before it (modulo 10, weights 3 and 1 from the right).

    Example:
        >>> check_digit("0084458800328")
        '8'
    """
    total = sum(int(digit) * (3 if index % 2 == 0 else 1) for index, digit in enumerate(reversed(digits)))
    return str(-total % 10)


def issuer_of(text: str) -> str:
    """Return which agency's form a text has: gs1, hibcc, iccbba or unknown."""
    if text.startswith("+"):
        return "hibcc"
    if text.startswith(("=", "&")):
        return "iccbba"
    return "gs1" if text.startswith(("(", GS, "]")) or text[:2].isdecimal() else "unknown"


def parse(text: str, *, year: int) -> Udi:
    """Read a GS1 identifier.

    Args:
        text: ``(01)…(17)…`` or the characters of the barcode with GS (U+001D) after each element of
            variable length but the last; a symbology identifier or FNC1 before it is skipped.
        year: The current year, which decides the century of two-digit years.

    Returns:
        The elements, with a wrong check digit as an issue.

    Raises:
        UdiError: It cannot be read.

    Example:
        >>> parse("(01)00844588003288(17)290200(21)SN1", year=2026).expiry
        datetime.date(2029, 2, 28)
    """
    if not text or len(text) > MAX_LENGTH:
        raise UdiError("length")
    if issuer_of(text) != "gs1":
        raise UdiError("issuer_not_supported")
    elements = _bracketed(text) if text.startswith("(") else _raw(text)
    if "01" not in elements:
        raise UdiError("device_identifier_missing")
    values: dict[str, object] = {}
    for identifier, value in elements.items():
        name, pattern, _length = _ELEMENTS[identifier]
        if not pattern.fullmatch(value) or not _CSET82.fullmatch(value):
            raise UdiError("element_malformed")
        values[name] = (
            _date(value, year) if identifier in ("11", "17") else int(value) if identifier == "30" else value
        )
    device_identifier = elements["01"]
    expected, found = check_digit(device_identifier[:-1]), device_identifier[-1]
    issues = () if expected == found else (Issue("check_digit", expected, found),)
    return Udi(**values, issues=issues)  # type: ignore[arg-type]


def _bracketed(text: str) -> dict[str, str]:
    parts = _BRACKETED.split(text)
    if parts[0]:
        raise UdiError("element_unknown")
    return _unique(zip(parts[1::2], parts[2::2], strict=True))


def _raw(text: str) -> dict[str, str]:
    rest = text[3:] if text.startswith(_SYMBOLOGIES) else text
    rest = rest.removeprefix(GS)
    pairs: list[tuple[str, str]] = []
    while rest:
        identifier = next((known for known in _ELEMENTS if rest.startswith(known)), None)
        if identifier is None:
            raise UdiError("element_unknown")
        rest = rest[len(identifier) :]
        length = _ELEMENTS[identifier][2]
        if length is None:
            value, _, rest = rest.partition(GS)
        else:
            value, rest = rest[:length], rest[length:].removeprefix(GS)
        pairs.append((identifier, value))
    return _unique(pairs)


def _unique(pairs: object) -> dict[str, str]:
    elements: dict[str, str] = {}
    for identifier, value in pairs:  # type: ignore[attr-defined]
        if identifier in elements:
            raise UdiError("element_repeated")
        elements[identifier] = value
    return elements


def _date(text: str, year: int) -> date:
    """Read YYMMDD; the year is the one from 49 before to 50 after the current year."""
    full = year // 100 * 100 + int(text[:2])
    if full - year >= 51:
        full -= 100
    elif full - year <= -50:
        full += 100
    month, day = int(text[2:4]), int(text[4:])
    try:
        return date(full, month, day or calendar.monthrange(full, month)[1])
    except (ValueError, calendar.IllegalMonthError):
        raise UdiError("date_invalid") from None
