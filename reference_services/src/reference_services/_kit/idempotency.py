"""`Idempotency-Key`: the same request twice has one effect and one answer (draft-ietf-httpapi-idempotency-key-header).

The row that remembers the answer commits in the transaction of the business write, so a crash leaves both or
neither. A second request waits for the first one's transaction, or gets 409 when it meets it in the same
process. Key, client and body are stored only as HMAC, the answer only encrypted (AES-256-GCM), because
either may hold protected health information. The key of the HMAC lies beside it, so what has few values, or may be
kept in no form, stays out of it (`Operation.remembered`). Answers are kept 24 hours. An error raised from the view rolls
everything back and is not remembered, so the caller may try again; an error that the view returns is.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import sqlalchemy as sa
from cryptography.hazmat.primitives.ciphers.aead import AESGCM
from sqlalchemy.engine import Connection

from healthobs.clock import Clock
from reference_services._kit.database import add_new
from reference_services._kit.problems import Problem

KEEP_NS = 24 * 3600 * 1_000_000_000
#: An RFC 9651 string of up to 255 characters, or the same characters bare.
_KEY = re.compile(r'"([\x20\x21\x23-\x5b\x5d-\x7e]{1,255})"|([\x21\x23-\x5b\x5d-\x7e]{1,255})')
_NONCE_BYTES = 12

METADATA = sa.MetaData()
ANSWERS = sa.Table(
    "idempotency",
    METADATA,
    sa.Column("slot", sa.String(64), primary_key=True),
    sa.Column("fingerprint", sa.String(64), nullable=False),
    sa.Column("answer", sa.LargeBinary, nullable=True),
    sa.Column("created_ns", sa.BigInteger, nullable=False, index=True),
)


@dataclass(frozen=True, slots=True)
class Answer:
    """A response as it is remembered and replayed, with what its audit entry says about it."""

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    audited: Mapping[str, Any] = field(default_factory=dict)

    def to_bytes(self) -> bytes:
        """Return the answer as bytes: one JSON line of all but the body, then the body."""
        return json.dumps([self.status, self.headers, self.audited]).encode() + b"\n" + self.body

    @classmethod
    def from_bytes(cls, raw: bytes) -> Answer:
        """Return the answer that `to_bytes` wrote."""
        head, _, body = raw.partition(b"\n")
        status, headers, audited = json.loads(head)
        return cls(status, tuple((name, value) for name, value in headers), body, audited)


def read_key(header: str | None) -> str:
    """Return the key of an `Idempotency-Key` header, quoted or bare.

    Raises:
        Problem: 400 when it is missing, longer than 255 characters, or not printable ASCII.
    """
    if header is None:
        raise Problem(400, "idempotency_key_missing", "Send an Idempotency-Key header with this request.")
    found = _KEY.fullmatch(header.strip())
    if found is None:
        raise Problem(
            400, "idempotency_key_invalid", "Idempotency-Key must be 1 to 255 printable ASCII characters."
        )
    return found.group(1) or found.group(2)


class Idempotency:
    """Remembers the answers of idempotent routes in the service's own database.

    Args:
        secret: 32 bytes; keys of the HMAC and of the encryption are derived from it.
        clock: Says when an answer is 24 hours old.
    """

    def __init__(self, secret: bytes, clock: Clock) -> None:
        self._hmac_key = hmac.digest(secret, b"idempotency fingerprint", "sha256")
        self._aead = AESGCM(hmac.digest(secret, b"idempotency answer", "sha256"))
        self._clock = clock
        self._lock = threading.Lock()
        self._in_flight: set[str] = set()

    def slot(self, client_id: str, route: str, key: str) -> str:
        """Return the name under which the answer for this client, route and key is stored."""
        return self._digest(json.dumps([client_id, route, key]).encode())

    def fingerprint(self, canonical_request: bytes) -> str:
        """Return what tells this request's content from another's, without telling the content."""
        return self._digest(canonical_request)

    @contextmanager
    def exclusive(self, slot: str) -> Iterator[None]:
        """Hold `slot` for one request of this process.

        Raises:
            Problem: 409 when another request holds it.
        """
        with self._lock:
            if slot in self._in_flight:
                raise Problem(
                    409,
                    "idempotency_key_in_flight",
                    "A request with this Idempotency-Key is being answered; retry later.",
                    headers={"Retry-After": "1"},
                )
            self._in_flight.add(slot)
        try:
            yield
        finally:
            with self._lock:
                self._in_flight.discard(slot)

    def knows(self, connection: Connection, slot: str) -> bool:
        """Tell whether `slot` holds an answer that is not 24 hours old yet."""
        fresh = ANSWERS.c.created_ns >= self._clock.wall_ns() - KEEP_NS
        statement = sa.select(ANSWERS.c.slot).where(ANSWERS.c.slot == slot, fresh)
        return connection.execute(statement).first() is not None

    def run(
        self, connection: Connection, slot: str, fingerprint: str, call: Callable[[], Answer]
    ) -> tuple[Answer, bool]:
        """Return the remembered answer and True, or what `call` answers now and False.

        Args:
            connection: A transaction that the caller commits when this returns, and rolls back when it raises.
            slot: See `slot`.
            fingerprint: See `fingerprint`.
            call: Does the business write on the same connection.

        Raises:
            Problem: 422 when the key was used for another request.
        """
        now = self._clock.wall_ns()
        connection.execute(ANSWERS.delete().where(ANSWERS.c.created_ns < now - KEEP_NS))
        while not add_new(connection, ANSWERS, slot=slot, fingerprint=fingerprint, created_ns=now):
            remembered = self._recall(connection, slot, fingerprint)
            if remembered is not None:  # else it became a day old, and another request took it away meanwhile
                return remembered, True
        answer = call()
        nonce = secrets.token_bytes(_NONCE_BYTES)
        sealed = nonce + self._aead.encrypt(nonce, answer.to_bytes(), slot.encode())
        connection.execute(ANSWERS.update().where(ANSWERS.c.slot == slot).values(answer=sealed))
        return answer, False

    def _digest(self, data: bytes) -> str:
        return hmac.new(self._hmac_key, data, hashlib.sha256).hexdigest()

    def _recall(self, connection: Connection, slot: str, fingerprint: str) -> Answer | None:
        row = connection.execute(sa.select(ANSWERS).where(ANSWERS.c.slot == slot)).first()
        if row is None:
            return None
        if not hmac.compare_digest(row.fingerprint, fingerprint):
            raise Problem(
                422,
                "idempotency_key_reused",
                "This Idempotency-Key was used for another request; use a new key.",
            )
        sealed = bytes(row.answer)
        opened = self._aead.decrypt(sealed[:_NONCE_BYTES], sealed[_NONCE_BYTES:], slot.encode())
        return Answer.from_bytes(opened)
