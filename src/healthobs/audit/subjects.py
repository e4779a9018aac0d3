"""Subject tokens: random surrogates for patients' identifiers, in an encrypted map of their own.

45 CFR 164.514(c): a code that re-identifies must not be derived from information about the individual. So a
token is random, and the map from identifier to token (AES-256-GCM, NIST SP 800-38D) is kept apart from the log,
whose entries carry tokens only. Whoever erases a subject's row makes its entries about nobody.

A trail with a map (`Settings.audit_subjects_file`, `audit_subjects_url`) puts the token into each entry before it is written anywhere.

Limits: one SQLite file on a local disk, for the processes of one machine, or a schema in PostgreSQL, for replicas that
have one key (`healthobs.audit.postgres_subjects`); where a service has tenants, an identifier
must be one person's over all of them. Identifiers are found by a keyed hash
(HMAC-SHA-256), which with the key file lets one test a guess; without it nothing can be told. What was erased may
live on in backups, and nobody can say any more whom entries are about once the map itself is lost.
"""

from __future__ import annotations

import base64
import binascii
import hmac
import json
import os
import re
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from healthobs.audit.keys import create_secret, read_secret
from healthobs.audit.subject_rows import MARK, WAIT_SECONDS, About, Row, rows_of
from healthobs.exceptions import AuditError, ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM

Fields = Mapping[str, object]
_KEY_BYTES = 32
_NONCE_BYTES = 12
_TOKEN = re.compile(r"s-[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_MAY_BE_TOKEN = re.compile(r"s-[0-9a-f-]{32,36}")


class SubjectMap:
    """The map of one service.

    Args:
        place: Its SQLite file, made when missing unless the key began it, not the log's; or a URL: ``sqlite:///PATH``, ``postgresql://...``.
        key_file: 32 random bytes as base64, made 0600 when missing and the map is empty; default the file's name
            and ``.key``. Keep it away from the log and its backups.

    Raises:
        ConfigurationError: The URL is malformed, or the key file cannot be used, is not named or is missing though
            the map has rows, or the file of a map that it began is gone, or cryptography or psycopg is not installed.
        AuditError: The map cannot be used, or the key is not that of its rows.

    Example:
        >>> subjects = SubjectMap(directory / "subjects.db", directory / "subjects.key")
        >>> token = subjects.token("MRN-0012345")
        >>> token == subjects.token("MRN-0012345"), subjects.identifier(token)
        (True, 'MRN-0012345')
        >>> subjects.erase(token), subjects.identifier(token), token == subjects.token("MRN-0012345")
        (True, None, False)
    """

    def __init__(self, place: Path | str, key_file: Path | None = None) -> None:
        self._rows, self._key_file = rows_of(place, key_file)
        self._rows.open(self._unlocked)

    def _unlocked(self, tried: list[tuple[str, bytes]]) -> bytes:
        # With another key each identifier would get a second token, and a patient's entries two subjects.
        self._cipher, self._index_key = _keys(self._key_file, make=not tried)
        if tried and all(self._opened(*row) is None for row in tried):
            raise AuditError(
                "the subject map's rows were altered, or the key file is another one; restore its own"
            )
        return self._sealed(MARK, "")

    def token(self, identifier: str, *, wait_seconds: float = WAIT_SECONDS) -> str:
        """Return the token of `identifier`; a new random one when it has none yet. A token of the map is its own.

        Args:
            identifier: The patient's, or a token.
            wait_seconds: How long to wait for others that write.

        Raises:
            AuditError: The map cannot be used; the message has nothing of the identifier.
        """
        token = self._rows.token(self._about(identifier), lambda: self._new(identifier), wait_seconds)
        assert token is not None  # noqa: S101 - one is made where there is none
        return token

    def find(self, identifier: str) -> str | None:
        """Return what `token` would, but None where that would make one.

        Raises:
            AuditError: The map cannot be used.
        """
        return self._rows.token(self._about(identifier), None, WAIT_SECONDS)

    def identifier(self, token: str) -> str | None:
        """Return whose `token` it is; None when it is unknown or was erased.

        Raises:
            AuditError: The row was altered, or sealed with another key.
        """
        sealed = self._rows.sealed(_as_token(token))
        if sealed is None:
            return None
        identifier = self._opened(token, sealed)
        if identifier is None:
            raise AuditError("the subject's row was altered, or the key file is another one")
        return identifier

    def erase(self, token: str) -> bool:
        """Forget whose `token` it is (or the token of that identifier); return whether it was known.

        A trail's `forget` does it for good: it first merges the spool, in which a sealed entry would bring the row back.

        Raises:
            AuditError: The file cannot be used, or somebody reads on what was in it; call it again then.
        """
        return self._rows.erase(self._about(token))

    def check(self) -> None:
        """Return when a token could be made now, as far as can be told without making one.

        Raises:
            AuditError: The map cannot be used.
        """
        self._rows.check()

    def close(self) -> None:
        """Close what is open in this process; the next call opens it again."""
        self._rows.close()

    def about(self, fields: Fields, wait_seconds: float) -> Fields:
        """Return the fields of an entry with the token in place of the subject, also where the resource is the subject itself.

        Raises:
            AuditError: The map cannot be used.
        """
        subject = fields.get("subject")
        if not isinstance(subject, str):
            return fields
        return _renamed(fields, self.token(subject, wait_seconds=wait_seconds))

    def stand_in(self, fields: Fields) -> tuple[Fields, str]:
        """Return what `about` does with a token for now, and the identifier sealed for `settled`, without its rows."""
        token = _new_token()
        sealed = self._sealed(token, str(fields["subject"]))
        return _renamed(fields, token), base64.urlsafe_b64encode(sealed).decode()

    def settled(self, body: bytes, sealed: str, wait_seconds: float) -> bytes:
        """Return an entry about a `stand_in` with the subject's token in its place; any other as it is.

        Raises:
            AuditError: The map cannot be used.
        """
        subject: str = json.loads(body)["subject"] or ""
        try:
            identifier = self._opened(subject, base64.b64decode(sealed, altchars=b"-_", validate=True))
        except ValueError:
            identifier = None
        if identifier is None:
            return body
        return body.replace(subject.encode(), self.token(identifier, wait_seconds=wait_seconds).encode())

    def _about(self, identifier: str) -> About:
        return self._lookup(identifier), _as_token(identifier)

    def _new(self, identifier: str) -> Row:
        token = _new_token()
        return token, self._lookup(identifier), self._sealed(token, identifier)

    def _lookup(self, identifier: str) -> bytes:
        return hmac.digest(self._index_key, _bytes(identifier), "sha256")

    def _sealed(self, token: str, identifier: str) -> bytes:
        nonce = os.urandom(_NONCE_BYTES)
        return nonce + self._cipher.encrypt(nonce, _bytes(identifier), token.encode())

    def _opened(self, token: str, sealed: bytes) -> str | None:
        from cryptography.exceptions import InvalidTag

        try:
            opened = self._cipher.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], token.encode())
            return opened.decode("utf-8", "surrogatepass")
        except (InvalidTag, ValueError):
            return None


def _renamed(fields: Fields, token: str) -> Fields:
    same = "resource_id" if fields.get("resource_id") == fields["subject"] else "subject"
    return {**fields, "subject": token, same: token}


def _new_token() -> str:
    """Return a token that redaction knows as one: random hexadecimal digits alone may look like a card number."""
    return f"s-{uuid.uuid4()}"


def is_token(subject: object) -> bool:
    """Return whether `subject` has the form of a token, of this map or another, known or erased."""
    return isinstance(subject, str) and _TOKEN.fullmatch(subject) is not None


def _as_token(text: str) -> str:
    """Return what may be a token, of an earlier form, too; any other text stays out of statements, which a server may log."""
    return text if _MAY_BE_TOKEN.fullmatch(text) else ""


def _bytes(identifier: str) -> bytes:
    """Return its bytes; an error of encoding would quote it."""
    return identifier.encode("utf-8", "surrogatepass")


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
            f"the subject map has rows, but its key file is missing; restore {key_file.name} from where you keep it"
        )
    try:
        secret = base64.b64decode(read_secret(key_file).strip(), validate=True)
    except binascii.Error:
        secret = b""
    if len(secret) != _KEY_BYTES:
        raise ConfigurationError("the subject map's key file must hold 32 bytes as base64")
    derived = HKDF(SHA256(), 2 * _KEY_BYTES, None, b"healthobs subject map v1").derive(secret)
    return AESGCM(derived[:_KEY_BYTES]), derived[_KEY_BYTES:]
