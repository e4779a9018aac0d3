"""`start`: ops port, drain and keeper for a server that has no hooks for them (uvicorn, waitress).

`healthobs.asgi` calls it at the end of the lifespan's start-up. Elsewhere call it where the application starts, on the
main thread, once the server has set its own signal handlers.

Limits: of several workers (uvicorn's `--workers`, gunicorn's without `healthobs.gunicorn`; on Linux) one has the ops port and
answers for itself; another takes it within a second of its end. What `healthobs.gunicorn` lets workers share (draining, verdicts,
the port over a SIGUSR2) these do not.
"""

from __future__ import annotations

import contextlib
import os
import socket
import sys
import threading
import time
from multiprocessing import parent_process
from typing import TYPE_CHECKING

from healthobs._runtime import process
from healthobs.exceptions import ConfigurationError
from healthobs.health import Board
from healthobs.lifecycle.drain import Drain
from healthobs.lifecycle.keeper import Keeper
from healthobs.lifecycle.ops import OpsServer, bind_ops

if TYPE_CHECKING:
    from healthobs.observability import Observability

_RETRY_SECONDS = 0.5


def start(obs: Observability) -> None:
    """Give this process what `obs.settings` asks for: `ops_port`, `drain_delay_seconds`; without either, nothing.

    A worker that `healthobs.gunicorn` looks after has all that already, and gets nothing.

    Args:
        obs: Whose settings, checks and spans.

    Raises:
        ConfigurationError: The ops port cannot be bound.
    """
    if process.board is not None and process.board.row is not None:
        return
    settings = obs.settings
    if settings.ops_port:
        _open_ops(obs)
    if settings.drain_delay_seconds and threading.current_thread() is threading.main_thread():
        board = process.board = process.board or Board()
        Drain(settings.drain_delay_seconds, board.drain).install()
    if settings.ops_port or settings.drain_delay_seconds:
        Keeper(obs).start()


def _open_ops(obs: Observability) -> None:
    # gunicorn forks its workers by itself, but leaves its name in their environment.
    worker = parent_process() is not None or os.environ.get("SERVER_SOFTWARE", "").startswith("gunicorn/")
    if not worker or sys.platform != "linux":  # nobody to share it with
        OpsServer(obs, bind_ops(obs.settings.ops_host, obs.settings.ops_port)).start()
    elif not _open_in_turn(obs):
        threading.Thread(target=_wait_for_turn, args=(obs,), name="healthobs-ops-turn", daemon=True).start()


def _open_in_turn(obs: Observability) -> bool:
    """Open the ops port, unless another worker of this supervisor has it.

    Who has it holds a name in the abstract namespace (unix(7)), which goes with its process, however that ends.
    """
    settings = obs.settings
    turn = socket.socket(socket.AF_UNIX)
    try:
        turn.bind(f"\0healthobs-ops-{os.getppid()}-{settings.ops_port}")
    except OSError:
        turn.close()
        return False
    try:
        server = OpsServer(obs, bind_ops(settings.ops_host, settings.ops_port))
    except ConfigurationError:
        turn.close()
        raise
    server.turn = turn
    server.start()
    return True


def _wait_for_turn(obs: Observability) -> None:
    opened = False
    while not opened:
        time.sleep(_RETRY_SECONDS)
        # Somebody else was quicker: the next try may find it free
        with contextlib.suppress(ConfigurationError):
            opened = _open_in_turn(obs)
