"""Opens a trail: makes file, schema, key and identity where they are missing, one process at a time.

Limits: an existing log keeps its origin and key for ever; keys cannot be rotated yet.
"""

from __future__ import annotations

import secrets
from pathlib import Path

from healthobs.audit import keys, merkle, store
from healthobs.audit.checkpoint import Signer
from healthobs.audit.sqlite import SqliteStore, path_of
from healthobs.audit.store import Store
from healthobs.audit.trail import AuditTrail
from healthobs.clock import Clock
from healthobs.exceptions import ConfigurationError
from healthobs.redaction import Redactor


def open_trail(
    url: str,
    *,
    service: str,
    key_file: Path | None = None,
    clock: Clock | None = None,
    origin: str | None = None,
    redactor: Redactor | None = None,
    timeout_seconds: float = 10.0,
) -> AuditTrail:
    """Open the audit trail at `url`, which is made first when missing.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...``; the file, or the schema ``healthobs_audit``, is the trail's alone.
        service: Name of the service, in each entry and in the origin of a new log.
        key_file: Ed25519 key in PEM form, made 0600 when missing; default the database file's name and
            ``.key``.
        clock: Default the system's.
        origin: Origin of a new log; default ``healthobs.example/<service>/<random>``. An existing log keeps its
            own, and another one given here is refused.
        redactor: What `reason` and `details` pass; default the ``mask`` mode.
        timeout_seconds: How long an append waits for the disk before it raises.

    Raises:
        ConfigurationError: URL, key file or origin cannot be used, or cryptography is not installed.
        AuditError: The file is no audit trail, or of a newer format.
    """
    place = store_of(url)
    if key_file is None:
        if place.path is None:
            raise ConfigurationError(
                "an audit trail in PostgreSQL needs audit_key_file: name the signing key"
            )
        key_file = place.path.with_name(place.path.name + ".key")
    return AuditTrail(
        place,
        _initialise(place, key_file, service, origin),
        service=service,
        clock=clock or Clock(),
        redactor=redactor or Redactor(),
        timeout_seconds=timeout_seconds,
    )


def store_of(url: str) -> Store:
    """Return the store that `url` names: ``sqlite:///PATH`` or ``postgresql://...``.

    Raises:
        ConfigurationError: The URL is neither, or what it needs is not installed.
    """
    return SqliteStore(path_of(url))


def _initialise(place: Store, key_file: Path, service: str, origin: str | None) -> Signer:
    """Make schema and key where missing, one process at a time, and return the signer of the log."""
    with place.initialising() as connection:
        known = store.read_log(connection)
        if known is not None:
            return _known_signer(known, key_file, origin)
        log_id = secrets.token_hex(4)
        signer = Signer(origin or f"healthobs.example/{service}/{log_id}", keys.load_or_create(key_file))
        note = signer.checkpoint(0, merkle.EMPTY_ROOT).note
        store.begin_log(connection, signer.name, signer.vkey, note)
        return signer


def _known_signer(known: tuple[str, str], key_file: Path, origin: str | None) -> Signer:
    """Return the signer of an existing log; its key must be the one that the log was made with."""
    if origin is not None and origin != known[0]:
        raise ConfigurationError("the audit trail has another origin; leave origin unset to keep its own")
    signer = Signer(known[0], keys.load(key_file))
    if signer.vkey != known[1]:
        raise ConfigurationError(
            "the audit key file does not hold the key of this trail; restore it from where you keep it"
        )
    return signer
