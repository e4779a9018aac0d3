"""The routes of auth-service.

`POST /token` (RFC 6749 §4.4), `POST /introspect` (RFC 7662), `POST /revoke` (RFC 7009), the key set
(RFC 7517) and the server metadata (RFC 8414).
"""

from __future__ import annotations

from typing import Any

from flask import Flask

from reference_services._kit import Kit, ServiceInfo, application
from reference_services.auth import clients, models, service
from reference_services.auth.controls import controls
from reference_services.auth.store import METADATA

INFO = ServiceInfo(
    name="auth-service",
    title="Authorization service",
    version="0.1.0",
    prefix="auth",
    port=8085,
    frameworks=("hipaa", "soc2"),
    description="Issues, describes and revokes the OAuth 2.0 access tokens of the reference services.",
    telemetry_keys=("event_type", "severity"),
)


@application(INFO, METADATA, service.Service, controls)
def create_app(kit: Kit, views: service.Service) -> Flask:
    """Add the routes, and make the clients known that the clients file names.

    Raises:
        ConfigurationError: The clients file is wrong.
    """
    known = clients.configured(kit.settings)
    if known is not None:
        views.store.replace_clients(known)
    refusals: dict[int, Any] = {400: models.OAuthErrorAnswer, 401: models.OAuthErrorAnswer}
    form: dict[str, Any] = {
        "form": True,
        "on_problem": service.render,
        "client_auth": True,
        "problems": (503,),
    }
    kit.post(
        "/token", body=models.TokenForm, returns={200: models.TokenAnswer, **refusals}, audit="token.issued",
        resource_type="token", summary="Issue an access token (RFC 6749 §4.4)",
        **{**form, "on_problem": lambda problem: service.render(problem, "token.denied")},
    )(views.token)  # fmt: skip
    kit.post(
        "/introspect", body=models.TokenReferenceForm, returns={200: models.Introspection, **refusals},
        audit="token.introspected", resource_type="token", summary="Describe a token (RFC 7662)", **form,
    )(views.introspect)  # fmt: skip
    kit.post(
        "/revoke", body=models.TokenReferenceForm, returns={200: None, **refusals}, audit="token.revoked",
        resource_type="token", summary="Revoke a token (RFC 7009)", **form,
    )(views.revoke)  # fmt: skip
    kit.get("/.well-known/jwks.json", returns={200: models.Keys}, summary="Verification keys (RFC 7517)")(
        views.keys
    )
    kit.get(
        "/.well-known/oauth-authorization-server",
        returns={200: models.Metadata},
        summary="Metadata (RFC 8414)",
    )(views.metadata)
    return kit.finish(checks={"keys": views.keys_are_sound})
