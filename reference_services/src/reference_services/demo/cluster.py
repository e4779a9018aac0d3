"""Starts the five services as an operator would: a process each, under gunicorn, on free loopback ports.

Each service gets a data directory of its own; its standard output (the JSON log lines) goes to a file.
"""

from __future__ import annotations

import json
import os
import secrets
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path

import urllib3

from reference_services._kit import ServiceSettings, witnessing
from reference_services.demo.ports import reserved_ports
from reference_services.services import SERVICES

START_TIMEOUT_SECONDS = 60.0
STOP_TIMEOUT_SECONDS = 15.0
#: The environment variable that tells every service where the named one listens.
PEER_VARIABLES = {
    "synthetic-phi-service": "SYNTHETIC_PHI_URL",
    "payment-gateway": "PAYMENT_GATEWAY_URL",
    "phi-service": "PHI_SERVICE_URL",
    "medical-device": "MEDICAL_DEVICE_URL",
    "auth-service": "AUTH_SERVICE_URL",
}


@dataclass(frozen=True, slots=True)
class Identity:
    """An OAuth client of the demo: who it is, what it may do, and its secret of this run."""

    client_id: str
    scopes: tuple[str, ...]
    roles: tuple[str, ...]
    secret: str = field(default_factory=lambda: secrets.token_urlsafe(32), repr=False)


@dataclass(slots=True)
class Service:
    """One running service."""

    name: str
    url: str
    data_dir: Path
    log_path: Path
    process: subprocess.Popen[bytes]
    environment: dict[str, str] = field(repr=False)

    @property
    def audit_path(self) -> Path:
        """The SQLite file of the service's audit trail."""
        return self.data_dir / f"{SERVICES[self.name].prefix}.audit.db"

    def log_lines(self) -> list[str]:
        """Return the lines written to standard output so far."""
        return self.log_path.read_text(encoding="utf-8", errors="replace").splitlines()

    def stop(self) -> None:
        """Ask the master to stop gracefully, then wait; kill it only when it does not."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(STOP_TIMEOUT_SECONDS)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(STOP_TIMEOUT_SECONDS)

    def restart(self, meanwhile: Callable[[Service], object] | None = None) -> None:
        """Stop it, call `meanwhile`, start it again and wait until it is ready."""
        self.stop()
        if meanwhile is not None:
            meanwhile(self)
        self.process = start(self.name, self.url, self.data_dir, self.environment).process
        wait_ready(self)


class StartError(Exception):
    """A service did not become ready; carries the end of its output."""


def environment_of(
    base: Path, urls: Mapping[str, str], otlp_url: str, identities: Iterable[Identity]
) -> dict[str, str]:
    """Return the environment of every service; `identities` are put into a file for auth-service."""
    clients = base / "clients.json"
    clients.touch(mode=0o600)
    clients.write_text(json.dumps([registration(identity) for identity in identities]), encoding="utf-8")
    kept = {
        name: os.environ[name]
        for name in ("PATH", "HOME", "LANG", "COVERAGE_PROCESS_CONFIG", "PYTHONPATH")
        if name in os.environ
    }
    return {
        **kept,
        **{PEER_VARIABLES[name]: url for name, url in urls.items()},
        "OTEL_EXPORTER_OTLP_ENDPOINT": otlp_url,
        "AUTH_CLIENTS_FILE": str(clients),
        "PYTHONUNBUFFERED": "1",
        "TMPDIR": str(base),
    }


@contextmanager
def running(
    base: Path, otlp_url: str, identities: tuple[Identity, ...], extra: Mapping[str, Mapping[str, str]]
) -> Iterator[dict[str, Service]]:
    """Start all five services, wait until each is ready, stop them at the end.

    Args:
        base: An empty directory for data, logs and keys.
        otlp_url: Where spans go (OTLP/HTTP base URL).
        identities: The OAuth clients that auth-service is to know.
        extra: More environment variables by service name; ``*`` means every service.

    Raises:
        StartError: A service exited or was not ready within a minute.
    """
    with reserved_ports(len(SERVICES)) as ports:
        urls = {name: f"http://127.0.0.1:{port}" for name, port in zip(SERVICES, ports, strict=True)}
        environment = environment_of(base, urls, otlp_url, identities)
        environment["WITNESSES_FILE"] = str(introduced(base))
        services: dict[str, Service] = {}
        try:
            for name, url in urls.items():
                more = {**extra.get("*", {}), **extra.get(name, {})}
                services[name] = start(name, url, base / name, {**environment, **more})
            for service in services.values():
                wait_ready(service)
            yield services
        finally:
            with ThreadPoolExecutor(len(SERVICES)) as pool:
                list(pool.map(Service.stop, services.values()))


def introduced(base: Path) -> Path:
    """Write the public keys of all logs and witnesses, by which the services witness each other, and return the file."""
    known = base / "witnesses.json"
    settings = {
        name: ServiceSettings.from_env(service.info, {"HEALTHOBS_DATA_DIR": str(base / name)})
        for name, service in SERVICES.items()
    }
    vkeys = {name: witnessing.public_keys(SERVICES[name].info, where) for name, where in settings.items()}
    known.write_text(json.dumps(vkeys), encoding="utf-8")
    return known


def registration(identity: Identity) -> dict[str, object]:
    """Return what auth-service is to know of a client."""
    return {
        "client_id": identity.client_id,
        "secret_sha256": sha256(identity.secret.encode()).hexdigest(),
        "scopes": list(identity.scopes),
        "roles": list(identity.roles),
    }


def start(name: str, url: str, data_dir: Path, environment: dict[str, str]) -> Service:
    """Start a service, or another replica of it, on the port of `url`."""
    data_dir.mkdir(exist_ok=True)
    log_path = data_dir.with_suffix(".log")
    port = url.rpartition(":")[2]
    with log_path.open("ab") as output:
        process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            [sys.executable, "-m", SERVICES[name].module],
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**environment, "PORT": port, "OPS_PORT": "0", "HEALTHOBS_DATA_DIR": str(data_dir)},
            cwd=data_dir,
        )
    return Service(name, url, data_dir, log_path, process, environment)


def wait_ready(service: Service) -> None:
    """Wait until a service is ready.

    Raises:
        StartError: It exited or was not ready within a minute.
    """
    deadline = time.monotonic() + START_TIMEOUT_SECONDS
    with urllib3.PoolManager(retries=False, timeout=2.0) as pool:
        while time.monotonic() < deadline:
            if service.process.poll() is not None:
                raise StartError(f"{service.name} exited:\n" + "\n".join(service.log_lines()[-20:]))
            try:
                if pool.request("GET", f"{service.url}/readiness").status == 200:
                    return
            except urllib3.exceptions.HTTPError:
                pass
            time.sleep(0.05)
    raise StartError(f"{service.name} was not ready in time:\n" + "\n".join(service.log_lines()[-20:]))
