"""Whether copies of entries show what was recorded, in every form that is handed out (21 CFR 11.10(b)).

Electronic: JSON, from which each leaf is computed again, and C2SP tlog-proofs, each opened with nothing but the log's keys.
Readable: CSV and AuditEvents, each held against the entry.

Limits: of one whose body is gone a copy shows nothing but index and leaf, by whose order is for others to say.
"""

from __future__ import annotations

import csv as csv_format
import json
from base64 import b64decode
from io import StringIO
from typing import TYPE_CHECKING, Any

from healthobs.audit import export, reader, store
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.entry import canonical
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.records import InclusionProof

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail

#: Columns and members that a copy must have as the entry has them.
_COLUMNS = (
    "index",
    "time",
    "service",
    "action",
    "outcome",
    "subject",
    "purpose",
    "reason",
    "request_id",
    "hash",
)
#: What pages and exports add to an entry.
_ADDED = ("index", "hash")


def unfaithful(trail: AuditTrail, first: int, last: int) -> set[int]:
    """Return those of the entries `first` to `last` of which a copy shows something else, or nothing.

    Raises:
        AuditError: The store cannot be read, or its latest checkpoint is not this log's.
    """
    # Of all keys: a process that was not restarted since a rotation signs with the one before.
    verifier = Verifier(*trail.vkeys)
    with trail.connected() as connection, connection.reading():
        size, note = store.head(connection)
        open_checkpoint(note or "", verifier)
        text = "".join(f"{json.dumps(entry)}\n" for entry in export.entries(connection, first, last))
        events = {_index(event): event for event in export.fhir(connection, first, last)}
        table = StringIO(newline="")
        export.csv(connection, table, first, last)
        proofs: dict[int, str] = {}
        for index in range(first, last + 1):
            try:
                proofs[index] = export.tlog_proof(
                    reader.inclusion(connection, index, size, verifier), note or ""
                )
            except ValueError:  # the beginning is missing
                continue
    entries: dict[int, dict[str, Any]] = {
        entry["index"]: entry for entry in map(json.loads, text.splitlines())
    }
    rows = {row["index"]: row for row in csv_format.DictReader(StringIO(table.getvalue(), newline=""))}
    return {
        index
        for index in range(first, last + 1)
        if index not in entries
        or not _shows(entries[index], rows.get(str(index), {}), events.get(index, {}))
        or not _proves(proofs.get(index, ""), entries[index], verifier)
    }


def _index(event: dict[str, Any]) -> int:
    return int(_details(event)["healthobs.index"])


def _details(event: dict[str, Any]) -> dict[str, str]:
    return {
        detail["type"]: detail["valueString"]
        for entity in event.get("entity", ())
        for detail in entity.get("detail", ())
    }


def _shows(entry: dict[str, Any], row: dict[str, str], event: dict[str, Any]) -> bool:
    """Return whether the readable copies are those of the entry."""
    actor: dict[str, Any] = entry.get("actor") or {}
    expected = {name: entry.get(name) for name in _COLUMNS} | {"actor": actor.get("id")}
    if entry.get("unreadable") or any(
        row.get(name) != export.cell(value) for name, value in expected.items()
    ):
        return False
    if json.loads(row["details"]) != (entry.get("details") or {}):
        return False
    return bool(event) and (event["recorded"], _details(event)["healthobs.leaf"]) == (
        entry["time"],
        entry["hash"],
    )


def _proves(text: str, entry: dict[str, Any], verifier: Verifier) -> bool:
    """Return whether a tlog-proof leads from the copy to a root that the log's key signed."""
    body = {name: value for name, value in entry.items() if name not in _ADDED}
    leaf = bytes.fromhex(entry["hash"] or "")
    if leaf_hash(canonical(body).encode()) != leaf:
        return False
    head, _, note = text.partition("\n\n")
    try:
        _, index, *path = head.split("\n")
        checkpoint = open_checkpoint(note, verifier)
        number = int(index.removeprefix("index "))
        proof = InclusionProof(number, checkpoint.size, leaf, tuple(map(b64decode, path)))
    except (ValueError, NoteError):
        return False
    return number == entry["index"] and proof.verify(checkpoint.root)
