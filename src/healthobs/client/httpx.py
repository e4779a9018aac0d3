"""httpx: transports for its two clients, which observe what the one inside sends to one service.

Span, samples and header are those of `healthobs.client`, for each request that reaches the transport: each redirect
and each repetition is one of its own.

Limits: a streamed answer that is never closed leaves its attempt open.
"""

from __future__ import annotations

import ssl
import time
from collections.abc import AsyncIterator, Iterator
from typing import Any

import anyio
import httpx

from healthobs.client.attempts import Attempt, Call, Peer, by_kind

_KINDS: tuple[tuple[type[BaseException], str, bool], ...] = (
    (httpx.ConnectTimeout, "connect_timeout", True),
    (httpx.TimeoutException, "timeout", False),
    (httpx.ConnectError, "connection_refused", True),
    (httpx.NetworkError, "connection_broken", True),
    (httpx.RemoteProtocolError, "connection_broken", True),
    (httpx.TransportError, "protocol", False),
)


class Transport(httpx.BaseTransport):
    """Observe what `httpx.Client` sends to one service.

    Args:
        peer: The service; requests to others are passed on, unobserved.
        inner: Sends it; default a new `httpx.HTTPTransport`.

    Example:
        >>> transport = Transport(Peer("https://lab.internal", "lab", routes=["/results/{id}"]))
        >>> httpx.Client(transport=transport).close()
    """

    def __init__(self, peer: Peer, inner: httpx.BaseTransport | None = None) -> None:
        self._peer = peer
        self._inner = inner or httpx.HTTPTransport()

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, again where that is safe and was asked for."""
        call = _call(self._peer, request)
        if call is None:
            return self._inner.handle_request(request)
        while True:
            try:
                with call.attempt(_judge) as attempt:
                    response = self._inner.handle_request(_sent(request, attempt))
                    attempt.answer(response.status_code, response.headers.get("Retry-After"))
            except httpx.TransportError:
                pause = call.pause()
                if pause is None:
                    raise
            else:
                body = _Body(response.stream, attempt)
                if response.is_closed:  # read already: nobody closes it again
                    attempt.finish()
                pause = call.pause()
                if pause is None:
                    response.stream = body
                    return response
                body.close()
            time.sleep(pause)

    def close(self) -> None:
        """Close what is inside."""
        self._inner.close()


class AsyncTransport(httpx.AsyncBaseTransport):
    """Observe what `httpx.AsyncClient` sends to one service; the same as `Transport`.

    Args:
        peer: The service; requests to others are passed on, unobserved.
        inner: Sends it; default a new `httpx.AsyncHTTPTransport`.
    """

    def __init__(self, peer: Peer, inner: httpx.AsyncBaseTransport | None = None) -> None:
        self._peer = peer
        self._inner = inner or httpx.AsyncHTTPTransport()

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """Send `request`, again where that is safe and was asked for."""
        call = _call(self._peer, request)
        if call is None:
            return await self._inner.handle_async_request(request)
        while True:
            try:
                with call.attempt(_judge) as attempt:
                    response = await self._inner.handle_async_request(_sent(request, attempt))
                    attempt.answer(response.status_code, response.headers.get("Retry-After"))
            except httpx.TransportError:
                pause = call.pause()
                if pause is None:
                    raise
            else:
                body = _AsyncBody(response.stream, attempt)
                if response.is_closed:  # as above
                    attempt.finish()
                pause = call.pause()
                if pause is None:
                    response.stream = body
                    return response
                await body.aclose()
            await anyio.sleep(pause)

    async def aclose(self) -> None:
        """Close what is inside."""
        await self._inner.aclose()


class _Body(httpx.SyncByteStream):
    """A body whose close ends the attempt."""

    def __init__(self, inner: Any, attempt: Attempt) -> None:
        self._inner: httpx.SyncByteStream = inner
        self._attempt = attempt

    def __iter__(self) -> Iterator[bytes]:
        try:
            yield from self._inner
        except Exception as exc:
            self._attempt.fail(exc)
            raise

    def close(self) -> None:
        self._attempt.finish()
        self._inner.close()


class _AsyncBody(httpx.AsyncByteStream):
    """The same for an asynchronous one."""

    def __init__(self, inner: Any, attempt: Attempt) -> None:
        self._inner: httpx.AsyncByteStream = inner
        self._attempt = attempt

    async def __aiter__(self) -> AsyncIterator[bytes]:
        try:
            async for chunk in self._inner:
                yield chunk
        except Exception as exc:
            self._attempt.fail(exc)
            raise

    async def aclose(self) -> None:
        self._attempt.finish()
        await self._inner.aclose()


def _call(peer: Peer, request: httpx.Request) -> Call | None:
    """Return the observed call that `request` is; None when it goes elsewhere."""
    resendable = isinstance(request.stream, httpx.ByteStream)
    return peer.call_to(request.method, str(request.url), request.headers, resendable=resendable)


def _sent(request: httpx.Request, attempt: Attempt) -> httpx.Request:
    """Return the request to send: a redirect may take the headers of the original to somebody else."""
    headers = request.headers.copy()
    headers.update(attempt.headers)
    return httpx.Request(
        request.method, request.url, headers=headers, stream=request.stream, extensions=request.extensions
    )


def _judge(exc: BaseException) -> tuple[str, bool]:
    cause: BaseException | None = exc
    while cause is not None:
        if isinstance(cause, ssl.SSLError):
            return "tls", False
        cause = cause.__cause__ or cause.__context__
    return by_kind(exc, _KINDS)
