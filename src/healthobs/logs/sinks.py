"""Finds what writes log lines past every redactor of the process: handlers of `logging`, structlog's processors.

Limits: `print`, structlog that nobody configured, and loggers that keep processors of their own are not seen; nor is
where a redactor's processor stands among the others.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any

import structlog

from healthobs.logs import otel
from healthobs.logs.chain import StructlogChain
from healthobs.logs.hook import Hook, handlers


def raw_sinks() -> list[str]:
    """Return the sinks that write unredacted, as a person would name them; sorted.

    Example:
        >>> from healthobs import Observability, Settings
        >>> with_phi = Observability(Settings(frameworks=("hipaa",)))
        >>> raw_sinks()
        []
        >>> with_phi.close()
    """
    return sorted({*_handlers(), *_chains(), *otel.raw()})


def _handlers() -> Iterator[str]:
    if Hook.is_reached():
        return
    root = logging.getLogger()
    for logger, handler in handlers():
        if not _is_covered(handler):
            yield f"{type(handler).__name__} of {'the root logger' if logger is root else logger.name}"


def _is_covered(handler: logging.Handler) -> bool:
    holders = [handler, *(getattr(one, "__self__", one) for one in handler.filters)]
    return isinstance(handler, logging.NullHandler) or any(
        type(one).__module__.partition(".")[0] == "healthobs" for one in holders
    )


def _chains() -> Iterator[str]:
    steps: list[Any] = list(structlog.get_config()["processors"])
    if structlog.is_configured() and not any(one.processor in steps for one in StructlogChain.in_force):
        yield "structlog's processors"
