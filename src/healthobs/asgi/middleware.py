"""ASGI middleware (ASGI 3.0, HTTP 2.x) around any application: every response measured to its last byte.

Limits: a file that the server sends by itself (the extensions pathsend and zerocopysend) ends the response where it is
handed over, and its bytes are not counted.
"""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Awaitable, Callable, MutableMapping
from typing import TYPE_CHECKING, Any, Unpack
from urllib.parse import parse_qs

from opentelemetry.trace import Span

from healthobs import _runtime, headers, lifecycle
from healthobs.asgi.routes import Routes, own_path
from healthobs.asgi.selfcall import self_caller
from healthobs.compliance.control import Call
from healthobs.compliance.selfcall import CANARY, OWN
from healthobs.decorators.above import warn_of_passed_over
from healthobs.endpoints import Request
from healthobs.exceptions import AuditWriteError, ConfigurationError
from healthobs.front import Front, FrontOptions, check_arguments
from healthobs.http import IMPLIED, Exchange, new_request_id
from healthobs.problems import Response
from healthobs.tracing import is_instrumented

if TYPE_CHECKING:
    from healthobs.observability import Observability

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
ASGIApp = Callable[[Scope, Receive, Send], Awaitable[None]]
#: What may carry the body, the server's extensions among it; of a file's bytes nothing is known here.
_BODIES = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})
_READ = (b"traceparent", b"x-request-id", b"baggage", b"host")
#: Told the server span and the message that starts the response.
ResponseHook = Callable[[Span, Message], object]
Options = FrontOptions[Scope, ResponseHook]


class Middleware(Front[Scope, ResponseHook]):
    """Observe `app` with `obs`.

    Args:
        app: The application.
        obs: Where to record.
        **options: See `healthobs.front.FrontOptions`.
    """

    def __init__(self, app: ASGIApp, obs: Observability, **options: Unpack[Options]) -> None:
        check_arguments(app, obs, options)
        self.app: ASGIApp = app
        self._framework = app
        self._tenant_header = obs.settings.tenant_header.lower().encode()
        self._read = (*_READ, self._tenant_header)
        self._routes = Routes(app)
        self._loop: asyncio.AbstractEventLoop | None = None
        super().__init__(obs, **options)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or pass another kind of connection on."""
        if self.obs.controls is not None and CANARY not in scope:
            self._loop = asyncio.get_running_loop()
            if self.obs.controls.schedule.idle:
                self.obs.controls.revive()
        if scope["type"] == "lifespan":
            await self.app(scope, receive, self._living(send))
            return
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        path = own_path(scope, scope.get("root_path", ""))
        if path in self.endpoints.paths:
            await self._operational(scope, path, receive, send)
            return
        if path in self._server.excluded:
            self._server.excluded[path].inc()
            await self.app(scope, receive, send)
            return
        try:
            exchange = self._begin(scope)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self.obs.fault("http", "begin", exc)
            await self.app(scope, receive, send)
            return
        await _Answer(self, exchange, scope, receive, send).run()

    def route(self, scope: Scope) -> str | None:
        """Return the template of the route that the application chose."""
        return self._routes.template(scope)

    def own_templates(self) -> list[str]:
        """Return the templates of the application's own routes, as far as its table shows them."""
        return self._routes.templates()

    def own_views(self) -> list[tuple[str, Any]]:
        """Return template and function of the application's own routes, as far as its table shows them."""
        return self._routes.views()

    def _observed_routes(self) -> list[tuple[str, str]]:
        unobserved = self.unobserved
        return [
            (method, template)
            for method, template in self._routes.methods()
            if method not in IMPLIED and template not in unobserved
        ]

    def _self_caller(self) -> Call:
        return self_caller(self, lambda: self._loop)

    def _begin(self, scope: Scope) -> Exchange:
        if self._defers is None:  # instrumentation may have come after this middleware
            self._defers = is_instrumented(self._framework) or is_instrumented(self.app)
        found: dict[bytes, str] = {}
        for name, value in scope["headers"]:
            if name in self._read:
                text = value.decode("latin-1")
                found[name] = f"{found[name]},{text}" if name in found else text
        asked = self._trust_incoming
        host, port = scope.get("server") or ("", None)
        return Exchange(
            self._server,
            scope["method"],
            scope.get("scheme", "http"),
            (host, "" if port is None else str(port)),
            scope.get("http_version", ""),
            found.get(b"traceparent"),
            found.get(b"x-request-id"),
            trusted=self.is_trusted(scope),
            silent=scope.get(CANARY) is OWN,
            defers=self._defers,
            trust_incoming=None if asked is None else bool(self.safely(asked, scope)),
            baggage=found.get(b"baggage"),
            tenant=found.get(self._tenant_header),
            claimed=found.get(b"host"),
        )

    def _living(self, send: Send) -> Send:
        async def live(message: Message) -> None:
            if message["type"] == "lifespan.startup.complete":
                lifecycle.start(self.obs)
            # uvicorn ends by the signal it got, without the interpreter's exit handlers.
            if message["type"].startswith("lifespan.shutdown."):
                await asyncio.to_thread(self.obs.flush)
            await send(message)

        return live

    async def _operational(self, scope: Scope, path: str, receive: Receive, send: Send) -> None:
        fields = {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}
        request_id = fields["x-request-id"] = new_request_id(fields.get("x-request-id"))
        query = parse_qs(
            scope.get("query_string", b"").decode("latin-1"), keep_blank_values=True, errors="replace"
        )
        posted = self.endpoints.posted
        body = await _body(receive, posted[path]) if path in posted else b""
        request = Request(scope["method"], path, query, fields, body, scope.get(CANARY) is OWN)
        token = _runtime.override.set(self.obs)
        try:
            # Answered by the event loop itself: that it turns is what is asked
            if path in self.endpoints.liveness:
                response = self.endpoints.handle(request)
            else:
                response = await asyncio.to_thread(self.endpoints.handle, request)
        finally:
            _runtime.override.reset(token)
        assert response is not None  # noqa: S101 - the path is one of theirs
        added = self._server.headers(None, trusted=self.is_trusted(scope))
        await _reply(response, [("X-Request-Id", request_id), *added], scope, send)


class _Answer:
    """One exchange's way through the application.

    It ends with the last byte, so that work in the background is not counted; a response of 5xx ends with
    the application, which may raise what went wrong only after it has answered.
    """

    __slots__ = (
        "_exchange", "_finished", "_gone", "_middleware", "_receive", "_refused", "_scope", "_send", "_sent",
        "_streams", "_whole",
    )  # fmt: skip

    def __init__(
        self, middleware: Middleware, exchange: Exchange, scope: Scope, receive: Receive, send: Send
    ) -> None:
        self._middleware = middleware
        self._exchange = exchange
        self._scope = scope
        self._receive = receive
        self._send = send
        self._sent = 0
        self._finished = False
        self._gone = False
        self._whole = False
        self._refused = False
        self._streams = False

    async def run(self) -> None:
        obs_token = _runtime.override.set(self._middleware.obs)
        exchange_token = _runtime.exchange.set(self._exchange)
        span_token = self._exchange.enter()
        try:
            await self._call()
        except asyncio.CancelledError:
            self._exchange.cancelled = True
            raise
        except BaseException as exc:
            if self._gone:
                self._exchange.cancelled = True
            else:
                self._exchange.error = exc
            raise
        finally:
            self._exchange.cancelled |= self._gone
            self._finish()
            _runtime.reset(span_token)
            _runtime.reset(exchange_token)
            _runtime.reset(obs_token)

    async def _call(self) -> None:
        middleware = self._middleware
        if middleware.request_hook is not None:
            middleware.safely(middleware.request_hook, self._exchange.span, self._scope)
        try:
            await self._middleware.app(self._scope, self.receive, self.send)
        except AuditWriteError:
            if self._refused:
                return
            if self._exchange.status:
                raise
            await self._refuse()

    async def _refuse(self) -> None:
        """Answer 503 in place of what may not be answered without its audit entry."""
        await _reply(self._exchange.unavailable(), [], self._scope, self.send)
        self._refused = True

    async def receive(self) -> Message:
        """Notice that the client went away before the last byte."""
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self._gone = not self._whole
        return message

    async def send(self, message: Message) -> None:
        """Add headers to the start; notice the end."""
        if self._refused:
            return
        kind = message["type"]
        if kind == "http.response.start":
            if message["status"] == 500 and isinstance(sys.exception(), AuditWriteError):
                await self._refuse()  # Starlette answers for the exception, then raises it again
                return
            message = self._started(message)
            hook = self._middleware.response_hook
            if hook is not None:
                self._middleware.safely(hook, self._exchange.span, message)
        try:
            await self._send(message)
        except OSError:  # what ASGI 2.4 servers raise when the client is gone
            self._gone = True
            raise
        if kind in _BODIES:
            length = len(message.get("body", b""))
            if length and self._streams:
                self._streams = False
                self._exchange.first_byte()
            self._sent += length
            if self._exchange.progress is not None:
                self._exchange.progress.advance()
            self._whole = not message.get("more_body", False)
            if self._whole and self._exchange.status < 500:
                self._finish()

    def _started(self, message: Message) -> Message:
        try:
            added = self._exchange.respond(
                message["status"],
                self._middleware.route(self._scope),
                stated=self._scope.get("healthobs.route") is not None,
            )
            raw = list(message.get("headers", ()))
            sent = [(name.decode("latin-1"), value.decode("latin-1")) for name, value in raw]
            self._streams = all(name.lower() != "content-length" for name, _ in sent)
            stays, added = headers.settle(sent, added, restricted=self._exchange.restricted)
            return {**message, "headers": [*(raw if stays is sent else _bytes(stays)), *_bytes(added)]}
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self._middleware.obs.fault("http", "respond", exc)
            return message

    def _finish(self) -> None:
        if self._finished:
            return
        self._finished = True
        try:
            self._exchange.finish(self._sent)
        except Exception as exc:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self._middleware.obs.fault("http", "finish", exc)


def _bytes(pairs: list[tuple[str, str]]) -> list[tuple[bytes, bytes]]:
    return [(name.lower().encode("latin-1"), value.encode("latin-1")) for name, value in pairs]


async def _body(receive: Receive, most: int) -> bytes:
    """Read a body, of one too long more than may be."""
    read, more = b"", True
    while more and len(read) <= most:
        message = await receive()
        read += message.get("body", b"")
        more = message.get("more_body", False)
    return read


async def _reply(response: Response, added: list[tuple[str, str]], scope: Scope, send: Send) -> None:
    length = ("Content-Length", str(len(response.body)))
    fields = _bytes([*response.headers, length, *added])
    await send({"type": "http.response.start", "status": response.status, "headers": fields})
    body = b"" if scope["method"] == "HEAD" else response.body
    await send({"type": "http.response.body", "body": body, "more_body": False})


class _Stack:
    """Builds a Starlette application's middleware stack with ours outermost."""

    def __init__(self, build: Callable[[], ASGIApp], middleware: Middleware, replaced: Any) -> None:
        self.build = build
        self.middleware = middleware
        self.replaced = replaced

    def __call__(self) -> Middleware:
        self.middleware.app = self.build()
        return self.middleware


def init_app(app: Any, obs: Observability, **options: Unpack[Options]) -> Any:
    """Give a Starlette or FastAPI `app` what `healthobs.flask.init_app` gives a Flask one.

    The first `Observability` becomes the process default when there is none. Undo it with `remove_app`.

    Args:
        app: The application.
        obs: Where to record.
        **options: See `healthobs.front.FrontOptions`.

    Returns:
        The same application.

    Raises:
        ConfigurationError: It has been initialised already, or is neither Starlette nor built on it.

    Warns:
        HealthobsWarning: A route that it has already is answered by an endpoint from now on;
            `Settings.endpoint_prefix` moves the endpoints. Or a decorator above a route decorator never runs.
    """
    check_arguments(app, obs, options)
    build = getattr(app, "build_middleware_stack", None)
    if build is None:
        raise ConfigurationError("this is no Starlette application: wrap it in healthobs.asgi.Middleware")
    if isinstance(build, _Stack):
        raise ConfigurationError("healthobs is on this application already: call init_app once")
    if _runtime.process.default is None:
        _runtime.install(obs)
    middleware = Middleware(app, obs, **options)
    middleware.endpoints.warn_of_shadowed(middleware.own_templates())
    warn_of_passed_over(middleware.own_views())
    replaced: Any = app.__dict__.get("build_middleware_stack")
    app.build_middleware_stack = _Stack(build, middleware, replaced)
    app.middleware_stack = None
    return app


def remove_app(app: Any) -> Any:
    """Take healthobs off `app` again; its answers are as before `init_app`, and its controls have ended.

    Raises:
        ConfigurationError: It is not on it, or something else was put around it since.
    """
    stack = getattr(app, "build_middleware_stack", None)
    if not isinstance(stack, _Stack):
        raise ConfigurationError(
            "healthobs is not on this application, or is not the outermost: take off what came after it"
        )
    del app.build_middleware_stack
    if stack.replaced is not None:
        app.build_middleware_stack = stack.replaced
    app.middleware_stack = None
    stack.middleware.take_off()
    return app
