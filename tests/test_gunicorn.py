"""gunicorn: the command line that is run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from healthobs import _runtime, gunicorn
from healthobs.exceptions import ConfigurationError


class TestCommand:
    """`command`."""

    def test_line(self) -> None:
        """gthread, no preload, our hooks, no control socket, no access log of its own."""
        line = gunicorn.command("app:create_app()", host="127.0.0.1", port=8080, workers=2, threads=8)
        text = " ".join(line[1:])
        assert "--worker-class gthread --workers 2 --threads 8" in text
        assert "--bind 127.0.0.1:8080" in text
        assert "python:healthobs.gunicorn" in text
        assert "--no-control-socket" in text
        assert "preload" not in text
        assert "access" not in text

    @pytest.mark.parametrize("wrong", [{"workers": 0}, {"threads": 0}, {"port": 0}, {"port": 65536}])
    def test_ranges(self, wrong: dict[str, int]) -> None:
        """Numbers out of range are refused before anything starts."""
        with pytest.raises(ConfigurationError):
            gunicorn.command("app:app", **{"host": "127.0.0.1", "port": 1, **wrong})  # type: ignore[arg-type]


class TestHooks:
    """The hooks that gunicorn calls; the others: `test_lifecycle`."""

    def test_several_workers_need_the_directory(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Workers that would count apart refuse to start."""
        monkeypatch.delenv("PROMETHEUS_MULTIPROC_DIR", raising=False)
        monkeypatch.setattr(_runtime.process, "board", None)
        gunicorn.on_starting(SimpleNamespace(cfg=SimpleNamespace(workers=1)))
        with pytest.raises(ConfigurationError, match="PROMETHEUS_MULTIPROC_DIR"):
            gunicorn.on_starting(SimpleNamespace(cfg=SimpleNamespace(workers=2)))

    @pytest.mark.parametrize(
        ("reader", "ends"),
        [
            (None, False),
            (SimpleNamespace(length=0), False),
            (SimpleNamespace(length=64 * 1024 - 1), False),
            (SimpleNamespace(length=64 * 1024), True),
            (SimpleNamespace(parser=None), False),
            (SimpleNamespace(parser=iter(())), True),
        ],
    )
    def test_a_long_body_left_unread_ends_the_connection(self, reader: Any, *, ends: bool) -> None:
        """The answer announces it, as long as more is unread than gunicorn throws away; see `test_gunicorn_connections`."""
        request = SimpleNamespace(body=SimpleNamespace(reader=reader), should_close=lambda: False)
        gunicorn.pre_request(None, request)
        assert request.should_close() is ends
        if ends:
            reader.length = 0  # read after all
            assert not request.should_close()
            reader.length = 64 * 1024
            request = SimpleNamespace(body=SimpleNamespace(reader=reader), should_close=lambda: True)
            gunicorn.pre_request(None, request)
            reader.length = 0
            assert request.should_close()

    def test_a_request_of_another_kind_is_left_alone(self) -> None:
        """HTTP/2 requests have no connection of their own."""
        request = SimpleNamespace()
        gunicorn.pre_request(None, request)
        assert vars(request) == {}
