"""Checks that tell an identifier from a number that only looks like one.

Luhn (ISO/IEC 7812-1 annex B), NPI (45 CFR 162.406, Luhn over ``80840`` + number), MBI (CMS "MBI format"),
DEA number check digit, VIN check digit (49 CFR 565.15), IBAN (ISO 13616-1, mod 97), North American
numbering plan, and calendar plausibility. All take ASCII lower-case text and run in linear time.

Limits: a check digit lets one random number in ten (Luhn) or eleven (VIN) through; that errs towards masking.
"""

from __future__ import annotations

import re

_LUHN_DOUBLE = (0, 2, 4, 6, 8, 1, 3, 5, 7, 9)
_MONTHS = range(1, 13)
_DAYS = range(1, 32)
_YEARS = range(1850, 2100)
_VIN = re.compile(r"[a-hj-npr-z0-9]{17}")
_VIN_VALUES = dict(
    zip("abcdefghjklmnprstuvwxyz", (*range(1, 9), *range(1, 6), 7, 9, *range(2, 10)), strict=True)
)
_VIN_WEIGHTS = (8, 7, 6, 5, 4, 3, 2, 10, 0, 9, 8, 7, 6, 5, 4, 3, 2)
_DEA = re.compile(r"[a-z]{2}[0-9]{7}")
_IBAN = re.compile(r"[a-z]{2}[0-9]{2}[a-z0-9]{11,30}")


def luhn(digits: str) -> bool:
    """Return whether `digits` ends in its Luhn check digit.

    Example:
        >>> luhn("4111111111111111"), luhn("4111111111111112")
        (True, False)
    """
    total = 0
    for position, digit in enumerate(reversed(digits)):
        number = ord(digit) - 48
        total += _LUHN_DOUBLE[number] if position % 2 else number
    return total % 10 == 0


def is_card(digits: str) -> bool:
    """Return whether `digits` is a payment card number (issuers begin with 2 to 6)."""
    return 13 <= len(digits) <= 19 and digits[0] in "23456" and luhn(digits)


def is_npi(digits: str) -> bool:
    """Return whether the ten `digits` are a national provider identifier."""
    return digits[0] in "12" and luhn("80840" + digits)


def is_nanp(digits: str) -> bool:
    """Return whether the ten `digits` can be a North American telephone number."""
    return digits[0] > "1" and digits[3] > "1"


def is_ssn(digits: str) -> bool:
    """Return whether nine undelimited `digits` can be an SSN, or an ITIN (9xx)."""
    return digits[:3] not in ("000", "666") and digits[3:5] != "00" and digits[5:] != "0000"


def is_date(year: str, month: str, day: str) -> bool:
    """Return whether the three parts can be a date of the years 1850 to 2099."""
    return int(year) in _YEARS and int(month) in _MONTHS and int(day) in _DAYS


def is_month_and_day(first: str, second: str) -> bool:
    """Return whether the two can be a month and a day, in either order."""
    one, two = int(first), int(second)
    return (one in _MONTHS and two in _DAYS) or (two in _MONTHS and one in _DAYS)


def is_compact_date(digits: str) -> bool:
    """Return whether eight `digits` can be ``yyyymmdd``, ``mmddyyyy`` or ``ddmmyyyy``."""
    if is_date(digits[:4], digits[4:6], digits[6:]):
        return True
    return int(digits[4:]) in _YEARS and is_month_and_day(digits[:2], digits[2:4])


def is_vin(token: str) -> bool:
    """Return whether `token` is a vehicle identification number with a correct check digit."""
    if _VIN.fullmatch(token) is None or token.isdigit() or token.isalpha():
        return False
    total = sum(
        weight * (int(char) if char.isdigit() else _VIN_VALUES[char])
        for char, weight in zip(token, _VIN_WEIGHTS, strict=True)
    )
    return token[8] == "0123456789x"[total % 11]


def is_dea(token: str) -> bool:
    """Return whether `token` is a DEA registration number with a correct check digit."""
    if _DEA.fullmatch(token) is None:
        return False
    digits = [int(char) for char in token[2:]]
    odd, even = digits[0] + digits[2] + digits[4], digits[1] + digits[3] + digits[5]
    return (odd + 2 * even) % 10 == digits[6]


def is_iban(token: str) -> bool:
    """Return whether `token` (no blanks) is an international bank account number."""
    if _IBAN.fullmatch(token) is None:
        return False
    rearranged = token[4:] + token[:4]
    return int("".join(str(int(char, 36)) for char in rearranged)) % 97 == 1
