"""What tests of the library share: everything recorded in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from healthobs.testing import Capture


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Give an `Observability` in force, in memory, with fixed ids and clock; validated at the end."""
    with Capture() as captured:
        yield captured
