"""Requests as a server makes them, in process, of any ASGI application."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any, NamedTuple


class Answer(NamedTuple):
    """What a client got; header names in lower case."""

    status: int
    headers: list[tuple[str, str]]
    body: bytes

    def header(self, name: str) -> str | None:
        """Return one header's value."""
        return dict(self.headers).get(name)


def http_scope(method: str, path: str, **headers: str) -> dict[str, Any]:
    """Return the scope of a request, as uvicorn makes it."""
    plain, _, query = path.partition("?")
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": plain,
        "raw_path": plain.encode(),
        "query_string": query.encode(),
        "root_path": "",
        "server": ("127.0.0.1", 80),
        "client": ("127.0.0.1", 4711),
        "headers": [(n.replace("_", "-").lower().encode(), v.encode("latin-1")) for n, v in headers.items()],
    }


def call_asgi(app: Any, method: str, path: str, **headers: str) -> Answer:
    """Make one request in an event loop of its own, as a server would."""
    messages: list[Any] = []
    waiting = asyncio.Event()

    async def receive() -> Any:
        if waiting.is_set():
            await asyncio.Event().wait()  # the client stays
        waiting.set()
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        messages.append(message)

    async def run() -> None:
        # Starlette answers 500 and raises all the same; a server logs that.
        with contextlib.suppress(RuntimeError):
            await app(http_scope(method, path, **headers), receive, send)

    asyncio.run(run())
    if not messages:
        return Answer(500, [], b"")
    start, *bodies = messages
    fields = [(name.decode().lower(), value.decode()) for name, value in start["headers"]]
    return Answer(start["status"], fields, b"".join(message.get("body", b"") for message in bodies))
