"""`healthobs audit`: verdicts, exit statuses, proofs and exports, on a copy and without the private key."""

from __future__ import annotations

import base64
import json
import shutil
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from healthobs.audit import entry, merkle, open_trail
from healthobs.audit.checkpoint import Verifier, open_checkpoint
from healthobs.audit.command import main

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def trail(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A closed trail of five entries without its key, and its vkey."""
    path = tmp_path_factory.mktemp("trail") / "audit.db"
    made = open_trail(f"sqlite:///{path}", service="phi-service")
    for number in range(5):
        made.append({"action": "patient.read", "subject": f"s-{number}"})
    made.close()
    path.with_name("audit.db.key").unlink()
    return path, made.vkey


@pytest.fixture
def copy(trail: tuple[Path, str], tmp_path: Path) -> Path:
    return Path(shutil.copy(trail[0], tmp_path / "copy.db"))


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str]) -> Run:
    def run(*arguments: object) -> tuple[int, str, str]:
        status = main([str(argument) for argument in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


def damage(path: Path, *statements: str) -> None:
    connection = sqlite3.connect(path)
    names = connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall()
    for (name,) in names:
        connection.execute(f"DROP TRIGGER {name}")
    for statement in statements:
        connection.execute(statement)
    connection.commit()
    connection.close()


def unb64(text: str) -> bytes:
    return base64.b64decode(text, validate=True)


def test_database_that_cannot_be_reached(run: Run) -> None:
    """What is no file is not called one; nothing of the URL is said."""
    pytest.importorskip("psycopg")
    for command in ("verify", "hold"):
        status, out, err = run(command, "postgresql://ottoline@127.0.0.1:1/x")
        assert (status, out, "the database cannot be read" in err, "ottoline" in err) == (2, "", True, False)


class TestVerify:
    """The verdict and its exit status."""

    def test_good(self, trail: tuple[Path, str], run: Run) -> None:
        """A healthy trail is 0, and says whose key was believed."""
        status, out, err = run("verify", trail[0])
        assert (status, err) == (0, "")
        assert out.splitlines()[:2] == ["ok: 5 entries under 6 checkpoints verify", f"log {trail[1]}"]
        assert "not origin" in out

    def test_pinned_key(self, trail: tuple[Path, str], run: Run) -> None:
        """With the key given there is nothing left to warn of."""
        status, out, _ = run("verify", trail[0], "--vkey", trail[1])
        assert status == 0
        assert "not origin" not in out

    def test_tampered(self, copy: Path, run: Run) -> None:
        """A changed entry is 1; its index comes first, its content never."""
        damage(copy, "UPDATE entry SET body = '078-05-1120' WHERE idx = 3")
        status, out, _ = run("verify", copy)
        assert status == 1
        assert (
            out.splitlines()[0] == "TAMPERED: 5 entries under 6 checkpoints do not verify, first bad entry 3"
        )
        assert "  entry 3: the body is not what was recorded" in out.splitlines()
        assert "078-05" not in out

    def test_wrong_pinned_key(self, trail: tuple[Path, str], tmp_path: Path, run: Run) -> None:
        """A trail signed by another key than the one that is known is tampered."""
        other = open_trail(f"sqlite:///{tmp_path}/other.db", service="s")
        other.close()
        status, out, _ = run("verify", trail[0], "--vkey", other.vkey)
        assert status == 1
        assert "not the expected key" in out

    def test_json(self, copy: Path, trail: tuple[Path, str], run: Run) -> None:
        """The same verdict for machines."""
        _, out, _ = run("verify", copy, "--json", "--vkey", trail[1])
        good = json.loads(out)
        assert good["root"] == _latest(copy).root.hex()
        assert (good["ok"], good["size"], good["checkpoints"], good["vkey_pinned"]) == (True, 5, 6, True)
        assert (good["first_bad_index"], good["problems"]) == (None, [])
        damage(copy, "DELETE FROM entry WHERE idx = 2")
        _, out, _ = run("verify", copy, "--json")
        bad = json.loads(out)
        assert (bad["ok"], bad["first_bad_index"], bad["root"], bad["vkey_pinned"]) == (False, 2, None, False)
        assert {"index": 2, "what": "the entry is missing"} in bad["problems"]

    def test_kept_checkpoint(self, trail: tuple[Path, str], copy: Path, tmp_path: Path, run: Run) -> None:
        """A later checkpoint kept in a file betrays an earlier state of the log."""
        kept = tmp_path / "kept"
        kept.write_text(_latest(trail[0]).note)
        assert run("verify", copy, "--checkpoint", kept)[0] == 0
        connection = sqlite3.connect(copy)
        guards = [
            sql for (sql,) in connection.execute("SELECT sql FROM sqlite_master WHERE type = 'trigger'")
        ]
        connection.close()
        damage(copy, "DELETE FROM entry WHERE idx > 1", "DELETE FROM checkpoint WHERE size > 2", *guards)
        assert run("verify", copy)[0] == 0
        status, out, _ = run("verify", copy, "--checkpoint", kept)
        assert status == 1
        assert "first bad entry 2" in out

    def test_leaves_the_evidence_alone(self, copy: Path, run: Run) -> None:
        """Nothing in or beside the file changes, so it works on a read-only copy."""
        before = copy.read_bytes(), copy.stat().st_mtime_ns
        run("verify", copy)
        assert (copy.read_bytes(), copy.stat().st_mtime_ns) == before
        assert [item.name for item in copy.parent.iterdir()] == [copy.name]

    def test_copy_in_wal_mode(self, copy: Path, run: Run) -> None:
        """A copy of a log in write-ahead mode needs no files beside it."""
        connection = sqlite3.connect(copy)
        connection.execute("PRAGMA journal_mode = WAL")
        connection.close()
        assert run("verify", copy)[0] == 0
        assert [item.name for item in copy.parent.iterdir()] == [copy.name]


class TestCannotSay:
    """What is no answer is exit status 2."""

    @pytest.mark.parametrize(
        ("content", "word"),
        [(b"078-05-1120 " * 400, "SQLITE_NOTADB"), (b"", "no audit trail"), (None, "No such file")],
    )
    def test_no_trail(self, tmp_path: Path, run: Run, content: bytes | None, word: str) -> None:
        """A missing, empty or foreign file is 2, on standard error, without its content."""
        path = tmp_path / "x.db"
        if content is not None:
            path.write_bytes(content)
        status, out, err = run("verify", path)
        assert (status, out) == (2, "")
        assert err.startswith("cannot say: ")
        assert word in err
        assert "078-05" not in err

    def test_foreign_database(self, tmp_path: Path, run: Run) -> None:
        """Somebody else's database is 2."""
        connection = sqlite3.connect(tmp_path / "x.db")
        connection.execute("CREATE TABLE patient (id)")
        connection.close()
        assert run("verify", tmp_path / "x.db")[0] == 2

    @pytest.mark.parametrize(
        "arguments",
        [
            ("verify", "--vkey", "nonsense"),
            ("verify", "--checkpoint", "/nonexistent"),
            ("prove", "99"),
            ("prove", "-1"),
            ("consistency", "0"),
            ("consistency", "9"),
            ("consistency", "3", "2"),
        ],
    )
    def test_bad_arguments(self, trail: tuple[Path, str], run: Run, arguments: tuple[str, ...]) -> None:
        """What cannot be answered is 2, with the reason."""
        command, *rest = arguments
        status, out, err = run(command, trail[0], *rest)
        assert (status, out) == (2, "")
        assert err.startswith("cannot say: ")

    def test_breaks_off(self, trail: tuple[Path, str], run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
        """A fault of the command itself is no verdict on the trail."""
        monkeypatch.setattr("healthobs.audit.verification.verify", None)
        assert run("verify", trail[0]) == (2, "", "cannot say: the command broke off (TypeError)\n")

    @pytest.mark.parametrize("arguments", [[], ["nonsense"], ["verify"], ["prove", "x.db", "one"]])
    def test_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong usage is 2 with the usage."""
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 2
        assert "usage: healthobs audit" in capsys.readouterr().err


class TestCheckpoint:
    """The latest checkpoint."""

    def test_prints_the_note(self, trail: tuple[Path, str], run: Run) -> None:
        """What is printed is the signed note itself, ready to be kept."""
        status, out, _ = run("checkpoint", trail[0])
        assert status == 0
        assert open_checkpoint(out, Verifier(trail[1])).size == 5

    def test_json(self, trail: tuple[Path, str], run: Run) -> None:
        """As JSON it comes with the key."""
        _, out, _ = run("checkpoint", trail[0], "--json")
        answer = json.loads(out)
        assert (answer["size"], answer["vkey"]) == (5, trail[1])
        assert unb64(answer["root"]) == _latest(trail[0]).root

    def test_forged(self, copy: Path, run: Run) -> None:
        """A checkpoint that does not verify is not handed out, and nothing is proved with it."""
        damage(copy, "UPDATE checkpoint SET note = replace(note, char(10) || '5', char(10) || '6')")
        status, out, err = run("checkpoint", copy)
        assert (status, out) == (1, "")
        assert "latest checkpoint" in err
        assert run("prove", copy, 1)[0] == run("consistency", copy, 5)[0] == 1


class TestProve:
    """Inclusion proofs for somebody else."""

    @pytest.mark.parametrize("index", range(5))
    def test_proof_stands_alone(self, trail: tuple[Path, str], run: Run, index: int) -> None:
        """The printed proof verifies with nothing but the entry's bytes and the vkey."""
        status, out, _ = run("prove", trail[0], index)
        answer = json.loads(out)
        signed = open_checkpoint(answer["checkpoint"]["note"], Verifier(trail[1]))
        path = [unb64(node) for node in answer["path"]]
        leaf = merkle.leaf_hash(_body(trail[0], index))
        assert (status, answer["index"], unb64(answer["leaf"])) == (0, index, leaf)
        assert merkle.verify_inclusion(leaf, index, signed.size, path, signed.root)

    def test_tampered(self, copy: Path, run: Run) -> None:
        """No proof is printed for an entry that is not under the signed root."""
        damage(copy, "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 1")
        status, out, _ = run("prove", copy, 1)
        assert status == 1
        assert "not under the signed root" in out

    @pytest.mark.parametrize(
        ("statement", "word"),
        [
            ("UPDATE entry SET body = replace(body, 's-1', 's-9') WHERE idx = 1", "not what was recorded"),
            ("UPDATE entry SET body = NULL WHERE idx = 1", "body is missing"),
            ("DELETE FROM entry WHERE idx <= 1", "is missing"),
        ],
    )
    def test_other_body(self, copy: Path, run: Run, statement: str, word: str) -> None:
        """Nor for one whose body is not what was recorded, or is gone without an order."""
        damage(copy, statement)
        status, out, err = run("prove", copy, 1)
        assert (status, out) == (1, "")
        assert word in err

    def test_missing_entry(self, copy: Path, run: Run) -> None:
        """A hole in the log is named."""
        damage(copy, "DELETE FROM entry WHERE idx = 1")
        status, _, err = run("prove", copy, 3)
        assert status == 1
        assert "entry 1" in err


class TestConsistency:
    """Consistency proofs for somebody else."""

    @pytest.mark.parametrize(("old", "new"), [(1, 5), (2, 3), (5, 5), (4, None)])
    def test_proof_stands_alone(self, trail: tuple[Path, str], run: Run, old: int, new: int | None) -> None:
        """The printed proof connects the two signed roots."""
        status, out, _ = run("consistency", trail[0], old, *([] if new is None else [new]))
        answer = json.loads(out)
        path = [unb64(node) for node in answer["path"]]
        roots = unb64(answer["old_root"]), unb64(answer["new_root"])
        assert (status, answer["old"], answer["new"]) == (0, old, new or 5)
        assert merkle.verify_consistency(old, new or 5, path, *roots)

    def test_no_checkpoint_at_that_size(self, copy: Path, run: Run) -> None:
        """Where no batch ended there is a proof but no signed root."""
        damage(copy, "DELETE FROM checkpoint WHERE size = 2")
        status, out, _ = run("consistency", copy, 2)
        assert (status, json.loads(out)["old_root"]) == (0, None)

    def test_rewritten(self, copy: Path, run: Run) -> None:
        """A log that does not extend what it was is tampered."""
        damage(copy, "UPDATE entry SET leaf = zeroblob(32) WHERE idx = 0")
        status, out, _ = run("consistency", copy, 3)
        assert status == 1
        assert "does not extend" in out


class TestExport:
    """All entries, as lines."""

    def test_every_entry_as_a_line(self, trail: tuple[Path, str], run: Run) -> None:
        """Each line is an entry whose canonical form gives back the leaf."""
        status, out, _ = run("export", trail[0])
        lines: list[dict[str, Any]] = [json.loads(line) for line in out.splitlines()]
        assert status == 0
        assert [line["index"] for line in lines] == list(range(5))
        for line in lines:
            line.pop("index")
            leaf = line.pop("hash")
            assert merkle.leaf_hash(entry.canonical(line).encode()).hex() == leaf

    def test_unreadable_entry(self, copy: Path, run: Run) -> None:
        """An entry that cannot be read is a line that says so."""
        damage(copy, "UPDATE entry SET body = 'x' WHERE idx = 1")
        status, out, err = run("export", copy)
        assert (status, json.loads(out.splitlines()[1])["unreadable"]) == (1, True)
        assert "at entry 1: the body is not what was recorded" in err

    @pytest.mark.parametrize("form", ["--json", "--csv", "--fhir", "--tiles"])
    @pytest.mark.parametrize(
        ("statement", "index", "word"),
        [
            ("UPDATE entry SET body = replace(body, 's-3', 's-9') WHERE idx = 3", 3, "not what was recorded"),
            (
                "UPDATE entry SET body = body || printf('%70000s', '') WHERE idx = 3",
                3,
                "not what was recorded",
            ),
            ("UPDATE entry SET body = NULL WHERE idx = 3", 3, "body is missing"),
            ("UPDATE entry SET leaf = zeroblob(32) WHERE idx = 3", 3, "not what was recorded"),
            ("DELETE FROM entry WHERE idx = 3", 3, "is missing"),
            ("DELETE FROM entry WHERE idx < 2", 0, "is missing"),
            ("DELETE FROM entry WHERE idx > 3", 4, "missing"),
        ],
    )
    def test_tampered(
        self, copy: Path, tmp_path: Path, run: Run, form: str, statement: str, index: int, word: str
    ) -> None:
        """What was not recorded so, or is gone without an order, is 1 with the first bad entry; the rest goes out all the same."""
        damage(copy, statement)
        out_to = tmp_path / "tiles"
        status, out, err = run("export", copy, form, *([out_to] if form == "--tiles" else []))
        assert status == 1
        assert f"entry {index}: " in err
        assert word in err
        assert "s-9" not in out
        if form == "--tiles":
            assert (out_to / "checkpoint").exists()
            assert run("fsck", out_to, "--erased", "--vkey", _vkey(copy))[0] == 1
        else:
            assert "s-2" in out

    @pytest.mark.parametrize("form", ["--json", "--csv", "--fhir"])
    @pytest.mark.parametrize("name", ["reason", "action", "details"])
    def test_rewritten_to_what_no_text_can_hold(self, copy: Path, run: Run, form: str, name: str) -> None:
        """Half a character in an entry, its leaf made to fit, keeps neither the others from going out nor the verdict."""
        half = {"\ud800": 1} if name == "details" else "\ud800"
        rewritten = json.dumps({**json.loads(_body(copy, 3)), name: half})
        leaf = merkle.leaf_hash(rewritten.encode()).hex()
        damage(copy, f"UPDATE entry SET body = '{rewritten}', leaf = x'{leaf}' WHERE idx = 3")
        status, out, err = run("export", copy, form)
        assert (status, "TAMPERED" in err) == (1, True)
        assert "s-2" in out
        assert "s-4" in out

    @pytest.mark.parametrize("form", ["--json", "--csv", "--fhir", "--tiles"])
    def test_good(self, trail: tuple[Path, str], tmp_path: Path, run: Run, form: str) -> None:
        """Of a good trail each form is 0, without a word on standard error."""
        status, _, err = run("export", trail[0], form, *([tmp_path / "tiles"] if form == "--tiles" else []))
        assert (status, err) == (0, "")


def _latest(path: Path) -> Any:
    connection = sqlite3.connect(path)
    (note,) = connection.execute("SELECT note FROM checkpoint ORDER BY size DESC").fetchone()
    (vkey,) = connection.execute("SELECT vkey FROM log").fetchone()
    connection.close()
    return open_checkpoint(note, Verifier(vkey))


def _vkey(path: Path) -> str:
    connection = sqlite3.connect(path)
    (vkey,) = connection.execute("SELECT vkey FROM log").fetchone()
    connection.close()
    return str(vkey)


def _body(path: Path, index: int) -> bytes:
    connection = sqlite3.connect(path)
    (body,) = connection.execute("SELECT body FROM entry WHERE idx = ?", (index,)).fetchone()
    connection.close()
    return str(body).encode()
