"""Every shape of an identifier in text, and its nearest neighbour that is none."""

from __future__ import annotations

import string

import pytest

from healthobs.redaction.identifiers import luhn
from healthobs.redaction.scan import scan

UUID = "19500301-4111-1111-1111-078051120000"


def card(length: int) -> str:
    """Return a card number of `length` digits of which no part is a telephone number or a date."""
    body = "4" + "0" * (length - 2)
    return next(body + digit for digit in string.digits if luhn(body + digit))


def grouped(digits: str, groups: tuple[int, ...], separator: str) -> str:
    """Return `digits` cut into groups of these lengths."""
    ends = [sum(groups[: place + 1]) for place in range(len(groups))]
    return separator.join(digits[end - length : end] for end, length in zip(ends, groups, strict=True))


@pytest.mark.parametrize("separator", [" ", "-"])
class TestGroupedCards:
    """Card numbers as they are printed and typed."""

    @pytest.mark.parametrize(
        "groups", [(4, 4, 4, 4), (4, 6, 5), (4, 6, 4), (4, 4, 5), (4, 4, 4, 4, 3), (6, 10), (8, 8)]
    )
    def test_each_shape_is_found_by_its_check_digit(self, groups: tuple[int, ...], separator: str) -> None:
        """The whole number goes; with a wrong last digit it is no card."""
        number = card(sum(groups))
        wrong = number[:-1] + str((int(number[-1]) + 1) % 10)
        assert scan(f"paid {grouped(number, groups, separator)} ok")[0] == "paid [PHI:card] ok"
        assert scan(f"paid {grouped(wrong, groups, separator)} ok")[1] == ()

    @pytest.mark.parametrize("groups", [(5, 4, 4, 3), (4, 5, 4, 3), (4, 7, 4), (6, 9), (4, 4, 4), (7, 9)])
    def test_other_groups_are_no_card(self, groups: tuple[int, ...], separator: str) -> None:
        """Numbers that happen to stand side by side are left alone."""
        assert scan(f"rows {grouped(card(sum(groups)), groups, separator)} ok")[1] == ()


@pytest.mark.parametrize(("length", "kinds"), [(12, ()), (13, ("card",)), (19, ("card",)), (20, ("number",))])
def test_the_length_of_a_card(length: int, kinds: tuple[str, ...]) -> None:
    """Cards have 13 to 19 digits (ISO/IEC 7812-1); a longer run of digits is masked whatever it is."""
    assert scan(f"paid {card(length)} ok")[1] == kinds


@pytest.mark.parametrize("separator", ["\t", "\n", "\r\n", "_", "\u00b7", "\u2022", ":", "|", "~"])
class TestRareSeparators:
    """Social security and card numbers as forms, tables and encodings cut them."""

    def test_a_social_security_number(self, separator: str) -> None:
        """The same sign twice, and no further number behind it: then it is a row of a table."""
        number = separator.join(("078", "05", "1120"))
        assert scan(f"is {number} ok")[0] == "is [PHI:ssn] ok"
        for other in (
            f"{number}{separator}7",
            f"7{separator}{number}",
            f"1{number}",
            f"{number}1",
            f"a{number}",
            f"{number}b",
        ):
            assert scan(f"is {other} ok")[1] == ()
        assert (
            scan(f"is 078{separator}05;1120 ok")[1] == scan(f"is 000{separator}05{separator}1120 ok")[1] == ()
        )

    @pytest.mark.parametrize("groups", [(4, 4, 4, 4), (4, 6, 5)])
    def test_a_card(self, groups: tuple[int, ...], separator: str) -> None:
        """By its check digit; the signs may differ."""
        number = card(sum(groups))
        cut = grouped(number, groups, separator)
        wrong = cut[:-1] + str((int(cut[-1]) + 1) % 10)
        assert scan(f"paid {cut} ok")[0] == "paid [PHI:card] ok"
        assert scan(f"paid {cut.replace(separator, ' ', 1)} ok")[0] == "paid [PHI:card] ok"
        assert scan(f"paid {wrong} ok")[1] == scan(f"paid {cut}1 ok")[1] == ()


class TestDates:
    """Dates in digits."""

    @pytest.mark.parametrize(
        "date",
        [
            "1950-03-01", "1950-3-01", "1950-03-1", "1950-3-1", "1950/03/01", "1950.03.01",
            "03-01-1950", "3-01-1950", "03-1-1950", "3-1-1950", "03/01/1950", "03.01.1950",
            "03-01-50", "3-01-50", "03-1-50", "3-1-50", "3/1/50", "50-03-01",
            "1950-03", "1950-3", "03-1950", "3-1950", "1950/03", "3/1950",
        ],
    )  # fmt: skip
    def test_each_shape_goes_whole(self, date: str) -> None:
        """With one digit or two for day and month, the year first or last."""
        assert scan(f"seen {date} ok")[0] == "seen [PHI:date] ok"

    @pytest.mark.parametrize("text", ["13.02.50", "(01.12.49)", "on 31.01.99."])
    def test_a_short_date_with_dots(self, text: str) -> None:
        """Two digits each, the day first."""
        assert scan(f"seen {text} ok")[1] == ("date",)

    @pytest.mark.parametrize(
        "text",
        ["v13.02.50", "v 13.02.50", "version 13.02.50", "x/13.02.50", "3.13.02.50", "313.02.50.1", "13.02.501", "13.02.50b1",
         "13.13.50", "32.02.50", "00.02.50", "3.2.50", "13.2.50"],
    )  # fmt: skip
    def test_a_version_is_no_short_date(self, text: str) -> None:
        """What says that it is one, or goes on, or has one digit."""
        assert "date" not in scan(f"seen {text} ok")[1]

    @pytest.mark.parametrize(
        "month",
        ["januar", "februar", "m\u00e4rz", "maerz", "mai", "juni", "juli", "oktober", "okt", "dezember", "dez", "janvier", "f\u00e9vrier",
         "fevrier", "mars", "avril", "juin", "juillet", "ao\u00fbt", "aout", "septembre", "octobre", "novembre", "d\u00e9cembre",
         "decembre", "MA\u0308RZ"],
    )  # fmt: skip
    @pytest.mark.parametrize("day", ["5. ", "5 ", "1er "])
    def test_german_and_french_months(self, month: str, day: str) -> None:
        """With the day before them."""
        assert scan(f"le {day}{month} 1950 ok")[0] == "le [PHI:date] ok"

    @pytest.mark.parametrize(
        "date",
        ["12/Mar/1950", "3/march/1950", "12/Mar/50", "12_Mar_1950", "1950/Mar/12", "1950_mar_1", "5/may/1950", "1950/May/5th",
         "12thMarch", "2ndJan", "1stMay 1950", "1erAo\u00fbt 1950"],
    )  # fmt: skip
    def test_the_name_of_a_month_between_other_signs(self, date: str) -> None:
        """Three parts with the same sign twice, or an ordinal without a blank behind it."""
        assert scan(f"seen {date} ok")[0] == "seen [PHI:date] ok"

    def test_the_time_of_an_access_log(self) -> None:
        """As Apache writes it: the day goes."""
        assert scan("[12/Mar/2024:10:22:01 +0000]")[0] == "[[PHI:date]:10:22:01 +0000]"

    @pytest.mark.parametrize(
        "text",
        ["step_1_dec", "q1/dec", "dec/2024", "12/Mar_1950", "x_1_dec_10", "32/Mar/1950", "a12/Mar/1950", "12/Mar/1750", "1950/mar/12x",
         "12/marc/1950", "12thMarching"],
    )  # fmt: skip
    def test_what_has_a_month_in_it_and_is_no_date(self, text: str) -> None:
        """Two parts, two signs, or part of a word."""
        assert scan(f"ran {text} ok")[1] == ()

    @pytest.mark.parametrize("word", ["born", "DOB", "date of birth", "dateOfBirth=", "birthday was"])
    @pytest.mark.parametrize("date", ["1950 03 05", "1950 3 5", "05 03 1950", "5 3 1950"])
    def test_blanks_in_a_date_of_birth(self, word: str, date: str) -> None:
        """Only after a word of birth: elsewhere they are three numbers."""
        assert scan(f"{word} {date} ok")[0] == f"{word} [PHI:date] ok"
        assert scan(f"rows {date} ok")[1] == ()
        assert scan("born 1950 in 3 rows, 1950 60 70")[1] == ()

    @pytest.mark.parametrize(
        "text",
        [
            "03-01/50",
            "03.01.50",
            "03 01 50",
            "1950.03",
            "1950 03",
            "13/1950",
            "45-45-50",
            "1849-03",
            "2100-03",
        ],
    )
    def test_what_is_no_date(self, text: str) -> None:
        """Mixed separators, versions, and months and years that cannot be."""
        assert scan(f"v {text} ok")[1] == ()

    def test_what_is_no_day_is_not_taken_with_month_and_year(self) -> None:
        """`45` is neither a month nor a day."""
        assert scan("v 45-01-1950 ok")[0] == "v 45-[PHI:date] ok"

    @pytest.mark.parametrize(
        "time",
        [
            "T10:30",
            "T1030Z",
            " 10:30:00",
            "T10:30:00.5",
            "T10:30:00,123456789",
            "T10:30+02:00",
            "T103000-0500",
        ],
    )
    def test_the_time_of_day_goes_with_the_date(self, time: str) -> None:
        """In each form of ISO 8601 that logs have."""
        assert scan(f"seen 1950-03-01{time} ok")[0] == "seen [PHI:date] ok"

    @pytest.mark.parametrize("date", ["May 14, 1950", "14 May 1950", "May 1950", "May 5th", "may 14 1950"])
    def test_may_needs_more_than_a_number(self, date: str) -> None:
        """`may` is a verb too: a year or an ordinal makes it the month."""
        assert scan(f"seen {date} ok")[0] == "seen [PHI:date] ok"
        assert scan("may 14 wait")[1] == ()


class TestTelephones:
    """Telephone numbers."""

    @pytest.mark.parametrize(
        "word",
        [
            "phone",
            "telephone",
            "fax",
            "telefax",
            "mobile",
            "cell",
            "tel",
            "phone number",
            "fax no.",
            "tel is",
        ],
    )
    def test_each_word_before_a_foreign_number(self, word: str) -> None:
        """After such a word any number of more than six digits is one."""
        assert scan(f"{word} 0221 4567 89 ok")[0] == f"{word} [PHI:phone] ok"
        assert scan(f"{word} 0221 45 ok")[1] == ()

    @pytest.mark.parametrize("text", ["hotel 0221 4567 89", "tell 0221 4567 89", "cells 0221 4567 89"])
    def test_words_that_only_contain_one(self, text: str) -> None:
        """The word stands alone."""
        assert scan(text)[1] == ()

    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("+1 212 5", "+1 212 5"),
            ("+49 221 12", "+49 221 12"),
            ("+49 221 123", "[PHI:phone]"),
            ("+12345678", "[PHI:phone]"),
            ("+123 456 789 012 345", "[PHI:phone]"),
            ("1-212-555-0123", "[PHI:phone]"),
            ("2-212-555-0123", "2-[PHI:phone]"),
            ("155-0123", "155-0123"),
            ("055-0123", "055-0123"),
            ("555.0123", "555.0123"),
            ("22125550123", "22125550123"),
            ("11125550123", "11125550123"),
            ("0125550123", "0125550123"),
        ],
    )
    def test_how_many_digits_and_which(self, text: str, clean: str) -> None:
        """8 to 15 digits after a plus (E.164); the numbering plan of North America elsewhere."""
        assert scan(f"call {text} ok")[0] == f"call {clean} ok"

    @pytest.mark.parametrize(
        "text",
        ["0049 30 1234567", "0044 20 7946 0958", "0033 6 12 34 56 78", "001 212 555 0123", "020 7946 0958", "0121 496 0000", "01632 960983",
         "01632 960 983", "06 12 34 56 78", "06.12.34.56.78", "06-12-34-56-78"],
    )  # fmt: skip
    def test_with_a_zero_before_it(self, text: str) -> None:
        """Two for another country, one for another place in the United Kingdom or in France."""
        assert scan(f"call {text} ok")[0] == "call [PHI:phone] ok"

    @pytest.mark.parametrize(
        "text",
        ["0000 30 1234567", "0049 30 123", "0049 1234567890123456", "000 7946 0958", "120 7946 0958",
         "01 02 03 04 05", "06 12 34 56 78 90", "16 12 34 56 78", "06 12.34 56-78", "00 12 34 56 78", "0221 4567 89", "a020 7946 0958"],
    )  # fmt: skip
    def test_what_only_begins_with_a_zero(self, text: str) -> None:
        """Other groups, a count, a longer row of numbers."""
        assert "phone" not in scan(f"rows {text} ok")[1]


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        ("93 y.o. male", "[PHI:age] y.o. male"),
        ("93 yrs female", "[PHI:age] yrs female"),
        ("93 yr. old", "[PHI:age] yr. old"),
        ("93-year woman", "[PHI:age]-year woman"),
        ("89 yrs female", "89 yrs female"),
        ("89 y.o. male", "89 y.o. male"),
        ("93 years", "93 years"),
        ("93 yrs males", "93 yrs males"),
        ("93 y.ok", "93 y.ok"),
        ('"john smith"@example.org', "[PHI:email]"),
        ('<"j. s"@example.org>', "<[PHI:email]>"),
        ('{"a": "@type", "@id": 1}', '{"a": "@type", "@id": 1}'),
        ('["x", "@y"]', '["x", "@y"]'),
        ("0011.2233.4455", "[PHI:mac]"),
        ("00aa.bbcc.dd1f", "[PHI:mac]"),
        ("face.fade.deed 1234", "face.fade.deed 1234"),
        ("0011.2233.4455.1", "0011.2233.4455.1"),
        ("x.0011.2233.4455", "x.0011.2233.4455"),
        ("0011.2233.445", "0011.2233.445"),
        ("1EG4 TE5 MK73", "[PHI:mbi]"),
        ("GB82-WEST-1234-5698-7654-32", "[PHI:iban]"),
        ("GB82-WEST-1234-5698-7654-33", "GB82-WEST-1234-5698-7654-33"),
        ("AB12 GB82 WEST 1234 5698 7654 32", "AB12 [PHI:iban]"),
        ("2024|4111|1111|1111|1111", "2024|[PHI:card]"),
        ("7001_4111_1111_1111_1111", "7001_[PHI:card]"),
        ("mac:00:1a:2b:3c:4d:5e", "mac:[PHI:mac]"),
        ("iface-00-1a-2b-3c-4d-5e", "iface-[PHI:mac]"),
        ("x00:1a:2b:3c:4d:5e", "x00:1a:2b:3c:4d:5e"),
        ("91 years of age", "[PHI:age] years of age"),
        ("89 years of age", "89 years of age"),
        ("91 years of agency", "91 years of agency"),
        ("Age (years): 91", "Age (years): [PHI:age]"),
        ("age_years=91", "age_years=[PHI:age]"),
        ("age in years: 91", "age in years: [PHI:age]"),
        ("ageInYears: 91", "ageInYears: [PHI:age]"),
        ("age_at_admission=91", "age_at_admission=[PHI:age]"),
        ("age_at_expiry=91", "age_at_expiry=91"),
        ("max_age_years=91", "max_age_years=91"),
    ],
)  # fmt: skip
def test_rarer_ways_to_write_it(text: str, clean: str) -> None:
    """The whole of it goes, and its nearest neighbour stays."""
    assert scan(f"seen {text} ok")[0] == f"seen {clean} ok"


@pytest.mark.parametrize(
    "text",
    ["0.123456789", "3.078051120", "078051120.5 s", "078051120.25", "a078051120", "x1a078051120", "078051120b",
     "20240301tea"],
)  # fmt: skip
def test_a_part_of_a_fraction_or_of_a_word_is_no_number(text: str) -> None:
    """Nine digits are a social security number only where they stand alone, at the end of a sentence too."""
    assert scan(text)[1] == scan(f"took {text} ok")[1] == ()
    assert scan("it is 078051120.")[0] == "it is [PHI:ssn]."


@pytest.mark.parametrize(
    ("text", "kinds"),
    [
        ("10.0.0.1", ("ip",)),
        ("255.255.255.255", ("ip",)),
        ("256.10.10.10", ()),
        ("10.10.10.256", ()),
        ("10.0.0.0", ()),
        ("10 20 30 40", ()),
        ("0000:0000:0000:0000:0000:ffff:255.255.255.255", ("ip",)),
        ("12:34:56:78", ()),
        ("::1z", ()),
        ("x::1", ()),
        ("ip:2001:db8::1", ("ip",)),
        ("iface:fe80::1ff:fe23:4567:890a", ("ip",)),
        ("2001:db8::1: refused", ("ip",)),
        ("2001:db8:0:0:8:800:200c:417a: timed out", ("ip",)),
        ("::ffff:192.0.2.1: refused", ("ip",)),
        ("x::1: refused", ()),
        ("a::b::1", ()),
        ("std::x", ()),
        ("10:22:33:", ()),
        ("file.py:12:3: error", ()),
        ("sha256:ab:cd:ef", ()),
    ],
)
def test_addresses(text: str, kinds: tuple[str, ...]) -> None:
    """Up to the longest IPv6 address; no part of an IPv4 address is above 255, and a version is none."""
    assert scan(f"host {text} up")[1] == kinds


def test_what_follows_a_finding_in_a_folded_text_is_kept() -> None:
    """Letters beyond ASCII are folded for the search only; the replacement ends where the identifier does."""
    assert scan("caf\u00e9 \uff10\uff17\uff18-05-112\uff10, ok")[0] == "caf\u00e9 [PHI:ssn], ok"


@pytest.mark.parametrize("www", ["www.", "WWW.", "Www."])
def test_a_host_without_a_scheme(www: str) -> None:
    """It begins with three w, large or small, also in text without a digit or a colon."""
    assert scan(f"see {www}clinic.org/jane-doe ok")[0] == "see [PHI:url] ok"


class TestUuids:
    """A UUID is a surrogate."""

    @pytest.mark.parametrize("frame", ["{}", "visit {} done", "{}, {}"])
    def test_its_digits_are_no_number(self, frame: str) -> None:
        """Alone and in a text, though its groups read as a date and a card."""
        text = frame.format(UUID, UUID)
        assert scan(text) == (text, ())

    def test_what_follows_it_is_found_where_it_stands(self) -> None:
        """Only the UUID is skipped."""
        assert scan(f"visit {UUID} call 212-555-0123 ok")[0] == f"visit {UUID} call [PHI:phone] ok"

    def test_a_longer_number_is_none(self) -> None:
        """One digit more, and it is read like any text."""
        assert scan(f"visit {UUID}1 done")[0] != f"visit {UUID}1 done"


class TestKeywords:
    """Words that tell what the number after them is."""

    @pytest.mark.parametrize(
        "word",
        [
            "medical record", "social security", "policy number", "policy no", "member id", "patient id", "patient number",
            "patient no", "chart number", "chart no", "health plan", "subscriber", "beneficiary", "medicare", "medicaid",
            "passport", "mrn", "ssn", "npi", "mbi", "hicn", "dea", "iban", "imei", "udi", "vin", "nhs",
        ],
    )  # fmt: skip
    def test_after_a_strong_word_one_digit_is_enough(self, word: str) -> None:
        """Three characters with a digit among them are an identifier, a year too."""
        for written in (word, word.replace(" ", "_"), word.upper().replace(" ", "-"), word.replace(" ", ".")):
            assert scan(f"x {written} qq7 ok")[0] == f"x {written} [PHI:id] ok"
            assert scan(f"x {written} 1950 ok")[1] == ("id",)

    @pytest.mark.parametrize(
        "word",
        ["account", "acct", "member", "policy", "license", "licence", "serial", "device", "claim", "encounter", "admission",
         "certificate", "patient", "record", "prescription", "plan", "chart", "card"],
    )  # fmt: skip
    def test_after_a_weak_word_it_takes_four_digits(self, word: str) -> None:
        """`record 881` counts something; trace and span ids are no record's."""
        assert scan(f"x {word}: q8812 ok")[0] == f"x {word}: [PHI:id] ok"
        for other in ("q881", "4bf92f3577b34da6", "4bf92f3577b34da6a3ce929d0e0e4736"):
            assert scan(f"x {word}: {other} ok")[1] == ()

    @pytest.mark.parametrize("word", ["date of birth", "birth date", "birthdate", "birthday", "dob", "born"])
    def test_after_birth_a_plain_year_may_stay(self, word: str) -> None:
        """45 CFR 164.514(b)(2)(i)(C): the year is no identifier, anything more exact is."""
        for written in (word, word.replace(" ", "_"), word.upper().replace(" ", "-"), word.replace(" ", ".")):
            assert scan(f"x {written} 1950 ok")[1] == ()
            assert scan(f"x {written} 3/1 ok")[0] == f"x {written} [PHI:id] ok"

    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("MRN        7654321", "MRN        [PHI:id]"),
            ("| MRN        | 7654321 |", "| MRN        | [PHI:id] |"),
            ("Patient ID:           A765", "Patient ID:           [PHI:id]"),
            ("MRN\t\t\t\t\t\t\t\t765", "MRN\t\t\t\t\t\t\t\t[PHI:id]"),
            (f"MRN{' ' * 87}765", f"MRN{' ' * 87}765"),
            ("MRN\n\n\n\n\n\n\n765", "MRN\n\n\n\n\n\n\n765"),
            ("MRN          [PHI:id]          765", "MRN          [PHI:id]          765"),
        ],
    )
    def test_a_column_of_a_table(self, text: str, clean: str) -> None:
        """Some forty blanks may fill it up on either side of the signs between keyword and number; a mark still parts them."""
        assert scan(text)[0] == clean

    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("ssn=078-05-1120", "ssn=[PHI:ssn]"),
            ("mrn=A-1234", "mrn=[PHI:id]"),
            ("email=a@b", "email=[PHI:email]"),
        ],
    )
    def test_the_most_telling_kind_names_it(self, text: str, clean: str) -> None:
        """Where a field's name, a keyword and a form find the same, the form says most, then the keyword."""
        assert scan(text)[0] == clean


class TestLength:
    """The longest text that is scanned."""

    def test_4096_characters_are_scanned_and_kept(self) -> None:
        """The limit itself is within it."""
        text = "x" * 4095 + "1"
        assert scan(text) == (text, ())
        assert scan(text + "1")[1] == ("length",)

    def test_of_a_longer_one_all_but_the_margin_is_kept(self) -> None:
        """The last 128 characters are scanned, so that nothing is cut in two, and not kept."""
        assert scan("x" * 5000)[0] == "x" * 3968 + "[PHI:length]"

    def test_marks_do_not_count(self) -> None:
        """A text that an earlier pass made longer is not cut by the next."""
        once = scan("078-05-1120 a@b " * 255)[0]
        assert len(once) > 4096
        assert scan(once)[0] == once


class TestEnds:
    """Where a shape begins and ends."""

    @pytest.mark.parametrize(
        ("text", "shown"),
        [
            ("see ward_2.Patient(name='John')", "see [PHI:type]"),
            ("_x.Patient(name='John')", "[PHI:type]"),
            ("@ward john.smith@example.org", "@ward [PHI:email]"),
            ("NO9386011117947 paid", "[PHI:iban] paid"),
            ("pay GB82 WEST 1234 5698 7654 32 2026 today", "pay [PHI:iban] 2026 today"),
            ("+1 23456 78901 2345 now", "[PHI:phone] now"),
            ("+12345 67890 123456 now", "[PHI:phone] 123456 now"),
            ("call 0049 30 12345678901", "call [PHI:phone]"),
            ("call 0049 30 123456789012", "call 0049 30 123456789012"),
        ],
    )
    def test_found_whole(self, text: str, shown: str) -> None:
        """The whole of it, and no more."""
        assert scan(text)[0] == shown
