"""Keys of a log that change: who knew the old one can follow."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.retention_bench import ALICE, BOB, Bench, encode

from healthobs.audit import (
    governance,
    keys,
    merkle,
    open_trail,
    store,
    verification,
)
from healthobs.audit.checkpoint import NoteError, Signer, Verifier
from healthobs.audit.sqlite import SqliteStore
from healthobs.exceptions import ConfigurationError


class TestRotation:
    """A change of key is an entry, and a chain of trust."""

    def rotate(self, bench: Bench) -> None:
        keys.rotate(bench.key_file)
        bench.reopen()

    def test_both_sign_for_a_while(self, bench: Bench) -> None:
        """After a rotation, checkpoints open with the old key and with the new one; the change is an entry."""
        old = bench.trail.vkey
        bench.add(2)
        self.rotate(bench)
        entry = bench.trail.read().entries[0]
        assert (entry["action"], entry["index"]) == (governance.KEY, 2)
        assert entry["actor"]["id"] == "healthobs"
        assert entry["details"] == {"vkey": bench.trail.vkey, "previous": old}
        note = bench.trail.checkpoint().note
        assert Verifier(old).open(note) == Verifier(bench.trail.vkey).open(note)
        bench.reopen()
        assert bench.trail.checkpoint().size == 3, "it is recorded once"

    def test_whole_life(self, bench: Bench) -> None:
        """After two rotations and the end of every overlap, each pinned key of the chain verifies the whole log."""
        vkeys = [bench.trail.vkey]
        for _ in range(2):
            bench.add(3)
            self.rotate(bench)
            vkeys.append(bench.trail.vkey)
            bench.add(3)
            assert keys.retire(bench.key_file) >= 1
            bench.reopen().append({"action": "a.b"})
        assert len(set(vkeys)) == 3
        with contextlib.closing(
            SqliteStore(Path(bench.url.removeprefix("sqlite:///"))).connect()
        ) as connection:
            for vkey in vkeys:
                assert verification.verify(connection, Verifier(vkey)).problems == ()
        with pytest.raises(NoteError, match="not signed by the expected key"):
            Verifier(vkeys[0]).open(bench.trail.checkpoint().note)

    def test_key_exchanged_without_overlap(self, bench: Bench) -> None:
        """A key file that holds none of the log's keys is refused."""
        bench.trail.close()
        bench.key_file.unlink()
        keys.load_or_create(bench.key_file)
        with pytest.raises(ConfigurationError, match="does not hold the key"):
            open_trail(bench.url, service="s")

    def test_swapped_key_is_named(self, bench: Bench) -> None:
        """A key that somebody slipped in, with an entry that vouches for it but no known key over it, is named."""
        bench.add(3)
        origin, vkey = bench.trail.origin, bench.trail.vkey
        thief = Signer(origin, Ed25519PrivateKey.generate())
        with bench.trail.changing() as connection, connection.writing():
            size, _ = store.head(connection)
            tree = store.load_range(connection, size)
            draft: dict[str, object] = {
                "action": governance.KEY,
                "details": {"vkey": thief.vkey, "previous": vkey},
            }
            body = encode(draft, bench.time)
            tree.append(merkle.leaf_hash(body))
            row = (size, merkle.leaf_hash(body), body.decode())
            store.insert(connection, [row], [], tree.size, thief.checkpoint(tree.size, tree.root()).note)
        verdict = bench.verify()
        assert [str(problem) for problem in verdict.problems] == [
            "the checkpoint of size 4 is signed by a key that no known key vouches for"
        ]

    def test_open_to_others(self, bench: Bench) -> None:
        """Rotation keeps the file its owner's alone."""
        keys.rotate(bench.key_file)
        assert bench.key_file.stat().st_mode & 0o077 == 0
        assert len(keys.load_all(bench.key_file)) == 2
        assert keys.retire(bench.key_file) == 1
        assert len(keys.load_all(bench.key_file)) == 1

    def test_keys_of_two_logs_are_no_ring(self) -> None:
        """A verifier's keys are of one log."""
        with pytest.raises(NoteError, match="one log"):
            Verifier(ALICE.vkey, BOB.vkey)
