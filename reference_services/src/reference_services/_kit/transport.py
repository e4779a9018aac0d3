"""Puts WSGI applications behind `healthobs.client.Client`, so that tests run several services in one process.

It is shaped like the part of urllib3's `PoolManager` that the client uses. The callee runs in an empty
context, as it would in a process of its own: only what the request carries crosses over.
"""

from __future__ import annotations

import contextvars
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from werkzeug.test import EnvironBuilder, run_wsgi_app

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication


@dataclass(frozen=True, slots=True)
class Answer:
    """A response shaped like urllib3's."""

    status: int
    headers: Mapping[str, str]
    data: bytes


class WsgiPool:
    """Answers `request` by calling `app` in this process."""

    def __init__(self, app: WSGIApplication) -> None:
        self._app = app

    def request(
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None = None,
        **_transport_options: object,
    ) -> Answer:
        """Call the application; time-outs, retries and redirects do not apply."""
        parts = urlsplit(url)
        builder = EnvironBuilder(
            path=parts.path or "/",
            query_string=parts.query,
            base_url=f"{parts.scheme}://{parts.netloc}/",
            method=method,
            headers=list(headers.items()),
            data=body,
        )
        try:
            environ = builder.get_environ()
        finally:
            builder.close()
        iterable, status, fields = contextvars.Context().run(
            lambda: run_wsgi_app(self._app, environ, buffered=True)
        )
        return Answer(int(status.split(" ", 1)[0]), {**fields}, b"".join(iterable))
