"""`Kit`: what the five services share, so that each is only its domain, its store and its routes.

It builds the `Observability`, the Flask application with problem+json errors, and the engine; its route
decorators validate, authorise, audit and document in one place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cached_property
from typing import TYPE_CHECKING, Any, TypeVar

import pydantic
import sqlalchemy as sa
from flask import Flask, Response, request
from sqlalchemy.engine import Connection, Engine
from werkzeug.exceptions import HTTPException

from healthobs import Observability, audited, classified, tokens
from healthobs import flask as healthobs_flask
from healthobs.audit import annotate
from healthobs.client import Client
from healthobs.compliance.selfcall import self_caller
from healthobs.endpoints import Request as EndpointRequest
from reference_services._kit import database, errors, idempotency, openapi
from reference_services._kit.auth import Authenticator, Jwks, Principal, fetch_jwks
from reference_services._kit.problems import Problem, render
from reference_services._kit.routes import Operation, Returns, View, canonical_request, protected_routes
from reference_services._kit.settings import ServiceInfo, ServiceSettings
from reference_services._kit.transport import WsgiPool
from reference_services._kit.validation import MAX_BODY_BYTES

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_V = TypeVar("_V", bound=View)
#: The connection of the innermost `Kit.transaction` of this context.
_transaction: ContextVar[Connection | None] = ContextVar("reference_services.transaction", default=None)


class Kit:
    """One service in the making.

    Args:
        info: What the service is.
        settings: Where it runs; default: read from the environment.
        obs: The `Observability` to report to; default: a new one from the settings.
        transport: WSGI application of each peer, for tests in one process; None calls over the network.
    """

    def __init__(
        self,
        info: ServiceInfo,
        settings: ServiceSettings | None = None,
        *,
        obs: Observability | None = None,
        transport: Mapping[str, WSGIApplication] | None = None,
    ) -> None:
        self.info = info
        self.settings = settings or ServiceSettings.from_env(info)
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owns_obs = obs is None
        self.obs = obs or Observability(self.settings.observability)
        self.clock = self.obs.clock
        self.log = self.obs.logs.get_logger(info.name)
        self.operations: list[Operation] = []
        self._transport = transport
        self._clients: dict[str, Client] = {}
        self._schema_version: int | None = None
        self.jwks: Jwks = tokens.CachedJwks(self._fetch_jwks)
        self.app = errors.Application("reference_services", static_folder=None)
        self.app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
        self.app.url_map.merge_slashes = False
        self.app.extensions["reference_services"] = self
        errors.register(self.app, self.log)

    # ---- routes

    def route(
        self,
        method: str,
        rule: str,
        *,
        returns: Returns,
        summary: str,
        body: type[pydantic.BaseModel] | None = None,
        query: type[pydantic.BaseModel] | None = None,
        scope: str | None = None,
        audit: str | None = None,
        resource_type: str | None = None,
        conf: str | None = None,
        form: bool = False,
        idempotent: bool = False,
        media: str = "application/json",
        on_problem: Callable[[Problem], Response] | None = None,
    ) -> Callable[[_V], _V]:
        """Register a view; see `Operation` for the parameters it shares.

        Args:
            method: See `Operation`.
            rule: See `Operation`.
            returns: See `Operation`.
            summary: See `Operation`.
            body: See `Operation`.
            query: See `Operation`.
            scope: See `Operation`.
            audit: Action of the audit entry that each call makes, refused ones included.
            resource_type: Kind of record that the entry is about.
            conf: HL7 v3 confidentiality of the answer; default: the service's.
            form: See `Operation`.
            idempotent: See `Operation`.
            media: See `Operation`.
            on_problem: See `Operation`.
        """

        def register(view: _V) -> _V:
            operation = Operation(
                method=method, rule=rule, view=view, summary=summary, returns=returns, body=body, query=query,
                scope=scope, form=form, idempotent=idempotent, media=media, on_problem=on_problem,
            )  # fmt: skip
            self.operations.append(operation)
            handler = self._handler(operation)
            if audit is not None:
                handler = audited(audit, resource_type=resource_type)(handler)
            if conf is not None:
                handler = classified(conf=conf, frameworks=self.info.frameworks)(handler)
            endpoint = f"{method} {rule}"
            self.app.add_url_rule(rule, endpoint.replace(".", "_"), handler, methods=[method])
            return view

        return register

    def get(self, rule: str, **options: Any) -> Callable[[_V], _V]:
        """Register a GET view; see `route`."""
        return self.route("GET", rule, **options)

    def post(self, rule: str, **options: Any) -> Callable[[_V], _V]:
        """Register a POST view; see `route`."""
        return self.route("POST", rule, **options)

    def put(self, rule: str, **options: Any) -> Callable[[_V], _V]:
        """Register a PUT view; see `route`."""
        return self.route("PUT", rule, **options)

    def patch(self, rule: str, **options: Any) -> Callable[[_V], _V]:
        """Register a PATCH view; see `route`."""
        return self.route("PATCH", rule, **options)

    def delete(self, rule: str, **options: Any) -> Callable[[_V], _V]:
        """Register a DELETE view; see `route`."""
        return self.route("DELETE", rule, **options)

    # ---- state

    @cached_property
    def engine(self) -> Engine:
        """The engine of the service's own database, made on first use."""
        return database.make_engine(self.settings.database_url)

    def migrate(
        self,
        metadata: sa.MetaData,
        *,
        version: int = 1,
        steps: Mapping[int, Callable[[Connection], None]] | None = None,
    ) -> None:
        """Bring the database to `version`; adds the readiness check ``database``. See `database.migrate`."""
        database.migrate(self.engine, metadata, version=version, steps=steps)
        idempotency.METADATA.create_all(self.engine)
        self._schema_version = version

    @contextmanager
    def transaction(self) -> Iterator[Connection]:
        """Give the connection of one write transaction: commits at the end, rolls back on an exception.

        Inside an idempotent route, and inside another `transaction`, it is the one already open, which
        commits (with the remembered answer) when the outermost ends.
        """
        held = _transaction.get()
        if held is not None and held.engine is self.engine:
            yield held
            return
        with self.engine.begin() as connection:
            token = _transaction.set(connection)
            try:
                yield connection
            finally:
                _transaction.reset(token)

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """Give a connection for reads only, which waits for no writer; inside `transaction`, that one's."""
        held = _transaction.get()
        if held is not None and held.engine is self.engine:
            yield held
            return
        with database.reading(self.engine) as connection:
            yield connection

    # ---- peers and callers

    def client(self, peer: str) -> Client:
        """Return the traced client of `peer`, one of `settings.PEERS`."""
        if peer not in self._clients:
            pool = None if self._transport is None else WsgiPool(self._transport[peer])
            self._clients[peer] = Client(self.settings.peers[peer], peer=peer, pool=pool)
        return self._clients[peer]

    @cached_property
    def authenticator(self) -> Authenticator:
        """What verifies access tokens against `jwks` (auth-service sets its own keys there)."""
        return Authenticator(
            self.info.name,
            self.jwks,
            issuer=self.settings.issuer,
            audience=self.settings.audience,
            clock=self.clock,
        )

    def _fetch_jwks(self) -> Mapping[str, Any]:
        return fetch_jwks(self.client("auth-service"))

    # ---- the finished application

    def finish(self, *, checks: Mapping[str, Callable[[], object]] | None = None) -> Flask:
        """Add `GET /` and `GET /openapi.json`, register readiness checks, mount healthobs, start the controls.

        Args:
            checks: Readiness check by name: returns None or True when ready, False or raises when not.

        Returns:
            The application, ready to serve; `close` of its extension ``reference_services`` ends it.
        """
        version = self._schema_version
        if version is not None:
            self.obs.health.register("database", lambda: database.check(self.engine, version))
        for name, check in (checks or {}).items():
            self.obs.health.register(name, check)
        for operation in self.operations:
            if operation.idempotent:  # at start, so that a damaged key file stops it
                self._idempotency.slot("", "", "")
                self._replays.seed((operation.rule,))
        self.get("/", returns={200: openapi.Index}, summary="Name, version and links")(self._index)
        self.get("/openapi.json", returns={200: None}, summary="This description")(self._openapi)
        app = healthobs_flask.init_app(self.app, self.obs, authorize=self._authorize, conf=self.info.conf)
        engine = self.obs.controls
        if engine is not None:
            engine.bind(self_caller(app), protected_routes(self.operations))
            engine.start(self.obs.settings.control_interval_seconds)
        return app

    def close(self) -> None:
        """Take healthobs off the application, flush telemetry that this service owns, close connections."""
        if healthobs_flask.EXTENSION in self.app.extensions:
            healthobs_flask.remove_app(self.app)
        if self._owns_obs:
            self.obs.close()
        for client in self._clients.values():
            client.close()
        if "engine" in self.__dict__:
            self.engine.dispose()

    def _index(self) -> openapi.Index:
        links = {f"{op.method} {op.rule}": op.summary for op in self.operations}
        return openapi.Index(
            service=self.info.name,
            version=self.info.version,
            description=self.info.description,
            links={**links, **openapi.OPERATIONAL_LINKS},
        )

    def _openapi(self) -> dict[str, Any]:
        return self._document

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi.document(self.info, self.operations)

    def _authorize(self, asked: EndpointRequest, scope: str) -> Principal | None:
        try:
            return self.authenticator.authenticate(asked.headers.get("authorization"), scope)
        except Problem:
            return None

    # ---- one call

    def _handler(self, operation: Operation) -> Callable[..., Response]:
        def handler(**path: Any) -> Response:
            try:
                return self._answer(operation, path)
            except HTTPException as exc:
                if exc.code is not None and exc.code < 400:
                    raise  # a redirect
                problem = errors.of_http(exc)
            except Problem as exc:
                problem = exc
            return (operation.on_problem or render)(problem)

        view = operation.view
        handler.__name__ = getattr(view, "__name__", "view")
        handler.__qualname__ = getattr(view, "__qualname__", "view")
        handler.__module__ = getattr(view, "__module__", __name__)
        return handler

    def _answer(self, operation: Operation, path: Mapping[str, Any]) -> Response:
        principal = None
        if operation.scope is not None:
            principal = self.authenticator.authenticate(request.headers.get("Authorization"), operation.scope)
            annotate(actor=principal.subject, actor_kind="client")
        arguments = operation.arguments(principal, path)
        if operation.idempotent:
            return self._answer_once(operation, principal, arguments)
        return operation.response(operation.view(**arguments))

    def _answer_once(
        self, operation: Operation, principal: Principal | None, arguments: dict[str, Any]
    ) -> Response:
        key = idempotency.read_key(request.headers.get("Idempotency-Key"))
        client_id = "" if principal is None else principal.client_id
        slot = self._idempotency.slot(client_id, f"{operation.method} {operation.rule}", key)
        fingerprint = self._idempotency.fingerprint(canonical_request())

        def call() -> idempotency.Answer:
            made = operation.response(operation.view(**arguments))
            kept = tuple((name, value) for name, value in made.headers if name != "Content-Length")
            return idempotency.Answer(made.status_code, kept, made.get_data())

        with self._idempotency.exclusive(slot), self.transaction() as connection:
            answer, replayed = self._idempotency.run(connection, slot, fingerprint, call)
        response = Response(answer.body, answer.status, list(answer.headers))
        if replayed:
            self._replays.labels(operation.rule).inc()
            response.headers["Idempotent-Replayed"] = "true"
        return response

    @cached_property
    def _idempotency(self) -> idempotency.Idempotency:
        path = self.settings.file("IDEMPOTENCY_KEY_FILE", f"{self.info.prefix}.idempotency.key")
        return idempotency.Idempotency(idempotency.load_secret(path), self.clock)

    @cached_property
    def _replays(self) -> Any:
        return self.obs.metrics.counter(
            f"{self.info.prefix}_idempotent_replays_total",
            "Requests answered from the memory of an earlier one with the same Idempotency-Key",
            ("endpoint",),
        )
