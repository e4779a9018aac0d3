"""The health of a made-up service, and a check that hangs until it is let go."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime

import pytest

from healthobs.clock import Clock
from healthobs.health import Health

MOMENT = datetime(2025, 11, 23, 10, 30, tzinfo=UTC)


class Time:
    """A clock that moves when told to."""

    def __init__(self) -> None:
        self.elapsed = 0.0

    def clock(self) -> Clock:
        """Return the clock."""
        return Clock(
            lambda: int((MOMENT.timestamp() + self.elapsed) * 1e9),
            lambda: 5 * 10**9 + int(self.elapsed * 1e9),
        )


class Hung:
    """A check that hangs until released, and counts its runs and how many ran at once."""

    def __init__(self) -> None:
        self.release = threading.Event()
        self.runs = self.running = self.most = 0
        self._lock = threading.Lock()
        self.began, self.ended = threading.Event(), threading.Event()

    def __call__(self) -> None:
        """Hang."""
        with self._lock:
            self.runs += 1
            self.running += 1
            self.most = max(self.most, self.running)
        self.began.set()
        self.release.wait(10)
        with self._lock:
            self.running -= 1
        self.ended.set()


@pytest.fixture
def ticking() -> Time:
    return Time()


@pytest.fixture
def told() -> list[tuple[str, str, str, str | None]]:
    return []


@pytest.fixture
def health(ticking: Time, told: list[tuple[str, str, str, str | None]]) -> Iterator[Health]:
    """Give a health whose set-up is complete."""
    made = Health("phi-service", "1.0.0", ticking.clock(), on_transition=lambda *facts: told.append(facts))
    made.ready()
    yield made
    made.close()


@pytest.fixture
def hung() -> Iterator[Hung]:
    check = Hung()
    yield check
    check.release.set()


def raising(error: BaseException) -> Callable[[], None]:
    def check() -> None:
        raise error

    return check
