"""Opens a trail: makes file, schema, key and identity where they are missing, one process at a time.

Limits: an existing log keeps its origin and key for ever; keys cannot be rotated yet.
"""

from __future__ import annotations

import contextlib
import fcntl
import secrets
import sqlite3
from pathlib import Path

from healthobs.audit import keys, merkle, store
from healthobs.audit.checkpoint import Signer
from healthobs.audit.trail import AuditTrail
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, ConfigurationError
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
        url: ``sqlite:///PATH``; the file belongs to the trail alone.
        service: Name of the service, in each entry and in the origin of a new log.
        key_file: Ed25519 key in PEM form, made 0600 when missing; default the database file's name and ``.key``.
        clock: Default the system's.
        origin: Origin of a new log; default ``healthobs.example/<service>/<random>``. An existing log keeps its
            own, and another one given here is refused.
        redactor: What `reason` and `details` pass; default the ``mask`` mode.
        timeout_seconds: How long an append waits for the disk before it raises.

    Raises:
        ConfigurationError: URL, key file or origin cannot be used, or cryptography is not installed.
        AuditError: The file is no audit trail, or of a newer format.
    """
    path = store.path_of(url)
    key_file = key_file or path.with_name(path.name + ".key")
    store.create_file(path)
    try:
        signer = _initialise(path, key_file, service, origin)
    except (sqlite3.Error, OSError) as exc:
        name = getattr(exc, "sqlite_errorname", None) or type(exc).__name__
        raise AuditError(
            f"the audit database cannot be opened ({name}); check the file and its disk"
        ) from None
    return AuditTrail(
        path,
        signer,
        service=service,
        clock=clock or Clock(),
        redactor=redactor or Redactor(),
        timeout_seconds=timeout_seconds,
    )


def _initialise(path: Path, key_file: Path, service: str, origin: str | None) -> Signer:
    """Make schema and key where missing, one process at a time, and return the signer of the log."""
    with open(store.open_lock(path), "rb") as lock_file:  # noqa: PTH123  # a descriptor
        fcntl.flock(lock_file, fcntl.LOCK_EX)
        with contextlib.closing(store.connect(path)) as connection:
            known = store.read_log(connection)
            if known is not None:
                return _known_signer(known, key_file, origin)
            log_id = secrets.token_hex(4)
            signer = Signer(origin or f"healthobs.example/{service}/{log_id}", keys.load_or_create(key_file))
            connection.execute("BEGIN IMMEDIATE")
            try:
                note = signer.checkpoint(0, merkle.EMPTY_ROOT).note
                store.create_schema(connection, signer.name, signer.vkey, note)
                connection.execute("COMMIT")
            except BaseException:
                connection.execute("ROLLBACK")
                raise
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
