"""Checks one token: form, header, signature and claims, in this order (RFC 8725)."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, Final, cast

from healthobs.clock import Clock
from healthobs.exceptions import TokenError
from healthobs.tokens.jwks import (
    ALGORITHM,
    CachedJwks,
    decode_base64url,
    encode_base64url,
    find_key,
    import_key,
)

if TYPE_CHECKING:
    from joserfc.jwk import RSAKey


#: Every code a `TokenError` of this module can carry.
CODES: Final = frozenset(
    {
        "too_large",  # longer than `MAX_TOKEN_BYTES`
        "malformed",  # not three canonical base64url parts of well-formed JSON without duplicate members
        "unsupported",  # a header parameter, type or algorithm outside the policy
        "unknown_key",  # no key of that id
        "ambiguous_key",  # two keys of that id
        "weak_key",  # too short, small exponent, or a known-weak generator
        "bad_signature",
        "missing_claim",  # RFC 9068 §2.2 requires it
        "bad_claim",  # of the wrong type
        "wrong_issuer",
        "wrong_audience",
        "expired",
        "not_yet_valid",
    }
)
MAX_TOKEN_BYTES: Final = 16 * 1024
TYPES: Final = ("at+jwt", "application/at+jwt")  # RFC 9068 §4
_FORGED_SECONDS: Final = 300
_HEADER: Final = frozenset({"alg", "kid", "typ"})
_KEYS_KEPT: Final = 32


@dataclass(frozen=True, slots=True)
class Claims:
    """What a verified token says.

    Args:
        sub: Who the token speaks for.
        client_id: The OAuth client it was issued to.
        scopes: Scope values (RFC 6749 §3.3).
        roles: Role names, in the token's order.
        exp: Expiry, in seconds since the epoch.
        jti: The token's identifier.
        acr: Authentication context class, when stated.
        raw: Every claim, read-only.
    """

    sub: str
    client_id: str
    scopes: frozenset[str]
    roles: tuple[str, ...]
    exp: int
    jti: str
    acr: str | None
    raw: Mapping[str, Any]


class Verifier:
    """Checks access tokens of one issuer for one audience.

    Args:
        jwks: Returns the issuer's JWK Set; a `CachedJwks` is asked to refresh when a key id is unknown.
        issuer: The exact `iss`.
        audience: What `aud` must be or contain.
        clock: Time source.
        leeway_seconds: Clock difference tolerated on `exp`, `iat` and `nbf`.

    Example:
        >>> verifier = Verifier(lambda: {"keys": []}, issuer="https://auth.example", audience="records")
        >>> try:
        ...     verifier.verify("not a token")
        ... except TokenError as error:
        ...     error.code
        'malformed'
    """

    def __init__(
        self,
        jwks: Callable[[], Mapping[str, Any]],
        *,
        issuer: str,
        audience: str,
        clock: Clock | None = None,
        leeway_seconds: int = 5,
    ) -> None:
        self._jwks = jwks
        self._issuer = issuer
        self._audience = audience
        self._clock = clock or Clock()
        self._leeway = leeway_seconds
        self._keys: dict[tuple[str, str], RSAKey] = {}

    def verify(self, token: str) -> Claims:
        """Return the claims of a valid token.

        Args:
            token: The compact serialisation, without the ``Bearer`` word.

        Raises:
            TokenError: With one of `CODES`.
            Exception: What fetching the key set raised; the token was not judged.
        """
        if len(token) > MAX_TOKEN_BYTES:
            raise TokenError("too_large")
        parts = token.split(".")
        if len(parts) != 3:
            raise TokenError("malformed")
        header_bytes, payload_bytes, _signature = (decode_base64url(part) for part in parts)
        kid = _checked_header(_json_object(header_bytes))
        _check_signature(token, self._key(kid))
        return self._checked_claims(_json_object(payload_bytes))

    def forged(self, **claims: object) -> str:
        """Return a token with which nothing is wrong but its signature: `verify` refuses it by that alone.

        For the control that tries whether signatures are checked (`refused_tokens`, RFC 8725 §3.1).

        Args:
            **claims: Claims that differ, or that a route needs besides (``scope``, ``roles``).

        Raises:
            TokenError: `unknown_key`, the key set names no key.
            Exception: What fetching the key set raised.
        """
        key = next((key for key in self._jwks().get("keys", ()) if key.get("kid") and key.get("n")), None)
        if key is None:
            raise TokenError("unknown_key")
        now = self._clock.wall_ns() // 1_000_000_000
        good = {"iss": self._issuer, "aud": self._audience, "iat": now, "exp": now + _FORGED_SECONDS}
        good |= {"sub": "canary", "client_id": "canary", "jti": "canary"}
        header = {"alg": ALGORITHM, "kid": key["kid"], "typ": TYPES[0]}
        parts = [json.dumps(part).encode() for part in (header, {**good, **claims})]
        signature = os.urandom(len(decode_base64url(key["n"])))
        return ".".join(map(encode_base64url, (*parts, signature)))

    def _key(self, kid: str) -> RSAKey:
        found = find_key(self._jwks(), kid)
        if found is None and isinstance(self._jwks, CachedJwks):
            found = find_key(self._jwks.refresh(), kid)
        if found is None:
            raise TokenError("unknown_key")
        identity = (str(found.get("n")), str(found.get("e")))
        key = self._keys.get(identity)
        if key is None:
            key = import_key(found)
            if len(self._keys) >= _KEYS_KEPT:
                self._keys.clear()
            self._keys[identity] = key
        return key

    def _checked_claims(self, raw: dict[str, Any]) -> Claims:
        for name in ("iss", "sub", "client_id", "jti"):
            _text(raw, name)
        if raw["iss"] != self._issuer:
            raise TokenError("wrong_issuer")
        if self._audience not in _strings(raw, "aud", single=True, required=True):
            raise TokenError("wrong_audience")
        exp, iat = _time(raw, "exp"), _time(raw, "iat")
        nbf = _time(raw, "nbf") if "nbf" in raw else iat
        now = self._clock.wall_ns() // 1_000_000_000
        if exp + self._leeway <= now:
            raise TokenError("expired")
        if max(iat, nbf) - self._leeway > now:
            raise TokenError("not_yet_valid")
        return Claims(
            sub=raw["sub"],
            client_id=raw["client_id"],
            scopes=frozenset(_text(raw, "scope").split()) if "scope" in raw else frozenset(),
            roles=_strings(raw, "roles"),
            exp=exp,
            jti=raw["jti"],
            acr=_text(raw, "acr") if "acr" in raw else None,
            raw=MappingProxyType(raw),
        )


def _json_object(data: bytes) -> dict[str, Any]:
    """Parse a JSON object, refusing duplicate members (RFC 7515 §4), NaN and Infinity."""
    try:
        decoded: object = json.loads(
            data.decode("utf-8"), object_pairs_hook=_unique_members, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError):
        raise TokenError("malformed") from None
    if not isinstance(decoded, dict):
        raise TokenError("malformed")
    return cast("dict[str, Any]", decoded)


def _unique_members(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise ValueError("duplicate member")
    return members


def _refuse_constant(_name: str) -> Any:
    raise ValueError("not JSON")


def _checked_header(header: dict[str, Any]) -> str:
    """Return the key id of a header that the policy allows.

    Every other parameter (`jwk`, `jku`, `x5u`, `x5c`, `crit`, `b64`, …) either lets the token choose its
    own key or changes what is signed, so none is ignored: each refuses the token.
    """
    if not header.keys() <= _HEADER or header.get("alg") != ALGORITHM or header.get("typ") not in TYPES:
        raise TokenError("unsupported")
    kid = header.get("kid")
    if not isinstance(kid, str) or not kid:
        raise TokenError("unknown_key")
    return kid


def _check_signature(token: str, key: RSAKey) -> None:
    from joserfc import jws
    from joserfc.errors import JoseError

    try:
        jws.deserialize_compact(token, key, algorithms=[ALGORITHM])
    except (JoseError, ValueError):
        raise TokenError("bad_signature") from None


def _text(raw: Mapping[str, Any], name: str) -> str:
    value = raw.get(name)
    if value is None:
        raise TokenError("missing_claim")
    if not isinstance(value, str) or not value:
        raise TokenError("bad_claim")
    return value


def _time(raw: Mapping[str, Any], name: str) -> int:
    value = raw.get(name)
    if value is None:
        raise TokenError("missing_claim")
    if type(value) is not int:  # a bool is an int too, and a float may be infinite
        raise TokenError("bad_claim")
    return value


def _strings(
    raw: Mapping[str, Any], name: str, *, single: bool = False, required: bool = False
) -> tuple[str, ...]:
    value: object = raw.get(name)
    if value is None:
        if required:
            raise TokenError("missing_claim")
        return ()
    if single and isinstance(value, str):
        return (value,)
    if not isinstance(value, list) or not all(isinstance(item, str) for item in cast("list[object]", value)):
        raise TokenError("bad_claim")
    return tuple(cast("list[str]", value))
