"""What is verified while others append, erase and prune: nothing that went by order is missed, all else is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from tests.retention_bench import ALICE, BOB, YEAR, Bench, encode, signed

from healthobs.audit import governance, keys, merkle, store, verification
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.removal import Removals

Deed = Callable[[], object]


@pytest.fixture
def after_orders(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[int]]:
    """Has something done once the orders were read, each deed once; gives where each reading of them began."""

    def arrange(*deeds: Deed) -> list[int]:
        read, waiting, began = governance.orders, list(deeds), list[int]()

        def orders(
            connection: store.ReadConnection, start: int = 0, last: int = store.HIGHEST
        ) -> list[governance.Order]:
            began.append(start)
            found = read(connection, start, last)
            monkeypatch.setattr(governance, "orders", read)  # the deed reads them too
            if waiting:
                waiting.pop(0)()
            monkeypatch.setattr(governance, "orders", orders)
            return found

        monkeypatch.setattr(governance, "orders", orders)
        return began

    return arrange


def took(bench: Bench, statement: str, *parameters: object) -> None:
    with bench.trail.changing() as connection, connection.amending():
        connection.execute(statement, parameters)


class TestErased:
    """Bodies that go while entries are read."""

    def test_by_order(
        self, bench: Bench, after_orders: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What goes by order after the orders were read is no problem, and the orders are verified with the rest."""
        monkeypatch.setattr(store, "AT_ONCE", 3)
        bench.add(12)
        bench.time.advance(YEAR)
        retention = bench.retention()
        after_orders(
            *(
                lambda index=index: retention.erase(actor="a", reason="r", entries=(index, index))
                for index in (1, 5, 10)
            )
        )
        verdict = bench.verify()
        assert verdict.problems == ()
        assert (verdict.size, verdict.erased, verdict.checkpoints) == (15, 3, 5)

    def test_and_another_key_signs(self, bench: Bench, after_orders: Callable[..., list[int]]) -> None:
        """A key that is changed after the orders were read is followed like any."""
        bench.add(3)
        bench.time.advance(YEAR)
        verifier = Verifier(bench.trail.vkey)

        def deed() -> None:
            keys.rotate(bench.key_file)
            bench.reopen()
            keys.retire(bench.key_file)
            bench.reopen()
            bench.retention().erase(actor="a", reason="r", entries=(1, 1))

        after_orders(deed)
        with bench.trail.connected() as connection:
            verdict = verification.verify(connection, verifier)
        assert (verdict.problems, verdict.size) == ((), 5)

    def test_without_an_order(
        self, bench: Bench, after_orders: Callable[..., list[int]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What goes without one is named, and entries that come meanwhile are read once."""
        monkeypatch.setattr(store, "AT_ONCE", 10)
        bench.add(100)
        took(bench, "UPDATE entry SET body = NULL WHERE idx < 90")
        began = after_orders(lambda: bench.add(50))
        assert [problem.index for problem in bench.verify().problems] == list(range(50))
        assert began == [0, 100], "each entry is looked through for orders once"

    def test_by_an_order_that_nobody_signed(
        self, bench: Bench, after_orders: Callable[..., list[int]]
    ) -> None:
        """An order that is put behind the last checkpoint meanwhile is named."""
        bench.add(6)
        body = encode({"action": governance.ERASE, "details": {"ranges": "3"}}, bench.time)

        def deed() -> None:
            took(bench, "UPDATE entry SET body = NULL WHERE idx = 3")
            took(bench, "INSERT INTO entry VALUES (6, ?, ?)", merkle.leaf_hash(body), body.decode())

        after_orders(deed)
        assert [str(problem) for problem in bench.verify().problems] == [
            "entry 6: the entries from here on were never signed"
        ]

    def test_and_pruned_by_no_order(self, bench: Bench, after_orders: Callable[..., list[int]]) -> None:
        """A pruning that comes meanwhile, and which nobody approved, is named."""
        bench.add(6)
        bench.time.advance(YEAR)

        def deed() -> None:
            bench.retention().erase(actor="a", reason="r", entries=(1, 1))
            bench.trail.append_own({"action": governance.PRUNE, "details": {"below": 2}})

        after_orders(deed)
        assert [str(problem) for problem in bench.verify().problems] == [
            "entry 7: the pruning names no order for this log and entry"
        ]


class TestPruned:
    """Beginnings that go while entries are read."""

    @pytest.fixture
    def prune(self, bench: Bench) -> Callable[[int], None]:
        bench.appoint()
        bench.add(700)
        bench.time.advance(YEAR)

        def deed(below: int) -> None:
            order = signed(bench.retention().order(below), ALICE, BOB)
            bench.retention().prune(order, actor="a", reason="r")

        return deed

    def test_before_the_walk(
        self, bench: Bench, prune: Callable[[int], None], after_orders: Callable[..., list[int]]
    ) -> None:
        """What goes by order after the orders were read is no problem."""
        after_orders(lambda: prune(256))
        verdict = bench.verify()
        assert (verdict.problems, verdict.first) == ((), 256)

    def test_within_it(
        self, bench: Bench, prune: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Nor is what goes while entries are read."""
        monkeypatch.setattr(store, "AT_ONCE", 100)
        read, waiting = store.entries, [512]

        def entries(*arguments: Any) -> Any:
            for row in read(*arguments):
                if row[0] == 150 and waiting:
                    prune(waiting.pop())
                yield row

        monkeypatch.setattr(store, "entries", entries)
        verdict = bench.verify()
        assert (verdict.problems, verdict.first) == ((), 512)

    def test_without_an_order(
        self, bench: Bench, prune: Callable[[int], None], after_orders: Callable[..., list[int]]
    ) -> None:
        """What goes without one is named."""
        after_orders(lambda: took(bench, "DELETE FROM entry WHERE idx < 256"))
        assert bench.verify().first_bad_index == 0

    def test_again_and_again(self, bench: Bench, after_orders: Callable[..., list[int]]) -> None:
        """Whoever takes the beginning away all the time does not hold up the verdict."""
        bench.add(9)
        began = after_orders(
            *(
                lambda index=index: took(bench, f"DELETE FROM entry WHERE idx < {index}")
                for index in range(1, 9)
            )
        )
        assert bench.verify().first_bad_index == 0
        assert began == [0] * 3


class TestLook:
    """What is gone, while it goes."""

    def test_erased(self, bench: Bench, after_orders: Callable[..., list[int]]) -> None:
        """A body that goes by order while the log is looked at is not missing, and the next look tells it."""
        bench.add(6)
        bench.time.advance(YEAR)
        after_orders(lambda: bench.retention().erase(actor="a", reason="r", entries=(2, 2)))
        removals = Removals()
        assert removals.look(bench.trail).missing == 0
        kept = removals.look(bench.trail)
        assert ([(each.first, each.last) for each in kept.removals], kept.missing) == ([(2, 2)], 0)

    def test_pruned(self, bench: Bench, after_orders: Callable[..., list[int]]) -> None:
        """Nor is a beginning that is pruned meanwhile."""
        bench.appoint()
        bench.add(700)
        bench.time.advance(YEAR)
        order = signed(bench.retention().order(512), ALICE, BOB)
        after_orders(lambda: bench.retention().prune(order, actor="a", reason="r"))
        removals = Removals()
        assert [removals.look(bench.trail).missing for _ in range(2)] == [0, 0]
