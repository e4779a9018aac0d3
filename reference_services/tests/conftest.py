"""Services for tests: the five in one process, and one made of whatever routes a test adds."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from bench_service import Bench
from healthobs.health import checks
from payment_bench import Gateway
from phi_bench import Phi
from service_world import World


@pytest.fixture(autouse=True, scope="module")
def _waiting_for_checks() -> Iterator[None]:
    """Give checks half a minute more: what they say is tested here, and the machine may be busy."""
    run = checks._Run
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(checks, "_Run", lambda deadline, began_ns: run(deadline + 30, began_ns))
        yield


@pytest.fixture
def world(tmp_path: Path) -> Iterator[World]:
    """Give the five services in one process."""
    made = World(tmp_path)
    yield made
    made.close()


@pytest.fixture
def gateway(world: World, tmp_path: Path) -> Gateway:
    """A running payment-gateway."""
    return Gateway(world, tmp_path)


@pytest.fixture
def phi(world: World, tmp_path: Path) -> Phi:
    """A running phi-service."""
    return Phi(world, tmp_path)


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[Bench]:
    """Give a service without routes."""
    made = Bench(tmp_path / "bench")
    yield made
    made.close()


@pytest.fixture
def make_bench(tmp_path: Path) -> Iterator[Callable[..., Bench]]:
    """Give a maker of services; those of one name share a data folder."""
    made: list[Bench] = []

    def make(name: str = "bench", **options: Any) -> Bench:
        made.append(Bench(tmp_path / name, **options))
        return made[-1]

    yield make
    for item in made:
        item.close()
