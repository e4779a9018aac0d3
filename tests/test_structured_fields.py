"""The headers of every kind of answer read by an independent RFC 9651 parser, `http-sf`."""

from __future__ import annotations

import io
from collections.abc import Iterator
from typing import Any

import http_sf
import pytest
from flask import Flask

from healthobs import Observability, Settings, audited, classified
from healthobs.audit import open_trail
from healthobs.flask import init_app, remove_app


@pytest.fixture
def client(tmp_path: Any) -> Iterator[Any]:
    """A service with every header of its own."""
    settings = Settings(
        service_name="svc", headers=True, audience="all", frameworks=("hipaa", "fda-21cfr11"),
        endpoints=True, control_interval_seconds=0,
    )  # fmt: skip
    trail = open_trail(f"sqlite:///{tmp_path / 'a.db'}", service="svc")
    obs = Observability(settings, log_stream=io.StringIO(), audit=trail)
    app = Flask("svc")

    @app.get("/patients/<name>")
    @classified(conf="R", purpose=("TREAT", "HPAYMT"), frameworks=("hipaa",))
    @audited("patient.read")
    def patient(name: str) -> dict[str, str]:
        return {}

    init_app(app, obs)
    yield app.test_client()
    remove_app(app)
    obs.close()
    trail.close()


@pytest.mark.parametrize("path", ["/patients/7", "/none", "/health", "/compliance/status"])
def test_headers_are_structured_fields(client: Any, path: str) -> None:
    """Each of them parses as a dictionary, on answers of every kind."""
    answer = client.get(path)
    found = {
        name: http_sf.parse(answer.headers[name].encode(), tltype="dictionary")
        for name in ("Compliance", "Data-Classification", "Data-Handling", "Audit-Receipt")
        if name in answer.headers
    }
    assert ("Audit-Receipt" in found) == (path == "/patients/7")
    assert {"Compliance", "Data-Classification", "Data-Handling"} <= found.keys()
    assert str(found["Data-Classification"]["conf"][0]) == ("R" if path == "/patients/7" else "N")  # type: ignore[index]


def test_the_parser_can_fail() -> None:
    """What is no structured field is refused."""
    with pytest.raises(ValueError):
        http_sf.parse(b'frameworks=("hipaa"', tltype="dictionary")
