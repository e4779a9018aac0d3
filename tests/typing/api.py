"""What the type checkers must say of the public API; checked by mypy and pyright in strict mode, never run.

`assert_type` states what is expected; an expected error is guarded by an ignore, and an ignore that is not
needed any more is an error itself.
"""

from __future__ import annotations

from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, assert_type

from healthobs import (
    Observability,
    Settings,
    audited,
    classified,
    counted,
    current,
    health_check,
    in_flight,
    install,
    logged,
    observe,
    readiness_check,
    timed,
    traced,
    use,
)
from healthobs.testing import Capture


@observe
def bare(number: int, *, unit: str = "") -> list[str]:
    """Return something."""
    return [unit] * number


@observe(
    "name", span=True, duration=False, count="beds_total", in_flight=True, log="info", audit="a.b",
    fields=("number",), labels={"size": len}, error_if=bool, kind="client", attributes={"a": 1},
)  # fmt: skip
def called(number: int, *, unit: str = "") -> list[str]:
    """Return something."""
    return [unit] * number


@traced
@timed
@counted
@in_flight
@logged
@audited("a.b", resource_type="Patient", policy="deny")
@classified(conf="R", frameworks=["hipaa"], purpose=["TREAT"])
def stacked(number: int, *, unit: str = "") -> list[str]:
    """Return something."""
    return [unit] * number


assert_type(bare(1), list[str])
assert_type(called(1, unit=""), list[str])
assert_type(stacked(1), list[str])
bare("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
called(1, unit=2)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
stacked()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]


@traced("name")
async def coroutine(number: int) -> str:
    """Return something."""
    return str(number)


@timed()
def generator(number: int) -> Generator[int, str, bytes]:
    """Yield something."""
    yield number
    return b""


@in_flight("name")
async def async_generator(number: int) -> AsyncGenerator[int, str]:
    """Yield something."""
    yield number


async def use_them() -> None:
    """Check the kinds."""
    assert_type(await coroutine(1), str)
    assert_type(generator(1), Generator[int, str, bytes])
    assert_type(async_generator(1), AsyncGenerator[int, str])


class Ward:
    """Methods of each sort."""

    @traced
    def method(self, number: int) -> str:
        """Return something."""
        return str(number)

    @classmethod
    @traced
    def below_classmethod(cls, number: int) -> str:
        """Return something."""
        return str(number)

    @traced
    @classmethod
    def above_classmethod(cls, number: int) -> str:
        """Return something."""
        return str(number)

    @logged(level="debug", fields=("number",))
    @staticmethod
    def above_staticmethod(number: int) -> str:
        """Return something."""
        return str(number)


assert_type(Ward().method(1), str)
assert_type(Ward.below_classmethod(1), str)
assert_type(Ward.above_classmethod(1), str)
assert_type(Ward.above_staticmethod(1), str)
Ward.above_classmethod("1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]

decorator: Callable[[Callable[[int], str]], Callable[[int], str]] = observe("name")
observe("name", kind="banana")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
logged(level="loud")  # type: ignore[call-overload]  # pyright: ignore[reportCallIssue, reportArgumentType]
audited("a.b", policy="maybe")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


@health_check
def alive() -> bool:
    """Return whether."""
    return True


@readiness_check("database", ttl=2.0, critical=False)
async def database() -> None:
    """Check."""


assert_type(alive(), bool)
assert_type(current(), Observability)
assert_type(install(None), Observability | None)
with use(Observability(Settings())) as obs:
    assert_type(obs, Observability)
with Capture(audit=True) as capture:
    assert_type(capture.metric("name", operation="op"), float | None)
    assert_type(capture.log_lines, list[dict[str, Any]])
