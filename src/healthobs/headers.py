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


def missing(added: list[tuple[str, str]], sent: Sequence[tuple[str, object]]) -> list[tuple[str, str]]:
    """Return what of `added` the application did not send itself."""
    for name, _ in sent:
        if name.lower() in OWN_NAMES:
            taken = {name.lower() for name, _ in sent}
            return [pair for pair in added if pair[0].lower() not in taken]
    return added


def _inner_list(words: Sequence[str]) -> str:
    return "(" + " ".join(f'"{word}"' for word in words) + ")"
