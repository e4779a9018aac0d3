"""WSGI middleware (PEP 3333) around any application: every response measured to the close of its body.

The route template is read in `start_response`, from werkzeug's request or from `environ["healthobs.route"]`,
so no framework hook is needed. Operational endpoints are answered before the application and stay out of
traces, access lines and the request histogram.

Limits: a server that never closes the body iterable (a fault against PEP 3333) leaves the request open.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from contextvars import copy_context
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Unpack
from urllib.parse import parse_qs

from opentelemetry.trace import Span

from healthobs import _runtime
from healthobs.compliance.control import Call
from healthobs.compliance.selfcall import CANARY, OWN, self_caller
from healthobs.endpoints import Request
from healthobs.exceptions import AuditWriteError
from healthobs.front import Front, FrontOptions, check_arguments
from healthobs.headers import OWN_NAMES, settle
from healthobs.http import IMPLIED, Exchange, new_request_id
from healthobs.problems import Response
from healthobs.tracing import is_instrumented

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from healthobs.observability import Observability

_PROTOCOLS = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2": "2", "HTTP/2.0": "2", "HTTP/3": "3"}
_REASONS = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None
#: Told the server span, the status line and the response's headers.
ResponseHook = Callable[[Span, str, list[tuple[str, str]]], object]
Options = FrontOptions[dict[str, Any], ResponseHook]


class Middleware(Front[dict[str, Any], ResponseHook]):
    """Observe `app` with `obs`.

    Args:
        app: The application.
        obs: Where to record.
        **options: See `healthobs.front.FrontOptions`.
    """

    def __init__(self, app: WSGIApplication, obs: Observability, **options: Unpack[Options]) -> None:
        check_arguments(app, obs, options)
        self.app: Final = app
        #: What another instrumentation may have marked as its own; a framework's application, when there is one.
        self.framework: object = app
        header = obs.settings.tenant_header
        self._tenant_key = f"HTTP_{header.upper().replace('-', '_')}" if header else None
        super().__init__(obs, **options)
        self._controls: Final = obs.controls

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if self._controls is not None and self._controls.schedule.idle:
            self._controls.revive()
        path = environ.get("PATH_INFO")
        if path in self.endpoints.paths:
            return self._operational(environ, start_response)
        if path in self._server.excluded:
            self._server.excluded[path].inc()
            return self.app(environ, start_response)
        try:
            exchange = self._begin(environ)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self.obs.fault("http", "begin", exc)
            return self.app(environ, start_response)
        return _Answer(self, exchange, environ, start_response).run()

    def own_templates(self) -> list[str]:
        """Return the templates of the application's own routes, where it is Flask's and shows its table."""
        table = getattr(self.framework, "url_map", None)
        return [] if table is None else [str(rule.rule) for rule in table.iter_rules()]

    def own_views(self) -> Iterator[tuple[str, Any]]:
        """Yield template and function of the application's own routes, where it is Flask's and shows its table."""
        table: Any = getattr(self.framework, "url_map", None)
        for rule in () if table is None else table.iter_rules():
            yield str(rule.rule), getattr(self.framework, "view_functions", {}).get(rule.endpoint)

    def _observed_routes(self) -> Iterator[tuple[str, str]]:
        table: Any = getattr(self.framework, "url_map", None)
        for rule in () if table is None else table.iter_rules():
            if rule.rule not in self.unobserved:
                yield from (
                    (method, str(rule.rule)) for method in sorted(set[str](rule.methods or ()) - IMPLIED)
                )

    def _self_caller(self) -> Call:
        return self_caller(self)

    def _begin(self, environ: WSGIEnvironment) -> Exchange:
        get = environ.get
        protocol: str = get("SERVER_PROTOCOL", "")
        asked = self._trust_incoming
        if self._defers is None:  # instrumentation may have come after this middleware
            self._defers = is_instrumented(self.framework)
        return Exchange(
            self._server,
            get("REQUEST_METHOD", ""),
            environ["wsgi.url_scheme"],
            (get("SERVER_NAME", ""), get("SERVER_PORT", "")),
            _PROTOCOLS.get(protocol, protocol[-3:]),
            get("HTTP_TRACEPARENT"),
            get("HTTP_X_REQUEST_ID"),
            trusted=self._trusted is not None and self.is_trusted(environ),
            silent=get(CANARY) is OWN,
            trust_incoming=None if asked is None else bool(self.safely(asked, environ)),
            baggage=get("HTTP_BAGGAGE"),
            tenant=None if self._tenant_key is None else get(self._tenant_key),
            defers=self._defers,
            claimed=get("HTTP_HOST"),
        )

    def _operational(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = {
            name[5:].replace("_", "-").lower(): value
            for name, value in environ.items()
            if name.startswith("HTTP_")
        }
        request_id = headers["x-request-id"] = new_request_id(headers.get("x-request-id"))
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="replace")
        path = environ["PATH_INFO"]
        body = _body(environ, self.endpoints.posted[path]) if path in self.endpoints.posted else b""
        own = environ.get(CANARY) is OWN
        request = Request(environ.get("REQUEST_METHOD", ""), path, query, headers, body, own)
        token = _runtime.override.set(self.obs)
        try:
            response = self.endpoints.handle(request)
        finally:
            _runtime.override.reset(token)
        assert response is not None  # noqa: S101 - the path is one of theirs
        added = self._server.headers(None, trusted=self.is_trusted(environ))
        return _send(response, [("X-Request-Id", request_id), *added], environ, start_response)


def _body(environ: WSGIEnvironment, most: int) -> bytes:
    """Read a body, of one too long a byte more than may be."""
    length: str = environ.get("CONTENT_LENGTH", "")
    if length.isascii() and length.isdecimal():
        return bytes(environ["wsgi.input"].read(min(int(length[:18]), most + 1)))
    # Without a length nobody can tell where it ends, unless the server says that it ends the stream.
    return bytes(environ["wsgi.input"].read(most + 1)) if environ.get("wsgi.input_terminated") else b""


def _send(
    response: Response,
    added: list[tuple[str, str]],
    environ: WSGIEnvironment,
    start_response: StartResponse,
    *exc_info: ExcInfo,
) -> Iterable[bytes]:
    length = ("Content-Length", str(len(response.body)))
    start_response(_reason(response.status), [*response.headers, length, *added], *exc_info)
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [response.body]


def _reason(status: int) -> str:
    return _REASONS.get(status, f"{status} Unknown")


class _Answer:
    """One exchange's way through the application: its `start_response`, its body, its close.

    The application runs in a context of its own (PEP 567), from the call to the close of its body: what is
    current there is never seen by the server's thread, so nothing needs to be undone.
    """

    __slots__ = (
        "_body", "_closed", "_context", "_environ", "_exchange", "_iterator", "_middleware", "_sent", "_start",
        "_streams", "_write",
    )  # fmt: skip

    def __init__(
        self,
        middleware: Middleware,
        exchange: Exchange,
        environ: WSGIEnvironment,
        start_response: StartResponse,
    ) -> None:
        self._middleware = middleware
        self._exchange = exchange
        self._environ = environ
        self._start = start_response
        self._write: Callable[[bytes], object] | None = None
        self._sent = 0
        self._closed = False
        self._streams = False
        self._context = copy_context()
        self._body: Iterable[bytes] = ()
        self._iterator: Iterator[bytes] = iter(())

    def run(self) -> Iterable[bytes]:
        """Call the application; return the body that measures."""
        try:
            try:
                self._body = self._context.run(self._call)
            except AuditWriteError:
                self._body = self._unavailable()
            self._iterator = iter(self._body)
        except BaseException as exc:
            self._exchange.error = exc
            with suppress(Exception):  # what came first is told
                self.close()
            raise
        return self

    def _call(self) -> Iterable[bytes]:
        middleware = self._middleware
        _runtime.override.set(middleware.obs)
        _runtime.exchange.set(self._exchange)
        self._exchange.enter()
        if middleware.request_hook is not None:
            middleware.safely(middleware.request_hook, self._exchange.span, self._environ)
        return middleware.app(self._environ, self.start_response)

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo = None, /
    ) -> Callable[[bytes], object]:
        """Add headers; note status and route."""
        middleware = self._middleware
        try:
            added = self._exchange.respond(
                int(status[:3]), _route(self._environ), stated="healthobs.route" in self._environ
            )
            headers = self._with(headers, added)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            middleware.obs.fault("http", "respond", exc)
        if middleware.response_hook is not None:
            middleware.safely(middleware.response_hook, self._exchange.span, status, headers)
        write = self._start(status, headers) if exc_info is None else self._start(status, headers, exc_info)
        self._write = write
        return self._written

    def _with(self, headers: list[tuple[str, str]], added: list[tuple[str, str]]) -> list[tuple[str, str]]:
        """Return `headers` with `added`, none of them twice; see whether it streams."""
        streams, clash = True, False
        for name, _ in headers:
            lowered = name.lower()
            if lowered == "content-length":
                streams = False
            elif lowered in OWN_NAMES:
                clash = True
        self._streams = streams
        if clash:
            headers, added = settle(headers, added, restricted=self._exchange.restricted, clash=True)
        return [*headers, *added]

    def _written(self, data: bytes) -> object:
        """Send a chunk by the `write` of PEP 3333, and count it."""
        assert self._write is not None  # noqa: S101 - `start_response` set it
        self._write(data)
        self._count(data)
        return None

    def _count(self, chunk: bytes) -> None:
        self._sent += len(chunk)
        if self._streams and chunk:
            self._streams = False
            self._middleware.safely(self._exchange.first_byte)

    def __iter__(self) -> Iterator[bytes]:
        """Return itself."""
        return self

    def __next__(self) -> bytes:
        """Return the next chunk, made in the exchange's context."""
        try:
            chunk = self._context.run(next, self._iterator)
        except StopIteration:
            raise
        except BaseException as exc:
            if isinstance(exc, AuditWriteError) and not self._sent:
                return self._instead(exc)
            self._exchange.error = exc
            raise
        if self._streams:
            self._count(chunk)
        else:
            self._sent += len(chunk)
        if self._exchange.progress is not None:
            self._exchange.progress.advance()
        return chunk

    def close(self) -> None:
        """Close the application's body, then end the exchange."""
        if self._closed:
            return
        try:
            close = getattr(self._body, "close", None)
            if close is not None:
                self._context.run(close)
        except BaseException as exc:
            self._exchange.error = self._exchange.error or exc
            raise
        finally:
            self._finish()

    def _finish(self) -> None:
        self._closed = True
        try:
            self._exchange.finish(self._sent)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self._middleware.obs.fault("http", "finish", exc)

    def _unavailable(self) -> Iterable[bytes]:
        """Answer 503 in place of what may not be answered without its audit entry."""
        # PEP 3333: what has been started, and not sent, is replaced where the exception is given.
        return _send(self._exchange.unavailable(), [], self._environ, self.start_response, sys.exc_info())

    def _instead(self, exc: AuditWriteError) -> bytes:
        """Answer 503 in place of a body of which nothing was sent yet; raises `exc` where the server is past that."""
        try:
            chunk = next(iter(self._unavailable()), b"")
        except BaseException:
            self._exchange.error = exc
            raise
        self._iterator, self._sent = iter(()), len(chunk)
        return chunk


def _route(environ: WSGIEnvironment) -> str | None:
    route = environ.get("healthobs.route")
    if route is not None:
        return str(route)
    request = environ.get("werkzeug.request")
    rule = getattr(request, "url_rule", None)
    return None if rule is None else str(rule.rule)
