"""Key files, and what is kept beside them."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from healthobs.audit import keys
from healthobs.exceptions import ConfigurationError

OTHER = 4321
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="gives files to another user")


@pytest.fixture
def key(tmp_path: Path) -> Path:
    """A new key file."""
    keys.load_or_create(tmp_path / "k")
    return tmp_path / "k"


def owned(path: Path) -> tuple[int, int, int]:
    """Return owner, group and mode of a file."""
    status = path.stat()
    return status.st_uid, status.st_gid, stat.S_IMODE(status.st_mode)


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

    @needs_root
    def test_owner_is_kept(self, key: Path) -> None:
        """Whoever rotates as root does not lock the service out of its key."""
        os.chown(key, OTHER, OTHER + 1)
        key.chmod(0o640)
        keys.rotate(key)
        assert owned(key) == (OTHER, OTHER + 1, 0o640)
        keys.retire(key)
        assert owned(key) == (OTHER, OTHER + 1, 0o640)

    @needs_root
    def test_beside_it(self, key: Path) -> None:
        """What is written down beside a key is the key's owner's, and goes on being that of whom it is."""
        os.chown(key, OTHER, OTHER + 1)
        key.chmod(0o640)
        keys.note_begun(key, "/a.db", "one")
        noted = key.with_name("k.logs")
        assert owned(noted) == (OTHER, OTHER + 1, 0o640)
        os.chown(noted, OTHER, OTHER)
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
