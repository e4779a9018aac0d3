"""Subject tokens: random surrogates for patients' identifiers, in an encrypted map of their own.

45 CFR 164.514(c): a code that re-identifies must not be derived from information about the individual. So a
token is random, and the map from identifier to token (AES-256-GCM, NIST SP 800-38D) is kept apart from the log,
whose entries carry tokens only. Whoever erases a subject's row makes its entries about nobody.

Limits: one SQLite file on a local disk. Identifiers are found by a keyed hash (HMAC-SHA-256), which with the
key file lets one test a guess; without it nothing can be told. What was erased may live on in backups.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hmac
import os
import secrets
import sqlite3
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from healthobs.audit.keys import create_secret, read_secret
from healthobs.audit.sqlite import connect_pragmas
from healthobs.exceptions import AuditError, ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

_KEY_BYTES = 32
_NONCE_BYTES = 12
#: Rows that an opening tries the key on; one that opens is enough, because any may have been altered.
_TRIED = 20


class SubjectMap:
    """The map of one service.

    Args:
        path: Its SQLite file, made when missing; not the log's.
        key_file: 32 random bytes as base64, made 0600 when missing and the map is empty; keep it away from the log
            and its backups.

    Raises:
        ConfigurationError: The key file cannot be used or is missing though the map has rows, or cryptography is
            not installed.
        AuditError: The file cannot be used, or the key is not that of its rows.

    Example:
        >>> subjects = SubjectMap(directory / "subjects.db", directory / "subjects.key")
        >>> token = subjects.token("MRN-0012345")
        >>> token == subjects.token("MRN-0012345"), subjects.identifier(token)
        (True, 'MRN-0012345')
        >>> subjects.erase(token), subjects.identifier(token), token == subjects.token("MRN-0012345")
        (True, None, False)
    """

    def __init__(self, path: Path, key_file: Path) -> None:
        self._path = path
        with self._changing() as connection:
            connection.execute(
                "CREATE TABLE IF NOT EXISTS subject (token TEXT PRIMARY KEY, lookup BLOB NOT NULL UNIQUE,"
                " sealed BLOB NOT NULL)"
            )
            rows = connection.execute("SELECT token, sealed FROM subject LIMIT ?", (_TRIED,)).fetchall()
        # With another key each identifier would get a second token, and a patient's entries two subjects.
        self._cipher, self._index_key = _keys(key_file, make=not rows)
        if rows and all(self._opened(*row) is None for row in rows):
            raise AuditError(
                "the subject map's rows were altered, or the key file is another one; restore its own"
            )

    def token(self, identifier: str) -> str:
        """Return the token of `identifier`; a new random one when it has none yet."""
        lookup = hmac.digest(self._index_key, identifier.encode(), "sha256")
        with self._changing() as connection:
            row = connection.execute("SELECT token FROM subject WHERE lookup = ?", (lookup,)).fetchone()
            if row is not None:
                return str(row[0])
            token = f"s-{secrets.token_hex(16)}"
            nonce = os.urandom(_NONCE_BYTES)
            sealed = nonce + self._cipher.encrypt(nonce, identifier.encode(), token.encode())
            connection.execute("INSERT INTO subject VALUES (?, ?, ?)", (token, lookup, sealed))
            return token

    def identifier(self, token: str) -> str | None:
        """Return whose `token` it is; None when it is unknown or was erased.

        Raises:
            AuditError: The row was altered, or sealed with another key.
        """
        with self._changing() as connection:
            row = connection.execute("SELECT sealed FROM subject WHERE token = ?", (token,)).fetchone()
        if row is None:
            return None
        identifier = self._opened(token, row[0])
        if identifier is None:
            raise AuditError("the subject's row was altered, or the key file is another one")
        return identifier

    def _opened(self, token: str, sealed: bytes) -> str | None:
        from cryptography.exceptions import InvalidTag

        try:
            return self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], token.encode()).decode()
        except (InvalidTag, ValueError):
            return None

    def erase(self, token: str) -> bool:
        """Forget whose `token` it is, for good; return whether it was known."""
        with self._changing() as connection:
            return connection.execute("DELETE FROM subject WHERE token = ?", (token,)).rowcount == 1

    @contextmanager
    def _changing(self) -> Generator[sqlite3.Connection]:
        """Give a connection inside a transaction of its own."""
        try:
            if not self._path.exists():
                os.close(os.open(self._path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600))
            with contextlib.closing(sqlite3.connect(self._path, isolation_level=None)) as connection:
                for pragma in (*connect_pragmas(), "PRAGMA secure_delete = ON"):
                    connection.execute(pragma)
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except (sqlite3.Error, OSError) as exc:
            name = getattr(exc, "sqlite_errorname", None) or type(exc).__name__
            raise AuditError(f"the subject map cannot be used ({name}); check its file and disk") from None


def _keys(key_file: Path, *, make: bool) -> tuple[AESGCM, bytes]:
    """Return the cipher and the key of the lookup hash, both from the one secret in the file."""
    try:
        from cryptography.hazmat.primitives.ciphers.aead import AESGCM
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF
    except ImportError:
        raise ConfigurationError("the subject map needs cryptography; install healthobs[audit]") from None
    if make and not key_file.exists():
        create_secret(key_file, base64.b64encode(os.urandom(_KEY_BYTES)) + b"\n")
    if not key_file.exists():
        raise ConfigurationError(
            "the subject map has rows, but its key file is missing; restore it from where you keep it"
        )
    try:
        secret = base64.b64decode(read_secret(key_file).strip(), validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise ConfigurationError("the subject map's key file must hold 32 bytes as base64")
    derived = HKDF(SHA256(), 2 * _KEY_BYTES, None, b"healthobs subject map v1").derive(secret)
    return AESGCM(derived[:_KEY_BYTES]), derived[_KEY_BYTES:]
