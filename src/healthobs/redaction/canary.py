"""Samples of the eighteen identifiers of 45 CFR 164.514(b)(2)(i): what must not come out of any exit.

A key that lets values pass unscanned must be one of the semantic conventions, all of which have a dot: every key that
the redactor knows is tried with a sample, and one that nobody knows in each of their namespaces.

Limits: for the kinds without a pattern (names, places, pictures) only the key tells, so only there are they looked for.
"""

from __future__ import annotations

from typing import NamedTuple

from healthobs.redaction import keys
from healthobs.redaction.redactor import Redactor


class Identifier(NamedTuple):
    """A kind of identifier of 45 CFR 164.514(b)(2)(i) and a made-up sample of it."""

    letter: str
    title: str
    key: str
    sample: str
    in_text: bool  # whether a pattern finds it, so that free text must lose it


#: Letter, title, a key that denies, a sample, and whether a pattern finds it.
IDENTIFIERS: tuple[Identifier, ...] = (
    Identifier("A", "names", "patient_name", "Jane Canary", False),
    Identifier("B", "geographic subdivisions", "street_address", "12 Canary Lane", False),
    Identifier("C", "dates", "birth_date", "1961-04-12", True),
    Identifier("D", "telephone numbers", "phone", "212-555-0142", True),
    Identifier("E", "fax numbers", "fax", "(212) 555-0143", True),
    Identifier("F", "e-mail addresses", "email", "canary@example.org", True),
    Identifier("G", "social security numbers", "ssn", "078-05-1120", True),
    Identifier("H", "medical record numbers", "mrn", "MRN 48213377", True),
    Identifier("I", "health plan beneficiary numbers", "beneficiary", "1EG4-TE5-MK73", True),
    Identifier("J", "account numbers", "account_number", "account number 99182736", True),
    Identifier("K", "certificate and licence numbers", "license_number", "license number D4821337", True),
    Identifier("L", "vehicle identifiers", "vin", "1M8GDM9AXKP042788", True),
    Identifier("M", "device identifiers", "device_serial", "(01)00643169007222(21)A4821", True),
    Identifier("N", "URLs", "url.full", "https://example.org/patients/48213377", True),
    Identifier("O", "IP addresses", "ip", "198.51.100.23", True),
    Identifier("P", "biometric identifiers", "biometric", "fingerprint template canary", False),
    Identifier("Q", "full-face photographs", "photo", "face photograph canary", False),
    Identifier("R", "other unique identifiers", "patient_id", "canary unique code", False),
)


#: Namespaces whose known keys instrumentation sets; stated again here, so that the table of keys is not its own judge.
_NAMESPACES = frozenset(
    (
        "cloud", "client", "code", "container", "db", "deployment", "error", "exception", "feature_flag", "healthobs", "host",
        "http", "k8s", "messaging", "network", "os", "otel", "peer", "process", "rpc", "server", "service", "telemetry",
        "thread", "url", "user_agent",
    )
)  # fmt: skip
#: Keys of these namespaces that hold data of a request.
_DATA = (
    "url.full", "url.path", "url.query", "client.address", "user_agent.original", "http.url", "http.target",
    "http.request.method_original", "db.query.text", "db.statement", "exception.message", "exception.stacktrace",
    "otel.status_description", "process.command_line", "process.owner",
)  # fmt: skip


def holes(redactor: Redactor) -> list[str]:
    """Return the keys under which a sample comes out of `redactor`, though no instrumentation sets them.

    Left out are those that the settings allow, and all in ``watch``, where everything passes by definition.

    Args:
        redactor: What is tried; nothing is counted.
    """
    if redactor.mode == "watch":
        return []
    tried, known = redactor.uncounted(), keys.ALLOWED | keys.WORDS
    expected = {key for key in known if "." in key and key.partition(".")[0] in _NAMESPACES}
    spaces = {key.rpartition(".")[0] for key in expected} | _NAMESPACES | {"control"}
    tries = (known - expected) | {f"{space}.canary" for space in spaces} | set(_DATA)
    # `strict` lets no text pass, so there a name is looked for, which no pattern finds.
    told = next(
        each for each in IDENTIFIERS if each.key == ("patient_name" if tried.strict else "email")
    ).sample
    return sorted(
        key
        for key in tries
        if told in f"{tried.value(key, told)} {tried.label(key, told)}" and not tried.allows(key)
    )


def telling(sample: str) -> str:
    """Return the part of a sample that identifies, without the words before it."""
    return sample.split(" number ")[-1].removeprefix("MRN ")
