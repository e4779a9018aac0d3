"""Subject tokens: random, stable while the subject is known, unlinkable once it is erased."""

from __future__ import annotations

import contextlib
import os
import sqlite3
import stat
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from tests.audit_trails import in_files, read_only
from tests.subject_places import FilePlace

from healthobs.audit import keys
from healthobs.audit.subjects import SubjectMap
from healthobs.exceptions import AuditError, ConfigurationError

IDENTIFIER = "MRN-00123-NEEDLE"


@pytest.fixture
def subjects(place: FilePlace) -> SubjectMap:
    return place.open()


class TestSubjectMap:
    """One function looks up or creates; erasing makes unlinkable."""

    def test_stable(self, subjects: SubjectMap, place: FilePlace) -> None:
        """An identifier keeps its token, in this process and the next; the token leads back."""
        token = subjects.token(IDENTIFIER)
        assert place.open().token(IDENTIFIER) == token
        assert place.open().identifier(token) == IDENTIFIER
        assert subjects.token("another") != token

    def test_not_derived(self, subjects: SubjectMap, place: FilePlace) -> None:
        """The same identifier under the same key file has another token in another map: chance made it."""
        assert place.another().open().token(IDENTIFIER) != subjects.token(IDENTIFIER)

    @pytest.mark.parametrize("strange", ["a\0b", "a\udc80b", "a%s'?b", ""])
    def test_odd_text(self, subjects: SubjectMap, strange: str) -> None:
        """An identifier with characters that a database treats apart, or refuses, is one as any other; asked for as a token it is none."""
        token = subjects.token(strange)
        assert (subjects.token(strange), subjects.find(strange)) == (token, token)
        assert (subjects.identifier(token), subjects.identifier(strange)) == (strange, None)
        assert subjects.erase(strange)

    def test_erased(self, subjects: SubjectMap) -> None:
        """After the erasure the token is nobody's, and the subject's next token is a new one."""
        token = subjects.token(IDENTIFIER)
        assert subjects.erase(token)
        assert subjects.identifier(token) is None
        assert subjects.token(IDENTIFIER) != token
        assert not subjects.erase(token)

    def test_nothing_readable_in_the_rows(self, subjects: SubjectMap, place: FilePlace) -> None:
        """The rows hold no identifier, sealed or hashed without the key."""
        subjects.token(IDENTIFIER)
        (row,) = place.execute("SELECT token, lookup, sealed FROM subject")
        assert IDENTIFIER.encode() not in b"".join(
            part if isinstance(part, bytes) else part.encode() for part in row
        )

    def test_nothing_readable_in_the_file(self, tmp_path: Path) -> None:
        """The file holds no identifier, and of an erased row not even the sealed bytes."""
        subjects = FilePlace(tmp_path).open()
        token = subjects.token(IDENTIFIER)
        with sqlite3.connect(tmp_path / "subjects.db") as connection:
            (sealed,) = connection.execute("SELECT sealed FROM subject").fetchone()
        connection.close()
        content = b"".join(in_files(tmp_path / "subjects.db"))
        assert (IDENTIFIER.encode() in content, sealed in content) == (False, True)
        with contextlib.closing(
            sqlite3.connect(tmp_path / "subjects.db")
        ) as other:  # a log beside it stays then
            other.execute("SELECT 1 FROM subject").fetchall()
            subjects.erase(token)
            content = b"".join(in_files(tmp_path / "subjects.db"))
        assert (sealed in content, token.encode() in content) == (False, False)

    def test_moved_row_is_noticed(self, subjects: SubjectMap, place: FilePlace) -> None:
        """A sealed identifier put under another token does not open: each is sealed for its own."""
        one, two = subjects.token("one"), subjects.token("two")
        moved = "UPDATE subject SET sealed = (SELECT sealed FROM subject WHERE token = ?) WHERE token = ?"
        place.execute(moved, one, two)
        with pytest.raises(AuditError, match="altered"):
            subjects.identifier(two)

    def test_other_key(self, subjects: SubjectMap, place: FilePlace, tmp_path: Path) -> None:
        """With another key the map is not opened, so that nobody gets a second token; with its own it is."""
        token = subjects.token(IDENTIFIER)
        place.another().open(tmp_path / "other.key")
        with pytest.raises(AuditError, match="key file is another"):
            place.open(tmp_path / "other.key")
        assert place.open().token(IDENTIFIER) == token

    def test_lost_key(self, subjects: SubjectMap, place: FilePlace) -> None:
        """A map with rows gets no new key in place of one that is gone."""
        subjects.token(IDENTIFIER)
        place.key.unlink()
        with pytest.raises(ConfigurationError, match=r"key file is missing; restore subjects\.key"):
            place.open()
        assert not place.key.exists()

    def test_lost_key_of_an_empty_file(self, tmp_path: Path) -> None:
        """A file without rows gets a new key."""
        place = FilePlace(tmp_path)
        subjects = place.open()
        token = subjects.token(IDENTIFIER)
        subjects.erase(token)
        place.key.unlink()
        assert place.open().token(IDENTIFIER) != token

    @pytest.mark.parametrize(
        "gone", [Path.unlink, lambda path: path.write_bytes(b"")], ids=["removed", "emptied"]
    )
    @pytest.mark.parametrize("form", [Path, "sqlite:///{}".format], ids=["path", "url"])
    def test_a_map_that_is_gone_is_not_begun_anew(
        self, tmp_path: Path, gone: Callable[[Path], object], form: Callable[[Path], Path | str]
    ) -> None:
        """A key whose map was there and is not any more begins no other in its place, until somebody says so."""
        place = FilePlace(tmp_path)
        place.place = form(place.file)
        token = place.open().token(IDENTIFIER)
        kept = place.file.read_bytes()
        gone(place.file)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=r"map .* is gone; restore it.* subjects\.key\.logs"):
                place.open()
        assert not place.is_there() or not place.file.read_bytes()
        place.file.write_bytes(kept)
        assert place.open().find(IDENTIFIER) == token
        place.another().open()
        noted = tmp_path / "subjects.key.logs"
        lines = noted.read_text().splitlines()
        assert lines == [f"subjects {place.file}", f"subjects {tmp_path}/another.db"]
        place.file.unlink()
        noted.write_text(lines[1])
        assert place.open().token(IDENTIFIER) != token

    def test_a_map_from_before_it_was_noted(self, tmp_path: Path) -> None:
        """A map of which nobody wrote down that it was begun opens as before, and is not begun anew afterwards."""
        place = FilePlace(tmp_path)
        place.open().token(IDENTIFIER)
        (tmp_path / "subjects.key.logs").unlink()
        assert place.open().find(IDENTIFIER)
        place.file.unlink()
        with pytest.raises(ConfigurationError, match="is gone"):
            place.open()

    def test_a_key_that_was_there_first(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key that was put there, in a folder that takes no file beside it, begins a map all the same."""
        place = FilePlace(tmp_path)
        place.another().open()
        (tmp_path / "subjects.key.logs").unlink()
        monkeypatch.setattr(os, "replace", read_only)
        token = place.open().token(IDENTIFIER)
        assert place.open().find(IDENTIFIER) == token
        assert not (tmp_path / "subjects.key.logs").exists()

    def test_begun_by_another_meanwhile(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Who begins a map while another process does takes that one."""
        place, tokens, begun = FilePlace(tmp_path), list[str](), keys.begun

        def late(*looked_for: Any) -> str | None:
            found = begun(*looked_for)
            monkeypatch.undo()
            tokens.append(place.open().token(IDENTIFIER))
            return found

        monkeypatch.setattr(keys, "begun", late)
        assert place.open().find(IDENTIFIER) == tokens[0]

    def test_altered_row_does_not_lock_the_others_out(self, subjects: SubjectMap, place: FilePlace) -> None:
        """A map in which one row was altered still opens, by another row."""
        one, two = subjects.token("one"), subjects.token("two")
        place.execute("UPDATE subject SET sealed = ? WHERE token = ?", b"\0", one)
        assert place.open().identifier(two) == "two"

    def test_at_once(self, subjects: SubjectMap) -> None:
        """Callers that ask for one identifier at once get one token."""
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(subjects.token, [IDENTIFIER] * 8))) == 1

    def test_files_are_their_owners(self, tmp_path: Path) -> None:
        """Map and key are 0600; a key that others can read is refused, as is one of the wrong length."""
        place = FilePlace(tmp_path)
        place.open()
        for name in ("subjects.db", "subjects.key"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        (tmp_path / "subjects.key").chmod(0o644)
        with pytest.raises(ConfigurationError, match=r"subjects\.key is open to others; chmod 600"):
            place.open()
        for content in (b"", b"!", b"AAAA"):
            key = tmp_path / "short.key"
            key.write_bytes(content)
            key.chmod(0o600)
            with pytest.raises(ConfigurationError, match="32 bytes"):
                SubjectMap(tmp_path / "x.db", key)

    def test_unusable(self, tmp_path: Path) -> None:
        """A damaged file is an error without any value in it."""
        subjects = FilePlace(tmp_path).open()
        (tmp_path / "subjects.db").write_bytes(b"no database" * 100)
        with pytest.raises(AuditError, match="cannot be used") as caught:
            subjects.token(IDENTIFIER)
        assert "NEEDLE" not in str(caught.value)

    @pytest.mark.parametrize(
        "url", ["mysql://hunter2@db/x", "hunter2", "sqlite:///", "postgresql://hunter2@db:x:y/z?what"]
    )
    def test_url_that_names_no_map(self, tmp_path: Path, url: str) -> None:
        """A URL of nothing is refused without being quoted."""
        with pytest.raises(ConfigurationError, match="the subject map's URL") as caught:
            SubjectMap(url, tmp_path / "key")
        assert "hunter2" not in str(caught.value)

    def test_url_of_a_file(self, tmp_path: Path) -> None:
        """A file may be named by a URL, too, as the log's is."""
        token = FilePlace(tmp_path).open().token(IDENTIFIER)
        assert (
            SubjectMap(f"sqlite:///{tmp_path}/subjects.db", tmp_path / "subjects.key").find(IDENTIFIER)
            == token
        )
