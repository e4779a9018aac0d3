"""A trail with its retention and its approvers, and a clock that tests set."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from healthobs.audit import (
    AuditTrail,
    Verification,
    governance,
    keys,
    merkle,
    open_trail,
    store,
)
from healthobs.audit.checkpoint import Signer
from healthobs.audit.retention import RecordClass, Retention
from healthobs.testing import SteppingClock

YEAR = 366 * 86_400


ALICE = Signer("approver.example/alice", Ed25519PrivateKey.generate())


BOB = Signer("approver.example/bob", Ed25519PrivateKey.generate())


SHORT = (RecordClass("short", 1),)


EVE = Signer("approver.example/eve", Ed25519PrivateKey.generate())


#: Who signed, where that is not two approvers.
TOO_FEW = {"nobody": (), "one": (ALICE,), "one twice": (ALICE, ALICE), "a stranger": (ALICE, EVE)}


UNSIGNED = "the pruning lacks the signatures of two approvers that the log names"


class Bench:
    """A trail whose time can be moved, and its retention."""

    def __init__(self, directory: Path) -> None:
        self.time = SteppingClock(datetime(2020, 1, 1, tzinfo=UTC))
        self.url = f"sqlite:///{directory}/audit.db"
        self.key_file = directory / "audit.db.key"
        self.trail = self.open()

    def open(self) -> AuditTrail:
        return open_trail(self.url, service="s", clock=self.time.clock())

    def reopen(self) -> AuditTrail:
        self.trail.close()
        self.trail = self.open()
        return self.trail

    def retention(self, *classes: RecordClass) -> Retention:
        return Retention(self.trail, classes or SHORT, clock=self.time.clock())

    def appoint(self, *approvers: Signer, by: tuple[Signer, ...] = ()) -> int:
        """Name approvers, by order of those before; return the entry that names them."""
        retention = self.retention()
        text = retention.appointment([approver.vkey for approver in approvers or (ALICE, BOB)])
        return retention.appoint(signed(text, *by), actor="dpo-1", reason="r").index

    def add(self, count: int, action: str = "patient.read", **fields: object) -> None:
        """Append entries in one batch, as another process with the key would."""
        with self.trail.changing() as connection, connection.writing():
            size, _ = store.head(connection)
            tree = store.load_range(connection, size)
            rows: list[tuple[int, bytes, str]] = []
            nodes: list[tuple[int, int, bytes]] = []
            for index in range(size, size + count):
                draft = {"action": action, "subject": f"s-{index % 3}", **fields}
                body = encode(draft, self.time)
                nodes += tree.append(merkle.leaf_hash(body))
                rows.append((index, merkle.leaf_hash(body), body.decode()))
            signer = Signer(self.trail.origin, *_keys(self.key_file))
            store.insert(connection, rows, nodes, tree.size, signer.checkpoint(tree.size, tree.root()).note)

    def verify(self, *known: str) -> Verification:
        return self.trail.verify(known=known)


def encode(draft: dict[str, object], time: SteppingClock) -> bytes:
    from healthobs.audit.entry import encode as encode_entry

    return encode_entry(draft, service="s", moment=time.clock().now(), redactor=governance.REDACTOR)


def _keys(path: Path) -> tuple[Ed25519PrivateKey, list[Ed25519PrivateKey]]:
    current, *retiring = keys.load_all(path)
    return current, retiring


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    held = Bench(tmp_path)
    yield held
    held.trail.close()


def signed(text: str, *signers: Signer) -> str:
    """Sign any text, also one that `approve` refuses."""
    return text + ("\n" if signers else "") + "".join(signer.lines(text) for signer in signers)
