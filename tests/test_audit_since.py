"""Verification of what came since: new entries, and that the log still is the one that was verified."""

from __future__ import annotations

import contextlib
import sqlite3

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from tests.retention_bench import ALICE, BOB, EVE, YEAR, Bench, signed

from healthobs.audit import approval, governance, keys, store, verification
from healthobs.audit.checkpoint import Signer
from healthobs.audit.governance import prune_order
from healthobs.audit.merkle import CompactRange
from healthobs.exceptions import AuditError, AuditTamperedError

SEEN = 6


@pytest.fixture
def seen(bench: Bench) -> CompactRange:
    """The tree of six entries that were verified, before four more came."""
    bench.add(SEEN)
    with bench.trail.connected() as connection:
        tree = store.load_range(connection, SEEN)
    bench.add(4)
    return tree


def change(bench: Bench, statement: str) -> None:
    """Change the file as who can write to it does, all guards left as they were."""
    with contextlib.closing(sqlite3.connect(bench.url.removeprefix("sqlite:///"))) as connection, connection:
        guards = connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'trigger'").fetchall()
        for name, _ in guards:
            connection.execute(f"DROP TRIGGER {name}")
        connection.execute(statement)
        for _, guard in guards:
            connection.execute(guard)


def damage(bench: Bench, *statements: str) -> None:
    with bench.trail.changing() as connection, connection.amending():
        for statement in statements:
            connection.execute(statement)


def test_what_is_new(bench: Bench, seen: CompactRange) -> None:
    """The verdict is on the four new entries, under one checkpoint, and the tree given is the whole log's."""
    root = seen.root()
    verdict, tree = bench.trail.verify_since(seen)
    assert tree is not None
    signed = bench.trail.checkpoint()
    assert (verdict.ok, verdict.size, verdict.first, verdict.checkpoints) == (True, 4, SEEN, 1)
    assert (verdict.root, tree.root(), tree.size) == (signed.root, signed.root, signed.size)
    assert (seen.size, seen.root()) == (SEEN, root), "what was verified is left as it was"
    verdict, again = bench.trail.verify_since(tree)
    assert again is not None
    assert (verdict.ok, verdict.size, again.root()) == (True, 0, signed.root)


@pytest.mark.parametrize(
    ("statement", "problem"),
    [
        ("UPDATE entry SET body = body || ' ' WHERE idx = 7", "entry 7: the body is not what was recorded"),
        ("UPDATE entry SET body = NULL WHERE idx = 8", "entry 8: the body is not what was recorded"),
        (
            "UPDATE entry SET (leaf, body) = (SELECT leaf, body FROM entry WHERE idx = 0) WHERE idx = 9",
            "entry 6: entries 6 to 9 are not those that were signed at size 10",
        ),
        (
            "UPDATE entry SET (leaf, body) = (SELECT leaf, body FROM entry WHERE idx = 1) WHERE idx = 0",
            "the log does not extend the 6 entries that were verified",
        ),
        (
            "DELETE FROM checkpoint WHERE size = 10",
            "entry 6: the entries from here on are not those that were signed",
        ),
        ("DELETE FROM entry WHERE idx > 4", "the log does not extend the 6 entries that were verified"),
        ("DROP TRIGGER tile_no_update", "the guard tile_no_update is missing or altered"),
    ],
)  # fmt: skip
def test_what_is_not_as_it_was_is_named(
    bench: Bench, seen: CompactRange, statement: str, problem: str
) -> None:
    """A change of a new entry, of what was verified before, or of the guards is told, and no tree is given."""
    damage(bench, statement)
    verdict, tree = bench.trail.verify_since(seen)
    assert (verdict.ok, tree, [str(found) for found in verdict.problems]) == (False, None, [problem])


def test_erased_by_order(bench: Bench, seen: CompactRange) -> None:
    """A body that an entry since ordered to go is no problem; another that went with it is."""
    bench.time.advance(YEAR)
    bench.retention().erase(actor="dpo-1", reason="request", entries=(7, 8))
    assert bench.trail.verify_since(seen)[0].ok
    damage(bench, "UPDATE entry SET body = NULL WHERE idx IN (6, 9)")
    verdict, _ = bench.trail.verify_since(seen)
    assert [problem.index for problem in verdict.problems] == [6, 9]


def test_order_that_names_what_governs(bench: Bench, seen: CompactRange) -> None:
    """An order since that names an entry since by which the trail governs itself is named."""
    bench.retention().hold("case", actor="a", reason="r", entries=(0, 0))
    bench.trail.append_own({"action": governance.ERASE, "details": {"ranges": "10"}})
    verdict, _ = bench.trail.verify_since(seen)
    assert [problem.index for problem in verdict.problems] == [10]


def test_orders_are_judged_as_all_of_it_judges_them(bench: Bench, seen: CompactRange) -> None:
    """What is wrong with a pruning, a naming of approvers or an erasure since is told, though what shows it came before."""
    with bench.trail.connected() as connection:
        tree = store.load_range(connection, bench.appoint() + 1)
    bench.add(300)
    named = bench.retention().approvers()
    note = approval.appointment(bench.trail.origin, [ALICE.vkey, EVE.vkey], named.after)
    order = prune_order(bench.trail.origin, 256)
    unsigned: list[tuple[str, dict[str, object]]] = [
        (governance.APPROVERS, {"order": signed(note, ALICE, EVE)}),
        (governance.PRUNE, {"below": 256}),
        (governance.PRUNE, {"below": 256, "order": signed(order, ALICE, EVE)}),
        (governance.ERASE, {"ranges": str(named.index)}),
    ]
    for action, details in unsigned:
        bench.trail.append_own({"action": action, "details": details})
    problems = sorted(map(str, bench.verify().problems))
    assert len(problems) == len(unsigned)
    assert sorted(map(str, bench.trail.verify_since(tree)[0].problems)) == problems


def test_orders_of_two(bench: Bench, seen: CompactRange) -> None:
    """A naming and a pruning since, each by two of those named before what is new, are no problem."""
    bench.add(300)
    with bench.trail.connected() as connection:
        tree = store.load_range(connection, bench.appoint() + 1)
    bench.appoint(ALICE, EVE, by=(ALICE, BOB))
    order = signed(prune_order(bench.trail.origin, 256), EVE, ALICE)
    bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 256, "order": order}})
    assert bench.verify().ok
    assert bench.trail.verify_since(tree)[0].ok


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE log SET vkey = 'x'",
        pytest.param(f"UPDATE log SET vkey = '{EVE.vkey}'", id="another's key"),
        "UPDATE log SET origin = 'example.org/other'",
        "UPDATE checkpoint SET note = 'x' WHERE size = 10",
        "UPDATE checkpoint SET note = (SELECT note FROM checkpoint WHERE size = 6) WHERE size = 10",
        "INSERT INTO checkpoint SELECT 7, note FROM checkpoint WHERE size = 10",
        "INSERT INTO checkpoint SELECT 99, note FROM checkpoint WHERE size = 12",
        "INSERT INTO checkpoint SELECT -9, note FROM checkpoint WHERE size = 12",
        "INSERT INTO entry SELECT -9, leaf, body FROM entry WHERE idx = 8",
    ],
)
def test_what_all_of_it_finds_in_what_is_new(bench: Bench, seen: CompactRange, statement: str) -> None:
    """Whose log it is, every checkpoint since, and what is numbered as nothing ever was, are looked at as in all of it."""
    with bench.trail.connected() as connection:
        tree = store.load_range(connection, SEEN)
    bench.add(2)
    change(bench, statement)
    found = {str(problem) for problem in bench.trail.verify_since(tree)[0].problems}
    assert found
    assert found <= {str(problem) for problem in bench.verify().problems}


def test_checkpoint_since_of_other_entries(bench: Bench, seen: CompactRange) -> None:
    """A checkpoint since, signed with the log's own key, whose root is not that of the entries is told."""
    bench.add(2)
    assert bench.trail.verify_since(seen)[0].ok
    root = Signer(bench.trail.origin, keys.load(bench.key_file)).checkpoint(10, b"x" * 32)
    change(bench, f"UPDATE checkpoint SET note = '{root.note}' WHERE size = 10")
    said = "entry 6: entries 6 to 9 are not those that were signed at size 10"
    assert list(map(str, bench.trail.verify_since(seen)[0].problems)) == [said]


def test_checkpoints_of_a_key_that_was_vouched_for(bench: Bench, seen: CompactRange) -> None:
    """What another key signed since is good where the log names it under a checkpoint of a known key, and else is not."""
    former = Signer(bench.trail.origin, Ed25519PrivateKey.generate())
    note = former.checkpoint(10, bench.trail.checkpoint().root).note
    bench.add(2)
    change(bench, f"UPDATE checkpoint SET note = '{note}' WHERE size = 10")
    assert not bench.trail.verify_since(seen)[0].ok
    details = {"vkey": bench.trail.vkey, "previous": former.vkey}
    bench.trail.append_own({"action": governance.KEY, "details": details})
    change(bench, f"UPDATE log SET vkey = '{former.vkey}'")
    assert bench.verify().ok
    assert bench.trail.verify_since(seen)[0].ok


def test_tiles_of_no_entries(bench: Bench) -> None:
    """A tile that belongs to no entries, or is wider than its entries make it, is told: it would stop the log from growing."""
    bench.add(600)
    with bench.trail.connected() as connection:
        tree = store.load_range(connection, 600)
    bench.add(3)
    for level, number, width in ((1, 0, 3), (1, 1, 1), (2, 0, 1), (7, 0, 1), (0, 0, 1), (1, -1, 1)):
        assert bench.trail.verify_since(tree)[0].ok
        change(bench, f"INSERT INTO tile VALUES ({level}, {number}, {width}, zeroblob({32 * width}))")
        verdict, _ = bench.trail.verify_since(tree)
        said = "there are kept tiles that belong to no entries"
        assert [str(problem) for problem in verdict.problems] == [said], (level, number, width)
        assert not bench.verify().ok
        change(bench, f"DELETE FROM tile WHERE level = {level} AND n = {number} AND width = {width}")


def test_long_list_is_cut(bench: Bench, seen: CompactRange, monkeypatch: pytest.MonkeyPatch) -> None:
    """A ruined log does not flood the report."""
    monkeypatch.setattr(verification, "MAX_PROBLEMS", 2)
    damage(bench, "UPDATE entry SET body = ''")
    assert [problem.index for problem in bench.trail.verify_since(seen)[0].problems] == [6, 7]


def test_nothing_can_be_said(bench: Bench, seen: CompactRange) -> None:
    """A missing entry and a checkpoint that does not verify are errors, not verdicts."""
    damage(bench, "DELETE FROM entry WHERE idx = 7")
    with pytest.raises(AuditTamperedError) as caught:
        bench.trail.verify_since(seen)
    assert caught.value.index == 7
    with pytest.raises(AuditError):
        bench.trail.verify_since(CompactRange())
