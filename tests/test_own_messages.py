"""What the library says to developers and operators comes out as it was written: redaction masks none of it."""

from __future__ import annotations

import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

import pytest
from flask import Flask

import healthobs
from healthobs import Observability, Settings, observe
from healthobs._runtime import use
from healthobs.audit import annotate
from healthobs.audit.draft import FIELDS
from healthobs.compliance.report import gate_failures
from healthobs.exceptions import InstrumentationError
from healthobs.flask import init_app
from healthobs.redaction import Redactor

SOURCES = Path(healthobs.__file__).parent
MODES: tuple[Literal["mask", "strict"], ...] = ("mask", "strict")


def raised_literals() -> Iterator[tuple[str, str]]:
    """Yield where the library raises with one literal, which log lines show, and that literal; commands print theirs."""
    for path in sorted(set(SOURCES.rglob("*.py")) - set(SOURCES.rglob("command.py"))):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Raise) or not isinstance(node.exc, ast.Call):
                continue
            match node.exc.args:
                case [ast.Constant(value=str(text))]:
                    yield f"{path.relative_to(SOURCES)}:{node.lineno}", text
                case _:
                    pass


@pytest.mark.parametrize("mode", MODES)
def test_messages_of_exceptions(mode: Literal["mask", "strict"]) -> None:
    """No message of an exception, where it is a literal, holds what a pattern takes for data."""
    told = list(raised_literals())
    assert len(told) > 100
    redactor = Redactor(mode)
    assert [place for place, text in told if redactor.text(text) != text] == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("bound", [False, True], ids=["no application", "no route named"])
def test_what_a_set_up_lacks(mode: Literal["mask", "strict"], bound: bool) -> None:
    """Status and gate of a service that only began tell what to add, and so does every piece of evidence."""
    settings = Settings(service_name="bare", endpoints=True, control_interval_seconds=0, redaction=mode)
    obs = Observability(settings)
    if bound:
        init_app(Flask("bare"), obs)
    assert obs.controls is not None
    obs.controls.run()
    rows = obs.controls.status()["controls"]
    texts = [row["evidence"]["text"] for row in obs.controls.status(detail=True)["controls"]]
    obs.close()
    lacking = {row["id"]: row["lacks"] for row in rows if "lacks" in row}
    assert {"H-312.a1", "H-312.b", "H-312.d", "P-10d"} <= lacking.keys()
    said = [*lacking.values(), *gate_failures(rows).values(), *texts]
    assert [text for text in said if "[PHI:" in text or Redactor(mode).text(text) != text] == []
    assert bound == ("protected" in lacking["H-312.a1"])


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"purpose": "treatment"}, "purpose takes a code such as 'TREAT'"),
        ({"details": "view"}, "details takes a mapping"),
        ({"colour": "red"}, "put further facts into details"),
    ],
)
def test_a_wrong_annotation_says_why_in_the_log(wrong: dict[str, Any], told: str) -> None:
    """The line of a call that annotated wrongly names the argument and what it takes, and not what it was given."""
    stream = io.StringIO()
    settings = Settings(service_name="ward", frameworks=("hipaa",))
    obs = Observability(settings, log_stream=stream)

    @observe("read", log="info")
    def read() -> None:
        annotate(**wrong)

    with use(obs), pytest.raises(InstrumentationError):
        read()
    obs.close()
    (line,) = (row for row in map(json.loads, stream.getvalue().splitlines()) if row["event"] == "read")
    assert told in line["exception_message"]
    assert "[PHI:" not in line["exception_message"]
    assert not any(repr(value) in line["exception_message"] for value in wrong.values())


def test_what_annotate_takes_is_all_named() -> None:
    """The message is a literal, because log lines keep no other one; it has every name."""
    with pytest.raises(InstrumentationError) as caught:
        annotate(colour="red")
    assert [name for name in FIELDS if name not in str(caught.value)] == []
