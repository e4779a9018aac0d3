"""What a service is (`ServiceInfo`) and where it runs (`ServiceSettings`), read once from an injectable mapping.

The environment is never read at import, so two services can live in one process with settings of their own.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType

from healthobs import ConfigurationError, Settings

DEFAULT_ISSUER = "https://auth.healthobs.example"
DEFAULT_AUDIENCE = "healthobs-reference"
#: Peer name -> (variable with its base URL, port it has by default on the loopback address).
PEERS: Mapping[str, tuple[str, int]] = MappingProxyType(
    {
        "synthetic-phi-service": ("SYNTHETIC_PHI_URL", 8081),
        "payment-gateway": ("PAYMENT_GATEWAY_URL", 8082),
        "phi-service": ("PHI_SERVICE_URL", 8083),
        "medical-device": ("MEDICAL_DEVICE_URL", 8084),
        "auth-service": ("AUTH_SERVICE_URL", 8085),
    }
)
_MAPS = ("HEALTHOBS_AUDIT_SUBJECTS_FILE", "HEALTHOBS_AUDIT_SUBJECTS_URL")
_WHOLE_NUMBERS = (("PORT", 1, 65535), ("OPS_PORT", 0, 65535), ("WORKERS", 1, 64), ("THREADS", 1, 256))


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceInfo:
    """What a service is, independent of where it runs.

    Args:
        name: `service.name` and the `service` field of every body.
        title: Human name, used in OpenAPI.
        version: `service.version`.
        prefix: Prefix of its metrics.
        port: Port it listens on unless `$PORT` says otherwise.
        frameworks: Frameworks that its `Compliance` header names, in lower case.
        description: One sentence for `GET /` and OpenAPI.
        conf: HL7 v3 confidentiality of its answers by default (U L M N R V).
        audit: Whether it keeps an audit trail.
        break_glass: Whether care under break-glass goes on there while the trail is away.
        telemetry_keys: Names of log fields that redaction lets pass here, because their values are nobody's.
    """

    name: str
    title: str
    version: str
    prefix: str
    port: int
    frameworks: tuple[str, ...]
    description: str
    conf: str = "N"
    audit: bool = True
    break_glass: bool = False
    telemetry_keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceSettings:
    """Where and how one service runs.

    Args:
        host: Address to bind (`HOST`).
        port: Port to bind (`PORT`).
        ops_port: Port of probes and metrics that no busy worker delays (`OPS_PORT`, default `PORT` + 1000); 0 none.
        workers: gunicorn worker processes (`WORKERS`).
        threads: Threads of each worker (`THREADS`).
        data_dir: Folder of databases and key files (`HEALTHOBS_DATA_DIR`), made 0700 when missing.
        database_url: SQLAlchemy URL of the state (`DATABASE_URL`).
        peers: Base URL of each peer by name.
        issuer: Issuer that access tokens must name (`AUTH_ISSUER`).
        audience: Audience that access tokens must name (`AUTH_AUDIENCE`).
        observability: Settings of healthobs.
        environ: The mapping all of this was read from, for a service's own variables.
    """

    host: str
    port: int
    ops_port: int
    workers: int
    threads: int
    data_dir: Path
    database_url: str = field(repr=False)
    peers: Mapping[str, str]
    issuer: str
    audience: str
    observability: Settings
    environ: Mapping[str, str] = field(repr=False)

    @classmethod
    def from_env(cls, info: ServiceInfo, environ: Mapping[str, str] | None = None) -> ServiceSettings:
        """Read the settings of the service `info` from `environ` (default `os.environ`).

        Raises:
            ConfigurationError: With every problem found; variables are named, values are not echoed.
        """
        environ = MappingProxyType(dict(os.environ if environ is None else environ))
        problems = [
            f"{name} must be a whole number from {low} to {high}"
            for name, low, high in _WHOLE_NUMBERS
            if environ.get(name) and not _within(environ[name], low, high)
        ]
        if problems:
            raise ConfigurationError(*problems)
        data_dir = Path(environ.get("HEALTHOBS_DATA_DIR") or ".healthobs").absolute()
        port = int(environ.get("PORT") or info.port)
        ops_port = port + 1000 if port + 1000 <= 65535 else 0
        return cls(
            host=environ.get("HOST") or "127.0.0.1",
            port=port,
            ops_port=int(environ.get("OPS_PORT") or ops_port),
            workers=int(environ.get("WORKERS") or 1),
            threads=int(environ.get("THREADS") or 16),
            data_dir=data_dir,
            database_url=environ.get("DATABASE_URL") or f"sqlite:///{data_dir / info.prefix}.db",
            peers=MappingProxyType(
                {
                    peer: (environ.get(variable) or f"http://127.0.0.1:{port}").rstrip("/")
                    for peer, (variable, port) in PEERS.items()
                }
            ),
            issuer=environ.get("AUTH_ISSUER") or DEFAULT_ISSUER,
            audience=environ.get("AUTH_AUDIENCE") or DEFAULT_AUDIENCE,
            observability=_observability(info, environ, data_dir),
            environ=environ,
        )

    def file(self, variable: str, default_name: str) -> Path:
        """Return the path that `variable` names, else `default_name` in the data folder."""
        return Path(self.environ.get(variable) or self.data_dir / default_name)


def _within(text: str, low: int, high: int) -> bool:
    return text.isascii() and text.isdecimal() and low <= int(text[:9]) <= high


def _observability(info: ServiceInfo, environ: Mapping[str, str], data_dir: Path) -> Settings:
    """Switch on what every reference service shows: headers to all, endpoints, audit, root logging."""
    overrides: dict[str, object] = {
        "service_name": info.name,
        "service_version": info.version,
        "prefix": info.prefix,
        "frameworks": info.frameworks,
        "endpoints": True,
        "allowed_keys": info.telemetry_keys,
    }
    shown: dict[str, object] = {
        "headers": True,
        "audience": "all",
        "trace_response": True,
        "capture_stdlib": True,
        "max_stall_seconds": 60,
    }
    if info.break_glass and info.audit:  # care goes on while the trail is away, against this file
        shown |= {"audit_policy": "spool", "audit_spool_file": data_dir / f"{info.prefix}.audit.spool"}
    overrides |= {name: on for name, on in shown.items() if not environ.get(f"HEALTHOBS_{name.upper()}")}
    if info.audit:
        default_url = environ.get("AUDIT_DATABASE_URL") or f"sqlite:///{data_dir / info.prefix}.audit.db"
        url = environ.get("HEALTHOBS_AUDIT_DATABASE_URL") or default_url
        overrides["audit_database_url"] = url
        if not environ.get("HEALTHOBS_AUDIT_KEY_FILE"):
            default_key = data_dir / f"{info.prefix}.audit.key"
            overrides["audit_key_file"] = Path(environ.get("AUDIT_KEY_FILE") or default_key)
        if "hipaa" in info.frameworks and not any(map(environ.get, _MAPS)):
            in_file = url.startswith("sqlite:")
            if in_file:
                overrides["audit_subjects_file"] = data_dir / f"{info.prefix}.subjects.db"
            else:  # replicas that share an audit database share the map, in a schema of its own beside it
                overrides["audit_subjects_url"] = url
            if not in_file and not environ.get("HEALTHOBS_AUDIT_SUBJECTS_KEY_FILE"):
                overrides["audit_subjects_key_file"] = data_dir / f"{info.prefix}.subjects.key"
    return Settings.from_env(environ, **overrides)
