"""`Settings.series_from_zero`: what a scrape is to see counted was at 0 in the scrape before."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from flask import Flask

from asgi_calls import call_asgi
from healthobs import Observability, Settings, _runtime, asgi, observe
from healthobs.flask import init_app

SETTINGS = Settings(service_name="svc", prefix="svc", series_from_zero=True, excluded=("/ping",))
Ask = Callable[[str], object]


@observe("never.called")
def never_called() -> None:
    """Be declared, and nothing else."""


def flask_app(obs: Observability) -> Ask:
    """Return what asks a Flask application whose routes come after `init_app`."""
    app = init_app(Flask("app"), obs)
    app.add_url_rule("/claims/<mrn>", "claims", lambda mrn: "x", methods=["GET", "POST"])
    app.add_url_rule("/broken", "broken", lambda: 1 / 0)
    app.add_url_rule("/ping", "ping", lambda: "x")
    return lambda path: app.test_client().get(path).close()


def fastapi_app(obs: Observability) -> Ask:
    """Return what asks a FastAPI application whose routes come after `init_app`."""
    app = asgi.init_app(FastAPI(), obs)
    app.add_api_route("/claims/{mrn}", lambda mrn: "x", methods=["GET", "POST"])
    app.add_api_route("/broken", lambda: 1 / 0)
    app.add_api_route("/ping", lambda: "x")
    return lambda path: call_asgi(app, "GET", path)


FRONTS = {"flask": (flask_app, "/claims/<mrn>"), "fastapi": (fastapi_app, "/claims/{mrn}")}


def count(obs: Observability, name: str, **labels: str) -> float | None:
    """Return the sum of the samples with these labels in a scrape; None when it has none."""
    found = [
        sample.value
        for family in obs.metrics.collect()
        for sample in family.samples
        if sample.name == name and labels.items() <= sample.labels.items()
    ]
    return sum(found) if found else None


class TestOperations:
    """Decorated functions."""

    @pytest.mark.parametrize("outcome", ["ok", "error", "cancelled"])
    def test_there_before_the_first_call(self, outcome: str) -> None:
        """A function that nobody has called yet has its series, at 0."""
        labels = {"operation": "never.called", "outcome": outcome}
        for settings, expected in ((SETTINGS, 0.0), (Settings(prefix="svc"), None)):
            obs = Observability(settings)
            assert count(obs, "svc_operations_total", **labels) == expected
            assert count(obs, "svc_operation_duration_seconds_count", **labels) == expected
            obs.close()

    def test_one_that_comes_later(self) -> None:
        """A function that is decorated between `Observability` and the first scrape is there too, a dead one is not."""
        obs = Observability(SETTINGS)

        def decorate(name: str) -> Callable[[], None]:
            @observe(name)
            def fn() -> None: ...

            return fn

        kept = decorate("kept")
        decorate("dropped")
        assert count(obs, "svc_operations_total", operation="kept") == 0.0
        assert count(obs, "svc_operations_total", operation="dropped") is None
        del kept
        obs.close()

    def test_two_scrapes_at_once(self) -> None:
        """One beside the first waits for what the first declares."""
        obs = Observability(SETTINGS)
        begun, go_on = threading.Event(), threading.Event()

        def slow() -> None:
            begun.set()
            assert go_on.wait(30)
            obs.metrics.counter("late_total", "Late", ("kind",)).declare("x")

        obs.metrics.before_first_scrape(slow)
        with ThreadPoolExecutor(2) as pool:
            first = pool.submit(count, obs, "late_total", kind="x")
            assert begun.wait(30)
            second = pool.submit(count, obs, "late_total", kind="x")
            time.sleep(0.1)
            go_on.set()
            assert (first.result(), second.result()) == (0.0, 0.0)
        obs.close()

    def test_a_fault_costs_no_scrape(self) -> None:
        """What cannot be declared is counted, and the scrape answers."""
        obs = Observability(SETTINGS)
        obs.metrics.before_first_scrape(lambda: 1 / 0)
        assert count(obs, "healthobs_internal_errors_total", component="metrics") == 1.0
        assert count(obs, "svc_operations_total", operation="never.called") == 0.0
        obs.close()


@pytest.mark.parametrize(("make", "template"), FRONTS.values(), ids=FRONTS.keys())
class TestRoutes:
    """Routes of the application."""

    def test_there_before_the_first_request(
        self, make: Callable[[Observability], Ask], template: str
    ) -> None:
        """Each method of each route has its success and its failure at 0; excluded paths and implied methods none."""
        obs = Observability(SETTINGS)
        make(obs)
        name = "svc_request_duration_seconds_count"
        for method in ("GET", "POST"):
            for status in ("200", "500"):
                assert count(obs, name, endpoint=template, method=method, status=status) == 0.0
        assert count(obs, name, endpoint="/ping") is None
        assert count(obs, name, method="HEAD") is None
        obs.close()

    def test_requests_count_on(self, make: Callable[[Observability], Ask], template: str) -> None:
        """The first success and the first failure are each an increase from 0 to 1 between two scrapes."""
        obs = Observability(SETTINGS)
        ask = make(obs)
        seen = []
        for _ in range(2):
            seen.append(
                [
                    count(obs, "svc_request_duration_seconds_count", endpoint=template, status="200"),
                    count(obs, "svc_request_duration_seconds_count", endpoint="/broken", status="500"),
                ]
            )
            ask("/claims/pt-4711")
            with contextlib.suppress(ZeroDivisionError):  # what a server would log
                ask("/broken")
        assert seen == [[0.0, 0.0], [1.0, 1.0]]
        obs.close()

    def test_off_unless_asked_for(self, make: Callable[[Observability], Ask], template: str) -> None:
        """By default a route has no series before its first request."""
        obs = Observability(Settings(prefix="svc"))
        make(obs)
        assert count(obs, "svc_request_duration_seconds_count") is None
        obs.close()


WORKER = """
import sys
from flask import Flask
from healthobs import Observability, Settings, observe
from healthobs.flask import init_app
obs = Observability(Settings(prefix="svc", series_from_zero=True))
app = Flask("app")
@app.get("/x")
@observe("x")
def x(): return "x"
init_app(app, obs)
if sys.argv[1] == "scrape":
    obs.metrics.exposition(None)
for _ in range(int(sys.argv[2])):
    app.test_client().get("/x").close()
print(obs.metrics.exposition(None)[1].decode())
"""


class TestProcesses:
    """Prometheus's multiprocess mode."""

    def test_counts_stay_exact(self, tmp_path: Path) -> None:
        """Workers that declared, before or after their requests, and one that was never scraped, add up exactly."""
        environment = {**os.environ, "PROMETHEUS_MULTIPROC_DIR": str(tmp_path)}
        for scrape, requests in (("scrape", 3), ("no", 2), ("scrape", 0)):
            done = subprocess.run(
                [sys.executable, "-c", WORKER, scrape, str(requests)],
                env=environment, capture_output=True, text=True, check=True,
            )  # fmt: skip
        for line in (
            'svc_request_duration_seconds_count{endpoint="/x",method="GET",status="200"} 5.0',
            'svc_request_duration_seconds_count{endpoint="/x",method="GET",status="500"} 0.0',
            'svc_operations_total{operation="x",outcome="ok"} 5.0',
            'svc_operations_total{operation="x",outcome="error"} 0.0',
        ):
            assert line in done.stdout, line


def test_decorated_meanwhile(monkeypatch: pytest.MonkeyPatch) -> None:
    """A function decorated by another thread while operations are declared is no fault, and is declared as well."""
    late: list[Callable[[], None]] = []

    class Growing(weakref.WeakSet[Any]):
        def __iter__(self) -> Iterator[Any]:
            for number, operation in enumerate(super().__iter__()):
                yield operation
                if number == 0 and not late:
                    late.append(observe("came.late")(lambda: None))

    monkeypatch.setattr("healthobs._runtime.operations", Growing(_runtime.operations))
    obs = Observability(SETTINGS, logs="off")
    text = obs.metrics.exposition(None)[1].decode()
    assert late
    assert 'operation="came.late"' in text
    assert 'operation="never.called"' in text
    obs.close()
