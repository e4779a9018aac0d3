"""Text in a form in which a number cannot hide behind its script: full-width, Arabic-Indic, or zero-width blanks.

Based on Unicode character properties (Unicode 15 §4.6 numeric values, UAX #15 NFKC).

Limits: look-alike letters of other scripts (homoglyphs) are not folded.
"""

from __future__ import annotations

import re
import unicodedata
from functools import lru_cache

#: What switches colours on a terminal (ECMA-48 SGR, EL): invisible, and its last letter would be part of a word.
COLOUR = re.compile(r"\x1b\[[0-9;]{0,32}[mK]")


def fold(text: str) -> tuple[str, list[int]]:
    """Return `text` in ASCII-like lower case for matching, and where each of its characters came from.

    Digits, dashes and blanks of any script become ASCII ones; invisible and combining characters and colours are
    left out, so that they cannot hide a number.
    """
    hidden = {place for match in COLOUR.finditer(text) for place in range(*match.span())}
    shadow: list[str] = []
    places: list[int] = []
    for place, char in enumerate(text):
        folded = char.lower() if char < "\x80" else _fold_char(char)
        if folded and place not in hidden:
            shadow.append(folded)
            places.append(place)
    return "".join(shadow), places


@lru_cache(maxsize=4096)
def _fold_char(char: str) -> str:
    """Fold one non-ASCII character to one character, or to nothing."""
    digit = unicodedata.digit(char, -1)
    if digit >= 0:
        return str(digit)
    category = unicodedata.category(char)
    if category in ("Cf", "Mn", "Me"):
        return ""
    if category == "Pd" or char == "\u2212":
        return "-"
    if category == "Zs":
        return " "
    for candidate in (unicodedata.normalize("NFKC", char).lower(), char.lower()):
        if len(candidate) == 1:
            return candidate
    return char
