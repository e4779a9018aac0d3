"""Tests that each control fails by its sabotage, that nothing undeclared changes, and that none goes without."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from healthobs.compliance import REQUIREMENTS, State
from healthobs.compliance import command as compliance
from reference_services.sabotage import SABOTAGES, Row, World, main, matrix, plans, run, undeclared
from reference_services.services import SERVICES

BY_CONTROL = {sabotage.control: sabotage for sabotage in SABOTAGES}


@cache
def before(service: str) -> dict[str, State]:
    """Return the states of a service that nobody breaks."""
    return dict(matrix.observed(service))


class TestMatrix:
    """The sabotages themselves."""

    @pytest.mark.parametrize("sabotage", SABOTAGES, ids=lambda sabotage: sabotage.name)
    def test_exactly_the_declared(self, sabotage: Any) -> None:
        """The diagonal fails, what else changes was declared, and what was declared comes."""
        row = run(sabotage, before(sabotage.service))
        assert (row.changed, undeclared(row)) == (row.expected, {})

    @pytest.mark.parametrize("service", SERVICES)
    def test_nothing_fails_unbroken(self, service: str) -> None:
        """What is measured before a sabotage is no failure, or its failing would show nothing."""
        declared = ["H-514"] if "patient_id" in SERVICES[service].info.telemetry_keys else []
        assert [name for name, state in before(service).items() if state == "fail"] == declared

    @pytest.mark.parametrize("service", SERVICES)
    def test_integrity_needs_a_witness(self, service: str) -> None:
        """Whole and verified, but signed by the service alone: shown in part."""
        assert before(service)["H-312.c"] == "partial"

    def test_every_control_has_one(self) -> None:
        """A control that no sabotage makes fail is refused: it may be one that cannot fail."""
        controls = {name for service in SERVICES for name in before(service)}
        assert matrix.without_sabotage(controls, SABOTAGES) == set()
        assert matrix.without_sabotage({*controls, "C-1"}, SABOTAGES) == {"C-1"}

    def test_fresh_service_is_mostly_unknown(self, tmp_path: Path) -> None:
        """Of the catalogue most is unknown even after every probe ran, and all of it before."""
        with World(tmp_path, "synthetic-phi-service") as world:
            status = world.engine.status()
            total = len(status["controls"])
            assert status["counts"]["unknown"] == total
            world.engine.run()
            counts = world.engine.status()["counts"]
        assert counts["unknown"] > total / 2
        assert total >= len(REQUIREMENTS)


class TestPlanted:
    """Sabotages that are declared wrongly are found."""

    def test_undeclared_change(self) -> None:
        """A change that was not declared is an error, by name and state."""
        sabotage = replace(BY_CONTROL["C-10.3"], also={})
        assert undeclared(run(sabotage, before(sabotage.service))) == {"H-312.c": "fail"}

    def test_declared_change_that_does_not_come(self) -> None:
        """So is one that was declared and does not come."""
        sabotage = replace(BY_CONTROL["HDR"], also={"G-wrap": "fail"})
        assert undeclared(run(sabotage, before(sabotage.service))) == {"G-wrap": "pass"}

    def test_sabotage_that_does_nothing(self) -> None:
        """A diagonal that does not fail is an error: either the sabotage or the control is none."""
        sabotage = replace(BY_CONTROL["HDR"], environ={})
        assert undeclared(run(sabotage, before(sabotage.service))) == {"HDR": "pass"}

    def test_control_that_cannot_fail(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A probe that always passes is found by its sabotage."""
        from healthobs.compliance import Outcome, catalogue

        monkeypatch.setattr(catalogue, "sends_headers", lambda _context: Outcome("pass", "of course"))
        assert undeclared(run(BY_CONTROL["HDR"], before("payment-gateway"))) == {"HDR": "pass"}


class TestCommand:
    """`healthobs compliance sabotage`."""

    def test_prints_the_matrix(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Every cell as declared is 0."""
        monkeypatch.setattr(matrix, "observed", before)
        assert main(["--only", "HDR"]) == 0
        printed = capsys.readouterr()
        assert ("headers are switched off" in printed.out, printed.err) == (True, "")

    def test_undeclared_is_an_error(
        self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Whatever is not as declared, and a control without sabotage, is named and makes it 1."""
        wrong = replace(BY_CONTROL["HDR"], also={"G-wrap": "unknown"})
        monkeypatch.setattr(matrix, "observed", before)
        monkeypatch.setattr(
            matrix, "SABOTAGES", (wrong, *(each for each in SABOTAGES if each.control != "HDR"))[:-1]
        )
        assert main(["--only", "HDR"]) == 1
        printed = capsys.readouterr()
        assert " !" in printed.out
        assert "G-wrap is pass" in printed.err
        assert f"{SABOTAGES[-1].control} has no sabotage" in printed.err

    def test_table(self) -> None:
        """One row a sabotage, one column a control; a service's own columns are blank for the others."""
        sabotage = plans.Sabotage(name="x", control="A", service="s", on="clock", also={"B": "unknown"})
        other = plans.Sabotage(name="y", control="D", service="t", on="file")
        first: dict[str, State] = {"A": "pass", "B": "pass", "C": "pass"}
        rows = [
            Row(sabotage, first, {"A": "fail", "B": "unknown", "C": "pass"}),
            Row(other, {"A": "pass", "D": "pass"}, {"A": "unknown", "D": "fail"}),
        ]
        lines = matrix.table(rows).splitlines()
        assert lines[5:7] == ["x   F  u  .     on the clock", "y   !        F  on the file"]

    def test_through_the_library(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The library's command hands over to an entry point, and has nothing to break itself."""
        point = SimpleNamespace(load=lambda: lambda arguments: len(arguments))
        monkeypatch.setattr(
            compliance, "entry_points", lambda group: [point] if group == "healthobs.sabotage" else []
        )
        assert compliance.main(["sabotage", "--only", "HDR"]) == 2
        monkeypatch.setattr(compliance, "entry_points", lambda group: [])
        assert compliance.main(["sabotage"]) == 2
        assert "nothing here may be broken" in capsys.readouterr().err
