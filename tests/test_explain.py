"""`healthobs explain`: everything that log files tell of a trace or failure."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from flask import Flask

from healthobs import cli, observe
from healthobs.flask import init_app, remove_app
from healthobs.testing import Capture

LINES = [
    {
        "timestamp": "2026-01-01T00:00:02Z",
        "service": "b",
        "event": "late",
        "trace_id": "t1",
        "error_id": "e1",
    },
    {"timestamp": "2026-01-01T00:00:01Z", "service": "a", "event": "early", "trace_id": "t1"},
    {"timestamp": "2026-01-01T00:00:03Z", "service": "a", "event": "other", "trace_id": "t2"},
    {
        "timestamp": "2026-01-01T00:00:04Z",
        "service": "a",
        "event": "untraced",
        "trace_id": "",
        "error_id": "e2",
    },
]


@pytest.fixture
def logs(tmp_path: Path) -> list[str]:
    """Two files, one of which holds lines that are no JSON objects."""
    first, second = tmp_path / "a.log", tmp_path / "b.log"
    first.write_text("".join(json.dumps(line) + "\n" for line in LINES[:2]))
    second.write_text("Traceback\n\n[1]\n" + "".join(json.dumps(line) + "\n" for line in LINES[2:]))
    return [str(first), str(second)]


@pytest.mark.parametrize(
    ("identifier", "events"),
    [("e1", ["early", "late"]), ("t1", ["early", "late"]), (" E2 ", ["untraced"]), ("t2", ["other"])],
)
def test_finds_across_files_in_the_order_of_time(
    logs: list[str], capsys: pytest.CaptureFixture[str], identifier: str, events: list[str]
) -> None:
    """An id leads to its trace, and the trace to the lines of every file; no other line is shown."""
    assert cli.main(["explain", identifier, "--logs", *logs]) == 0
    out = capsys.readouterr().out
    assert [
        line["event"] for line in sorted(LINES, key=lambda line: line["timestamp"]) if line["event"] in out
    ] == events
    assert "2 lines were no JSON objects" in out


def test_what_names_the_id_comes_first(logs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The failing request's lines are told before the other lines of its trace; a trace's own are one part."""
    assert cli.main(["explain", "e1", "--logs", *logs]) == 0
    out = capsys.readouterr().out
    places = [out.index(word) for word in ("late", "and 1 more of the same trace:", "early")]
    assert places == sorted(places)
    assert cli.main(["explain", "t1", "--logs", *logs]) == 0
    out = capsys.readouterr().out
    assert out.index("early") < out.index("late")
    assert "more of" not in out


def test_nothing_found_and_nothing_readable(logs: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """The exit status says whether anything was found, and whether the files could be read."""
    assert cli.main(["explain", "e9", "--logs", *logs]) == 1
    assert "no line names that id" in capsys.readouterr().out
    assert cli.main(["explain", "e1", "--logs", logs[0] + ".gone"]) == 2
    assert "cannot be read" in capsys.readouterr().err


def test_a_real_failure(capture: Capture, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The id that a failing request's log line carries leads to type, frames, route and the work inside."""
    app = Flask("test")

    @observe("charge", log="info")
    def charge() -> None:
        raise ValueError("4111 1111 1111 1111")

    @app.post("/pay/<card>")
    def pay(card: str) -> str:
        charge()
        return card

    init_app(app, capture.obs)
    app.test_client().post("/pay/visa-77", buffered=True).close()
    remove_app(app)
    path = tmp_path / "service.log"
    path.write_text("".join(json.dumps(line) + "\n" for line in capture.log_lines))
    (access,) = [line for line in capture.log_lines if line["event"] == "http_request"]
    assert cli.main(["explain", access["error_id"], "--logs", str(path)]) == 0
    out = capsys.readouterr().out
    for expected in (
        "exception_type: ValueError",
        "route: /pay/<card>",
        f"{__name__}:",
        "charge",
        access["trace_id"],
    ):
        assert expected in out
    assert out.count(f"error_id: {access['error_id']}") == 2
    assert "4111 1111" not in out
    assert "visa-77" not in out


@pytest.mark.parametrize(
    ("given", "event"),
    [
        ("urn:uuid:0af76519-16cd-43dd-8448-eb211c80319c", "failed"),
        ("URN:UUID:6A1F6B8E-0A4E-4B0E-9D35-2F1F5C0D9B11", "asked"),
        ("00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01", "traced"),
    ],
)
def test_ids_as_others_write_them(
    given: str, event: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A problem's `instance` and a whole `traceparent` lead where the ids in them lead."""
    lines = [
        {"event": "failed", "error_id": "0af7651916cd43dd8448eb211c80319c"},
        {"event": "asked", "request_id": "6a1f6b8e-0a4e-4b0e-9d35-2f1f5c0d9b11"},
        {"event": "traced", "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736"},
    ]
    path = tmp_path / "x.log"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    assert cli.main(["explain", given, "--logs", str(path)]) == 0
    told = capsys.readouterr().out
    assert [line["event"] for line in lines if f"  {line['event']}" in told] == [event]
