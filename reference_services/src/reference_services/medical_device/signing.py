"""Electronic signatures on records: who, when, what for, and inseparable from what was signed. Pure.

21 CFR 11.50: a signature shows the printed name, the date and time, and its meaning. 21 CFR 11.70: it cannot
be excised, copied or transferred. Here it is a JWS (RFC 7515, EdDSA of RFC 8037) over kind, id and SHA-256 of
the record's canonical JSON, so on another record, or on a changed one, it does not hold.

Limits: the service signs for the authenticated caller, and asks for no second component (21 CFR 11.200).
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Mapping
from typing import Any, Literal

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

_HEADER = b'{"alg":"EdDSA","typ":"healthobs-signature+jws"}'
State = Literal["valid", "invalidated", "forged"]


def digest(record: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a record's canonical JSON, in hex.

    Example:
        >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1})
        True
    """
    return hashlib.sha256(_canonical(record)).hexdigest()


class Signer:
    """Signs, and tells what a signature is worth.

    Args:
        seed: The private key, 32 bytes (RFC 8032 §5.1.5).
    """

    def __init__(self, seed: bytes) -> None:
        self._private = Ed25519PrivateKey.from_private_bytes(seed)
        self._public: Ed25519PublicKey = self._private.public_key()

    def sign(self, kind: str, record_id: str, record: Mapping[str, Any], manifest: Mapping[str, str]) -> str:
        """Return a compact JWS that binds `manifest` (name, time, meaning, reason) to the record."""
        payload = {**manifest, "kind": kind, "record": record_id, "sha256": digest(record)}
        signed = _b64(_HEADER) + b"." + _b64(_canonical(payload))
        return (signed + b"." + _b64(self._private.sign(signed))).decode()

    def manifest(self, jws: str) -> dict[str, str] | None:
        """Return what a JWS of this key says, or None when it is not one."""
        try:
            signed, _, signature = jws.encode("ascii").rpartition(b".")
            header, _, payload = signed.partition(b".")
            self._public.verify(_unb64(signature), signed)
            if _unb64(header) != _HEADER:
                return None
            found: dict[str, str] = json.loads(_unb64(payload))
        except (InvalidSignature, ValueError):
            return None
        return found

    def state(self, jws: str, kind: str, record_id: str, record: Mapping[str, Any]) -> State:
        """Tell what a signature is worth under this record as it is now.

        Returns:
            ``forged`` when it is not this key's or belongs to another record, ``invalidated`` when the record
            has changed since, else ``valid``.
        """
        found = self.manifest(jws)
        if found is None or (found.get("kind"), found.get("record")) != (kind, record_id):
            return "forged"
        return "valid" if found.get("sha256") == digest(record) else "invalidated"


def _canonical(value: Mapping[str, Any]) -> bytes:
    return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


def _b64(raw: bytes) -> bytes:
    return base64.urlsafe_b64encode(raw).rstrip(b"=")


def _unb64(text: bytes) -> bytes:
    raw = base64.urlsafe_b64decode(text + b"=" * (-len(text) % 4))
    if _b64(raw) != text:
        raise ValueError("not canonical base64url")
    return raw
