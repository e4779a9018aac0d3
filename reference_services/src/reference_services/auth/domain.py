"""What auth-service decides, without HTTP, database or telemetry.

Client credentials grant (RFC 6749 §4.4), claims of the JWT profile (RFC 9068). Client secrets are generated, never chosen (256 bits), so one SHA-256 protects them at rest;
a chosen password would need argon2id. Limits: no user log-in, no refresh tokens, one signing key.
"""

from __future__ import annotations

import binascii
import hmac
import re
import secrets
from base64 import b64decode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any
from urllib.parse import unquote_plus

TOKEN_SECONDS = 300
#: PCI DSS 4.0.1 req. 8.3.4: at most 10 attempts, then at least 30 minutes.
MAX_FAILURES = 10
LOCKOUT_NS = 30 * 60 * 1_000_000_000
#: Unknown client ids share this many failure counters, so that inventing ids fills no table.
UNKNOWN_SLOTS = 256
SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*", re.ASCII)
CLIENT_ID = re.compile(r"[\x20-\x7e]{1,128}", re.ASCII)
NO_SECRET = "0" * 64


class OAuthError(Exception):
    """A request refused in the words of RFC 6749 §5.2.

    Args:
        error: The error code.
        description: Constant text for the developer; never contains input.
    """

    def __init__(self, error: str, description: str) -> None:
        self.error = error
        self.description = description
        self.status = 401 if error == "invalid_client" else 400
        super().__init__(error)


@dataclass(frozen=True, slots=True)
class OAuthClient:
    """A registered client.

    Args:
        client_id: Its name.
        secret_sha256: SHA-256 of its secret, in hex.
        scopes: What it may ask for.
        roles: Roles its tokens carry.
    """

    client_id: str
    secret_sha256: str
    scopes: tuple[str, ...]
    roles: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Failures:
    """Failed attempts of one client: how many, and since when (or, at the limit, locked when)."""

    count: int
    since_ns: int

    def locks(self, now_ns: int) -> bool:
        """Tell whether no attempt is judged now, not even one with the right secret."""
        return self.count >= MAX_FAILURES and now_ns - self.since_ns < LOCKOUT_NS


def after_failure(failures: Failures | None, now_ns: int) -> Failures:
    """Count one more failed attempt; the lock starts with the last permitted one."""
    if failures is None or now_ns - failures.since_ns >= LOCKOUT_NS:
        return Failures(1, now_ns)
    count = failures.count + 1
    return Failures(count, now_ns if count == MAX_FAILURES else failures.since_ns)


def failure_slot(client: OAuthClient | None, client_id: str) -> str:
    """Return under which name failures are counted."""
    digest = sha256(client_id.encode()).hexdigest()
    return f"known {digest}" if client else f"unknown {int(digest[:8], 16) % UNKNOWN_SLOTS}"


def secret_matches(client: OAuthClient | None, secret: str) -> bool:
    """Compare in constant time; an unknown client costs the same work as a known one."""
    expected = client.secret_sha256 if client else NO_SECRET
    return hmac.compare_digest(sha256(secret.encode()).hexdigest(), expected) and client is not None


def credentials(authorization: str | None, form: Mapping[str, str]) -> tuple[str, str]:
    """Return the client id and secret of a request, from one place only (RFC 6749 §2.3.1).

    Raises:
        OAuthError: None, both, or malformed.
    """
    posted = (form.get("client_id", ""), form.get("client_secret", ""))
    if authorization is None:
        found = posted
    elif posted[1]:
        raise OAuthError("invalid_request", "use one method of client authentication only")
    else:
        found = _basic(authorization)
        if posted[0] not in ("", found[0]):
            raise OAuthError("invalid_request", "client_id differs from the authenticated client")
    if not all(found) or not CLIENT_ID.fullmatch(found[0]):
        raise OAuthError("invalid_client", "client authentication failed")
    return found


def _basic(authorization: str) -> tuple[str, str]:
    kind, _, encoded = authorization.partition(" ")
    try:
        decoded = b64decode(encoded.strip(), validate=True).decode("utf-8")
    except (binascii.Error, ValueError):
        decoded = ""
    name, colon, secret = decoded.partition(":")
    if kind.lower() != "basic" or not colon:
        raise OAuthError("invalid_client", "client authentication failed")
    return unquote_plus(name), unquote_plus(secret)


def granted_scopes(client: OAuthClient, requested: str | None) -> tuple[str, ...]:
    """Return the scopes to grant: those asked for, or all of the client's when none are (RFC 6749 §3.3).

    Raises:
        OAuthError: Malformed, or not all of them are the client's.
    """
    if requested is None:
        return client.scopes
    if not SCOPE.fullmatch(requested):
        raise OAuthError("invalid_scope", "scope is malformed")
    asked = tuple(dict.fromkeys(requested.split(" ")))
    if not set(asked) <= set(client.scopes):
        raise OAuthError("invalid_scope", "the client may not have every scope asked for")
    return asked


def access_claims(
    client: OAuthClient, scopes: Collection[str], *, issuer: str, audience: str, now_s: int
) -> dict[str, Any]:
    """Return the claims of a new access token (RFC 9068 §2.2); its `jti` is 128 random bits."""
    return {
        "iss": issuer,
        "aud": audience,
        "sub": client.client_id,  # RFC 9068 §2.2: without a user the client is the subject
        "client_id": client.client_id,
        "iat": now_s,
        "exp": now_s + TOKEN_SECONDS,
        "jti": secrets.token_urlsafe(16),
        "scope": " ".join(scopes),
        "roles": list(client.roles),
    }
