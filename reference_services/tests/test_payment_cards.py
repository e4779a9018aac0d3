"""Card numbers: which are taken, what is kept, and that nothing repeats one."""

from __future__ import annotations

import base64
from dataclasses import astuple
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_services.payment_gateway import cards
from reference_services.payment_gateway.cards import TEST_CARDS, CardError

KEY = b"k" * 32
NOW = (2026, 11)


def read(number: str, **changes: Any) -> cards.Card:
    found = cards.brand_of("".join(filter(str.isdecimal, number)))
    cvc = "7" * (found[1] if found else 3)
    return cards.read_card(
        number,
        changes.pop("exp_month", 12),
        changes.pop("exp_year", 2030),
        changes.pop("cvc", cvc),
        **{"key": KEY, "now": NOW, **changes},
    )


class TestLuhn:
    """ISO/IEC 7812-1 annex B."""

    @given(st.text("0123456789", min_size=12, max_size=18))
    def test_one_of_ten(self, digits: str) -> None:
        """Exactly one check digit is right."""
        assert sum(cards.luhn(f"{digits}{check}") for check in range(10)) == 1

    @given(st.sampled_from(sorted(TEST_CARDS)), st.data())
    def test_one_wrong_digit(self, number: str, data: st.DataObject) -> None:
        """Any single wrong digit is found."""
        place = data.draw(st.integers(0, len(number) - 1))
        wrong = data.draw(st.sampled_from([digit for digit in "0123456789" if digit != number[place]]))
        assert cards.luhn(number)
        assert not cards.luhn(number[:place] + wrong + number[place + 1 :])


class TestReadCard:
    """What is accepted, and what is kept."""

    @pytest.mark.parametrize("number", TEST_CARDS)
    def test_published_cards(self, number: str) -> None:
        """Every published test card is taken; of its digits the last four are kept."""
        card = read(number)
        assert (card.last4, card.outcome) == (number[-4:], TEST_CARDS[number])
        assert not any(number[:-4] in str(value) for value in astuple(card))

    @pytest.mark.parametrize(
        ("number", "brand"),
        [
            ("4242424242424242", "visa"), ("5555555555554444", "mastercard"), ("2223003122003222", "mastercard"),
            ("378282246310005", "amex"), ("6011111111111117", "discover"), ("36227206271667", "diners"),
            ("3566002020360505", "jcb"), ("6205500000000000004", "unionpay"),
        ],
    )  # fmt: skip
    def test_brands(self, number: str, brand: str) -> None:
        """Told by issuer range and length."""
        assert read(number).brand == brand

    def test_separators(self) -> None:
        """As printed on the card."""
        assert read("4242 4242-4242 4242") == read("4242424242424242")

    @pytest.mark.parametrize(
        ("number", "code"),
        [
            ("4242424242424241", "card_number_invalid"), ("4242  4242424242424242", "card_number_invalid"),
            ("424242424242", "card_number_invalid"), ("\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12\uff14\uff12", "card_number_invalid"),
            ("42424242424242424242", "card_number_invalid"), ("0000000000000000", "card_brand_unknown"),
            ("4539578763621486", "not_a_published_test_card"),
        ],
    )  # fmt: skip
    def test_refused_numbers(self, number: str, code: str) -> None:
        """Refused with a code; the error does not hold the number."""
        with pytest.raises(CardError) as caught:
            read(number)
        assert (caught.value.field, caught.value.code) == ("number", code)
        assert number not in repr(caught.value.args)

    def test_any_pan(self) -> None:
        """Told to, it takes what is not published; the processor approves it."""
        assert read("4539578763621486", any_pan=True).outcome == "approved"

    @pytest.mark.parametrize(
        ("number", "cvc"),
        [("4242424242424242", "1234"), ("378282246310005", "123"), ("4242424242424242", "12a")],
    )
    def test_security_code(self, number: str, cvc: str) -> None:
        """Four digits for American Express, three for the others."""
        with pytest.raises(CardError) as caught:
            read(number, cvc=cvc)
        assert caught.value.field == "cvc"

    def test_expiry(self) -> None:
        """A card is good to the end of its month, and declined when it has expired since."""
        card = read("4242424242424242", exp_month=11, exp_year=2026)
        assert [card.outcome_at(*moment) for moment in ((2026, 11), (2026, 12))] == [
            "approved",
            "expired_card",
        ]
        with pytest.raises(CardError) as caught:
            read("4242424242424242", exp_month=10, exp_year=2026)
        assert caught.value.code == "card_expired"

    def test_fingerprint(self) -> None:
        """One card has one fingerprint under one key, another under another."""
        one, same, other = (read("4242424242424242", key=key).fingerprint for key in (KEY, KEY, b"o" * 32))
        assert one == same != other
        assert len({read(number).fingerprint for number in TEST_CARDS}) == len(TEST_CARDS)


class TestHoldsCardNumber:
    """Card numbers in free text."""

    @given(
        st.sampled_from(sorted(TEST_CARDS)),
        st.sampled_from(["", " ", "-", ".", "/", " - "[:2]]),
        st.text(max_size=20),
    )
    def test_found(self, number: str, separator: str, around: str) -> None:
        """With any usual separator, inside other text or digits."""
        text = separator.join(number[start : start + 4] for start in range(0, len(number), 4))
        assert cards.holds_card_number(f"{around} card {text} {around}")

    def test_full_width_digits(self) -> None:
        """Digits of other scripts are digits."""
        assert cards.holds_card_number(
            "\uff14\uff12\uff14\uff12 \uff14\uff12\uff14\uff12 \uff14\uff12\uff14\uff12 \uff14\uff12\uff14\uff12"
        )

    @pytest.mark.parametrize(
        "text", ["", "invoice 4711", "4242424242424241", "2026-11-23 12:00:00", "+1 202 555 0123"]
    )
    def test_not_found(self, text: str) -> None:
        """Dates, phone numbers and numbers with a wrong check digit are none."""
        assert not cards.holds_card_number(text)


class TestWrittenForms:
    """What a search of files looks for."""

    @given(st.sampled_from(sorted(TEST_CARDS)), st.binary(max_size=7), st.binary(max_size=7))
    def test_they_find_it(self, number: str, before: bytes, after: bytes) -> None:
        """Whatever stands around it, in base64 and hexadecimal too."""
        forms = cards.written_forms(number)
        raw = before + number.encode() + after
        for written in (raw, base64.b64encode(raw), raw.hex().encode(), raw.hex().upper().encode()):
            assert any(form in written for form in forms)
        assert min(map(len, forms)) >= 14
