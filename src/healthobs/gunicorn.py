"""Starts an application under gunicorn with metrics that are right in every worker, and its hooks.

gthread workers, no preload (an exporter used before the fork would share its socket). With more than one
worker `PROMETHEUS_MULTIPROC_DIR` is set before prometheus_client is imported, because it chooses then.

Limits: the multiprocess directory is wiped at start, so counters restart with the service.
"""

from __future__ import annotations

import os
import shutil
import sys
import tempfile
from collections.abc import Callable, MutableMapping
from pathlib import Path
from typing import Any, NoReturn, cast

from healthobs.exceptions import ConfigurationError

GRACEFUL_TIMEOUT_SECONDS = 20


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
    environ: MutableMapping[str, str] | None = None,
) -> NoReturn:
    """Replace this process by gunicorn serving `app_uri`; see `command`."""
    line = command(app_uri, host=host, port=port, workers=workers, threads=threads)
    environment = dict(os.environ if environ is None else environ)
    if workers > 1:
        environment["PROMETHEUS_MULTIPROC_DIR"] = str(_empty_directory(environment))
    os.execve(sys.executable, line, environment)  # noqa: S606 - replacing the process is the point


def _empty_directory(environment: MutableMapping[str, str]) -> Path:
    """Return an empty multiprocess directory: the one named, wiped, or a new one."""
    named = environment.get("PROMETHEUS_MULTIPROC_DIR")
    if not named:
        return Path(tempfile.mkdtemp(prefix="healthobs-metrics-"))
    path = Path(named)
    shutil.rmtree(path, ignore_errors=True)
    path.mkdir(mode=0o700, parents=True)
    return path


def on_starting(server: Any) -> None:
    """Refuse several workers whose metrics would be counted apart (hook)."""
    if server.cfg.workers > 1 and not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        raise ConfigurationError(
            "several workers need PROMETHEUS_MULTIPROC_DIR, set before the process starts: use healthobs.gunicorn.serve"
        )


def post_worker_init(_worker: Any) -> None:
    """Start the controls in a worker that may wait long for its first request (hook)."""
    from healthobs._runtime import process

    controls = getattr(process.default, "controls", None)
    if controls is not None:
        controls.revive()


def child_exit(_server: Any, worker: Any) -> None:
    """Drop a dead worker's live gauges (hook)."""
    if os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        from prometheus_client import multiprocess

        cast("Callable[[int], None]", getattr(multiprocess, "mark_process_dead"))(worker.pid)  # noqa: B009 - untyped


def worker_exit(_server: Any, _worker: Any) -> None:
    """Send what is queued before the worker ends (hook)."""
    from healthobs._runtime import process

    if process.default is not None:
        process.default.flush()
