"""A service made of whatever routes a test adds."""

from __future__ import annotations

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from healthobs import Observability
from reference_services._kit import Kit, ServiceInfo, ServiceSettings
from service_world import ClosingClient

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


class Bench:
    """A service made of whatever routes a test adds, with its signals at hand."""

    def __init__(self, folder: Path, *, transport: Mapping[str, WSGIApplication] | None = None) -> None:
        self.info = ServiceInfo(
            name="bench-service",
            title="Bench",
            version="1.2.3",
            prefix="bench",
            port=8099,
            frameworks=("hipaa",),
            description="A service for tests.",
        )
        environ = {
            "HEALTHOBS_DATA_DIR": str(folder),
            "HEALTHOBS_CONTROL_INTERVAL_SECONDS": "0",
            "HEALTHOBS_CAPTURE_STDLIB": "false",
        }
        self.settings = ServiceSettings.from_env(self.info, environ)
        self.log = io.StringIO()
        self.spans = InMemorySpanExporter()
        folder.mkdir(parents=True, exist_ok=True)
        self.obs = Observability(
            self.settings.observability,
            span_exporters=[self.spans],
            simple_spans=True,
            log_stream=self.log,
        )
        self.kit = Kit(self.info, self.settings, obs=self.obs, transport=transport)

    def client(self) -> Any:
        """Finish the service and return a test client of it."""
        app = self.kit.finish()
        app.test_client_class = ClosingClient
        return app.test_client()

    def log_lines(self) -> list[dict[str, Any]]:
        """Return what the service has logged."""
        return [json.loads(line) for line in self.log.getvalue().splitlines()]

    def close(self) -> None:
        """Close the service."""
        self.kit.close()
        self.obs.close()
