"""C2SP tlog-witness on both sides: what a witness cosigns, and what a log learns from its witnesses."""

from __future__ import annotations

import base64
import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from healthobs import Settings
from healthobs.audit import AuditTrail, forking, keys, merkle, open_trail
from healthobs.audit.checkpoint import NoteError, Signer, Verifier
from healthobs.audit.cosigning import Witnesses, WitnessPeer
from healthobs.audit.forking import SqliteFile
from healthobs.audit.witness import Answer, Cosigner, Witness, WitnessState
from healthobs.clock import Clock
from healthobs.compliance.control import ProbeContext
from healthobs.compliance.probes_audit import Integrity
from healthobs.exceptions import AuditError, ClientError, ConfigurationError
from healthobs.redaction import Redactor
from healthobs.testing import SteppingClock

ORIGIN = "example.org/log"
NAME = "witness.example/w1"
LEAVES = [merkle.leaf_hash(bytes([number])) for number in range(40)]
LOG_KEY = Ed25519PrivateKey.generate()
WITNESS_KEY = Ed25519PrivateKey.generate()


@pytest.fixture
def witness(tmp_path: Path) -> Witness:
    """A witness that knows one log."""
    return make(tmp_path)


def make(directory: Path, clock: Clock | None = None) -> Witness:
    """Return the witness whose state is in `directory`."""
    key_file = directory / "witness.key"
    cosigner = Cosigner(NAME, keys.load_or_create(key_file))
    logs = {ORIGIN: Verifier(Signer(ORIGIN, LOG_KEY).vkey)}
    return Witness(cosigner, logs, WitnessState(directory / "witness.db", key_file), clock)


def request(
    old: int,
    size: int,
    *,
    leaves: list[bytes] = LEAVES,
    signer: Signer | None = None,
    path: list[bytes] | None = None,
    extra: str = "",
) -> bytes:
    """Return an add-checkpoint body for the log of the first `size` of `leaves`."""
    if path is None:
        path = (
            list(merkle.consistency_path(old, size, lambda start, end: merkle.root_of(leaves[start:end])))
            if 0 < old <= size
            else []
        )
    root = base64.b64encode(merkle.root_of(leaves[:size])).decode()
    note = (signer or Signer(ORIGIN, LOG_KEY)).sign(f"{ORIGIN}\n{size}\n{root}\n{extra}")
    proof = "".join(f"{base64.b64encode(node).decode()}\n" for node in path)
    return f"old {old}\n{proof}\n{note}".encode()


def other_root(size: int) -> list[bytes]:
    """Return the leaves of a log that differs from the true one."""
    return [merkle.leaf_hash(b"forged"), *LEAVES[1:size]]


#: After size 5 was cosigned: a request, and the status that the standard gives it.
REQUESTS: dict[str, tuple[bytes, int]] = {
    "grows": (request(5, 9), 200),
    "the same again": (request(5, 5), 200),
    "extension lines": (request(5, 9, extra="more\n"), 200),
    "unknown key beside": (
        request(5, 9) + Signer(ORIGIN, Ed25519PrivateKey.generate()).lines("x\n").encode(), 200,
    ),
    "no request": (b"", 400),
    "no old line": (request(5, 9)[6:], 400),
    "leading zero": (request(5, 9).replace(b"old 5", b"old 05"), 400),
    "old above new": (request(9, 5), 400),
    "proof line no base64": (request(5, 9).replace(b"old 5\n", b"old 5\n!\n"), 400),
    "64 proof lines": (request(5, 9, path=[LEAVES[0]] * 64), 400),
    "no signature line": (request(5, 9).rpartition("—".encode())[0], 400),
    "not UTF-8": (request(5, 9) + b"\xff", 400),
    "root of 31 bytes": (request(5, 9).replace(b"\n9\n", b"\n9\nAAAA"), 400),
    "foreign signature": (request(5, 9, signer=Signer(ORIGIN, Ed25519PrivateKey.generate())), 403),
    "forged signature": (request(5, 9).replace(b"\n9\n", b"\n8\n"), 403),
    "unknown log": (request(5, 9, signer=Signer("example.org/other", LOG_KEY)).replace(
        f"\n{ORIGIN}\n".encode(), b"\nexample.org/other\n"), 404),
    "stale": (request(3, 9), 409),
    "from nothing": (request(0, 9), 409),
    "ahead": (request(7, 9), 409),
    "back": (request(3, 3), 409),
    "another history": (request(5, 9, leaves=other_root(9)), 422),
    "same size, another root": (request(5, 5, leaves=other_root(5)), 422),
    "missing proof": (request(5, 9, path=[]), 422),
    "broken proof": (request(5, 9, path=[LEAVES[0]] * 4), 422),
}  # fmt: skip


class TestStateFile:
    """The file of a witness's state."""

    def test_cannot_be_made(self, tmp_path: Path) -> None:
        """The error tells why, without the path."""
        with pytest.raises(AuditError, match="cannot be made") as told:
            WitnessState(tmp_path / "nowhere" / "w.db", tmp_path / "w.key")
        assert "nowhere" not in str(told.value)

    def test_is_there_before_it_is_opened(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """So a fork in the middle of its first opening knows which file its child must be refused."""
        known: list[bool] = []

        class Watched(SqliteFile):
            def execute(self, *arguments: Any) -> Any:
                known.append(self in forking._Forks.open)
                return super().execute(*arguments)

        monkeypatch.setattr("healthobs.audit.witness.SqliteFile", Watched)
        WitnessState(tmp_path / "w.db", tmp_path / "w.key")
        assert known
        assert all(known)


class TestWitness:
    """`add-checkpoint` and what monitors read."""

    @pytest.mark.parametrize("name", REQUESTS)
    def test_status(self, witness: Witness, name: str) -> None:
        """Each request gets the status of the standard, and only a 200 moves what is remembered."""
        assert witness.add_checkpoint(request(0, 5)).status == 200
        body, status = REQUESTS[name]
        answer = witness.add_checkpoint(body)
        assert answer.status == status
        if status == 409:
            assert (answer.body, answer.content_type) == (b"5\n", "text/x.tlog.size")
        moved = status == 200 and name != "the same again"
        assert witness.add_checkpoint(request(30, 30)).body == (b"9\n" if moved else b"5\n")

    def test_first_time(self, witness: Witness) -> None:
        """A log never seen starts at zero: no proof is asked for, and none is taken."""
        assert witness.add_checkpoint(request(3, 5)) == Answer(409, b"0\n", "text/x.tlog.size")
        assert witness.add_checkpoint(request(0, 5, path=[LEAVES[0]])).status == 422
        assert witness.add_checkpoint(request(0, 0)).status == 200
        assert witness.add_checkpoint(request(0, 5)).status == 200

    def test_empty_log_has_one_root(self, witness: Witness) -> None:
        """A checkpoint of size 0 with another root than the empty tree's is refused."""
        root = base64.b64encode(LEAVES[0]).decode()
        note = Signer(ORIGIN, LOG_KEY).sign(f"{ORIGIN}\n0\n{root}\n")
        assert witness.add_checkpoint(f"old 0\n\n{note}".encode()).status == 422

    def test_cosignature_by_hand(self, tmp_path: Path) -> None:
        """The line is a C2SP cosignature/v1: checked here from the standard's words, not with our verifier."""
        time = SteppingClock()
        line = make(tmp_path, time.clock()).add_checkpoint(request(0, 5)).body.decode()
        dash, name, encoded = line.removesuffix("\n").split(" ")
        raw = base64.b64decode(encoded, validate=True)
        public = keys.load(tmp_path / "witness.key").public_key().public_bytes_raw()
        moment = int.from_bytes(raw[4:12])
        assert (dash, name, len(raw)) == ("—", NAME, 4 + 8 + 64)
        assert raw[:4] == sha256(NAME.encode() + b"\n\x04" + public).digest()[:4]
        assert moment == time.wall_ns() // 10**9
        root = base64.b64encode(merkle.root_of(LEAVES[:5])).decode()
        message = f"cosignature/v1\ntime {moment}\n{ORIGIN}\n5\n{root}\n".encode()
        Ed25519PublicKey.from_public_bytes(public).verify(raw[12:], message)

    def test_survives_a_restart(self, tmp_path: Path) -> None:
        """What was cosigned is remembered by the next process, so that no old state can be cosigned again."""
        assert make(tmp_path).add_checkpoint(request(0, 9)).status == 200
        assert make(tmp_path).add_checkpoint(request(0, 5)).status == 409

    @pytest.mark.parametrize("left", [None, b""])
    @pytest.mark.parametrize("place", ["witness.db", "elsewhere.db"])
    def test_state_that_is_gone_is_not_begun_anew(
        self, tmp_path: Path, place: str, left: bytes | None
    ) -> None:
        """With its state deleted or emptied no witness starts under its key, here or elsewhere, and no file is made."""
        state, key_file = tmp_path / "witness.db", tmp_path / "witness.key"
        assert make(tmp_path).add_checkpoint(request(0, 9)).status == 200
        kept = state.read_bytes()
        state.unlink()
        if left is not None:
            (tmp_path / place).write_bytes(left)
        with pytest.raises(ConfigurationError, match="witness's key file began is gone"):
            WitnessState(tmp_path / place, key_file)
        assert (tmp_path / place).exists() == (left is not None)
        state.unlink(missing_ok=True)
        (tmp_path / place).write_bytes(kept)
        WitnessState(tmp_path / place, key_file)  # it was moved, and is whole

    def test_state_of_an_earlier_release(self, tmp_path: Path) -> None:
        """A state of which nothing is written down goes on, and is written down."""
        make(tmp_path)
        (tmp_path / "witness.key.logs").unlink()
        assert make(tmp_path).add_checkpoint(request(0, 9)).status == 200
        assert (tmp_path / "witness.key.logs").read_text() == f"witness {tmp_path}/witness.db\n"
        assert keys.logs(tmp_path / "witness.key") == []

    def test_state_that_vanishes_under_a_running_witness(self, witness: Witness, tmp_path: Path) -> None:
        """Nothing is cosigned, and no empty state takes its place."""
        (tmp_path / "witness.db").unlink()
        with pytest.raises(AuditError, match="witness's state"):
            witness.add_checkpoint(request(0, 5))
        assert not (tmp_path / "witness.db").exists()

    def test_one_of_many_at_once(self, witness: Witness) -> None:
        """Of requests that start from the same size at once, with different ends, one is cosigned."""
        with ThreadPoolExecutor(8) as pool:
            answers = list(pool.map(lambda size: witness.add_checkpoint(request(0, size)), range(1, 9)))
        assert sorted(answer.status for answer in answers) == [200, *[409] * 7]

    def test_lost_state_cosigns_nothing(self, witness: Witness, tmp_path: Path) -> None:
        """When what is cosigned cannot be remembered, there is an error and no cosignature."""
        (tmp_path / "witness.db").write_bytes(b"no database" * 100)
        with pytest.raises(AuditError, match="witness's state"):
            witness.add_checkpoint(request(0, 5))

    def test_monitors_see_the_latest(self, witness: Witness) -> None:
        """The latest checkpoint is served with the log's signature and ours; 404 before there is one."""
        place = sha256(ORIGIN.encode()).hexdigest()
        assert witness.checkpoint(place).status == 404
        witness.add_checkpoint(request(0, 5))
        witness.add_checkpoint(request(5, 9))
        note = witness.checkpoint(place).body.decode()
        log = Verifier(Signer(ORIGIN, LOG_KEY).vkey)
        assert log.open(note) == Verifier(witness.vkey).open(note)
        assert "\n9\n" in note
        assert witness.checkpoint("0" * 64).status == 404

    def test_changed_time_or_text_fails(self, witness: Witness) -> None:
        """A cosignature is over the checkpoint and the time; neither can be exchanged."""
        line = witness.add_checkpoint(request(0, 5)).body.decode()
        good = request(0, 5).decode().partition("\n\n")[2].rpartition("\n\n")[0] + "\n\n" + line
        Verifier(witness.vkey).open(good)
        with pytest.raises(NoteError, match="does not match"):
            Verifier(witness.vkey).open(good.replace("\n5\n", "\n6\n"))
        raw = bytearray(base64.b64decode(line.split(" ")[2]))
        raw[11] ^= 1
        later = f"{good.rpartition('— ')[0]}— {NAME} {base64.b64encode(raw).decode()}\n"
        with pytest.raises(NoteError, match="does not match"):
            Verifier(witness.vkey).open(later)

    def test_name_must_fit_a_line(self) -> None:
        """A name with spaces cannot cosign."""
        with pytest.raises(ConfigurationError, match="witness name"):
            Cosigner("two words", WITNESS_KEY)


class Bench:
    """A real trail, and witnesses that are called instead of posted to."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.time = SteppingClock()
        self.trail = self.open()
        self.witnesses: dict[str, Witness] = {}
        self.vkeys: dict[str, str] = {}
        for name in ("w1", "w2"):
            self.add(name)

    def open(self) -> AuditTrail:
        return open_trail(f"sqlite:///{self.directory}/audit.db", service="s", origin=ORIGIN)

    def add(self, name: str) -> None:
        key_file = self.directory / f"{name}.key"
        cosigner = Cosigner(f"{name}.example/w", keys.load_or_create(key_file))
        state = WitnessState(self.directory / f"{name}.db", key_file)
        logs = {ORIGIN: Verifier(self.trail.vkey)}
        self.witnesses[f"https://{name}"] = Witness(cosigner, logs, state, self.time.clock())
        self.vkeys[name] = cosigner.vkey

    def send(self, url: str, body: bytes) -> tuple[int, bytes]:
        answer = self.witnesses[url.removesuffix("/add-checkpoint")].add_checkpoint(body)
        return answer.status, answer.body

    def client(
        self,
        *names: str,
        independent: tuple[str, ...] = (),
        send: Callable[[str, bytes], tuple[int, bytes]] | None = None,
    ) -> Witnesses:
        peers = [WitnessPeer(self.vkeys[name], f"https://{name}", name in independent) for name in names]
        return Witnesses(self.trail, peers, send or self.send, clock=self.time.clock())


def later(bench: Bench) -> bytes:
    """Return a request about a longer log that its own key signed, and that its store does not hold."""
    leaf = bench.trail.inclusion_proof(0, 1).leaf
    signer = Signer(ORIGIN, keys.load(bench.directory / "audit.db.key"))
    return request(1, 3, leaves=[leaf, *LEAVES], signer=signer)


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path)


class TestWitnesses:
    """What a log claims, and when it must stop claiming it."""

    def test_states(self, bench: Bench) -> None:
        """Nobody: self-signed; peers of one operator: self-witnessed; another domain: witnessed; stale: again self-signed."""
        assert bench.client().state == "self-signed"
        peers = bench.client("w1", "w2")
        assert peers.state == "self-signed"
        peers.ask()
        assert peers.state == "self-witnessed"
        independent = bench.client("w1", "w2", independent=("w2",))
        independent.ask()
        assert independent.state == "witnessed"
        bench.time.advance(4000)
        assert independent.state == "self-signed"

    def test_clock_of_a_witness_that_is_ahead(self, bench: Bench) -> None:
        """A cosignature is not fresh for longer because its witness's clock is ahead."""
        here = SteppingClock()
        peer = WitnessPeer(bench.vkeys["w1"], "https://w1", independent=False)
        peers = Witnesses(bench.trail, [peer], bench.send, clock=here.clock())
        bench.time.advance(86_400)
        peers.ask()
        assert peers.state == "self-witnessed"
        here.advance(4000)
        assert peers.state == "self-signed"

    def test_wall_clock_that_is_set_back(self, bench: Bench) -> None:
        """A cosignature gets no younger by it."""
        here, back_ns = SteppingClock(), 0
        peer = WitnessPeer(bench.vkeys["w1"], "https://w1", independent=True)
        clock = Clock(lambda: here.wall_ns() - back_ns, here.monotonic_ns)
        peers = Witnesses(bench.trail, [peer], bench.send, clock=clock)
        peers.ask()
        back_ns = 86_400 * 10**9
        assert peers.state == "witnessed"
        here.advance(4000)
        assert peers.state == "self-signed"

    def test_note_carries_all_signatures(self, bench: Bench) -> None:
        """The cosigned checkpoint verifies with the log's key and with each witness's."""
        peers = bench.client("w1", "w2")
        for number in range(5):
            bench.trail.append({"action": "a.b"})
            told = peers.ask()
            assert (told.size, told.cosigned) == (number + 1, ("w1.example/w", "w2.example/w"))
        for vkey in (bench.trail.vkey, *bench.vkeys.values()):
            assert "\n5\n" in Verifier(vkey).open(told.note)

    def test_learns_where_a_witness_is(self, bench: Bench) -> None:
        """A client that starts anew learns the size from the 409 and goes on from there."""
        bench.trail.append({"action": "a.b"})
        bench.client("w1").ask()
        bench.trail.append({"action": "a.b"})
        fresh = bench.client("w1")
        assert fresh.ask().cosigned == ("w1.example/w",)

    def test_old_copy_is_betrayed(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        """A log put back to an earlier state is contradicted by the witness that has seen the later one, and it is logged once."""
        bench.trail.append({"action": "a.b"})
        shutil.copy(bench.trail.path, bench.directory / "old.db")
        bench.trail.append({"action": "payment.refund"})
        bench.client("w1").ask()
        bench.trail.close()
        shutil.copy(bench.directory / "old.db", bench.trail.path)
        bench.trail = bench.open()
        assert bench.trail.verify().ok, "in itself it is a healthy log"
        peers = bench.client("w1", "w2")
        told = peers.ask()
        assert (told.contradicted, told.cosigned) == (("w1.example/w",), ("w2.example/w",))
        assert peers.contradicted == ("w1.example/w",)
        peers.ask()
        (line,) = (record for record in caplog.records if record.message == "audit_trail_contradicted")
        assert (line.levelname, vars(line)["witnesses"]) == ("ERROR", ["w1.example/w"])
        assert peers.state == "self-witnessed", "the witness that never saw the log cannot know"

    def test_state_and_contradiction_reach_the_control(self, bench: Bench) -> None:
        """Integrity is shown in part until an independent witness cosigned, and fails once any contradicts the trail."""
        context = ProbeContext(
            settings=Settings(service_name="s"), clock=Clock(), redactor=Redactor(), audit=bench.trail
        )
        bench.trail.append({"action": "a.b"})
        assert bench.trail.witness_state == "self-signed"
        outcome = Integrity()(context)
        assert (outcome.state, "self-signed" in outcome.missing[0]) == ("partial", True)
        bench.client("w2", independent=("w2",)).ask()
        assert (bench.trail.witness_state, Integrity()(context).state) == ("witnessed", "pass")
        peers = bench.client("w1")
        peers.ask()
        assert bench.trail.witness_state == "self-witnessed"
        outcome = Integrity()(context)
        assert (outcome.state, "self-witnessed" in outcome.missing[0]) == ("partial", True)
        bench.witnesses["https://w1"].add_checkpoint(later(bench))
        assert peers.ask().contradicted == ("w1.example/w",)
        outcome = Integrity()(context)
        assert (outcome.state, "w1.example/w" in outcome.text) == ("fail", True)

    def test_second_history_is_betrayed(self, bench: Bench) -> None:
        """A log rewritten to the same or a greater length by whoever has the key is contradicted too."""
        bench.trail.append({"action": "a.true"})
        bench.client("w1").ask()
        bench.trail.close()
        for name in ("audit.db", "audit.db.lock", "audit.db.key.logs"):
            (bench.directory / name).unlink()
        bench.trail = bench.open()
        for size in (1, 2):
            bench.trail.append({"action": "a.false"})
            told = bench.client("w1").ask()
            assert (told.size, told.contradicted) == (size, ("w1.example/w",))

    def test_faster_replica_is_no_rollback(self, bench: Bench) -> None:
        """A witness that is ahead because another replica asked meanwhile accuses nobody."""
        other = bench.client("w1")

        def send(url: str, body: bytes) -> tuple[int, bytes]:
            bench.trail.append({"action": "a.b"})
            other.ask()
            return bench.send(url, body)

        told = bench.client("w1", send=send).ask()
        assert (told.unanswered, told.contradicted) == (("w1.example/w",), ())

    @pytest.mark.parametrize(
        "answer",
        [(200, b""), (200, b"\xff"), (200, "— w1.example/w AAAA\n".encode()), (409, b"x"), (409, b"0\n"), (404, b""), (500, b"")],
    )  # fmt: skip
    def test_useless_answers(self, bench: Bench, answer: tuple[int, bytes]) -> None:
        """An answer that proves nothing counts for nothing, and accuses nobody."""
        peers = bench.client("w1", send=lambda _url, _body: answer)
        told = peers.ask()
        assert (told.unanswered, told.contradicted, peers.state) == (("w1.example/w",), (), "self-signed")

    @pytest.mark.parametrize("fault", [ConnectionRefusedError(), ClientError("no answer"), AuditError("x")])
    def test_one_that_is_down(self, bench: Bench, fault: Exception) -> None:
        """A witness that does not answer does not keep the others from being asked."""

        def send(url: str, body: bytes) -> tuple[int, bytes]:
            if "w1" in url:
                raise fault
            return bench.send(url, body)

        told = bench.client("w1", "w2", send=send).ask()
        assert (told.unanswered, told.cosigned) == (("w1.example/w",), ("w2.example/w",))

    def test_impostor_is_ignored(self, bench: Bench) -> None:
        """A cosignature by another key than the peer's known one is none."""
        impostor = Bench(bench.directory / "..")  # keys of its own under the same names
        bench.witnesses["https://w1"] = impostor.witnesses["https://w1"]
        assert bench.client("w1").ask().cosigned == ()

    def test_only_witness_keys(self, bench: Bench) -> None:
        """A key that is no cosignature key is refused at once."""
        for vkey in ("nonsense", Signer(NAME, WITNESS_KEY).vkey):
            with pytest.raises(ConfigurationError, match="vkey"):
                Witnesses(bench.trail, [WitnessPeer(vkey, "https://w")], bench.send)

    def test_a_witness_counts_once(self, bench: Bench) -> None:
        """One key under two URLs is one witness."""
        with pytest.raises(ConfigurationError, match="twice"):
            bench.client("w1", "w1")
