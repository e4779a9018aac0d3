"""WSGI middleware (PEP 3333) around any application: every response measured to the close of its body.

The route template is read in `start_response`, from werkzeug's request or from `environ["healthobs.route"]`,
so no framework hook is needed. Operational endpoints are answered before the application and stay out of
traces, access lines and the request histogram.

Limits: a server that never closes the body iterable (a fault against PEP 3333) leaves the request open.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from http import HTTPStatus
from types import TracebackType
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qs

from healthobs import _runtime
from healthobs.endpoints import Authorize, Endpoints, Request
from healthobs.exceptions import AuditWriteError
from healthobs.http import Exchange, HttpServer, new_request_id
from healthobs.problems import Response, problem

if TYPE_CHECKING:
    from _typeshed.wsgi import StartResponse, WSGIApplication, WSGIEnvironment

    from healthobs.observability import Observability

_PROTOCOLS = {"HTTP/1.0": "1.0", "HTTP/1.1": "1.1", "HTTP/2": "2", "HTTP/2.0": "2", "HTTP/3": "3"}
_REASONS = {status.value: f"{status.value} {status.phrase}" for status in HTTPStatus}
ExcInfo = tuple[type[BaseException], BaseException, TracebackType] | tuple[None, None, None] | None


class Middleware:
    """Observe `app` with `obs`.

    Args:
        app: The application.
        obs: Where to record.
        authorize: Checks credentials for the audit trail and compliance evidence.
        trusted: Told the WSGI environment, says whether the caller may see compliance headers when the
            audience is ``trusted``; default nobody.
        conf: HL7 v3 Confidentiality of responses that no `@classified` names.
    """

    def __init__(
        self,
        app: WSGIApplication,
        obs: Observability,
        *,
        authorize: Authorize | None = None,
        trusted: Callable[[WSGIEnvironment], bool] | None = None,
        conf: str = "N",
    ) -> None:
        self._app = app
        self._obs = obs
        self._server = HttpServer(obs, conf=conf)
        self._endpoints = Endpoints(obs, authorize)
        self._trusted = trusted
        _runtime.process.active = True

    def __call__(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        """Answer one request."""
        if environ.get("PATH_INFO") in self._endpoints.paths:
            return self._operational(environ, start_response)
        try:
            exchange = self._begin(environ)
        except Exception:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self._obs.metrics.count_internal_error("http")
            return self._app(environ, start_response)
        return _Answer(self, exchange).run(environ, start_response)

    def is_trusted(self, environ: WSGIEnvironment) -> bool:
        """Say whether the caller may see compliance headers."""
        return self._trusted is not None and self._trusted(environ)

    @property
    def app(self) -> WSGIApplication:
        """The application inside."""
        return self._app

    @property
    def obs(self) -> Observability:
        """Where it records."""
        return self._obs

    def _begin(self, environ: WSGIEnvironment) -> Exchange:
        get = environ.get
        protocol = get("SERVER_PROTOCOL", "")
        return Exchange(
            self._server,
            get("REQUEST_METHOD", ""),
            environ["wsgi.url_scheme"],
            (get("SERVER_NAME", ""), get("SERVER_PORT", "")),
            _PROTOCOLS.get(protocol, protocol[-3:]),
            get("HTTP_TRACEPARENT"),
            get("HTTP_X_REQUEST_ID"),
            trusted=self._trusted is not None and self._trusted(environ),
        )

    def _operational(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        headers = {
            name[5:].replace("_", "-").lower(): value for name, value in environ.items() if name.startswith("HTTP_")
        }
        query = parse_qs(environ.get("QUERY_STRING", ""), keep_blank_values=True, errors="replace")
        request = Request(environ.get("REQUEST_METHOD", ""), environ["PATH_INFO"], query, headers)
        token = _runtime.override.set(self._obs)
        try:
            response = self._endpoints.handle(request)
        finally:
            _runtime.override.reset(token)
        assert response is not None  # noqa: S101 - the path is one of theirs
        request_id = new_request_id(environ.get("HTTP_X_REQUEST_ID"))
        added = self._server.headers(None, trusted=self.is_trusted(environ))
        return _send(response, [("X-Request-Id", request_id), *added], environ, start_response)


def _send(
    response: Response,
    added: list[tuple[str, str]],
    environ: WSGIEnvironment,
    start_response: StartResponse,
) -> Iterable[bytes]:
    length = ("Content-Length", str(len(response.body)))
    start_response(_reason(response.status), [*response.headers, length, *added])
    return [] if environ.get("REQUEST_METHOD") == "HEAD" else [response.body]


def _reason(status: int) -> str:
    return _REASONS.get(status, f"{status} Unknown")


class _Answer:
    """One exchange's way through the application: its `start_response`, its body, its close."""

    __slots__ = ("_body", "_closed", "_environ", "_exchange", "_iterator", "_middleware", "_sent", "_start", "_tokens")

    def __init__(self, middleware: Middleware, exchange: Exchange) -> None:
        self._middleware = middleware
        self._exchange = exchange
        self._sent = 0
        self._closed = False
        self._tokens: tuple[Any, Any] | None = None
        self._body: Iterable[bytes] = ()
        self._iterator: Iterator[bytes] = iter(())

    def run(self, environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        self._environ, self._start = environ, start_response
        self._enter()
        try:
            self._body = self._middleware.app(environ, self.start_response)
        except AuditWriteError:
            self._body = self._unavailable()
        except BaseException as exc:
            self._exchange.error = exc
            self._leave()
            self._finish()
            raise
        self._leave()
        self._iterator = iter(self._body)
        return self

    def start_response(
        self, status: str, headers: list[tuple[str, str]], exc_info: ExcInfo = None, /
    ) -> Callable[[bytes], object]:
        """Add headers; note status and route."""
        exchange = self._exchange
        try:
            added = exchange.respond(int(status[:3]), _route(self._environ))
            taken = {name.lower() for name, _ in headers}
            headers = headers + [pair for pair in added if pair[0].lower() not in taken]
        except Exception:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self._middleware.obs.metrics.count_internal_error("http")
        if exc_info is None:
            return self._start(status, headers)
        return self._start(status, headers, exc_info)

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        self._enter()
        try:
            chunk = next(self._iterator)
        except StopIteration:
            raise
        except BaseException as exc:
            self._exchange.error = exc
            raise
        finally:
            self._leave()
        self._sent += len(chunk)
        return chunk

    def close(self) -> None:
        """Close the application's body, then end the exchange."""
        if self._closed:
            return
        self._closed = True
        close = getattr(self._body, "close", None)
        try:
            if close is not None:
                self._enter()
                try:
                    close()
                finally:
                    self._leave()
        finally:
            self._finish()

    def _enter(self) -> None:
        self._tokens = (_runtime.override.set(self._middleware.obs), _runtime.exchange.set(self._exchange))
        self._exchange.enter()

    def _leave(self) -> None:
        self._exchange.leave()
        if self._tokens is not None:
            _runtime.override.reset(self._tokens[0])
            _runtime.exchange.reset(self._tokens[1])
            self._tokens = None

    def _finish(self) -> None:
        self._closed = True
        try:
            self._exchange.finish(self._sent)
        except Exception:  # noqa: BLE001 - a fault of telemetry is not the caller's
            self._middleware.obs.metrics.count_internal_error("http")

    def _unavailable(self) -> Iterable[bytes]:
        """Answer 503 in place of what may not be answered without its audit entry."""
        context = self._exchange.span.get_span_context()
        response = problem(
            503,
            "audit_unavailable",
            trace_id=f"{context.trace_id:032x}" if context.is_valid else "",
            request_id=self._exchange.request_id,
            headers=[("Retry-After", "1")],
        )
        return _send(response, [], self._environ, self.start_response)


def _route(environ: WSGIEnvironment) -> str | None:
    route = environ.get("healthobs.route")
    if route is not None:
        return str(route)
    request = environ.get("werkzeug.request")
    rule = getattr(request, "url_rule", None)
    return None if rule is None else str(rule.rule)
