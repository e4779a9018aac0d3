"""Subject tokens: random, stable while the subject is known, unlinkable once it is erased."""

from __future__ import annotations

import contextlib
import sqlite3
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from tests.audit_trails import in_files

from healthobs.audit.subjects import SubjectMap
from healthobs.exceptions import AuditError, ConfigurationError

IDENTIFIER = "MRN-00123-NEEDLE"


@pytest.fixture
def subjects(tmp_path: Path) -> SubjectMap:
    return make(tmp_path)


def make(directory: Path) -> SubjectMap:
    return SubjectMap(directory / "subjects.db", directory / "subjects.key")


class TestSubjectMap:
    """One function looks up or creates; erasing makes unlinkable."""

    def test_stable(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """An identifier keeps its token, in this process and the next; the token leads back."""
        token = subjects.token(IDENTIFIER)
        assert make(tmp_path).token(IDENTIFIER) == token
        assert make(tmp_path).identifier(token) == IDENTIFIER
        assert subjects.token("another") != token

    def test_not_derived(self, tmp_path: Path) -> None:
        """The same identifier under the same key file has another token in another map: chance made it."""
        first = SubjectMap(tmp_path / "a.db", tmp_path / "key").token(IDENTIFIER)
        assert SubjectMap(tmp_path / "b.db", tmp_path / "key").token(IDENTIFIER) != first

    def test_erased(self, subjects: SubjectMap) -> None:
        """After the erasure the token is nobody's, and the subject's next token is a new one."""
        token = subjects.token(IDENTIFIER)
        assert subjects.erase(token)
        assert subjects.identifier(token) is None
        assert subjects.token(IDENTIFIER) != token
        assert not subjects.erase(token)

    def test_nothing_readable_in_the_file(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """The file holds no identifier, and of an erased row not even the sealed bytes."""
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

    def test_moved_row_is_noticed(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """A sealed identifier put under another token does not open: each is sealed for its own."""
        one, two = subjects.token("one"), subjects.token("two")
        with sqlite3.connect(tmp_path / "subjects.db") as connection:
            connection.execute(
                "UPDATE subject SET sealed = (SELECT sealed FROM subject WHERE token = ?) WHERE token = ?",
                (one, two),
            )
        connection.close()
        with pytest.raises(AuditError, match="altered"):
            subjects.identifier(two)

    def test_other_key(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """With another key the map is not opened, so that nobody gets a second token; with its own it is."""
        token = subjects.token(IDENTIFIER)
        SubjectMap(tmp_path / "other.db", tmp_path / "other.key")
        with pytest.raises(AuditError, match="key file is another"):
            SubjectMap(tmp_path / "subjects.db", tmp_path / "other.key")
        assert make(tmp_path).token(IDENTIFIER) == token

    def test_lost_key(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """A map with rows gets no new key in place of one that is gone; an empty one does."""
        key = tmp_path / "subjects.key"
        token = subjects.token(IDENTIFIER)
        key.unlink()
        with pytest.raises(ConfigurationError, match="key file is missing"):
            make(tmp_path)
        assert not key.exists()
        subjects.erase(token)
        assert make(tmp_path).token(IDENTIFIER) != token

    def test_altered_row_does_not_lock_the_others_out(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """A map in which one row was altered still opens, by another row."""
        one, two = subjects.token("one"), subjects.token("two")
        with sqlite3.connect(tmp_path / "subjects.db") as connection:
            connection.execute("UPDATE subject SET sealed = x'00' WHERE token = ?", (one,))
        connection.close()
        assert make(tmp_path).identifier(two) == "two"

    def test_at_once(self, subjects: SubjectMap) -> None:
        """Callers that ask for one identifier at once get one token."""
        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(subjects.token, [IDENTIFIER] * 8))) == 1

    def test_files_are_their_owners(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """Map and key are 0600; a key that others can read is refused, as is one of the wrong length."""
        for name in ("subjects.db", "subjects.key"):
            assert stat.S_IMODE((tmp_path / name).stat().st_mode) == 0o600
        (tmp_path / "subjects.key").chmod(0o644)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            make(tmp_path)
        for content in (b"", b"!", b"AAAA"):
            key = tmp_path / "short.key"
            key.write_bytes(content)
            key.chmod(0o600)
            with pytest.raises(ConfigurationError, match="32 bytes"):
                SubjectMap(tmp_path / "x.db", key)

    def test_unusable(self, subjects: SubjectMap, tmp_path: Path) -> None:
        """A damaged file is an error without any value in it."""
        (tmp_path / "subjects.db").write_bytes(b"no database" * 100)
        with pytest.raises(AuditError, match="cannot be used") as caught:
            subjects.token(IDENTIFIER)
        assert "NEEDLE" not in str(caught.value)
