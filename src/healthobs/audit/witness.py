"""A witness for other logs, without I/O but its state: C2SP tlog-witness `add-checkpoint`, tlog-cosignature.

A witness cosigns a checkpoint only when it extends the last one that it cosigned, and remembers it before it
answers. So nobody can show it two histories of one log, nor an old one as new.

Limits: Ed25519 cosignatures (`cosignature/v1`); the optional `sign-subtree` is not offered. A witness that lost
its state must be given a new key; one whose state was put back to an older copy cannot know it. One operator's witnesses share that operator's weaknesses: see
`healthobs.audit.cosigning` for what is then claimed.
"""

from __future__ import annotations

import contextlib
import re
import sqlite3
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from healthobs.audit import keys, merkle
from healthobs.audit.checkpoint import (
    COSIGNATURE,
    ORIGIN,
    NoteError,
    Statement,
    Verifier,
    cosigned,
    from_base64,
    key_id,
    read_statement,
    split,
    to_base64,
)
from healthobs.audit.forking import ForkGate, SqliteFile
from healthobs.audit.sqlite import make_file, set_up
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

MAX_BODY_BYTES = 1 << 17
_MAX_PROOF = 63
_OLD = re.compile(r"old (0|[1-9][0-9]{0,18})")
_PRESENT = "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'latest'"
_SIZE_TYPE = "text/x.tlog.size"
_TEXT = "text/plain; charset=utf-8"


class Answer(NamedTuple):
    """What to answer a request with."""

    status: int
    body: bytes = b""
    content_type: str = _TEXT


class _Refused(Exception):  # noqa: N818 - an answer, not an error
    def __init__(self, answer: Answer) -> None:
        super().__init__(answer.status)
        self.answer = answer


class Cosigner:
    """Makes cosignatures under a name.

    Args:
        name: Schema-less URL of the witness; one key must never sign under two names.
        private_key: The Ed25519 key, used for nothing else.

    Raises:
        ConfigurationError: The name is not fit for a signature line.
    """

    def __init__(self, name: str, private_key: Ed25519PrivateKey) -> None:
        if not ORIGIN.fullmatch(name):
            raise ConfigurationError("the witness name must look like example.org/witness")
        public = private_key.public_key().public_bytes_raw()
        self._name = name
        self._key = private_key
        self._id = key_id(name, COSIGNATURE, public)
        self.vkey: str = f"{name}+{self._id.hex()}+{to_base64(COSIGNATURE + public)}"

    def line(self, text: str, moment: int) -> str:
        """Return the signature line over a checkpoint's `text`, seen at POSIX time `moment`."""
        signature = moment.to_bytes(8) + self._key.sign(cosigned(text, moment).encode())
        return f"— {self._name} {to_base64(self._id + signature)}\n"


class WitnessState:
    """The latest cosigned checkpoint of each log, in a SQLite file of its own.

    Args:
        path: The file, made when missing. Losing it means losing the witness: it is not begun anew with its key.
        key_file: The file of the witness's key, beside which stands that the state was begun (`healthobs.audit.keys`).

    Raises:
        ConfigurationError: The key began a state, and none is in `path`; or what it began cannot be read.
        AuditError: The file cannot be used.
    """

    def __init__(self, path: Path, key_file: Path) -> None:
        self._path = path
        self._gate = ForkGate(lambda: None)
        # Asked before anybody looks for the table: another process may make it, and then write that down, meanwhile.
        begun = keys.has_begun(key_file, keys.WITNESS)
        if begun and not path.exists():
            raise _lost()
        try:
            make_file(path)  # SQLite would make it too, but a fork meanwhile would not know which it is
        except OSError as exc:
            reason = exc.strerror or type(exc).__name__
            raise AuditError(f"the witness's state cannot be made ({reason}); check its folder") from None
        with self.changing() as connection:
            if begun and not connection.execute(_PRESENT).fetchone():
                raise _lost()
            connection.execute(
                "CREATE TABLE IF NOT EXISTS latest (origin TEXT PRIMARY KEY, note TEXT NOT NULL)"
            )
        keys.note_begun(key_file, str(path.absolute()), keys.WITNESS)

    @contextmanager
    def changing(self) -> Generator[sqlite3.Connection]:
        """Give a connection inside a transaction that excludes every other, durable once it ends well; no fork meanwhile."""
        try:
            with (
                self._gate,
                contextlib.closing(SqliteFile(self._path)) as connection,
            ):
                set_up(connection)
                connection.execute("BEGIN IMMEDIATE")
                yield connection
                connection.execute("COMMIT")
        except sqlite3.Error as exc:
            name = getattr(exc, "sqlite_errorname", None) or type(exc).__name__
            raise AuditError(f"the witness's state cannot be used ({name}); check its disk") from None


def _lost() -> ConfigurationError:
    return ConfigurationError(
        "the state that the witness's key file began is gone from here; restore it, or give the witness a new key"
        " in a file of another name, as this one could cosign a second history"
    )


class Witness:
    """Answers the requests of logs and monitors; `init_app(…, witness=…)` of a front end mounts it under ``/witness``.

    Args:
        cosigner: Its key.
        logs: The logs that it knows: verifier of the log's keys by origin.
        state: What it has cosigned.
        clock: When.
    """

    def __init__(
        self,
        cosigner: Cosigner,
        logs: Mapping[str, Verifier],
        state: WitnessState,
        clock: Clock | None = None,
    ) -> None:
        self.vkey: str = cosigner.vkey
        #: How much of a request's body is read at most.
        self.max_body_bytes: int = MAX_BODY_BYTES
        self._cosigner = cosigner
        self._logs = logs
        #: SHA-256 in hex of each log's origin: where its checkpoint is read.
        self.digests: tuple[str, ...] = tuple(sha256(origin.encode()).hexdigest() for origin in logs)
        self._state = state
        self._clock = clock or Clock()

    def add_checkpoint(self, body: bytes) -> Answer:
        """Answer ``POST <prefix>/add-checkpoint``.

        Returns:
            200 cosignature lines; 400 malformed or an old size above the new; 403 not signed by a key of that log; 404
            unknown log; 409 another old size than was cosigned last, which is the body; 422 not an extension of it.

        Raises:
            AuditError: The state cannot be kept, so nothing may be cosigned.
        """
        try:
            old, path, note = _request(body)
            checkpoint, text = self._verified(note)
            if old > checkpoint.size:
                raise _Refused(Answer(400))
            with self._state.changing() as connection:
                last = self._last(connection, checkpoint.origin)
                if old != (0 if last is None else last.size):
                    size = 0 if last is None else last.size
                    raise _Refused(Answer(409, f"{size}\n".encode(), _SIZE_TYPE))
                if not _extends(last, checkpoint, path):
                    raise _Refused(Answer(422))
                line = self._cosigner.line(text, self._clock.wall_ns() // 1_000_000_000)
                kept = f"{text}\n{self._log_lines(note, checkpoint.origin)}{line}"
                connection.execute(
                    "INSERT INTO latest (origin, note) VALUES (?, ?)"
                    " ON CONFLICT (origin) DO UPDATE SET note = excluded.note",
                    (checkpoint.origin, kept),
                )
        except _Refused as refused:
            return refused.answer
        return Answer(200, line.encode())

    def checkpoint(self, origin_hash: str) -> Answer:
        """Answer ``GET <prefix>/<hex SHA-256 of the origin>/checkpoint`` with what was cosigned last, else 404."""
        for origin, digest in zip(self._logs, self.digests, strict=True):
            if digest == origin_hash:
                with self._state.changing() as connection:
                    note = _note(connection, origin)
                return Answer(404) if note is None else Answer(200, note.encode())
        return Answer(404)

    def _verified(self, note: str) -> tuple[Statement, str]:
        try:
            text = split(note)[0]
            statement = read_statement(text, extensions=True)
        except NoteError:
            raise _Refused(Answer(400)) from None
        verifier = self._logs.get(statement.origin)
        if verifier is None:
            raise _Refused(Answer(404))
        try:
            verifier.open(note)
        except NoteError:
            raise _Refused(Answer(403)) from None
        return statement, text

    def _log_lines(self, note: str, origin: str) -> str:
        """Return the signature lines of the log's own keys: others' are not vouched for here."""
        name = self._logs[origin].name
        lines = note.rpartition("\n\n")[2].splitlines(keepends=True)
        return "".join(line for line in lines if line.startswith(f"— {name} "))

    def _last(self, connection: sqlite3.Connection, origin: str) -> Statement | None:
        note = _note(connection, origin)
        return None if note is None else read_statement(split(note)[0], extensions=True)


def _note(connection: sqlite3.Connection, origin: str) -> str | None:
    row = connection.execute("SELECT note FROM latest WHERE origin = ?", (origin,)).fetchone()
    return None if row is None else row[0]


def _request(body: bytes) -> tuple[int, list[bytes], str]:
    """Return old size, consistency proof and note of a request's body."""
    try:
        head, separator, note = body.decode().partition("\n\n")
    except UnicodeDecodeError:
        raise _Refused(Answer(400)) from None
    first, *proof = head.split("\n")
    old = _OLD.fullmatch(first)
    path = [from_base64(line) for line in proof]
    if (
        old is None
        or not separator
        or len(body) > MAX_BODY_BYTES
        or len(path) > _MAX_PROOF
        or any(len(node) != merkle.HASH_BYTES for node in path)
    ):
        raise _Refused(Answer(400))
    return int(old[1]), path, note


def _extends(last: Statement | None, new: Statement, path: list[bytes]) -> bool:
    if new.size == 0 and new.root != merkle.EMPTY_ROOT:
        return False
    if last is None or last.size == 0:
        return not path
    return merkle.verify_consistency(last.size, new.size, path, last.root, new.root)
