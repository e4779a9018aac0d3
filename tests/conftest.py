"""What tests of the library share: everything recorded in memory."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from healthobs.testing import Capture
from reference_services.demo.ports import reserved_ports


@pytest.fixture
def capture() -> Iterator[Capture]:
    """Give an `Observability` in force, in memory, with fixed ids and clock; validated at the end."""
    with Capture() as captured:
        yield captured


@pytest.fixture
def audit_capture() -> Iterator[Capture]:
    """Give a capture with a real audit trail."""
    with Capture(audit=True) as capture:
        yield capture


@pytest.fixture
def free_port() -> Iterator[int]:
    """Give a port on which nobody listens, and nobody else will during the test."""
    with reserved_ports(1) as ports:
        yield ports[0]
