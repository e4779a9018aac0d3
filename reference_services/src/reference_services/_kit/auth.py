"""Who is calling: bearer tokens (RFC 6750) verified against auth-service's published keys.

Verification is local (`healthobs.tokens`); keys are fetched through the service's own traced client and
cached. A revoked token is accepted here until it expires: ask auth-service's introspection where that matters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from healthobs import tokens
from healthobs.client import Client
from healthobs.clock import Clock
from healthobs.exceptions import ClientError, TokenError
from reference_services._kit.problems import Problem

Jwks = Callable[[], Mapping[str, Any]]


@dataclass(frozen=True, slots=True)
class Principal:
    """The authenticated caller of a request.

    Args:
        subject: `sub` of the token.
        client_id: `client_id` of the token (RFC 9068 §2.2).
        scopes: What the token allows.
        roles: Roles that its client holds.
    """

    subject: str
    client_id: str
    scopes: frozenset[str]
    roles: tuple[str, ...]


class Authenticator:
    """Turns an `Authorization` header into a `Principal`, or into the right refusal.

    Who it is and what it may are asked apart, so that the audit entry of a refusal can say who was refused.

    Args:
        realm: Name in `WWW-Authenticate`.
        fetch: Gets the issuer's JWKS document.
        issuer: Issuer that tokens must name.
        audience: Audience that tokens must name.
        clock: Says whether a token has expired.
    """

    def __init__(self, realm: str, fetch: Jwks, *, issuer: str, audience: str, clock: Clock) -> None:
        self._realm = realm
        self._verifier = tokens.Verifier(fetch, issuer=issuer, audience=audience, clock=clock)

    def verify(self, authorization: str | None) -> Principal:
        """Return who sent `authorization`, whatever it allows.

        Raises:
            Problem: 401 no or no good token, 503 the issuer's keys cannot be had.
        """
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or not token:
            raise self._refusal(
                401, "token_missing", "Send an access token (RFC 6750) in the Authorization header."
            )
        try:
            claims = self._verifier.verify(token.strip())
        except TokenError as exc:
            raise self._refusal(
                401, exc.code, "The access token was refused; get a new one.", error="invalid_token"
            ) from None
        except ClientError:
            raise Problem(
                503,
                "keys_unavailable",
                "The keys of auth-service cannot be had; retry.",
                (),
                {"Retry-After": "2"},
            ) from None
        return Principal(claims.sub, claims.client_id, frozenset(claims.scopes), tuple(claims.roles))

    def require(self, principal: Principal, scope: str) -> None:
        """Refuse a caller whose token lacks `scope`.

        Raises:
            Problem: 403.
        """
        if scope not in principal.scopes:
            raise self._refusal(
                403,
                "scope_missing",
                "The access token lacks the scope of this route.",
                error="insufficient_scope",
                scope=scope,
            )

    def forged(self, scopes: Iterable[str]) -> str:
        """Return a token with these scopes that is good but for its signature; see `healthobs.tokens.Verifier.forged`."""
        return self._verifier.forged(scope=" ".join(sorted(scopes)))

    def _refusal(self, status: int, code: str, title: str, **parameters: str) -> Problem:
        challenge = ", ".join(
            f'{name}="{value}"' for name, value in {"realm": self._realm, **parameters}.items()
        )
        return Problem(status, code, title, headers={"WWW-Authenticate": f"Bearer {challenge}"})


def fetch_jwks(client: Client) -> Mapping[str, Any]:
    """Ask auth-service for its published keys.

    Raises:
        ClientError: It does not answer, or not with a key set.
    """
    response = client.request("GET", "/.well-known/jwks.json")
    document = response.json() if response.status == 200 else None
    if not isinstance(document, dict):
        raise ClientError("auth-service did not answer with its keys; check AUTH_SERVICE_URL")
    return document
