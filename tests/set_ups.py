"""What a process had before: a root logger with a handler and a format of its own."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator

import pytest

from healthobs import Settings

PHI = Settings(service_name="records", frameworks=("hipaa",))


#: Not in a test, where it would be written in a function that is running.
WHO = "Ottoline"


@pytest.fixture
def root() -> Iterator[io.StringIO]:
    """Give the root logger one handler with a format of its own."""
    stream, logger = io.StringIO(), logging.getLogger()
    handlers, level = logger.handlers[:], logger.level
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s|%(name)s|%(message)s"))
    logger.handlers[:], logger.level = [handler], logging.INFO
    yield stream
    logger.handlers[:], logger.level = handlers, level
