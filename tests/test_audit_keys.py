"""Key files, and what is kept beside them."""

from __future__ import annotations

import errno
import fcntl
import os
import stat
import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from tests.audit_trails import read_only

from healthobs.audit import keys
from healthobs.exceptions import ConfigurationError

OTHER = 4321


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A new key file."""
    keys.load_or_create(tmp_path / "k")
    return tmp_path / "k"


def owned(path: Path) -> tuple[int, int, int]:
    """Return owner, group and mode of a file."""
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


def give(path: Path, owner: int, group: int) -> None:
    """Give a file away, as only root may, and not in every container."""
    try:
        os.chown(path, owner, group)
    except PermissionError:
        pytest.skip("nobody gives files away here")


class TestAtOnce:
    """Several that change one key file at the same time."""

    def test_no_key_is_lost(self, key: Path) -> None:
        """Each rotation puts its key before those that were there; what is retired meanwhile is kept."""
        with ThreadPoolExecutor(8) as pool:
            list(
                pool.map(lambda number: keys.retire(key) if number % 4 == 3 else keys.rotate(key), range(16))
            )
        kept = key.with_name("k.retired").read_bytes() + key.read_bytes()
        assert kept.count(b"BEGIN PRIVATE KEY") == len({*kept.split(b"-----END")}) - 1 == 13

    def test_rotated_after_it_was_asked(self, key: Path) -> None:
        """Keys are dropped for the key that the logs were asked about, and for no other."""
        asked = keys.rotate(key)
        keys.rotate(key)
        before = key.read_bytes()
        with pytest.raises(ConfigurationError, match="rotated meanwhile"):
            keys.retire(key, asked)
        assert key.read_bytes() == before
        assert keys.retire(key, keys.load(key)) == 2


class TestOwner:
    """A file that is replaced stays that of whom it was."""

    @pytest.mark.parametrize("mode", [0o600, 0o640, 0o400])
    def test_mode_is_kept(self, key: Path, mode: int) -> None:
        """A key that a group may read stays so."""
        key.chmod(mode)
        keys.rotate(key)
        assert owned(key)[2] == mode
        assert keys.retire(key) == 1
        assert owned(key)[2] == mode

    def test_owner_is_kept(self, key: Path) -> None:
        """Whoever rotates as root does not lock the service out of its key."""
        give(key, OTHER, OTHER + 1)
        key.chmod(0o640)
        keys.rotate(key)
        assert owned(key) == (OTHER, OTHER + 1, 0o640)
        keys.retire(key)
        assert owned(key) == (OTHER, OTHER + 1, 0o640)

    def test_beside_it(self, key: Path) -> None:
        """What is written down beside a key is the key's owner's, and goes on being that of whom it is."""
        give(key, OTHER, OTHER + 1)
        key.chmod(0o640)
        keys.note_begun(key, "/a.db", "one")
        noted = key.with_name("k.logs")
        assert owned(noted) == (OTHER, OTHER + 1, 0o640)
        give(noted, OTHER, OTHER)
        noted.chmod(0o600)
        keys.note_begun(key, "/b.db", "two")
        assert owned(noted) == (OTHER, OTHER, 0o600)

    def test_owner_that_cannot_be_kept(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A key whose owner cannot be given back is not replaced; what is beside it is written all the same."""
        real, before = os.stat, key.read_bytes()

        def anothers(path: Path, **options: Any) -> os.stat_result:
            found = real(path, **options)
            return os.stat_result([*found[:4], OTHER, OTHER + 1, *found[6:]])

        def refused(*_: object) -> None:
            raise PermissionError(errno.EPERM, "Operation not permitted")

        monkeypatch.setattr(os, "stat", anothers)
        monkeypatch.setattr(os, "fchown", refused)
        with pytest.raises(ConfigurationError, match=r"key file k .*owner.* \(Operation not permitted\)"):
            keys.rotate(key)
        keys.note_begun(key, "/a.db", "one")
        monkeypatch.undo()
        assert key.read_bytes() == before
        assert sorted(item.name for item in key.parent.iterdir()) == ["k", "k.logs"]
        assert owned(key.with_name("k.logs")) == (os.geteuid(), os.getegid(), 0o600)
        assert keys.begun(key, "/a.db") == "one"


class TestRetired:
    """Keys that are dropped are not destroyed."""

    def retired(self, key: Path) -> list[bytes]:
        """Return the keys that were dropped, as PEM."""
        return keys._PEM.findall(key.with_name("k.retired").read_bytes())

    def test_kept_beside_it(self, key: Path) -> None:
        """Each dropped key is appended to the file of that name, which is the owner's alone, and read by nobody."""
        pems = [key.read_bytes()]
        for _ in range(2):
            keys.rotate(key)
            pems.append(keys._PEM.findall(key.read_bytes())[0])
            assert keys.retire(key) == 1
            key.with_name("k.retired").chmod(0o644)
        assert keys.retire(key) == 0
        assert (self.retired(key), key.read_bytes()) == (pems[:2], pems[2])
        key.with_name("k.retired").write_bytes(b"what nobody reads")
        keys.rotate(key)
        assert keys.retire(key) == 1
        assert (self.retired(key), owned(key.with_name("k.retired"))[2]) == (pems[2:], 0o600)

    def test_kept_first(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """They are there before the key file is without them."""
        keys.rotate(key)
        before = key.read_bytes()
        monkeypatch.setattr(os, "replace", read_only)
        with pytest.raises(ConfigurationError, match="key file k "):
            keys.retire(key)
        assert key.read_bytes() == before
        assert before.endswith(self.retired(key)[0])

    def test_not_kept(self, key: Path) -> None:
        """Where they cannot be kept, none is dropped."""
        keys.rotate(key)
        before = key.read_bytes()
        key.with_name("k.retired").mkdir()
        with pytest.raises(ConfigurationError, match=r"no key was dropped: k\.retired .*\(Is a directory\)"):
            keys.retire(key)
        assert key.read_bytes() == before
        assert sorted(item.name for item in key.parent.iterdir()) == ["k", "k.retired"]

    def test_whose_they_are(self, key: Path) -> None:
        """They are the key's owner's, who may have to put them back."""
        keys.rotate(key)
        give(key, OTHER, OTHER + 1)
        key.chmod(0o640)
        keys.retire(key)
        assert owned(key.with_name("k.retired")) == (OTHER, OTHER + 1, 0o600)


class TestBegun:
    """Where a key began logs and maps is written down, and found again."""

    def noted(self, key: Path) -> list[str]:
        return key.with_name("k.logs").read_text().split("\n")

    def test_what_cannot_be_read_is_not_empty(self, key: Path) -> None:
        """Only a file that is not there says that nothing was begun: of any other nobody can tell."""
        assert keys.begun(key, "/a.db") is None
        key.with_name("k.logs").mkdir()
        for ask in (lambda: keys.begun(key, "/a.db"), lambda: keys.note_begun(key, "/a.db", "one")):
            with pytest.raises(
                ConfigurationError, match=r"file k\.logs .* cannot be read \(Is a directory\)"
            ):
                ask()

    def test_a_folder_that_takes_no_file(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Beside a mounted secret nothing is written down, and nobody is refused for that."""
        monkeypatch.setattr(os, "replace", read_only)
        keys.note_begun(key, "/a.db", "one")
        assert keys.begun(key, "/a.db") is None
        assert [item.name for item in key.parent.iterdir()] == ["k"]

    @pytest.mark.parametrize("end", ["\x85", "\u2028", "\x0b", "\x1e", "\r"])
    def test_odd_names(self, key: Path, end: str) -> None:
        """What ends a line elsewhere is part of a file's name."""
        for _ in range(2):
            keys.note_begun(key, f"/a{end}b.db", "one")
            keys.note_begun(key, "/c.db", "two")
        assert keys.begun(key, f"/a{end}b.db") == "one"
        assert os.fsdecode(key.with_name("k.logs").read_bytes()) == f"one /a{end}b.db\ntwo /c.db\n"

    def test_line_feed(self, key: Path) -> None:
        """A name that would be two lines is refused, and not told."""
        for ask in (keys.begun, partial(keys.note_begun, origin="one")):
            with pytest.raises(ConfigurationError, match="line feed") as caught:
                ask(key, "/a\nb.db")
            assert "b.db" not in str(caught.value)

    def test_other_spellings(self, key: Path, tmp_path: Path) -> None:
        """One file has one line, however it is named; a database elsewhere is known by its name."""
        (tmp_path / "real").mkdir()
        (tmp_path / "link").symlink_to(tmp_path / "real")
        names = [f"{tmp_path}/{folder}/s.db" for folder in ("link", "real", "real/../real", "link/.")]
        keys.note_begun(key, names[0], "one")
        keys.note_begun(key, "postgresql:h:5432:d", "two")
        for name in names:
            assert keys.begun(key, name) == "one"
            keys.note_begun(key, name, "one")
        assert self.noted(key) == [f"one {names[0]}", "two postgresql:h:5432:d", ""]
        keys.note_begun(key, names[1], "three")
        assert self.noted(key) == ["two postgresql:h:5432:d", f"three {names[1]}", ""]
        assert keys.begun(key, "postgresql:h:5432:d/../d") is None

    def test_a_link_that_leads_elsewhere_since(self, key: Path, tmp_path: Path) -> None:
        """A log that is looked for under the name it was begun under is that log, wherever the name leads now."""
        (tmp_path / "link").symlink_to(tmp_path / "old")
        keys.note_begun(key, f"{tmp_path}/link/s.db", "one")
        (tmp_path / "link").unlink()
        (tmp_path / "link").symlink_to(tmp_path / "new")
        assert keys.begun(key, f"{tmp_path}/link/s.db") == "one"

    def test_damaged_lines(self, key: Path) -> None:
        """Lines that no place can have stand in nobody's way."""
        key.with_name("k.logs").write_bytes(b"\none\n\xff /\xfe\ntwo /a\0b\nthree /c.db")
        assert keys.begun(key, "/c.db") == "three"
        keys.note_begun(key, "/d.db", "four")
        assert keys.begun(key, "/c.db") == "three"
        assert keys.begun(key, "/d.db") == "four"

    def test_at_once(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Logs that begin at once each get their line."""
        read = keys._begun_lines

        def slow(path: Path) -> list[str]:
            found = read(path)
            time.sleep(0.01)
            return found

        monkeypatch.setattr(keys, "_begun_lines", slow)
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda number: keys.note_begun(key, f"/{number}.db", "one"), range(8)))
        assert sorted(self.noted(key)) == ["", *(f"one /{number}.db" for number in range(8))]

    def test_no_locks_there(self, key: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file system without locks is one where nothing waits."""

        def refused(*_: object) -> None:
            raise OSError(errno.ENOLCK, "No locks available")

        monkeypatch.setattr(fcntl, "flock", refused)
        keys.note_begun(key, "/a.db", "one")
        assert keys.begun(key, "/a.db") == "one"
