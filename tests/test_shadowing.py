"""Routes of the application that have the path of an endpoint: told, and left alone under `endpoint_prefix`."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask
from prometheus_client import make_asgi_app

from asgi_calls import call_asgi
from healthobs import Observability, Settings, asgi, flask
from healthobs.clock import Clock
from healthobs.compliance.control import ProbeContext, Reply
from healthobs.compliance.probes_http import sends_headers
from healthobs.doctor import examine
from healthobs.exceptions import ConfigurationError, HealthobsWarning
from healthobs.healthcheck import _local_url
from healthobs.redaction import Redactor


def flask_app() -> Flask:
    """Return an application with a health route and a metrics route of its own."""
    app = Flask("ward")
    app.add_url_rule("/health", "health", lambda: "mine")
    app.add_url_rule("/metrics/", "metrics", lambda: "mine")
    app.add_url_rule("/healthy", "healthy", lambda: "mine")
    return app


def fastapi_app() -> FastAPI:
    """Return the same for FastAPI, its metrics mounted."""
    app = FastAPI()

    @app.get("/health")
    async def health() -> str:
        return "mine"

    @app.get("/healthy")
    async def healthy() -> str:
        return "mine"

    app.mount("/metrics", make_asgi_app())
    return app


def ask_flask(app: Any, path: str) -> bytes:
    """Return the body of one answer."""
    return bytes(app.test_client().get(path, buffered=True).data)


def ask_fastapi(app: Any, path: str) -> bytes:
    """Return the body of one answer."""
    return call_asgi(app, "GET", path).body


FRONTS = [(flask, flask_app, ask_flask), (asgi, fastapi_app, ask_fastapi)]


@pytest.fixture(params=FRONTS, ids=["flask", "fastapi"])
def front(request: pytest.FixtureRequest) -> Any:
    """Give the adapter, the application's maker, and what asks it."""
    return request.param


def observed(front: Any, **settings: Any) -> Any:
    """Return the application after `init_app`."""
    adapter, make, _ = front
    obs = Observability(Settings(log_level="critical", control_interval_seconds=0, **settings))
    return adapter.init_app(make(), obs)


def findings(app: Any) -> list[tuple[str, str]]:
    """Return what `healthobs doctor` says of it."""
    return [(finding.name, finding.seen) for finding in examine(app, environ={}, sqlite_version=(3, 51, 3))]


def test_a_shadowed_route_is_told(front: Any) -> None:
    """`init_app` warns and `healthobs doctor` reports, each naming the routes and no other."""
    with pytest.warns(HealthobsWarning, match="answers /health instead.*endpoint_prefix"):
        app = observed(front)
    assert b"mine" not in front[2](app, "/health")
    ((name, seen),) = findings(app)
    assert (name, "/health," in seen, "/healthy" in seen, "/metrics" in seen) == (
        "shadowed_routes", True, False, False,
    )  # fmt: skip


def test_the_other_endpoints_shadow_too(front: Any) -> None:
    """With `endpoints` a metrics route is named as well, with a slash at its end or mounted."""
    with pytest.warns(HealthobsWarning, match="/health, /metrics"):
        observed(front, endpoints=True)


def test_a_prefix_leaves_the_applications_routes_alone(front: Any) -> None:
    """Under `endpoint_prefix` nothing is shadowed, and the endpoints answer there."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        app = observed(front, endpoints=True, endpoint_prefix="/_ops")
    assert b"mine" in front[2](app, "/health")
    assert b"healthy" in front[2](app, "/_ops/health")
    assert b'healthobs_probe_requests_total{code="200",probe="/health"} 1' in front[2](app, "/_ops/metrics")
    assert findings(app) == []


@pytest.mark.parametrize("prefix", ["_ops", "/_ops/", "/", "/a?b", "/a b", "//a"])
def test_a_wrong_prefix_is_refused(prefix: str) -> None:
    """Only a path without a slash at its end is taken."""
    with pytest.raises(ConfigurationError, match="endpoint_prefix must be a path"):
        Settings(endpoint_prefix=prefix)


def test_the_control_of_headers_asks_under_the_prefix() -> None:
    """`HDR` looks at the endpoints where they are."""
    asked: list[str] = []

    def call(method: str, path: str, headers: Any, body: bytes) -> Reply:
        asked.append(path)
        return Reply(200, {}, b"")

    settings = Settings(endpoint_prefix="/_ops")
    sends_headers(ProbeContext(settings=settings, clock=Clock(), redactor=Redactor(), call=call))
    assert asked == ["/_ops/health", "/healthobs-control-canary", "/_ops/health"]


def test_the_health_check_asks_under_the_prefix() -> None:
    """`python -m healthobs.healthcheck` does too, but not on the ops port, which has none."""
    environ = {"PORT": "80", "HEALTHOBS_ENDPOINT_PREFIX": "/_ops"}
    assert _local_url(environ) == "http://127.0.0.1:80/_ops/health"
    assert _local_url({**environ, "OPS_PORT": "81"}) == "http://127.0.0.1:81/health"
