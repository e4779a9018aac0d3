"""The bars of the bench: which of them end it with 1."""

from __future__ import annotations

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest


@pytest.fixture
def bars() -> Any:
    """Give the module, which is in no package that is installed."""
    spec = spec_from_file_location("bars", Path(__file__).parents[1] / "bench" / "bars.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("measured", "timed", "arguments", "status"),
    [
        (9, False, [], 0), (10, False, [], 0), (11, False, [], 1), (11, False, ["--times"], 1), (9, True, ["--times"], 0),
        (11, True, [], 0), (11, True, ["--times"], 1), (float("nan"), False, [], 1), (float("nan"), True, ["--times"], 1),
    ],
)  # fmt: skip
def test_which_gate(
    bars: Any,
    capsys: pytest.CaptureFixture[str],
    measured: float,
    timed: bool,
    arguments: list[str],
    status: int,
) -> None:
    """A count that is over its bar, or no number, always does; a time only where asked, and is told all the same."""
    upper = bars.at_most("calls", measured, 10, timed=timed)
    lower = bars.at_least("calls", -measured, -10, timed=timed)
    for bar in (upper, lower):
        assert bars.verdict([bars.at_most("x", 1, 2), bar], arguments) == status
        told = capsys.readouterr().out
        assert ("calls: " in told) == (not measured <= 10)
        assert ("FAIL" in told) == (status == 1)
