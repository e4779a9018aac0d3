"""Decorators above a route decorator: no request meets them, and somebody is told."""

from __future__ import annotations

import functools
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask

from healthobs import Observability, Settings, asgi, audited, classified, flask, observe, traced
from healthobs.decorators.above import passed_over
from healthobs.doctor import examine
from healthobs.exceptions import HealthobsWarning
from healthobs.testing import Capture, check_app


def foreign(fn: Callable[..., Any]) -> Callable[..., Any]:
    """Wrap as other libraries do."""

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        return fn(*args, **kwargs)

    return wrapper


def fill(app: Any) -> None:
    """Add views with decorators below and above."""

    @app.get("/right")
    @classified()
    @audited("a.b")
    @observe("right")
    def right() -> str:
        return "ok"

    @app.get("/between")
    @traced("outer")
    @foreign
    @audited("a.b")
    def between() -> str:
        return "ok"

    @audited("a.b")
    @app.get("/above")
    def above() -> str:
        return "ok"

    @traced("both")
    @foreign
    @app.get("/both")
    @audited("a.b")
    def both() -> str:
        return "ok"


SEEN = "/above (@audited), /both (@traced)"


@pytest.mark.parametrize("make", [lambda: Flask("ward"), FastAPI], ids=["flask", "fastapi"])
def test_told(make: Callable[[], Any]) -> None:
    """`init_app` warns, also of what a factory decorated, and `healthobs doctor` reports; neither names right ones."""
    app = make()
    fill(app)
    init_app = flask.init_app if isinstance(app, Flask) else asgi.init_app
    obs = Observability(Settings(log_level="critical"))
    with pytest.warns(HealthobsWarning) as told:
        init_app(app, obs)
    (message,) = [str(one.message) for one in told]
    assert SEEN in message
    assert [
        (finding.name, SEEN in finding.seen)
        for finding in examine(app, environ={}, sqlite_version=(3, 51, 3))
    ] == [("decorators_above_the_route", True)]
    obs.close()


def test_check_app(capture: Capture) -> None:
    """Routes that were made after `init_app` are seen by `check_app`."""
    app = flask.init_app(Flask("ward"), capture.obs)
    fill(app)
    with pytest.raises(AssertionError, match=r"/above \(@audited\): above the route decorator.*; /both"):
        check_app(app)


def test_right_ones_are_silent(capture: Capture) -> None:
    """Decorated views of every kind, and callables that cannot be remembered, are not named."""

    class Unhashable:
        __hash__ = None  # type: ignore[assignment]

        def __call__(self) -> str:
            return "ok"

    app = Flask("ward")
    app.add_url_rule("/object", "object", audited("a.b")(Unhashable()))
    app.add_url_rule("/plain", "plain", Unhashable())
    app.add_url_rule("/partial", "partial", audited("a.b")(functools.partial(str, "ok")))
    app.add_url_rule("/none", "none")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        flask.init_app(app, capture.obs)
    assert passed_over([("/none", None)]) == []
