"""Card numbers: told apart, checked, forgotten. Nothing here returns or raises with one.

ISO/IEC 7812-1 (Luhn digit, lengths by issuer range). Only numbers that Stripe publishes for testing are
taken unless told otherwise, so that no real card can get in; what they do is documented with them
(docs.stripe.com/testing). A card is kept as a keyed fingerprint, its brand and last four digits (PCI DSS
4.0.1, 3.4.1 and 3.5.1.1); the security code is checked for its length and kept nowhere (3.3.1), not even as part of
the fingerprint that tells a repeated request.

Limits: fingerprint key and database together let their holder find a number by trying them all.
"""

from __future__ import annotations

import base64
import hmac
import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

APPROVED = "approved"
#: Published test card -> what the processor answers: approved, or the decline code.
TEST_CARDS: Mapping[str, str] = MappingProxyType(
    {
        **dict.fromkeys(
            (
                *("4242424242424242", "4000056655665556", "4111111111111111", "5555555555554444"),
                *("2223003122003222", "5200828282828210", "5105105105105100", "378282246310005"),
                *("371449635398431", "6011111111111117", "6011000990139424", "3056930009020004"),
                *("36227206271667", "3566002020360505", "6200000000000005", "6205500000000000004"),
            ),
            APPROVED,
        ),
        "4000000000000002": "generic_decline",
        "4000000000009995": "insufficient_funds",
        "4000000000009987": "lost_card",
        "4000000000009979": "stolen_card",
        "4000000000000069": "expired_card",
        "4000000000000127": "incorrect_cvc",
        "4000000000000119": "processing_error",
        "4000000000006975": "card_velocity_exceeded",
    }
)
#: Brand, pattern of its numbers (issuer range and length), digits of its security code.
_BRANDS = (
    ("visa", re.compile(r"4(\d{12}|\d{15}|\d{18})"), 3),
    ("mastercard", re.compile(r"(5[1-5]\d{2}|222[1-9]|22[3-9]\d|2[3-6]\d{2}|27[01]\d|2720)\d{12}"), 3),
    ("amex", re.compile(r"3[47]\d{13}"), 4),
    ("discover", re.compile(r"(6011\d{12}|6011\d{15}|65\d{14}|65\d{17}|64[4-9]\d{13}|64[4-9]\d{16})"), 3),
    ("diners", re.compile(r"(?=\d{14,19}$)(30[0-5]|3095|36|3[89])\d+"), 3),
    ("jcb", re.compile(r"35(2[89]|[3-8]\d)\d{12,15}"), 3),
    ("unionpay", re.compile(r"62\d{14,17}"), 3),
)
_SHORTEST, _LONGEST = 13, 19
#: Digits with at most two other characters between any two of them.
_RUN = re.compile(r"\d(?:\D{0,2}\d)+")


class CardError(ValueError):
    """A card is refused; carries the field and a code, never the number."""

    def __init__(self, field: str, code: str) -> None:
        self.field = field
        self.code = code
        super().__init__(f"card refused: {code}")


@dataclass(frozen=True, slots=True)
class Card:
    """What is known of a card once its number is forgotten."""

    fingerprint: str
    brand: str
    last4: str
    exp_month: int
    exp_year: int
    outcome: str

    def outcome_at(self, year: int, month: int) -> str:
        """Return what the processor answers in that month: approved, or a decline code."""
        if (self.exp_year, self.exp_month) < (year, month):
            return "expired_card"
        return self.outcome


def fingerprint(number: str, key: bytes) -> str:
    """Return what stands for a card's number, however it was typed: the one thing made of all its digits that is kept."""
    return hmac.digest(key, _digits(number).encode(), "sha256").hex()


def luhn(digits: str) -> bool:
    """Tell whether the last digit is the right check digit (ISO/IEC 7812-1 annex B).

    Example:
        >>> luhn("4242424242424242"), luhn("4242424242424241")
        (True, False)
    """
    doubled = (divmod(2 * int(digit), 10) for digit in digits[-2::-2])
    return (sum(int(digit) for digit in digits[::-2]) + sum(tens + ones for tens, ones in doubled)) % 10 == 0


def brand_of(digits: str) -> tuple[str, int] | None:
    """Return the brand of a number and the length of its security code, or None when there is none."""
    for brand, pattern, code_length in _BRANDS:
        if pattern.fullmatch(digits):
            return brand, code_length
    return None


def read_card(
    number: str,
    exp_month: int,
    exp_year: int,
    cvc: str,
    *,
    key: bytes,
    now: tuple[int, int],
    any_pan: bool = False,
) -> Card:
    """Check a card and return what may be kept of it.

    Args:
        number: As typed: digits with single spaces or hyphens between them.
        exp_month: 1 to 12.
        exp_year: Four digits.
        cvc: The security code.
        key: Key of the fingerprint, 32 bytes.
        now: Current year and month.
        any_pan: Take numbers that are not published for testing.

    Raises:
        CardError: The card is not acceptable.
    """
    digits = _digits(number)
    if not (digits.isascii() and digits.isdecimal() and _SHORTEST <= len(digits) <= _LONGEST) or not luhn(
        digits
    ):
        raise CardError("number", "card_number_invalid")
    found = brand_of(digits)
    if found is None:
        raise CardError("number", "card_brand_unknown")
    brand, code_length = found
    if digits not in TEST_CARDS and not any_pan:
        raise CardError("number", "not_a_published_test_card")
    if not (cvc.isascii() and cvc.isdecimal() and len(cvc) == code_length):
        raise CardError("cvc", "cvc_invalid")
    if (exp_year, exp_month) < now:
        raise CardError("exp_year", "card_expired")
    outcome = TEST_CARDS.get(digits, APPROVED)
    return Card(fingerprint(digits, key), brand, digits[-4:], exp_month, exp_year, outcome)


def _digits(number: str) -> str:
    return re.sub(r"(?<=\d)[ -](?=\d)", "", number)


def holds_card_number(text: str) -> bool:
    """Tell whether a text contains something that looks like a card number, separators included.

    Example:
        >>> holds_card_number("paid with 4242-4242 4242.4242"), holds_card_number("order 4242")
        (True, False)
    """
    seen = (
        character
        for character in unicodedata.normalize("NFKC", text)
        if unicodedata.category(character) != "Cf"
    )
    for run in _RUN.findall("".join(seen)):
        digits = "".join(str(int(character)) for character in run if character.isdecimal())
        for start in range(len(digits) - _SHORTEST + 1):
            for length in range(_SHORTEST, min(_LONGEST, len(digits) - start) + 1):
                part = digits[start : start + length]
                if luhn(part) and brand_of(part) is not None:
                    return True
    return False


def written_forms(number: str) -> tuple[bytes, ...]:
    """Return the forms in which a number could have been written: what a search of files looks for.

    Plain, grouped, hexadecimal and, at each of the three alignments, base64.
    """
    plain = number.encode()
    groups = [number[start : start + 4] for start in range(0, len(number), 4)]
    forms = [plain, *(separator.join(groups).encode() for separator in (" ", "-", ".")), plain.hex().encode()]
    forms.append(plain.hex().upper().encode())
    for offset in range(3):
        encoded = base64.b64encode(b"\0" * offset + plain)
        skipped = (0, 2, 3)[offset]
        whole = (offset + len(plain)) // 3 * 4  # what follows depends on the bytes after the number
        forms.append(encoded[skipped:whole])
    return tuple(forms)
