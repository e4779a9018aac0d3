"""The container health check."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from healthobs.healthcheck import main


@pytest.fixture
def server() -> Iterator[str]:
    """Serve 200 on /health and 503 elsewhere."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 503)
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            del format, args

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{http.server_address[1]}"
        http.shutdown()
        thread.join()


class TestHealthcheck:
    """`python -m healthobs.healthcheck URL`."""

    def test_healthy(self, server: str) -> None:
        """A 200 exits 0."""
        assert main([f"{server}/health"]) == 0

    def test_unhealthy(self, server: str, capsys: pytest.CaptureFixture[str]) -> None:
        """Any other status exits 1 and names it."""
        assert main([f"{server}/readiness"]) == 1
        assert capsys.readouterr().err == "unhealthy: status 503\n"

    def test_nothing_listens(self, capsys: pytest.CaptureFixture[str]) -> None:
        """A refused connection exits 1 and names the error's type only."""
        assert main(["http://127.0.0.1:1/health"]) == 1
        assert capsys.readouterr().err == "unhealthy: ConnectionRefusedError\n"

    @pytest.mark.parametrize(
        "names", [("PORT",), ("OPS_PORT",), ("HEALTHOBS_OPS_PORT",), ("OPS_PORT", "PORT")]
    )
    def test_finds_the_port_itself(self, server: str, names: tuple[str, ...]) -> None:
        """Without a URL it asks on the ops port, else on the main one; 0 is no port."""
        first, *others = names
        port = server.rpartition(":")[2]
        environ = {"OPS_PORT": "0", "HOST": "0.0.0.0", **dict.fromkeys(others, "1"), first: port}
        assert main([], environ) == 0

    def test_asks_the_host_that_is_bound(self, server: str) -> None:
        """A service bound to one address is asked there."""
        assert main([], {"PORT": server.rpartition(":")[2], "HOST": "127.0.0.1"}) == 0

    @pytest.mark.parametrize("environ", [{}, {"PORT": "0", "OPS_PORT": "0"}, {"PORT": "eighty"}])
    def test_no_port_to_find(self, environ: dict[str, str]) -> None:
        """Without a URL and without a port it was called wrongly."""
        assert main([], environ) == 2

    @pytest.mark.parametrize(
        "arguments", [["https://127.0.0.1/health"], ["/health"], ["http://a", "http://b"]]
    )
    def test_called_wrongly(self, arguments: list[str]) -> None:
        """Anything but one plain-HTTP URL exits 2."""
        assert main(arguments) == 2
