"""Keys of a log that change: who knew the old one can follow."""

from __future__ import annotations

import contextlib
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.retention_bench import ALICE, BOB, YEAR, Bench, encode, signed

from healthobs.audit import (
    governance,
    keys,
    merkle,
    open_trail,
    store,
    verification,
)
from healthobs.audit.checkpoint import NoteError, Signer, Verifier
from healthobs.audit.command import main
from healthobs.audit.copies import unfaithful
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

    @pytest.mark.parametrize("rotations", [1, 2])
    def test_pruned(self, bench: Bench, rotations: int) -> None:
        """A pruning that takes the entries on earlier keys says again what they said, also the next one that takes those."""
        vkeys = [bench.trail.vkey]
        bench.add(2)
        bench.appoint()
        for _ in range(rotations):
            self.rotate(bench)
            vkeys.append(bench.trail.vkey)
            bench.add(3)
            assert keys.retire(bench.key_file)
            bench.reopen().append({"action": "a.b"})
        path, new = str(bench.trail.path), vkeys[-1]
        for below in (256, 512):
            bench.add(300)
            bench.time.advance(YEAR)
            order = signed(bench.retention().order(below), ALICE, BOB)
            bench.retention().prune(order, actor="dpo-1", reason="r")
            assert bench.verify().problems == ()
            assert main(["verify", path]) == 0
            assert main(["verify", path, "--vkey", new]) == 0
            assert main(["verify", path, "--vkey", new, "--vkey", vkeys[0]]) == 0
            assert main(["verify", path, "--vkey", vkeys[0]]) == 1, "nothing that the old key signed is left"
        with bench.trail.connected() as connection:
            again = [order for order in governance.orders(connection) if order.action == governance.KEY]
        assert {order.vkeys for order in again} == {(new, vkey) for vkey in vkeys[:-1]}
        assert len(again) == rotations

    def test_pruning_while_both_sign(self, bench: Bench) -> None:
        """Whoever pins the old key follows a pruning that came while it still signed."""
        old = bench.trail.vkey
        bench.appoint()
        self.rotate(bench)
        bench.add(300)
        bench.time.advance(YEAR)
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        keys.retire(bench.key_file)
        bench.reopen().append({"action": "a.b"})
        assert main(["verify", str(bench.trail.path), "--vkey", old]) == 0

    def test_pruning_vouches_for_no_key_that_was_slipped_in(self, bench: Bench) -> None:
        """What somebody wrote into the file about a key is not said again by a pruning that takes it."""
        bench.appoint()
        bench.add(300)
        thief = Signer(bench.trail.origin, Ed25519PrivateKey.generate())
        details = {"vkey": bench.trail.vkey, "previous": thief.vkey}
        body = encode({"action": governance.KEY, "details": details}, bench.time)
        bench.time.advance(YEAR)
        with bench.trail.changing() as connection, connection.amending():
            connection.execute(
                "UPDATE entry SET leaf = ?, body = ? WHERE idx = 5", (merkle.leaf_hash(body), body.decode())
            )
        bench.reopen()  # what runs would see it
        bench.retention().prune(signed(bench.retention().order(256), ALICE, BOB), actor="a", reason="r")
        with bench.trail.connected() as reader:
            assert not any(order.vkeys for order in governance.orders(reader))

    def test_key_exchanged_without_overlap(self, bench: Bench) -> None:
        """A key file that holds none of the log's keys is refused."""
        bench.trail.close()
        bench.key_file.unlink()
        keys.load_or_create(bench.key_file)
        with pytest.raises(ConfigurationError, match="does not hold the key"):
            open_trail(bench.url, service="s")

    def test_not_restarted_yet(self, bench: Bench) -> None:
        """What a process signs that was not restarted since a rotation is shown faithfully by one that was."""
        bench.add(3)
        keys.rotate(bench.key_file)
        restarted = open_trail(bench.url, service="s")
        bench.trail.append({"action": "a.b"})
        assert unfaithful(restarted, 0, restarted.checkpoint().size - 1) == set()
        restarted.close()

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
