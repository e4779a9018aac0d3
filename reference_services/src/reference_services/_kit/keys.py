"""Key files: made once, mode 0600, and shared by the replicas that start together.

`Storage.key` has the database know each by a value that tells nothing of it, so that none is replaced in silence.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from healthobs.audit.keys import create_secret
from healthobs.exceptions import ConfigurationError

#: The user that mounts what is configured.
SYSTEM = 0


def load(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return what `path` holds; put there what `make` returns when it is missing, durably, before anything is written with it.

    Raises:
        ConfigurationError: It cannot be made.
    """
    if not path.exists():
        create_secret(path, make())
    return path.read_bytes()


def load_secret(path: Path) -> bytes:
    """Return the 32-byte secret in `path`, made when missing.

    Raises:
        ConfigurationError: The file does not hold 32 bytes in hex.
    """
    text = load(path, lambda: secrets.token_hex(32).encode())
    try:
        secret = bytes.fromhex(text.decode("ascii").strip())
    except ValueError:
        secret = b""
    if len(secret) != 32:
        raise ConfigurationError(f"{path.name} must hold 64 hexadecimal digits; restore it from backup")
    return secret


def check_value(secret: bytes) -> str:
    """Return what a secret is known by without being told.

    Example:
        >>> check_value(b"k" * 32)[:16]
        '14ee49731ef2d07f'
    """
    return hmac.digest(secret, b"healthobs key check", "sha256").hex()


@dataclass(frozen=True, slots=True)
class KeyFile:
    """A key file as it was when its key was loaded.

    Args:
        path: Where.
        size: Of its content.
        digest: SHA-256 of its content.
        rotates: Whether a new key may be put before what was loaded, as `healthobs.audit.keys.rotate` does.
    """

    path: Path
    size: int
    digest: bytes
    rotates: bool = False

    @classmethod
    def of(cls, path: Path, *, rotates: bool = False) -> KeyFile:
        """Return the file that was just loaded."""
        content = path.read_bytes()
        return cls(path, len(content), hashlib.sha256(content).digest(), rotates)

    def fault(self) -> str | None:
        """Return what is wrong with the file, or None while it is this user's alone and holds what was loaded.

        One of the system's, as a mounted secret is, may be read by its group too.
        """
        try:
            found, content = self.path.stat(), self.path.read_bytes()
        except OSError:
            return "missing or cannot be read"
        own = found.st_uid == os.geteuid()
        if not own and found.st_uid != SYSTEM:
            return "another user's"
        if found.st_mode & (0o077 if own else 0o037):
            return "open to others"
        kept = content[-self.size :] if self.rotates else content
        return None if hashlib.sha256(kept).digest() == self.digest else "not what was loaded"
