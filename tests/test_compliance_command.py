"""Tests of `healthobs compliance`: status and gate, export, signing; against files and a real server."""

from __future__ import annotations

import io
import json
import socket
import threading
from collections.abc import Iterator
from datetime import UTC, date, datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, make_server

import pytest
import urllib3
from flask import Flask

from healthobs import Observability, Settings
from healthobs.cli import main as healthobs
from healthobs.compliance import Control, Outcome
from healthobs.compliance.documents import read
from healthobs.compliance.probes_audit import NO_TRAIL
from healthobs.compliance.probes_http import NO_APPLICATION, NO_ROUTES
from healthobs.flask import init_app, remove_app


def run(*arguments: object) -> int:
    """Run `healthobs compliance`."""
    return healthobs(["compliance", *map(str, arguments)])


class Quiet(WSGIRequestHandler):
    """Logs nothing."""

    def log_message(self, *_: Any) -> None:
        """Do nothing."""


@pytest.fixture
def outcome() -> dict[str, Any]:
    """What the one required control sees."""
    return {"state": "pass"}


@pytest.fixture
def service(outcome: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[str, Observability]]:
    """A service over HTTP on the loopback address, with one control that is required."""
    monkeypatch.setattr("healthobs.compliance.wiring.library_controls", lambda: ())
    control = Control(
        "S-1",
        "policy 7",
        "company",
        "Ledger",
        "sum is 0",
        "measure",
        lambda _: Outcome(outcome["state"], outcome.get("text", "sum"), unset=outcome.get("unset", False)),
    )
    settings = Settings(service_name="svc", endpoints=True, control_interval_seconds=0)
    obs = Observability(settings, log_stream=io.StringIO(), controls=[control])
    app = init_app(
        Flask("svc"), obs, authorize=lambda asked, _: SimpleNamespace(subject="auditor")
        if asked.headers.get("authorization") == "Bearer good" else None,
    )  # fmt: skip
    server = make_server("127.0.0.1", 0, app, handler_class=Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}", obs
    server.shutdown()
    thread.join()
    server.server_close()
    remove_app(app)
    obs.close()


class TestStatus:
    """`healthobs compliance status`."""

    def test_of_a_service(self, service: Any, capsys: pytest.CaptureFixture[str]) -> None:
        """One line a control, counts, and the disclaimer."""
        url, obs = service
        obs.controls.run()
        assert run("status", url) == 0
        lines = capsys.readouterr().out.splitlines()
        assert "pass           * S-1           Ledger (policy 7)" in lines
        assert "* the gate requires it" in lines
        assert lines[-1].startswith("1 pass, 0 fail")
        assert lines[-1].endswith("(run-time evidence, not certification)")

    @pytest.mark.parametrize(("state", "status"), [("pass", 0), ("fail", 1), ("partial", 1), ("unknown", 1)])
    def test_gate(self, service: Any, outcome: dict[str, Any], state: str, status: int) -> None:
        """With `--gate` the exit status is the gate's; without it a failure is shown and no error."""
        url, obs = service
        outcome["state"] = state
        obs.controls.run()
        assert [run("status", url, "--gate"), run("status", f"{url}/compliance/status")] == [status, 0]

    def test_saved_document(self, service: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """`--json` saves what the service said; the file says the same."""
        url, obs = service
        obs.controls.run()
        assert run("status", url, "--json") == 0
        path = tmp_path / "status.json"
        path.write_text(capsys.readouterr().out)
        assert json.loads(path.read_text()) == obs.controls.status()
        assert run("status", path, "--gate") == 0

    @pytest.mark.parametrize(
        ("change", "status"),
        [
            ({"observed_at": "2026-11-26T00:00:00Z"}, 1),
            ({"observed_at": "2999-11-26T00:00:00Z"}, 1),
            ({"state": "fail", "waived_until": "2026-11-26"}, 1),
            ({"state": "fail", "waived_until": "2999-11-26"}, 0),
        ],
    )
    def test_saved_document_grows_old(
        self, service: Any, tmp_path: Path, change: dict[str, str], status: int
    ) -> None:
        """The gate believes no evidence that has run out, nor a waiver after its last day."""
        _, obs = service
        obs.controls.run()
        document = obs.controls.status(detail=True)
        path = tmp_path / "status.json"
        path.write_text(json.dumps(document))
        assert run("status", path, "--gate") == 0
        document["controls"][0] |= change
        path.write_text(json.dumps(document))
        assert [run("status", path, "--gate"), run("status", path)] == [status, 0]

    def test_token_goes_to_nobody_else(
        self, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where a service sends its caller elsewhere, the token does not go along."""
        url, obs = service
        obs.controls.run()
        monkeypatch.setenv("HEALTHOBS_TOKEN", "good")
        assert (run("status", url, "--json"), '"evidence":' in capsys.readouterr().out) == (0, True)

        def elsewhere(_environ: object, start_response: Any) -> list[bytes]:
            start_response("302 Found", [("Location", f"{url}/compliance/status")])
            return []

        with make_server("127.0.0.1", 0, elsewhere, handler_class=Quiet) as server:
            thread = threading.Thread(target=server.serve_forever, args=(0.01,))
            thread.start()
            try:
                assert run("status", f"http://127.0.0.1:{server.server_port}", "--json") == 0
            finally:
                server.shutdown()
                thread.join()
        assert '"evidence":' not in capsys.readouterr().out

    def test_nothing_required_is_no_open_gate(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A status in which nothing is required has shown nothing."""
        path = tmp_path / "status.json"
        path.write_text(json.dumps({"controls": [], "counts": dict.fromkeys(
            ("pass", "fail", "partial", "not-applicable", "unknown", "attested"), 0), "disclaimer": "x"}))  # fmt: skip
        assert run("status", path, "--gate") == 1
        assert "nothing is required" in capsys.readouterr().out

    def test_why_the_gate_is_shut(
        self,
        service: Any,
        outcome: dict[str, Any],
        tmp_path: Path,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """`--gate` names each control that keeps it shut and why: what it rests on, for who may see that."""
        url, obs = service
        token = tmp_path / "token"
        token.write_text("good")
        assert run("status", url, "--gate") == 1
        assert capsys.readouterr().out.splitlines()[-2:] == [
            "the gate is shut by 1 of 1 required controls:",
            "  S-1           unknown: nothing has observed it yet",
        ]
        for state, why in (("fail", "what was seen breaks it"), ("partial", "a part was not shown")):
            outcome["state"] = state
            obs.controls.run()
            assert run("status", url, "--gate") == 1
            assert capsys.readouterr().out.endswith(f"  S-1           {state}: {why}\n")
        assert run("status", url, "--gate", "--token-file", token) == 1
        assert capsys.readouterr().out.endswith("  S-1           partial: sum\n")
        assert run("status", url, "--gate", "--json") == 1
        printed = capsys.readouterr()
        assert json.loads(printed.out)["controls"]
        assert printed.err.endswith("  S-1           partial: a part was not shown\n")

    def test_the_409_says_why(self, service: Any, outcome: dict[str, Any]) -> None:
        """The rows that keep the gate shut say so in the answer, and without `gate=1` none does."""
        url, obs = service
        outcome["state"] = "fail"
        obs.controls.run()
        answers = [urllib3.request("GET", f"{url}/compliance/status{query}") for query in ("?gate=1", "")]
        assert [(answer.status, answer.json()["controls"][0].get("shuts_gate")) for answer in answers] == [
            (409, "fail: what was seen breaks it"),
            (200, None),
        ]

    def test_set_up_that_lacks_something_is_told_to_everybody(
        self, service: Any, outcome: dict[str, Any], capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Where the set-up leaves a probe nothing to look at, the gate says so, also to who may see no evidence."""
        url, obs = service
        outcome.update(state="unknown", unset=True)
        obs.controls.run()
        assert run("status", url, "--gate") == 1
        assert capsys.readouterr().out.endswith("  S-1           unknown: sum\n")
        gate = urllib3.request("GET", f"{url}/compliance/status?gate=1").json()["controls"][0]
        assert (gate["shuts_gate"], gate["lacks"]) == ("unknown: sum", "sum")
        outcome["text"] = "no ledger for 078-05-1120"
        obs.controls.run()
        gate = urllib3.request("GET", f"{url}/compliance/status?gate=1").json()["controls"][0]
        assert gate["lacks"] == "no ledger for [PHI:ssn]"
        outcome.update(unset=False, text="sum")
        obs.controls.run()
        gate = urllib3.request("GET", f"{url}/compliance/status?gate=1").json()["controls"][0]
        assert gate["shuts_gate"] == "unknown: what was seen is too old, or told nothing"
        assert "lacks" not in gate

    def test_what_was_seen_is_not_told_to_everybody(self) -> None:
        """Only where nothing could be looked at does the set-up lack something; the library says so of three things."""
        with pytest.raises(ValueError, match="its state is unknown"):
            Outcome("pass", "the ledger of Ottoline is 0", unset=True)
        assert (NO_TRAIL.unset, NO_APPLICATION.unset, NO_ROUTES.unset) == (True, True, True)

    def test_source_that_is_no_file(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What is there and cannot be read is not called missing."""
        assert run("status", str(tmp_path)) == 2
        assert "no such file" not in capsys.readouterr().err

    def test_address_without_a_scheme(self, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no file may be an address: the error says what one begins with."""
        assert run("status", "localhost:18080") == 2
        told = capsys.readouterr().err
        assert told == (
            "healthobs compliance: the source cannot be read: there is no such file; the address of a service begins with http:// or https://\n"
        )

    @pytest.mark.parametrize("content", [b"", b"[]", b"{}", b"\xff", b'"controls"'])
    def test_no_status(self, tmp_path: Path, content: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no status is 2, with a reason."""
        path = tmp_path / "status.json"
        path.write_bytes(content)
        assert run("status", path) == 2
        assert capsys.readouterr().err.startswith("healthobs compliance: ")

    @pytest.mark.parametrize(
        "change",
        [
            lambda status: status.update(controls=5),
            lambda status: status.update(controls=[{}]),
            lambda status: status.update(controls=[5]),
            lambda status: status["controls"][0].update(state="good"),
            lambda status: status["controls"][0].update(state=["pass"]),
            lambda status: status["controls"][0].update(required="no"),
            lambda status: status["controls"][0].update(waived_until=5),
            lambda status: status["controls"][0].update(waived_until="for ever"),
            lambda status: status["controls"][0].update(observed_at="now"),
            lambda status: status["controls"][0].update(observed_at="2026-11-27T00:00:00"),
            lambda status: status["controls"][0].update(valid_for_s="600"),
            lambda status: status["controls"][0].update(id=["S-1"]),
            lambda status: status["controls"][0].update(lacks=5),
            lambda status: status["controls"][0].update(evidence=5),
            lambda status: status["controls"][0].pop("observed_at"),
            lambda status: status.update(counts={}),
            lambda status: status.update(counts=5),
            lambda status: status.pop("disclaimer"),
        ],
    )
    @pytest.mark.parametrize("options", [[], ["--gate"], ["--gate", "--json"]])
    def test_other_shape(
        self,
        service: Any,
        tmp_path: Path,
        change: Any,
        options: list[str],
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """A status of another shape is no shut gate: it is 2, with a reason, and nothing is printed of it."""
        _, obs = service
        status = obs.controls.status()
        change(status)
        path = tmp_path / "status.json"
        path.write_text(json.dumps(status))
        assert run("status", path, *options) == 2
        assert capsys.readouterr() == ("", "healthobs compliance: the source is no compliance status\n")

    def test_too_deep(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """Nor is JSON that nobody can read a shut gate."""
        path = tmp_path / "status.json"
        path.write_text("[" * 200_000)
        assert run("status", path, "--gate") == 2
        assert capsys.readouterr().err == "healthobs compliance: the source is no JSON document\n"

    @pytest.mark.parametrize(
        "source", ["http://127.0.0.1:port/", "http://[::1/", "http://", "http://exa mple/", "https://\u2028/"]
    )
    def test_no_url(self, source: str, capsys: pytest.CaptureFixture[str]) -> None:
        """What is no URL is 2, with a reason."""
        assert run("status", source, "--gate") == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith("healthobs compliance: the source ")

    @pytest.mark.parametrize(
        "answer", [b"SSH-2.0-x\r\n", b"", b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}"]
    )
    def test_no_http(self, answer: bytes, capsys: pytest.CaptureFixture[str]) -> None:
        """So is a server that does not speak HTTP, or breaks off."""
        with socket.create_server(("127.0.0.1", 0)) as listening:

            def serve() -> None:
                connection, _ = listening.accept()
                with connection:
                    connection.recv(4096)
                    connection.sendall(answer)

            thread = threading.Thread(target=serve)
            thread.start()
            status = run("status", f"http://127.0.0.1:{listening.getsockname()[1]}", "--gate")
            thread.join()
        (line,) = capsys.readouterr().err.splitlines()
        assert (status, line[:35]) == (
            2,
            "healthobs compliance: the source is"
            if answer[-2:] == b"{}"
            else "healthobs compliance: the source ca",
        )

    @pytest.mark.parametrize("token", ["se\ncret", "secr\u20ac", "\u0000secret"])
    def test_token_that_cannot_be_sent(
        self, service: Any, tmp_path: Path, token: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A token that is none is named as that, and never printed."""
        url, _ = service
        (tmp_path / "token").write_text(token)
        assert run("status", url, "--gate", "--token-file", tmp_path / "token") == 2
        assert capsys.readouterr() == (
            "",
            "healthobs compliance: the token is none: letters, digits and -._~+/= only\n",
        )

    @pytest.mark.parametrize("source", ["/none/such.json", "http://127.0.0.1:9/"])
    def test_cannot_be_read(self, source: str, capsys: pytest.CaptureFixture[str]) -> None:
        """So is what cannot be read."""
        assert run("status", source) == 2
        assert "cannot be read" in capsys.readouterr().err

    @pytest.mark.parametrize("arguments", [[], ["status"], ["export", "x"], ["nothing"]])
    def test_usage(self, arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """Wrong arguments are 2."""
        assert run(*arguments) == 2
        assert "usage" in capsys.readouterr().err

    @pytest.mark.parametrize("asked", ["--help", "-h"])
    def test_help_on_sabotage_where_nothing_may_be_broken(
        self, asked: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """It says what is to be installed; without asking for help that is an error."""
        monkeypatch.setattr("healthobs.compliance.command.entry_points", lambda **_: ())
        assert run("sabotage", asked) == 0
        told = capsys.readouterr()
        assert ("install reference-services" in told.out, told.err) == (True, "")
        assert run("sabotage") == 2
        assert "install reference-services" in capsys.readouterr().err

    def test_help(self, capsys: pytest.CaptureFixture[str]) -> None:
        """Help is no error."""
        assert run("--help") == 0
        assert "sabotage" in capsys.readouterr().out


class TestExport:
    """`healthobs compliance export --oscal`."""

    def test_with_evidence(
        self,
        service: Any,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        capsys: pytest.CaptureFixture[str],
    ) -> None:
        """With a token from a file or the environment the export has a finding; the token is not printed."""
        url, obs = service
        obs.controls.run()
        (tmp_path / "token").write_text("good\n")
        assert run("export", url, "--oscal", "--token-file", tmp_path / "token") == 0
        document = json.loads(capsys.readouterr().out)
        (finding,) = document["assessment-results"]["results"][0]["findings"]
        assert finding["target"]["target-id"] == "s-1"
        monkeypatch.setenv("HEALTHOBS_TOKEN", "good")
        assert run("export", url, "--oscal") == 0
        assert "good" not in capsys.readouterr().out

    def test_without(
        self, service: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """Without evidence, or with a token that is refused, there is no export."""
        url, _ = service
        statuses = [run("export", url, "--oscal")]
        monkeypatch.setenv("HEALTHOBS_TOKEN", "bad")
        statuses.append(run("export", url, "--oscal"))
        printed = capsys.readouterr()
        assert (statuses, printed.out) == ([2, 2], "")
        assert "compliance:read" in printed.err
        assert "the service answered 403" in printed.err


class TestSign:
    """`healthobs compliance sign`."""

    def test_attestation(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        """What is printed is read again under the key that is named, and holds the paper's digest."""
        (tmp_path / "paper.pdf").write_bytes(b"signed lists")
        arguments = (
            "--key",
            tmp_path / "officer.key",
            "--person",
            "privacy-officer",
            "--expires",
            "2099-12-31",
        )
        status = run(
            "sign", "attestation", "H-308.5", *arguments,
            "--statement", "all were trained", "--paper", tmp_path / "paper.pdf",
        )  # fmt: skip
        printed = capsys.readouterr()
        vkey = printed.err.split()[-1]
        signed = read(printed.out.encode(), [vkey])
        assert (status, signed.person, signed.document.control) == (0, "privacy-officer", "H-308.5")
        assert signed.document.document_sha256 == sha256(b"signed lists").hexdigest()
        assert signed.document.holds(datetime.now(UTC).date())
        assert not signed.document.holds(date(2100, 1, 1))

    @pytest.mark.parametrize(
        ("kind", "more", "why"),
        [
            ("attestation", [], "an attestation needs --paper"),
            ("attestation", ["--paper", "/none"], "the paper cannot be read (No such file or directory)"),
            ("waiver", ["--paper", "/"], "the paper cannot be read (Is a directory)"),
        ],
    )
    def test_paper(
        self, tmp_path: Path, kind: str, more: list[str], why: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A paper that is missing is called one, and no key is made."""
        key = ("--key", tmp_path / "k", "--person", "officer", "--statement", "x", "--expires", "2099-12-31")
        assert run("sign", kind, "H-308.5", *key, *more) == 2
        printed = capsys.readouterr()
        assert (printed.out, why in printed.err, (tmp_path / "k").exists()) == ("", True, False)

    @pytest.mark.parametrize(
        ("name", "known"),
        [
            ("H-528", True),
            ("HDR", True),
            ("G-wrap", True),
            ("C-3.5.db", True),
            ("X-9", False),
            ("H-528x", False),
        ],
    )
    def test_control_of_the_service_alone(
        self, tmp_path: Path, name: str, known: bool, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """A service may have controls of its own, so another id is signed; but it is said that no catalogue has it."""
        key = ("--key", tmp_path / "k", "--person", "officer", "--statement", "x", "--expires", "2099-12-31")
        assert run("sign", "waiver", name, *key) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["document"]["control"] == name
        assert ("the catalogue has no such control" in printed.err) is not known
        assert known or name not in printed.err

    @pytest.mark.parametrize("more", [["--expires", "soon"], ["--expires", "2099-12-31", "--paper", "/none"]])
    def test_refused(self, tmp_path: Path, more: list[str], capsys: pytest.CaptureFixture[str]) -> None:
        """A wrong day or a paper that is not there prints nothing to file away."""
        key = ("--key", tmp_path / "k", "--person", "officer", "--statement", "x")
        assert run("sign", "waiver", "HDR", *key, *more) == 2
        assert capsys.readouterr().out == ""
