"""Numbers in text that identify somebody, told by the lengths of their digit groups.

A run of digits and separators is cut into groups; the tuple of group lengths looks up which check applies
(``(3, 2, 4)`` is a social security number), and the check decides. A run costs its groups times at most
`_WIDEST` look-ups, so hostile text costs no more than its length.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from itertools import pairwise, product

from healthobs.redaction.identifiers import (
    is_card,
    is_compact_date,
    is_date,
    is_month_and_day,
    is_nanp,
    is_npi,
    is_ssn,
)

# Group and separator classes exclude each other, so there is one way to match a run.
_RUN = re.compile(r"[0-9]+(?:[ .\-/()]{1,3}[0-9]+)*")
_GROUP = re.compile(r"[0-9]+")
_TIME = re.compile(r"[t ][0-9]{2}:?[0-9]{2}(?::?[0-9]{2}(?:[.,][0-9]{1,9})?)?(?:z|[+-][0-9]{2}:?[0-9]{2})?")
#: Signs that forms, tables and encodings put between the groups of a number.
_RARE = r"(?:\r\n|[\t\n\r_\u00b7\u2022:|~])"
_RARE_SSN = re.compile(
    rf"[0-9]{{3}}(?P<sign>{_RARE})[0-9]{{2}}(?P=sign)[0-9]{{4}}(?![0-9a-z]|(?P=sign)[0-9])"
)
_CARD_SIGN = rf"(?:{_RARE}|[ .-])"
_RARE_CARD = re.compile(
    rf"(?<![0-9a-z])(?=(?P<card>[0-9]{{4}}(?:(?:{_CARD_SIGN}[0-9]{{4}}){{3}}|{_CARD_SIGN}[0-9]{{6}}{_CARD_SIGN}[0-9]{{5}})(?![0-9a-z])))"
)
_IS_RARE = re.compile(rf"[0-9]{_RARE}[0-9]")
#: `13.02.50`: with one digit, after a `v` or with more behind it, it is a version.
_DOTTED_DATE = re.compile(
    r"(?<![0-9a-z./_-])(?<!\bv )(?<!version )(?:0[1-9]|[12][0-9]|3[01])\.(?:0[1-9]|1[0-2])\.[0-9]{2}"
    r"(?![0-9a-z]|[._-][0-9a-z])"
)
#: `LOINC 1975-2` is bilirubin, no month.
_LOINC = re.compile(r"loinc[ :=#]{1,2}[0-9]{4}-[0-9]\Z")
_WIDEST = 5
_SHORTEST_RUN = 6
_IPV6_LENGTH = 45  # 8 groups of 4 with an embedded IPv4 address

#: Takes the digit groups and the separators between them; returns the kind or None.
Check = Callable[[list[str], list[str]], str | None]


def _ssn(_groups: list[str], _separators: list[str]) -> str | None:
    return "ssn"


def _phone(_groups: list[str], _separators: list[str]) -> str | None:
    return "phone"


def _long_distance(groups: list[str], _separators: list[str]) -> str | None:
    return "phone" if groups[0] == "1" else None


def _local_phone(groups: list[str], separators: list[str]) -> str | None:
    return "phone" if separators == ["-"] and groups[0][0] > "1" else None


def _exchange_and_line(groups: list[str], separators: list[str]) -> str | None:
    return "phone" if separators[0] in "-)" and is_nanp("".join(groups)) else None


def _card(groups: list[str], _separators: list[str]) -> str | None:
    return "card" if is_card("".join(groups)) else None


def _year_first(groups: list[str], separators: list[str]) -> str | None:
    one_separator = separators[0] == separators[1] and separators[0] in "-/."
    return "date" if one_separator and is_date(groups[0], groups[1], groups[2]) else None


def _year_last(groups: list[str], separators: list[str]) -> str | None:
    if separators[0] != separators[1] or separators[0] not in "-/.":
        return None
    plausible = is_month_and_day(groups[0], groups[1]) and is_date(groups[2], "1", "1")
    return "date" if plausible else None


def _short_year(groups: list[str], separators: list[str]) -> str | None:
    if separators[0] != separators[1] or separators[0] not in "-/":
        return None
    american = is_month_and_day(groups[0], groups[1])
    return "date" if american or is_month_and_day(groups[1], groups[2]) else None


def _month_and_year(groups: list[str], separators: list[str]) -> str | None:
    year, month = (groups[0], groups[1]) if len(groups[0]) == 4 else (groups[1], groups[0])
    return "date" if separators[0] in "-/" and is_date(year, month, "1") else None


def _ipv4(groups: list[str], separators: list[str]) -> str | None:
    dotted = all(separator == "." for separator in separators)
    if groups[1:] == ["0", "0", "0"]:
        return None  # a version (`Chrome/120.0.0.0`), no host
    return "ip" if dotted and all(int(group) < 256 for group in groups) else None


_SHAPES: dict[tuple[int, ...], Check] = {
    **dict.fromkeys(product((1, 2, 3), repeat=4), _ipv4),
    (3, 2, 4): _ssn,
    (3, 3, 4): _phone,
    (1, 3, 3, 4): _long_distance,
    (3, 4): _local_phone,
    (3, 7): _exchange_and_line,
    **dict.fromkeys([(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 5), (4, 4, 4, 4, 3), (6, 10), (8, 8)], _card),
    **dict.fromkeys([(4, 2, 2), (4, 1, 2), (4, 2, 1), (4, 1, 1)], _year_first),
    **dict.fromkeys([(2, 2, 4), (1, 2, 4), (2, 1, 4), (1, 1, 4)], _year_last),
    **dict.fromkeys([(2, 2, 2), (1, 2, 2), (2, 1, 2), (1, 1, 2)], _short_year),
    **dict.fromkeys([(4, 2), (4, 1), (2, 4), (1, 4)], _month_and_year),
}


#: Numbers of the United Kingdom and of France as they are dialled inside the country.
_NATIONAL = frozenset(((3, 4, 4), (4, 3, 4), (5, 6), (5, 3, 3), (2, 2, 2, 2, 2)))


def is_ipv6(text: str) -> bool:
    """Return whether `text` is an IPv6 address; ``a::b`` without any digit is rather a name in code."""
    if not 3 <= len(text) <= _IPV6_LENGTH or text.count(":") < 2:
        return False
    if _GROUP.search(text) is None:
        return False
    try:
        ipaddress.IPv6Address(text)
    except ValueError:
        return False
    return True


def find_numbers(shadow: str, found: list[tuple[int, int, str]]) -> None:
    """Add each identifying number in `shadow` to `found` as (start, end, kind)."""
    for match in _RUN.finditer(shadow):
        start, end = match.span()
        if end - start < _SHORTEST_RUN:
            continue
        run = match.group()
        if run.isdigit():
            _add(shadow, start, end, _bare(shadow, start, end), found)
        else:
            _grouped(shadow, start, run, found)
    if shadow.count(".") > 1:
        found += [(*match.span(), "date") for match in _DOTTED_DATE.finditer(shadow)]


def find_cut_numbers(shadow: str, found: list[tuple[int, int, str]]) -> None:
    """Add social security and card numbers whose groups stand between signs that are no separator elsewhere."""
    if _IS_RARE.search(shadow) is None:
        return
    for match in _RARE_SSN.finditer(shadow):
        start, sign = match.start(), match["sign"]
        lead = shadow[max(start - len(sign) - 1, 0) : start]
        in_row = lead[:1].isdigit() and lead[1:] == sign
        if not lead[-1:].isalnum() and not in_row and is_ssn("".join(_GROUP.findall(match.group()))):
            found.append((*match.span(), "ssn"))
    found += [
        (*match.span("card"), "card")
        for match in _RARE_CARD.finditer(shadow)
        if is_card("".join(_GROUP.findall(match["card"])))
    ]


def _grouped(shadow: str, offset: int, run: str, found: list[tuple[int, int, str]]) -> None:
    spans = [(match.start() + offset, match.end() + offset) for match in _GROUP.finditer(run)]
    _international(shadow, spans, found)
    if run[0] == "0" and not shadow[offset - 1 : offset].isalnum():
        _dialled(shadow, spans, found)
    # Every window is looked at, also inside a hit: in `2-2024-01-02` the month and year found first must not
    # hide the date. Overlapping findings are replaced as one.
    for first, (start, end) in enumerate(spans):
        _add(shadow, start, end, _bare(shadow, start, end), found)
        for stop in range(first + 2, min(first + _WIDEST, len(spans)) + 1):
            _add(shadow, start, spans[stop - 1][1], _window(shadow, spans[first:stop]), found)


def _window(shadow: str, window: list[tuple[int, int]]) -> str | None:
    check = _SHAPES.get(tuple(end - start for start, end in window))
    if check is None:
        return None
    groups = [shadow[start:end] for start, end in window]
    separators = [shadow[left[1] : right[0]].strip() or " " for left, right in pairwise(window)]
    return check(groups, separators)


def _international(shadow: str, spans: list[tuple[int, int]], found: list[tuple[int, int, str]]) -> None:
    """Find a number written with a country code (ITU-T E.164, 8 to 15 digits)."""
    if shadow[spans[0][0] - 1 : spans[0][0]] != "+":
        return
    digits = 0
    taken = 0
    for start, end in spans:
        if digits + end - start > 15:
            break
        digits += end - start
        taken += 1
    if digits >= 8:
        found.append((spans[0][0] - 1, spans[taken - 1][1], "phone"))


def _dialled(shadow: str, spans: list[tuple[int, int]], found: list[tuple[int, int, str]]) -> None:
    """Find a whole run that is a telephone number with one zero or two before it."""
    groups = [shadow[start:end] for start, end in spans]
    separators = {shadow[left[1] : right[0]] for left, right in pairwise(spans)}
    if groups[0].startswith("00"):
        abroad = (
            3 <= len(groups[0]) <= 5 and groups[0][2] != "0" and not any("." in each for each in separators)
        )
        wanted = abroad and 10 <= sum(map(len, groups)) <= 17
    else:
        # `01 02 03` is a count.
        counted = all(int(right) - int(left) == 1 for left, right in pairwise(groups))
        wanted = tuple(map(len, groups)) in _NATIONAL and len(separators) == 1 and not counted
    if wanted:
        found.append((spans[0][0], spans[-1][1], "phone"))


def _bare(shadow: str, start: int, end: int) -> str | None:
    """Classify an undelimited number; part of a decimal fraction or of a mixed token is none."""
    digits = shadow[start:end]
    length = end - start
    if length >= 13:
        return _long_number(digits)
    if length < 8 or not _stands_alone(shadow, start, end):
        return None
    return _short_number(digits, shadow[start - 1 : start] == "+")


def _long_number(digits: str) -> str | None:
    if len(digits) > 19:
        return "number"
    return "card" if is_card(digits) else None


def _short_number(digits: str, after_plus: bool) -> str | None:
    length = len(digits)
    if after_plus or (length == 11 and digits[0] == "1" and is_nanp(digits[1:])):
        return "phone"
    if length == 8:
        return "date" if is_compact_date(digits) else None
    if length == 9:
        return "ssn" if is_ssn(digits) else None
    if length == 10:
        return "npi" if is_npi(digits) else "phone" if is_nanp(digits) else None
    return None


def _stands_alone(shadow: str, start: int, end: int) -> bool:
    before, after = shadow[max(start - 2, 0) : start], shadow[end : end + 2]
    if before[-1:].isalpha() or (before[-1:] == "." and before[:1].isdigit()):
        return False
    if after[:1] == "t" and after[1:].isdigit():
        return True  # 20250102T103000Z
    return not after[:1].isalpha() and not (after[:1] == "." and after[1:].isdigit())


def _add(shadow: str, start: int, end: int, kind: str | None, found: list[tuple[int, int, str]]) -> None:
    if kind is None:
        return
    if kind == "phone" and start and shadow[start - 1] in "(+":
        start -= 1
    if kind == "date":
        if _LOINC.search(shadow, max(start - 7, 0), end) is not None:
            return
        time = _TIME.match(shadow, end)
        end = end if time is None else time.end()
    found.append((start, end, kind))
