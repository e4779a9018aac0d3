"""A witness mounted by each front end: C2SP tlog-witness over WSGI and ASGI, as servers hand requests over."""

from __future__ import annotations

import asyncio
import io
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any
from wsgiref.util import setup_testing_defaults
from wsgiref.validate import validator

import pytest
from flask import Flask

from asgi_calls import Answer, http_scope
from healthobs import Observability, Settings, asgi, wsgi
from healthobs.audit import AuditTrail, keys, open_trail
from healthobs.audit.checkpoint import Verifier
from healthobs.audit.cosigning import Witnesses, WitnessPeer
from healthobs.audit.witness import MAX_BODY_BYTES, Cosigner, Witness, WitnessState
from healthobs.flask import init_app, remove_app

Send = Callable[..., Answer]
ADD = "/witness/add-checkpoint"


def over_wsgi(app: Any, body: bytes, method: str, path: str, *, length: bool = True) -> Answer:
    """Send as a WSGI server does; without a length in chunks, whose end the server knows."""
    environ: dict[str, Any] = {"REQUEST_METHOD": method, "PATH_INFO": path, "SERVER_PROTOCOL": "HTTP/1.1"}
    environ |= {"QUERY_STRING": "", "SCRIPT_NAME": ""}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = io.BytesIO(body)
    environ |= {"CONTENT_LENGTH": str(len(body))} if length else {"wsgi.input_terminated": True}
    seen: list[Any] = []

    def start_response(status: str, fields: list[tuple[str, str]], exc_info: Any = None) -> Any:
        seen[:] = [int(status[:3]), [(name.lower(), value) for name, value in fields]]
        return lambda data: None

    answer = validator(app)(environ, start_response)
    content = b"".join(answer)
    answer.close()
    return Answer(seen[0], seen[1], content)


def over_asgi(app: Any, body: bytes, method: str, path: str) -> Answer:
    """Send as an ASGI server does, in chunks."""
    chunks = [body[start : start + 40_000] for start in range(0, len(body), 40_000)] or [b""]
    sent: list[Any] = []

    async def receive() -> Any:
        return {"type": "http.request", "body": chunks.pop(0), "more_body": bool(chunks)}

    async def send(message: Any) -> None:
        sent.append(message)

    asyncio.run(app(http_scope(method, path), receive, send))
    fields = [(name.decode(), value.decode()) for name, value in sent[0]["headers"]]
    return Answer(sent[0]["status"], fields, b"".join(message.get("body", b"") for message in sent[1:]))


def application(_environ: Any, start_response: Any) -> list[bytes]:
    """Answer 204 whatever is asked."""
    start_response("204 No Content", [])
    return []


async def asgi_application(_scope: Any, _receive: Any, send: Any) -> None:
    """Answer 204 whatever is asked."""
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def trail(tmp_path: Path) -> Iterator[AuditTrail]:
    """A log with an entry."""
    made = open_trail(f"sqlite:///{tmp_path}/audit.db", service="s")
    made.append({"action": "a.b"})
    yield made
    made.close()


@pytest.fixture
def witness(tmp_path: Path, trail: AuditTrail) -> Witness:
    """What knows that log."""
    key_file = tmp_path / "witness.key"
    cosigner = Cosigner("witness.example/w1", keys.load_or_create(key_file))
    state = WitnessState(tmp_path / "witness.db", key_file)
    return Witness(cosigner, {trail.origin: Verifier(trail.vkey)}, state)


@pytest.fixture(params=["flask", "wsgi", "wsgi, chunked", "asgi"])
def send(request: pytest.FixtureRequest, witness: Witness) -> Iterator[Send]:
    """Send a request to an application that has the witness."""
    obs = Observability(Settings(service_name="w", endpoint_prefix="/_ops"), log_stream=io.StringIO())
    flask = init_app(Flask("w"), obs, witness=witness) if request.param == "flask" else None
    if request.param == "asgi":
        app: Any = asgi.Middleware(asgi_application, obs, witness=witness)
    else:
        app = flask.wsgi_app if flask else wsgi.Middleware(application, obs, witness=witness)

    def send(method: str, path: str, body: bytes = b"") -> Answer:
        path = f"/_ops{path}"
        if request.param == "asgi":
            return over_asgi(app, body, method, path)
        return over_wsgi(app, body, method, path, length=request.param != "wsgi, chunked")

    yield send
    if flask:
        remove_app(flask)
    obs.close()


class TestMounted:
    """`init_app(…, witness=…)`."""

    def test_cosigns_what_a_log_sends(self, send: Send, witness: Witness, trail: AuditTrail) -> None:
        """A log gets its cosignature, round after round, and who monitors it reads what was cosigned."""

        def post(url: str, body: bytes) -> tuple[int, bytes]:
            answer = send("POST", url.removeprefix("https://w.example"), body)
            return answer.status, answer.body

        witnesses = Witnesses(trail, [WitnessPeer(witness.vkey, "https://w.example/witness")], post)
        assert witnesses.ask().cosigned == ("witness.example/w1",)
        trail.append({"action": "a.b"})
        assert witnesses.ask().size == 2
        shown = send("GET", f"/witness/{sha256(trail.origin.encode()).hexdigest()}/checkpoint")
        assert shown.status == 200
        assert Verifier(witness.vkey).open(shown.body.decode()) == Verifier(trail.vkey).open(
            trail.checkpoint().note
        )

    def test_conflict_keeps_its_type(self, send: Send, trail: AuditTrail) -> None:
        """Another old size than the witness has is answered with that size, in the type of the standard."""
        answer = send("POST", ADD, f"old 1\n\n{trail.checkpoint().note}".encode())
        assert (answer.status, answer.header("content-type"), answer.body) == (
            409,
            "text/x.tlog.size",
            b"0\n",
        )

    @pytest.mark.parametrize("size", [0, MAX_BODY_BYTES, MAX_BODY_BYTES + 1, 3 * MAX_BODY_BYTES])
    def test_no_request_of_a_log(self, send: Send, size: int) -> None:
        """What is none is refused, and one too long is not read to its end."""
        assert send("POST", ADD, b"x" * size).status == 400

    def test_longest(self, send: Send, trail: AuditTrail) -> None:
        """A request is cosigned up to the limit, whatever unknown signatures it has, and not beyond: it is never cut."""
        good = f"old 0\n\n{trail.checkpoint().note}".encode()
        times, rest = divmod(MAX_BODY_BYTES - len(good) - len("— y AAAA\n".encode()), 4)
        longest = good + f"— y{'𝄞' * times}{'y' * rest} AAAA\n".encode()
        assert len(longest) == MAX_BODY_BYTES
        assert [send("POST", ADD, body).status for body in (longest + b"x", longest)] == [400, 200]

    def test_other_methods_and_paths(self, send: Send) -> None:
        """A checkpoint is posted and nothing else; a log that it does not know has no path."""
        refused = send("GET", ADD)
        assert (refused.status, refused.header("allow")) == (405, "POST")
        assert send("POST", f"/witness/{'0' * 64}/checkpoint").status in (
            204,
            404,
        )  # the application's answer

    def test_lost_state(self, send: Send, tmp_path: Path, trail: AuditTrail) -> None:
        """What cannot be remembered is not cosigned."""
        (tmp_path / "witness.db").write_bytes(b"no database" * 100)
        answer = send("POST", ADD, f"old 0\n\n{trail.checkpoint().note}".encode())
        assert (answer.status, answer.header("content-type")) == (503, "application/problem+json")


def test_without_a_length_nothing_is_read(witness: Witness) -> None:
    """Where a server does not say where the body ends, reading it could wait for ever."""
    obs = Observability(Settings(service_name="w"), log_stream=io.StringIO())
    app = wsgi.Middleware(application, obs, witness=witness)
    environ: dict[str, Any] = {"REQUEST_METHOD": "POST", "PATH_INFO": ADD}
    setup_testing_defaults(environ)
    environ["wsgi.input"] = None  # touched, it would raise
    seen: list[str] = []
    app(environ, lambda status, _fields: seen.append(status))
    assert seen == ["400 Bad Request"]
    obs.close()


def test_off_unless_given() -> None:
    """Without a witness its paths are the application's."""
    obs = Observability(Settings(service_name="w", endpoints=True), log_stream=io.StringIO())
    app = wsgi.Middleware(application, obs)
    assert over_wsgi(app, b"", "POST", ADD).status == 204
    obs.close()
