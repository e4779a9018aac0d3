"""Encryption of records at rest (45 CFR 164.312(a)(2)(iv)): AES-256-GCM with a key of its own per patient.

Envelope text: ``hx1.<kek id>.<nonce>.<ciphertext>`` in base64url. Each patient's data key (DEK) is wrapped by
the key encryption key (KEK); the associated data binds every ciphertext to service, table, row, field and
version, so that one moved elsewhere, or put back from an older version, does not open. Deleting a DEK
destroys its record. Nonces are random: NIST SP 800-38D §8.3 allows 2**32 for one key.

Limits: one KEK at a time, read from a file; a key management service is where it belongs in production.
"""

from __future__ import annotations

import hmac
import json
import secrets
import unicodedata
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

FORMAT = "hx1"
_NONCE_BYTES = 12
_KEY_BYTES = 32


class SealError(Exception):
    """A stored ciphertext does not open: altered, moved, or sealed under another key."""


class Vault:
    """Seals and opens records, and computes blind indexes.

    Args:
        kek: The key encryption key, 32 bytes.
        index_key: Key of the blind indexes, 32 bytes; it outlives the KEK.
        on_operation: Told each operation (``wrap``, ``unwrap``, ``encrypt``, ``decrypt``) and result.
    """

    def __init__(self, kek: bytes, index_key: bytes, on_operation: Callable[[str, str], None]) -> None:
        self._kek = AESGCM(kek)
        self._index_key = index_key
        self._on_operation = on_operation
        self.kek_id = hmac.digest(kek, b"key id", "sha256")[:6].hex()

    def new_key(self, row: str) -> tuple[bytes, str]:
        """Return a new data key for `row`, plain and wrapped."""
        key = AESGCM.generate_key(bit_length=8 * _KEY_BYTES)
        self._on_operation("wrap", "ok")
        return key, self._seal(self._kek, key, _bound(row, "dek", 0))

    def unwrap(self, row: str, wrapped: str) -> bytes:
        """Return the plain data key of `row`.

        Raises:
            SealError: It does not open.
        """
        return self._open("unwrap", self._kek, wrapped, _bound(row, "dek", 0))

    def encrypt(self, key: bytes, row: str, version: int, record: bytes) -> str:
        """Seal a record under its data key."""
        self._on_operation("encrypt", "ok")
        return self._seal(AESGCM(key), record, _bound(row, "record", version))

    def decrypt(self, key: bytes, row: str, version: int, sealed: str) -> bytes:
        """Open a record.

        Raises:
            SealError: It does not open as this version of this row.
        """
        return self._open("decrypt", AESGCM(key), sealed, _bound(row, "record", version))

    def blind_index(self, system: str, value: str) -> str:
        """Return the HMAC under which an identifier is found without storing it, however it was typed (Unicode UAX 15)."""
        typed = unicodedata.normalize("NFC", value).strip()
        return hmac.digest(
            self._index_key, json.dumps(["identifier", system, typed]).encode(), "sha256"
        ).hex()

    def _seal(self, key: AESGCM, plain: bytes, bound: bytes) -> str:
        nonce = secrets.token_bytes(_NONCE_BYTES)
        parts = (urlsafe_b64encode(part).decode() for part in (nonce, key.encrypt(nonce, plain, bound)))
        return ".".join((FORMAT, self.kek_id, *parts))

    def _open(self, operation: str, key: AESGCM, sealed: str, bound: bytes) -> bytes:
        try:
            kind, kek_id, nonce, ciphertext = sealed.split(".")
            if (kind, kek_id) != (FORMAT, self.kek_id):
                raise ValueError("another format or key")
            plain = key.decrypt(_canonical(nonce), _canonical(ciphertext), bound)
        except (ValueError, InvalidTag):
            self._on_operation(operation, "failed")
            raise SealError("a stored ciphertext does not open; restore it and its key from backup") from None
        self._on_operation(operation, "ok")
        return plain


def _canonical(text: str) -> bytes:
    """Decode base64url in its one spelling; the standard library's decoder skips what it does not know."""
    decoded = urlsafe_b64decode(text)
    if urlsafe_b64encode(decoded) != text.encode("ascii"):
        raise ValueError("not canonical")
    return decoded


def _bound(row: str, field: str, version: int) -> bytes:
    return json.dumps(["phi-service", "patient", row, field, version]).encode()
