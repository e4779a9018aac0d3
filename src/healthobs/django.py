"""Django: one `init_app` around what `get_wsgi_application` or `get_asgi_application` returns. The only module that imports Django.

No entry of `MIDDLEWARE` is needed, so nothing of Django's own stands outside the measurement. The handler tells which
route it resolved and Django's signal which exception it turned into a 500.

Limits: a route written as a regular expression is shown as it is written. Which methods a function answers, Django does
not know: `Settings.series_from_zero` takes GET. Two methods of Django's handlers are hooked, by
name: `resolve_request` and `process_exception_by_middleware`.
"""

# Django carries no types.
# pyright: reportMissingTypeStubs=false, reportUnknownMemberType=false, reportUnknownVariableType=false

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

try:
    from django.conf import settings
    from django.core.handlers.asgi import ASGIHandler
    from django.core.signals import got_request_exception
    from django.http import HttpResponse
    from django.urls import get_resolver
except ModuleNotFoundError as _exc:
    if _exc.name != "django":
        raise
    raise ModuleNotFoundError(
        "Django is not installed; pip install healthobs[django]", name="django"
    ) from None

from healthobs import _runtime, asgi, wsgi
from healthobs._runtime import install, process
from healthobs.exceptions import AuditWriteError, ConfigurationError
from healthobs.front import check_arguments
from healthobs.http import IMPLIED
from healthobs.observability import Observability
from healthobs.problems import problem
from healthobs.tracing.foreign import INSTRUMENTED, PACKAGE

_HOOKED = ("resolve_request", "process_exception_by_middleware")


class WsgiMiddleware(wsgi.Middleware):
    """The one of `healthobs.wsgi`, which knows Django's table of routes."""

    def own_templates(self) -> list[str]:
        """Return the templates of the application's own routes."""
        return [template for template, _ in _walk(get_resolver())]

    def _observed_routes(self) -> Iterator[tuple[str, str]]:
        return _methods(self.unobserved)


class AsgiMiddleware(asgi.Middleware):
    """The one of `healthobs.asgi`, which knows Django's table of routes."""

    def own_templates(self) -> list[str]:
        """Return the templates of the application's own routes."""
        return [template for template, _ in _walk(get_resolver())]

    def _observed_routes(self) -> list[tuple[str, str]]:
        return list(_methods(self.unobserved))


def init_app(application: Any, obs: Observability, **options: Any) -> WsgiMiddleware | AsgiMiddleware:
    """Give a Django application traces, metrics, access lines, headers and the operational endpoints that `obs` asks for.

    The first `Observability` becomes the process default when there is none, so that work outside requests reports
    too. Undo it with `remove_app`.

    Args:
        application: What `get_wsgi_application()` or `get_asgi_application()` returned.
        obs: Where to record.
        **options: See `healthobs.front.FrontOptions`.

    Returns:
        What the server serves in its place.

    Raises:
        ConfigurationError: The application is none of Django's, or has been initialised already.

    Warns:
        HealthobsWarning: A route that it has already is answered by an endpoint from now on;
            `Settings.endpoint_prefix` moves the endpoints.
    """
    check_arguments(application, obs, options)
    if not hasattr(application, _HOOKED[0]):
        raise ConfigurationError(
            "give init_app what Django's get_wsgi_application or get_asgi_application returned"
        )
    held: dict[str, Any] = vars(application)
    if held.keys() & set(_HOOKED):
        raise ConfigurationError("healthobs is on this application already: call init_app once")
    if process.default is None:
        install(obs)
    kind: Any = AsgiMiddleware if isinstance(application, ASGIHandler) else WsgiMiddleware
    # Before the hooks: what it refuses must not leave them behind.
    middleware: WsgiMiddleware | AsgiMiddleware = kind(application, obs, **options)
    resolve, answer = (getattr(application, name) for name in _HOOKED)

    def resolve_request(request: Any) -> Any:
        match = resolve(request)
        exchange = _runtime.exchange.get()
        if exchange is not None:
            exchange.matched(f"/{match.route}")
        return match

    def process_exception_by_middleware(exception: Exception, request: Any) -> Any:
        response = answer(exception, request)  # theirs must hear of it, to roll back
        return _unavailable() if isinstance(exception, AuditWriteError) else response

    held.update(zip(_HOOKED, (resolve_request, process_exception_by_middleware), strict=True))
    if any(name.startswith(PACKAGE) for name in settings.MIDDLEWARE):
        held[INSTRUMENTED] = True
    got_request_exception.connect(_note_exception, dispatch_uid=__name__)
    middleware.endpoints.warn_of_shadowed(middleware.own_templates())
    return middleware


def remove_app(middleware: WsgiMiddleware | AsgiMiddleware) -> Any:
    """Take healthobs off again, and return Django's application, whose answers are as before `init_app`."""
    application: Any = middleware.app
    held: dict[str, Any] = vars(application)
    for name in (*_HOOKED, INSTRUMENTED):
        held.pop(name, None)
    middleware.take_off()
    return application


def _note_exception(sender: object = None, **_extra: Any) -> None:  # noqa: ARG001 - named by the signal
    exchange, exception = _runtime.exchange.get(), sys.exception()
    if exchange is not None and exception is not None:
        exchange.error = exception


def _unavailable() -> Any:
    """Answer 503 for what may not be answered without its audit entry."""
    exchange = _runtime.exchange.get()
    answer = problem(503, "audit_unavailable") if exchange is None else exchange.unavailable()
    return HttpResponse(answer.body, status=answer.status, headers=dict(answer.headers))


def _methods(unobserved: frozenset[str]) -> Iterator[tuple[str, str]]:
    """Yield method and template of each observed route: what a class of views answers, of a function GET."""
    for template, view in _walk(get_resolver()):
        kind = getattr(view, "view_class", None)
        names = ["get"] if kind is None else [name for name in kind.http_method_names if hasattr(kind, name)]
        if template not in unobserved:
            yield from ((method, template) for method in sorted({name.upper() for name in names} - IMPLIED))


def _walk(resolver: Any, prefix: str = "/") -> Iterator[tuple[str, Any]]:
    for entry in resolver.url_patterns:
        template = f"{prefix}{entry.pattern}"
        if hasattr(entry, "url_patterns"):
            yield from _walk(entry, template)
        else:
            yield template, entry.callback
