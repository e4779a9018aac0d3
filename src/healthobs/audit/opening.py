"""Opens a trail: makes file, schema, key and identity where they are missing, one process at a time.

A log keeps its origin for ever. Its key may change: a new key first in the key file signs beside the earlier ones,
and the first opening after that records the change (`audit.key`).
"""

from __future__ import annotations

import contextlib
import secrets
from pathlib import Path
from threading import TIMEOUT_MAX

from healthobs.audit import governance, keys, merkle, store, verification
from healthobs.audit.access import Access
from healthobs.audit.checkpoint import NoteError, Signer, Verifier
from healthobs.audit.forking import ForkGate
from healthobs.audit.reader import LogReader
from healthobs.audit.spool import Spool
from healthobs.audit.sqlite import SqliteStore, path_of
from healthobs.audit.store import Connection, Store
from healthobs.audit.subjects import SubjectMap
from healthobs.audit.trail import AuditTrail
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, AuditTamperedError, ConfigurationError
from healthobs.redaction import Redactor

#: A trail that is being opened has no gate yet.
_OPENING = ForkGate(lambda: None)


def open_trail(
    url: str,
    *,
    service: str,
    key_file: Path | None = None,
    clock: Clock | None = None,
    origin: str | None = None,
    redactor: Redactor | None = None,
    timeout_seconds: float = 10.0,
    spool_file: Path | None = None,
    subjects: SubjectMap | None = None,
) -> AuditTrail:
    """Open the audit trail at `url`, which is made first when missing.

    Args:
        url: ``sqlite:///PATH`` or ``postgresql://...``; the file, or the schema ``healthobs_audit``, is the trail's alone.
        service: Name of the service, in each entry and in the origin of a new log.
        key_file: Ed25519 key in PEM form, made 0600 for a new log when missing; default the database file's name and
            ``.key``.
        clock: Default the system's.
        origin: Origin of a new log; default ``healthobs.example/<service>/<random>``. An existing log keeps its
            own, and another one given here is refused.
        redactor: What `reason` and `details` pass; default the ``mask`` mode.
        timeout_seconds: How long an append waits for the disk before it raises.
        spool_file: Where entries about care under break-glass are kept while the store is down; see
            `healthobs.audit.spool`.
        subjects: Map from which each entry gets the token of its subject; without it, subjects are recorded as given.

    Raises:
        ConfigurationError: URL, key file, origin or timeout cannot be used, cryptography is not installed, or the log that the key
            began there is gone.
        AuditError: The file is no audit trail, or of a newer format.
    """
    if not 0 < timeout_seconds <= TIMEOUT_MAX:
        raise ConfigurationError("timeout_seconds must be a number of seconds above 0 that a thread can wait")
    place = store_of(url)
    if key_file is None:
        if place.path is None:
            raise ConfigurationError(
                "an audit trail in PostgreSQL needs audit_key_file: name the signing key"
            )
        key_file = place.path.with_name(place.path.name + ".key")
    signer, previous = _initialise(place, key_file, service, origin)
    keys.note_begun(key_file, place.name, signer.name)
    trail = AuditTrail(
        place,
        signer,
        service=service,
        clock=clock or Clock(),
        redactor=redactor or Redactor(),
        timeout_seconds=timeout_seconds,
        spool=None if spool_file is None else Spool(spool_file),
        subjects=subjects,
    )
    if previous is not None:
        details = {"vkey": signer.vkey, "previous": previous}
        trail.append_own({"action": governance.KEY, "actor": "healthobs", "details": details})
    return trail


def open_reader(place: Store, *, live: bool = False) -> LogReader:
    """Open a log, or a copy of one, to read it: no private key is needed, and nothing is written, nor made beside it.

    Args:
        place: Where it is.
        live: It is about to be written to, so what a killed writer had begun is undone first.

    Raises:
        AuditError: There is no log, or it cannot be read.
    """
    with _OPENING, contextlib.closing(place.connect(read_only=True, live=live)) as connection:
        log = store.read_log(connection)
        if log is None:
            raise AuditError("no audit trail is there")
        ring = verification.ring(Verifier(log[1]), governance.orders(connection))
    return LogReader(Access(place, None), ring, lambda _: None)


def store_of(url: str) -> Store:
    """Return the store that `url` names: ``sqlite:///PATH`` or ``postgresql://...``.

    Raises:
        ConfigurationError: The URL is neither, or what it needs is not installed.
    """
    if not url.startswith(("postgresql://", "postgresql+psycopg://")):
        return SqliteStore(path_of(url))
    try:
        from healthobs.audit.postgres import PostgresStore
    except ImportError:
        raise ConfigurationError(
            "an audit trail in PostgreSQL needs psycopg; install healthobs[postgres]"
        ) from None
    return PostgresStore(url)


def _initialise(place: Store, key_file: Path, service: str, origin: str | None) -> tuple[Signer, str | None]:
    """Make schema and key where missing, one process at a time.

    Returns:
        The signer of the log, and the key before it when it has not signed anything yet.
    """
    # The key is asked before anybody looks for the file: another process may make it, and then write that down, meanwhile.
    if place.path is not None and keys.begun(key_file, place.name) is not None and _is_gone(place.path):
        raise keys.gone(key_file, "audit trail")
    with _OPENING, place.initialising() as connection:
        known = store.read_log(connection)
        if known is not None:
            return _known_signer(connection, known, key_file, origin)
        if keys.begun(key_file, place.name) is not None:
            raise keys.gone(key_file, "audit trail")
        log_id = secrets.token_hex(4)
        signer = Signer(origin or f"healthobs.example/{service}/{log_id}", keys.load_or_create(key_file))
        note = signer.checkpoint(0, merkle.EMPTY_ROOT).note
        store.begin_log(connection, signer.name, signer.vkey, note)
        return signer, None


def _is_gone(path: Path) -> bool:
    """Return whether no log was ever written there: no file, or one of nothing, which to open for writing would fill (WAL)."""
    return not path.exists() or path.stat().st_size == 0


def _known_signer(
    connection: Connection, known: tuple[str, str], key_file: Path, origin: str | None
) -> tuple[Signer, str | None]:
    """Return the signer of an existing log; one of its keys must have signed the latest checkpoint."""
    if origin is not None and origin != known[0]:
        raise ConfigurationError("the audit trail has another origin; leave origin unset to keep its own")
    current, *retiring = keys.load_all(key_file)
    signer = Signer(known[0], current, retiring)
    try:
        signers = list(Verifier(*signer.vkeys).opened(store.head(connection)[1] or "").signers)
    except (NoteError, AuditTamperedError):
        if known[1] not in signer.vkeys:
            raise ConfigurationError(
                "the audit key file does not hold the key of this trail; restore it from where you keep it"
            ) from None
        signers = [signer.vkey]  # it was tampered with: appending refuses, verification says what
    return signer, None if signer.vkey in signers else signers[0]
