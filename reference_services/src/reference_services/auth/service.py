"""The views of auth-service; errors of the first three speak RFC 6749 §5.2."""

from __future__ import annotations

import json

from flask import Response, request

from healthobs.audit import annotate
from healthobs.exceptions import TokenError
from healthobs.tokens import Claims, Verifier
from reference_services._kit import Kit, Problem
from reference_services.auth import domain, models
from reference_services.auth.domain import OAuthClient, OAuthError
from reference_services.auth.signing import SigningKey
from reference_services.auth.store import Store

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

_JUDGED = {
    "failed": "authentication_failed",
    "locks": "client_locked",
    "locked": "locked_client_refused",
}


class Service:
    """The views, and what they share."""

    def __init__(self, kit: Kit) -> None:
        settings = kit.settings
        self.kit = kit
        self.store = Store(kit.engine)
        self.key = kit.key("AUTH_SIGNING_KEY_FILE", "auth.signing.pem", SigningKey.load, lambda key: key.kid)
        kit.jwks = self.key.jwks
        self.verifier = Verifier(
            self.key.jwks, issuer=settings.issuer, audience=settings.audience, clock=kit.clock
        )
        self.issued = kit.counter("tokens_issued_total", "Access tokens issued.", grant=(GRANT,))
        self.validated = kit.counter(
            "tokens_validated_total", "Tokens introspected.", result=("active", "inactive")
        )
        self.attempts = kit.counter(
            "login_attempts_total", "Client authentications attempted.", result=("ok", "failed", "locked")
        )
        self.events = kit.obs.metrics.counter(
            "auth_security_events_total", "Events worth an investigation.", ("event_type", "severity")
        )
        self.events.seed(*_SEVERITY.items())
        self.key_age = kit.obs.metrics.gauge(
            "auth_key_age_seconds", "Age of the signing key.", multiprocess_mode="livemax"
        )

    def token(self, body: models.TokenForm) -> tuple[models.TokenAnswer, int, dict[str, str]]:
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
        answer = models.TokenAnswer(
            access_token=self.key.sign(claims),
            token_type="Bearer",  # noqa: S106 - RFC 6750 §4
            expires_in=domain.TOKEN_SECONDS,
            scope=claims["scope"],
        )
        return answer, 200, NO_STORE

    def introspect(self, body: models.TokenReferenceForm) -> tuple[models.Introspection, int, dict[str, str]]:
        """Describe a token to an authenticated client."""
        self.authenticated(body)
        claims = self.valid_claims(body.token)
        self.validated.labels("active" if claims else "inactive").inc()
        if claims is None:
            return models.Introspection(active=False), 200, NO_STORE
        annotate(resource_id=claims.jti)
        raw = claims.raw
        answer = models.Introspection(
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

    def revoke(self, body: models.TokenReferenceForm) -> tuple[None, int, dict[str, str]]:
        """Revoke a token of the calling client; a token that is not valid anyway is no error."""
        client = self.authenticated(body)
        claims = self.valid_claims(body.token)
        if claims is None:
            annotate(details={"revoked": False})
        else:
            if claims.client_id != client.client_id:
                self.event("foreign_revocation")
                raise _refused(OAuthError("invalid_grant", "the token was issued to another client"))
            annotate(resource_id=claims.jti)
            with self.kit.transaction() as connection:
                self.store.revoke(connection, claims.jti, claims.exp, self.kit.clock.wall_ns() // 10**9)
            self.event("token_revoked")
        return None, 200, NO_STORE

    def keys(self) -> tuple[models.Keys, int, dict[str, str]]:
        """Publish the key that verifies access tokens."""
        return (
            models.Keys(**self.key.jwks()),
            200,
            {"Cache-Control": f"public, max-age={domain.TOKEN_SECONDS}"},
        )

    def metadata(self) -> models.Metadata:
        """Describe this server."""
        issuer, methods = self.kit.settings.issuer, ["client_secret_basic", "client_secret_post"]
        return models.Metadata(
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

    def authenticated(self, form: models.Form) -> OAuthClient:
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
        right = domain.secret_matches(client, secret)
        verdict = self.store.attempt(slot, now_ns, right=right)
        self.attempts.labels("failed" if verdict == "locks" else verdict).inc()
        if client is not None and verdict == "ok":
            return client
        self.event(_JUDGED[verdict])
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

    def keys_are_sound(self) -> bool:
        """Tell what the kit tells of the key files, and show the age of the signing key."""
        self.key_age.set(self.kit.clock.wall_ns() / 1e9 - self.key.created_s)
        return self.kit.keys_are_sound()


def _refused(error: OAuthError) -> Problem:
    headers = {"WWW-Authenticate": _CHALLENGE} if error.status == 401 else {}
    return Problem(error.status, error.error, error.description, headers=headers)


def render(problem: Problem, action: str | None = None) -> Response:
    """Answer in the words of RFC 6749 §5.2; what the kit refused is an `invalid_request`."""
    if action is not None:
        annotate(action=action)
    known = problem.headers if problem.status in (400, 401) else {}
    status, error = (
        (problem.status, problem.code) if problem.status in (400, 401) else (400, "invalid_request")
    )
    body = json.dumps({"error": error, "error_description": problem.title})
    return Response(body, status, {**NO_STORE, **known}, content_type="application/json")
