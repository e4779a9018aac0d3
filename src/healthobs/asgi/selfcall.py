"""Requests of an ASGI service to itself, so that controls see what a caller would see.

They run on the event loop that serves the application, because what it keeps open (connections, locks) lives
there; before the first request there is none, and a loop of their own is used.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, MutableMapping
from concurrent.futures import Future
from typing import TYPE_CHECKING, Any
from urllib.parse import unquote

from healthobs.compliance.control import Call, Reply
from healthobs.compliance.selfcall import CANARY, OWN

if TYPE_CHECKING:
    from healthobs.asgi.middleware import ASGIApp

_TIMEOUT_SECONDS = 10.0


def self_caller(app: ASGIApp, loop: Callable[[], asyncio.AbstractEventLoop | None]) -> Call:
    """Return what sends requests to `app` from another thread and gives the whole answer back.

    Args:
        app: The service's application, middleware included.
        loop: Returns the event loop that serves it, or None when that is not known yet.
    """

    def call(method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
        running = loop()
        if running is None or running.is_closed():
            return asyncio.run(_ask(app, method, path, headers, body))
        answer: Future[Reply] = Future()

        async def run() -> None:
            try:
                answer.set_result(await _ask(app, method, path, headers, body))
            except BaseException as exc:
                answer.set_exception(exc)
                raise

        tasks: list[asyncio.Task[None]] = []
        # The coroutine is made on the loop: one that ends meanwhile leaves nothing that was never awaited.
        running.call_soon_threadsafe(lambda: tasks.append(running.create_task(run())))
        return answer.result(_TIMEOUT_SECONDS)

    return call


async def _ask(app: ASGIApp, method: str, path: str, headers: Mapping[str, str], body: bytes) -> Reply:
    plain, _, query = path.partition("?")
    scope: dict[str, Any] = {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": unquote(plain),
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "server": ("localhost", 80),
        "client": ("127.0.0.1", 0),
        "headers": [
            (name.lower().encode("latin-1"), value.encode("latin-1"))
            for name, value in {**headers, "content-length": str(len(body))}.items()
        ],
        CANARY: OWN,
    }
    parts: list[MutableMapping[str, Any]] = []
    incoming = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def receive() -> MutableMapping[str, Any]:
        message = next(incoming, None)
        if message is None:
            await asyncio.Event().wait()  # the caller stays to the end
        return message or {}

    async def send(message: MutableMapping[str, Any]) -> None:
        parts.append(message)

    await app(scope, receive, send)
    status, fields, chunks = 500, dict[str, str](), list[bytes]()
    for part in parts:
        status = part.get("status", status)
        for name, value in part.get("headers", ()):
            key, text = name.decode("latin-1").lower(), value.decode("latin-1")
            fields[key] = f"{fields[key]}, {text}" if key in fields else text
        chunks.append(part.get("body", b""))
    return Reply(status, fields, b"".join(chunks))
