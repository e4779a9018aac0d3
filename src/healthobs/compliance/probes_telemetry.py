"""Probes of what leaves the service: identifiers, card data, and the wrapping of span exporters and log sinks.

45 CFR 164.514(b)(2) (the eighteen identifiers), PCI DSS 4.0 requirements 3.3.1, 3.4.1 and 3.5.1. Samples are
made up; what the service's own redactor lets through is found by looking for them afterwards.

Limits: names, places and pictures have no pattern, so free text can carry them unseen; hence ``partial``.
"""

from __future__ import annotations

import json
import random
import string
from typing import TYPE_CHECKING, Any

from healthobs.compliance.control import Outcome, ProbeContext
from healthobs.compliance.probes_audit import NO_TRAIL, canary
from healthobs.logs.sinks import raw_sinks
from healthobs.redaction.canary import IDENTIFIERS, holes, telling
from healthobs.tracing.adoption import exporters, layers, opaque, redacts
from healthobs.tracing.textmap import RAW, sends_raw_baggage

if TYPE_CHECKING:
    from healthobs.redaction import Redactor

#: Probes are not counted among the redactions of a signal.
_UNCOUNTED = ""


def masks_identifiers(context: ProbeContext) -> Outcome:
    """Put a sample of each of the eighteen identifiers through the redactor, by key and in free text.

    So is one under each key that the redactor treats apart.
    """
    leaked: list[str] = []
    missing: list[str] = []
    for identifier in IDENTIFIERS:
        by_key = _survives(context.redactor, identifier.key, identifier.sample)
        in_text = _survives(context.redactor, "event_text", f"seen {identifier.sample} today")
        name = f"({identifier.letter}) {identifier.title}"
        if by_key or (in_text and identifier.in_text):
            leaked.append(name)
        elif in_text:
            missing.append(f"{name} in free text")
    shown = len(IDENTIFIERS) - len(leaked) - len(missing)
    leaked += [f"any under the key {key}" for key in holes(context.redactor)]
    if leaked:
        return Outcome("fail", f"let through: {', '.join(leaked)}", shown, tuple(missing))
    if missing:
        return Outcome(
            "partial", f"{shown} of {len(IDENTIFIERS)} masked wherever they stand", shown, tuple(missing)
        )
    return Outcome("pass", "all eighteen are masked wherever they stand", shown)


def _survives(redactor: Redactor, key: str, text: str) -> bool:
    """Return whether the telling part of `text` comes out again."""
    part = telling(text.removeprefix("seen ").removesuffix(" today"))
    return part in str(redactor.value(key, text, signal=_UNCOUNTED))


def hides_authentication_data(context: ProbeContext) -> Outcome:
    """Send a made-up card verification code through the redactor and into an audit entry; look for it."""
    code = "".join(random.choices(string.ascii_lowercase, k=24))  # noqa: S311 - letters are unmistakable in bytes
    fields = {"cvv": code, "cvc2": code, "security_cvv2": code, "payment": {"cvc": code}}
    return _absent(context, code, fields, "verification code")


def hides_card_numbers(context: ProbeContext) -> Outcome:
    """Send a made-up card number through the redactor and into an audit entry; look for it."""
    number = _card_number()
    spaced = " ".join(number[start : start + 4] for start in range(0, 16, 4))
    fields = {
        "card_number": number,
        "pan": number,
        "message": f"paid with {number}",
        "step": f"card {spaced} ok",
    }
    return _absent(context, number, fields, "card number", spaced)


def _absent(context: ProbeContext, secret: str, fields: dict[str, Any], what: str, *forms: str) -> Outcome:
    needles = (secret, *forms)
    places: list[str] = []
    if _contains(json.dumps(context.redactor.mapping(fields, signal=_UNCOUNTED)), needles):
        places.append("telemetry")
    trail = context.audit
    if trail is not None:
        entry = trail.encode(
            canary(**{name: value for name, value in fields.items() if isinstance(value, str)}), counted=False
        )
        if _contains(entry.decode(), needles):
            places.append("an audit entry")
    if places:
        return Outcome("fail", f"the canary {what} was found in: {', '.join(places)}", len(places))
    if trail is None:
        return Outcome("partial", f"the canary {what} did not reach telemetry", 1, (NO_TRAIL.text,))
    return Outcome("pass", f"the canary {what} is neither in telemetry nor in an audit entry's bytes", 2)


def _contains(text: str, needles: tuple[str, ...]) -> bool:
    return any(needle in text for needle in needles)


def _card_number() -> str:
    """Return sixteen random digits that pass Luhn, under an issuer prefix that is used for tests."""
    digits = "400000" + "".join(random.choices(string.digits, k=9))  # noqa: S311 - a sample, not a secret
    total = 0
    for position, digit in enumerate(reversed(digits)):
        value = int(digit) * (2 - position % 2)
        total += value - 9 if value > 9 else value
    return digits + str(-total % 10)


def wraps_every_exporter(context: ProbeContext) -> Outcome:
    """Look at each exporter of the tracer provider, and at what writes log lines and sends baggage: all must redact.

    Where PHI is not declared such sinks are left alone, and named as what is missing.
    """
    if context.provider is None:
        return Outcome("unknown", "no tracer provider is known")
    if context.redactor.mode == "watch":
        return Outcome("fail", "redaction only watches, and changes nothing")
    sinks = raw_sinks() + [RAW] * sends_raw_baggage()
    bare = list(sinks) if "hipaa" in context.settings.frameworks else []
    wrapped = 0
    for slot in exporters(context.provider):
        if redacts(slot.exporter, context.redactor):
            wrapped += 1
        else:
            bare.append(type(list(layers(slot.exporter))[-1]).__name__)
    if bare:
        return Outcome("fail", f"not wrapped: {', '.join(sorted(bare))}", len(bare))
    unseen = opaque(context.provider)
    if unseen:
        return Outcome("unknown", f"no exporter visible in: {', '.join(sorted(unseen))}", len(unseen))
    if sinks:
        return Outcome("partial", "every span exporter redacts", wrapped, tuple(sinks))
    return Outcome("pass", "every span exporter redacts", wrapped)
