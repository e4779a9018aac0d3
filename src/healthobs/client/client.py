"""The client for one other service; each attempt is one span and one sample."""

from __future__ import annotations

import json as json_codec
import random
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING, Any, Final, Protocol
from urllib.parse import quote, urlencode, urlsplit

from healthobs.client.outbound import Recorder
from healthobs.exceptions import ClientError, ConfigurationError

if TYPE_CHECKING:
    from urllib3 import PoolManager

#: RFC 9110 §9.2.2; only these are repeated without an `Idempotency-Key`.
IDEMPOTENT_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
METHODS: Final = IDEMPOTENT_METHODS | {"PATCH", "POST"}
RETRIED_STATUSES: Final = frozenset({502, 503, 504})
#: A `Retry-After` beyond this is the caller's to honour: the answer is handed back at once.
MAX_RETRY_AFTER_SECONDS: Final = 1.0
_ROUTE: Final = re.compile(r"(?:/[A-Za-z0-9_.~:$@{}-]*)+", re.ASCII)
_NAME: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)


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
        self._base_url, address, port = _checked_base(base_url, peer)
        self._recorder = Recorder(peer, address, port)
        if not 0 <= retries <= 2:
            raise ConfigurationError("retries must be 0, 1 or 2")
        if find_spec("urllib3") is None:
            raise ConfigurationError("outgoing calls need urllib3; install healthobs[client]")
        if timeout_seconds <= 0 or backoff_seconds < 0:
            raise ConfigurationError("timeout_seconds must be above 0, backoff_seconds at least 0")
        self.peer = peer
        self._timeout = timeout_seconds
        self._retries = retries
        self._backoff = backoff_seconds
        self._given_pool = pool
        self._own_pool: PoolManager | None = None

    def request(
        self,
        method: str,
        route: str,
        *,
        json: object = None,
        form: Mapping[str, str] | None = None,
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
            query: Query parameters; no telemetry of this side shows them, other logs may.
            headers: More header fields.
            path_params: Values for the template's names, percent-encoded here.

        Raises:
            ClientError: No answer came.
            ValueError: The template and its values do not fit.
        """
        if method not in METHODS:
            raise ValueError("method must be an HTTP method in upper case")
        url = self._base_url + _expand(route, path_params or {})
        if query:
            url += "?" + urlencode(query)
        fields, body = _content(headers or {}, json, form)
        repeatable = method in IDEMPOTENT_METHODS or any(name.lower() == "idempotency-key" for name in fields)
        allowed = self._retries if repeatable else 0
        deadline = time.monotonic() + self._timeout
        count = 0
        outcome = self._attempt(_Call(method, route, url, fields, body, count), deadline)
        while count < allowed and outcome.worth_repeating and self._pause(count, deadline):
            count += 1
            outcome = self._attempt(_Call(method, route, url, fields, body, count), deadline)
        if outcome.response is None:
            raise ClientError(
                f"{self.peer} gave no answer ({outcome.error}); check that it runs and that its base URL is right"
            )
        return outcome.response

    def close(self) -> None:
        """Close the idle connections of the client's own pool."""
        if self._own_pool is not None:
            self._own_pool.clear()
            self._own_pool = None

    def _pause(self, count: int, deadline: float) -> bool:
        """Wait before the next attempt; False when the call has no time left for one."""
        pause = random.uniform(0.0, self._backoff * 2**count)  # noqa: S311 - jitter, not a secret
        if time.monotonic() + pause >= deadline:
            return False
        time.sleep(pause)
        return True

    def _attempt(self, call: _Call, deadline: float) -> _Outcome:
        recording = self._recorder.start(call.method, call.route, call.count)
        headers = dict(call.headers) if recording is None else {**call.headers, **recording.headers()}
        outcome = _Outcome(None, "exception")
        try:
            outcome = self._exchange(call, headers, max(0.001, deadline - time.monotonic()))
        finally:
            if recording is not None:
                status = None if outcome.response is None else outcome.response.status
                recording.finish(status, outcome.error)
        return outcome

    def _exchange(self, call: _Call, headers: Mapping[str, str], timeout_seconds: float) -> _Outcome:
        import urllib3
        from urllib3 import exceptions

        try:
            answer = self._pool().request(
                call.method,
                call.url,
                headers=headers,
                body=call.body,
                timeout=urllib3.Timeout(total=timeout_seconds),
                retries=False,
                redirect=False,
            )
        except exceptions.NewConnectionError:
            return _Outcome(None, "connection_refused", True)
        except exceptions.ConnectTimeoutError:
            return _Outcome(None, "connect_timeout", True)
        except exceptions.TimeoutError:
            return _Outcome(None, "timeout")
        except exceptions.ProtocolError:
            return _Outcome(None, "connection_broken", True)
        except exceptions.SSLError:
            return _Outcome(None, "tls")
        except exceptions.HTTPError:
            return _Outcome(None, "protocol")
        lowered = {name.lower(): answer.headers[name] for name in answer.headers}
        response = ClientResponse(answer.status, lowered, answer.data)
        return _Outcome(
            response, str(answer.status) if answer.status >= 400 else "", _asks_to_repeat(response)
        )

    def _pool(self) -> Pool:
        if self._given_pool is not None:
            return self._given_pool
        if self._own_pool is None:
            import urllib3

            self._own_pool = urllib3.PoolManager(maxsize=16, retries=False)
        return self._own_pool


@dataclass(frozen=True, slots=True)
class _Call:
    """One attempt's request."""

    method: str
    route: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None
    count: int


@dataclass(frozen=True, slots=True)
class _Outcome:
    """How one attempt ended; `error` is a word of a closed vocabulary, a status, or empty."""

    response: ClientResponse | None
    error: str
    worth_repeating: bool = False


def _checked_base(base_url: str, peer: str) -> tuple[str, str, int]:
    """Split a base URL into itself without a final slash, its host and its port."""
    try:
        parts = urlsplit(base_url)
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"the base URL of {peer} must look like http://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(f"the base URL of {peer} must have no user information, query or fragment")
    return base_url.rstrip("/"), parts.hostname, port or (443 if parts.scheme == "https" else 80)


def _expand(route: str, values: Mapping[str, str | int]) -> str:
    """Fill a path template; a value stays one segment, so it cannot reach another route."""
    if not _ROUTE.fullmatch(route):
        raise ValueError("route must be a path template such as /patients/{id}, without a query")
    texts = {name: str(value) for name, value in values.items()}
    if set(_NAME.findall(route)) != texts.keys():
        raise ValueError("path_params must name exactly the template's parameters")
    if not texts.keys().isdisjoint(name for name, text in texts.items() if text in ("", ".", "..")):
        raise ValueError("a path parameter must not be empty, '.' or '..'")
    return _NAME.sub(lambda match: quote(texts[match[1]], safe=""), route)


def _content(
    headers: Mapping[str, str], json: object, form: Mapping[str, str] | None
) -> tuple[dict[str, str], bytes | None]:
    fields = dict(headers)
    # http.client refuses these too, but shows the value in its message.
    if any(not text.isprintable() or not text.isascii() for pair in fields.items() for text in pair):
        raise ValueError("a header field must be printable ASCII")
    if json is not None and form is not None:
        raise ValueError("give json or form, not both")
    if json is not None:
        encoded = json_codec.dumps(json, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
        return {**fields, "Content-Type": "application/json"}, encoded.encode()
    if form is not None:
        return {**fields, "Content-Type": "application/x-www-form-urlencoded"}, urlencode(form).encode()
    return fields, None


def _asks_to_repeat(response: ClientResponse) -> bool:
    if response.status not in RETRIED_STATUSES:
        return False
    after = response.headers.get("retry-after", "0")
    return after.isdecimal() and int(after) <= MAX_RETRY_AFTER_SECONDS
