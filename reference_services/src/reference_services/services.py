"""The manifest: which services there are and where their code is. Importing it imports none of them."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import import_module
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, cast

if TYPE_CHECKING:
    from flask import Flask

    from reference_services._kit import ServiceInfo


@dataclass(frozen=True, slots=True)
class Service:
    """Where one service is.

    Args:
        name: `service.name`.
        module: Package that `python -m` starts.
        prefix: Prefix of its metrics.
        port: Port it listens on by default.
    """

    name: str
    module: str
    prefix: str
    port: int

    @property
    def info(self) -> ServiceInfo:
        """The `INFO` of its `api` module."""
        return cast("ServiceInfo", self._api().INFO)

    @property
    def create_app(self) -> Callable[..., Flask]:
        """The `create_app(settings=None, *, obs=None, transport=None)` of its `api` module."""
        return cast("Callable[..., Flask]", self._api().create_app)

    def _api(self) -> Any:
        return import_module(f"{self.module}.api")


#: Every service by name, in the order in which they can start.
SERVICES: Mapping[str, Service] = MappingProxyType(
    {
        name: Service(name, f"reference_services.{prefix}", prefix, port)
        for name, prefix, port in (
            ("auth-service", "auth", 8085),
            ("synthetic-phi-service", "synthetic_phi", 8081),
            ("payment-gateway", "payment_gateway", 8082),
            ("phi-service", "phi", 8083),
            ("medical-device", "medical_device", 8084),
        )
    }
)
