"""What auth-service takes and gives."""

from __future__ import annotations

from typing import Literal

import pydantic

from reference_services._kit import Model


class Form(Model):
    """RFC 6749 §3.2: unknown parameters are ignored, empty ones count as left out."""

    model_config = pydantic.ConfigDict(extra="ignore")

    client_id: str = pydantic.Field("", max_length=128)
    client_secret: str = pydantic.Field("", max_length=512, json_schema_extra={"format": "password"})


class TokenForm(Form):
    """Body of `POST /token`."""

    grant_type: str = pydantic.Field(max_length=128, examples=["client_credentials"])
    scope: str = pydantic.Field("", max_length=2048)


class TokenReferenceForm(Form):
    """Body of `POST /introspect` and `POST /revoke`."""

    token: str = pydantic.Field(min_length=1, max_length=65536)
    token_type_hint: str = pydantic.Field("", max_length=128)


class TokenAnswer(Model):
    """RFC 6749 §5.1."""

    access_token: str
    token_type: Literal["Bearer"]
    expires_in: int
    scope: str


class Introspection(Model):
    """RFC 7662 §2.2; nothing but `active` for a token that is not."""

    omit_none = True

    active: bool
    scope: str | None = None
    client_id: str | None = None
    token_type: str | None = None
    exp: int | None = None
    iat: int | None = None
    sub: str | None = None
    aud: str | None = None
    iss: str | None = None
    jti: str | None = None
    roles: list[str] | None = None


class OAuthErrorAnswer(Model):
    """RFC 6749 §5.2."""

    error: str
    error_description: str


class Keys(Model):
    """A JWK Set (RFC 7517 §5)."""

    keys: list[dict[str, str]]


class Metadata(Model):
    """Authorization server metadata (RFC 8414 §2)."""

    issuer: str
    token_endpoint: str
    jwks_uri: str
    introspection_endpoint: str
    revocation_endpoint: str
    grant_types_supported: list[str]
    response_types_supported: list[str]
    token_endpoint_auth_methods_supported: list[str]
    introspection_endpoint_auth_methods_supported: list[str]
    revocation_endpoint_auth_methods_supported: list[str]
