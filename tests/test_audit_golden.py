"""Entries, checkpoints and governing entries of every released format verify for ever.

`golden/audit_v1.jsonl` was written once and is never written again: keys, then entries, then checkpoints. Its
private keys are gone. A release that cannot read it breaks a promise.
"""

from __future__ import annotations

import contextlib
import json
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

from healthobs.audit import Verification, merkle, reading, store, verification
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.entry import canonical
from healthobs.audit.fhir import audit_event
from healthobs.audit.sqlite import SqliteStore

GOLDEN = Path(__file__).parent / "golden" / "audit_v1.jsonl"


class Golden:
    """What the file says."""

    def __init__(self) -> None:
        head, *rest = [json.loads(line) for line in GOLDEN.read_text(encoding="utf-8").splitlines()]
        self.vkeys: list[str] = head["vkeys"]
        self.entries: list[dict[str, Any]] = [line for line in rest if "leaf" in line]
        self.notes: dict[int, str] = {line["size"]: line["note"] for line in rest if "note" in line}

    def verify(self, path: Path, vkey: str) -> Verification:
        """Put it into a database of this release and verify it there."""
        place = SqliteStore(path)
        tree = merkle.CompactRange()
        with place.initialising() as connection:
            store.begin_log(connection, Verifier(vkey).name, self.vkeys[0], self.notes[0])
            for index, entry in enumerate(self.entries):
                leaf = bytes.fromhex(entry["leaf"])
                row = (index, leaf, entry["body"])
                store.insert(connection, [row], tree.append(leaf), index + 1, self.notes[index + 1])
        with contextlib.closing(place.connect(read_only=True)) as connection:
            return verification.verify(connection, Verifier(vkey))


@pytest.fixture(scope="module")
def golden() -> Golden:
    return Golden()


def test_verifies_with_each_key(golden: Golden, tmp_path: Path) -> None:
    """The log verifies whichever of its two keys is the one that is known; its erasure is still by order."""
    for number, vkey in enumerate(golden.vkeys):
        verdict = golden.verify(tmp_path / f"{number}.db", vkey)
        assert verdict.problems == ()
        assert (verdict.size, verdict.erased, verdict.checkpoints) == (6, 1, 7)


def test_by_hand(golden: Golden) -> None:
    """Leaves are SHA-256 of 0x00 and the body, bodies are canonical JSON, the root is the signed one."""
    for entry in golden.entries:
        if entry["body"] is not None:
            assert merkle.leaf_hash(entry["body"].encode()).hex() == entry["leaf"]
            assert canonical(json.loads(entry["body"])) == entry["body"]
    root = merkle.root_of(bytes.fromhex(entry["leaf"]) for entry in golden.entries)
    assert f"\n{len(golden.entries)}\n" in golden.notes[6]
    for vkey in golden.vkeys:
        assert Verifier(vkey).open(golden.notes[6]).split("\n")[2] == b64encode(root).decode()


def test_still_readable(golden: Golden) -> None:
    """Pages and AuditEvents are still made of it."""
    first = golden.entries[0]
    shown = reading.decoded(0, bytes.fromhex(first["leaf"]), first["body"])
    assert (shown["v"], shown["action"], shown["details"]["größe 𝄞"]) == (1, "patient.read", "€")
    assert audit_event(shown)["recorded"] == "2026-01-01T00:00:00.000000Z"


def test_any_change_is_noticed(golden: Golden, tmp_path: Path) -> None:
    """One letter of one old entry changed is found; so the test above can fail."""
    changed = Golden()
    changed.entries[1]["body"] = changed.entries[1]["body"].replace("denied", "failed")
    assert changed.verify(tmp_path / "changed.db", golden.vkeys[0]).first_bad_index == 1
