"""What medical-device observes about itself, beside the library's controls.

* P-70, signatures bound to their records (21 CFR 11.70): a signature is moved and must not hold; every stored
  one is verified where it stands.
* P-50, what a signature says (21 CFR 11.50): every stored one has name, time and meaning.
* P-10h, validity of the source of data (21 CFR 11.10(h)): an identifier with a wrong check digit is refused, and
  no stored one has one.

Limits: a signature on a record that was changed since is no failure; it is shown as invalidated.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from healthobs.compliance import Control, Outcome, control
from reference_services.medical_device import store, udi

if TYPE_CHECKING:
    from reference_services.medical_device.service import Service

_BOUND = (
    "a moved or altered canary signature does not hold, and every stored one is this key's and in its place"
)
_COMPLETE = "every stored signature of this key says who signed, when, and what for"
_VALID = "an identifier with a wrong check digit is refused, and no registered device has one"
_SAID = ("name", "signed", "meaning")
_CANARY = {"id": "canary", "state": "sound"}


def controls(service: Callable[[], Service]) -> tuple[Control, ...]:
    """Return the controls of the service that `service` returns once it exists."""
    return (
        control("P-70", criterion=_BOUND)(lambda _context: signatures_bound(service())),
        control("P-50", criterion=_COMPLETE)(lambda _context: signatures_complete(service())),
        control("P-10h", criterion=_VALID)(lambda _context: identifiers_valid(service())),
    )


def signatures_bound(service: Service) -> Outcome:
    """Sign a canary and move the signature; verify every stored one."""
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
    with service.kit.reading() as connection:
        rows = store.signatures(connection)
    said = [(signer.manifest(row["jws"]) or {}, row) for row in rows]
    forged = sum(
        (found.get("kind"), found.get("record")) != (row["kind"], row["record_id"]) for found, row in said
    )
    if forged:
        return Outcome(
            "fail", f"{forged} of {len(rows)} stored signatures do not belong to their records", len(rows)
        )
    return Outcome("pass", f"a moved signature did not hold; {len(rows)} stored ones do", len(rows))


def signatures_complete(service: Service) -> Outcome:
    """Look at what every stored signature says; what it is worth is the business of the control before."""
    with service.kit.reading() as connection:
        rows = store.signatures(connection)
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
