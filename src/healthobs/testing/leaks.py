"""Leak assertions: planted values in no form anywhere, and runs that differ only in patients' data look alike.

`assert_no_phi` looks for what a test planted; `assert_indistinguishable` needs no list of what could leak: if the
same requests about other patients leave other bytes, something about the patients is in them (non-interference,
Goguen and Meseguer 1982).

Limits: compressed and encrypted bytes are not opened, except that the cells of an SQLite file are read besides
its raw bytes (a long cell is stored in pieces). A value of fewer than `SHORTEST` characters is refused: it would
be found by chance.
"""

from __future__ import annotations

import base64
import json
import re
import sqlite3
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing
from functools import cache
from pathlib import Path
from urllib.parse import quote, quote_plus

from healthobs.files import read_raw

SHORTEST = 6
_SQLITE = b"SQLite format 3\0"
_SEPARATED_DIGITS = 7
#: What may stand between the digits of a number that is written in groups.
_BETWEEN = rb"[^0-9A-Za-z]{0,3}"


def assert_no_phi(needles: Mapping[str, str], *places: Path | str | bytes) -> None:
    """Assert that no planted value can be read anywhere, in any of the forms in which values get about.

    Looked for are: the text itself, in any case, in UTF-8 and UTF-16, with JSON escapes; Base64 (both alphabets)
    at all three offsets; hexadecimal; percent-encoding; and a number's digits, whatever separates them.

    Args:
        needles: Planted value by a name to report it under; at least six characters each.
        *places: A file, a folder with all files below it, text, or bytes.

    Raises:
        AssertionError: With each place, name and form; never the value.
        ValueError: There is nothing to look for, or nowhere: an assertion that cannot fail.

    Example:
        >>> assert_no_phi({"ssn": "078-05-1120"}, "patient [PHI:ssn] was seen")
        >>> assert_no_phi({"ssn": "078-05-1120"}, "seen 078051120")
        Traceback (most recent call last):
        AssertionError: planted values can be read: ssn as digits in text 1
    """
    if not needles or not places:
        raise ValueError("name at least one planted value and one place: nothing was looked for")
    forms = {name: _forms(value) for name, value in needles.items()}
    found: list[str] = []
    for where, content in _contents(places):
        for name, patterns in forms.items():
            found += [f"{name} as {form} in {where}" for form, pattern in patterns if pattern.search(content)]
    if found:
        raise AssertionError(f"planted values can be read: {'; '.join(dict.fromkeys(found))}")


@cache
def _forms(value: str) -> tuple[tuple[str, re.Pattern[bytes]], ...]:
    """Return a pattern for each form of `value`."""
    if len(value) < SHORTEST:
        raise ValueError(f"a planted value needs at least {SHORTEST} characters, or it is found by chance")
    plain = value.encode()
    forms = {
        "plain": _either(plain, value.encode("utf-16-le"), json.dumps(value)[1:-1].encode(), anycase=True),
        "hex": _either(plain.hex().encode(), anycase=True),
        "base64": _either(*_base64(plain)),
        "percent-encoding": _either(
            quote(value, safe="").encode(), quote_plus(value).encode(), _percent(plain), anycase=True
        ),
    }
    digits = "".join(char for char in value if char.isdecimal())
    if len(digits) >= _SEPARATED_DIGITS and not any(char.isalpha() for char in value):
        forms["digits"] = re.compile(_BETWEEN.join(digits.encode()[at : at + 1] for at in range(len(digits))))
    return tuple(forms.items())


def _either(*literals: bytes, anycase: bool = False) -> re.Pattern[bytes]:
    return re.compile(b"|".join(map(re.escape, dict.fromkeys(literals))), re.IGNORECASE if anycase else 0)


def _percent(plain: bytes) -> bytes:
    return b"".join(b"%%%02X" % byte for byte in plain)


def _base64(plain: bytes) -> Iterator[bytes]:
    """Yield what is the same of `plain` in Base64 whatever stands before and after it, for each offset."""
    for offset in range(3):
        whole = base64.b64encode(bytes(offset) + plain)
        first, last = -(-offset * 8 // 6), (offset + len(plain)) * 8 // 6
        yield whole[first:last]
        yield whole[first:last].translate(bytes.maketrans(b"+/", b"-_"))


def _contents(places: Iterable[Path | str | bytes]) -> Iterator[tuple[str, bytes]]:
    """Yield a name and the bytes of each place."""
    for number, place in enumerate(places, 1):
        if isinstance(place, Path):
            files = sorted(path for path in place.rglob("*") if path.is_file()) if place.is_dir() else [place]
            if not files:
                raise ValueError(f"there is no file in {place.name}: nothing was looked through")
            for file in files:
                yield from _file(file)
        else:
            yield (
                f"text {number}",
                place.encode("utf-8", "surrogatepass") if isinstance(place, str) else place,
            )


def _file(path: Path) -> Iterator[tuple[str, bytes]]:
    content = read_raw(path)
    yield path.name, content
    if content.startswith(_SQLITE):
        with closing(sqlite3.connect(f"{path.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            connection.text_factory = bytes
            tables = connection.execute("SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall()
            for (table,) in tables:
                for row in connection.execute(f'SELECT * FROM "{table.decode()}"'):  # noqa: S608 - its own name
                    for cell in row:
                        yield (
                            f"table {table.decode()} of {path.name}",
                            cell if isinstance(cell, bytes) else str(cell).encode(),
                        )


def assert_indistinguishable(
    first: Mapping[str, str], second: Mapping[str, str], *, declared: Mapping[str, str] | None = None
) -> None:
    r"""Assert that two recordings of the same run with other patients' data are byte for byte the same.

    Give both runs the same ids, clock and salts, and data with the same pattern of equalities (what is equal in
    one run is equal in the other).

    Args:
        first: Text by signal, such as `Capture.telemetry` returns.
        second: The same of the other run.
        declared: Differences that are meant, as regular expression by name; what one matches is not compared.

    Raises:
        AssertionError: With each signal that differs, its first line that does and what both have before the
            difference; never what differs. Also for a declared difference that nothing matched: a list that
            is longer than needed hides leaks; and for recordings in which there is nothing to compare.

    Example:
        >>> assert_indistinguishable({"logs": "took 5 ms"}, {"logs": "took 7 ms"}, declared={"time": r"\d+ ms"})
        >>> assert_indistinguishable({"logs": "hello Ann"}, {"logs": "hello Bob"})
        Traceback (most recent call last):
        AssertionError: logs differ in line 1 after 'hello '
    """
    problems = [f"{name} is in one recording only" for name in sorted(first.keys() ^ second.keys())]
    if not any(first.values()):
        problems.append("nothing was recorded")
    rules = {name: re.compile(pattern) for name, pattern in (declared or {}).items()}
    unused = set(rules)
    for signal in sorted(first.keys() & second.keys()):
        texts = [first[signal], second[signal]]
        for name, rule in rules.items():
            for place, text in enumerate(texts):
                texts[place], times = rule.subn(f"<{name}>", text)
                unused -= {name} if times else set()
        problems += _difference(signal, *texts)
    problems += [f"the declared difference {name} does not occur: drop it" for name in sorted(unused)]
    if problems:
        raise AssertionError("; ".join(problems))


def _difference(signal: str, first: str, second: str) -> list[str]:
    ours, theirs = first.splitlines(), second.splitlines()
    for number, (one, other) in enumerate(zip(ours, theirs, strict=False), 1):
        if one != other:
            same = next(
                (at for at, (a, b) in enumerate(zip(one, other, strict=False)) if a != b),
                min(len(one), len(other)),
            )
            return [f"{signal} differ in line {number} after {one[max(0, same - 60) : same]!r}"]
    if len(ours) != len(theirs):
        return [f"{signal} have {len(ours)} and {len(theirs)} lines"]
    return [] if first == second else [f"{signal} differ in how lines end"]
