"""Replicas on one database: they start together, and one that is killed leaves no payment twice, none without its audit entry."""

from __future__ import annotations

import json
import os
import select
import signal
import sqlite3
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import pytest
import urllib3

from healthobs.audit.command import main as audit
from reference_services.demo import cluster
from reference_services.demo.ports import reserved_ports
from reference_services.services import SERVICES

PAYER = cluster.Identity("payer", ("payment:write", "payment:read"), ("billing",))
KEYS = 40
GIVE_UP_SECONDS = 90

pytestmark = [pytest.mark.server, pytest.mark.timeout(300)]


class Replicas:
    """auth-service, and two payment-gateways that share folder, database, keys and audit trail.

    Args:
        base: An empty folder.
        ports: Three.
        server: Where database and trail are in PostgreSQL.
    """

    def __init__(self, base: Path, ports: list[int], server: Any = None) -> None:
        self.urls = [f"http://127.0.0.1:{port}" for port in ports]
        self.environment = cluster.environment_of(base, {"auth-service": self.urls[0]}, "", (PAYER,))
        self.environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT")
        self.folder = base / "payments"
        self.server, self.stores = server, {} if server is None else stores(server)
        self.trail = self.stores.get("AUDIT_DATABASE_URL", str(self.folder / "payment_gateway.audit.db"))
        self.auth = cluster.start("auth-service", self.urls[0], base / "auth", self.environment)
        self.gateways = [self.start(number) for number in (1, 2)]
        self.pool = urllib3.PoolManager(retries=False, timeout=20.0, maxsize=16)

    def start(self, number: int) -> cluster.Service:
        """Start a replica."""
        environment = {**self.environment, **self.stores}
        return cluster.start("payment-gateway", self.urls[number], self.folder, environment)

    def token(self) -> str:
        """Return an access token of the payer."""
        headers = urllib3.make_headers(basic_auth=f"{PAYER.client_id}:{PAYER.secret}")
        answer = self.pool.request(
            "POST", f"{self.urls[0]}/token", fields={"grant_type": "client_credentials"},
            encode_multipart=False, headers=headers,
        )  # fmt: skip
        return str(answer.json()["access_token"])

    def post(self, number: int, path: str, token: str, key: str, body: dict[str, Any]) -> Any:
        """Send a request to one replica; None when it is not there to answer."""
        headers = {
            "Authorization": f"Bearer {token}",
            "Idempotency-Key": key,
            "Content-Type": "application/json",
        }
        try:
            return self.pool.request(
                "POST", f"{self.urls[number]}{path}", body=json.dumps(body), headers=headers
            )
        except urllib3.exceptions.HTTPError:
            return None

    def rows(self, query: str) -> list[tuple[Any, ...]]:
        """Read the database of the two."""
        if self.server is not None:
            return list(self.server.execute(self.stores["DATABASE_URL"], query))
        with closing(sqlite3.connect(self.folder / "payment_gateway.db", timeout=20)) as connection:
            return connection.execute(query).fetchall()

    def entries(self) -> list[dict[str, Any]]:
        """Return what their trail holds."""
        if self.server is not None:
            bodies = self.server.execute(self.trail, "SELECT body FROM healthobs_audit.entry")
        else:
            with closing(sqlite3.connect(self.trail)) as connection:
                bodies = connection.execute("SELECT body FROM entry").fetchall()
        return [json.loads(body) for (body,) in bodies]

    def close(self) -> None:
        """Stop everything."""
        self.pool.clear()
        for service in (*self.gateways, self.auth):
            service.stop()


def stores(server: Any) -> dict[str, str]:
    """Return what puts a service's database and its trail into new ones of a PostgreSQL server."""
    return {variable: server.url(server.database()) for variable in ("DATABASE_URL", "AUDIT_DATABASE_URL")}


@pytest.fixture(params=["sqlite", "postgresql"])
def replicas(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Replicas]:
    """Two replicas and who issues their tokens."""
    server = request.getfixturevalue("postgres") if request.param == "postgresql" else None
    with reserved_ports(3) as ports:
        made = Replicas(tmp_path, ports, server)
        try:
            for service in (made.auth, *made.gateways):
                cluster.wait_ready(service)
            yield made
        finally:
            made.close()


def kill(service: cluster.Service) -> None:
    """Kill a service's master, and its workers, which would end what they have in hand; return when all are gone."""
    tasks = Path(f"/proc/{service.process.pid}/task").glob("*/children")
    workers = [os.pidfd_open(int(pid)) for task in tasks for pid in task.read_text().split()]
    assert workers
    service.process.kill()
    service.process.wait()
    for worker in workers:
        with suppress(ProcessLookupError):
            signal.pidfd_send_signal(worker, signal.SIGKILL)
        assert select.select([worker], [], [], GIVE_UP_SECONDS)[0]
        os.close(worker)


def test_a_killed_replica_charges_nobody_twice(
    replicas: Replicas, capsys: pytest.CaptureFixture[str]
) -> None:
    """Each key is sent to both until both have answered: one payment per key, balanced, audited, on a trail that verifies."""
    token = replicas.token()
    card = {"number": "4242424242424242", "exp_month": 12, "exp_year": 2040, "cvc": "123"}
    bill = {
        "amount": 100,
        "currency": "USD",
        "payment_method": replicas.post(1, "/tokens", token, "card", card).json()["id"],
    }
    answered = threading.Semaphore(0)

    def charge(work: tuple[int, int]) -> tuple[int, str]:
        key, number = work
        end = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < end:
            answer = replicas.post(number, "/charge", token, f"charge-{key}", bill)
            if answer is not None and answer.status == 201:
                answered.release()
                return key, str(answer.json()["id"])
            assert answer is None or answer.status in (409, 503), answer.data
            time.sleep(0.1)
        raise AssertionError("no answer in time")

    with ThreadPoolExecutor(12) as threads:
        charges = [threads.submit(charge, (key, number)) for key in range(KEYS) for number in (1, 2)]
        for _ in range(KEYS // 2):
            answered.acquire(timeout=GIVE_UP_SECONDS)
        kill(replicas.gateways[1])  # with requests in its hands
        replicas.gateways[1] = replicas.start(2)
        ids = {done.result() for done in charges}

    assert len(ids) == len({key for key, _ in ids}) == KEYS  # both replicas gave one answer per key
    payments = {payment for _, payment in ids}
    assert replicas.rows("SELECT status, COUNT(*) FROM payment GROUP BY status") == [("captured", KEYS)]
    assert {row[0] for row in replicas.rows("SELECT id FROM payment")} == payments
    assert replicas.rows("SELECT COUNT(*), SUM(minor) FROM ledger") == [(2 * KEYS, 0)]
    for service in (*replicas.gateways, replicas.auth):
        service.stop()
    charged = [entry for entry in replicas.entries() if entry["action"] == "payment.charge"]
    assert payments <= {entry["resource"]["id"] for entry in charged}
    assert audit(["verify", replicas.trail]) == 0


@pytest.mark.parametrize("database", ["sqlite", "postgresql"])
@pytest.mark.parametrize("name", SERVICES)
def test_replicas_start_together(
    tmp_path: Path, request: pytest.FixtureRequest, name: str, database: str
) -> None:
    """Three replicas of two workers that begin on nothing at all agree on tables and keys: each comes up."""
    with reserved_ports(3) as ports, urllib3.PoolManager(retries=False, timeout=5.0) as pool:
        environment = {**cluster.environment_of(tmp_path, {}, "", (PAYER,)), "WORKERS": "2"}
        environment.pop("OTEL_EXPORTER_OTLP_ENDPOINT")
        if database == "postgresql":
            server = request.getfixturevalue("postgres")
            environment |= {
                variable: server.url(server.database()) for variable in ("DATABASE_URL", "AUDIT_DATABASE_URL")
            }
        urls = [f"http://127.0.0.1:{port}" for port in ports]
        services = [cluster.start(name, url, tmp_path / name, environment) for url in urls]
        waiting, end = dict(zip(urls, services, strict=True)), time.monotonic() + GIVE_UP_SECONDS
        try:
            while waiting and time.monotonic() < end:
                for url, service in list(waiting.items()):
                    assert service.process.poll() is None, service.log_lines()[-20:]
                    with suppress(urllib3.exceptions.HTTPError):
                        if pool.request("GET", f"{url}/health").status == 200:
                            del waiting[url]
                time.sleep(0.1)
        finally:
            for service in services:
                service.stop()
    assert not waiting
    assert not [line for line in services[0].log_lines() if "Traceback" in line]
