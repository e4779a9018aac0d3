"""Key files: made once, mode 0600, and shared by the replicas that start together."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path


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
        ValueError: The file does not hold 32 bytes in hex.
    """
    text = load(path, lambda: secrets.token_hex(32).encode())
    secret = bytes.fromhex(text.decode("ascii").strip())
    if len(secret) != 32:
        raise ValueError(f"{path.name} must hold 64 hexadecimal digits; remove it to have a new one made")
    return secret


def is_private(path: Path) -> bool:
    """Tell whether the file is there and nobody but its owner can read it."""
    return path.exists() and not path.stat().st_mode & 0o077
