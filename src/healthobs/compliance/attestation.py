"""Attestations: what only a person can declare, with an end date and the digest of a document.

Limits: the digest ties the declaration to a document; whether the document is true is not seen from here.
"""

from __future__ import annotations

import re
from datetime import date

from healthobs.compliance.control import Attestation, Outcome

_DIGEST = re.compile(r"[0-9a-f]{64}\Z")


def judge(document: Attestation | None, today: date) -> Outcome:
    """Return ``attested`` for a complete declaration that holds today, else why it does not count.

    Args:
        document: The declaration, when there is one.
        today: The day (UTC).

    Example:
        >>> judge(Attestation("H-308.5", "privacy-officer", "2026-12-31", "0" * 64), date(2026, 11, 23)).state
        'attested'
    """
    if document is None:
        return Outcome("unknown", "nobody has attested it")
    if not document.person or not _DIGEST.match(document.digest):
        return Outcome("fail", "the attestation lacks its person or its document's SHA-256 digest")
    try:
        expires = date.fromisoformat(document.expires)
    except ValueError:
        return Outcome("fail", "the attestation's expiry is no date of the form YYYY-MM-DD")
    if today > expires:
        return Outcome("fail", f"the attestation expired on {expires.isoformat()}")
    return Outcome("attested", f"attested until {expires.isoformat()}, document {document.digest[:12]}")
