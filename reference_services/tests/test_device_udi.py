"""GS1 unique device identifiers: read, written, and refused."""

from __future__ import annotations

import string
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from reference_services.medical_device import udi
from reference_services.medical_device.udi import GS, Issue, Udi, UdiError

YEAR = 2026
PLAIN = string.ascii_letters + string.digits + "-./_+=*"
CSET82 = PLAIN + "!\"%&'(),:;<>?"


def identifiers(characters: str) -> st.SearchStrategy[Udi]:
    """Return identifiers whose texts are made of `characters`."""
    days = st.none() | st.dates(date(YEAR - 49, 1, 1), date(YEAR + 50, 12, 31))

    def texts(length: int) -> st.SearchStrategy[str | None]:
        return st.none() | st.text(characters, min_size=1, max_size=length)

    digits = st.text("0123456789", min_size=13, max_size=13).map(lambda found: found + udi.check_digit(found))
    return st.builds(
        Udi,
        device_identifier=digits,
        lot=texts(20),
        serial=texts(20),
        manufactured=days,
        expiry=days,
        quantity=st.none() | st.integers(0, 99_999_999),
        additional_id=texts(30),
    )


def in_brackets(made: Udi) -> str:
    """Write the identifier in the bracketed form, in the order 01 11 17 10 21 30 240."""
    return "".join(f"({identifier}){value}" for identifier, value in elements(made))


def as_barcode(made: Udi) -> str:
    """Write the identifier as a barcode carries it, with GS after each element of variable length but the last."""
    pieces = [
        (identifier + value, udi._ELEMENTS[identifier][2] is None) for identifier, value in elements(made)
    ]
    joined = "".join(text + (GS if variable else "") for text, variable in pieces)
    return joined.removesuffix(GS)


def elements(made: Udi) -> list[tuple[str, str]]:
    """Return each element that there is: its identifier, and its value as text."""
    found = ((identifier, getattr(made, name)) for identifier, (name, _, _) in udi._ELEMENTS.items())
    return [
        (identifier, value.strftime("%y%m%d") if isinstance(value, date) else str(value))
        for identifier, value in found
        if value is not None
    ]


class TestParse:
    """`parse`."""

    @given(identifiers(PLAIN))
    def test_bracketed_round_trip(self, made: Udi) -> None:
        """What is written in brackets is read as the same."""
        assert udi.parse(in_brackets(made), year=YEAR) == made

    @given(identifiers(CSET82), st.sampled_from(["", GS, "]d2", "]C1", "]Q3" + GS]))
    def test_raw_round_trip(self, made: Udi, prefix: str) -> None:
        """A barcode is read as the same, brackets in a value and a symbology identifier before it included."""
        assert udi.parse(prefix + as_barcode(made), year=YEAR) == made

    @given(identifiers(PLAIN), st.permutations(["01", "11", "17", "10", "21", "30", "240"]))
    def test_any_order(self, made: Udi, order: list[str]) -> None:
        """The order of elements means nothing, in either form."""
        written = dict(elements(made))
        pairs = [(identifier, written[identifier]) for identifier in order if identifier in written]
        bracketed = "".join(f"({identifier}){value}" for identifier, value in pairs)
        raw = "".join(identifier + value + GS for identifier, value in pairs)
        assert udi.parse(bracketed, year=YEAR) == udi.parse(raw, year=YEAR) == made

    def test_an_example(self) -> None:
        """Every element by name."""
        text = "(01)00844588003288(11)250130(17)290101(10)LOT42(21)SN4711(30)12(240)A-1"
        assert udi.parse(text, year=YEAR) == Udi(
            "00844588003288", "LOT42", "SN4711", date(2025, 1, 30), date(2029, 1, 1), 12, "A-1"
        )

    def test_lot_does_not_swallow_the_serial(self) -> None:
        """An element of variable length ends at the separator, or at the next bracket."""
        raw = udi.parse(f"01008445880032881012345{GS}21SN1", year=YEAR)
        assert (raw.lot, raw.serial) == ("12345", "SN1")

    @given(identifiers(PLAIN), st.integers(1, 9))
    def test_check_digit_is_reported(self, made: Udi, shift: int) -> None:
        """A wrong check digit is an issue with both digits; the rest is read all the same."""
        right = made.device_identifier[-1]
        wrong = str((int(right) + shift) % 10)
        text = in_brackets(made).replace(made.device_identifier, made.device_identifier[:-1] + wrong, 1)
        found = udi.parse(text, year=YEAR)
        assert found.issues == (Issue("check_digit", right, wrong),)
        assert (found.lot, found.serial, found.expiry) == (made.lot, made.serial, made.expiry)

    @pytest.mark.parametrize(
        ("text", "year", "expected"),
        [
            ("290200", 2026, date(2029, 2, 28)), ("280200", 2026, date(2028, 2, 29)), ("291200", 2026, date(2029, 12, 31)),
            ("760101", 2026, date(2076, 1, 1)), ("770101", 2026, date(1977, 1, 1)), ("250101", 2075, date(2125, 1, 1)),
            ("260101", 2075, date(2026, 1, 1)), ("990101", 2001, date(1999, 1, 1)), ("490101", 1999, date(2049, 1, 1)),
        ],
    )  # fmt: skip
    def test_dates(self, text: str, year: int, expected: date) -> None:
        """Day 00 is the end of the month; a year lies from 49 before to 50 after the current one."""
        assert udi.parse(f"(01)00844588003288(17){text}", year=year).expiry == expected

    @given(st.integers(1990, 2200), st.integers(0, 99))
    def test_century(self, year: int, two_digits: int) -> None:
        """The full year ends in the two digits and is never further away than 49 before or 50 after."""
        found = udi.parse(f"(01)00844588003288(17){two_digits:02}0101", year=year).expiry
        assert found is not None
        assert found.year % 100 == two_digits
        assert -49 <= found.year - year <= 50

    @pytest.mark.parametrize(
        ("text", "code"),
        [
            ("", "length"),
            ("(01)" + "0" * 200, "length"),
            ("+A123BJC5D6E71G", "issuer_not_supported"),
            ("=/A9999XYZ100T0944", "issuer_not_supported"),
            ("hello", "issuer_not_supported"),
            ("(10)LOT", "device_identifier_missing"),
            ("(01)0084458800328", "element_malformed"),
            ("(01)0084458800328X", "element_malformed"),
            ("(01)00844588003288(10)", "element_malformed"),
            ("(01)00844588003288(10)" + "x" * 21, "element_malformed"),
            ("(01)00844588003288(10)a b", "element_malformed"),
            ("(01)00844588003288(10)lät", "element_malformed"),
            ("(01)00844588003288(30)123456789", "element_malformed"),
            ("(01)٠٠٨٤٤٥٨٨٠٠٣٢٨٨", "element_malformed"),
            ("(01)00844588003288(17)290230", "date_invalid"),
            ("(01)00844588003288(17)291300", "date_invalid"),
            ("(01)00844588003288(17)290001", "date_invalid"),
            ("(01)00844588003288(01)00844588003288", "element_repeated"),
            ("(99)x", "element_unknown"),
            ("()", "element_unknown"),
            ("0100844588003288991", "element_unknown"),
            ("]d2", "device_identifier_missing"),
        ],
    )
    def test_refused(self, text: str, code: str) -> None:
        """Refused with a code, and without the text."""
        with pytest.raises(UdiError) as caught:
            udi.parse(text, year=YEAR)
        assert caught.value.args == (code,)

    @given(st.text(CSET82 + GS + "01234567890", max_size=60) | st.text(max_size=30))
    def test_any_text(self, text: str) -> None:
        """Any text is read, or refused as what it is; what is read says the same when written again."""
        try:
            found = udi.parse(text, year=YEAR)
        except UdiError:
            return
        assert udi.parse(as_barcode(found), year=YEAR) == found


class TestCheckDigit:
    """GS1 modulo 10."""

    @pytest.mark.parametrize(
        "number", ["00844588003288", "00614141999996", "10614141000415", "04012345678901"]
    )
    def test_known_numbers(self, number: str) -> None:
        """Numbers from published examples."""
        assert udi.check_digit(number[:-1]) == number[-1]

    @given(st.text("0123456789", min_size=13, max_size=13), st.integers(0, 12), st.integers(1, 9))
    def test_one_wrong_digit(self, digits: str, place: int, shift: int) -> None:
        """Any single wrong digit changes the check digit."""
        wrong = digits[:place] + str((int(digits[place]) + shift) % 10) + digits[place + 1 :]
        assert udi.check_digit(wrong) != udi.check_digit(digits)


class TestIssuerOf:
    """`issuer_of`."""

    @pytest.mark.parametrize(
        ("text", "issuer"),
        [
            ("(01)1", "gs1"),
            ("01", "gs1"),
            ("]d201", "gs1"),
            ("+A", "hibcc"),
            ("=/A", "iccbba"),
            ("&,1", "iccbba"),
            ("x", "unknown"),
        ],
    )
    def test_first_characters(self, text: str, issuer: Any) -> None:
        """The agencies' forms begin differently."""
        assert udi.issuer_of(text) == issuer
