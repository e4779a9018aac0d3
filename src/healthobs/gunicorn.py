"""Starts an application under gunicorn with metrics that are right in every worker, and its hooks.

gthread workers, no preload (an exporter used before the fork would share its socket). With more than one
worker `PROMETHEUS_MULTIPROC_DIR` is set before prometheus_client is imported, because it chooses then.
The hooks (`gunicorn --config python:healthobs.gunicorn`) bind the ops port, drain on SIGTERM, share the workers'
board, announce connections that gunicorn will end, flush, and merge dead workers' metric files; see `healthobs.lifecycle`.

Reload: SIGHUP replaces the workers, SIGUSR2 the master too; port, directory and counts go on in both.

Limits: the multiprocess directory is wiped at start, so counters restart with the service.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import tempfile
from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, NoReturn

from healthobs import gunicorn_errors
from healthobs._runtime import process
from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.health import Board
from healthobs.lifecycle import Drain, Keeper, OpsServer, bind_ops, forget_alarm
from healthobs.metrics import multiprocess

GRACEFUL_TIMEOUT_SECONDS = 20
_OPS_FD = "HEALTHOBS_OPS_FD"
#: What gunicorn reads, and throws away, of a body that the application left unread; of a longer one it ends the connection.
_THROWN_AWAY_BYTES = 64 * 1024


def command(app_uri: str, *, host: str, port: int, workers: int = 1, threads: int = 16) -> list[str]:
    """Return the command line that serves `app_uri`.

    Args:
        app_uri: ``package.module:app`` or ``package.module:create_app()``.
        host: Address to bind.
        port: Port to bind.
        workers: Processes.
        threads: Threads of each.

    Raises:
        ConfigurationError: A number is out of range.
    """
    if workers < 1 or threads < 1 or not 0 < port < 65536:
        raise ConfigurationError("workers and threads must be at least 1, port 1 to 65535")
    return [
        sys.executable, "-m", "gunicorn", app_uri,
        "--config", "python:healthobs.gunicorn",
        "--bind", f"{host}:{port}",
        "--worker-class", "gthread",
        "--workers", str(workers),
        "--threads", str(threads),
        "--graceful-timeout", str(GRACEFUL_TIMEOUT_SECONDS),
        "--log-level", "warning",
        "--no-control-socket",
    ]  # fmt: skip


def serve(
    app_uri: str,
    *,
    host: str,
    port: int,
    workers: int = 1,
    threads: int = 16,
    ops_port: int = 0,
    environ: MutableMapping[str, str] | None = None,
) -> NoReturn:
    """Replace this process by gunicorn serving `app_uri`; see `command`.

    Args:
        app_uri: See `command`.
        host: Address of both ports.
        port: See `command`.
        workers: See `command`.
        threads: See `command`.
        ops_port: Where `/health`, `/readiness` and `/metrics` are answered while every thread is busy; 0 nowhere.
        environ: The environment to run in; default `os.environ`.
    """
    line = command(app_uri, host=host, port=port, workers=workers, threads=threads)
    environment = dict(os.environ if environ is None else environ)
    if ops_port:
        environment |= {"HEALTHOBS_OPS_PORT": str(ops_port), "HEALTHOBS_OPS_HOST": host}
    if workers > 1 and not environment.get(multiprocess.VARIABLE):
        environment[multiprocess.VARIABLE] = tempfile.mkdtemp(prefix="healthobs-metrics-")
    hold_sigterm()
    os.execve(sys.executable, line, environment)  # noqa: S606 - replacing the process is the point


def hold_sigterm() -> None:
    """Keep a SIGTERM waiting until gunicorn handles it (`when_ready`).

    The first process of a container has no default action for it (signal_namespaces, pid_namespaces(7)): one that
    comes during start-up would be lost, and the container killed when the engine's patience ends.
    """
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})


# ---- hooks, in the order in which gunicorn calls them


def on_starting(server: Any) -> None:
    """Refuse workers whose metrics would be counted apart; wipe their directory, bind the ops port (master).

    Raises:
        ConfigurationError: A setting is wrong, or the ops port is in use.
    """
    settings = Settings.from_env()
    path = multiprocess.directory()
    if server.cfg.workers > 1 and path is None:
        raise ConfigurationError(
            f"several workers need {multiprocess.VARIABLE}, set before the process starts: use healthobs.gunicorn.serve"
        )
    successor = "GUNICORN_PID" in os.environ  # after SIGUSR2 the old master and its workers are still at work
    if path is not None and not successor:
        multiprocess.wipe(path, keep_pid=os.getpid())
    process.board = Board()
    server.healthobs = master = _Master(settings)
    if settings.ops_port:
        inherited = os.environ.pop(_OPS_FD, "") if successor else ""
        master.ops = (
            socket.socket(fileno=int(inherited))
            if inherited
            else bind_ops(settings.ops_host, settings.ops_port)
        )


def when_ready(server: Any) -> None:
    """Take SIGTERM: one that has waited stops at once, a later one drains first (master)."""
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    delay = server.healthobs.settings.drain_delay_seconds
    if delay and process.board is not None:
        Drain(delay, process.board.drain).install()


def pre_fork(_server: Any, worker: Any) -> None:
    """Give the worker its row on the board (master)."""
    worker.healthobs_row = None if process.board is None else process.board.take()


def post_fork(server: Any, worker: Any) -> None:
    """Take what the master has made, and not its alarm; refuse without quoting the request (worker)."""
    gunicorn_errors.install(worker)
    forget_alarm()
    worker.healthobs_ops = server.healthobs.ops
    if process.board is not None:
        process.board.row = worker.healthobs_row


def post_worker_init(worker: Any) -> None:
    """Answer the ops port, keep the board, start the controls, once the application is loaded (worker)."""
    obs = process.default
    if obs is None:
        return
    if obs.controls is not None:
        obs.controls.revive()  # a worker may wait long for its first request
    if worker.healthobs_ops is not None:
        OpsServer(obs, worker.healthobs_ops).start()
    Keeper(obs, serving=lambda: bool(worker.alive), graceful_seconds=worker.cfg.graceful_timeout).start()


def pre_request(_worker: Any, request: Any) -> None:
    """Have an answer that leaves a long body unread say that its connection ends (worker); gunicorn ends it unannounced.

    A client whose connection stays, as it was told, sends the next request into one that is closed (RFC 9112, 9.6).
    """
    reader = getattr(getattr(request, "body", None), "reader", None)
    if _is_long(reader):
        ends = request.should_close
        request.should_close = lambda: ends() or _is_long(reader)


def _is_long(reader: Any) -> bool:
    """Tell whether more is unread than is thrown away; of a chunked body nobody knows before its end."""
    length = getattr(reader, "length", None)
    if isinstance(length, int):
        return length >= _THROWN_AWAY_BYTES
    return getattr(reader, "parser", None) is not None


def worker_exit(_server: Any, _worker: Any) -> None:
    """Send what is queued before the worker ends (worker)."""
    if process.default is not None:
        process.default.flush()


def child_exit(server: Any, worker: Any) -> None:
    """Clear a dead worker's row, and merge its metric files into the archive (master)."""
    if process.board is not None:
        process.board.give_back(worker.healthobs_row)
    path, master = multiprocess.directory(), server.healthobs
    if path is None:
        return
    master.dead.add(worker.pid)
    for pid in tuple(master.dead):
        try:
            buried = multiprocess.bury(path, pid)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry must not end the master
            server.log.error("the metric files of a dead worker were not merged: %s", type(exc).__name__)
            buried = True
        if buried:
            master.dead.discard(pid)


def pre_exec(server: Any) -> None:
    """Hand the ops port on to the master that replaces this one (SIGUSR2)."""
    arguments = server.START_CTX["args"]
    if arguments[1].endswith("__main__.py"):
        # Run as a script, its folder would hide the standard library's `http`.
        arguments[1:2] = ["-m", "gunicorn"]
    ops = server.healthobs.ops
    if ops is not None:
        ops.set_inheritable(True)
        server.cfg.env_orig[_OPS_FD] = str(ops.fileno())


@dataclass(slots=True)
class _Master:
    """What the hooks keep with gunicorn's arbiter."""

    settings: Settings
    ops: socket.socket | None = None
    dead: set[int] = field(default_factory=set[int])
