"""Flask: one `init_app`. The only module that imports Flask.

It puts the WSGI middleware around the application; no before or after hooks are used, so an
application without it answers byte for byte as before. Flask's signal of an unhandled exception, which it turns
into a 500, tells the exchange what it was.
"""

from __future__ import annotations

from typing import Any, Unpack

try:
    from flask import Flask, Response, got_request_exception, request
except ModuleNotFoundError as _exc:
    if _exc.name != "flask":
        raise
    raise ModuleNotFoundError("Flask is not installed; pip install healthobs[flask]", name="flask") from None

from healthobs import _runtime
from healthobs._runtime import install, process
from healthobs.compliance.selfcall import self_caller
from healthobs.decorators.above import warn_of_passed_over
from healthobs.exceptions import AuditWriteError, ConfigurationError
from healthobs.front import check_arguments
from healthobs.observability import Observability
from healthobs.problems import problem
from healthobs.wsgi import Middleware, Options

EXTENSION = "healthobs"


def init_app(app: Flask, obs: Observability, **options: Unpack[Options]) -> Flask:
    """Give `app` traces, metrics, access lines, headers and the operational endpoints that `obs` asks for.

    Its controls begin with the first request that a process answers, so no thread runs before a fork. The first
    `Observability` becomes the process default when there is none, so that work outside
    requests reports too. Undo it with `remove_app`.

    Args:
        app: The application.
        obs: Where to record.
        **options: See `healthobs.front.FrontOptions`.

    Returns:
        The same application.

    Raises:
        ConfigurationError: The application has been initialised already.

    Warns:
        HealthobsWarning: A route that it has already is answered by an endpoint from now on;
            `Settings.endpoint_prefix` moves the endpoints. Or a decorator above a route decorator never runs.

    Example:
        >>> from flask import Flask
        >>> from healthobs import Observability, Settings
        >>> app = init_app(Flask("demo"), Observability(Settings(service_name="demo")))
        >>> app.test_client().get("/health").json["status"]
        'healthy'
    """
    check_arguments(app, obs, options)
    if EXTENSION in app.extensions:
        raise ConfigurationError("healthobs is on this application already: call init_app once")
    options["protected"] = tuple(options.get("protected", ()))  # bound twice, and an iterator gives once
    if process.default is None:
        install(obs)
    middleware = Middleware(app.wsgi_app, obs, **options)
    got_request_exception.connect(_note_exception, app)
    middleware.framework = app
    obs.redactor.written(app.name)  # its logger has this name
    middleware.endpoints.warn_of_shadowed(middleware.own_templates())
    warn_of_passed_over(middleware.own_views())
    app.extensions[EXTENSION] = middleware
    app.error_handler_spec[None][None].setdefault(AuditWriteError, _unavailable)
    app.wsgi_app = middleware  # type: ignore[method-assign]
    if obs.controls is not None:  # what stands around the application later is asked too
        obs.controls.bind(self_caller(app), options["protected"], options.get("refused_tokens"))
    return app


def remove_app(app: Flask) -> Flask:
    """Take healthobs off `app` again; its answers are as before `init_app`, and its controls have ended.

    Raises:
        ConfigurationError: It is not on it, or something else was put around it since.
    """
    middleware: Any = app.extensions.get(EXTENSION)
    if middleware is None:
        raise ConfigurationError("healthobs is not on this application: there is nothing to take off")
    outermost: Any = app.wsgi_app
    if outermost is not middleware:
        raise ConfigurationError(
            "healthobs is not the outermost on this application: take off what came after it"
        )
    del app.extensions[EXTENSION]
    got_request_exception.disconnect(_note_exception, app)
    handlers = app.error_handler_spec[None][None]
    if handlers.get(AuditWriteError) is _unavailable:
        del handlers[AuditWriteError]
    app.wsgi_app = middleware.app  # type: ignore[method-assign]
    middleware.take_off()
    return app


def _note_exception(_app: Flask, exception: BaseException, **_extra: Any) -> None:
    exchange = _runtime.exchange.get()
    if exchange is not None:
        exchange.error = exception
        if request.url_rule is not None:  # Flask's own line about the exception is written before it answers
            exchange.matched(request.url_rule.rule)


def _unavailable(_error: Exception) -> Response:
    """Answer 503 for what may not be answered without its audit entry."""
    exchange = _runtime.exchange.get()
    answer = problem(503, "audit_unavailable") if exchange is None else exchange.unavailable()
    return Response(answer.body, answer.status, answer.headers)
