"""JSON Web Key Sets: kept fresh, searched by key id, and refused when a key is weak (RFC 7517, RFC 8725 §3).

Part of `healthobs.tokens`. Limits: RSA keys for RS256 only.
"""

from __future__ import annotations

import re
import threading
from base64 import urlsafe_b64decode, urlsafe_b64encode
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final, cast

from healthobs.clock import Clock
from healthobs.exceptions import ConfigurationError, TokenError

if TYPE_CHECKING:
    from joserfc.jwk import RSAKey

ALGORITHM: Final = "RS256"
MIN_RSA_BITS: Final = 2048
MAX_RSA_BITS: Final = 8192  # verification time grows with the square: a bound on what a key set can cost
MIN_RSA_EXPONENT: Final = 65537
_BASE64URL: Final = re.compile(r"[A-Za-z0-9_-]+", re.ASCII)


class CachedJwks:
    """A JWK Set (RFC 7517 §5) that is fetched when it is needed, and not more often.

    Args:
        fetch: Returns the key set, or raises when it cannot.
        ttl_seconds: How long a fetched set is used without asking again.
        min_interval_seconds: The least time between two fetches, so that tokens with invented key ids
            cannot make this service hammer the issuer.
        max_stale_seconds: How long an old set still serves while fetching fails.
        clock: Time source.

    Example:
        >>> keys = CachedJwks(lambda: {"keys": []})
        >>> keys()
        {'keys': []}
    """

    def __init__(
        self,
        fetch: Callable[[], Mapping[str, Any]],
        *,
        ttl_seconds: float = 300.0,
        min_interval_seconds: float = 5.0,
        max_stale_seconds: float = 3600.0,
        clock: Clock | None = None,
    ) -> None:
        self._fetch = fetch
        self._ttl_ns = int(ttl_seconds * 1e9)
        self._min_interval_ns = int(min_interval_seconds * 1e9)
        self._max_stale_ns = int(max_stale_seconds * 1e9)
        self._clock = clock or Clock()
        self._lock = threading.Lock()
        self._set: Mapping[str, Any] | None = None
        self._fetched_ns = 0
        self._tried_ns: int | None = None

    def __call__(self) -> Mapping[str, Any]:
        """Return the key set, fetching it when it is missing or older than the time to live.

        Raises:
            Exception: What `fetch` raised, when there is no set that may still serve.
        """
        held = self._set
        if held is not None and self._clock.monotonic_ns() - self._fetched_ns < self._ttl_ns:
            return held
        return self._update()

    def usable(self) -> bool:
        """Tell whether there is a set that may still serve, without fetching one."""
        return self._set is not None and self._clock.monotonic_ns() - self._fetched_ns < self._max_stale_ns

    def refresh(self) -> Mapping[str, Any]:
        """Fetch now, because a key id was not found, unless that was done a moment ago."""
        return self._update(forced=True)

    def _update(self, *, forced: bool = False) -> Mapping[str, Any]:
        with self._lock:
            now = self._clock.monotonic_ns()
            held, age = self._set, now - self._fetched_ns
            if held is not None:
                if not forced and age < self._ttl_ns:
                    return held  # another thread has just fetched it
                recently = self._tried_ns is not None and now - self._tried_ns < self._min_interval_ns
                if recently and age < self._max_stale_ns:
                    return held
            self._tried_ns = now
            try:
                fetched = self._fetch()
            except Exception:
                if held is not None and age < self._max_stale_ns:
                    return held
                raise
            self._set, self._fetched_ns = fetched, now
            return fetched


def decode_base64url(part: str) -> bytes:
    """Decode canonical base64url without padding (RFC 7515 §2); trailing bits must be zero."""
    if not _BASE64URL.fullmatch(part) or len(part) % 4 == 1:
        raise TokenError("malformed")
    decoded = urlsafe_b64decode(part + "=" * (-len(part) % 4))
    if urlsafe_b64encode(decoded).rstrip(b"=") != part.encode("ascii"):
        raise TokenError("malformed")
    return decoded


def encode_base64url(data: bytes) -> str:
    """Encode as base64url without padding (RFC 7515 §2)."""
    return urlsafe_b64encode(data).rstrip(b"=").decode()


def find_key(jwks: Mapping[str, Any], kid: str) -> dict[str, Any] | None:
    """Return the key of that id, or None; two of them refuse the token."""
    keys = cast("object", jwks.get("keys"))
    found = [
        cast("dict[str, Any]", key)
        for key in (cast("list[object]", keys) if isinstance(keys, list) else [])
        if isinstance(key, dict) and cast("dict[str, Any]", key).get("kid") == kid
    ]
    if len(found) > 1:
        raise TokenError("ambiguous_key")
    return found[0] if found else None


def import_key(jwk: dict[str, Any]) -> RSAKey:
    """Build the public key, refusing what is not a strong RSA signing key."""
    if jwk.get("kty") != "RSA" or jwk.get("use", "sig") != "sig" or jwk.get("alg", ALGORITHM) != ALGORITHM:
        raise TokenError("unsupported")
    if not isinstance(jwk.get("n"), str) or not isinstance(jwk.get("e"), str):
        raise TokenError("weak_key")
    modulus, exponent = (int.from_bytes(decode_base64url(jwk[name])) for name in ("n", "e"))
    if not MIN_RSA_BITS <= modulus.bit_length() <= MAX_RSA_BITS:
        raise TokenError("weak_key")
    if exponent < MIN_RSA_EXPONENT or exponent % 2 == 0 or has_roca_fingerprint(modulus):
        raise TokenError("weak_key")
    try:
        from joserfc.jwk import RSAKey
    except ImportError:
        raise ConfigurationError(
            "verifying tokens needs joserfc, which is not installed; install healthobs[tokens]"
        ) from None
    # Only the public numbers are passed on: a set that leaked private members gains nothing here.
    return RSAKey.import_key({"kty": "RSA", "n": jwk["n"], "e": jwk["e"]})


def _roca_residues() -> tuple[tuple[int, frozenset[int]], ...]:
    primes = [n for n in range(3, 168, 2) if all(n % d for d in range(3, int(n**0.5) + 1, 2))]
    return tuple((p, frozenset(pow(MIN_RSA_EXPONENT, k, p) for k in range(p))) for p in primes)


_ROCA: Final = _roca_residues()


def has_roca_fingerprint(modulus: int) -> bool:
    """Tell whether an RSA modulus looks like one of the factorable Infineon keys (CVE-2017-15361).

    Such moduli are powers of 65537 modulo every small prime (Nemec et al., "The Return of Coppersmith's
    Attack", ACM CCS 2017, §2); a sound key has that property with a probability below 2**-27.
    """
    return all(modulus % prime in residues for prime, residues in _ROCA)
