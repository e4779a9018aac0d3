"""uvicorn: a stop under load loses no request of a client that honours readiness, and no span."""

from __future__ import annotations

from pathlib import Path

import pytest

from live_servers import Collector, serving, stop_under_load

pytestmark = pytest.mark.server

APP = """
import asyncio
from fastapi import FastAPI
from healthobs import Observability, Settings
from healthobs.asgi import init_app

obs = Observability(Settings.from_env(service_name="svc", log_level="critical"))

api = FastAPI()

@api.get("/slow")
async def slow():
    await asyncio.sleep(0.3)
    return "done"

app = init_app(api, obs)
"""
LINE = ["-m", "uvicorn", "app:app", "--port", "PORT", "--log-level", "warning", "--no-access-log"]


@pytest.mark.parametrize("planted", [False, True])
def test_a_stop_loses_no_request_and_no_span(tmp_path: Path, planted: bool) -> None:
    """Clients that honour readiness see no error and each answer has its span; planted: no drain."""
    (tmp_path / "app.py").write_text(APP)
    with Collector() as collector:
        environ = {
            "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
            "OTEL_BSP_SCHEDULE_DELAY": "60000",
            "HEALTHOBS_DRAIN_DELAY_SECONDS": "0" if planted else "2",
            "HEALTHOBS_OPS_PORT": "OPS",
        }
        with serving(tmp_path, LINE, **environ) as server:
            assert server.get("/readiness", ops=True).json()["ready"]
            clients, took = stop_under_load(server)
        assert (clients.errors != []) == planted
        assert len(clients.traces) > 30
        if not planted:
            assert 2.0 <= took < 10.0
            assert clients.traces - set(collector.spans) == set()
