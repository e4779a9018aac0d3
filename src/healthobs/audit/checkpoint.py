"""Signed checkpoints: C2SP signed-note with Ed25519 (type 0x01), and C2SP tlog-checkpoint as its text.

A verifier needs vkeys only (`<name>+<key id>+<base64 of type and public key>`): one, or the ring of all that
a log had in its life. Signatures of unknown keys are ignored, so that witnesses can add theirs; one bad
signature of a known key rejects the whole note. Witnesses' own signatures (type 0x04) are made in
`healthobs.audit.witness` and verified here.

Limits: Ed25519 only; at most 64 signatures and 64 KiB in a note. Extension lines are refused in checkpoints
of this log, which never writes any. Needs the extra `audit` (cryptography), imported when first used.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import sha256
from typing import TYPE_CHECKING

from healthobs.audit.merkle import HASH_BYTES
from healthobs.audit.records import Checkpoint
from healthobs.exceptions import AuditError, ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

#: Signature types (C2SP signed-note, "Signature types"): a note's, and a witness's with a time.
ED25519, COSIGNATURE = b"\x01", b"\x04"
_KEY_ID_BYTES = 4
_TIME_BYTES = 8
_MAX_SIGNATURES = 64
_MAX_NOTE_BYTES = 65_536
_SIGNATURE_LINE = re.compile(r"— ([^\s+]+) ([A-Za-z0-9+/]+={0,2})")
_SIZE = re.compile(r"0|[1-9][0-9]{0,18}")
#: Schema-less URL without spaces or plus (C2SP signed-note, "Format").
ORIGIN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._~/-]{0,199}")


class NoteError(AuditError):
    """A signed note or vkey is malformed, or was not signed by the expected key."""


def key_id(name: str, kind: bytes, public_key: bytes) -> bytes:
    """Return the id of a key under a name (C2SP signed-note, "Signatures")."""
    return sha256(name.encode() + b"\n" + kind + public_key).digest()[:_KEY_ID_BYTES]


def split(note: str) -> tuple[str, list[tuple[str, bytes]]]:
    """Return the text of `note` and its signatures as (key name, key id and signature), none of them verified.

    Raises:
        NoteError: The note is malformed.
    """
    text, separator, block = note.rpartition("\n\n")
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
    matches = [_SIGNATURE_LINE.fullmatch(line) for line in lines]
    if None in matches:
        raise NoteError("a signature line of the note is malformed")
    return f"{text}\n", [(match[1], from_base64(match[2])) for match in matches if match is not None]


class _Key:
    """One known public key, as its vkey says."""

    def __init__(self, vkey: str) -> None:
        name, _, rest = vkey.partition("+")
        identifier, _, encoded = rest.partition("+")
        key = from_base64(encoded)
        if not ORIGIN.fullmatch(name) or len(key) != 1 + HASH_BYTES or key[:1] not in (ED25519, COSIGNATURE):
            raise NoteError("the vkey is not of the form <name>+<key id>+<base64 key> with an Ed25519 key")
        self.vkey = vkey
        self.name = name
        self.kind = key[:1]
        self.id = key_id(name, self.kind, key[1:])
        if identifier != self.id.hex():
            raise NoteError("the vkey's key id does not match its key; it was copied wrongly or altered")
        self._public_key = _public_key(key[1:])

    def check(self, signature: bytes, text: str) -> int | None:
        """Return when a witness signed, None for a plain signature; raise when it is not this key's."""
        from cryptography.exceptions import InvalidSignature

        moment = None
        if self.kind == COSIGNATURE:
            moment, signature = int.from_bytes(signature[:_TIME_BYTES]), signature[_TIME_BYTES:]
            text = cosigned(text, moment)
        try:
            self._public_key.verify(signature, text.encode())
        except (InvalidSignature, UnicodeEncodeError):
            raise NoteError("the signature does not match the note's text") from None
        return moment


def cosigned(text: str, moment: int) -> str:
    """Return what a witness signs of a checkpoint's `text` (C2SP tlog-cosignature, "Ed25519 signed message")."""
    return f"cosignature/v1\ntime {moment}\n{text}"


@dataclass(frozen=True, slots=True)
class Opened:
    """A verified note.

    Args:
        text: What was signed.
        signers: Who signed of those that are known: vkey, and for a witness the POSIX time.
    """

    text: str
    signers: dict[str, int | None]


class Verifier:
    """Opens notes that a known key signed.

    Args:
        *vkeys: Keys as text, as `healthobs audit checkpoint --json` prints them; the current one first, then
            others of the same log.

    Raises:
        NoteError: A text is no Ed25519 vkey, its key id does not match its key, or the names differ.
    """

    def __init__(self, *vkeys: str) -> None:
        self._keys = [_Key(vkey.strip()) for vkey in vkeys]
        self.vkeys: tuple[str, ...] = tuple(key.vkey for key in self._keys)
        self.vkey: str = self.vkeys[0]
        self.name: str = self._keys[0].name
        self.cosigns: bool = all(key.kind == COSIGNATURE for key in self._keys)
        if any(key.name != self.name for key in self._keys):
            raise NoteError("the vkeys are not of one log; give those of one name")

    def open(self, note: str) -> str:
        """Return the text of `note` once every signature by a known key, and at least one, is verified.

        Raises:
            NoteError: The note is malformed, or no known key signed it.
        """
        return self.opened(note).text

    def opened(self, note: str) -> Opened:
        """Return the text of `note` and who signed it; as `open`."""
        text, signatures = split(note)
        signers = {
            key.vkey: key.check(signature[_KEY_ID_BYTES:], text)
            for name, signature in signatures
            for key in self._keys
            if name == key.name and signature[:_KEY_ID_BYTES] == key.id
        }
        if not signers:
            raise NoteError("the note is not signed by the expected key")
        return Opened(text, signers)


def _public_key(raw: bytes) -> Ed25519PublicKey:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    except ImportError:
        raise ConfigurationError("the audit trail needs cryptography; install healthobs[audit]") from None
    return Ed25519PublicKey.from_public_bytes(raw)


def to_base64(raw: bytes) -> str:
    """Return bytes as base64, without a line's end."""
    return binascii.b2a_base64(raw, newline=False).decode()


def from_base64(text: str) -> bytes:
    """Return the bytes behind canonical `text`; none when it is not base64."""
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


class Signer:
    """Signs notes under a name.

    Args:
        name: Key name; for a log, its origin.
        private_key: The Ed25519 key.
        retiring: Earlier keys of the same log, which sign beside it for a while.

    Raises:
        ConfigurationError: The name is not fit for a signature line.
    """

    def __init__(
        self, name: str, private_key: Ed25519PrivateKey, retiring: Iterable[Ed25519PrivateKey] = ()
    ) -> None:
        if not ORIGIN.fullmatch(name):
            raise ConfigurationError(
                "the audit origin must look like example.org/service/log: letters, digits and . _ ~ / -"
            )
        self.name: str = name
        self._keys: list[tuple[bytes, Ed25519PrivateKey]] = []
        vkeys: list[str] = []
        for key in (private_key, *retiring):
            public = key.public_key().public_bytes_raw()
            identifier = key_id(name, ED25519, public)
            self._keys.append((identifier, key))
            vkeys.append(f"{name}+{identifier.hex()}+{to_base64(ED25519 + public)}")
        self.vkeys: tuple[str, ...] = tuple(vkeys)
        self.vkey: str = vkeys[0]

    def sign(self, text: str) -> str:
        """Return `text` (ending in a newline) as a signed note."""
        return f"{text}\n{self.lines(text)}"

    def lines(self, text: str) -> str:
        """Return the signature lines alone, one for each key."""
        signed, lines = text.encode(), ""
        for identifier, key in self._keys:
            lines += f"— {self.name} {to_base64(identifier + key.sign(signed))}\n"
        return lines

    def checkpoint(self, size: int, root: bytes) -> Checkpoint:
        """Return the signed checkpoint of this log at `size`."""
        text = f"{self.name}\n{size}\n{to_base64(root)}\n"
        return Checkpoint(self.name, size, root, self.sign(text))


@dataclass(frozen=True, slots=True)
class Statement:
    """What a checkpoint says, whoever signed it."""

    origin: str
    size: int
    root: bytes


def read_statement(text: str, *, extensions: bool = False) -> Statement:
    """Parse the text of a checkpoint (C2SP tlog-checkpoint, "Note text").

    Args:
        text: The text of an opened note.
        extensions: Accept lines after the third, as another log may write them.

    Raises:
        NoteError: It has not the three lines, one of them is malformed, or there are more.
    """
    lines = text.split("\n")
    if len(lines) < 4 or lines[-1] or not all(lines[:-1]) or not _SIZE.fullmatch(lines[1]):
        raise NoteError("the note is no checkpoint of origin, size and root")
    if len(lines) > 4 and not extensions:
        raise NoteError("the checkpoint has extension lines, which this log never writes")
    root = from_base64(lines[2])
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
