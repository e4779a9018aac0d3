"""`init_app` and how it is taken back."""

from __future__ import annotations

import io
import json
import os
import signal
import threading
from collections.abc import Iterator
from types import SimpleNamespace

import pytest
from flask import Flask, Response, abort
from werkzeug.middleware.proxy_fix import ProxyFix

from healthobs import Observability, Settings, _runtime, install, observe, readiness_check
from healthobs.compliance import Route, self_caller
from healthobs.compliance.selfcall import CANARY
from healthobs.exceptions import ConfigurationError
from healthobs.flask import init_app, remove_app
from healthobs.gunicorn import post_worker_init


@pytest.fixture
def stream() -> io.StringIO:
    """Where log lines go."""
    return io.StringIO()


@pytest.fixture
def obs(stream: io.StringIO) -> Iterator[Observability]:
    """An `Observability` with a prefix; nothing stays installed."""
    held = Observability(Settings(service_name="svc", prefix="svc", endpoints=True), log_stream=stream)
    yield held
    held.close()
    if _runtime.process.default is held:
        install(None)


def make_app() -> Flask:
    """Return an application with a few views."""
    app = Flask("test")

    @app.get("/patients/<patient_id>")
    def patient(patient_id: str) -> dict[str, str]:
        return {"status": "active"}

    @app.get("/broken")
    def broken() -> str:
        raise RuntimeError("078-05-1120")

    @app.get("/gone")
    def gone() -> str:
        abort(410)

    @app.get("/stream")
    def stream_() -> Response:
        return Response((chunk for chunk in ("a", "b")), mimetype="text/plain")

    return app


class TestInitApp:
    """`init_app`."""

    @pytest.mark.parametrize(
        ("path", "route", "status"),
        [
            ("/patients/pt-4711", "/patients/<patient_id>", 200),
            ("/nope/pt-4711", "unmatched", 404),
            ("/broken", "/broken", 500),
            ("/gone", "/gone", 410),
            ("/stream", "/stream", 200),
        ],
    )
    def test_route_template(
        self, obs: Observability, stream: io.StringIO, path: str, route: str, status: int
    ) -> None:
        """Routes are recorded as templates, whatever the outcome; the path is nowhere."""
        client = init_app(make_app(), obs).test_client()
        response = client.get(path, buffered=True)
        response.close()
        (line,) = [
            found
            for found in map(json.loads, stream.getvalue().splitlines())
            if found["event"] == "http_request"
        ]
        assert (response.status_code, line["route"], line["status"]) == (status, route, status)
        assert "pt-4711" not in stream.getvalue()
        assert "078-05-1120" not in stream.getvalue()

    def test_method_not_allowed(self, obs: Observability) -> None:
        """A 405 has no matched rule."""
        client = init_app(make_app(), obs).test_client()
        client.post("/broken").close()
        assert 'endpoint="unmatched",method="POST",status="405"' in client.get("/metrics").text

    def test_twice_is_refused(self, obs: Observability) -> None:
        """One application is observed once."""
        app = init_app(make_app(), obs)
        with pytest.raises(ConfigurationError, match="once"):
            init_app(app, obs)

    def test_becomes_the_default(self, obs: Observability) -> None:
        """Work outside requests reports to the first application's `Observability`."""
        install(None)
        init_app(make_app(), obs)
        assert _runtime.current_or_none() is obs

    def test_does_not_replace_a_default(self, obs: Observability) -> None:
        """What was installed before stays installed."""
        other = Observability(Settings(service_name="other"))
        install(other)
        try:
            init_app(make_app(), obs)
            assert _runtime.current_or_none() is other
        finally:
            install(None)
            other.close()

    def test_checks_decorated_before(self, obs: Observability) -> None:
        """A check that was decorated before any `Observability` existed is adopted."""
        install(None)

        @readiness_check("warehouse")
        def warehouse() -> None:
            return None

        client = init_app(make_app(), obs).test_client()
        assert client.get("/readiness").json["checks"]["warehouse"] == "ready"

    def test_decorated_view(self, obs: Observability) -> None:
        """A decorator inside a request reports to the application's own `Observability`."""
        install(None)
        app = Flask("test")

        @app.get("/")
        @observe("work")
        def view() -> str:
            return "ok"

        client = init_app(app, obs).test_client()
        client.get("/").close()
        assert 'svc_operations_total{operation="work",outcome="ok"} 1.0' in client.get("/metrics").text


class TestRemoveApp:
    """`remove_app`."""

    def test_what_was_put_around_since_is_not_lost(self) -> None:
        """Another middleware around ours must go first; until then nothing is taken off."""
        obs = Observability(Settings(), logs="off")
        app = Flask("app")
        before = app.wsgi_app
        ours = init_app(app, obs).wsgi_app
        app.wsgi_app = theirs = ProxyFix(app.wsgi_app)  # type: ignore[method-assign]
        with pytest.raises(ConfigurationError, match="take off what came after it"):
            remove_app(app)
        assert (app.wsgi_app, app.test_client().get("/health").status_code) == (theirs, 200)
        app.wsgi_app = ours  # type: ignore[method-assign]
        remove_app(app)
        assert app.wsgi_app == before
        obs.close()

    def test_twice(self) -> None:
        """What is not on an application cannot be taken off it, and that is what is said."""
        app = init_app(Flask("twice"), Observability(Settings(), logs="off"))
        remove_app(app)
        with pytest.raises(ConfigurationError, match="not on this application"):
            remove_app(app)

    def test_answers_as_before(self, obs: Observability) -> None:
        """Taken off again, every answer is byte for byte what it was."""
        app = make_app()
        paths = ("/patients/1", "/nope", "/broken", "/gone", "/stream", "/health")

        def answers() -> list[tuple[int, list[tuple[str, str]], bytes]]:
            found = []
            for path in paths:
                response = app.test_client().get(path)
                found.append((response.status_code, list(response.headers), response.data))
            return found

        before = answers()
        init_app(app, obs)
        assert answers() != before
        remove_app(app)
        assert answers() == before
        assert _runtime.process.default is not obs


def control_threads() -> set[threading.Thread]:
    """Return the threads that run controls; those of other tests may still be ending."""
    return {thread for thread in threading.enumerate() if thread.name == "healthobs-controls"}


def have_ended(threads: set[threading.Thread]) -> bool:
    """Return whether they have, once each had time to end the round that it is in."""
    for thread in threads:
        thread.join(30)
    return not any(thread.is_alive() for thread in threads)


class TestControls:
    """`init_app` binds the controls and has them run, one way for every service."""

    def test_no_thread_before_the_first_request(self, obs: Observability) -> None:
        """Nothing runs until a request comes, so that a server may fork; `remove_app` ends it."""
        before = control_threads()
        app = init_app(make_app(), obs)
        seen = [control_threads() - before]
        app.test_client().get("/health")
        seen.append(control_threads() - before)
        remove_app(app)
        assert [len(threads) for threads in seen] == [0, 1]
        assert have_ended(seen[1])

    def test_each_fork_has_its_own(self, obs: Observability) -> None:
        """With a preloaded application each worker's first request starts that worker's thread."""
        app = init_app(make_app(), obs)
        client = app.test_client()
        reader, writer = os.pipe()
        child = os.fork()
        if child == 0:  # pragma: no cover - runs in the child
            signal.alarm(60)  # a child that hangs must not outlive the test
            seen = [len(control_threads())]
            client.get("/patients/7")
            os.write(writer, json.dumps([*seen, len(control_threads())]).encode())
            os._exit(0)
        os.close(writer)
        os.waitpid(child, 0)
        with os.fdopen(reader, "rb") as pipe:
            assert json.loads(pipe.read()) == [0, 1]

    def test_interval_of_zero(self) -> None:
        """Controls that run on demand only have no thread, and know their application."""
        before = control_threads()
        settings = Settings(endpoints=True, headers=True, audience="all", control_interval_seconds=0)
        obs = Observability(settings, log_stream=io.StringIO())
        app = init_app(make_app(), obs, protected=[Route("GET", "/patients/canary")])
        app.test_client().get("/health")
        assert obs.controls is not None
        assert obs.controls.run(["HDR", "H-312.a1"]) == {"HDR": "pass", "H-312.a1": "fail"}
        assert control_threads() <= before
        remove_app(app)
        obs.close()

    def test_protected_routes_of_an_iterator(self) -> None:
        """Routes that are told one at a time are asked all the same."""
        settings = Settings(endpoints=True, control_interval_seconds=0)
        obs = Observability(settings, log_stream=io.StringIO())
        app = init_app(make_app(), obs, protected=iter([Route("GET", "/patients/canary")]))
        assert obs.controls is not None
        assert obs.controls.run(["H-312.a1"]) == {"H-312.a1": "fail"}
        remove_app(app)
        obs.close()

    def test_worker_starts_its_controls(self, obs: Observability, monkeypatch: pytest.MonkeyPatch) -> None:
        """A gunicorn worker does not wait for a request; with nothing installed the hook does nothing."""
        monkeypatch.setattr(
            "healthobs.gunicorn.Keeper", lambda *_args, **_options: SimpleNamespace(start=list)
        )
        worker = SimpleNamespace(healthobs_ops=None, alive=True, cfg=SimpleNamespace(graceful_timeout=20))
        before = control_threads()
        app = init_app(make_app(), obs)
        post_worker_init(worker)
        started = control_threads() - before
        remove_app(app)
        post_worker_init(worker)
        assert len(started) == 1
        assert have_ended(control_threads() - before)

    @pytest.mark.parametrize("claim", [True, 1, "1", "healthobs.canary", object()])
    def test_nobody_else_passes_for_a_control(
        self, obs: Observability, claim: object, stream: io.StringIO
    ) -> None:
        """Only the engine's own request is left out of telemetry: a claim in the environment is a caller's."""
        app = init_app(make_app(), obs)
        with app.test_client() as client:
            client.get("/patients/7", environ_overrides={CANARY: claim}).close()
        assert stream.getvalue().count('"http_request"') == 1
        assert obs.controls is not None
        obs.controls.stop()
        assert self_caller(app)("GET", "/patients/7", {CANARY: "1"}, b"").status == 200
        assert stream.getvalue().count('"http_request"') == 1
        remove_app(app)
