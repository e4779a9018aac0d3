"""What every front end is given: refused before anything has changed, or told of when it fails in use."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.core.handlers.asgi import ASGIHandler
from django.core.handlers.wsgi import WSGIHandler
from fastapi import FastAPI
from flask import Flask
from prometheus_client.registry import Collector
from tests.set_ups import WHO

from fronts import FRONTS, Front
from healthobs import Observability, Settings, _runtime, asgi, wsgi
from healthobs.django import init_app as init_django
from healthobs.exceptions import ConfigurationError
from healthobs.flask import init_app as init_flask

HOOKS = ("authorize", "trusted", "refused_tokens", "trust_incoming", "request_hook", "response_hook")


def _plain(*_arguments: Any) -> list[bytes]:
    return []


class _Handler(WSGIHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        """Leave Django's settings unread."""


class _AsgiHandler(ASGIHandler):  # type: ignore[misc]
    def __init__(self) -> None:
        """Leave Django's settings unread."""


#: Each way onto an application, and what makes one.
WAYS: dict[str, tuple[Callable[..., Any], Callable[[], Any]]] = {
    "flask": (init_flask, lambda: Flask("svc")),
    "fastapi": (asgi.init_app, FastAPI),
    "django": (init_django, _Handler),
    "django-asgi": (init_django, _AsgiHandler),
    "wsgi": (wsgi.Middleware, lambda: _plain),
    "asgi": (asgi.Middleware, lambda: _plain),
}


@pytest.fixture(params=WAYS)
def way(request: pytest.FixtureRequest) -> tuple[Callable[..., Any], Callable[[], Any]]:
    """Give each way."""
    return WAYS[request.param]


@pytest.fixture
def obs() -> Iterator[Observability]:
    """Give one that nothing is recorded with."""
    made = Observability(Settings(), logs="off")
    yield made
    made.close()


class TestArguments:
    """`healthobs.front.check_arguments`."""

    def test_in_each_others_place(self, way: Any, obs: Observability) -> None:
        """The order is told to whoever mixes it up."""
        init, make = way
        with pytest.raises(ConfigurationError, match="first the application, then the Observability"):
            init(obs, make())

    @pytest.mark.parametrize("given", [Settings(service_name="4711"), None, "4711"])
    def test_no_observability(self, way: Any, given: Any) -> None:
        """Settings are not what records; nothing has become the process default."""
        init, make = way
        before = _runtime.process.default
        with pytest.raises(ConfigurationError, match=r"Observability\(settings\)") as caught:
            init(make(), given)
        assert "4711" not in str(caught.value)
        assert _runtime.process.default is before

    @pytest.mark.parametrize("hook", HOOKS)
    def test_functions_can_be_called_and_answer_at_once(
        self, way: Any, obs: Observability, hook: str
    ) -> None:
        """One that is no function, or whose answer nobody would await, is named, also wrapped or as an object."""

        async def later(*_arguments: Any) -> None: ...

        class Later:
            async def __call__(self, *_arguments: Any) -> None: ...

        init, make = way
        for value in ("4711", later, functools.partial(later), Later()):
            before, app = _runtime.process.default, make()
            with pytest.raises(ConfigurationError) as caught:
                init(app, obs, **{hook: value})
            assert caught.value.problems == (f"{hook} must be a function, and not one of async def",)
            assert _runtime.process.default is before
            assert "healthobs" not in getattr(app, "extensions", {})


class _Broken(Collector):
    def collect(self) -> Any:
        raise RuntimeError(str(WHO))


@pytest.mark.parametrize("front_end", FRONTS)
class TestFaultsAreTold:
    """What an option's function or an endpoint raises is counted each time, and logged the first time."""

    @staticmethod
    def faults(front: Front) -> list[dict[str, Any]]:
        """Return the lines about faults."""
        assert WHO not in front.stream.getvalue()
        return front.faults()

    def test_hooks(self, front_end: str) -> None:
        """One line for each hook, with the type and place of what it raised."""

        def broken(*_arguments: Any) -> bool:
            raise ValueError(str(WHO))

        front = FRONTS[front_end](trusted=broken, headers=True)
        for _ in range(2):
            assert front.get("/patients/1").status == 200
        (line,) = self.faults(front)
        assert (line["level"], line["component"], line["part"]) == ("error", "hook", "trusted")
        assert line["exception_type"] == "ValueError"
        assert line["exception_frames"][-1].rpartition(":")[0].endswith("TestFaultsAreTold.test_hooks.broken")
        assert front.total("healthobs_internal_errors_total", component="hook") == 2
        front.obs.close()

    @pytest.mark.parametrize(
        "answer", [lambda: True, lambda: [][4711], lambda: SimpleNamespace(subject=4711)]
    )
    def test_authorize(self, front_end: str, answer: Callable[[], Any], tmp_path: Path) -> None:
        """What raises, or returns nobody that can be recorded, counts as no."""
        front = FRONTS[front_end](
            endpoints=True,
            authorize=lambda request, scope: answer(),
            audit_database_url=f"sqlite:///{tmp_path}/audit.db",
            audit_key_file=tmp_path / "key",
        )
        for _ in range(2):
            refused = front.get("/audit/trail", authorization="Bearer x")
            assert (refused.status, json.loads(refused.body)["code"]) == (403, "scope_required")
        (line,) = self.faults(front)
        assert (line["component"], line["part"]) == ("hook", "authorize")
        assert front.total("healthobs_internal_errors_total", component="hook") == 2
        front.obs.close()

    def test_endpoints(self, front_end: str) -> None:
        """A scrape that fails is told of by the path that was asked for."""
        front = FRONTS[front_end](endpoints=True)
        front.obs.metrics.registry._collector_to_names[_Broken()] = []  # as one that describes itself
        assert [front.get("/metrics").status for _ in range(2)] == [500, 500]
        (line,) = self.faults(front)
        assert (line["component"], line["part"], line["exception_type"]) == (
            "endpoints", "/metrics", "RuntimeError",
        )  # fmt: skip
        front.obs.close()
