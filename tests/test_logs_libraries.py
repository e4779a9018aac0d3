"""Records of libraries, in `mask`: what is written in their code passes, and what they were handed does not."""

from __future__ import annotations

import io
import json
import logging
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import pytest
import sqlalchemy as sa
import structlog
from tests.set_ups import WHO

from healthobs import Observability, Settings
from healthobs.logs import origins
from healthobs.logs.libraries import NAMED

SITE = "/venv/lib/python3.11/site-packages/{}/web.py"
LIBRARY = """
import logging
import warnings

LATER = "Told %s"

def tell(logger, who):
    logger.warning("Sent %s to %s after %d tries in %.1f s, %s", "GET", who, 3, 0.5, None)
    logger.warning("%(what)s of %(who)s", {"what": "chart", "who": who})
    logger.warning("chart %s", {who: 1})
    logger.warning(f"{who} is told")
    logger.warning("Told")
    logger.warning("with %s", [who], extra={"who": who, "beds": 3, "chart": {"who": who}, "step": "telling"})

def warn(who):
    warnings.warn("no such thing", stacklevel=2)
    warnings.warn(f"no chart of {who}", stacklevel=2)

def make(kind, settings):
    return kind(settings, logs="processor")
"""
TOLD = [
    "Sent GET to [PHI:value] after 3 tries in 0.5 s, None",
    "chart of [PHI:value]",
    "chart [PHI:value]",
    "[PHI:value]",
    "Told",
    "with [PHI:value]",
]


@pytest.fixture(params=["site-packages", "vendored"])
def library(
    request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[ModuleType]:
    """Return an installed module that logs: in `site-packages`, or in a folder beside its metadata (`pip install --target`)."""
    folder = tmp_path / request.param
    (folder / "courier-1.0.dist-info").mkdir(parents=True)
    (folder / "courier-1.0.dist-info" / "RECORD").write_text(
        '"courier.py",,\ncourier-1.0.dist-info/RECORD,,\n'
    )
    (folder / "courier.py").write_text(LIBRARY)
    (folder / "ward.py").write_text(LIBRARY)
    monkeypatch.syspath_prepend(str(folder))
    origins.forget()
    yield __import__("courier")
    for name in ("courier", "ward"):
        sys.modules.pop(name, None)
    origins.forget()


@pytest.fixture(params=["capture", "handler"])
def lines(request: pytest.FixtureRequest, root: io.StringIO) -> Iterator[Callable[[], list[str]]]:
    """Return what reads the messages of an `Observability` in `mask`, through captured records or a set-up's own handler."""
    own = io.StringIO()
    capture = request.param == "capture"
    obs = Observability(
        Settings(redaction="mask", capture_stdlib=capture),
        logs="own" if capture else "processor",
        log_stream=own,
    )
    yield (
        lambda: (
            [json.loads(line)["event"] for line in own.getvalue().splitlines()]
            if capture
            else [line.split("|", 2)[-1] for line in root.getvalue().splitlines()]
        )
    )
    obs.close()


class TestLibraries:
    """Code that is installed."""

    @pytest.mark.parametrize("name", ["courier", "courier.post", "anything", None, __name__])
    def test_what_they_were_handed(
        self, library: ModuleType, lines: Callable[[], list[str]], name: str | None
    ) -> None:
        """It is a mark, through whichever logger; numbers and what is written in the code pass."""
        library.tell(logging.getLogger(name), WHO)
        assert lines() == TOLD

    def test_the_application(self, library: ModuleType, lines: Callable[[], list[str]]) -> None:
        """Text that application code logs passes, also through a logger whose name is that of a module of Python's."""
        for name in ("app", "email", None):
            logging.getLogger(name).warning("read by %s", WHO)
            logging.getLogger(name).warning(f"{WHO} read")  # noqa: G004
        assert lines() == [f"read by {WHO}", f"{WHO} read"] * 3

    def test_their_loggers(self, library: ModuleType, lines: Callable[[], list[str]]) -> None:
        """A record of a library's logger is the library's, whatever place it names (`stacklevel`)."""
        logging.getLogger("courier.post").warning("read by %s", WHO)
        assert lines() == ["read by [PHI:value]"]

    def test_warnings(self, library: ModuleType, lines: Callable[[], list[str]], tmp_path: Path) -> None:
        """One that a library made of data ends where its text begins, whatever place it names."""
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            logging.captureWarnings(True)
            try:
                library.warn(WHO)
                warnings.warn(f"{WHO} is here", stacklevel=1)
            finally:
                logging.captureWarnings(False)
        told = [line for line in lines() if line]
        assert [line.split(": ", 1)[1].split("\n")[0] for line in told if "Warning: " in line] == [
            "UserWarning: no such thing",
            "UserWarning: [PHI:value]",
            f"UserWarning: {WHO} is here",
        ]

    def test_an_application_that_is_installed(self, library: ModuleType, root: io.StringIO) -> None:
        """The package that makes the `Observability` is the application."""
        ward: Any = __import__("ward")
        obs = ward.make(Observability, Settings())
        ward.tell(logging.getLogger("ward"), WHO)
        obs.close()
        assert root.getvalue().count(WHO) == len(TOLD) - 1


def test_names_in_a_template() -> None:
    """A name ends where another begins, so that no character is looked at twice."""
    assert NAMED.findall("%(who)s %(a%(b)s %({x-name}i)s %(") == ["who", "b", "{x-name}i"]


class TestFields:
    """What a library puts into a record beside its message."""

    def test_fields(self, library: ModuleType, monkeypatch: pytest.MonkeyPatch, root: io.StringIO) -> None:
        """They are judged as its arguments are; fields that the application adds to every record stay."""
        make = logging.getLogRecordFactory()

        def factory(*arguments: Any, **named: Any) -> logging.LogRecord:
            record = make(*arguments, **named)
            record.request = f"r-{WHO}"
            return record

        handler = logging.getLogger().handlers[0]
        handler.setFormatter(logging.Formatter("%(who)s|%(beds)s|%(chart)s|%(step)s|%(request)s"))
        logging.setLogRecordFactory(factory)
        obs = Observability(Settings(), logs="processor")
        try:
            log = logging.getLogger("courier")
            monkeypatch.setattr(log, "filters", [lambda record: hasattr(record, "who")])
            library.tell(log, WHO)
        finally:
            logging.setLogRecordFactory(make)
            obs.close()
        assert root.getvalue() == f"[PHI:value]|3|[PHI:value]|telling|r-{WHO}\n"


class TestKnownLibraries:
    """Libraries as they are."""

    @pytest.mark.parametrize(
        ("package", "name", "message", "arguments", "shown"),
        [
            ("tornado", "tornado.access", "%d %s %.2fms", (200, "GET /patients/Ottoline (127.0.0.1)", 1.0), "200 [PHI:value] 1.00ms"),
            ("aiohttp", "aiohttp.access", 'GET /patients/Ottoline HTTP/1.1" 200', (), "[PHI:value]"),
            ("botocore", "botocore.endpoint", "Making request for %s with params: %s", ("op", {"Key": "Ottoline"}), "Making request for [PHI:value] with params: [PHI:value]"),
            ("kombu", "kombu.connection", "x %r", ({"a": "Ottoline"},), "x '[PHI:value]'"),
            ("celery", "celery.worker", "x %r", ({"Ottoline": 1},), "x '[PHI:value]'"),
            ("redis", "root", "Failed %s", (ValueError("Ottoline"),), "Failed [PHI:value]"),
        ],
    )  # fmt: skip
    def test_templates(
        self,
        lines: Callable[[], list[str]],
        package: str,
        name: str,
        message: str,
        arguments: tuple[Any, ...],
        shown: str,
    ) -> None:
        """As they make them; here the template is not in the library's code, so it is told beforehand."""
        record = logging.LogRecord(name, 30, SITE.format(package), 1, message, arguments, None)
        templates = ("%d %s %.2fms", "Making request for %s with params: %s", "x %r", "Failed %s")
        assert not arguments or message in templates
        logging.getLogger(name).handle(record)
        assert lines() == [shown]

    def test_sqlalchemy(self, lines: Callable[[], list[str]]) -> None:
        """Its statements may hold literals."""
        log = logging.getLogger("sqlalchemy.engine")
        log.setLevel(logging.INFO)
        engine = sa.create_engine("sqlite://")  # which looks at the level now
        try:
            with engine.connect() as connection:
                connection.exec_driver_sql(f"select '{WHO}'")
        finally:
            log.setLevel(logging.NOTSET)
            engine.dispose()
        assert any(line == "BEGIN (implicit)" for line in lines())
        assert WHO not in str(lines())

    def test_httpx(self, lines: Callable[[], list[str]]) -> None:
        """The reason phrase is the peer's."""
        answer = httpx.Response(200, extensions={"reason_phrase": f"OK {WHO}".encode()})
        with httpx.Client(transport=httpx.MockTransport(lambda _request: answer)) as client:
            client.get(f"https://peer/patients/{WHO}")
        assert lines() == ['HTTP Request: GET [PHI:type] "HTTP/1.1 200 [PHI:value]"']

    def test_structlog(self, lines: Callable[[], list[str]]) -> None:
        """It hands on what the application logs."""
        structlog.configure(
            processors=[structlog.processors.JSONRenderer()], logger_factory=structlog.stdlib.LoggerFactory()
        )
        try:
            structlog.get_logger().warning("read", by=WHO)
        finally:
            structlog.reset_defaults()
        assert lines() == [f'{{"by": "{WHO}", "event": "read"}}']
