"""Healthobs' own lines, written through the set-up that is there.

Limits: level and time stamp are that set-up's.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import structlog

from healthobs.logs.records import STANDARD, Rendered, own


class Forward:
    """Writes healthobs' own lines through the set-up that is there: structlog's when configured, else `logging`'s."""

    def __call__(self, level: str, event: str, fields: Mapping[str, Any]) -> None:
        """Write one line whose fields are safe already."""
        fields = own(fields)
        if structlog.is_configured():
            safe = {f"field_{key}" if key == "event" else key: value for key, value in fields.items()}
            getattr(structlog.get_logger("healthobs"), level)(Rendered(event), **safe)
            return
        extra = {f"field_{key}" if key in STANDARD else key: value for key, value in fields.items()}
        logging.getLogger("healthobs").log(
            logging.getLevelNamesMapping()[level.upper()], Rendered(event), extra=extra
        )

    def passes(self, level: str) -> bool:
        """Return whether `logging`, where lines go through it, takes one of this level."""
        factory = structlog.get_config()["logger_factory"]
        if structlog.is_configured() and not isinstance(factory, structlog.stdlib.LoggerFactory):
            return True
        return logging.getLogger("healthobs").isEnabledFor(logging.getLevelNamesMapping()[level.upper()])
