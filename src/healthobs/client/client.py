"""The client for one other service; each attempt is one span and one sample."""

from __future__ import annotations

import json as json_codec
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Protocol
from urllib.parse import quote, urlencode

from healthobs.client.attempts import METHODS, NAME, Call, Peer, by_kind, is_route
from healthobs.exceptions import ClientError, ConfigurationError

if TYPE_CHECKING:
    from urllib3 import PoolManager


class PoolResponse(Protocol):
    """What a pool answers with (urllib3's `HTTPResponse`, or anything shaped like it)."""

    @property
    def status(self) -> int:
        """The status code."""
        ...

    @property
    def headers(self) -> Mapping[str, str]:
        """The header fields."""
        ...

    @property
    def data(self) -> bytes:
        """The whole body."""
        ...


class Pool(Protocol):
    """The part of urllib3's `PoolManager` that is used; tests put a WSGI application behind it."""

    def request(  # noqa: D102 - urllib3's own
        self,
        method: str,
        url: str,
        *,
        headers: Mapping[str, str],
        body: bytes | None,
        timeout: object,
        retries: bool,
        redirect: bool,
    ) -> PoolResponse: ...


@dataclass(frozen=True, slots=True)
class ClientResponse:
    """An answer.

    Args:
        status: Status code.
        headers: Header fields, names in lower case.
        body: The body's bytes.
    """

    status: int
    headers: Mapping[str, str]
    body: bytes

    def json(self) -> Any:
        """Decode the body as JSON.

        Raises:
            ClientError: The body is not JSON; the message does not show it.
        """
        try:
            return json_codec.loads(self.body)
        except (ValueError, RecursionError):
            raise ClientError("the answer is not JSON; check that the peer is the service meant") from None


class Client:
    """Calls one peer.

    Args:
        base_url: ``http(s)://host[:port][/prefix]``; without user information, query or fragment.
        peer: The peer's short name, as it appears in metrics and messages.
        timeout_seconds: Limit of one call, its repetitions included.
        retries: How often a call is repeated at most (0 to 2), when it could not connect or the answer was
            502, 503 or 504; only idempotent methods and calls with an `Idempotency-Key` are.
        backoff_seconds: Upper end of the first random pause; it doubles each time (full jitter).
        pool: A urllib3 `PoolManager` or anything with its `request`; default: an own one, made on first use.

    Example:
        >>> client = Client("https://auth.internal:8443", peer="auth-service")
        >>> client.peer
        'auth-service'
    """

    def __init__(
        self,
        base_url: str,
        *,
        peer: str,
        timeout_seconds: float = 2.0,
        retries: int = 2,
        backoff_seconds: float = 0.05,
        pool: Pool | None = None,
    ) -> None:
        if find_spec("urllib3") is None:
            raise ConfigurationError("outgoing calls need urllib3; install healthobs[client]")
        self._peer = Peer(
            base_url, peer, retries=retries, backoff_seconds=backoff_seconds, timeout_seconds=timeout_seconds
        )
        self.peer = peer
        self._given_pool = pool
        self._own_pool: PoolManager | None = None

    def request(
        self,
        method: str,
        route: str,
        *,
        json: object = None,
        form: Mapping[str, str] | None = None,
        content: bytes | None = None,
        query: Mapping[str, str | int] | None = None,
        headers: Mapping[str, str] | None = None,
        path_params: Mapping[str, str | int] | None = None,
    ) -> ClientResponse:
        """Send one request and return the answer, whatever its status.

        Args:
            method: HTTP method, in upper case.
            route: Path template such as ``/patients/{id}``; this is what telemetry shows.
            json: Body to send as JSON.
            form: Body to send as a form; not together with `json`.
            content: Body to send as it is, alone; its type is for `headers` to say.
            query: Query parameters; no telemetry of this side shows them, other logs may.
            headers: More header fields.
            path_params: Values for the template's names, percent-encoded here.

        Raises:
            ClientError: No answer came.
            ValueError: The template and its values do not fit.
        """
        if method not in METHODS:
            raise ValueError("method must be an HTTP method in upper case")
        url = self._peer.base_url + _expand(route, path_params or {})
        if query:
            url += "?" + urlencode(query)
        fields, body = _content(headers or {}, json, form, content)
        call = self._peer.call(method, route, fields)
        while True:
            sent = partial(self._pool().request, method, url, body=body, retries=False, redirect=False)
            response, error = _attempt(call, sent, fields)
            pause = call.pause()
            if pause is None:
                break
            time.sleep(pause)
        if response is None:
            raise ClientError(
                f"{self.peer} gave no answer ({error}); check that it runs and that its base URL is right"
            )
        return response

    def close(self) -> None:
        """Close the idle connections of the client's own pool."""
        if self._own_pool is not None:
            self._own_pool.clear()
            self._own_pool = None

    def _pool(self) -> Pool:
        if self._given_pool is not None:
            return self._given_pool
        if self._own_pool is None:
            import urllib3

            self._own_pool = urllib3.PoolManager(maxsize=16, retries=False)
        return self._own_pool


def judge(exc: BaseException) -> tuple[str, bool]:
    """Return the word for what urllib3 raises, and whether the call may be repeated after it."""
    from urllib3 import exceptions

    kinds: tuple[tuple[type[BaseException], str, bool], ...] = (
        (exceptions.NewConnectionError, "connection_refused", True),
        (exceptions.ConnectTimeoutError, "connect_timeout", True),
        (exceptions.TimeoutError, "timeout", False),
        (exceptions.ProtocolError, "connection_broken", True),
        (exceptions.SSLError, "tls", False),
        (exceptions.HTTPError, "protocol", False),
    )
    return by_kind(exc, kinds)


def _attempt(
    call: Call, send: Callable[..., PoolResponse], fields: Mapping[str, str]
) -> tuple[ClientResponse | None, str]:
    """Send once; return the answer, or None and the word for what came instead."""
    import urllib3

    try:
        with call.attempt(judge) as attempt:
            timeout = urllib3.Timeout(total=call.left_seconds)
            answer = send(headers={**fields, **attempt.headers}, timeout=timeout)
            lowered = {name.lower(): answer.headers[name] for name in answer.headers}
            attempt.answer(answer.status, lowered.get("retry-after"))
    except urllib3.exceptions.HTTPError:
        return None, call.error
    attempt.finish()
    return ClientResponse(answer.status, lowered, answer.data), ""


def _expand(route: str, values: Mapping[str, str | int]) -> str:
    """Fill a path template; a value stays one segment, so it cannot reach another route."""
    if not is_route(route):
        raise ValueError("route must be a path template such as /patients/{id}, without a query")
    texts = {name: str(value) for name, value in values.items()}
    if set(NAME.findall(route)) != texts.keys():
        raise ValueError("path_params must name exactly the template's parameters")
    if not texts.keys().isdisjoint(name for name, text in texts.items() if text in ("", ".", "..")):
        raise ValueError("a path parameter must not be empty, '.' or '..'")
    return NAME.sub(lambda match: quote(texts[match[1]], safe=""), route)


def _content(
    headers: Mapping[str, str], json: object, form: Mapping[str, str] | None, content: bytes | None
) -> tuple[dict[str, str], bytes | None]:
    fields = dict(headers)
    # http.client refuses these too, but shows the value in its message.
    if any(not text.isprintable() or not text.isascii() for pair in fields.items() for text in pair):
        raise ValueError("a header field must be printable ASCII")
    if sum(body is not None for body in (json, form, content)) > 1:
        raise ValueError("give one of json, form and content")
    if json is not None:
        encoded = json_codec.dumps(json, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return {**fields, "Content-Type": "application/json"}, encoded.encode()
    if form is not None:
        return {**fields, "Content-Type": "application/x-www-form-urlencoded"}, urlencode(form).encode()
    return fields, content
