"""The probe of the clock: the kernel knows a source, and the wall clock has not jumped."""

from __future__ import annotations

from typing import Any

import pytest
from tests.controlled_service import context

from healthobs.clock import Clock
from healthobs.compliance.probes_clock import ClockInSync, KernelClock, read_kernel_clock


class TestClock:
    """`C-10.6`."""

    def test_first_run_knows_no_jump(self) -> None:
        """A jump needs two readings."""
        clock = Clock(lambda: 5 * 10**18, lambda: 1)
        assert ClockInSync(lambda: KernelClock(True, 0.0))(context(clock=clock)).state == "pass"

    @pytest.mark.parametrize(
        ("step_s", "state"), [(0.5, "pass"), (0.51, "fail"), (-0.51, "fail"), (-0.5, "pass")]
    )
    def test_jump(self, step_s: float, state: str) -> None:
        """Half a second is the limit, both ways; afterwards the new time is the one to hold against."""
        wall = 1_800_000_000 * 10**9
        probe = ClockInSync(lambda: KernelClock(True, 0.0))
        looked = context(clock=Clock(lambda: wall, lambda: 0))
        probe(looked)
        wall += int(step_s * 1e9)
        assert [probe(looked).state, probe(looked).state] == [state, "pass"]

    @pytest.mark.parametrize(
        ("kernel", "state"),
        [
            (None, "unknown"),
            (KernelClock(False, 0.0), "unknown"),
            (KernelClock(True, 1.0), "pass"),
            (KernelClock(True, 1.01), "fail"),
        ],
    )
    def test_kernel(self, kernel: KernelClock | None, state: str) -> None:
        """No source is unknown; a large error is a failure."""
        assert ClockInSync(lambda: kernel)(context()).state == state

    def test_this_kernel(self) -> None:
        """Where the kernel answers at all, its error is a plausible number of seconds."""
        kernel = read_kernel_clock()
        assert kernel is None or 0 <= kernel.max_error_seconds <= 16

    @pytest.mark.parametrize(
        ("target", "value"),
        [
            ("sys.platform", "darwin"),
            ("ctypes.CDLL", lambda name: object()),
            ("ctypes.CDLL", lambda name: Refusing()),
        ],
    )
    def test_where_it_cannot_be_asked(self, target: str, value: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        """Another system, a C library without the call, and a refusal are all no answer."""
        monkeypatch.setattr(target, value)
        assert read_kernel_clock() is None


class Refusing:
    """A C library whose kernel refuses."""

    def adjtimex(self, timex: object) -> int:
        """Refuse."""
        return -1
