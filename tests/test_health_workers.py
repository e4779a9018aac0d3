"""What the workers of one server know of each other."""

from __future__ import annotations

import os
import time
from typing import Any

import pytest
from tests.healthy import Time

from healthobs import _runtime
from healthobs.health import Board, Health, Progress
from healthobs.health.board import ROWS


@pytest.fixture
def board() -> Board:
    """Return the board in force, on which this process has the first row."""
    made = _runtime.process.board = Board()
    made.row = made.take()
    return made


class TestBoard:
    """What workers know of each other."""

    def test_shared_over_a_fork(self, board: Board) -> None:
        """A child's row and its drain are seen here, and it sees ours."""
        board.write(ready=True, alive=True)
        row = board.take()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            board.row = row
            board.write(ready=False, alive=True)
            board.drain()
            os._exit(0 if len(list(board.others())) == 1 else 1)
        assert os.waitpid(child, 0)[1] == 0
        (other,) = board.others()
        assert (other.pid, other.ready, other.alive, board.draining) == (child, 0, 1, True)
        board.give_back(row)
        assert list(board.others()) == []

    def test_rows_are_finite(self) -> None:
        """Beyond the last row a worker has none, and that harms nothing."""
        board = Board()
        rows = [board.take() for _ in range(ROWS)]
        assert (len(set(rows)), board.take()) == (ROWS, None)
        board.write(ready=True, alive=True)
        board.give_back(None)
        board.give_back(5)
        assert board.take() == 5

    def test_another_worker_decides_too(self, board: Board, health: Health) -> None:
        """While one worker is not ready, or not alive, every worker says so, and nobody stays so by echo."""
        second = board.take()
        mine, board.row = board.row, second
        board.write(ready=False, alive=False)
        board.row = mine
        health.write_verdicts()
        assert health.readiness() == (503, {"ready": False, "checks": {"workers": "not_ready"}})
        assert health.liveness()[1]["checks"] == {"workers": "failed"}
        board.row = second
        assert [(row.ready, row.alive) for row in board.others()] == [(1, 1)]
        board.write(ready=True, alive=True)
        board.row = mine
        assert (health.readiness()[0], health.liveness()[0]) == (200, 200)

    @pytest.mark.parametrize(("kind", "written"), [("readiness", (0, 1)), ("liveness", (1, 0))])
    def test_the_verdicts_are_those_of_the_checks(
        self, board: Board, health: Health, kind: Any, written: tuple[int, int]
    ) -> None:
        """What one worker writes is what its checks say now, each probe's by itself."""
        health.register("broken", lambda: False, kind=kind)
        health.write_verdicts()
        board.row = None
        assert [(row.pid, row.ready, row.alive) for row in board.others()] == [(os.getpid(), *written)]

    def test_draining_is_everybodys(self, board: Board, health: Health) -> None:
        """One byte drains them all, for good, and the workers' verdicts are of no interest then."""
        told: list[str] = []
        health._on_transition = lambda _name, _old, new, _cause: told.append(new)
        assert health.readiness()[0] == 200
        board.drain()
        assert health.readiness() == (503, {"ready": False, "checks": {"lifecycle": "draining"}})
        assert (health.liveness()[0], told) == (200, ["ready", "draining"])

    def test_a_short_stall_is_no_silence(
        self, board: Board, ticking: Time, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """However short the stall that is tolerated, a worker has time for the round between two of its verdicts."""
        health = Health("s", "1", ticking.clock(), progress=Progress(1, ticking.clock()))
        mine, board.row = board.row, board.take()
        now = time.monotonic_ns()
        monkeypatch.setattr(time, "monotonic_ns", lambda: now)
        board.write(ready=True, alive=True)
        board.row = mine
        statuses = []
        for seconds in (2, 4, 5, 6):
            monkeypatch.setattr(time, "monotonic_ns", lambda past=seconds: now + past * 10**9)
            statuses.append(health.liveness()[0])
        assert statuses == [200, 200, 200, 503]

    def test_a_silent_worker_has_stalled(
        self, board: Board, ticking: Time, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """With the stall watchdog on, a worker that writes nothing any more has failed."""
        health = Health("s", "1", ticking.clock(), progress=Progress(60, ticking.clock()))
        mine, board.row = board.row, board.take()
        board.write(ready=True, alive=True)
        board.row = mine
        assert health.liveness()[0] == 200
        real = time.monotonic_ns
        monkeypatch.setattr(time, "monotonic_ns", lambda: real() + 61 * 10**9)
        assert health.liveness()[1]["checks"] == {"request_progress": "ok", "workers": "failed"}
