"""`check_app` and the label validator: green on what is right, red on each planted fault."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask

from healthobs import Observability, Settings
from healthobs.flask import init_app, remove_app
from healthobs.testing import Capture, check_app


def make_app() -> Flask:
    """Return an application with parameters of several kinds, a POST and a view that fails."""
    app = Flask("test")
    rules = ("/a", "/b/<one>", "/c/<int:number>/<uuid:two>", "/d/<float:share>")
    for rule in rules:
        app.add_url_rule(rule, rule, lambda **_: "ok")
    app.add_url_rule("/broken", "broken", lambda: 1 / 0)
    app.add_url_rule("/post", "post", lambda: "ok", methods=["POST"])
    app.add_url_rule("/ping", "ping", lambda: "ok")
    return app


def observed(obs: Observability) -> Flask:
    app = make_app()
    app.add_url_rule("/e/<any(x, y):letter>/<int:n>", "any", lambda **_: "ok")
    return init_app(app, obs)


EXAMPLES = {
    "/c/<int:number>/<uuid:two>": {"number": 1, "two": "00000000-0000-0000-0000-000000000001"},
    "/e/<any(x, y):letter>/<int:n>": {"letter": "x", "n": 1},
}


def _without_routes(_obs: Observability, patch: pytest.MonkeyPatch) -> None:
    """Keep the template from the exchange, which hears of it from WSGI and, for an exception, from Flask."""
    patch.setattr("healthobs.wsgi._route", lambda _: None)
    patch.setattr("healthobs.http.Exchange.matched", lambda _self, _template: None)


class TestCheckApp:
    """`check_app`."""

    def test_every_route_leaves_all_four(self) -> None:
        """Parameters are guessed or given; failing views, other methods and excluded paths are right."""
        with Capture(Settings(excluded=("/ping",)), validate=False) as capture:
            check_app(observed(capture.obs), examples=EXAMPLES)

    def test_says_what_cannot_be_guessed(self, capture: Capture) -> None:
        """A route that was not called is not passed over."""
        with pytest.raises(AssertionError, match="give an example"):
            check_app(observed(capture.obs))

    def test_not_observed(self, capture: Capture) -> None:
        """An application without healthobs, or with something else around it, is refused."""
        with pytest.raises(AssertionError, match="init_app"):
            check_app(make_app())
        app = observed(capture.obs)
        remove_app(app)
        with pytest.raises(AssertionError, match="init_app"):
            check_app(app)

    @pytest.mark.parametrize(
        ("plant", "signal"),
        [
            (lambda obs, m: m.setattr(obs.logs, "_lowest", 1000), None),
            (lambda obs, m: m.setattr("healthobs.http.Exchange.finish", lambda *_: None), "access line"),
            (lambda obs, m: m.setattr("healthobs.http.Exchange.respond", lambda *_: []), "X-Request-Id"),
            (_without_routes, "duration sample"),
            (lambda obs, m: m.setattr("healthobs.http.Exchange._end_span", lambda *_: None), "server span"),
        ],
    )
    def test_planted_faults(
        self, monkeypatch: pytest.MonkeyPatch, plant: Callable[..., Any], signal: str | None
    ) -> None:
        """Each signal that is taken away is missed, for each route; a level that hides lines is no fault."""
        examples = {"/c/<int:number>/<uuid:two>": EXAMPLES["/c/<int:number>/<uuid:two>"]}
        with Capture(validate=False) as capture, monkeypatch.context() as patch:
            app = init_app(make_app(), capture.obs)
            plant(capture.obs, patch)
            if signal is None:
                check_app(app, examples=examples)
                return
            with pytest.raises(AssertionError) as raised:
                check_app(app, examples=examples)
            assert str(raised.value).count(f"no {signal}") == 8


class TestLabels:
    """No label outside its declared set."""

    def test_planted(self) -> None:
        """A value that was not declared is a problem; the overflow series is none."""
        with Capture(labels={"ward": ("a", "b")}, validate=False) as capture:
            counter = capture.obs.metrics.counter("beds_total", "", ("ward",))
            counter.labels("a").inc()
            counter.labels("_other").inc()
            assert capture.problems() == []
            counter.labels("c").inc()
            assert capture.problems() == ["beds has a label ward outside its declared set"]
