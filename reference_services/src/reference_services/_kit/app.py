"""`Kit`: what the five services share, so that each is only its domain, its store and its routes.

It builds the `Observability` and the Flask application with problem+json errors; its route decorators
validate, authorise, audit and document in one place. Its database is in `storage`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from functools import cached_property, partial
from itertools import product
from typing import TYPE_CHECKING, Any, TypeVar

from flask import Flask, Response, request
from sqlalchemy import MetaData
from sqlalchemy.engine import Connection
from werkzeug.exceptions import HTTPException

from healthobs import Observability, audited, classified, tokens
from healthobs import flask as healthobs_flask
from healthobs._runtime import audit_draft
from healthobs.audit import Outbox, annotate
from healthobs.client import Client
from healthobs.compliance import Control
from healthobs.decorators.audit_entry import audit_outcome
from healthobs.endpoints import AuthorizationUnavailable, InsufficientScope, InvalidCredentials
from healthobs.endpoints import Request as EndpointRequest
from healthobs.exceptions import AuditWriteError
from healthobs.metrics import Instrument
from reference_services._kit import database, errors, idempotency, keys, openapi, shared, witnessing
from reference_services._kit.auth import Authenticator, Jwks, Principal, fetch_jwks
from reference_services._kit.controls import controls as kit_controls
from reference_services._kit.problems import Problem, render
from reference_services._kit.routes import Operation, View, canonical_request, protected_routes
from reference_services._kit.settings import ServiceInfo, ServiceSettings
from reference_services._kit.storage import Storage
from reference_services._kit.transport import WsgiPool
from reference_services._kit.validation import MAX_BODY_BYTES

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

_V = TypeVar("_V", bound=View)
_Views = TypeVar("_Views")


class Kit(Storage):
    """One service in the making.

    Args:
        info: What the service is.
        settings: Where it runs; default: read from the environment.
        obs: The `Observability` to report to, which its owner closes; default: a new one from the settings,
            which `close` closes.
        transport: WSGI application of each peer, for tests in one process; None calls over the network.
        controls: The service's own controls, for a new `Observability`; one that is given has its controls.
    """

    def __init__(
        self,
        info: ServiceInfo,
        settings: ServiceSettings | None = None,
        *,
        obs: Observability | None = None,
        transport: Mapping[str, WSGIApplication] | None = None,
        controls: Sequence[Control] = (),
    ) -> None:
        super().__init__(settings or ServiceSettings.from_env(info))
        self.info = info
        self.settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._owns_obs = obs is None
        own = () if obs is not None else (*controls, *kit_controls(lambda: self))
        self.obs = obs or Observability(self.settings.observability, controls=own)
        self.clock = self.obs.clock
        if self.obs.audit is not None:
            self.outbox = Outbox(self.obs.audit, lambda: self.engine.begin())
        self.log = self.obs.logs.get_logger(info.name)
        self.operations: list[Operation] = []
        self._transport = transport
        self._clients: dict[str, Client] = {}
        self.jwks: Jwks = tokens.CachedJwks(self._fetch_jwks)
        self.app = errors.Application("reference_services", static_folder=None)
        self.app.config["MAX_CONTENT_LENGTH"] = MAX_BODY_BYTES
        self.app.url_map.merge_slashes = False
        self.app.extensions["reference_services"] = self
        errors.register(self.app, self.log)

    # ---- routes

    def route(self, method: str, rule: str, **options: Any) -> Callable[[_V], _V]:
        """Register a view.

        Args:
            method: HTTP method.
            rule: Flask rule, such as ``/patients/<patient_id>``.
            **options: The other parameters of `Operation`.
        """

        def register(view: _V) -> _V:
            operation = Operation(method=method, rule=rule, view=view, **options)
            self.operations.append(operation)
            handler = self._handler(operation)
            if operation.audit is not None:
                handler = audited(operation.audit, resource_type=operation.resource_type)(handler)
            if operation.conf is not None:
                handler = classified(conf=operation.conf, frameworks=self.info.frameworks)(handler)
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

    # ---- metrics

    def counter(self, name: str, documentation: str, **labels: Iterable[str]) -> Instrument:
        """Return the counter ``<prefix>_<name>`` with every series made in advance.

        Args:
            name: Its name without the service's prefix.
            documentation: What it counts.
            **labels: The values that each label can have.
        """
        return self._seeded(self.obs.metrics.counter, name, documentation, labels)

    def histogram(self, name: str, documentation: str, **labels: Iterable[str]) -> Instrument:
        """Return a histogram; see `counter`."""
        return self._seeded(self.obs.metrics.histogram, name, documentation, labels)

    def gauge(self, name: str, documentation: str, **labels: Iterable[str]) -> Instrument:
        """Return a gauge of which the value set last counts, whichever worker set it; see `counter`."""
        make = partial(self.obs.metrics.gauge, multiprocess_mode="mostrecent")
        return self._seeded(make, name, documentation, labels)

    def _seeded(
        self, make: Callable[..., Instrument], name: str, documentation: str, labels: dict[str, Iterable[str]]
    ) -> Instrument:
        made = make(f"{self.info.prefix}_{name}", documentation, tuple(labels))
        made.seed(*product(*labels.values()))
        return made

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

    def _refused_tokens(self) -> Mapping[str, str]:
        scopes = {operation.scope for operation in self.operations if operation.scope is not None}
        return {"bad_signature": self.authenticator.forged({"audit:read", *scopes})}

    def _fetch_jwks(self) -> Mapping[str, Any]:
        return fetch_jwks(self.client("auth-service"))

    # ---- the finished application

    def finish(self, *, checks: Mapping[str, Callable[[], object]] | None = None) -> Flask:
        """Add `GET /` and `GET /openapi.json`, register readiness checks, mount healthobs.

        Args:
            checks: Readiness check by name: returns None or True when ready, False or raises when not; one named
                ``keys`` stands in for `keys_are_sound`, which a service with keys of its own has otherwise.

        Returns:
            The application, ready to serve; `close` of its extension ``reference_services`` ends it.
        """
        version = self._schema_version
        if version is not None:
            self.obs.health.register("database", lambda: database.check(self.engine, version))
            if self.outbox is not None:
                with suppress(AuditWriteError):  # it is tried again before the first write
                    self.outbox.ready()
        for operation in self.operations:
            if operation.idempotent:  # at start, so that a damaged key file stops it
                self._idempotency.slot("", "", "")
                self._replays.seed((operation.rule,))
        own: dict[str, Callable[[], object]] = {"keys": self.keys_are_sound} if self.key_files else {}
        if isinstance(self.jwks, tokens.CachedJwks) and any(op.scope is not None for op in self.operations):
            own["token_keys"] = self.token_keys
        for name, check in {**own, **(checks or {})}.items():
            self.obs.health.register(name, check)
        self._watch_trail()
        self.get("/", returns={200: shared.Index}, summary="Name, version and links")(self._index)
        self.get("/openapi.json", returns={200: shared.Description}, summary="This description")(
            self._openapi
        )
        return healthobs_flask.init_app(
            self.app,
            self.obs,
            authorize=self._authorize,
            conf=self.info.conf,
            protected=protected_routes(self.operations),
            refused_tokens=self._refused_tokens,
            witness=witnessing.witness(self),
        )

    def close(self) -> None:
        """Take healthobs off the application, flush telemetry that this service owns, close connections."""
        if healthobs_flask.EXTENSION in self.app.extensions:
            healthobs_flask.remove_app(self.app)
        if self._owns_obs:
            self.obs.close()
        for client in self._clients.values():
            client.close()
        self.dispose()

    def token_keys(self) -> None:
        """Have keys at hand with which tokens can be verified: the readiness check ``token_keys``.

        The first answer to it fetches them, so that no start waits for auth-service; later ones only where none may be
        used any more.

        Raises:
            ClientError: There are none, and auth-service gives none.
        """
        if not (isinstance(self.jwks, tokens.CachedJwks) and self.jwks.usable()):
            self.jwks()

    def _watch_trail(self) -> None:
        """Watch the key files that the audit trail has loaded, too."""
        observed = self.obs.settings
        subjects, key = observed.audit_subjects_file, observed.audit_subjects_key_file
        if key is None and subjects is not None:
            key = subjects.with_name(f"{subjects.name}.key")
        if self.obs.audit is None:
            return
        if observed.audit_key_file is not None:
            self.key_files.append(keys.KeyFile.of(observed.audit_key_file, rotates=True))
        if key is not None:
            self.key_files.append(keys.KeyFile.of(key))

    def _index(self) -> shared.Index:
        links = {f"{op.method} {op.rule}": op.summary for op in self.operations}
        return shared.Index(
            service=self.info.name,
            version=self.info.version,
            description=self.info.description,
            links={**links, **shared.OPERATIONAL_LINKS},
        )

    def _openapi(self) -> dict[str, Any]:
        return self._document

    @cached_property
    def _document(self) -> dict[str, Any]:
        return openapi.document(self.info, self.operations)

    def _authorize(self, asked: EndpointRequest, scope: str) -> Principal:
        try:
            principal = self.authenticator.verify(asked.headers.get("authorization"))
        except Problem as problem:
            raise (InvalidCredentials if problem.status == 401 else AuthorizationUnavailable) from None
        if scope not in principal.scopes:
            raise InsufficientScope(principal)
        return principal

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
            annotate(details={"code": problem.code})
            return (operation.on_problem or render)(problem)

        view = operation.view
        handler.__name__ = getattr(view, "__name__", "view")
        handler.__qualname__ = getattr(view, "__qualname__", "view")
        handler.__module__ = getattr(view, "__module__", __name__)
        return handler

    def _answer(self, operation: Operation, path: Mapping[str, Any]) -> Response:
        principal = None
        annotate(**operation.named(path))
        if operation.scope is not None:
            principal = self.authenticator.verify(request.headers.get("Authorization"))
            annotate(actor=principal.subject, actor_kind="client")
            self.authenticator.require(principal, operation.scope)
        arguments = operation.arguments(principal, path)
        if operation.idempotent:
            return self._answer_once(operation, principal, arguments)
        operation.prepare(arguments)
        return operation.response(operation.view(**arguments))

    def _answer_once(
        self, operation: Operation, principal: Principal | None, arguments: dict[str, Any]
    ) -> Response:
        key = idempotency.read_key(request.headers.get("Idempotency-Key"))
        client_id = "" if principal is None else principal.client_id
        slot = self._idempotency.slot(client_id, f"{operation.method} {operation.rule}", key)
        fingerprint = self._idempotency.fingerprint(canonical_request(operation, principal))

        prepared = False

        def call() -> idempotency.Answer:
            if not prepared:  # the remembered answer turned a day old since
                operation.prepare(arguments)
            made = operation.response(operation.view(**arguments))
            annotate(outcome=audit_outcome(made, None, "ok"))  # of a refusal that is to stay
            kept = tuple((name, value) for name, value in made.headers if name != "Content-Length")
            return idempotency.Answer(made.status_code, kept, made.get_data(), _audited())

        with self._idempotency.exclusive(slot):
            if operation.before is not None:
                with self.reading() as connection:
                    known = self._idempotency.knows(connection, slot)
                if not known:
                    operation.prepare(arguments)
                    prepared = True
            with self.transaction() as connection:
                answer, replayed = self._idempotency.run(connection, slot, fingerprint, call)
                if replayed:
                    annotate(**answer.audited)
                    annotate(details={"replayed": True})
        response = Response(answer.body, answer.status, list(answer.headers))
        if replayed:
            self._replays.labels(operation.rule).inc()
            response.headers["Idempotent-Replayed"] = "true"
        return response

    @cached_property
    def _idempotency(self) -> idempotency.Idempotency:
        secret = self.secret("IDEMPOTENCY_KEY_FILE", f"{self.info.prefix}.idempotency.key")
        return idempotency.Idempotency(secret, self.clock)

    @cached_property
    def _replays(self) -> Any:
        return self.obs.metrics.counter(
            f"{self.info.prefix}_idempotent_replays_total",
            "Requests answered from the memory of an earlier one with the same Idempotency-Key",
            ("endpoint",),
        )


def application(
    info: ServiceInfo,
    tables: MetaData,
    views: Callable[[Kit], _Views],
    controls: Callable[[Callable[[], _Views]], Sequence[Control]],
    *,
    version: int = 1,
    steps: Mapping[int, Callable[[Connection], None]] | None = None,
) -> Callable[[Callable[[Kit, _Views], Flask]], Callable[..., Flask]]:
    """Make a service's `create_app` of the function that adds its routes to a kit and finishes it.

    Args:
        info: What the service is.
        tables: What its database holds.
        views: Makes the object whose methods are its views; kept as the application's extension `info.name`.
        controls: Makes its own controls of a function that returns that object, once it is there.
        version: Of the schema that `tables` is.
        steps: What brings an older one there; see `database.migrate`.
    """

    def decorate(routes: Callable[[Kit, _Views], Flask]) -> Callable[..., Flask]:
        def create_app(
            settings: ServiceSettings | None = None,
            *,
            obs: Observability | None = None,
            transport: Mapping[str, WSGIApplication] | None = None,
        ) -> Flask:
            kit = Kit(info, settings, obs=obs, transport=transport, controls=controls(lambda: made))
            try:
                kit.migrate(tables, version=version, steps=steps)
                made = kit.app.extensions[info.name] = views(kit)
                return routes(kit, made)
            except BaseException:
                kit.close()
                raise

        return create_app

    return decorate


def _audited() -> dict[str, Any]:
    """Return what the view told the audit entry of this call, which a repeated answer discloses again."""
    draft = audit_draft.get()
    told = ("subject", "resource_id", "purpose", "details")
    return {} if draft is None else {name: getattr(draft, name) for name in told if getattr(draft, name)}
