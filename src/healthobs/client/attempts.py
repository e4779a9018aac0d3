"""One call to another service, without I/O: its attempts, what each is recorded as, and whether it is repeated.

Whatever sends the request (urllib3, requests, httpx) mounts this; RFC 9110 §9.2.2 says which methods may be sent again.

Limits: other attempts than those begun here, such as the retries of an adapter inside, are seen as one.
"""

from __future__ import annotations

import random
import re
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from typing import Final
from urllib.parse import urlsplit

from opentelemetry.context import attach, detach

from healthobs.client.outbound import OTHER, Recorder, Recording, inside
from healthobs.exceptions import ConfigurationError

#: RFC 9110 §9.2.2; only these are repeated without an `Idempotency-Key`.
IDEMPOTENT_METHODS: Final = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PUT", "TRACE"})
METHODS: Final = IDEMPOTENT_METHODS | {"PATCH", "POST"}
RETRIED_STATUSES: Final = frozenset({502, 503, 504})
#: A `Retry-After` beyond this is the caller's to honour: the answer is handed back at once.
MAX_RETRY_AFTER_SECONDS: Final = 1.0
_ROUTE: Final = re.compile(r"(?:/[A-Za-z0-9_.~:$@{}-]*)+", re.ASCII)
NAME: Final = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}", re.ASCII)

#: Tells the word for an exception in `error.type`, and whether sending again may help.
Judge = Callable[[BaseException], tuple[str, bool]]


class Peer:
    """One other service, for `observe_session` and the transports of httpx.

    Args:
        base_url: ``http(s)://host[:port][/prefix]``; without user information, query or fragment.
        name: Its short name, as it appears in metrics and messages.
        routes: Its path templates, such as ``/patients/{id}``; the first that fits is what telemetry shows. Without one
            it shows the method alone, never the path.
        retries: How often a call is repeated at most (0 to 2), when it could not connect or the answer was 502, 503 or 504;
            only idempotent methods and calls with an `Idempotency-Key` are.
        backoff_seconds: Upper end of the first random pause; it doubles each time (full jitter).
        timeout_seconds: No repetition begins later than this after the call began; the timeout of each attempt is the
            transport's.

    Raises:
        ConfigurationError: One of them is not like that.

    Example:
        >>> Peer("https://lab.internal", "lab", routes=["/results/{id}"]).name
        'lab'
    """

    def __init__(
        self,
        base_url: str,
        name: str,
        *,
        routes: Sequence[str] = (),
        retries: int = 0,
        backoff_seconds: float = 0.05,
        timeout_seconds: float = 2.0,
    ) -> None:
        checked, self._origin, self._prefix = _checked_base(base_url, name)
        self.base_url: Final[str] = checked
        self.name: Final = name
        self.recorder: Final = Recorder(name, *self._origin[1:])
        if not 0 <= retries <= 2:
            raise ConfigurationError("retries must be 0, 1 or 2")
        if timeout_seconds <= 0 or backoff_seconds < 0:
            raise ConfigurationError("timeout_seconds must be above 0, backoff_seconds at least 0")
        if not all(map(is_route, routes)):
            raise ConfigurationError("each of routes must be a path template such as /patients/{id}")
        self._routes = [(route, _pattern(route)) for route in routes]
        self.retries: Final = retries
        self.backoff_seconds: Final = backoff_seconds
        self.timeout_seconds: Final = timeout_seconds

    def call(self, method: str, route: str, headers: Iterable[str]) -> Call:
        """Return a call whose route the code states."""
        return Call(self, method, route, _is_repeatable(method, headers), declared=False)

    def call_to(
        self, method: str, url: str, headers: Iterable[str], *, resendable: bool = True
    ) -> Call | None:
        """Return a call to a whole URL; None when that is not this service's.

        Args:
            method: HTTP method.
            url: Absolute URL.
            headers: Names of the request's header fields.
            resendable: Whether the body can be sent a second time.
        """
        try:
            parts = urlsplit(url)
            port = _port(parts.scheme, parts.port)
        except ValueError:  # the transport's to refuse
            return None
        path = parts.path or "/"
        under = path == self._prefix or path.startswith(f"{self._prefix}/")
        if not under or (parts.scheme, parts.hostname or "", port) != self._origin:
            return None
        below = path[len(self._prefix) :] or "/"
        route = next((template for template, pattern in self._routes if pattern.fullmatch(below)), None)
        shown = method if method in METHODS else OTHER
        return Call(self, shown, route, resendable and _is_repeatable(method, headers), declared=True)


class Call:
    """One call: begun when made, an `attempt` for each time it is sent."""

    def __init__(
        self, peer: Peer, method: str, route: str | None, repeatable: bool, *, declared: bool
    ) -> None:
        self._peer = peer
        self._method = method
        self._route = route
        self._declared = declared
        self._allowed = peer.retries if repeatable else 0
        self._deadline = time.monotonic() + peer.timeout_seconds
        self._count = 0
        self._again = False
        #: The word or status of what went wrong with the last attempt; empty when nothing did.
        self.error: str = ""

    @property
    def left_seconds(self) -> float:
        """Seconds until the deadline, never 0."""
        return max(0.001, self._deadline - time.monotonic())

    @contextmanager
    def attempt(self, judge: Judge) -> Generator[Attempt]:
        """Record what is sent in the block; an exception ends the attempt, an answer leaves that to `finish`."""
        recording = self._peer.recorder.start(self._method, self._route, self._count, declared=self._declared)
        attempt = Attempt(recording, judge)
        token = attach(inside())
        try:
            yield attempt
        except BaseException as exc:
            attempt.fail(exc)
            raise
        finally:
            self._again, self.error = attempt.again, attempt.error
            detach(token)

    def pause(self) -> float | None:
        """Return the seconds to wait before the next attempt; None when the last one was the last."""
        if not self._again or self._count >= self._allowed:
            return None
        pause = random.uniform(0.0, self._peer.backoff_seconds * 2**self._count)  # noqa: S311 - jitter, not a secret
        self._count += 1
        return None if time.monotonic() + pause >= self._deadline else pause


class Attempt:
    """A request that is under way, and its answer until the last byte was read."""

    def __init__(self, recording: Recording | None, judge: Judge) -> None:
        self._recording = recording
        self._judge = judge
        self._status: int | None = None
        self.headers: Final[dict[str, str]] = {} if recording is None else recording.headers()
        self.again: bool = False
        self.error: str = ""

    def answer(self, status: int, retry_after: str | None) -> None:
        """Note an answer: its status, and its `Retry-After`."""
        self._status = status
        after = retry_after or "0"
        soon = after.isdecimal() and len(after) < 10 and int(after) <= MAX_RETRY_AFTER_SECONDS
        self.again = status in RETRIED_STATUSES and soon
        self.error = str(status) if status >= 400 else ""

    def fail(self, exc: BaseException) -> None:
        """Note that `exc` came instead of an answer, or of the rest of it, and end the attempt."""
        self.error, self.again = self._judge(exc)
        self.finish()

    def finish(self) -> None:
        """End the attempt; only the first time counts."""
        recording, self._recording = self._recording, None
        if recording is not None:
            recording.finish(self._status, self.error)


def by_kind(exc: BaseException, kinds: Iterable[tuple[type[BaseException], str, bool]]) -> tuple[str, bool]:
    """Return what `kinds` says of the first kind that `exc` is of; else it is a bug, and no transport's fault."""
    return next((one[1:] for one in kinds if isinstance(exc, one[0])), ("exception", False))


def is_route(text: str) -> bool:
    """Return whether `text` is a path template."""
    return _ROUTE.fullmatch(text) is not None


def _pattern(route: str) -> re.Pattern[str]:
    parts = NAME.split(route)  # text and names by turns
    return re.compile("[^/]+".join(map(re.escape, parts[::2])))


def _is_repeatable(method: str, headers: Iterable[str]) -> bool:
    return method in IDEMPOTENT_METHODS or any(name.lower() == "idempotency-key" for name in headers)


def _port(scheme: str, port: int | None) -> int:
    return port or (443 if scheme == "https" else 80)


def _checked_base(base_url: str, peer: str) -> tuple[str, tuple[str, str, int], str]:
    """Split a base URL into itself without a final slash, its origin (scheme, host, port) and its path."""
    try:
        parts = urlsplit(base_url.rstrip("/"))
        port = parts.port
    except ValueError:
        parts, port = urlsplit(""), None
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ConfigurationError(f"the base URL of {peer} must look like http://host:port")
    if parts.username is not None or parts.query or parts.fragment:
        raise ConfigurationError(f"the base URL of {peer} must have no user information, query or fragment")
    origin = (parts.scheme, parts.hostname, _port(parts.scheme, port))
    return base_url.rstrip("/"), origin, parts.path
