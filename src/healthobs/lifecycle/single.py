"""`start`: ops port, drain and keeper for a server that has no hooks for them (uvicorn, waitress).

`healthobs.asgi` calls it at the end of the lifespan's start-up. Elsewhere call it where the application starts, on the
main thread, once the server has set its own signal handlers.

Limits: one process. Of several workers only the first could bind the ops port; run one each, or gunicorn.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from healthobs._runtime import process
from healthobs.health import Board
from healthobs.lifecycle.drain import Drain
from healthobs.lifecycle.keeper import Keeper
from healthobs.lifecycle.ops import OpsServer, bind_ops

if TYPE_CHECKING:
    from healthobs.observability import Observability


def start(obs: Observability) -> None:
    """Give this process what `obs.settings` asks for: `ops_port`, `drain_delay_seconds`; without either, nothing.

    Args:
        obs: Whose settings, checks and spans.

    Raises:
        ConfigurationError: The ops port cannot be bound.
    """
    settings = obs.settings
    if settings.ops_port:
        OpsServer(obs, bind_ops(settings.ops_host, settings.ops_port)).start()
    if settings.drain_delay_seconds and threading.current_thread() is threading.main_thread():
        board = process.board = process.board or Board()
        Drain(settings.drain_delay_seconds, board.drain).install()
    if settings.ops_port or settings.drain_delay_seconds:
        Keeper(obs).start()
