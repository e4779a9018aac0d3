"""Compliance and security headers, prebuilt: structured fields (RFC 9651) and the set for a JSON API with PHI.

The compliance headers state how the response is to be handled, never that anything is compliant
(RFC 6648: no `X-` prefix). `conf` is HL7 v3 Confidentiality, `purpose` HL7 v3 PurposeOfUse. The
security set follows the OWASP Secure Headers Project for APIs.

Limits: `Strict-Transport-Security` is the TLS endpoint's to send.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence

CATALOGUE = "2026.1"

SECURITY: tuple[tuple[str, str], ...] = (
    ("Cache-Control", "no-store"),
    ("Content-Security-Policy", "default-src 'none'; frame-ancestors 'none'"),
    ("Cross-Origin-Opener-Policy", "same-origin"),
    ("Cross-Origin-Resource-Policy", "same-origin"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Content-Type-Options", "nosniff"),
    ("X-Frame-Options", "DENY"),
)

NO_STORE = SECURITY[0]
#: HL7 v3 Confidentiality, from unrestricted to very restricted.
CONFIDENTIALITY = tuple("ULMNRV")
#: Confidentiality of responses that no cache may keep, whatever the application says.
RESTRICTED = frozenset({"R", "V"})
Headers = list[tuple[str, str]]

#: Every name that a response may get from here, in lower case.
OWN_NAMES = frozenset({name.lower() for name, _ in SECURITY}) | {
    "audit-receipt",
    "compliance",
    "data-classification",
    "data-handling",
    "traceresponse",
    "x-request-id",
}


def compliance(
    *,
    conf: str,
    frameworks: Sequence[str],
    purpose: Sequence[str] = (),
    retention_days: int,
) -> tuple[tuple[str, str], ...]:
    """Return the three compliance headers.

    Args:
        conf: HL7 v3 Confidentiality (U, L, M, N, R, V).
        frameworks: Frameworks whose handling rules apply, such as ``hipaa``.
        purpose: PurposeOfUse codes that the response may be used for.
        retention_days: How long the record of this response is kept.

    Example:
        >>> compliance(conf="R", frameworks=["hipaa"], retention_days=1)[1]
        ('Data-Classification', 'conf=R')
    """
    classification = f"conf={conf}"
    if purpose:
        classification += f", purpose={_inner_list(purpose)}"
    return (
        ("Compliance", f'frameworks={_inner_list(frameworks)};catalogue="{CATALOGUE}"'),
        ("Data-Classification", classification),
        ("Data-Handling", f"no-store, retention={retention_days * 86_400}, redisclose=?0"),
    )


def receipt(origin: str, index: int, root: bytes) -> tuple[str, str]:
    """Return the `Audit-Receipt` header: which log, which entry, under which root."""
    return "Audit-Receipt", f'log="{origin}";index={index};root=:{base64.b64encode(root).decode()}:'


def settle(
    sent: Headers, added: Headers, *, restricted: bool, clash: bool | None = None
) -> tuple[Headers, Headers]:
    """Return what the application sent and what is added to it, so that no header is doubled and none contradicts.

    An application's own header stands. Its `Cache-Control` without ``no-store`` makes `Data-Handling` leave that out;
    where the response is `restricted`, ``no-store`` takes its place instead.

    Args:
        sent: The application's headers.
        added: What it would be given besides.
        restricted: Whether the response may not be stored, whatever the application says.
        clash: Whether a name of ours is among `sent`, when that is known already.

    Example:
        >>> settle([("Cache-Control", "max-age=600")], [("Data-Handling", "no-store, redisclose=?0")], restricted=False)
        ([('Cache-Control', 'max-age=600')], [('Data-Handling', 'redisclose=?0')])
    """
    if clash is None:
        clash = any(name.lower() in OWN_NAMES for name, _ in sent)
    if not clash:
        return sent, added
    taken = {name.lower() for name, _ in sent}
    kept = [pair for pair in added if pair[0].lower() not in taken]
    own = [value for name, value in sent if name.lower() == "cache-control"]
    if not own or any(part.strip() == "no-store" for part in ",".join(own).lower().split(",")):
        return sent, kept
    if restricted and NO_STORE in added:
        return [pair for pair in sent if pair[0].lower() != "cache-control"], [*kept, NO_STORE]
    return sent, [
        (name, value.removeprefix("no-store, ") if name == "Data-Handling" else value) for name, value in kept
    ]


def _inner_list(words: Sequence[str]) -> str:
    return "(" + " ".join(f'"{word}"' for word in words) + ")"
