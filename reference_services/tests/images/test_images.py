"""Every service's image, built from the one Dockerfile and run by a real engine as a cluster would run it."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from posixpath import normpath

import container_engine
import pytest
from container_engine import Engine

from reference_services.services import SERVICES

ROOT = Path(__file__).parents[3]
DOCKERFILE = (ROOT / "deploy/docker/Dockerfile").read_text(encoding="utf-8")
MODULES = {name: service.module.rpartition(".")[2] for name, service in SERVICES.items()}
#: As deploy/kubernetes would run it: nothing can be written to but memory and the volume, no capability is held.
HARDENED = (
    "--read-only",
    "--network=none",
    "--cap-drop=ALL",
    "--security-opt=no-new-privileges",
    "--memory=256m",
)
#: What a virtual environment has beside its packages.
SKELETON = re.compile(
    r"venv/(pyvenv\.cfg|lib64|healthcheck\.py|\.gitignore|bin/(python[0-9.]*|activate[.a-z]*|Activate\.ps1))"
)
#: Runs inside the container, where there is no shell: prints who it is, what it may write and what is answered.
LOOK = """
import json, os, urllib.error, urllib.request
def writable(path):
    try:
        open(os.path.join(path, "probe"), "w").close()
    except OSError:
        return False
    return True
def asked(path):
    try:
        answer = urllib.request.urlopen("http://127.0.0.1:8080" + path, timeout=5)
    except urllib.error.HTTPError as refused:
        answer = refused
    with answer:
        return json.load(answer)
print(json.dumps({
    "uid": os.getuid(),
    "written": [path for path in ("/", "/venv", "/usr") if writable(path)],
    "service": asked("/")["service"],
    "status": asked("/health")["status"],
    "unready": [name for name, word in asked("/readiness")["checks"].items() if word != "ready"],
}))
"""

#: Those that are alone in their container and have nobody to give them keys for tokens.
KEYLESS = ("payment-gateway", "phi-service", "medical-device")

pytestmark = [pytest.mark.deep, pytest.mark.timeout(900)]


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    """A running engine that holds the stand-ins for both base images; gone without a trace afterwards."""
    reason = container_engine.why_not()
    must = os.environ.get("HEALTHOBS_MUST_HAVE_SERVERS")
    if reason is not None:
        assert not must, reason
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="images-", dir="/tmp"))
    running = Engine(folder)
    try:
        if not running.ready():
            assert not must, "dockerd does not run on this machine"
            pytest.skip(f"dockerd does not run on this machine: {running.log()}")
        running.import_bases(_wheels(folder))
        yield running
    finally:
        running.close()
        shutil.rmtree(folder)


def _wheels(folder: Path) -> Path:
    """Return a folder with the wheels of the lock, which the build then needs no network for."""
    python = container_engine.BASE / "bin" / container_engine.PYTHON
    wheels = folder / "wheels"
    lock = ROOT / "requirements/run.lock"
    subprocess.run(
        [python, "-m", "pip", "download", "--quiet", "--require-hashes", "--only-binary=:all:", "-r", lock, "-d", wheels],
        check=True, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    return wheels


def built(engine: Engine, module: str, dockerfile: str = DOCKERFILE) -> str:
    """Build an image and return its id; the context is the repository's."""
    with tempfile.NamedTemporaryFile("w", suffix=".Dockerfile", encoding="utf-8") as recipe:
        recipe.write(dockerfile)
        recipe.flush()
        done = engine.run(
            "build", "--quiet", "--file", recipe.name, "--build-arg", f"SERVICE={module}", str(ROOT)
        )
    return done.stdout.decode().strip()


def findings(engine: Engine, image: str, service: str) -> list[str]:
    """Run an image hardened, stop it, look into its layers, and return what is wrong."""
    found = ["runs as root"] if engine.inspect(image)["Config"]["User"] in ("", "0", "0:0", "root") else []
    options = ("--health-interval=1s", "--health-start-period=1s", *HARDENED)
    container = engine.run("run", "--detach", *options, image).stdout.decode().strip()
    if not _healthy(engine, container):
        found.append("never healthy")
    looked = engine.run("exec", container, "/venv/bin/python", "-c", LOOK, check=False)
    seen = json.loads(looked.stdout) if looked.returncode == 0 else {}
    # One that was never ready is starting.
    unready = ["token_keys", "lifecycle"] if service in KEYLESS else []
    if seen != {"uid": 65532, "written": [], "service": service, "status": "healthy", "unready": unready}:
        found.append("does not answer as it should")
    engine.run("stop", "--time", "30", container)
    if engine.inspect(container)["State"]["ExitCode"] != 0:
        found.append("does not end with status 0")
    engine.run("rm", "--volumes", container)
    return [*found, *(f"holds {name}" for name in foreign_files(engine, image))]


def _healthy(engine: Engine, container: str, seconds: float = 30) -> bool:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        state = engine.inspect(container)["State"]
        if state["Health"]["Status"] == "healthy":
            return True
        if not state["Running"]:
            return False
        time.sleep(0.3)
    return False


def foreign_files(engine: Engine, image: str) -> list[str]:
    """Return the files of the layers that are neither a virtual environment's nor recorded by a package."""
    files = engine.layer_files(image)
    ours: set[str] = set()
    for record in (name for name in files if name.endswith(".dist-info/RECORD")):
        packages = record.rpartition("/")[0].rpartition("/")[0]
        rows = csv.reader(io.StringIO(files[record].decode()))
        ours |= {normpath(f"{packages}/{row[0]}") for row in rows}
    return [
        name
        for name in sorted(files)
        if name not in ours and re.sub(r"__pycache__/(\w+)\.cpython-\d+\.pyc", r"\1.py", name) not in ours
        and not SKELETON.fullmatch(name)
    ]  # fmt: skip


@pytest.mark.parametrize("service", SERVICES)
def test_an_image_runs_hardened(engine: Engine, service: str) -> None:
    """No root user, a root file system that nothing can write to, healthy, answering, ended with 0, nothing foreign."""
    image = built(engine, MODULES[service])
    assert findings(engine, image, service) == []


#: Planted fault -> text of the Dockerfile, what stands there instead, what is to be found.
PLANTED = {
    "root": (  # which without its capabilities cannot even write where another user may
        "USER 65532:65532",
        "USER 0:0",
        ["runs as root", "never healthy", "does not answer as it should", "does not end with status 0"],
    ),
    "secret": (
        "COPY --from=build /venv /venv\n",
        "COPY --from=build /venv /venv\nCOPY requirements/run.lock /venv/lib/signing.pem\n",
        ["holds venv/lib/signing.pem"],
    ),
    "healthcheck": (
        '"/venv/healthcheck.py"]',
        '"/venv/healthcheck.py", "http://127.0.0.1:8081/health"]',
        ["never healthy"],
    ),
    "stop": ("ENTRYPOINT", "STOPSIGNAL SIGKILL\nENTRYPOINT", ["does not end with status 0"]),
    "temporary files": (
        " \\\n    TMPDIR=/dev/shm",
        "",
        ["never healthy", "does not answer as it should", "does not end with status 0"],
    ),
    "volume of root": (
        "COPY --from=build --chown=65532:65532 /data /data\n",
        "",
        ["never healthy", "does not answer as it should", "does not end with status 0"],
    ),
}


@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(engine: Engine, fault: str) -> None:
    """Each fault in the recipe is found, and nothing else is."""
    there, instead, expected = PLANTED[fault]
    assert DOCKERFILE.count(there) == 1
    image = built(engine, "phi", DOCKERFILE.replace(there, instead))
    assert findings(engine, image, "phi-service") == expected
