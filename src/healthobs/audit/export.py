"""The log in the forms that others read: decoded entries, CSV, FHIR R4 AuditEvents, C2SP tlog-proof.

Limits: what is exported carries no proof of its own but the leaf hash of each entry; `tlog_proof` and the
tiles of `healthobs.audit.tiles` do. An entry whose body is gone is in JSON and CSV by index and hash, and left
out of the AuditEvents, which need what it said.
"""

from __future__ import annotations

import csv as csv_format
import json
import re
from collections.abc import Iterator
from typing import Any, TextIO

from healthobs.audit import reading, store
from healthobs.audit.checkpoint import to_base64
from healthobs.audit.fhir import audit_event
from healthobs.audit.records import InclusionProof
from healthobs.audit.store import ReadConnection

COLUMNS = (
    "index", "time", "service", "action", "outcome", "actor", "actor_kind", "subject", "resource_type",
    "resource_id", "purpose", "classification", "reason", "details", "trace_id", "span_id", "request_id", "hash", "tenant",
)  # fmt: skip
#: A formula by its first character, also of full width, or behind blanks and what is not seen; or the mark itself.
_FORMULA = re.compile(r"['\t\r\n]|[\s\x00-\x1f\u200b-\u200f\u2060\ufeff]*[=+\-@\uff1d\uff0b\uff0d\uff20]")


def entries(
    connection: ReadConnection, first: int = store.LOWEST + 1, last: int = store.HIGHEST
) -> Iterator[dict[str, Any]]:
    """Return every entry from `first` to `last` as pages show it, oldest first."""
    rows = store.entries(connection, first - 1, last)
    return (reading.decoded(index, leaf, body) for index, leaf, body in rows if isinstance(index, int))


def fhir(
    connection: ReadConnection, first: int = store.LOWEST + 1, last: int = store.HIGHEST
) -> Iterator[dict[str, Any]]:
    """Return an AuditEvent for every entry from `first` to `last` that can be read."""
    return (audit_event(entry) for entry in entries(connection, first, last) if not entry.get("unreadable"))


def csv(
    connection: ReadConnection, out: TextIO, first: int = store.LOWEST + 1, last: int = store.HIGHEST
) -> None:
    """Write every entry from `first` to `last` as a line of CSV (RFC 4180), under a line of names.

    A cell that a spreadsheet could take for a formula has an apostrophe in front, and so has one that begins with an apostrophe: taken
    off again, one gives what was recorded.
    """
    writer = csv_format.writer(out)
    writer.writerow(COLUMNS)
    for entry in entries(connection, first, last):
        actor: dict[str, Any] = entry.get("actor") or {}
        resource: dict[str, Any] = entry.get("resource") or {}
        details = json.dumps(entry.get("details") or {}, ensure_ascii=False)
        flat = {**entry, "actor": actor.get("id"), "actor_kind": actor.get("kind"), "details": details}
        flat |= {"resource_type": resource.get("type"), "resource_id": resource.get("id")}
        writer.writerow([cell(flat.get(name)) for name in COLUMNS])


def cell(value: object) -> str:
    """Return a value as a cell of the CSV has it.

    Example:
        >>> cell("=1+1"), cell("'=1+1"), cell("1+1")
        ("'=1+1", "''=1+1", '1+1')
    """
    text = "" if value is None else str(value)
    return f"'{text}" if _FORMULA.match(text) else text


def tlog_proof(proof: InclusionProof, note: str) -> str:
    """Return a proof that needs nothing but the log's key to be checked (C2SP tlog-proof).

    Args:
        proof: Of an entry, in the tree that `note` signs.
        note: The checkpoint, with witnesses' signatures if there are any.
    """
    lines = ["c2sp.org/tlog-proof@v1", f"index {proof.index}"]
    lines += [to_base64(node) for node in proof.path]
    return "\n".join([*lines, "", note])
