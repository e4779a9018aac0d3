"""Checks that come by themselves, and the one that asks another service."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from tests.audit_trails import READ, copied, put_back

from healthobs import Observability, Settings, use
from healthobs.health import Unreachable, http_dependency
from healthobs.testing import Capture


class TestHttpDependency:
    """`http_dependency`."""

    @pytest.fixture
    def peer(self) -> Iterator[str]:
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"  # keeps the connection until the caller closes it

            def do_GET(self) -> None:
                self.send_response(200 if self.path == "/well/health" else 503)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                del format, args

        with HTTPServer(("127.0.0.1", 0), Handler) as http:
            thread = threading.Thread(target=http.serve_forever, args=(0.02,), daemon=True)
            thread.start()
            yield f"http://127.0.0.1:{http.server_address[1]}"
            http.shutdown()
            thread.join()

    @pytest.mark.parametrize(
        ("path", "critical", "expected"),
        [
            ("/well", False, (200, "ready")),
            ("/ill", False, (200, "degraded")),
            ("/ill", True, (503, "not_ready")),
        ],
    )
    def test_asks_for_health(
        self, capture: Capture, peer: str, *, path: str, critical: bool, expected: tuple[int, str]
    ) -> None:
        """It asks the peer's `/health`; a peer that is ill degrades, and only a critical one decides."""
        health = capture.obs.health
        health.ready()
        health.readiness()
        http_dependency("auth-service", peer + path, critical=critical)
        status, body = health.readiness()
        assert (status, body["checks"]["auth_service"]) == expected

    def test_not_critical_by_default(self, peer: str) -> None:
        """Unless told otherwise, another service's illness is no reason to be out of service."""
        with use(Observability(Settings(disabled=True))) as obs:
            http_dependency("auth-service", f"{peer}/ill/")
            obs.health.ready()
            assert obs.health.readiness()[1]["checks"]["auth_service"] == "degraded"

    def test_https_is_tls(self, peer: str) -> None:
        """A peer that is to be asked over TLS, and speaks plainly, is not well."""
        with use(Observability(Settings(disabled=True))):
            check = http_dependency("auth-service", f"{peer.replace('http', 'https')}/well", critical=True)
        with pytest.raises(Unreachable):
            check()

    def test_nobody_there(self) -> None:
        """A refused connection is a bad answer, not an error."""
        with use(Observability(Settings(disabled=True))):
            check = http_dependency("auth-service", "http://127.0.0.1:1", critical=True)
        with pytest.raises(Unreachable):
            check()


class TestBuiltinChecks:
    """Which checks come by themselves."""

    def test_by_signal(self, tmp_path: Any) -> None:
        """Metrics and tracing always; the audit trail where there is one; each can be left out by name."""
        plain = Observability(Settings())
        audited = Observability(Settings(audit_database_url=f"sqlite:///{tmp_path / 'a.db'}"))
        fewer = Observability(Settings(builtin_checks=("metrics",)))
        assert [sorted(obs.health.snapshot()) for obs in (plain, audited, fewer)] == [
            ["metrics", "tracing"],
            ["audit_trail", "metrics", "tracing"],
            ["metrics"],
        ]
        assert audited.health.facts()["audit_trail"].critical
        assert not audited.health.facts()["metrics"].critical
        for obs in (plain, audited, fewer):
            obs.close()

    def test_trail_that_went_back(self, tmp_path: Path) -> None:
        """While the trail's database is older than what this process wrote, the service is not ready."""
        path = tmp_path / "a.db"
        with closing(Observability(Settings(audit_database_url=f"sqlite:///{path}"))) as obs:
            assert obs.audit is not None
            obs.audit.append(READ)
            old = copied(path, tmp_path / "old")
            obs.audit.append(READ)
            put_back(old, path)
            obs.health.ready()
            status, told = obs.health.readiness()
            assert (status, told["checks"]["audit_trail"]) == (503, "not_ready")

    def test_care_goes_on_without_the_trail(self, tmp_path: Any) -> None:
        """Under the policy `spool` a trail that is away leaves a service ready: out of traffic it would serve no care either."""
        url, file = f"sqlite:///{tmp_path / 'a.db'}", tmp_path / "spool"
        with closing(
            Observability(Settings(audit_database_url=url, audit_policy="spool", audit_spool_file=file))
        ) as obs:
            assert not obs.health.facts()["audit_trail"].critical
