"""The leak assertions: a planted value is found in every form, and what is said of it never holds it."""

from __future__ import annotations

import base64
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from urllib.parse import quote, quote_plus

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs.testing import assert_indistinguishable, assert_no_phi

NAME = "Zoë Quaßler-Ní"
SSN = "078-05-1120"
FORMS: dict[str, Callable[[str], str]] = {
    "plain": str,
    "plain, upper case": str.upper,
    "plain, JSON": lambda value: json.dumps({"x": value}),
    "hex": lambda value: value.encode().hex(),
    "hex, upper case": lambda value: value.encode().hex().upper(),
    "percent-encoding": lambda value: quote(value, safe=""),
    "percent-encoding, form": quote_plus,
    "percent-encoding, all": lambda value: "".join(f"%{byte:02x}" for byte in value.encode()),
    "base64, offset 0": lambda value: base64.b64encode(value.encode() + b"...").decode(),
    "base64, offset 1": lambda value: base64.b64encode(b"." + value.encode() + b".").decode(),
    "base64, offset 2": lambda value: base64.b64encode(b"\xff\xfe" + value.encode() + b"..").decode(),
    "base64, URL": lambda value: base64.urlsafe_b64encode(b"\xff\xfe" + value.encode() + b"..").decode(),
}


class TestAssertNoPhi:
    """`assert_no_phi`."""

    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("value", [NAME, "john.smith@example.org"])
    def test_finds_every_form(self, form: str, value: str) -> None:
        """Whatever a sink does to a value, it is found, and the message does not hold it."""
        if form == "plain, upper case":
            value = value.encode("ascii", "ignore").decode()  # bytes are compared without case in ASCII only
        with pytest.raises(AssertionError, match=f"needle as {form.partition(',')[0]} in text 1") as found:
            assert_no_phi({"needle": value}, f"before {FORMS[form](value)} after")
        assert value not in str(found.value)

    @pytest.mark.parametrize(
        "text", ["078051120", "078 05 1120", "(078) 05 - 1120", "0 7 8 0 5 1 1 2 0", "078\n05\n1120"]
    )
    def test_finds_digits_however_they_are_separated(self, text: str) -> None:
        """A number is the same with other separators."""
        with pytest.raises(AssertionError, match="ssn as digits"):
            assert_no_phi({"ssn": SSN}, f"x{text}x".encode())

    def test_finds_utf_16(self) -> None:
        """Two-byte text is text."""
        with pytest.raises(AssertionError, match="name as plain"):
            assert_no_phi({"name": NAME}, NAME.encode("utf-16-le"))

    @pytest.mark.parametrize("text", ["", "[PHI:ssn]", "078-05-112", "Zoe Quassler", "07a805112 0"])
    def test_passes_what_holds_none(self, text: str) -> None:
        """Text without the value is no leak."""
        assert_no_phi({"ssn": SSN, "name": NAME}, text)

    def test_looks_through_folders_and_databases(self, tmp_path: Path) -> None:
        """Each file below a folder is read, and an SQLite file also cell by cell: a long one is stored in pieces."""
        (tmp_path / "deep" / "er").mkdir(parents=True)
        (tmp_path / "deep" / "er" / "log.txt").write_text(f"x {SSN} y", encoding="utf-8")
        with sqlite3.connect(tmp_path / "state.db") as connection:
            connection.execute("PRAGMA page_size = 512")
            connection.execute("CREATE TABLE notes (id INTEGER, body TEXT, raw BLOB)")
            connection.execute("INSERT INTO notes VALUES (?, ?, ?)", (1, "x" * 470 + NAME * 20, None))
            connection.execute("INSERT INTO notes VALUES (?, ?, ?)", (2, "", b"\0" * 900 + SSN.encode()))
        connection.close()
        with pytest.raises(AssertionError) as found:
            assert_no_phi({"ssn": SSN, "name": NAME}, tmp_path)
        said = str(found.value)
        for part in (
            "ssn as plain in log.txt",
            "name as plain in table notes of state.db",
            "ssn as plain in table",
        ):
            assert part in said

    def test_an_assertion_that_cannot_fail_is_refused(self, tmp_path: Path) -> None:
        """Nothing to look for, nowhere to look, or a value that is found by chance."""
        with pytest.raises(ValueError, match="nothing was looked for"):
            assert_no_phi({}, "text")
        with pytest.raises(ValueError, match="nothing was looked for"):
            assert_no_phi({"ssn": SSN})
        with pytest.raises(ValueError, match="nothing was looked through"):
            assert_no_phi({"ssn": SSN}, tmp_path)
        with pytest.raises(ValueError, match="at least 6 characters"):
            assert_no_phi({"initials": "JS"}, "text")
        with pytest.raises(FileNotFoundError):
            assert_no_phi({"ssn": SSN}, tmp_path / "missing")

    @given(
        st.binary(max_size=7),
        st.text(st.characters(codec="utf-8"), min_size=6, max_size=30),
        st.binary(max_size=7),
    )
    def test_base64_is_found_at_any_offset(self, before: bytes, value: str, after: bytes) -> None:
        """Whatever stands before and after it."""
        with pytest.raises(AssertionError):
            assert_no_phi({"value": value}, base64.b64encode(before + value.encode() + after))


class TestAssertIndistinguishable:
    """`assert_indistinguishable`."""

    def test_equal_recordings_pass(self) -> None:
        """The same bytes tell nothing."""
        assert_indistinguishable({"logs": "a\nb", "spans": ""}, {"spans": "", "logs": "a\nb"})

    @pytest.mark.parametrize(
        ("first", "second", "said"),
        [
            ({"logs": "a\nb x"}, {"logs": "a\nb y"}, "logs differ in line 2 after 'b '"),
            ({"logs": "a\nb"}, {"logs": "a"}, "logs have 2 and 1 lines"),
            ({"logs": "a"}, {"logs": "ab"}, "logs differ in line 1 after 'a'"),
            ({"logs": "a\nb"}, {"logs": "a\r\nb"}, "logs differ in how lines end"),
            ({"logs": ""}, {"logs": ""}, "nothing was recorded"),
            ({}, {}, "nothing was recorded"),
            ({"logs": "a"}, {"spans": "a"}, "logs is in one recording only; spans is in one recording only"),
        ],
    )
    def test_a_difference_is_placed_not_shown(
        self, first: dict[str, str], second: dict[str, str], said: str
    ) -> None:
        """The message says where, and quotes only what both have."""
        with pytest.raises(AssertionError) as found:
            assert_indistinguishable(first, second)
        assert str(found.value) == said

    def test_a_declared_difference_is_left_out(self) -> None:
        """Only what its expression matches."""
        declared = {"length": r"Content-Length: \d+"}
        one, other = "Content-Length: 5\nx", "Content-Length: 17\nx"
        assert_indistinguishable({"headers": one}, {"headers": other}, declared=declared)
        with pytest.raises(AssertionError, match="headers differ in line 2 after ''"):
            assert_indistinguishable({"headers": one}, {"headers": f"{other[:-1]}y"}, declared=declared)

    def test_a_declared_difference_that_does_not_occur_fails(self) -> None:
        """A list of exceptions that is too long hides leaks."""
        with pytest.raises(AssertionError, match="the declared difference length does not occur: drop it"):
            assert_indistinguishable({"a": "x"}, {"a": "x"}, declared={"length": "Content-Length"})
