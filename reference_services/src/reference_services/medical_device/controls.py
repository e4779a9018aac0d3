"""What medical-device observes about itself, beside the library's controls.

* P-70, signatures bound to their records (21 CFR 11.70): a signature is moved and must not hold; every stored
  one is verified where it stands, over its record as it is now, and of those that the audit trail tells of none is gone.
* P-50, what a signature says (21 CFR 11.50): one without meaning is refused, and every stored one has name, time and meaning.
* P-10h, validity of the source of data (21 CFR 11.10(h)): an identifier with a wrong check digit is refused, and
  no stored one has one.

No route changes a signed record or removes one, so a signature that holds no more tells of who did it past the service.

Limits: of the trail the newest thousand signings are looked at.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from pydantic import ValidationError

from healthobs.compliance import Control, Outcome, control
from reference_services.medical_device import models, store, udi

if TYPE_CHECKING:
    from healthobs.audit.trail import AuditTrail
    from reference_services.medical_device.service import Service

_BOUND = (
    "a moved or altered canary signature does not hold, every stored one does on its record as it is, and none that the "
    "audit trail tells of is gone"
)
_COMPLETE = "one without meaning is refused, and every stored signature of this key says who signed, when, and what for"
_VALID = "an identifier with a wrong check digit is refused, and no registered device has one"
_SAID = ("name", "signed", "meaning")
_CANARY = {"id": "canary", "state": "sound"}


def controls(service: Callable[[], Service]) -> tuple[Control, ...]:
    """Return the controls of the service that `service` returns once it exists."""
    return (
        control("P-70", criterion=_BOUND)(lambda context: signatures_bound(service(), context.audit)),
        control("P-50", criterion=_COMPLETE)(lambda context: signatures_complete(service(), context.audit)),
        control("P-10h", criterion=_VALID)(lambda _context: identifiers_valid(service())),
    )


def signatures_bound(service: Service, trail: AuditTrail | None) -> Outcome:
    """Sign a canary and move the signature; verify every stored one, and look for those that were made."""
    signer = service.signer
    jws = signer.sign("devices", "canary", _CANARY, {"name": "canary"})
    seen = (
        signer.state(jws, "devices", "canary", _CANARY),
        signer.state(jws, "devices", "other", _CANARY),
        signer.state(jws, "devices", "canary", {**_CANARY, "state": "altered"}),
    )
    if seen != ("valid", "forged", "invalidated"):
        return Outcome(
            "fail", f"a canary signature in place, moved and on an altered record was {', '.join(seen)}"
        )
    rows, gone = _stored(service, trail)
    if gone:
        return Outcome("fail", f"{gone} signatures that the audit trail tells of are gone", gone)
    with service.kit.reading() as connection:
        records = store.signed_records(connection)
    keys = [(row["kind"], row["record_id"]) for row in rows]
    loose = sum(
        key not in records or signer.state(row["jws"], *key, records[key]) != "valid"
        for key, row in zip(keys, rows, strict=True)
    )
    if loose:
        text = f"{loose} of {len(rows)} stored signatures do not hold on their records as they are"
        return Outcome("fail", text, loose)
    return Outcome("pass", f"a moved signature did not hold; {len(rows)} stored ones do", len(rows))


def _stored(service: Service, trail: AuditTrail | None) -> tuple[list[dict[str, Any]], int]:
    """Return the stored signatures, and how many there were besides: a signing leaves an entry in the trail."""
    # The trail first: what it tells of was stored before.
    entries = [] if trail is None else trail.read(action="record.sign", limit=1_000).entries
    made = {entry["details"].get("signature") for entry in entries if entry.get("outcome") == "ok"} - {None}
    with service.kit.reading() as connection:
        rows = store.signatures(connection)
    return rows, len(made - {row["id"] for row in rows})


def signatures_complete(service: Service, trail: AuditTrail | None) -> Outcome:
    """Ask for a signature without meaning; look at what every stored one says, whatever it is worth."""
    try:
        models.SignatureInput.model_validate({"reason": "canary"})
    except ValidationError:
        rows, gone = _stored(service, trail)
    else:
        return Outcome("fail", "a signature without meaning is not refused")
    if gone:
        return Outcome("unknown", f"{gone} signatures are gone, and nobody knows what they said", gone)
    said = [manifest for row in rows if (manifest := service.signer.manifest(row["jws"])) is not None]
    lacking = sum(not all(manifest.get(name) for name in _SAID) for manifest in said)
    if lacking:
        return Outcome("fail", f"{lacking} of {len(said)} signatures lack name, time or meaning", len(said))
    return Outcome("pass", f"{len(said)} signatures say who, when and what for", len(said))


def identifiers_valid(service: Service) -> Outcome:
    """Put a wrong check digit to the rule of registration; look at every stored identifier."""
    year = service.kit.clock.now().year
    right, wrong = (
        service.refusal_of(udi.parse(f"(01)0084458800328{digit}(21)canary", year=year))
        for digit in ("8", "9")
    )
    if right is not None or wrong is None:
        return Outcome("fail", "a wrong check digit is not refused, or a right one is")
    with service.kit.reading() as connection:
        stored = store.identifiers(connection)
    bad = sum(udi.check_digit(found[:-1]) != found[-1] for found in stored)
    if bad:
        return Outcome(
            "fail", f"{bad} of {len(stored)} stored identifiers have a wrong check digit", len(stored)
        )
    return Outcome(
        "pass", f"a wrong check digit was refused; {len(stored)} stored identifiers are right", len(stored)
    )
