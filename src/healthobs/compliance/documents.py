"""Attestations and waivers: signed JSON documents that expire.

An attestation is a named person's declaration of what no probe can see; a waiver lets the gate pass a control that
is not shown, which stays what it is. A file holds ``{"document": {…}, "signature": "— <name> <base64>"}``; what is
signed (Ed25519, C2SP signed-note) is the document in canonical JSON (RFC 8785) and a line end. It counts while a key
listed in the settings signed it: taking the key or the file away revokes it.

Limits: the digest ties a declaration to a paper; whether the paper is true is not seen from here. Days are UTC.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, cast, get_args

from healthobs.compliance.control import Outcome
from healthobs.exceptions import AuditError, ConfigurationError

if TYPE_CHECKING:
    from healthobs.audit.checkpoint import Signer

Kind = Literal["attestation", "waiver"]
_DIGEST = re.compile(r"[0-9a-f]{64}|")
_MAX_BYTES = 65_536
_MAX_FILES = 1_000


@dataclass(frozen=True, slots=True)
class Document:
    """What somebody signed.

    Args:
        kind: ``attestation`` or ``waiver``.
        control: Id of the control that it is about.
        issued: First day on which it holds (``YYYY-MM-DD``).
        expires: Last day on which it holds.
        statement: What is declared, or why the failure is accepted; no personal data.
        document_sha256: SHA-256 of the paper behind it (64 hex digits); an attestation must have one.

    Raises:
        ConfigurationError: Listing every field that is wrong.
    """

    kind: Kind
    control: str
    issued: str
    expires: str
    statement: str
    document_sha256: str = ""

    def __post_init__(self) -> None:
        """Check every field."""
        if not all(isinstance(value, str) for value in asdict(self).values()):
            raise ConfigurationError("every member of a document is a text")
        problems: list[str] = []
        if self.kind not in get_args(Kind):
            problems.append("kind must be attestation or waiver")
        if not (self.control and self.statement):
            problems.append("control and statement must not be empty")
        if not _DIGEST.fullmatch(self.document_sha256) or (
            self.kind == "attestation" and not self.document_sha256
        ):
            problems.append("document_sha256 must be 64 hex digits, and an attestation needs it")
        if not (_is_day(self.issued) and _is_day(self.expires)) or self.issued > self.expires:
            problems.append("issued and expires must be days (YYYY-MM-DD), in this order")
        if problems:
            raise ConfigurationError(*problems)

    def holds(self, today: date) -> bool:
        """Return whether it counts on that day (UTC)."""
        return self.issued <= today.isoformat() <= self.expires


def _is_day(text: str) -> bool:
    try:
        return date.fromisoformat(text).isoformat() == text
    except ValueError:
        return False


class Signed(NamedTuple):
    """A document and the name of the key that signed it."""

    document: Document
    person: str


class Documents(NamedTuple):
    """What a folder holds: per control its attestations and waivers, oldest first, and how many files count for nothing."""

    attestations: Mapping[str, tuple[Signed, ...]]
    waivers: Mapping[str, tuple[Signed, ...]]
    refused: int


NO_DOCUMENTS = Documents({}, {}, 0)


def sign(document: Document, signer: Signer) -> str:
    """Return the text of a file.

    Args:
        document: What is declared.
        signer: Who declares; its name is shown as the person.
    """
    _, _, line = signer.sign(_text(document)).rstrip("\n").rpartition("\n")
    return json.dumps({"document": asdict(document), "signature": line}, ensure_ascii=False, indent=2) + "\n"


def _text(document: Document) -> str:
    from healthobs.audit.entry import canonical

    return canonical(asdict(document)) + "\n"


def read(content: bytes, vkeys: Sequence[str]) -> Signed:
    """Return the document in `content` once one of the keys is found to have signed it.

    Args:
        content: Of a file.
        vkeys: The keys whose signature counts (`Signer.vkey`).

    Raises:
        ConfigurationError: It is malformed, or none of the keys signed it.
    """
    from healthobs.audit.checkpoint import Verifier

    try:
        parsed: Any = json.loads(content)
        document = Document(**cast("dict[str, Any]", parsed["document"]))
        note = f"{_text(document)}\n{parsed['signature']}\n"
    except ConfigurationError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        raise ConfigurationError("the file is no JSON object of document and signature") from None
    for vkey in vkeys:
        try:
            verifier = Verifier(vkey)
            verifier.open(note)
        except AuditError:
            continue
        return Signed(document, verifier.name)
    raise ConfigurationError("the document is not signed by a key that is listed in compliance_keys")


def read_folder(folder: Path | None, vkeys: Sequence[str]) -> Documents:
    """Return what the files ``*.json`` of a folder hold; of several about one control `counting` says which counts.

    Args:
        folder: Where they are; None holds nothing.
        vkeys: The keys whose signature counts.
    """
    if folder is None:
        return NO_DOCUMENTS
    found: list[Signed] = []
    refused = 0
    for path in sorted(folder.glob("*.json"))[:_MAX_FILES]:
        try:
            with path.open("rb") as file:
                found.append(read(file.read(_MAX_BYTES), vkeys))
        except (OSError, ConfigurationError):
            refused += 1
    by_kind: dict[Kind, dict[str, tuple[Signed, ...]]] = {"attestation": {}, "waiver": {}}
    for signed in sorted(found, key=_age):
        held = by_kind[signed.document.kind]
        held[signed.document.control] = (*held.get(signed.document.control, ()), signed)
    return Documents(by_kind["attestation"], by_kind["waiver"], refused)


def _age(signed: Signed) -> tuple[str, str]:
    return signed.document.issued, signed.document.expires


def counting(several: Sequence[Signed], today: date) -> Signed | None:
    """Return which of several documents of a kind about one control counts.

    The newest that holds today; where none does the newest that is over, and else the next to come: a renewal takes
    nothing away before its first day, and one that is over nothing from one that holds.

    Args:
        several: The documents.
        today: The day (UTC).
    """
    begun = [signed for signed in several if signed.document.issued <= today.isoformat()]
    if not begun:
        return min(several, key=_age, default=None)
    return max([signed for signed in begun if signed.document.holds(today)] or begun, key=_age)


def judge(signed: Signed | None, today: date) -> Outcome:
    """Return ``attested`` for a declaration that holds today, ``fail`` for one that expired, else ``unknown``.

    Args:
        signed: The declaration, when there is one.
        today: The day (UTC).

    Example:
        >>> said = Document("attestation", "H-308.5", "2026-01-01", "2026-12-31", "all were trained", "0" * 64)
        >>> judge(Signed(said, "privacy-officer"), date(2026, 11, 23)).state
        'attested'
    """
    if signed is None:
        return Outcome("unknown", "nobody has attested it")
    document = signed.document
    if document.holds(today):
        return Outcome(
            "attested",
            f"attested by {signed.person} until {document.expires}, document {document.document_sha256[:12]}",
        )
    if today.isoformat() > document.expires:
        return Outcome("fail", f"the attestation expired on {document.expires}")
    return Outcome("unknown", f"the attestation holds from {document.issued} on")
