"""Requests in flight that get on, or do not: the watchdog of stalls."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st
from tests.healthy import Time

from healthobs import Observability, Settings
from healthobs.health import Progress


class TestProgress:
    """The stall watchdog."""

    @given(st.lists(st.tuples(st.sampled_from("bace"), st.integers(0, 3), st.integers(0, 40)), max_size=40))
    def test_against_a_model(self, steps: list[tuple[str, int, int]]) -> None:
        """It fails exactly when something is in flight and nothing has begun, sent or ended for too long."""
        ticking = Time()
        progress = Progress(60, ticking.clock())
        open_: dict[int, float] = {}
        last = 0.0
        for what, key, wait in steps:
            ticking.elapsed += wait
            if what == "b":
                progress.begin(key)
                open_[key] = ticking.elapsed
            elif what == "a":
                progress.advance()
                last = ticking.elapsed
            elif what == "e":
                progress.end(key)
                open_.pop(key, None)
                last = ticking.elapsed
            stalled = bool(open_) and ticking.elapsed - max(last, min(open_.values())) > 60
            assert progress.check() is not stalled

    def test_a_request_that_hangs_fails_liveness(self) -> None:
        """Through the middleware: a silent request is a stall, one that sends chunks is not."""
        from healthobs.wsgi import Middleware

        ticking = Time()
        obs = Observability(
            Settings(max_stall_seconds=60, log_level="critical"), clock=ticking.clock(), span_exporters=[]
        )
        seen: list[int] = []

        def app(environ: Any, start_response: Any) -> Any:
            ticking.elapsed += 50
            seen.append(obs.health.liveness()[0])
            start_response("200 OK", [])
            for _ in range(3):
                yield b"chunk"
                ticking.elapsed += 50
                seen.append(obs.health.liveness()[0])
            ticking.elapsed += 11
            seen.append(obs.health.liveness()[0])

        environ = {"PATH_INFO": "/x", "REQUEST_METHOD": "GET", "wsgi.url_scheme": "http"}
        body = Middleware(app, obs)(environ, lambda *_args: lambda _data: None)
        assert b"".join(body) == b"chunk" * 3
        assert seen == [200, 200, 200, 200, 503]
        body.close()  # type: ignore[attr-defined]
        ticking.elapsed += 100
        assert obs.health.liveness()[0] == 200
        obs.close()
