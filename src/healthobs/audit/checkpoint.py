"""Signed checkpoints: C2SP signed-note with Ed25519 (type 0x01), and C2SP tlog-checkpoint as its text.

A verifier needs the vkey only (`<name>+<key id>+<base64 of 0x01 and the public key>`). Signatures of unknown
keys are ignored, so that witnesses can add theirs; one bad signature of the known key rejects the whole note.

Limits: one signature algorithm; at most 64 signatures and 64 KiB in a note. Extension lines are refused,
because this log never writes any. Needs the extra `audit` (cryptography), imported when first used.
"""

from __future__ import annotations

import base64
import binascii
import re
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from healthobs.audit.merkle import HASH_BYTES
from healthobs.audit.records import Checkpoint
from healthobs.exceptions import AuditError, ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_ED25519 = b"\x01"
_KEY_ID_BYTES = 4
_MAX_SIGNATURES = 64
_MAX_NOTE_BYTES = 65_536
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
#: Schema-less URL without spaces or plus (C2SP signed-note, "Format").
ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~/-]{0,199}")


class NoteError(AuditError):
    """A signed note or vkey is malformed, or was not signed by the expected key."""


def _key_id(name: str, public_key: bytes) -> bytes:
    return sha256(name.encode() + b"\n" + _ED25519 + public_key).digest()[:_KEY_ID_BYTES]


class Verifier:
    """Opens notes that one known key signed.

    Args:
        vkey: The key as text, as `healthobs audit checkpoint --json` prints it.

    Raises:
        NoteError: The text is no Ed25519 vkey, or its key id does not match its key.
    """

    def __init__(self, vkey: str) -> None:
        name, _, rest = vkey.strip().partition("+")
        key_id, _, encoded = rest.partition("+")
        key = _base64(encoded)
        if not ORIGIN.fullmatch(name) or len(key) != 1 + HASH_BYTES or key[:1] != _ED25519:
            raise NoteError("the vkey is not of the form <name>+<key id>+<base64 key> with an Ed25519 key")
        self.vkey: str = vkey.strip()
        self.name = name
        self._key_id = _key_id(name, key[1:])
        if key_id != self._key_id.hex():
            raise NoteError("the vkey's key id does not match its key; it was copied wrongly or altered")
        self._public_key = _public_key(key[1:])

    def open(self, note: str) -> str:
        """Return the text of `note` once its signature by the known key is verified.

        Raises:
            NoteError: The note is malformed, or the key did not sign it.
        """
        text, separator, block = note.rpartition("\n\n")
        text += "\n"
        if (
            not separator
            or not block.endswith("\n")
            or len(note) > _MAX_NOTE_BYTES
            or any(character < " " and character != "\n" for character in note)
        ):
            raise NoteError("the note is not a text, an empty line and signature lines")
        lines = block[:-1].split("\n")
        if len(lines) > _MAX_SIGNATURES:
            raise NoteError(f"the note has more than {_MAX_SIGNATURES} signatures")
        signatures = [self._signature(line) for line in lines]
        ours = [signature for signature in signatures if signature is not None]
        if not ours:
            raise NoteError("the note is not signed by the expected key")
        for signature in ours:
            self._check(signature, text)
        return text

    def _signature(self, line: str) -> bytes | None:
        match = _SIGNATURE_LINE.fullmatch(line)
        if match is None:
            raise NoteError("a signature line of the note is malformed")
        signature = _base64(match[2])
        if match[1] != self.name or signature[:_KEY_ID_BYTES] != self._key_id:
            return None
        return signature[_KEY_ID_BYTES:]

    def _check(self, signature: bytes, text: str) -> None:
        from cryptography.exceptions import InvalidSignature

        try:
            self._public_key.verify(signature, text.encode("utf-8", "replace"))
        except InvalidSignature:
            raise NoteError("the signature does not match the note's text") from None


def _public_key(raw: bytes) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise ConfigurationError("the audit trail needs cryptography; install healthobs[audit]") from None
    return Ed25519PublicKey.from_public_bytes(raw)


def _base64(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


class Signer:
    """Signs notes under a name.

    Args:
        name: Key name; for a log, its origin.
        private_key: The Ed25519 key.

    Raises:
        ConfigurationError: The name is not fit for a signature line.
    """

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        if not ORIGIN.fullmatch(name):
            raise ConfigurationError(
                "the audit origin must look like example.org/service/log: letters, digits and . _ ~ / -"
            )
        public = private_key.public_key().public_bytes_raw()
        self.name = name
        self._private_key = private_key
        self._key_id = _key_id(name, public)
        self.vkey: str = f"{name}+{self._key_id.hex()}+{base64.b64encode(_ED25519 + public).decode()}"

    def sign(self, text: str) -> str:
        """Return `text` (ending in a newline) as a signed note."""
        signature = self._key_id + self._private_key.sign(text.encode())
        return f"{text}\n— {self.name} {base64.b64encode(signature).decode()}\n"

    def checkpoint(self, size: int, root: bytes) -> Checkpoint:
        """Return the signed checkpoint of this log at `size`."""
        text = f"{self.name}\n{size}\n{base64.b64encode(root).decode()}\n"
        return Checkpoint(self.name, size, root, self.sign(text))


@dataclass(frozen=True, slots=True)
class Statement:
    """What a checkpoint says, whoever signed it."""

    origin: str
    size: int
    root: bytes


def read_statement(text: str) -> Statement:
    """Parse the text of a checkpoint (C2SP tlog-checkpoint, "Note text").

    Raises:
        NoteError: It has not exactly the three lines, or one of them is malformed.
    """
    lines = text.split("\n")
    if len(lines) != 4 or lines[3] or not lines[0] or not _SIZE.fullmatch(lines[1]):
        raise NoteError("the note is no checkpoint of origin, size and root")
    root = _base64(lines[2])
    if len(root) != HASH_BYTES:
        raise NoteError("the checkpoint's root is not 32 bytes")
    return Statement(lines[0], int(lines[1]), root)


def open_checkpoint(note: str, verifier: Verifier) -> Checkpoint:
    """Return the checkpoint in `note`, verified.

    Raises:
        NoteError: The note does not verify, is no checkpoint, or names another log than its key.
    """
    statement = read_statement(verifier.open(note))
    if statement.origin != verifier.name:
        raise NoteError("the checkpoint is of another log than the key's")
    return Checkpoint(statement.origin, statement.size, statement.root, note)
