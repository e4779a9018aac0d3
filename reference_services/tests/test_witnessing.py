"""The services as each other's witnesses: in one process, and as two real servers."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import urllib3

from healthobs import ConfigurationError
from healthobs.audit.checkpoint import Verifier
from reference_services._kit import ServiceSettings, witnessing
from reference_services.demo import cluster
from reference_services.demo.ports import reserved_ports
from reference_services.services import SERVICES
from service_world import World

PHI, AUTH = "phi-service", "auth-service"
PEERS = [name for name in SERVICES if name != PHI]
#: H-312.c asks its witness, within two seconds, once a minute or, where its round comes too early, every other round.
GIVE_UP_SECONDS = 150


def vouched(note: str, *vkeys: str) -> int:
    """Return the size of the log that each of the keys vouches for."""
    (text,) = {Verifier(vkey).open(note) for vkey in vkeys}
    return int(text.splitlines()[1])


def checkpoint_path(log: str) -> str:
    """Return where a witness shows the checkpoint of the log with this vkey."""
    return f"/witness/{sha256(Verifier(log).name.encode()).hexdigest()}/checkpoint"


class Witnessed:
    """Services in one process that know each other's keys."""

    def __init__(self, base: Path) -> None:
        self.base = base
        known = cluster.introduced(base)
        self.vkeys: dict[str, dict[str, str]] = json.loads(known.read_text())
        self.world = self.start()

    def start(self) -> World:
        """Start all of them anew, on the files that are there."""
        world = World(self.base)
        world.environ = {name: {"WITNESSES_FILE": str(self.base / "witnesses.json")} for name in SERVICES}
        return world

    def integrity(self) -> tuple[str, str]:
        """Run phi-service's H-312.c; return its state and what it rests on."""
        engine: Any = self.world.obs(PHI).controls
        state = engine.run(["H-312.c"])["H-312.c"]
        row = next(row for row in engine.status(detail=True)["controls"] if row["id"] == "H-312.c")
        return state, row["evidence"]["text"]


@pytest.fixture
def witnessed(tmp_path: Path) -> Iterator[Witnessed]:
    """The five services."""
    made = Witnessed(tmp_path)
    yield made
    made.world.close()


class TestInOneProcess:
    """What a log's control says, and what its peers keep."""

    @pytest.mark.parametrize("told", [True, False])
    def test_a_log_that_was_begun_anew(self, witnessed: Witnessed, told: bool) -> None:
        """A log that was deleted while its service was down does not start as another one, also where the key forgot it."""
        witnessed.integrity()
        witnessed.world.close()
        folder = witnessed.base / PHI
        (folder / "phi.audit.db").unlink()
        if not told:
            (folder / "phi.audit.key.logs").unlink()
        witnessed.world = witnessed.start()
        with pytest.raises(ConfigurationError, match="is gone; restore it" if told else "names another log"):
            witnessed.world.obs(PHI)

    def test_a_witness_whose_state_is_gone(self, witnessed: Witnessed) -> None:
        """A service whose witness forgot what it cosigned does not start with the key of that witness."""
        witnessed.integrity()
        witnessed.world.close()
        (witnessed.base / PHI / "phi.witness.db").unlink()
        witnessed.world = witnessed.start()
        with pytest.raises(ConfigurationError, match="witness's key file began is gone"):
            witnessed.world.obs(PHI)

    def test_every_peer_cosigns(self, witnessed: Witnessed) -> None:
        """The log is self-witnessed, and partial as nobody independent saw it; each peer shows what it cosigned."""
        state, text = witnessed.integrity()
        assert (state, text.endswith("; self-witnessed")) == ("partial", True)
        witnesses = witnessed.world.obs(PHI).audit.witnesses
        log, size = witnessed.vkeys[PHI]["log"], witnesses.latest.size
        assert len(witnesses.latest.cosigned) == len(PEERS)
        for name in PEERS:
            shown = witnessed.world.client(name).get(checkpoint_path(log))
            assert shown.status_code == 200
            assert vouched(shown.get_data(as_text=True), log, witnessed.vkeys[name]["witness"]) == size

    def test_old_copy_is_contradicted(self, witnessed: Witnessed, tmp_path: Path) -> None:
        """A log put back between two runs is whole and signed; every peer contradicts it, and the control fails."""
        file = tmp_path / PHI / "phi.audit.db"
        shutil.copy(file, tmp_path / "old.db")
        witnessed.world.obs(PHI).audit.append({"action": "patient.read", "actor": "clinician-app"})
        assert witnessed.integrity()[0] == "partial"
        witnessed.world.close()
        shutil.copy(tmp_path / "old.db", file)
        witnessed.world = witnessed.start()
        state, text = witnessed.integrity()
        assert (state, [name for name in PEERS if name not in text]) == ("fail", [])

    def test_off_unless_asked(self, witnessed: Witnessed) -> None:
        """Without the file nobody is asked, and the witness's paths are not there."""
        witnessed.world.environ.clear()
        assert witnessed.integrity()[1].endswith("; self-signed")
        assert witnessed.world.client(PHI).post("/witness/add-checkpoint", data=b"").status_code == 404

    @pytest.mark.parametrize(
        "text",
        [
            None,
            "{",
            "[1]",
            '{"nobody": {}}',
            '{"auth-service": {}}',
            '{"auth-service": {"log": "x", "witness": "y"}}',
        ],
    )
    def test_file_that_is_none(self, witnessed: Witnessed, text: str | None) -> None:
        """A file that is missing or malformed stops the start, and says what it must be."""
        file = witnessed.base / "witnesses.json"
        file.unlink() if text is None else file.write_text(text)
        with pytest.raises(ConfigurationError, match="WITNESSES_FILE must name a JSON file"):
            witnessed.world.client(PHI)


@pytest.mark.server
@pytest.mark.timeout(500)
class TestServers:
    """phi-service with two workers, witnessed by auth-service."""

    @pytest.fixture
    def ports(self) -> Iterator[list[int]]:
        """Where the two listen."""
        with reserved_ports(2) as ports:
            yield ports

    @pytest.fixture
    def start(self, tmp_path: Path, ports: list[int]) -> Iterator[Callable[[str], cluster.Service]]:
        """Start one of the two, which know each other's keys."""
        urls = {name: f"http://127.0.0.1:{port}" for name, port in zip((AUTH, PHI), ports, strict=True)}
        environment = cluster.environment_of(tmp_path, urls, "", ())
        del environment["OTEL_EXPORTER_OTLP_ENDPOINT"]
        vkeys = {}
        for name in urls:
            where = {"HEALTHOBS_DATA_DIR": str(tmp_path / name)}
            info = SERVICES[name].info
            vkeys[name] = witnessing.public_keys(info, ServiceSettings.from_env(info, where))
        (tmp_path / "known.json").write_text(json.dumps(vkeys))
        environment |= {"WITNESSES_FILE": str(tmp_path / "known.json"), "WORKERS": "2"}
        started: list[cluster.Service] = []

        def start(name: str) -> cluster.Service:
            started.append(cluster.start(name, urls[name], tmp_path / name, environment))
            cluster.wait_ready(started[-1])
            return started[-1]

        yield start
        for service in started:
            service.stop()

    def test_log_and_witness(self, start: Callable[[str], cluster.Service], tmp_path: Path) -> None:
        """Both workers may ask, the witness cosigns; an old copy under a restarted service fails its control."""
        file = tmp_path / PHI / "phi.audit.db"
        shutil.copy(file, tmp_path / "old.db")
        auth, phi = start(AUTH), start(PHI)
        assert state(phi, "unknown") == "partial"
        vkeys = json.loads((tmp_path / "known.json").read_text())
        log = vkeys[PHI]["log"]
        with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
            deadline = time.monotonic() + GIVE_UP_SECONDS
            while (shown := pool.request("GET", auth.url + checkpoint_path(log))).status != 200:
                assert time.monotonic() < deadline
                time.sleep(0.1)
        assert vouched(shown.data.decode(), log, vkeys[AUTH]["witness"]) > 0
        phi.restart(lambda _: shutil.copy(tmp_path / "old.db", file))
        assert state(phi, "unknown", "partial") == "fail"  # partial where the witness did not answer in time


def state(service: cluster.Service, *passing: str) -> str:
    """Return the state of H-312.c that a worker shows, once it is none of those that may come before."""
    with urllib3.PoolManager(retries=False, timeout=20.0) as pool:
        deadline = time.monotonic() + GIVE_UP_SECONDS
        while time.monotonic() < deadline:
            rows: Any = pool.request("GET", f"{service.url}/compliance/status").json()["controls"]
            shown = next(str(row["state"]) for row in rows if row["id"] == "H-312.c")
            if shown not in passing:
                return shown
            time.sleep(0.1)
    raise AssertionError(f"still {shown}")
