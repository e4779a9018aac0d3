"""What auth-service keeps: clients, failed attempts, revoked token ids. SQLAlchemy Core.

Tokens themselves are not kept, and no secret is.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import Literal

import sqlalchemy as sa
from sqlalchemy.engine import Connection, Engine

from reference_services._kit.database import add_new, reading, starting
from reference_services.auth.domain import LOCKOUT_NS, Failures, OAuthClient, after_failure

#: How an attempt was judged; ``locks`` is the failure that locks, ``locked`` one that finds the lock.
Verdict = Literal["ok", "failed", "locks", "locked"]
METADATA = sa.MetaData()
CLIENTS = sa.Table(
    "client",
    METADATA,
    sa.Column("client_id", sa.String(128), primary_key=True),
    sa.Column("secret_sha256", sa.String(64), nullable=False),
    sa.Column("scopes", sa.Text, nullable=False),
    sa.Column("roles", sa.Text, nullable=False),
)
FAILURES = sa.Table(
    "login_failure",
    METADATA,
    sa.Column("slot", sa.String(80), primary_key=True),
    sa.Column("count", sa.Integer, nullable=False),
    sa.Column("since_ns", sa.BigInteger, nullable=False),
)
REVOKED = sa.Table(
    "revoked_token",
    METADATA,
    sa.Column("jti", sa.String(64), primary_key=True),
    sa.Column("exp", sa.BigInteger, nullable=False, index=True),
)


class Store:
    """The service's state.

    Args:
        engine: From the kit; the tables exist.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine

    def replace_clients(self, clients: Iterable[OAuthClient]) -> None:
        """Make exactly these clients known; replicas may start together."""
        rows = [
            {**asdict(client), "scopes": json.dumps(client.scopes), "roles": json.dumps(client.roles)}
            for client in clients
        ]
        with starting(self._engine) as connection:
            connection.execute(CLIENTS.delete())
            if rows:
                connection.execute(CLIENTS.insert(), rows)

    def client(self, client_id: str) -> OAuthClient | None:
        """Return the client, or None."""
        with reading(self._engine) as connection:
            row = connection.execute(sa.select(CLIENTS).where(CLIENTS.c.client_id == client_id)).first()
        if row is None:
            return None
        scopes, roles = tuple(json.loads(row.scopes)), tuple(json.loads(row.roles))
        return OAuthClient(row.client_id, row.secret_sha256, scopes, roles)

    def attempt(self, slot: str, now_ns: int, *, right: bool) -> Verdict:
        """Judge one attempt and count it, durably, one after the other for each slot.

        Args:
            slot: Under which name failures are counted.
            now_ns: When.
            right: Whether the secret is the client's.
        """
        if right:
            with reading(self._engine) as connection:
                if _failures(connection, slot) is None:
                    return "ok"
        with self._engine.begin() as connection:
            if not right:
                add_new(connection, FAILURES, slot=slot, count=0, since_ns=now_ns)
            failures = _failures(connection, slot, lock=True)
            if failures is not None and failures.locks(now_ns):
                return "locked"
            if right:
                connection.execute(FAILURES.delete().where(FAILURES.c.slot == slot))
                return "ok"
            failures = after_failure(failures, now_ns)
            changed = FAILURES.update().where(FAILURES.c.slot == slot)
            connection.execute(changed.values(count=failures.count, since_ns=failures.since_ns))
        return "locks" if failures.locks(now_ns) else "failed"

    @staticmethod
    def revoke(connection: Connection, jti: str, exp: int, now_s: int) -> None:
        """Put a token id on the denylist until it expires; entries that have expired go."""
        connection.execute(REVOKED.delete().where(REVOKED.c.exp < now_s - LOCKOUT_NS // 10**9))
        add_new(connection, REVOKED, jti=jti, exp=exp)

    def is_revoked(self, jti: str) -> bool:
        """Tell whether a token id is on the denylist."""
        with reading(self._engine) as connection:
            return (
                connection.execute(sa.select(REVOKED.c.jti).where(REVOKED.c.jti == jti)).first() is not None
            )


def _failures(connection: Connection, slot: str, *, lock: bool = False) -> Failures | None:
    query = sa.select(FAILURES.c.count, FAILURES.c.since_ns).where(FAILURES.c.slot == slot)
    row = connection.execute(query.with_for_update() if lock else query).first()
    return Failures(row[0], row[1]) if row else None
