"""Verifies OAuth 2.0 access tokens in JWT form (RFC 9068) under one fixed, narrow policy.

joserfc does the cryptography; this module decides what may reach it (RFC 8725, "JWT Best Current
Practices"): a size cap before anything else, canonical base64url, no duplicate JSON members, three header
parameters and no others, the algorithm fixed by the key and never chosen by the token, keys that are
strong enough, and finite whole-number times.

`TokenError.code` is one of `CODES`; no message carries any part of a token.

Limits: RS256 only (RFC 9068 §4 makes it mandatory); no encrypted tokens; a token that its issuer revoked
stays valid here until it expires (ask the issuer by RFC 7662 where that matters).
"""

from healthobs.tokens.jwks import CachedJwks
from healthobs.tokens.verifier import CODES, MAX_TOKEN_BYTES, TYPES, Claims, Verifier

__all__ = ["CODES", "MAX_TOKEN_BYTES", "TYPES", "CachedJwks", "Claims", "Verifier"]
