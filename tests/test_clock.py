"""The clocks."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

from hypothesis import given
from hypothesis import strategies as st

from healthobs.clock import Clock, rfc3339


class TestClock:
    """`Clock`."""

    def test_now_is_the_wall_clock(self) -> None:
        """The datetime is the wall reading, in UTC, cut to microseconds."""
        clock = Clock(wall_ns=lambda: 1_763_894_400_123_456_789)
        assert clock.now() == datetime(2025, 11, 23, 10, 40, 0, 123456, tzinfo=UTC)

    def test_default_is_the_real_time(self) -> None:
        """Without arguments the process's own clocks are read."""
        before = datetime.now(UTC)
        assert before - timedelta(seconds=1) <= Clock().now() <= datetime.now(UTC) + timedelta(seconds=1)


class TestRfc3339:
    """`rfc3339`."""

    @given(
        st.datetimes(min_value=datetime(1971, 1, 1), max_value=datetime(2200, 1, 1)),  # noqa: DTZ001
        st.integers(-14 * 60, 14 * 60),
    )
    def test_round_trip_from_any_zone(self, naive: datetime, offset_minutes: int) -> None:
        """Parsing gives the same instant back, written in UTC with a Z."""
        moment = naive.replace(tzinfo=timezone(timedelta(minutes=offset_minutes)))
        text = rfc3339(moment)
        assert text.endswith("Z")
        assert datetime.fromisoformat(text) == moment
