"""Money: integer minor units with the exponents of ISO 4217, never floating point. Pure."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

#: Currency -> decimals (ISO 4217) and the amount, in major units, from which one approval is needed.
CURRENCIES: Mapping[str, tuple[int, int]] = MappingProxyType(
    {
        "USD": (2, 10_000), "EUR": (2, 9_000), "GBP": (2, 7_500), "CHF": (2, 8_000), "CAD": (2, 13_000),
        "AUD": (2, 14_000), "SEK": (2, 90_000), "JPY": (0, 1_000_000), "KRW": (0, 10_000_000), "KWD": (3, 3_000),
        "BHD": (3, 3_500), "TND": (3, 30_000),
    }
)  # fmt: skip
MAX_MINOR = 10**12
_DECIMAL = re.compile(r"(0|[1-9][0-9]{0,12})(?:\.([0-9]+))?")


class DomainError(Exception):
    """A rule refuses; carries a code, never a value of the request."""

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(code)


class MoneyError(DomainError):
    """An amount is not one."""


def to_minor(text: str, currency: str) -> int:
    """Read a decimal text as minor units of `currency`, exactly.

    Raises:
        MoneyError: Not a plain decimal number, more decimals than the currency has, or a currency not taken.

    Example:
        >>> to_minor("150.00", "USD"), to_minor("150", "JPY"), to_minor("0.005", "KWD")
        (15000, 150, 5)
    """
    exponent = _exponent(currency)
    found = _DECIMAL.fullmatch(text)
    if found is None or len(found[2] or "") > exponent:
        raise MoneyError("amount_not_representable")
    return int(found[1] + (found[2] or "").ljust(exponent, "0"))


def to_decimal(minor: int, currency: str) -> str:
    """Return minor units as a decimal text with exactly the currency's decimals.

    Example:
        >>> to_decimal(15000, "USD"), to_decimal(150, "JPY"), to_decimal(5, "KWD")
        ('150.00', '150', '0.005')
    """
    exponent = _exponent(currency)
    digits = str(minor).rjust(exponent + 1, "0")
    return f"{digits[:-exponent]}.{digits[-exponent:]}" if exponent else digits


def amount_of(minor: int | None, text: str | None, currency: str) -> int:
    """Return the one amount that a request states, in either form or in both alike.

    Raises:
        MoneyError: None is stated, they differ, or the amount is out of range.
    """
    if text is None:
        _exponent(currency)
        stated = minor
    else:
        stated = to_minor(text, currency)
        if minor not in (None, stated):
            raise MoneyError("amounts_differ")
    if stated is None:
        raise MoneyError("amount_missing")
    if not 1 <= stated <= MAX_MINOR:
        raise MoneyError("amount_out_of_range")
    return stated


def _exponent(currency: str) -> int:
    if currency not in CURRENCIES:
        raise MoneyError("currency_not_supported")
    return CURRENCIES[currency][0]
