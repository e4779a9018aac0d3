"""The signing key of a log: an Ed25519 key in a PEM file that only its owner can read.

Limits: the file is not encrypted; protect it like the service's other secrets, or mount it from a key store.
Whoever has the key can rewrite the log, which only a checkpoint held elsewhere then shows.
"""

from __future__ import annotations

import contextlib
import os
import secrets
from pathlib import Path
from typing import TYPE_CHECKING

from healthobs.exceptions import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: Group may read (a mounted secret with a group id); nothing else, and nobody else anything.
_TOO_OPEN = 0o037


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`, which is made first when missing; of several that make it at once, one wins.

    Raises:
        ConfigurationError: The file cannot be read or made, is readable by others, or holds no Ed25519 key.
    """
    if not path.exists():
        _create(path)
    return load(path)


def load(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`.

    Raises:
        ConfigurationError: As `load_or_create`.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise ConfigurationError("the audit trail needs cryptography; install healthobs[audit]") from None
    try:
        mode = path.stat().st_mode
        pem = path.read_bytes()
    except OSError as exc:
        raise ConfigurationError(f"the audit key file cannot be read ({_reason(exc)})") from None
    if mode & _TOO_OPEN:
        raise ConfigurationError("the audit key file is open to others; chmod 600 it")
    try:
        key = load_pem_private_key(pem, password=None)
    except (ValueError, TypeError):
        key = None
    if not isinstance(key, Ed25519PrivateKey):
        raise ConfigurationError(
            "the audit key file must hold one unencrypted Ed25519 private key in PEM form"
        )
    return key


def _create(path: Path) -> None:
    """Write a new key so that a reader sees the whole file or none."""
    try:
        from cryptography.hazmat.primitives import serialization
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise ConfigurationError("the audit trail needs cryptography; install healthobs[audit]") from None
    pem = Ed25519PrivateKey.generate().private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, made 0600 from the start
                file.write(pem)
                file.flush()
                os.fsync(file.fileno())
            with contextlib.suppress(FileExistsError):
                os.link(draft, path)  # unlike a rename it never replaces the key of another process
            sync_directory(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"the audit key file cannot be created ({_reason(exc)})") from None


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(exc: OSError) -> str:
    return exc.strerror or type(exc).__name__
