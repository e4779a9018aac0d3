"""Key files: made once, mode 0600, and shared by the replicas that start together.

`Storage.key` has the database know each by a value that tells nothing of it, so that none is replaced in silence.
"""

from __future__ import annotations

import hmac
import os
import secrets
from collections.abc import Callable
from pathlib import Path

from healthobs.exceptions import ConfigurationError


def load(path: Path, make: Callable[[], bytes]) -> bytes:
    """Return what `path` holds; put there what `make` returns when it is missing."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    if not path.exists():
        fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
        fresh.touch(mode=0o600)
        try:
            fresh.write_bytes(make())
            os.link(fresh, path)  # atomic, and does not replace what another worker made meanwhile
        except FileExistsError:
            pass
        finally:
            fresh.unlink()
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


def is_private(path: Path) -> bool:
    """Tell whether the file is there and nobody but its owner can read it."""
    return path.exists() and not path.stat().st_mode & 0o077
