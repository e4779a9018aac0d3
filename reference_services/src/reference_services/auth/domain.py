"""What auth-service decides, without HTTP, database or telemetry.

Client credentials grant (RFC 6749 §4.4), tokens in the JWT profile (RFC 9068), key ids as RFC 7638
thumbprints. Client secrets are generated, never chosen (256 bits), so one SHA-256 protects them at rest;
a chosen password would need argon2id. Limits: no user log-in, no refresh tokens, one signing key.
"""

from __future__ import annotations

import binascii
import hmac
import json
import os
import re
import secrets
from base64 import b64decode
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import unquote_plus

from joserfc import jwt
from joserfc.jwk import RSAKey

TOKEN_SECONDS = 300
#: PCI DSS 4.0.1 req. 8.3.4: at most 10 attempts, then at least 30 minutes.
MAX_FAILURES = 10
LOCKOUT_NS = 30 * 60 * 1_000_000_000
#: Unknown client ids share this many failure counters, so that inventing ids fills no table.
UNKNOWN_SLOTS = 256
_SCOPE = re.compile(r"[\x21\x23-\x5b\x5d-\x7e]+(?: [\x21\x23-\x5b\x5d-\x7e]+)*", re.ASCII)
_CLIENT_ID = re.compile(r"[\x20-\x7e]{1,128}", re.ASCII)
_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)
_NO_SECRET = "0" * 64


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


class ClientsFileError(ValueError):
    """The clients file does not hold what it must; the message names the entry by number only."""


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
    expected = client.secret_sha256 if client else _NO_SECRET
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
    if not all(found) or not _CLIENT_ID.fullmatch(found[0]):
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
    if not _SCOPE.fullmatch(requested):
        raise OAuthError("invalid_scope", "scope is malformed")
    asked = tuple(dict.fromkeys(requested.split(" ")))
    if not set(asked) <= set(client.scopes):
        raise OAuthError("invalid_scope", "the client may not have every scope asked for")
    return asked


@dataclass(frozen=True, slots=True)
class SigningKey:
    """The RSA key that signs access tokens (RS256), known by its thumbprint.

    Args:
        key: The private key.
        created_s: When its file was written, in seconds since the epoch.
    """

    key: RSAKey
    created_s: float

    @classmethod
    def load(cls, path: Path) -> SigningKey:
        """Read the key from a PEM file, made with mode 0600 when missing; replicas share the file."""
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not path.exists():
            fresh = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
            fresh.touch(mode=0o600)
            fresh.write_bytes(RSAKey.generate_key(2048, private=True).as_pem(private=True))
            try:
                os.link(fresh, path)  # atomic; keeps the key that another replica wrote meanwhile
            except FileExistsError:
                pass
            finally:
                fresh.unlink()
        return cls(RSAKey.import_key(path.read_bytes()), path.stat().st_mtime)

    @property
    def kid(self) -> str:
        """The RFC 7638 thumbprint."""
        return self.key.thumbprint()

    def jwks(self) -> dict[str, list[dict[str, Any]]]:
        """Return the public key as a JWK Set (RFC 7517 §5)."""
        public = self.key.as_dict(private=False)
        return {"keys": [{**public, "kid": self.kid, "use": "sig", "alg": "RS256"}]}

    def sign(self, claims: Mapping[str, Any]) -> str:
        """Return the claims as an `at+jwt` (RFC 9068 §2.1)."""
        header = {"alg": "RS256", "kid": self.kid, "typ": "at+jwt"}
        return jwt.encode(header, dict(claims), self.key, algorithms=["RS256"])


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


def read_clients(text: str) -> list[OAuthClient]:
    """Parse the clients file.

    Raises:
        ClientsFileError: With the number of the first bad entry.
    """
    try:
        entries = json.loads(text)
    except ValueError:
        raise ClientsFileError("the clients file is not JSON") from None
    if not isinstance(entries, list):
        raise ClientsFileError("the clients file must hold a JSON array")
    clients = [_read_client(number, entry) for number, entry in enumerate(entries)]
    if len({client.client_id for client in clients}) != len(clients):
        raise ClientsFileError("two clients have the same client_id")
    return clients


def _read_client(number: int, entry: object) -> OAuthClient:
    if not isinstance(entry, dict) or entry.keys() != {"client_id", "secret_sha256", "scopes", "roles"}:
        raise ClientsFileError(f"client {number} must have client_id, secret_sha256, scopes and roles")
    lists = (entry["scopes"], entry["roles"])
    if not all(isinstance(one, list) and all(isinstance(item, str) for item in one) for one in lists):
        raise ClientsFileError(f"scopes and roles of client {number} must be arrays of strings")
    name, digest, scopes = entry["client_id"], entry["secret_sha256"], tuple(entry["scopes"])
    if not isinstance(name, str) or not _CLIENT_ID.fullmatch(name) or ":" in name:
        raise ClientsFileError(f"client_id of client {number} must be printable ASCII without a colon")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest) or digest == _NO_SECRET:
        raise ClientsFileError(f"secret_sha256 of client {number} must be 64 lower-case hex digits")
    if not scopes or not _SCOPE.fullmatch(" ".join(scopes)):
        raise ClientsFileError(f"scopes of client {number} are malformed")
    return OAuthClient(name, digest, scopes, tuple(entry["roles"]))
