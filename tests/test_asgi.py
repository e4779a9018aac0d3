"""What only ASGI has: disconnects, cancellation, lifespan, websockets, mounts, background work, real uvicorn."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import urllib3
from fastapi import APIRouter, BackgroundTasks, FastAPI
from fastapi.responses import StreamingResponse
from opentelemetry import baggage
from opentelemetry.trace import StatusCode
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from asgi_calls import call_asgi, http_scope
from fronts import FastApiFront
from healthobs import Observability, Settings, asgi, install
from healthobs.exceptions import ConfigurationError
from healthobs.testing import Capture
from live_servers import until


def routes_of(capture: Capture) -> list[str]:
    """Return the recorded routes."""
    return [line["route"] for line in capture.log_lines if line["event"] == "http_request"]


class TestRoute:
    """The template, from the scope and the table of routes."""

    @pytest.fixture
    def app(self) -> FastAPI:
        """Return an application with routers in routers and applications in applications."""
        app, inner = FastAPI(), APIRouter(prefix="/beds")

        async def answer() -> str:
            return "x"

        inner.add_api_route("/{bed}", answer)
        wards = APIRouter(prefix="/wards/{ward}")
        wards.include_router(inner)
        app.include_router(wards, prefix="/v1")
        app.include_router(wards, prefix="/v2")
        mounted = FastAPI()
        mounted.add_api_route("/claims/{claim:path}", answer)
        app.mount("/tenants/{tenant}", mounted)

        async def plain(_request: Request) -> PlainTextResponse:
            return PlainTextResponse("x")

        app.mount("/legacy", Starlette(routes=[Mount("/in/{unit}", routes=[Route("/{number:int}", plain)])]))
        return app

    @pytest.mark.parametrize(
        ("path", "template"),
        [
            ("/v1/wards/w-zoe/beds/b-zoe", "/v1/wards/{ward}/beds/{bed}"),
            ("/v2/wards/w-zoe/beds/b-zoe", "/v2/wards/{ward}/beds/{bed}"),
            ("/tenants/t-zoe/claims/a/b-zoe", "/tenants/{tenant}/claims/{claim:path}"),
            ("/legacy/in/u-zoe/4711", "/legacy/in/{unit}/{number:int}"),
            ("/nothing/x-zoe", "unmatched"),
        ],
    )
    def test_whole_template(self, app: FastAPI, path: str, template: str) -> None:
        """Prefixes and mounts are part of the template; what a caller put into them is nowhere."""
        with Capture() as capture:
            call_asgi(asgi.Middleware(app, capture.obs), "GET", path)
        assert routes_of(capture) == [template]
        assert capture.leaks("-zoe") == ()

    @pytest.mark.parametrize(
        ("path", "template"),
        [
            ("/raw/r-zoe", "/raw/{number}"),
            ("/v3/raw/r-zoe", "/v3/raw/{number}"),
            ("/docs", "/docs"),
            ("/openapi.json", "/openapi.json"),
            ("/files/f-zoe", "/files"),
            ("/raw", "unmatched"),
        ],
    )
    def test_plain_routes_of_fastapi(self, path: str, template: str) -> None:
        """FastAPI states no route for Starlette's own kind, but the endpoint, which the table knows."""

        async def plain(_request: Request) -> PlainTextResponse:
            return PlainTextResponse("x")

        async def files(scope: Any, receive: Any, send: Any) -> None:
            await PlainTextResponse("x")(scope, receive, send)

        app, router = FastAPI(), APIRouter()
        app.add_route("/raw/{number}", plain)
        router.add_route("/raw/{number}", plain)
        app.include_router(router, prefix="/v3")
        app.mount("/files", files)
        with Capture() as capture:
            call_asgi(asgi.init_app(app, capture.obs), "GET", path)
        assert routes_of(capture) == [template]
        assert capture.leaks("-zoe") == ()

    def test_below_a_root_path(self, app: FastAPI) -> None:
        """A prefix that the server serves under is no part of it, for probes neither."""
        with Capture() as capture:
            observed = asgi.init_app(app, capture.obs)

            async def go(path: str) -> None:
                async def send(message: Any) -> None:
                    return None

                scope = http_scope("GET", path) | {"root_path": "/prod"}
                await observed(scope, asyncio.Event().wait, send)

            asyncio.run(go("/prod/v2/wards/1/beds/2"))
            asyncio.run(go("/prod/health"))
        assert routes_of(capture) == ["/v2/wards/{ward}/beds/{bed}"]

    def test_other_frameworks_state_it(self) -> None:
        """Any application may put its template into the scope."""

        async def app(scope: Any, receive: Any, send: Any) -> None:
            scope["healthobs.route"] = "/x/{id}"
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body"})

        with Capture() as capture:
            call_asgi(asgi.Middleware(app, capture.obs), "GET", "/x/4711")
        assert routes_of(capture) == ["/x/{id}"]


class TestEnds:
    """How a request can end other than by its last byte."""

    @pytest.fixture
    def front(self) -> FastApiFront:
        """Give a service with a stream that never ends."""
        front = FastApiFront()

        @front.app.get("/endless")
        async def endless() -> StreamingResponse:
            async def chunks() -> AsyncIterator[str]:
                while True:
                    front.second()
                    yield "x"
                    await asyncio.sleep(0)

            return StreamingResponse(chunks())

        return front

    def _ended_once(self, front: FastApiFront, status: int) -> None:
        (span,), (line,) = front.spans(), front.access()
        assert span.status.status_code is StatusCode.UNSET
        assert ((span.attributes or {})["error.type"], line["status"]) == ("cancelled", status)
        assert front.total("http_server_request_duration_seconds_count", error_type="cancelled") == 1
        assert front.total("svc_active_requests") == 0

    def test_the_client_goes_away(self, front: FastApiFront) -> None:
        """A disconnect in the middle of a stream ends the exchange once, as cancelled and no error."""
        sent: list[Any] = []

        async def receive() -> Any:
            while len(sent) < 4:
                await asyncio.sleep(0)
            return {"type": "http.disconnect"}

        async def send(message: Any) -> None:
            sent.append(message)

        asyncio.run(front.app(http_scope("GET", "/endless"), receive, send))
        self._ended_once(front, 200)

    def test_the_server_says_so_when_sending(self, front: FastApiFront) -> None:
        """A server that raises at a lost connection (ASGI 2.4) is understood."""
        sent: list[Any] = []

        async def send(message: Any) -> None:
            sent.append(message)
            if len(sent) == 3:
                raise OSError("connection lost")

        async def go() -> None:
            scope = http_scope("GET", "/endless")
            scope["asgi"]["spec_version"] = "2.4"
            with contextlib.suppress(Exception):
                await front.app(scope, asyncio.Event().wait, send)

        asyncio.run(go())
        self._ended_once(front, 200)

    def test_a_failure_sent_whole(self, front: FastApiFront) -> None:
        """A disconnect after the last byte of a 5xx is heard by an application that listens on, and is no cancelling."""

        async def listens(_scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 500, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})
            assert (await receive())["type"] == "http.disconnect"

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            return None

        asyncio.run(asgi.Middleware(listens, front.obs)(http_scope("GET", "/x"), receive, send))
        assert [line["status"] for line in front.access()] == [500]
        assert front.total("http_server_request_duration_seconds_count", error_type="500") == 1

    @pytest.mark.parametrize(
        ("messages", "cancelled"),
        [
            ([{"type": "http.response.pathsend", "path": "/x"}], False),
            ([{"type": "http.response.zerocopysend", "file": 1}], False),
            ([{"type": "http.response.zerocopysend", "file": 1, "more_body": True}], True),
            (
                [
                    {"type": "http.response.zerocopysend", "file": 1, "more_body": True},
                    {"type": "http.response.body", "body": b"end"},
                ],
                False,
            ),
        ],
    )
    def test_a_file_that_the_server_sends(
        self, front: FastApiFront, messages: list[dict[str, Any]], *, cancelled: bool
    ) -> None:
        """The server's extensions for files end a response as its last byte does: who goes away then cancels nothing."""

        async def sends(_scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for message in messages:
                await send(message)
            front.second()
            await receive()

        async def receive() -> Any:
            return {"type": "http.disconnect"}

        async def send(_message: Any) -> None:
            return None

        asyncio.run(asgi.Middleware(sends, front.obs)(http_scope("GET", "/x"), receive, send))
        error = "cancelled" if cancelled else ""
        assert front.total("http_server_request_duration_seconds_count", error_type=error) == 1
        (line,) = front.access()
        assert (line["status"], line["duration_seconds"]) == (200, 1.0 if cancelled else 0.0)

    def test_cancellation(self, front: FastApiFront) -> None:
        """A cancelled request without an answer is 499 and cancelled, and goes on being cancelled."""

        @front.app.get("/slow")
        async def slow() -> None:
            await asyncio.sleep(60)

        async def send(message: Any) -> None:
            return None

        async def go() -> None:
            task = asyncio.create_task(front.app(http_scope("GET", "/slow"), asyncio.Event().wait, send))
            for _ in range(20):
                await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

        asyncio.run(go())
        self._ended_once(front, 499)

    def test_an_exception_is_named(self, front: FastApiFront) -> None:
        """What Starlette raises again after its 500 is the span's `error.type`."""
        front.get("/broken")
        assert (front.spans()[0].attributes or {})["error.type"] == "RuntimeError"

    def test_background_work_is_not_counted(self, front: FastApiFront) -> None:
        """The clock stops at the last byte, not when background tasks are through."""

        @front.app.get("/later")
        async def later(tasks: BackgroundTasks) -> None:
            tasks.add_task(front.second)

        front.get("/later")
        assert front.access()[0]["duration_seconds"] == 0.0
        assert front.now_ns > 0

    def test_many_at_once(self) -> None:
        """Requests that interleave on one loop do not see each other's span."""
        front = FastApiFront()
        seen: set[str] = set()

        @front.app.get("/id")
        async def which() -> None:
            for _ in range(3):
                await asyncio.sleep(0)
                seen.add(f"{front.obs.tracing.tracer.start_span('x').get_span_context().trace_id:x}")

        async def send(message: Any) -> None:
            return None

        async def go() -> None:
            calls = [front.app(http_scope("GET", "/id"), asyncio.Event().wait, send) for _ in range(20)]
            await asyncio.gather(*calls)

        asyncio.run(go())
        assert len(seen) == len(front.spans()) == 20
        assert front.total("svc_active_requests") == 0


class TestHooks:
    """What `init_app` takes, as under WSGI."""

    def test_hooks_trust_and_exclusion(self) -> None:
        """Hooks see span and message, and their faults are counted; trust is asked for; excluded paths are counted only."""
        seen: list[Any] = []

        async def app(scope: Any, receive: Any, send: Any) -> None:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"x"})

        def broken(span: Any, message: Any) -> None:
            seen.append(message["status"])
            raise ValueError("no")

        settings = Settings(service_name="test", excluded=("/quiet",), baggage=("ward",))
        with Capture(settings) as capture:
            observed = asgi.Middleware(
                app,
                capture.obs,
                trust_incoming=lambda scope: scope["path"] == "/inside",
                request_hook=lambda span, scope: seen.append(scope["path"]),
                response_hook=broken,
            )
            parent = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
            call_asgi(observed, "GET", "/inside", traceparent=parent, baggage="ward=4,name=Jane")
            call_asgi(observed, "GET", "/outside", traceparent=parent)
            assert call_asgi(observed, "GET", "/quiet").headers == []
        assert seen == ["/inside", 200, "/outside", 200]
        assert [span.parent is not None for span in capture.spans] == [True, False]
        assert capture.metric("healthobs_excluded_requests_total", path="/quiet") == 1
        assert capture.metric("healthobs_internal_errors_total", component="hook") == 2


class TestOtherKinds:
    """Lifespan and websockets."""

    def test_lifespan_passes_through_and_flushes(self) -> None:
        """Start and end reach the application; what is queued is exported before the end is confirmed."""
        happened: list[str] = []

        @contextlib.asynccontextmanager
        async def lifespan(_app: FastAPI) -> AsyncIterator[None]:
            happened.append("up")
            yield
            happened.append("down")

        with Capture() as capture:
            app = asgi.init_app(FastAPI(lifespan=lifespan), capture.obs)
            capture.obs.tracing.flush = lambda *_: happened.append("flushed") or True  # type: ignore[assignment,method-assign,func-returns-value]
            messages = iter(["lifespan.startup", "lifespan.shutdown"])

            async def receive() -> Any:
                return {"type": next(messages)}

            async def send(message: Any) -> None:
                happened.append(message["type"])

            asyncio.run(app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send))
        assert happened == [
            "up",
            "lifespan.startup.complete",
            "down",
            "flushed",
            "lifespan.shutdown.complete",
        ]

    def test_websockets_pass_through(self) -> None:
        """The application gets the very scope and callables of the server."""
        seen: list[Any] = []

        async def app(*arguments: Any) -> None:
            seen.append(arguments)

        with Capture() as capture:
            given = ({"type": "websocket", "path": "/health"}, object(), object())
            asyncio.run(asgi.Middleware(app, capture.obs)(*given))  # type: ignore[arg-type]
        assert all(got is had for got, had in zip(seen[0], given, strict=True))
        assert capture.spans == ()


class TestInitApp:
    """`init_app` and `remove_app`."""

    def test_removed_twice(self) -> None:
        """What is not on an application cannot be taken off it, and that is what is said."""
        app = asgi.remove_app(asgi.init_app(FastAPI(), Observability(Settings(), logs="off")))
        with pytest.raises(ConfigurationError, match="not on this application"):
            asgi.remove_app(app)

    def test_answers_as_before(self) -> None:
        """Taken off again, every answer is byte for byte what it was, on a running application too."""
        install(None)
        front = FastApiFront()
        app = asgi.remove_app(front.app)
        paths = ("/patients/1", "/nothing", "/gone", "/stream", "/broken", "/health")
        before = [call_asgi(app, "GET", path) for path in paths]
        asgi.init_app(app, front.obs)
        assert [call_asgi(app, "GET", path) for path in paths] != before
        assert asgi.remove_app(app) is app
        assert [call_asgi(app, "GET", path) for path in paths] == before
        assert "build_middleware_stack" not in vars(app)

    def test_refusals(self) -> None:
        """Twice, on what is no Starlette application, and taking off what is not on: each says the remedy."""
        with Capture() as capture:
            app = asgi.init_app(FastAPI(), capture.obs)
            with pytest.raises(ConfigurationError, match="once"):
                asgi.init_app(app, capture.obs)
            with pytest.raises(ConfigurationError, match="Middleware"):
                asgi.init_app(object(), capture.obs)
            with pytest.raises(ConfigurationError, match="not the outermost"):
                asgi.remove_app(FastAPI())


APP = """
import os, time
from fastapi import FastAPI
from healthobs import Observability, Settings
from healthobs.asgi import init_app

app = FastAPI()

@app.get("/pid/{name}")
async def pid(name: str):
    time.sleep(0.05)  # blocks the loop, so that one worker cannot take every connection
    return os.getpid()

init_app(app, Observability(Settings(service_name="svc", prefix="svc", endpoints=True)))
"""


@pytest.fixture
def server(tmp_path: Path, free_port: int) -> Iterator[tuple[str, subprocess.Popen[bytes], Path]]:
    """Run uvicorn with two workers; give base URL, process and the file of its log lines."""
    (tmp_path / "app.py").write_text(APP)
    (tmp_path / "metrics").mkdir()
    environment = {
        **os.environ,
        "PYTHONPATH": str(tmp_path),
        "PROMETHEUS_MULTIPROC_DIR": str(tmp_path / "metrics"),
    }
    line = [
        sys.executable,
        "-m",
        "uvicorn",
        "app:app",
        "--workers",
        "2",
        "--port",
        str(free_port),
        "--no-access-log",
    ]
    with (tmp_path / "log").open("wb") as log:
        process = subprocess.Popen(line, cwd=tmp_path, env=environment, stdout=log)
    url = f"http://127.0.0.1:{free_port}"
    try:
        with urllib3.PoolManager(retries=False) as pool:
            for _ in range(300):
                try:
                    if pool.request("GET", f"{url}/readiness").status == 200:
                        break
                except urllib3.exceptions.HTTPError:
                    time.sleep(0.1)
            else:
                pytest.fail("uvicorn did not answer")
        yield url, process, tmp_path / "log"
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


@pytest.mark.server
class TestUvicorn:
    """Two real workers."""

    def test_counts_are_exact_over_workers(self, server: tuple[str, subprocess.Popen[bytes], Path]) -> None:
        """Whichever worker answers the scrape, it shows the requests of all; SIGTERM ends both."""
        url, process, log = server

        def pid(number: int) -> bytes:
            with urllib3.PoolManager(
                retries=False
            ) as pool:  # a new connection each, so that both workers answer
                return pool.request("GET", f"{url}/pid/pt-{number}").data

        answered: list[bytes] = []
        with ThreadPoolExecutor(12) as threads, urllib3.PoolManager(retries=False) as pool:

            def both_answered() -> bool:  # one may still be loading
                answered.extend(threads.map(pid, range(60)))
                return len(set(answered)) == 2

            def scrape() -> tuple[dict[str, str], str]:
                text = pool.request("GET", f"{url}/metrics", headers={"Connection": "close"}).data.decode()
                counts = re.findall(
                    r"^(\w+_request_duration_seconds_count)\{[^}]*\"/pid/\{name\}\"[^}]*\} ([\d.]+)$",
                    text,
                    re.MULTILINE,
                )
                return dict(counts), text

            until(both_answered)
            expected = {
                "http_server_request_duration_seconds_count": f"{len(answered)}.0",
                "svc_request_duration_seconds_count": f"{len(answered)}.0",
            }
            until(lambda: scrape()[0] == expected)  # a request is answered before it counts
            for _ in range(6):
                counts, text = scrape()
                assert counts == expected
                assert "svc_active_requests 0.0" in text
        process.send_signal(signal.SIGTERM)
        process.wait(30)
        assert log.read_text().count('"route":"/pid/{name}"') == len(answered)


class TestOptions:
    """What the WSGI front end can, this one can too: trust by request, baggage, excluded paths."""

    def answers(self, capture: Capture, path: str = "/x", **options: Any) -> dict[str, str]:
        """Make one request with a foreign trace and baggage; return the baggage that the application saw."""
        seen: dict[str, str] = {}

        async def app(scope: Any, receive: Any, send: Any) -> None:
            seen.update({name: str(value) for name, value in baggage.get_all().items()})
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

        async def send(message: Any) -> None: ...

        scope = {
            "type": "http", "method": "GET", "path": path, "scheme": "http", "http_version": "1.1",
            "headers": [
                (b"traceparent", b"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"),
                (b"baggage", b"tenant=north,mrn=4711-xq"),
            ],
        }  # fmt: skip
        asyncio.run(asgi.Middleware(app, capture.obs, **options)(scope, send, send))
        return seen

    def test_trust_and_baggage(self) -> None:
        """A function told the scope decides; what it raises is counted and means no."""

        def broken(scope: Any) -> bool:
            raise KeyError("x")

        settings = Settings(baggage=("tenant",))
        for says, parents, seen in (
            (lambda _: True, 1, {"tenant": "north"}),
            (lambda _: False, 0, {}),
            (broken, 0, {}),
        ):
            with Capture(settings) as capture:
                assert self.answers(capture, trust_incoming=says) == seen
                (span,) = capture.spans
                assert (int(span.parent is not None), len(span.links)) == (parents, 1 - parents)
                faults = capture.metric("healthobs_internal_errors_total", component="hook")
                assert (faults or 0) == (says is broken)

    def test_excluded(self) -> None:
        """Only counted."""
        with Capture(Settings(excluded=("/ping",))) as capture:
            self.answers(capture, "/ping")
            assert (capture.spans, capture.log_lines) == ((), [])
            assert capture.metric("healthobs_excluded_requests_total", path="/ping") == 1

    def test_decorated_work_inside_reports(self) -> None:
        """Without `install`, the middleware alone makes decorated functions report to its `Observability`."""
        code = """
            import asyncio, io
            from healthobs import Observability, Settings, observe
            from healthobs.asgi import Middleware
            obs = Observability(Settings(), log_stream=io.StringIO())
            @observe("work")
            def work(): ...
            async def app(scope, receive, send):
                work()
                await send({"type": "http.response.start", "status": 200, "headers": []})
                await send({"type": "http.response.body", "body": b"ok"})
            async def send(message): ...
            scope = {"type": "http", "method": "GET", "path": "/", "headers": []}
            asyncio.run(Middleware(app, obs)(scope, send, send))
            labels = {"operation": "work", "outcome": "ok"}
            print(obs.metrics.registry.get_sample_value("healthobs_operations_total", labels))
        """
        done = subprocess.run(
            [sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, check=True
        )
        assert done.stdout == "1.0\n"
