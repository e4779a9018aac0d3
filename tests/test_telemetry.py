"""Telemetry is API: `telemetry.yaml` says what there is, and nothing is renamed without saying so."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NOTHING: dict[str, dict[str, Any]] = {
    "metrics": {}, "span_attributes": {}, "log_events": {}, "log_fields": {}, "headers": {}, "audit_fields": {},
}  # fmt: skip


@pytest.fixture
def tool(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Give the generator's module."""
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import telemetry

    yield telemetry
    sys.modules.pop("telemetry", None)


class TestPage:
    """The committed page against the code and a run."""

    def test_fresh(self) -> None:
        """Nothing is new, nothing has gone, no metric has other labels."""
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / "telemetry.py"], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")

    def test_says_how_stable_and_since_when(self, tool: Any) -> None:
        """Each name has a stability and a version."""
        page = yaml.safe_load(tool.PAGE.read_text(encoding="utf-8"))
        entries = [entry for kind in NOTHING for entry in page[kind].values()]
        assert len(entries) > 80
        assert {entry["stability"] for entry in entries} <= {"stable", "experimental"}
        assert all(entry["since"] for entry in entries)


class TestDrift:
    """Each kind of drift is planted, and found."""

    def declared(self, **more: Any) -> dict[str, Any]:
        """Return a page that declares one metric and one field."""
        since = {"stability": "stable", "since": "0.1.0"}
        return {
            **NOTHING,
            "metrics": {"old_total": {"labels": ["kind"], **since}},
            "log_fields": {"event": since},
            **more,
        }

    @pytest.mark.parametrize(
        ("there", "expected"),
        [
            ({"metrics": {"old_total": ["kind"]}, "log_fields": {"event": None}}, []),
            (
                {"metrics": {"new_total": ["kind"]}, "log_fields": {"event": None}},
                ["new_total is new", "old_total is gone"],
            ),
            (
                {"metrics": {"old_total": ["kind", "ward"]}, "log_fields": {"event": None}},
                ["old_total has other labels"],
            ),
            (
                {"metrics": {"old_total": ["kind"]}, "log_fields": {"message": None}},
                ["message is new", "event is gone"],
            ),
        ],
    )
    def test_is_found(self, tool: Any, there: dict[str, Any], expected: list[str]) -> None:
        """A rename is one name that is new and one that is gone."""
        found = list(tool.problems(self.declared(), {**NOTHING, **there}))
        assert [
            problem.partition(": ")[2].startswith(start)
            for problem, start in zip(found, expected, strict=True)
        ] == [True] * len(expected)

    def test_a_rename_that_says_so_passes(self, tool: Any) -> None:
        """With the old name under `deprecated`; an entry that does not say what replaces it is refused."""
        there = {**NOTHING, "metrics": {"new_total": ["kind"]}}
        new = {"new_total": {"labels": ["kind"], "stability": "stable", "since": "0.2.0"}}
        entry = {"kind": "metrics", "since": "0.2.0", "replaced_by": "new_total"}
        page = self.declared(metrics=new, log_fields={}, deprecated={"old_total": entry})
        assert list(tool.problems(page, there)) == []
        del entry["replaced_by"]
        assert list(tool.problems(page, there)) == ["deprecated: old_total needs `replaced_by` and `since`"]

    def test_writing_takes_nothing_away(self, tool: Any) -> None:
        """What is gone stays on the page until somebody says what became of it."""
        page = yaml.safe_load(tool.written(self.declared(), NOTHING))
        assert set(page["metrics"]) == {"old_total"}

    def test_metrics_are_read_from_the_source(self, tool: Any, tmp_path: Path) -> None:
        """Under literal names, constants, prefixes, and as views."""
        (tmp_path / "a.py").write_text(
            'NAME = "b_seconds"\nLABELS = ("x",)\nmake = metrics.histogram\n'
            'metrics.counter("a_total", "A", ("k", "l"))\nmake(NAME, "B", LABELS)\n'
            'metrics.gauge(f"{prefix}_c", "C")\nPrefixCollector(NAME, f"{p}_d", "D", {"x": "y"})\n'
        )
        assert tool.metrics(tmp_path) == {
            "<prefix>_c": [],
            "<prefix>_d": ["y"],
            "a_total": ["k", "l"],
            "b_seconds": ["x"],
        }


class TestLines:
    """What is read of the source's own log lines."""

    def test_events_and_fields(self, tool: Any, tmp_path: Path) -> None:
        """An event however it is written, and each field that is added to it."""
        (tmp_path / "lines.py").write_text(
            """
def tell(logs, cause):
    own = {"check": 1} | ({"cause": cause} if cause else {})
    logs.emit("info", "it_changed", {"exc_info": None}, own=own)
    _alarm(logs, "it_is_lost")
    _logger.error("rows_refused", extra={"count": 3})
    logs.write({"timestamp": now(), "event": "it_came"})
    logs.emit("info", name, own={"place": 2})
    parser.error("no event, but a sentence")
"""
        )
        events, fields = tool.log_lines(tmp_path)
        assert events == {"it_changed", "it_is_lost", "rows_refused", "it_came"}
        assert fields == {"check", "cause", "count", "place"}
