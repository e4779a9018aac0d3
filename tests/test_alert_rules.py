"""The alerting rules in `deploy/prometheus` ask for metrics that there are, and for those that call for somebody."""

from __future__ import annotations

import re
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
FILES = sorted((ROOT / "deploy" / "prometheus").glob("*.rules.yaml"))
KNOWN = yaml.safe_load(files("healthobs").joinpath("telemetry.yaml").read_text(encoding="utf-8"))["metrics"]
_METRIC = re.compile(r"\bhealthobs_\w+")


def rules() -> list[Any]:
    """Return every rule of every file."""
    groups = [group for file in FILES for group in yaml.safe_load(file.read_text(encoding="utf-8"))["groups"]]
    return [rule for group in groups for rule in group["rules"]]


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule["alert"])
def test_rule(rule: Any) -> None:
    """Each asks for metrics that are in `telemetry.yaml`, and says how bad it is and what to do."""
    asked = set(_METRIC.findall(rule["expr"]))
    assert asked
    assert asked <= KNOWN.keys()
    assert rule["expr"].count("(") == rule["expr"].count(")")
    assert rule["labels"]["severity"] in {"critical", "warning"}
    assert all(rule["annotations"][name] for name in ("summary", "description"))


@pytest.mark.parametrize(
    "metric",
    [
        "healthobs_audit_spooled_total",
        "healthobs_audit_spool_damaged_total",
        'healthobs_internal_errors_total{component="audit"}',
        "healthobs_audit_outbox_waiting",
        'healthobs_control_state{state="fail"}',
    ],
)
def test_alarms_have_a_rule(metric: str) -> None:
    """What the failure policy calls an alarm wakes somebody."""
    assert [rule["labels"]["severity"] for rule in rules() if metric in rule["expr"]] == ["critical"]
