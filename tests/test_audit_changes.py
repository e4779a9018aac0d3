"""`healthobs audit` where it changes something, and exports: on the command line, as an operator would."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from healthobs.audit import approval, changes, governance, keys, open_trail, store
from healthobs.audit.checkpoint import Signer
from healthobs.audit.command import main
from healthobs.audit.retention import Retention
from healthobs.audit.sqlite import SqliteStore
from healthobs.exceptions import ConfigurationError
from healthobs.testing import SteppingClock

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def call(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return call


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A trail of three entries."""
    trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
    for number in range(3):
        trail.append({"action": "patient.read", "subject": f"s-{number}"})
    trail.close()
    return tmp_path / "audit.db"


COMMANDS = [
    ("hold",), ("hold", "case-1", "--entries", "0-1", "--reason", "r"), ("hold", "case-1", "--release", "--reason", "r"),
    ("erase", "--entries", "0-1"),
    ("approvers",), ("approvers", "--name", "a"), ("approvers", "--order", "ORDER"), ("prune", "--below", "3"),
    ("prune", "--order", "ORDER"), ("prune", "--order", "ORDER", "--dry-run"),
]  # fmt: skip


class TestHold:
    """`hold` places, lists and releases."""

    def test_life(self, path: Path, run: Run) -> None:
        """Placed, listed, in the way of an erasure, released, gone."""
        assert run("hold", path, "case-1", "--subject", "s-1", "--reason", "litigation")[:2] == (
            0,
            "held by entry 3\n1 entry so far\n",
        )
        assert run("hold", path)[:2] == (0, "case-1: since entry 3\n")
        status, _, err = run("erase", path, "--subject", "s-1")
        assert (status, "under legal hold" in err) == (2, True)
        assert run("hold", path, "case-1", "--release", "--reason", "settled")[:2] == (
            0,
            "released in entry 4\n",
        )
        assert run("hold", path) == (0, "", "no hold is in force\n")

    def test_by_entries(self, path: Path, run: Run) -> None:
        """A range is taken, a malformed one is not."""
        why = ("--reason", "litigation")
        assert run("hold", path, "case-1", "--entries", "0-1", *why)[1].endswith("\n2 entries so far\n")
        assert run("hold", path, "case-2", "--entries", "x", *why)[0] == 2
        for command in (("hold", path, "case-2"), ("erase", path)):
            status, _, err = run(*command, "--entries", "9-3", *why)
            assert (status, "first and the last" in err) == (2, True)
        assert run("hold", path, "case-2", "--entries", "100-200", *why)[:2] == (
            0,
            "held by entry 4\n0 entries so far\n",
        )

    @pytest.mark.parametrize("reason", [(), ("--reason", ""), ("--reason", " ")])
    def test_reason(self, path: Path, run: Run, reason: tuple[str, ...]) -> None:
        """Nobody holds or releases without a reason; nothing is recorded."""
        assert run("hold", path, "case-1", "--entries", "0-1", "--reason", "litigation")[0] == 0
        for command in (("case-2", "--entries", "0-1"), ("case-1", "--release")):
            status, out, err = run("hold", path, *command, *reason)
            assert (status, out, "--reason" in err) == (2, "", True)
        assert run("hold", path)[:2] == (0, "case-1: since entry 3\n")

    @pytest.mark.parametrize("subject", ["Ottoline Haverford", "MRN-7654321", "s-9"])
    def test_subject_that_is_none(self, path: Path, run: Run, subject: str) -> None:
        """What is no subject of the log's is refused, not echoed and not recorded."""
        status, out, err = run("hold", path, "h", "--subject", subject, "--reason", "r")
        assert (status, out, "the subject" in err, subject in err) == (2, "", True, False)
        assert json.loads(run("checkpoint", path, "--json")[1])["size"] == 3

    def test_key_under_another_name(self, path: Path, run: Run) -> None:
        """Where the key is not beside the log, the argument that names it is told, and nothing is made."""
        path.with_name("audit.db.key").rename(path.with_name("audit.key"))
        held = ("hold", path, "case-1", "--entries", "0-1", "--reason", "r")
        status, out, err = run(*held)
        assert (status, out, "audit.db.key" in err, "--key-file" in err) == (2, "", True, True)
        assert not path.with_name("audit.db.key").exists()
        assert run(*held, "--key-file", path.with_name("audit.key"))[0] == 0

    def test_too_young_to_erase(self, path: Path, run: Run) -> None:
        """The minimum period holds on the command line too, and nothing matching is nothing done."""
        status, _, err = run("erase", path, "--entries", "0")
        assert (status, "class hipaa" in err) == (2, True)
        assert run("erase", path, "--subject", "nobody")[:2] == (0, "0 bodies erased\n")

    @pytest.mark.parametrize("command", COMMANDS)
    @pytest.mark.parametrize("content", [b"", b"text", None])
    def test_no_log(self, tmp_path: Path, run: Run, command: tuple[str, ...], content: bytes | None) -> None:
        """Where no log is, none is begun: the file stays what it is, and nothing comes beside it."""
        path, order = tmp_path / "wrong" / "x.db", tmp_path / "order"
        path.parent.mkdir()
        order.write_text("")
        if content is not None:
            path.write_bytes(content)
        name, *rest = (str(order) if part == "ORDER" else part for part in command)
        status, out, err = run(name, path, *rest)
        assert (status, out, err.startswith("cannot say: ")) == (2, "", True)
        assert [item.name for item in path.parent.iterdir()] == ([] if content is None else ["x.db"])
        assert content is None or path.read_bytes() == content

    def test_no_trail(self, tmp_path: Path, run: Run) -> None:
        """A file that is not there is not made."""
        assert run("hold", tmp_path / "none.db")[0] == 2
        assert not (tmp_path / "none.db").exists()


class TestPrune:
    """`prune`, and the two who approve it."""

    def test_order_and_approvals(self, path: Path, tmp_path: Path, run: Run) -> None:
        """An order is printed, signed by two, and checked in full before anything goes; here all is too young."""
        trail = open_trail(f"sqlite:///{path}", service="s")
        for number in range(257):
            trail.append({"action": "a.b", "details": {"number": number}})
        trail.close()
        order = tmp_path / "order"
        vkeys: list[str] = []
        status, out, err = run("prune", path, "--below", 260)
        assert (status, out.splitlines()[2:]) == (0, ["256"])
        assert err == "rounded down from 260 to 256, to whole tiles of 256 entries\n"
        assert run("prune", path, "--below", 256) == (0, out, "")
        order.write_text(out)
        for name in ("alice", "bob"):
            key = tmp_path / f"{name}.key"
            assert run("approve", order, "--key-file", key, "--name", "approver.example/x")[:2] == (2, "")
            assert not key.exists(), "approving makes no keys"
            vkey = run("approver-key", key, "--name", f"approver.example/{name}")[1].strip()
            assert vkey == Signer(f"approver.example/{name}", keys.load(key)).vkey
            status, out, _ = run("approve", order, "--key-file", key, "--name", f"approver.example/{name}")
            assert status == 0
            order.write_text(out)
            vkeys.append(vkey)
        status, _, err = run("prune", path, "--order", order)
        assert (status, "names no approvers" in err) == (2, True)
        assert run("approvers", path) == (0, "", "the log names no approvers\n")
        named = [part for vkey in vkeys for part in ("--name", vkey)]
        assert run("approvers", path, *named)[:2] == (0, "named by entry 260\n")
        assert run("approvers", path)[1].splitlines() == [f"{vkey}: since entry 260" for vkey in vkeys]
        status, _, err = run("prune", path, "--order", order, "--dry-run")
        assert (status, "entry 0 is of class hipaa" in err) == (2, True)
        assert run("prune", path)[0] == 2
        pinned = [part for vkey in vkeys for part in ("--approver", vkey)]
        assert run("verify", path, *pinned)[0] == 0
        status, out, _ = run("verify", path, "--approver", vkeys[0], "--approver", trail.vkey)
        assert (status, "approvers were changed without two" in out) == (1, True)
        assert run("verify", path, "--approver", "x")[0] == 2

    @pytest.mark.parametrize("below", [-1, 0, 5, 255, 261, 10**30])
    def test_nothing_to_prune(self, path: Path, tmp_path: Path, run: Run, below: int) -> None:
        """Where nothing would go no order is printed, and one that two signed is neither good for a dry run nor recorded."""
        trail = open_trail(f"sqlite:///{path}", service="s")
        signers = [Signer(f"a.example/{name}", keys.load_or_create(tmp_path / name)) for name in "ab"]
        retention = Retention(trail)
        retention.appoint(retention.appointment([one.vkey for one in signers]), actor="a", reason="r")
        size, text = trail.checkpoint().size, governance.prune_order(trail.origin, below)
        trail.close()
        before = path.read_bytes()
        status, out, err = run("prune", path, "--below", below)
        assert (status, out) == (2, "")
        assert err in {
            "cannot say: the log has no such entry; name one that is kept\n",
            "cannot say: a pruning takes whole tiles of 256 entries; name an entry from 256 on\n",
        }
        order = tmp_path / "order"
        order.write_text(text + "\n" + "".join(one.lines(text) for one in signers))
        refused = (2, "", "cannot say: the order names no whole tile that the log has; make another\n")
        assert run("prune", path, "--order", order, "--dry-run") == refused
        assert path.read_bytes() == before
        assert run("prune", path, "--order", order) == refused
        assert f"ok: {size} entries" in run("verify", path)[1]

    @pytest.mark.parametrize(
        "arguments",
        [("approve", "x", "--name", "n"), ("approve", "x", "--key-file", "k"), ("approver-key", "k")],
    )
    def test_approver_needs_key_and_name(
        self, arguments: tuple[str, ...], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Nobody signs without a key, nor without a name: wrong usage."""
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert (caught.value.code, "required" in capsys.readouterr().err) == (2, True)

    @pytest.mark.parametrize("signed", [False, True])
    def test_only_an_order_is_approved(self, path: Path, tmp_path: Path, run: Run, signed: bool) -> None:
        """A checkpoint, a witness's request, an altered order or any other text is not signed, and nothing is printed."""
        trail = open_trail(f"sqlite:///{path}", service="s")
        checkpoint = trail.checkpoint().note
        order = governance.prune_order(trail.origin, 256)
        trail.close()
        key = tmp_path / "a.key"
        one = Signer("a.example/a", keys.load_or_create(key))
        other = Signer("a.example/b", keys.load_or_create(tmp_path / "b.key"))
        naming = approval.appointment(trail.origin, [one.vkey, other.vkey], "-")
        file = tmp_path / "order"
        for text in (
            "", "x\n", checkpoint.partition("\n\n")[0] + "\n", order + "x\n", order.replace("256", "257"),
            order.replace("256", "-256"), order.replace("256", "0"), order.replace("256", "0256"),
            order.replace("256", "x"), order.replace(trail.origin, "two words"), order.replace("prune", "other"),
            naming.replace("\n-\n", "\nx\n"), naming.replace("\n-\n", "\n-1\n"), naming.replace(other.vkey, one.vkey),
            naming.replace(other.vkey, "x"), naming.replace(trail.origin, ""), naming + "\n", order[:-1],
        ):  # fmt: skip
            file.write_text(f"{text}\n{other.lines(text)}" if signed else text)
            status, out, err = run("approve", file, "--key-file", key, "--name", one.name)
            assert (status, out, err) == (2, "", f"cannot say: {approval.NO_ORDER}\n"), text
        for text in (order, naming, naming.replace("\n-\n", "\n17\n")):
            note = f"{text}\n{other.lines(text)}" if signed else text
            file.write_text(note)
            status, out, err = run("approve", file, "--key-file", key, "--name", one.name)
            assert (status, out) == (0, (note if signed else f"{text}\n") + one.lines(text))
            assert err == f"signed as {one.vkey}\n"

    def test_change_of_approvers(self, path: Path, tmp_path: Path, run: Run) -> None:
        """Once some are named, others are an order, which is printed, signed by two of them, and carried out."""
        for name in ("alice", "bob", "carol"):
            keys.load_or_create(tmp_path / f"{name}.key")
        vkeys = {
            name: Signer(f"approver.example/{name}", keys.load(tmp_path / f"{name}.key")).vkey
            for name in ("alice", "bob", "carol")
        }
        assert run("approvers", path, "--name", vkeys["alice"], "--name", vkeys["bob"])[0] == 0
        order = tmp_path / "order"
        order.write_text(run("approvers", path, "--name", vkeys["bob"], "--name", vkeys["carol"])[1])
        status, _, err = run("approvers", path, "--order", order)
        assert (status, "signatures of two approvers" in err) == (2, True)
        for name in ("alice", "bob"):
            key = tmp_path / f"{name}.key"
            order.write_text(
                run("approve", order, "--key-file", key, "--name", f"approver.example/{name}")[1]
            )
        assert run("approvers", path, "--order", order)[:2] == (0, "named by entry 4\n")
        assert run("approvers", path)[1].split(":")[0] == vkeys["bob"]
        assert run("verify", path)[0] == 0


class TestOld:
    """What is old enough goes, and `verify` says so."""

    @pytest.fixture
    def old(self, tmp_path: Path) -> Path:
        """A trail of 300 entries of the year 2000."""
        clock = SteppingClock(datetime(2000, 1, 1, tzinfo=UTC)).clock()
        trail = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s", clock=clock)
        trail.sequence([(trail.new_key(), trail.encode({"action": "a.b"})) for _ in range(300)])
        trail.close()
        return tmp_path / "audit.db"

    def test_erased(self, old: Path, run: Run) -> None:
        """How many bodies went is told."""
        assert run("erase", old, "--entries", "1-2", "--actor", "dpo-1", "--reason", "request")[:2] == (
            0,
            "2 bodies erased\n",
        )
        assert (
            run("verify", old)[1].splitlines()[1] == "by order: entries before 0 pruned, bodies of 2 erased"
        )
        shown = json.loads(run("export", old)[1].splitlines()[-1])
        assert (shown["actor"]["id"], shown["reason"], shown["details"]) == (
            "dpo-1",
            "request",
            {"ranges": "1-2"},
        )

    def test_pruned(self, old: Path, tmp_path: Path, run: Run) -> None:
        """A dry run takes nothing away, the order does, and the log still verifies."""
        vkeys = [run("approver-key", tmp_path / name, "--name", f"a.example/{name}")[1] for name in "ab"]
        run("approvers", old, *(part for vkey in vkeys for part in ("--name", vkey.strip())))
        order = tmp_path / "order"
        order.write_text(run("prune", old, "--below", 300)[1])
        for name in "ab":
            order.write_text(
                run("approve", order, "--key-file", tmp_path / name, "--name", f"a.example/{name}")[1]
            )
        assert run("prune", old, "--order", order, "--dry-run")[:2] == (
            0,
            "entries before 256 may be pruned\n",
        )
        assert json.loads(run("verify", old, "--json")[1])["first"] == 0
        copy = Path(shutil.copy(old, tmp_path / "cp.db"))
        for command in (
            ["hold"], ["approvers"], ["prune", "--below", 300], ["prune", "--order", order, "--dry-run"],
            ["approvers", *(part for vkey in vkeys for part in ("--name", vkey.strip()))],
        ):  # fmt: skip
            shown = run(command[0], copy, *command[1:])
            assert (shown[0], shown) == (0, run(command[0], old, *command[1:]))
        assert [item.name for item in tmp_path.glob("cp.db*")] == ["cp.db"]
        assert copy.read_bytes() == old.read_bytes()
        assert run("prune", old, "--order", order)[:2] == (0, "entries before 256 were pruned\n")
        told = run("verify", old)[1].splitlines()
        assert told[:2] == [
            "ok: 46 entries under 3 checkpoints verify",
            "by order: entries before 256 pruned, bodies of 0 erased",
        ]
        assert json.loads(run("verify", old, "--json")[1])["first"] == 256


class TestRotate:
    """`rotate` and what `verify` says then."""

    def test_others_write_meanwhile(self, path: Path, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """However long it takes to ask a log, nobody is kept from writing to it."""
        key_file, asked, look = path.with_name("audit.db.key"), list[int](), store.checkpoints
        keys.rotate(key_file)
        with contextlib.closing(open_trail(f"sqlite:///{path}", service="s")) as trail:

            def meanwhile(*arguments: Any) -> Iterator[store.Row]:
                for row in look(*arguments):
                    if not asked:
                        asked.append(trail.append({"action": "a.b"}).index)
                    yield row

            monkeypatch.setattr(store, "checkpoints", meanwhile)
            assert (run("rotate", key_file, "--retire", path)[0], asked) == (0, [4])

    def test_life(self, path: Path, run: Run) -> None:
        """A new key signs beside the old, the old is dropped, and the old pinned key still verifies all."""
        key_file = path.with_name("audit.db.key")
        trail = open_trail(f"sqlite:///{path}", service="s")
        old = trail.vkey
        trail.close()
        assert run("rotate", key_file)[0] == 0
        before = key_file.read_bytes()
        status, _, told = run(
            "rotate", key_file, "--retire", path
        )  # nothing was started with the new one yet
        assert (status, key_file.read_bytes()) == (2, before)
        assert "no key was dropped" in told
        open_trail(f"sqlite:///{path}", service="s").close()
        assert run("rotate", key_file, "--retire", path)[:2] == (
            0,
            """1 earlier keys dropped; restart what signs with the file
kept in audit.db.key.retired beside it; delete that file once every process that signs was restarted
""",
        )
        assert run("rotate", key_file, "--retire", path)[:2] == (
            0,
            "0 earlier keys dropped; restart what signs with the file\n",
        )
        trail = open_trail(f"sqlite:///{path}", service="s")
        trail.append({"action": "a.b"})
        trail.close()
        for pinned in ((), ("--vkey", old), ("--vkey", trail.vkey)):
            assert run("verify", path, *pinned)[0] == 0
        assert json.loads(run("prove", path, 4)[1])["index"] == 4

    def test_of_no_log(self, path: Path, tmp_path: Path, run: Run) -> None:
        """Keys are dropped for a log that is there."""
        open_trail(f"sqlite:///{path}", service="s").close()
        key_file = path.with_name("audit.db.key")
        assert run("rotate", key_file)[0] == 0
        before = key_file.read_bytes()
        for other in (tmp_path / "none.db", key_file):
            assert run("rotate", key_file, "--retire", other)[0] == 2
        assert key_file.read_bytes() == before

    @pytest.fixture
    def key_file(self, path: Path) -> Path:
        """The key of the trail."""
        return path.with_name("audit.db.key")

    @pytest.fixture
    def refused(self, run: Run, key_file: Path) -> Callable[..., str]:
        """Retires, and returns why that is refused, once nothing was changed."""

        def call(*arguments: object) -> str:
            before = key_file.read_bytes()
            asked = [
                part
                for name in arguments
                for part in (("--retire", name) if "--since" not in str(name) else (name,))
            ]
            status, out, told = run("rotate", key_file, *asked)
            assert (status, out, key_file.read_bytes()) == (2, "", before)
            return told

        return call

    @pytest.fixture
    def other(self, path: Path, key_file: Path) -> Callable[[], None]:
        """Opens another log of the same key, and closes it."""

        def call() -> None:
            open_trail(f"sqlite:///{path.parent}/other.db", service="s", key_file=key_file).close()

        call()
        return call

    def test_every_log_of_the_key(
        self, path: Path, key_file: Path, run: Run, other: Callable[[], None], refused: Callable[..., str]
    ) -> None:
        """Keys are dropped once each log that the file began is signed with the new one, not the named one alone."""
        keys.note_begun(key_file, f"{path.parent}/map.db", keys.MAP)
        assert run("rotate", key_file)[0] == 0
        open_trail(f"sqlite:///{path}", service="s").close()
        told = refused(path)
        assert "other.db (line 2 of audit.db.key.logs) is not signed with the new key" in told
        assert "if that log is no more, take the line out" in told
        assert "checkpoint of other.db is not signed" in refused(path, path.with_name("other.db"))
        assert "none.db cannot be asked" in refused(path, path.with_name("none.db"))
        other()
        assert run("rotate", key_file, "--retire", path)[0] == 0
        other()

    @pytest.mark.parametrize(
        "gone",
        [Path.unlink, lambda place: place.write_bytes(b""), lambda place: place.write_bytes(b"x" * 99)],
    )
    def test_a_log_that_cannot_be_asked(
        self, path: Path, key_file: Path, run: Run, other: Callable[[], None], refused: Callable[..., str],
        gone: Callable[[Path], object],
    ) -> None:  # fmt: skip
        """A log that is gone says nothing; who knows that it is no more takes its line out."""
        assert run("rotate", key_file)[0] == 0
        other()
        open_trail(f"sqlite:///{path}", service="s").close()
        gone(path.with_name("other.db"))
        told = refused(path)
        assert "other.db (line 2 of audit.db.key.logs) cannot be asked, so no key was dropped" in told
        assert "if that log is no more, take the line out" in told
        noted = key_file.with_name("audit.db.key.logs")
        noted.write_text(noted.read_text().splitlines()[0])
        assert run("rotate", key_file, "--retire", path)[0] == 0

    def test_a_log_that_is_no_file(
        self, path: Path, key_file: Path, run: Run, other: Callable[[], None], refused: Callable[..., str],
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:  # fmt: skip
        """A log in PostgreSQL is asked where it is named: beside the key its password is not written down."""
        assert run("rotate", key_file)[0] == 0
        other()
        open_trail(f"sqlite:///{path}", service="s").close()
        place = SqliteStore(path.with_name("other.db"))
        place.name = "postgresql:h:5432:d"
        place.path = None
        noted = key_file.with_name("audit.db.key.logs")
        noted.write_text(f"{noted.read_text().splitlines()[0]}\no/r {place.name}\n")
        told = refused(path)
        assert "line 2 of audit.db.key.logs is of a log that is no file; name it too, after --retire" in told
        assert "if that log is no more, take the line out" in told
        found = changes.place_of
        monkeypatch.setattr(changes, "place_of", lambda name: place if "://" in name else found(name))
        assert run("rotate", key_file, "--retire", "postgresql://u:p@h/d", "--retire", path)[0] == 0

    def test_a_process_that_was_not_restarted(
        self, path: Path, key_file: Path, run: Run, refused: Callable[..., str]
    ) -> None:
        """While one signs with the old key alone, now and then, the old key stays."""
        url = f"sqlite:///{path}"
        with contextlib.closing(open_trail(url, service="s")) as old:
            assert run("rotate", key_file)[0] == 0
            old.append({"action": "a.b"})  # 4: before anything signs with the new one
            with contextlib.closing(open_trail(url, service="s")) as new:  # 5
                old.append({"action": "a.b"})
                new.append({"action": "a.b"})
                old.append({"action": "a.b"})
                assert "the latest checkpoint of audit.db is not signed with the new key" in refused(path)
                assert "the latest checkpoint" in refused(path, f"--since={path}=8")
                assert "fewer entries than --since says" in refused(path, f"--since={path}=9")
                new.append({"action": "a.b"})
                told = refused(path)
                assert "audit.db was signed without the new key, lastly at size 8" in told
                assert f"--since {path}=9" in told
                assert "lastly at size 8" in refused(path, f"--since={path}=8")
                old.append({"action": "a.b"})
                new.append({"action": "a.b"})
                assert "lastly at size 10" in refused(path, f"--since={path}=9"), (
                    "it was not restarted after all"
                )
        assert run("rotate", key_file, "--retire", path, f"--since={path}=11")[0] == 0
        open_trail(url, service="s").close()

    def test_since_is_of_one_log(
        self, path: Path, key_file: Path, run: Run, other: Callable[[], None], refused: Callable[..., str]
    ) -> None:
        """What is said of one log passes over nothing of another; of a log that is not asked, or not so written, it is an error."""
        logs = [f"sqlite:///{path}", f"sqlite:///{path.parent}/other.db"]
        open_log = partial(open_trail, service="s", key_file=key_file)
        with contextlib.ExitStack() as stack:
            old = [stack.enter_context(contextlib.closing(open_log(url))) for url in logs]
            assert run("rotate", key_file)[0] == 0
            new = [stack.enter_context(contextlib.closing(open_log(url))) for url in logs]
            for trail in (*old, *new):
                trail.append({"action": "a.b"})
        sizes = [trail.checkpoint().size for trail in new]
        assert "audit.db was signed without the new key" in refused(path)
        told = refused(path, f"--since={path}={sizes[0]}")
        assert "other.db (line 2 of audit.db.key.logs) was signed without the new key" in told
        for wrong in ("/none.db=1", "1", f"{path}=", f"{path}=x", "=1"):
            assert "--since" in refused(
                path,
                f"--since={path}={sizes[0]}",
                f"--since={path.parent}/other.db={sizes[1]}",
                f"--since={wrong}",
            )
        assert (
            run(
                "rotate",
                key_file,
                "--since",
                f"{path}={sizes[0]}",
                "--since",
                f"{path.parent}/other.db={sizes[1]}",
                "--retire",
                path,
            )[0]
            == 0
        )

    def test_a_process_that_was_idle(self, path: Path, key_file: Path, run: Run) -> None:
        """One that signs with dropped keys alone stops the log from opening, until they are put back."""
        url = f"sqlite:///{path}"
        with contextlib.closing(open_trail(url, service="s")) as old:
            assert run("rotate", key_file)[0] == 0
            open_trail(url, service="s").close()
            assert run("rotate", key_file, "--retire", path)[0] == 0
            old.append({"action": "a.b"})
        with pytest.raises(ConfigurationError, match="does not hold the key"):
            open_trail(url, service="s")
        with key_file.open("ab") as file:
            file.write(key_file.with_name("audit.db.key.retired").read_bytes())
        open_trail(url, service="s").close()
        assert run("verify", path)[0] == 0
        assert run("rotate", key_file, "--retire", path)[0] == 2
        assert run("rotate", key_file, "--retire", path, f"--since={path}=6")[0] == 0

    @pytest.mark.parametrize("arguments", [("",), ("AUDIT", ""), ("", "AUDIT")])
    def test_an_empty_name(
        self, path: Path, key_file: Path, run: Run, refused: Callable[..., str], arguments: tuple[str, ...]
    ) -> None:
        """A name that is empty, as an unset variable of a shell is, neither retires nor rotates."""
        assert run("rotate", key_file)[0] == 0
        open_trail(f"sqlite:///{path}", service="s").close()
        assert "empty" in refused(*(path if name else "" for name in arguments))

    def test_since_without_retiring(self, key_file: Path, run: Run) -> None:
        """`--since` is of `--retire`: alone it does not rotate."""
        before = key_file.read_bytes()
        assert run("rotate", key_file, f"--since={key_file}=3")[0] == 2
        assert key_file.read_bytes() == before


class TestForms:
    """`export`, `fsck` and `prove` in other forms."""

    def test_tiles_and_fsck(self, path: Path, tmp_path: Path, run: Run) -> None:
        """Tiles check against the pinned key; damage is named; without a key nothing can be said."""
        vkey = json.loads(run("verify", path, "--json")[1])["vkey"]
        assert run("export", path, "--tiles", tmp_path / "tiles")[:2] == (0, "3 files written\n")
        assert run("fsck", tmp_path / "tiles", "--vkey", vkey)[0] == 0
        assert run("fsck", tmp_path / "tiles")[0] == 2
        bundle = tmp_path / "tiles/tile/entries/000.p/3"
        bundle.write_bytes(bundle.read_bytes().replace(b"s-1", b"s-2"))
        status, out, _ = run("fsck", tmp_path / "tiles", "--vkey", vkey)
        assert (status, out.splitlines()[0][-17:]) == (1, "first bad entry 1")

    def test_fsck_of_a_database(self, path: Path, tmp_path: Path, run: Run) -> None:
        """A good file is good; one whose pages were overwritten is not."""
        assert run("fsck", path)[0] == 0
        copy = Path(shutil.copy(path, tmp_path / "copy.db"))
        content = bytearray(copy.read_bytes())
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
        copy.write_bytes(content)
        assert run("fsck", copy)[0] in {1, 2}

    def test_other_forms(self, path: Path, run: Run) -> None:
        """AuditEvents one on each line, CSV under a line of names, a tlog-proof."""
        lines = run("export", path, "--fhir")[1].splitlines()
        assert [json.loads(line)["resourceType"] for line in lines] == ["AuditEvent"] * 3
        assert run("export", path, "--csv")[1].startswith("index,time,service,action")
        assert run("prove", path, 1, "--tlog-proof")[1].startswith("c2sp.org/tlog-proof@v1\nindex 1\n")
