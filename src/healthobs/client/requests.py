"""requests: the sessions an application has already, observed by an adapter around the one that is mounted.

Span, samples and header are those of `healthobs.client`, for each request that reaches the transport: each redirect
and each repetition is one of its own.

Limits: the answer's body belongs to the measurement, unless `stream=True` leaves it to the caller. What the adapter inside
repeats by itself (`max_retries`) is one attempt here.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any, Final

from requests import PreparedRequest, RequestException, Response, Session
from requests.adapters import BaseAdapter
from urllib3.exceptions import HTTPError

from healthobs.client.attempts import Call, Peer
from healthobs.client.client import judge
from healthobs.exceptions import ConfigurationError


def observe_session(session: Session, peer: Peer) -> Callable[[], None]:
    """Observe what `session` sends to one service; the adapter that is mounted there goes on sending it.

    Args:
        session: The session.
        peer: The service.

    Returns:
        What takes it off again.

    Raises:
        ConfigurationError: The session is observed there already.

    Example:
        >>> session = Session()
        >>> remove = observe_session(session, Peer("https://lab.internal", "lab", routes=["/results/{id}"]))
        >>> remove()
    """
    prefix = f"{peer.base_url}/"
    before = session.adapters.get(prefix)
    found = session.get_adapter(prefix)
    if isinstance(found, Adapter):
        raise ConfigurationError(
            f"{peer.name} is observed on this session already: call observe_session once"
        )
    session.mount(prefix, Adapter(found, peer))

    def remove() -> None:
        del session.adapters[prefix]
        if before is not None:
            session.mount(prefix, before)

    return remove


def _judge(exc: BaseException) -> tuple[str, bool]:
    """Judge by what urllib3 raised, which requests keeps in its own."""
    if not isinstance(exc, RequestException):
        return judge(exc)
    inner: object = exc.args[0] if exc.args else None
    cause: object = getattr(inner, "reason", None) or inner
    return judge(cause) if isinstance(cause, HTTPError) else ("protocol", False)


class Adapter(BaseAdapter):
    """A transport adapter that observes what `inner` sends to one service.

    Args:
        inner: Sends it.
        peer: The service.
    """

    def __init__(self, inner: BaseAdapter, peer: Peer) -> None:
        super().__init__()
        self.inner: Final = inner
        self._peer = peer

    def send(
        self, request: PreparedRequest, stream: bool = False, *arguments: Any, **options: Any
    ) -> Response:
        """Send `request`, again where that is safe and was asked for."""
        resendable = request.body is None or isinstance(request.body, (str, bytes))
        call = self._peer.call_to(
            request.method or "", request.url or "", request.headers, resendable=resendable
        )
        if call is None:
            return self.inner.send(request, stream, *arguments, **options)
        while True:
            try:
                response = self._attempt(call, request, stream, *arguments, **options)
            except RequestException:
                pause = call.pause()
                if pause is None:
                    raise
            else:
                pause = call.pause()
                if pause is None:
                    return response
                response.close()
            time.sleep(pause)

    def _attempt(
        self, call: Call, request: PreparedRequest, stream: bool, *arguments: Any, **options: Any
    ) -> Response:
        with call.attempt(_judge) as attempt:
            sent = request.copy()  # a redirect may take the headers of the original to somebody else
            sent.headers.update(attempt.headers)
            response = self.inner.send(sent, stream, *arguments, **options)
            vars(response)["connection"] = (
                self  # by which an authentication handler sends again; stubs want requests' own
            )
            attempt.answer(response.status_code, response.headers.get("Retry-After"))
            if not stream and not response.is_redirect:
                _ = response.content  # the session would read it next
        attempt.finish()
        return response

    def close(self) -> None:
        """Close what is inside."""
        self.inner.close()
