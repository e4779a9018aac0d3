"""The key files of all services: a lost or exchanged one is never replaced in silence."""

from __future__ import annotations

import contextlib
import os
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healthobs import ConfigurationError
from healthobs.audit import keys as audit_keys
from reference_services._kit import controls, database, keys
from reference_services.auth.signing import SigningKey
from service_world import World

#: Each key file of the services' own, and whose it is.
FILES = {
    "auth.signing.pem": "auth-service",
    "payment_gateway.fingerprint.key": "payment-gateway",
    "payment_gateway.idempotency.key": "payment-gateway",
    "phi.kek": "phi-service",
    "phi.index.key": "phi-service",
    "phi.idempotency.key": "phi-service",
    "medical_device.signing.key": "medical-device",
    "medical_device.idempotency.key": "medical-device",
}
#: Those of the audit trail, which the library loads.
TRAIL = {
    "phi.audit.key": "phi-service",
    "phi.subjects.db.key": "phi-service",
    "auth.audit.key": "auth-service",
}


def make(path: Path) -> None:
    """Put a key of the file's kind into `path`."""
    (SigningKey.load if path.suffix == ".pem" else keys.load_secret)(path)


@pytest.mark.parametrize("name", ["auth.signing.pem", "phi.kek"])
def test_durable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """A key is on the disk before anything is written with it: its bytes before its name, then its folder."""
    told, synced = os.fsync, list[tuple[int, bool]]()
    path = tmp_path / name

    def fsync(descriptor: int) -> None:
        told(descriptor)
        synced.append((os.fstat(descriptor).st_ino, path.exists()))

    monkeypatch.setattr(os, "fsync", fsync)
    make(path)
    assert synced == [(path.stat().st_ino, False), (tmp_path.stat().st_ino, True)]
    assert path.stat().st_mode & 0o777 == 0o600
    assert [one.name for one in tmp_path.iterdir()] == [name]


@pytest.fixture
def start(tmp_path: Path) -> Callable[[str], None]:
    """Give what starts a service on the files that are there, and stops it."""

    def once(name: str) -> None:
        world = World(tmp_path)
        try:
            _ = world[name]
        except ConfigurationError:
            world._obs[name].close()
            raise
        finally:
            world.close()

    return once


@pytest.mark.parametrize("name", FILES)
class TestKeyFiles:
    """What the database says of the key that it was written under."""

    def test_lost(self, tmp_path: Path, start: Any, name: str) -> None:
        """Without the file the service does not start and makes none; with the file put back it does."""
        start(FILES[name])
        path = tmp_path / FILES[name] / name
        path.rename(tmp_path / "kept")
        with pytest.raises(ConfigurationError) as refused:
            start(FILES[name])
        assert name in str(refused.value)
        assert not path.exists()
        (tmp_path / "kept").rename(path)
        start(FILES[name])

    def test_exchanged(self, tmp_path: Path, start: Any, name: str) -> None:
        """With another key it does not start; the message names the file, and nothing of what is in it."""
        start(FILES[name])
        path = tmp_path / FILES[name] / name
        own = path.read_bytes()
        path.unlink()
        make(path)
        with pytest.raises(ConfigurationError) as refused:
            start(FILES[name])
        assert name in str(refused.value)
        assert path.read_text().split()[-1] not in str(refused.value)
        path.write_bytes(own)
        start(FILES[name])

    def test_new_key_on_purpose(self, tmp_path: Path, start: Any, name: str) -> None:
        """Who takes the database's word for a key away begins with another one."""
        start(FILES[name])
        path = tmp_path / FILES[name] / name
        before = path.read_bytes()
        path.unlink()
        store = tmp_path / FILES[name] / f"{name.partition('.')[0]}.db"
        with contextlib.closing(sqlite3.connect(store, isolation_level=None)) as connection:
            connection.execute("DELETE FROM key_check WHERE name = ?", (name,))
        start(FILES[name])
        assert path.read_bytes() != before


class TestKeyCheck:
    """The value by which a database knows a key."""

    def test_tells_nothing_of_the_key(self, bench: Any) -> None:
        """It is an HMAC: the key itself is nowhere in the database, and the same key has the same value."""
        bench.kit.migrate(database.sa.MetaData())
        secret = bench.kit.secret("BENCH_KEY_FILE", "bench.key")
        assert bench.kit.secret("BENCH_KEY_FILE", "bench.key") == secret
        raw = b"".join(path.read_bytes() for path in bench.settings.data_dir.glob("bench.db*"))
        assert keys.check_value(secret).encode() in raw
        assert (secret in raw, secret.hex().encode() in raw) == (False, False)

    def test_first_of_two_counts(self, bench: Any) -> None:
        """Of replicas that start together with a key each, one is refused: they must share the file."""
        bench.kit.migrate(database.sa.MetaData())
        assert database.key_check(bench.kit.engine, "bench.key") is None
        assert database.keep_key_check(bench.kit.engine, "bench.key", "a") == "a"
        assert database.keep_key_check(bench.kit.engine, "bench.key", "b") == "a"
        with pytest.raises(ConfigurationError, match=r"bench\.key"):
            bench.kit.secret("BENCH_KEY_FILE", "bench.key")

    @pytest.mark.parametrize("asked", ["before", "after"])
    def test_made_meanwhile(self, make_bench: Any, monkeypatch: pytest.MonkeyPatch, asked: str) -> None:
        """A replica that makes the key just before or after another asks for it leaves both with the same."""
        kits, given = [make_bench().kit for _ in range(2)], list[bytes]()
        for kit in kits:
            kit.migrate(database.sa.MetaData())
        ask = database.key_check

        def meanwhile(engine: Any, name: str) -> str | None:
            monkeypatch.setattr(database, "key_check", ask)
            known = ask(engine, name) if asked == "before" else None
            given.append(kits[1].secret("BENCH_KEY_FILE", "bench.key"))
            return ask(engine, name) if asked == "after" else known

        monkeypatch.setattr(database, "key_check", meanwhile)
        assert [kits[0].secret("BENCH_KEY_FILE", "bench.key")] == given

    @pytest.mark.parametrize("content", [b"", b"00", b"zz" * 32, b"\xff" * 64])
    def test_damaged(self, bench: Any, content: bytes) -> None:
        """A damaged file stops the service; the message does not repeat it, nor advise to remove it."""
        path = bench.settings.data_dir / "bench.key"
        path.write_bytes(content)
        with pytest.raises(
            ConfigurationError, match=r"bench\.key must hold 64 hexadecimal digits"
        ) as refused:
            bench.kit.secret("BENCH_KEY_FILE", "bench.key")
        assert ("zz" in str(refused.value), "remove" in str(refused.value)) == (False, False)

    def test_service_without_a_database(self, bench: Any) -> None:
        """It has nothing that another key would not fit."""
        secret = bench.kit.secret("BENCH_KEY_FILE", "bench.key")
        (bench.settings.data_dir / "bench.key").unlink()
        assert bench.kit.secret("BENCH_KEY_FILE", "bench.key") != secret
        assert not (bench.settings.data_dir / "bench.db").exists()


class Custody:
    """One service, and what it says of its key files."""

    def __init__(self, world: World, name: str) -> None:
        self.kit: Any = world[name].extensions["reference_services"]
        self.health = world.obs(name).health
        (made,) = controls.controls(lambda: self.kit)
        assert (made.id, made.probe is not None) == ("H-312.a1.keys", True)
        self.probe: Any = made.probe

    def says(self) -> tuple[str, str, str]:
        """Return readiness, the control's state, and what that rests on."""
        outcome = self.probe(None)
        return self.health.readiness()[1]["checks"]["keys"], outcome.state, outcome.text


class TestCustody:
    """The readiness check `keys`, and the control."""

    @pytest.mark.parametrize("name", FILES | TRAIL)
    @pytest.mark.parametrize("fault", ["open to others", "missing or cannot be read", "not what was loaded"])
    def test_fault(self, world: World, tmp_path: Path, name: str, fault: str) -> None:
        """Each file that others can read, that is gone or that was exchanged is named."""
        service = (FILES | TRAIL)[name]
        custody, path = Custody(world, service), tmp_path / service / name
        if fault == "open to others":
            path.chmod(0o604)
        elif fault == "not what was loaded":
            path.write_bytes(path.read_bytes() + b"0")
        else:
            path.unlink()
        ready, state, text = custody.says()
        assert (ready, state) == ("not_ready", "fail")
        assert f"{name} is {fault}" in text

    @pytest.mark.parametrize("service", sorted(set(FILES.values())))
    def test_sound(self, world: World, service: str) -> None:
        """Files as they were made are sound, 0400 too; those of the trail are among them."""
        custody = Custody(world, service)
        watched = {file.path.name for file in custody.kit.key_files}
        assert {name for name, of in FILES.items() if of == service} < watched
        assert any(name.endswith(".audit.key") for name in watched)
        custody.kit.key_files[0].path.chmod(0o400)
        assert custody.says()[:2] == ("ready", "pass")

    def test_of_another_user(self, world: World, monkeypatch: pytest.MonkeyPatch) -> None:
        """A file is the service's own or the system's, as a mounted secret is, which its group may read."""
        custody = Custody(world, "medical-device")
        path = custody.kit.key_files[0].path
        owner = path.stat().st_uid
        monkeypatch.setattr(keys.os, "geteuid", lambda: owner + 1)
        monkeypatch.setattr(keys, "SYSTEM", owner)
        path.chmod(0o440)
        assert custody.says()[:2] == ("ready", "pass")
        path.chmod(0o460)
        assert custody.says()[1] == "fail"
        path.chmod(0o400)
        monkeypatch.setattr(keys, "SYSTEM", owner + 2)
        assert "is another user's" in custody.says()[2]

    def test_rotated(self, world: World, tmp_path: Path) -> None:
        """A rotation puts a key before the one in use, which holds until the process starts anew; its end without that is told."""
        custody, path = Custody(world, "phi-service"), tmp_path / "phi-service/phi.audit.key"
        audit_keys.rotate(path)
        assert custody.says()[:2] == ("ready", "pass")
        audit_keys.retire(path)
        assert custody.says()[1] == "fail"

    def test_service_without_keys(self, world: World) -> None:
        """One that keeps none of its own has no such readiness check; the trail's are seen by the control."""
        kit: Any = world["synthetic-phi-service"].extensions["reference_services"]
        (made,) = controls.controls(lambda: kit)
        assert "keys" not in world.obs("synthetic-phi-service").health.readiness()[1]["checks"]
        assert made.probe is not None
        assert made.probe(None).state == "pass"  # type: ignore[arg-type]

    def test_nothing_loaded(self, bench: Any) -> None:
        """Before anything was loaded nothing is claimed."""
        (made,) = controls.controls(lambda: bench.kit)
        assert made.probe is not None
        assert made.probe(None).state == "unknown"  # type: ignore[arg-type]
