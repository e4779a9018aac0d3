"""`healthobs demo`, for real: five processes, a patient's journey, and what it left behind."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from reference_services.demo import cli
from reference_services.demo.assertions import REGISTRY
from reference_services.demo.faults import FAULTS
from reference_services.services import SERVICES

pytestmark = pytest.mark.timeout(180)
NOTHING_WRONG: dict[str, list[str]] = {name: [] for name in REGISTRY}


def demo(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, Any]:
    """Run the demo; return its exit status and its report."""
    status = cli.main(["--json", *arguments])
    return status, json.loads(capsys.readouterr().out)


class TestHealthyRun:
    """`healthobs demo`."""

    def test_journey_leaves_one_consistent_trace(
        self, capsys: pytest.CaptureFixture[str], tmp_path: Path
    ) -> None:
        """Every assertion holds, and one trace crosses all five services, each with its audit trail."""
        status, made = demo(capsys, "--keep", str(tmp_path / "kept"))
        assert {found["name"]: found["problems"] for found in made["assertions"]} == NOTHING_WRONG
        assert (status, made["ok"]) == (0, True)
        assert sum(service["spans"] > 0 for service in made["services"].values()) == len(SERVICES) == 5
        assert all(service["audit_entries"] > 0 for service in made["services"].values())
        assert len(made["steps"]) >= 20
        assert (tmp_path / "kept" / "phi-service.log").stat().st_size > 0


@pytest.mark.server
class TestBrokenRun:
    """`healthobs demo --break NAME`."""

    @pytest.mark.parametrize("fault", ["audit-entry-edited", "audit-log-put-back"])
    def test_tampered_audit_log_is_found(self, capsys: pytest.CaptureFixture[str], fault: str) -> None:
        """A rewritten audit entry, and an old copy, turn exactly the declared assertion red, and the exit status says so."""
        status, made = demo(capsys, "--break", fault)
        red = {found["name"] for found in made["assertions"] if not found["ok"]}
        assert (status, red) == (1, set(FAULTS[fault].red))
