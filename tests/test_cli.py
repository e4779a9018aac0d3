"""The command `healthobs`: its own commands, plugged-in ones, and what it says when there is none."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from importlib.metadata import EntryPoint, EntryPoints, version
from pathlib import Path

import pytest

from healthobs import cli
from healthobs.audit import open_trail
from healthobs.compliance.control import STATES


@pytest.fixture
def plugged(monkeypatch: pytest.MonkeyPatch) -> None:
    """Entry points that answer, fail to load, and try to take the name of an own command."""
    points = EntryPoints(
        [
            EntryPoint("echo", f"{__name__}:echo", cli.GROUP),
            EntryPoint("demo", f"{__name__}:echo", cli.GROUP),
            EntryPoint("silent", f"{__name__}:silent", cli.GROUP),
            EntryPoint("gone", "no_such_module:main", cli.GROUP),
            EntryPoint("bare", f"{__name__}:no_such_function", cli.GROUP),
            EntryPoint("audit", f"{__name__}:echo", cli.GROUP),
        ]
    )
    monkeypatch.setattr(cli, "entry_points", lambda group: points.select(group=group))


def echo(argv: list[str]) -> int:
    print("|".join(argv))
    return 7


def silent(argv: list[str]) -> None:
    assert argv == []


class NobodyReads(io.StringIO):
    """A standard output whose reader has gone."""

    def write(self, _text: str) -> int:
        """Fail as a pipe does."""
        raise BrokenPipeError


class TestBrokenPipe:
    """`| head` and the like."""

    def test_process(self, tmp_path: Path) -> None:
        """It ends quietly, with the status that a shell shows for a tool whose reader has gone."""
        log = tmp_path / "a.log"
        log.write_text('{"trace_id": "t1", "event": "x"}\n')
        reading, writing = os.pipe()
        os.close(reading)
        try:
            done = subprocess.run(
                [sys.executable, "-m", "healthobs", "explain", "t1", "--logs", log],
                stdout=writing, stderr=subprocess.PIPE, check=False,
            )  # fmt: skip
        finally:
            os.close(writing)
        assert (done.returncode, done.stderr) == (cli.BROKEN_PIPE, b"")

    @pytest.mark.parametrize("command", ["audit", "compliance", "explain"])
    def test_in_the_middle(
        self,
        command: str,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """No command takes it for a fault of what it reads."""
        database, saved = tmp_path / "audit.db", tmp_path / "saved.json"
        trail = open_trail(f"sqlite:///{database}", service="svc")
        trail.append({"action": "patient.read", "actor": "client-1"})
        trail.close()
        counts = dict.fromkeys(STATES, 0)
        saved.write_text(json.dumps({"controls": [], "counts": counts, "disclaimer": "x", "trace_id": "t1"}))
        arguments = {
            "audit": ["export", str(database)],
            "compliance": ["status", str(saved)],
            "explain": ["t1", "--logs", str(saved)],
        }
        monkeypatch.setattr(sys, "stdout", NobodyReads())
        assert cli.main([command, *arguments[command]]) == cli.BROKEN_PIPE
        assert capsys.readouterr().err == ""


class TestMain:
    """One door to all commands."""

    def test_version(self, capsys: pytest.CaptureFixture[str]) -> None:
        """The version is that of the installed distribution."""
        assert cli.main(["--version"]) == 0
        assert capsys.readouterr().out == f"healthobs {version('healthobs')}\n"

    def test_no_command(self, capsys: pytest.CaptureFixture[str], plugged: None) -> None:
        """Without a command the help lists own and plugged-in ones; that is no success."""
        assert cli.main([]) == 2
        out = capsys.readouterr().out
        assert "audit" in out
        assert "echo" in out

    def test_audit(self, tmp_path: Path, capsys: pytest.CaptureFixture[str], plugged: None) -> None:
        """`audit` is the library's own, whatever is plugged in; its status is passed on."""
        assert cli.main(["audit", "verify", str(tmp_path / "none.db")]) == 2
        assert "cannot say" in capsys.readouterr().err

    def test_plugin_gets_the_rest(self, capsys: pytest.CaptureFixture[str], plugged: None) -> None:
        """All arguments after the name, options included, go to the plug-in, and its status comes back."""
        assert cli.main(["echo", "--version", "-h", "x", "--", "y"]) == 7
        assert capsys.readouterr().out == "--version|-h|x|--|y\n"

    def test_plugin_without_a_status(self, plugged: None) -> None:
        """A plug-in that returns nothing was successful."""
        assert cli.main(["silent"]) == 0

    @pytest.mark.parametrize("name", ["gone", "bare"])
    def test_plugin_that_cannot_be_loaded(
        self, capsys: pytest.CaptureFixture[str], plugged: None, name: str
    ) -> None:
        """A broken plug-in is named, with the reason."""
        assert cli.main([name]) == 2
        assert f"the command {name} of" in capsys.readouterr().err

    def test_unknown_command(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no command is refused without being repeated."""
        assert cli.main(["078-05-1120"]) == 2
        assert "078" not in capsys.readouterr().err

    def test_demo_with_its_services(self, capsys: pytest.CaptureFixture[str], plugged: None) -> None:
        """It is a plug-in like any other."""
        assert cli.main(["demo", "x"]) == 7
        assert capsys.readouterr().out == "x\n"

    def test_demo_without_its_services(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The command that another distribution of the project brings is known, and what to install is said."""
        monkeypatch.setattr(cli, "entry_points", lambda **_: ())
        assert cli.main(["demo"]) == 2
        assert capsys.readouterr().err == (
            "healthobs: demo comes with the reference services; install ./reference_services of the project\n"
        )

    @pytest.mark.parametrize("asked", ["--help", "-h"])
    def test_help_on_demo_without_its_services(
        self, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """To ask what it is is no error."""
        monkeypatch.setattr(cli, "entry_points", lambda **_: ())
        assert cli.main(["demo", asked]) == 0
        told = capsys.readouterr()
        assert ("install ./reference_services" in told.out, told.err) == (True, "")

    def test_own_arguments(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Without arguments given, those of the process are used."""
        monkeypatch.setattr(sys, "argv", ["healthobs", "--version"])
        assert cli.main() == 0
        assert capsys.readouterr().out.startswith("healthobs ")

    def test_as_a_module(self) -> None:
        """`python -m healthobs` is the same command, with its exit status."""
        done = subprocess.run(
            [sys.executable, "-m", "healthobs", "audit", "verify", "/nonexistent"],
            capture_output=True,
            text=True,
            check=False,
        )
        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr.startswith("cannot say: ")
