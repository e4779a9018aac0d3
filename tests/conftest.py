"""What every test of the library shares: an isolated process state, and everything recorded in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from healthobs import _runtime
from healthobs.logs.adoption import Hook
from healthobs.testing import Capture


@pytest.fixture(autouse=True)
def _process_state() -> Iterator[None]:
    """Give each test the process state that it found."""
    active, default = _runtime.process.active, _runtime.process.default
    recording = _runtime.recording.active
    adoptions = Hook.adoptions
    yield
    for adoption in Hook.adoptions:  # of an `Observability` that the test did not close
        if adoption not in adoptions:
            adoption.release()
    _runtime.process.active, _runtime.process.default = active, default
    _runtime.recording.active = recording


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Give an `Observability` in force, in memory, with fixed ids and clock; validated at the end."""
    with Capture() as captured:
        yield captured
