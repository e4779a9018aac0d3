"""Orders that somebody wrote into the database: nobody signed them, so nobody who asks for one entry believes them."""

from __future__ import annotations

import contextlib
import sqlite3
from typing import Any

import pytest
from tests.retention_bench import ALICE, BOB, YEAR, Bench, encode, signed

from healthobs.audit import approval, governance, merkle, reading
from healthobs.audit.checkpoint import NoteError
from healthobs.audit.command import main
from healthobs.audit.sqlite import GUARDS
from healthobs.exceptions import AuditTamperedError


def took(bench: Bench, statement: str, *parameters: object) -> None:
    """Do to the file what only somebody with write access to it can: drop the guards first."""
    assert bench.trail.path is not None
    with contextlib.closing(sqlite3.connect(bench.trail.path)) as connection, connection:
        for name in GUARDS:
            connection.execute(f"DROP TRIGGER IF EXISTS {name}")
        connection.execute(statement, parameters)


def write(bench: Bench, index: int, action: str, **details: Any) -> None:
    """Write an entry past the trail, in the place of another or behind the last."""
    body = encode({"action": action, "details": details}, bench.time)
    took(bench, "REPLACE INTO entry VALUES (?, ?, ?)", index, merkle.leaf_hash(body), body.decode())


@pytest.mark.parametrize("place", [5, 6])
class TestErased:
    """An order in the place of a signed entry, and one behind the last checkpoint."""

    def test_is_not_believed(self, bench: Bench, place: int, capsys: pytest.CaptureFixture[str]) -> None:
        """A body that went by it is missing."""
        bench.add(6)
        took(bench, "UPDATE entry SET body = NULL WHERE idx = 3")
        write(bench, place, governance.ERASE, ranges="3")
        assert bench.trail.erased_by([3]) == {}
        with bench.trail.connected() as connection:
            without_key = reading.erased_by(connection, [3])
        assert without_key == ({3: 5} if place == 5 else {}), "which costs no proof"
        for form in ((), ("--tlog-proof",)):
            assert main(["prove", str(bench.trail.path), "3", "--vkey", bench.trail.vkey, *form]) == 1
        assert "".join(capsys.readouterr()).count("TAMPERED") == 2

    def test_and_one_that_was_signed_is(self, bench: Bench, place: int) -> None:
        """One that was signed is believed beside it."""
        bench.add(9)
        bench.time.advance(YEAR)
        bench.retention().erase(actor="a", reason="r", entries=(3, 3))
        took(bench, "UPDATE entry SET body = NULL WHERE idx = 4")
        write(bench, place + 5, governance.ERASE, ranges="3-4")
        assert bench.trail.erased_by([2, 3, 4]) == {3: 9}
        assert main(["prove", str(bench.trail.path), "3", "--vkey", bench.trail.vkey]) == 0


@pytest.mark.parametrize("place", [400, 600])
def test_pruned(bench: Bench, place: int, capsys: pytest.CaptureFixture[str]) -> None:
    """A beginning that went by approvers and an order that nobody signed is missing, whatever is asked for."""
    bench.add(600)
    origin = bench.trail.origin
    named = approval.appointment(origin, [ALICE.vkey, BOB.vkey], "-")
    write(bench, place, governance.APPROVERS, order=named)
    write(
        bench,
        place + 1,
        governance.PRUNE,
        below=256,
        order=signed(governance.prune_order(origin, 256), ALICE, BOB),
    )
    took(bench, "DELETE FROM entry WHERE idx < 256")
    assert bench.trail.pruned() == 0
    with bench.trail.connected() as connection:
        assert reading.pruned(connection) == (256 if place == 400 else 0), "which costs no proof"
    with pytest.raises(AuditTamperedError):
        bench.trail.inclusion_proof(5)
    assert main(["prove", str(bench.trail.path), "5", "--vkey", bench.trail.vkey]) == 1
    assert main(["consistency", str(bench.trail.path), "5", "--vkey", bench.trail.vkey]) == 1
    assert "pruned by order" not in capsys.readouterr().err


def test_latest_checkpoint_is_not_ours(bench: Bench) -> None:
    """Where nothing says what was signed, no order is told, and what is missing is tampered with."""
    bench.add(300)
    took(bench, "DELETE FROM entry WHERE idx < 9")
    took(bench, "UPDATE entry SET body = NULL WHERE idx = 20")
    took(bench, "UPDATE checkpoint SET note = 'x'")
    for ask in (bench.trail.pruned, lambda: bench.trail.erased_by([20])):
        with pytest.raises(NoteError):
            ask()
    with pytest.raises(AuditTamperedError):
        bench.trail.inclusion_proof(5)
    took(bench, "DELETE FROM checkpoint")
    with bench.trail.connected() as connection:
        assert (reading.pruned(connection), reading.erased_by(connection, [20])) == (0, {})
