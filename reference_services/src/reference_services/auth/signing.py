"""The key that signs access tokens: RS256 (RFC 9068 §2.1), published as a JWK Set (RFC 7517 §5).

Limits: one key; a new one makes the tokens of the old one invalid.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from joserfc import jwt
from joserfc.jwk import RSAKey

from reference_services._kit import keys


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
        pem = keys.load(path, lambda: RSAKey.generate_key(2048, private=True).as_pem(private=True))
        return cls(RSAKey.import_key(pem), path.stat().st_mtime)

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
