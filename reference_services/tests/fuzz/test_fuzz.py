"""Schemathesis against the five running services: it finds five planted bugs, and nothing else."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path

import pytest
import urllib3

from reference_services.demo.cluster import Identity, Service, running
from reference_services.services import SERVICES

pytestmark = [pytest.mark.server, pytest.mark.timeout(600)]
CONFIG = Path(__file__).with_name("schemathesis.toml")
SCOPES = (
    *("patient:read", "patient:write", "payment:read", "payment:write", "payment:approve"),
    *("device:read", "device:write", "device:sign", "audit:read", "compliance:read"),
)
FUZZER = Identity("fuzzer", SCOPES, ("clinician",))
#: Each bug, what it is planted in, and the check that must report it.
BUGS = {
    "bug-crash": ("synthetic-phi-service", "Server error"),
    "bug-wrong-schema": ("synthetic-phi-service", "Response violates schema"),
    "bug-undocumented-status": ("synthetic-phi-service", "Undocumented status code"),
    "bug-wrong-content-type": ("synthetic-phi-service", "Undocumented Content-Type"),
    "bug-accepts-anything": ("synthetic-phi-service", "Schema-violating request accepted"),
}


def token_of(auth: Service) -> str:
    """Return an access token with every scope."""
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        answer = pool.request(
            "POST",
            f"{auth.url}/token",
            fields={
                "grant_type": "client_credentials",
                "client_id": FUZZER.client_id,
                "client_secret": FUZZER.secret,
            },
            encode_multipart=False,
        )
    assert answer.status == 200
    return str(answer.json()["access_token"])


def fuzz(service: Service, token: str, folder: Path, examples: int) -> subprocess.CompletedProcess[str]:
    """Run the fuzzer against one service and return how it ended."""
    command = (
        *(
            sys.executable,
            "-m",
            "schemathesis.cli",
            "--config-file",
            str(CONFIG),
            "run",
            f"{service.url}/openapi.json",
        ),
        *("--checks", "all", "--max-examples", str(examples)),
        *(
            "--seed",
            "20261123",
            "--workers",
            "1",  # the fuzzer parses code, which CPython 3.11 cannot do in two threads (gh-106905)
            "--suppress-health-check",
            "all",
            "--phases",
            "examples,coverage,fuzzing,stateful",
        ),
        *("--request-timeout", "20", "--warnings", "off"),
    )
    environment = {name: value for name, value in os.environ.items() if name in ("PATH", "HOME", "LANG")}
    environment["FUZZ_TOKEN"] = token
    environment["FUZZ_CLIENT"] = b64encode(f"{FUZZER.client_id}:{FUZZER.secret}".encode()).decode()
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Service]]:
    """Run the five services, healthy."""
    with running(tmp_path_factory.mktemp("cluster"), "", (FUZZER,), {}) as services:
        yield services


class TestSilence:
    """Nothing is found in the services as they are."""

    @pytest.mark.parametrize("name", SERVICES)
    def test_nothing_is_found(self, cluster: dict[str, Service], name: str, tmp_path: Path) -> None:
        """Every check of the fuzzer holds for every operation of the service."""
        done = fuzz(cluster[name], token_of(cluster["auth-service"]), tmp_path, examples=40)
        assert done.returncode == 0, done.stdout[-6000:] + done.stderr[-2000:]

    @pytest.mark.parametrize("name", SERVICES)
    def test_operations_were_tested(self, cluster: dict[str, Service], name: str) -> None:
        """The document that the fuzzer reads describes every route of the service."""
        with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
            document = json.loads(pool.request("GET", f"{cluster[name].url}/openapi.json").data)
        shared = {
            "/",
            "/openapi.json",
            "/health",
            "/readiness",
            "/metrics",
            "/compliance/status",
            "/audit/trail",
        }
        assert set(document["paths"]) > shared


class TestPlantedBugs:
    """The fuzzer's silence means something: it reports each planted bug by its kind."""

    @pytest.mark.parametrize("bug", BUGS)
    def test_found(self, bug: str, tmp_path: Path) -> None:
        """A bug planted from outside is reported as what it is."""
        name, title = BUGS[bug]
        folder = tmp_path / "planted"
        folder.mkdir()
        (folder / "sitecustomize.py").write_text(
            f"from reference_services.demo.planted import plant\n\nplant({bug!r})\n"
        )
        extra = {name: {"PYTHONPATH": str(folder)}}
        base = tmp_path / "cluster"
        base.mkdir()
        with running(base, "", (FUZZER,), extra) as services:
            done = fuzz(services[name], token_of(services["auth-service"]), tmp_path, examples=20)
        assert done.returncode == 1, done.stdout[-3000:]
        assert title in done.stdout
