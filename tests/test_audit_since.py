"""Verification of what came since: new entries, and that the log still is the one that was verified."""

from __future__ import annotations

import pytest
from tests.retention_bench import YEAR, Bench

from healthobs.audit import governance, store, verification
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
            "entry 6: the entries from here on are not those that were signed",
        ),
        (
            "UPDATE entry SET (leaf, body) = (SELECT leaf, body FROM entry WHERE idx = 1) WHERE idx = 0",
            "the log does not extend the 6 entries that were verified",
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
