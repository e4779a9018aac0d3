"""The routes of auth-service.

`POST /token` (RFC 6749 §4.4), `POST /introspect` (RFC 7662), `POST /revoke` (RFC 7009), the key set
(RFC 7517) and the server metadata (RFC 8414). Errors of the first three speak RFC 6749 §5.2.
"""

from __future__ import annotations

import hmac
import json
import stat
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask, Response, request

from healthobs import Observability
from healthobs.audit import annotate
from healthobs.exceptions import ConfigurationError, TokenError
from healthobs.tokens import Claims, Verifier
from reference_services._kit import Kit, Problem, ServiceInfo, ServiceSettings
from reference_services.auth import domain
from reference_services.auth.controls import controls
from reference_services.auth.domain import OAuthClient, OAuthError, SigningKey
from reference_services.auth.models import (
    Form,
    Introspection,
    Keys,
    Metadata,
    OAuthErrorAnswer,
    TokenAnswer,
    TokenForm,
    TokenReferenceForm,
)
from reference_services.auth.store import METADATA, Store

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

INFO = ServiceInfo(
    name="auth-service",
    title="Authorization service",
    version="0.1.0",
    prefix="auth",
    port=8085,
    frameworks=("hipaa", "soc2"),
    description="Issues, describes and revokes the OAuth 2.0 access tokens of the reference services.",
    phi=False,
    telemetry_keys=("event_type", "severity"),
)
GRANT = "client_credentials"
NO_STORE = {"Cache-Control": "no-store", "Pragma": "no-cache"}
_CHALLENGE = 'Basic realm="auth-service", charset="UTF-8"'
_SEVERITY = {
    "authentication_failed": "low",
    "client_locked": "high",
    "locked_client_refused": "medium",
    "scope_exceeded": "medium",
    "foreign_revocation": "medium",
    "token_revoked": "low",
}


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        settings, metrics = kit.settings, kit.obs.metrics
        self.kit = kit
        self.store = Store(kit.engine)
        self.key_path = settings.file("AUTH_SIGNING_KEY_FILE", "auth.signing.pem")
        self.key = SigningKey.load(self.key_path)
        kit.jwks = self.key.jwks
        self.verifier = Verifier(
            self.key.jwks, issuer=settings.issuer, audience=settings.audience, clock=kit.clock
        )
        self.issued = metrics.counter("auth_tokens_issued_total", "Access tokens issued.", ("grant",))
        self.validated = metrics.counter("auth_tokens_validated_total", "Tokens introspected.", ("result",))
        self.attempts = metrics.counter(
            "auth_login_attempts_total", "Client authentications attempted.", ("result",)
        )
        self.events = metrics.counter(
            "auth_security_events_total", "Events worth an investigation.", ("event_type", "severity")
        )
        self.key_age = metrics.gauge(
            "auth_key_age_seconds", "Age of the signing key.", multiprocess_mode="livemax"
        )
        self.issued.seed((GRANT,))
        self.validated.seed(("active",), ("inactive",))
        self.attempts.seed(("ok",), ("failed",), ("locked",))
        self.events.seed(*_SEVERITY.items())

    def token(self, body: TokenForm) -> tuple[TokenAnswer, int, dict[str, str]]:
        """Issue an access token."""
        client = self.authenticated(body)
        if body.grant_type != GRANT:
            raise _refused(OAuthError("unsupported_grant_type", "only client_credentials is supported"))
        try:
            scopes = domain.granted_scopes(client, body.scope or None)
        except OAuthError as error:
            self.event("scope_exceeded")
            raise _refused(error) from None
        settings = self.kit.settings
        claims = domain.access_claims(
            client,
            scopes,
            issuer=settings.issuer,
            audience=settings.audience,
            now_s=self.kit.clock.wall_ns() // 10**9,
        )
        annotate(resource_id=claims["jti"], details={"grant": GRANT, "scope": claims["scope"]})
        self.issued.labels(GRANT).inc()
        answer = TokenAnswer(
            access_token=self.key.sign(claims),
            token_type="Bearer",  # noqa: S106 - RFC 6750 §4
            expires_in=domain.TOKEN_SECONDS,
            scope=claims["scope"],
        )
        return answer, 200, NO_STORE

    def introspect(self, body: TokenReferenceForm) -> tuple[Introspection, int, dict[str, str]]:
        """Describe a token to an authenticated client."""
        self.authenticated(body)
        claims = self.valid_claims(body.token)
        self.validated.labels("active" if claims else "inactive").inc()
        if claims is None:
            return Introspection(active=False), 200, NO_STORE
        raw = claims.raw
        answer = Introspection(
            active=True,
            scope=raw["scope"],
            client_id=claims.client_id,
            token_type="Bearer",  # noqa: S106 - RFC 6750 §4
            exp=claims.exp,
            iat=raw["iat"],
            sub=claims.sub,
            aud=raw["aud"],
            iss=raw["iss"],
            jti=claims.jti,
            roles=list(claims.roles),
        )
        return answer, 200, NO_STORE

    def revoke(self, body: TokenReferenceForm) -> tuple[None, int, dict[str, str]]:
        """Revoke a token of the calling client; a token that is not valid anyway is no error."""
        client = self.authenticated(body)
        claims = self.valid_claims(body.token)
        if claims is not None:
            if claims.client_id != client.client_id:
                self.event("foreign_revocation")
                raise _refused(OAuthError("invalid_grant", "the token was issued to another client"))
            self.store.revoke(claims.jti, claims.exp, self.kit.clock.wall_ns() // 10**9)
            annotate(resource_id=claims.jti)
            self.event("token_revoked")
        return None, 200, NO_STORE

    def keys(self) -> tuple[Keys, int, dict[str, str]]:
        """Publish the key that verifies access tokens."""
        return Keys(**self.key.jwks()), 200, {"Cache-Control": f"public, max-age={domain.TOKEN_SECONDS}"}

    def metadata(self) -> Metadata:
        """Describe this server."""
        issuer, methods = self.kit.settings.issuer, ["client_secret_basic", "client_secret_post"]
        return Metadata(
            issuer=issuer,
            token_endpoint=f"{issuer}/token",
            jwks_uri=f"{issuer}/.well-known/jwks.json",
            introspection_endpoint=f"{issuer}/introspect",
            revocation_endpoint=f"{issuer}/revoke",
            grant_types_supported=[GRANT],
            response_types_supported=[],
            token_endpoint_auth_methods_supported=methods,
            introspection_endpoint_auth_methods_supported=methods,
            revocation_endpoint_auth_methods_supported=methods,
        )

    def authenticated(self, form: Form) -> OAuthClient:
        """Return the calling client; unknown, wrong and locked out are answered alike.

        Raises:
            Problem: It is not who it says.
        """
        posted = {"client_id": form.client_id, "client_secret": form.client_secret}
        try:
            name, secret = domain.credentials(request.headers.get("Authorization"), posted)
        except OAuthError as error:
            self.attempts.labels("failed").inc()
            raise _refused(error) from None
        client, now_ns = self.store.client(name), self.kit.clock.wall_ns()
        if client is not None:
            annotate(actor=client.client_id, actor_kind="client")
        slot = domain.failure_slot(client, name)
        failures, right = self.store.failures(slot), domain.secret_matches(client, secret)
        if failures is not None and failures.locks(now_ns):
            self.attempts.labels("locked").inc()
            self.event("locked_client_refused")
        elif client is not None and right:
            if failures is not None:
                self.store.clear_failures(slot)
            self.attempts.labels("ok").inc()
            return client
        else:
            failures = self.store.add_failure(slot, now_ns)
            self.attempts.labels("failed").inc()
            self.event("client_locked" if failures.locks(now_ns) else "authentication_failed")
        raise _refused(OAuthError("invalid_client", "client authentication failed"))

    def valid_claims(self, token: str) -> Claims | None:
        """Return the claims of a token that is valid and not revoked."""
        try:
            claims = self.verifier.verify(token)
        except TokenError:
            return None
        return None if self.store.is_revoked(claims.jti) else claims

    def event(self, event_type: str) -> None:
        """Count and log a security event."""
        self.events.labels(event_type, _SEVERITY[event_type]).inc()
        self.kit.log.warning("security_event", event_type=event_type, severity=_SEVERITY[event_type])

    def key_is_sound(self) -> bool:
        """Tell whether the key file still holds the key in use and only its owner can read it."""
        self.key_age.set(self.kit.clock.wall_ns() / 1e9 - self.key.created_s)
        found = SigningKey.load(self.key_path) if self.key_path.exists() else None
        private = found is not None and not stat.S_IMODE(self.key_path.stat().st_mode) & 0o077
        return private and found is not None and hmac.compare_digest(found.kid, self.key.kid)


def _refused(error: OAuthError) -> Problem:
    headers = {"WWW-Authenticate": _CHALLENGE} if error.status == 401 else {}
    return Problem(error.status, error.error, error.description, headers=headers)


def _render(problem: Problem, action: str | None = None) -> Response:
    """Answer in the words of RFC 6749 §5.2; what the kit refused is an `invalid_request`."""
    if action is not None:
        annotate(action=action)
    known = problem.headers if problem.status in (400, 401) else {}
    status, error = (
        (problem.status, problem.code) if problem.status in (400, 401) else (400, "invalid_request")
    )
    body = json.dumps({"error": error, "error_description": problem.title})
    return Response(body, status, {**NO_STORE, **known}, content_type="application/json")


def _clients(settings: ServiceSettings) -> list[OAuthClient] | None:
    """Read the clients file; None when none is named, which leaves the known clients as they are."""
    if not settings.environ.get("AUTH_CLIENTS_FILE"):
        return None
    try:
        return domain.read_clients(settings.file("AUTH_CLIENTS_FILE", "").read_text(encoding="utf-8"))
    except OSError:
        raise ConfigurationError("AUTH_CLIENTS_FILE names a file that cannot be read") from None
    except domain.ClientsFileError as error:
        raise ConfigurationError(f"AUTH_CLIENTS_FILE: {error}") from None


def create_app(
    settings: ServiceSettings | None = None,
    *,
    obs: Observability | None = None,
    transport: Mapping[str, WSGIApplication] | None = None,
) -> Flask:
    """Build the service.

    Raises:
        ConfigurationError: The clients file is wrong.
    """
    settings = settings or ServiceSettings.from_env(INFO)
    clients = _clients(settings)
    kit = Kit(INFO, settings, obs=obs, transport=transport, controls=controls(lambda: service))
    kit.migrate(METADATA)
    service = Service(kit)
    kit.app.extensions[INFO.name] = service
    if clients is not None:
        service.store.replace_clients(clients)
    refusals: dict[int, Any] = {400: OAuthErrorAnswer, 401: OAuthErrorAnswer}
    form: dict[str, Any] = {"form": True, "on_problem": _render, "client_auth": True, "problems": (503,)}
    kit.post(
        "/token", body=TokenForm, returns={200: TokenAnswer, **refusals}, audit="token.issued",
        resource_type="token", summary="Issue an access token (RFC 6749 §4.4)",
        **{**form, "on_problem": lambda problem: _render(problem, "token.denied")},
    )(service.token)  # fmt: skip
    kit.post(
        "/introspect", body=TokenReferenceForm, returns={200: Introspection, **refusals}, **form,
        summary="Describe a token (RFC 7662)",
    )(service.introspect)  # fmt: skip
    kit.post(
        "/revoke", body=TokenReferenceForm, returns={200: None, **refusals}, audit="token.revoked",
        resource_type="token", summary="Revoke a token (RFC 7009)", **form,
    )(service.revoke)  # fmt: skip
    kit.get("/.well-known/jwks.json", returns={200: Keys}, summary="Verification keys (RFC 7517)")(
        service.keys
    )
    kit.get(
        "/.well-known/oauth-authorization-server", returns={200: Metadata}, summary="Metadata (RFC 8414)"
    )(service.metadata)
    return kit.finish(checks={"signing_key": service.key_is_sound})
