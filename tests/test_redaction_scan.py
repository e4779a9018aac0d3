"""Identifiers in free text: each kind is found, clean text stays as it is, and hostile text costs no more."""

from __future__ import annotations

import random
import string
import time

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from healthobs.redaction.identifiers import is_card, luhn
from healthobs.redaction.scan import SCAN_LIMIT, find, scan

FOUND = [
    ("078-05-1120", "ssn"),
    ("078 05 1120", "ssn"),
    ("078.05.1120", "ssn"),
    ("987-65-4321", "ssn"),
    ("078051120", "ssn"),
    ("212-555-0123", "phone"),
    ("(212) 555-0123", "phone"),
    ("(212)555-0123", "phone"),
    ("(212)5550123", "phone"),
    ("212-5550123", "phone"),
    ("212.555.0123", "phone"),
    ("1-212-555-0123", "phone"),
    ("+1 (212) 555-0123", "phone"),
    ("+442079460958", "phone"),
    ("+44 20 7946 0958", "phone"),
    ("12125550123", "phone"),
    ("2125550123", "phone"),
    ("555-0123", "phone"),
    ("john.smith@example.org", "email"),
    ("root@localhost", "email"),
    ("2024-03-01", "date"),
    ("1950-3-1", "date"),
    ("03/01/1950", "date"),
    ("3/1/50", "date"),
    ("31.12.1949", "date"),
    ("19500301", "date"),
    ("03011950", "date"),
    ("03/1950", "date"),
    ("2024-03-01T10:30:00.123456Z", "date"),
    ("20240301T103000Z", "date"),
    ("2024-03-01 10:30:00+02:00", "date"),
    ("March 1, 1950", "date"),
    ("1st of March 1950", "date"),
    ("01-Mar-1950", "date"),
    ("sept. 2024", "date"),
    ("May 5th", "date"),
    ("5 May 1950", "date"),
    ("192.168.10.24", "ip"),
    ("2001:db8::8a2e:370:7334", "ip"),
    ("::ffff:192.0.2.1", "ip"),
    ("00:1a:2b:3c:4d:5e", "mac"),
    ("00-1A-2B-3C-4D-5E", "mac"),
    ("de:ad:be:ef:ca:fe", "mac"),
    ("https://phi.example/patients/john-smith", "url"),
    ("www.example.org/john", "url"),
    ("4111111111111111", "card"),
    ("4111 1111 1111 1111", "card"),
    ("4111-1111-1111-1111", "card"),
    ("3782 822463 10005", "card"),
    ("1234567893", "npi"),
    ("1EG4-TE5-MK73", "mbi"),
    ("1EG4TE5MK73", "mbi"),
    ("AB1234563", "dea"),
    ("1HGCM82633A004352", "vin"),
    ("GB29NWBK60161331926819", "iban"),
    ("GB29 NWBK 6016 1331 9268 19", "iban"),
    ("(01)00884838000032(17)251231(10)A1B2", "udi"),
    ("12345678901234567890123", "number"),
    ("eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiIxIn0.c2ln", "secret"),
    ("\uff10\uff17\uff18-05-1120", "ssn"),
    ("078\u2013\u200b05\u20111120", "ssn"),
    ("0\u030378-05-1120", "ssn"),
    ("john\uff20example.org", "email"),
    ("\u0660\u0667\u0668-\u0660\u0665-\u0661\u0661\u0662\u0660", "ssn"),
]

AFTER_A_KEYWORD = [
    ("MRN: A-1234", "id"),
    ("mrn 77", None),
    ("MRN 1800", "id"),
    ("SSN 1999", "id"),
    ("born 1950", None),
    ("born 3/1", "id"),
    ("medical record number is 991827", "id"),
    ("account 00123456", "id"),
    ("Acct# 8812-3391", "id"),
    ("policy no. H8837721", "id"),
    ("patient id 8812", "id"),
    ("patient_id = patient_id_123", "id"),
    ("mrn 4bf92f3577b34dea", "id"),
    ("dea 0x7feb65ed05e5", "id"),
    ("seen 05DEC1950", "date"),
    ("loinc 1950-3-1", "date"),
    ("loinc 8480-6 1950-3", "date"),
    ("mrn = xmrn_1", "id"),
    ("member id jane_12", "id"),
    ("patient_id = jane_123", "id"),
    ("device serial number SN-88213", "id"),
    ("phone: 0221 4567 89", "phone"),
    ("aged 94", "age"),
    ("94-year-old", "age"),
    ("94 y/o", "age"),
    ("age: 101", "age"),
    ("Authorization: Bearer abcdefghijk1", "secret"),
    ("name=John Smith", "key"),
    ('{"name": "John O\'Brien"}', "key"),
    ("password: hunter2", "key"),
    ("Patient(name='John', age=5)", "type"),
]

WRITTEN = [
    ('{"patientId": "A7654321"}', '{"patientId": "[PHI:id]"}'),
    ('{"memberId":"W1234567", "x": 1}', '{"memberId":"[PHI:id]", "x": 1}'),
    ('{"medicalRecordNumber": "7654321"}', '{"medicalRecordNumber": "[PHI:id]"}'),
    ('{"patientMrn": 7654321}', '{"patientMrn": [PHI:id]}'),
    ('{\\"memberId\\": \\"W1234567\\"}', '{\\"memberId\\": \\"[PHI:id]\\"}'),
    ('{\\"mrn\\": \\"7654321\\"}', '{\\"mrn\\": [PHI:key]}'),
    ('{\\"name\\": \\"Ottoline\\"}', '{\\"name\\": [PHI:key]}'),
    ('{"name": "Otto \\"Line\\" Smith"}', '{"name": "[PHI:key]"}'),
    ("patientMRN=7654321 ok", "patientMRN=[PHI:id] ok"),
    ("primaryMRNNumber=7654321 ok", "primaryMRNNumber=[PHI:id] ok"),
    ("homePhone: 0221 4567 89 ok", "homePhone: [PHI:phone] ok"),
    ("patientId=aB765d4321x ok", "patientId=[PHI:id] ok"),
    ('{"patient_id": "A765"}', '{"patient_id": "[PHI:id]"}'),
    ("patient_id=A765 ok", "patient_id=[PHI:id] ok"),
    ("Patient-ID: 765 ok", "Patient-ID: [PHI:id] ok"),
    ("GET /patients/7654321/visits failed", "GET /patients/[PHI:id] failed"),
    ("read members/W12345.json ok", "read members/[PHI:id] ok"),
    ("patient.number=765 ok", "patient.number=[PHI:id] ok"),
    ("MEDICAL_RECORD_NUMBER=765 ok", "MEDICAL_RECORD_NUMBER=[PHI:id] ok"),
    ("{'member_id': 'W12'}", "{'member_id': '[PHI:id]'}"),
    ("Key (policy_no)=(P12) exists", "Key (policy_no)=([PHI:id]) exists"),
    ("date_of_birth=5 3 1950 ok", "date_of_birth=[PHI:date] ok"),
    ("birth-date 1950 3 5 ok", "birth-date [PHI:date] ok"),
    ('{"patientAge": 93}', '{"patientAge": [PHI:age]}'),
    ("MRN [7654321]", "MRN [[PHI:id]]"),
    ("phone [0221 4567 89]", "phone [[PHI:phone]]"),
    ("age [93]", "age [[PHI:age]]"),
    ("mrn b'7654321'", "mrn b'[PHI:id]'"),
    ("'MRN\\n7654321'", "'MRN\\n[PHI:id]'"),
    ("'x\\nMRN 7654321'", "'x\\nMRN [PHI:id]'"),
    ("'x\\n078051120'", "'x\\n[PHI:ssn]'"),
    ("'x\\t2125550123 y'", "'x\\t[PHI:phone] y'"),
    ("'x\\r\\nj@x.org'", "'x\\r\\n[PHI:email]'"),
    ("\x1b[1m078051120\x1b[0m", "\x1b[1m[PHI:ssn]\x1b[0m"),
    ("\x1b[36mmrn\x1b[0m=\x1b[35;1m7654321\x1b[0m", "\x1b[36mmrn\x1b[0m=\x1b[35;1m[PHI:id]\x1b[0m"),
    ("078\x1b[1m-05-\x1b[0m1120 ok", "[PHI:ssn] ok"),
]

CLEAN = [
    "",
    "payment_declined",
    "took 12.5 ms for 3 items",
    "retry 3 of 5 in 0.25 s",
    "GET /patients/{patient_id} 200",
    "at 10:30:00 the pool had 16 threads",
    "HTTP/1.1 503 Service Unavailable",
    "healthobs 0.1.0 on Python 3.11.2",
    "550e8400-e29b-41d4-a716-446655440000",
    "4bf92f3577b34da6a3ce929d0e0e4736",
    "00f067aa0ba902b7",
    "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
    "healthobs.redaction:Redactor.value:120",
    "ratio 3.141592653589 of 0.123456789",
    "1700000000.123456 seconds",
    "std::vector a::b",
    "00-8e1302ef38d10af5de8dea58b1aeea97-bef4b7633f733dec-01",
    "commit e1684dea2761e64dd5acd36b3aea71d145fa6884, object 5b59e12FEB19d50d33b6bc87",
    "<object at 0x7feb65ed05e5>",
    "codes LOINC 1975-2, loinc: 2093-3",
    "traceparent 00-767cf73d5472fcd500f5a69f73aca292-2661a0d7d1d2929c-01",
    "00-b5e6edc291e6726a8570158b43a40efb-a4a8696f1f7d1921-01",
    "GET /patients/{mrn} 200",
    "GET /patients/search 2024, /patients/<mrn>/icd10 503, patients/550e8400-e29b-41d4-a716-446655440000",
    "status 404 5550123, 112-5550123, (212)1550123",
    "FROM patient JOIN visit AS visit_1 ON patient.id = visit_1.patient_id WHERE date_of_birth < :param_1",
    "SELECT id FROM visits WHERE patient_id = %(patient_id_1)s AND mrn IN (:mrn_12)",
    "Cache-Control: max-age=120, minAge=100",
    "BP 120/80, pulse 72",
    "Mozilla/5.0 (X11; Linux x86_64) Chrome/120.0.0.0 Safari/537.36",
    "aged 42, 35 years old",
    "May 5 workers start",
    "60 days retention, 2555 days kept",
    "section 164.312(b)",
    "page 100-2000",
    "status: ok",
    "key=value",
    "10,000,000 rows",
    "caf\u00e9 \u2192 na\u00efve \u2603 42",
]


class TestScan:
    """`scan`: text in, text with marks and the kinds out."""

    @pytest.mark.parametrize(("needle", "kind"), FOUND)
    @pytest.mark.parametrize("frame", ["{}", "about {} today", "({})", "a\n{}\n", "x={},"])
    def test_finds_each_kind_wherever_it_stands(self, needle: str, kind: str, frame: str) -> None:
        """An identifier is replaced whole, whatever stands around it."""
        text, kinds = scan(frame.format(needle))
        assert needle not in text
        assert kind in kinds
        assert text.replace("\n", " ").count("[PHI:") == len(kinds)

    @pytest.mark.parametrize(("text", "kind"), AFTER_A_KEYWORD)
    def test_finds_what_only_a_keyword_gives_away(self, text: str, kind: str | None) -> None:
        """A record or account number has no form of its own; the word before it tells."""
        expected = () if kind is None else (kind,)
        assert scan(text)[1] == expected

    @pytest.mark.parametrize(("text", "clean"), WRITTEN)
    def test_finds_it_in_what_was_written_as_text(self, text: str, clean: str) -> None:
        """JSON, a repr or colours inside a text hide neither the keyword nor where the number begins."""
        assert scan(text)[0] == clean
        assert scan(f"caf\u00e9 {text}")[0] == f"caf\u00e9 {clean}"

    @pytest.mark.parametrize(
        "text",
        ["lowerCase 7654321", "patientIdle 7654321", "cardinalPlane=76543", "patientId: 550e8400-e29b-41d4-a716-446655440000",
         "iPhone 12", "aMRNa 7654321", "\\x1b[1m12 rows\\x1b[0m", "mrn [PHI:id] 7654321", "mrn [PHI:ip]7654321"],
    )  # fmt: skip
    def test_leaves_what_is_only_written_alike(self, text: str) -> None:
        """A seam in a word makes no keyword of a part that is none; a mark stands between a keyword and a number."""
        assert scan(text)[1] == scan(f"caf\u00e9 {text}")[1] == ()

    @pytest.mark.parametrize("text", CLEAN)
    def test_leaves_clean_text_alone(self, text: str) -> None:
        """Text without an identifier comes back as the same object."""
        redacted, kinds = scan(text)
        assert (redacted, kinds) == (text, ())
        assert redacted is text

    def test_keeps_the_text_around_a_finding(self) -> None:
        """Only the identifier goes."""
        assert scan("call 212-555-0123 about 078-05-1120 now")[0] == "call [PHI:phone] about [PHI:ssn] now"

    def test_a_finding_inside_another_does_not_hide_the_rest(self) -> None:
        """`2-2024` reads as a month, yet the date that begins in it is replaced whole."""
        assert scan("2-2024-01-02")[0] == "[PHI:date]"

    def test_a_text_that_keeps_revealing_more_is_replaced(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """The passes are bounded; when they do not end, nothing of the text leaves."""
        monkeypatch.setattr("healthobs.redaction.scan._scan_once", lambda text: (f"{text}x", ("id",)))
        assert scan("mrn 1 text")[0] == "[PHI:length]"

    def test_a_long_record_number_goes_whole(self) -> None:
        """However long it is, no part of it stays."""
        assert scan("mrn " + "a1" * 400 + " rest")[0] == "mrn [PHI:id] rest"

    def test_a_number_with_too_many_digits_for_a_telephone_is_cut_there(self) -> None:
        """Fifteen digits are the most that E.164 allows; what follows is looked at on its own."""
        assert scan("+44 20 7946 0958 12345 6")[0] == "[PHI:phone] 12345 6"
        assert scan("+44 20")[1] == ()

    def test_letters_without_a_counterpart_are_kept(self) -> None:
        """Folding is for matching only."""
        text = "\u0130\ufb01\u01c5 \u2212 2125550123"
        assert scan(text)[0] == "\u0130\ufb01\u01c5 \u2212 [PHI:phone]"

    def test_a_card_with_a_wrong_check_digit_is_no_card(self) -> None:
        """The Luhn check keeps other long numbers."""
        assert scan("order 4111111111111112")[1] == ()


class TestScanLimit:
    """Text beyond the limit is replaced, never passed."""

    def test_replaces_the_tail(self) -> None:
        """What is not scanned does not leave."""
        text, kinds = scan("a " * SCAN_LIMIT + "078-05-1120")
        assert "1120" not in text
        assert kinds == ("length",)
        assert len(text) <= SCAN_LIMIT

    @pytest.mark.parametrize("offset", range(0, 160, 3))
    def test_an_identifier_on_the_edge_is_never_cut_in_two(self, offset: int) -> None:
        """Half an identifier is still part of one."""
        text, _ = scan("x " * ((SCAN_LIMIT - offset) // 2) + "078-05-1120 " + "y " * 200)
        assert "078" not in text

    @pytest.mark.parametrize(
        "unit",
        ["1", "1-", "1 ", "1.", "a@", "@", "a:", ":", "://", "www.", "jan ", "name=", "mrn ", "(a", "f(a=", "ey",
         "ey-.", "1a", "a1", "0-", "aa-", "aa:", "gb29 ", "(01)", "may 5", "+1 ", "(", "age ", "1/2/", "٣", "\u200b1",
         "[PHI:ssn]", "bearer ", "policy no ", "99 year", "phone (", "aB", "mrnId 1", "\\\\n", "\x1b[1m", "\x1b[", "patientId ", "mrn [", '"a', '"a"@', "078_05_", "4111|", "13.02.", "born 1950 3 ",
         "0049 30 ", "06 12 ", "4111|1111|", "gb82 west ", "mrn" + " " * 50, "mrn" + " \t" * 30 + ":", "x:1", "12/mar/", "1_mar_", "2thmar",
         "age in years ", "00:1a:", "1a::", "93 y.", "0011.2233.", "1eg4 ", "gb82-", "5. m\u00e4rz ", 'name="\\\\'],
    )  # fmt: skip
    def test_hostile_text_is_bounded(self, unit: str) -> None:
        """Forty kilobytes made to provoke backtracking cost at most four scans of what fits the limit."""
        began = time.process_time()
        text, _ = scan(unit * (40_960 // len(unit)))
        assert len(text) <= 4 * SCAN_LIMIT
        assert time.process_time() - began < 5  # quadratic work would take minutes; this is no benchmark

    @pytest.mark.parametrize("unit", ["1-", "a@a", "name=x ", "(a=", "ey1.", "1 jan ", "mrn 1 "])
    def test_findings_grow_no_faster_than_the_text(self, unit: str) -> None:
        """Twice the text gives at most about twice the findings, so nothing is counted over and over."""
        short, long = find(unit * 200), find(unit * 400)
        assert len(long) <= 2 * len(short) + 8


def _with_check_digit(body: str) -> str:
    return next(body + digit for digit in string.digits if luhn(body + digit))


digits = st.text("0123456789", min_size=1)


def _digits(count: int) -> st.SearchStrategy[str]:
    return st.text("0123456789", min_size=count, max_size=count)


ssns = st.builds("{}-{}-{}".format, _digits(3), _digits(2), _digits(4))
phones = st.builds("({}) {}-{}".format, _digits(3), _digits(3), _digits(4))
emails = st.builds("{}@{}.org".format, st.text("abcxyz.", min_size=1), st.text("abcxyz", min_size=1))
dates = st.builds(
    "{:04d}-{:02d}-{:02d}".format, st.integers(1850, 2099), st.integers(1, 12), st.integers(1, 31)
)
cards = st.builds(lambda head, body: _with_check_digit(head + body), st.sampled_from("23456"), _digits(14))
# `120.0.0.0` is a version, no host.
addresses = st.ip_addresses(v=4).map(str).filter(lambda text: not text.endswith(".0.0.0"))
records = st.builds("MRN {}".format, st.integers(1000, 10**9))
needles = st.one_of(ssns, phones, emails, dates, cards, addresses, records)
around = st.text(st.characters(codec="utf-8"), max_size=40)


class TestScanProperties:
    """What holds for any text."""

    @given(around, needles, around)
    def test_a_planted_identifier_never_comes_out(self, before: str, needle: str, after: str) -> None:
        """Whatever stands around it, as long as a blank ends it."""
        text, _ = scan(f"{before}; {needle} ;{after}")
        assert needle.removeprefix("MRN ") not in text

    @given(st.lists(st.one_of(needles, around, st.sampled_from(["[PHI:ssn]", "name=", "mrn ", "://", "1-"]))))
    def test_a_second_pass_changes_nothing(self, parts: list[str]) -> None:
        """Redaction is idempotent: marks are never taken for identifiers, nor joined with what follows."""
        once, _ = scan("".join(parts))
        assert scan(once)[0] == once

    @given(st.text(max_size=200))
    def test_nothing_is_invented(self, text: str) -> None:
        """Outside its marks the result is the input, in order."""
        result = scan(text)[0]
        position = 0
        for piece in result.split("[PHI:"):
            kept = piece if piece is result.split("[PHI:")[0] else piece.partition("]")[2]
            position = text.index(kept, position) + len(kept)
        assert position <= len(text)

    def test_the_quick_look_at_short_text_misses_nothing(self) -> None:
        """What is let through for its few digits and plain words is what the whole search finds nothing in."""
        words = "age aged born card cafe client deadbeef dob ey feb mar may member MRN patient phone Policy step www x yo"
        signs = (
            "- - . . _ / : = @ ( ) # [ ] \\n \\ , ; ' 0 7 95 1234 3/1/50 555-0123 ab.12 cd.34 a1b2.c3d4.e5f6"
        )
        whole_ones = (
            "patientMRN aa-bb-cc- dd-ee-ff eyabcdefghi.abcd.x 1/mar/50 2_dec_1950 1950/May/5 3rdJan 1stmay years of yrs in at "
            "admission :: ip:2001:db8 00:1a:2b: 3c:4d:5e"
        )
        parts = [*f"{words} {signs} {whole_ones}".split(), " ", " "]
        chosen = random.Random(7)
        found = 0
        for _ in range(60_000):
            text = "".join(chosen.choices(parts, k=chosen.randrange(1, 9)))
            text += "" if any(map(str.isdigit, text)) else " 1"  # without a digit it is another look
            whole = find(text.lower(), text)
            found += whole != []
            assert (scan(text)[1] == ()) == (whole == []), text
        assert found > 1_000

    @given(cards)
    @example("4111111111111111")
    def test_generated_cards_are_cards(self, card: str) -> None:
        """The generator of this module plants what it says."""
        assert is_card(card)


class TestWhatMutantsShowed:
    """Rules that no test held until a planted fault survived."""

    @pytest.mark.parametrize(
        ("number", "kind"),
        [
            ("000051120", None),
            ("666051120", None),
            ("078001120", None),
            ("078050000", None),
            ("078051120", "ssn"),
        ],
    )
    def test_numbers_that_nobody_was_given(self, number: str, kind: str | None) -> None:
        """Area 000 and 666, group 00 and serial 0000 are never issued: nine digits alone are then no number of a person."""
        assert scan(f"ref {number} ok")[1] == (() if kind is None else (kind,))

    @pytest.mark.parametrize("token", ["1hgcm82633a004353", "11111111111111111", "abcdefghjklmnprst"])
    def test_tokens_that_are_no_vehicle(self, token: str) -> None:
        """A wrong check digit, digits only and letters only are no vehicle's number."""
        assert "vin" not in scan(f"code {token} x1234")[1]

    def test_blanks_of_other_scripts_separate_like_ascii_ones(self) -> None:
        """A thin, an ideographic, a no-break and an Ogham space stand between digit groups as a blank does."""
        for blank in ("\u2009", "\u3000", "\u00a0", "\u1680"):
            assert scan(f"078{blank}05{blank}1120")[0] == "[PHI:ssn]"

    @pytest.mark.parametrize("text", ["call 2121550123 ok", "call 0125550123 ok", "seen 13/45/1950 ok"])
    def test_numbers_that_cannot_be(self, text: str) -> None:
        """No area code or exchange begins with 0 or 1 (NANP), and no month has 45 days."""
        assert scan(text)[1] == ()

    def test_cards_have_at_most_nineteen_digits(self) -> None:
        """ISO/IEC 7812-1: a longer number is none, whatever its check digit."""
        assert is_card(_with_check_digit("4" * 18)) is True
        assert is_card(_with_check_digit("4" * 19)) is False

    @pytest.mark.parametrize(
        ("text", "clean"),
        [
            ("call (212) 555-0123 ok", "call [PHI:phone] ok"),
            ("call +1 212 555 0123 ok", "call [PHI:phone] ok"),
            ("host ::1 up", "host [PHI:ip] up"),
        ],
    )
    def test_the_whole_of_it_goes(self, text: str, clean: str) -> None:
        """The bracket or plus before a telephone number goes with it; the shortest IPv6 address is one."""
        assert scan(text)[0] == clean

    @pytest.mark.parametrize(
        "field",
        ["name", "patient_name", "first name", "lastname", "surname", "address", "street", "city", "zip", "diagnosis",
         "password", "passwd", "pwd", "secret", "token", "authorization", "api_key", "apikey", "cookie", "email", "phone",
         "fax", "ssn", "dob", "birthdate", "birth_date", "mrn"],
    )  # fmt: skip
    def test_every_named_field(self, field: str) -> None:
        """`field=value` and `field: value` lose the value."""
        assert "quassler" not in scan(f"x {field}=quassler")[0] + scan(f"{field}: quassler")[0]

    @pytest.mark.parametrize(
        "month",
        ["january", "february", "march", "april", "june", "july", "august", "september", "october", "november", "december"],
    )  # fmt: skip
    def test_every_month(self, month: str) -> None:
        """By its whole name and by three letters."""
        for name in (month, month[:3]):
            assert scan(f"seen {name} 14, 1950")[0] == "seen [PHI:date]"
            assert scan(f"seen 14 {name} 1950")[0] == "seen [PHI:date]"

    @pytest.mark.parametrize("text", ["mrn unknown, 1 visit", "born early, 1 visit"])
    def test_a_keyword_without_a_number(self, text: str) -> None:
        """A word after the keyword is no identifier."""
        assert scan(text)[1] == ()

    def test_the_shortest_address(self) -> None:
        """One character on each side of the sign is an e-mail address."""
        assert scan("ask a@b now")[0] == "ask [PHI:email] now"


class TestEnds:
    """Where a finding begins and ends, to the character."""

    @pytest.mark.parametrize(
        ("text", "left"),
        [
            ("see ftp://h/p x", "see [PHI:url] x"),
            ("write to a@b now", "write to [PHI:email] now"),
            ("x a@b@c y", "x [PHI:email] y"),
            ("at @home", "at @home"),
            ("a@ b", "a@ b"),
            ("@ @", "@ @"),
        ],
    )
    def test_exactly(self, text: str, left: str) -> None:
        """What is no part of it stays; a sign alone is no address."""
        assert scan(text)[0] == left

    def test_in_a_long_text(self) -> None:
        """The same where the text is longer than what is scanned."""
        text, _ = scan("é 078-05-1120 b " + "c " * SCAN_LIMIT)
        assert text.startswith("é [PHI:ssn] b c c ")
