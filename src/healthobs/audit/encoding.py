"""What makes a draft an entry of one trail: its service, its clock, its redactor, and the tokens of its subjects.

The bytes themselves are `healthobs.audit.entry`'s. A subject becomes its token here, before anything is written anywhere
(45 CFR 164.514(c)); where the map gives none now, care goes on with a stand-in for it (`healthobs.audit.subjects`).

Limits: a fault of the map is a fault of the append.
"""

from __future__ import annotations

import secrets
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING

from healthobs.audit import entry, governance
from healthobs.audit.draft import AuditDraft
from healthobs.audit.spool import Row
from healthobs.audit.subjects import is_token
from healthobs.clock import Clock
from healthobs.exceptions import AuditError, AuditWriteError
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from healthobs.audit.subjects import SubjectMap

Draft = Mapping[str, object] | AuditDraft


class NoTokenError(AuditWriteError):
    """The map of subjects gives no token."""


class Encoder:
    """Encodes the entries of one trail.

    Args:
        service: `service` of each entry.
        clock: When.
        redactor: Decides on `reason` and `details`.
        subjects: Gives the token that each entry has in place of its subject, and of a resource that is its subject.
    """

    def __init__(
        self, *, service: str, clock: Clock, redactor: Redactor, subjects: SubjectMap | None
    ) -> None:
        self._service = service
        self._clock = clock
        self._redactor = redactor
        self.subjects: SubjectMap | None = subjects

    def new_key(self) -> str:
        """Return a key for a row of an outbox or spool; keys are in the order of time."""
        return f"{self._clock.wall_ns():020d}-{secrets.token_hex(8)}"

    def token_of(self, identifier: str | None) -> str | None:
        """Return the token of a subject, where there is a map that knows one."""
        if self.subjects is None or identifier is None:
            return None
        return self.subjects.find(identifier)

    def encode(self, draft: Draft, wait_seconds: float, signal: str = "audit") -> bytes:
        """Return the bytes of the entry that `draft` describes, as it happened here and now.

        Raises:
            AuditWriteError: The entry is malformed, or its subject gets no token within the time.
        """
        fields = _fields(draft)
        action = fields.get("action")
        # Its text: a member of an enumeration has another hash.
        if isinstance(action, str) and str.__str__(action) in governance.RESERVED:
            raise AuditWriteError("the audit entry's action is one that only the trail itself records")
        if self.subjects is not None:
            with _asking():
                fields = self.subjects.about(fields, wait_seconds)
        return self._encoded(fields, self._redactor, signal)

    def own(self, draft: Mapping[str, object], wait_seconds: float) -> bytes:
        """Return the bytes of an entry of healthobs' own, whose action may be reserved."""
        fields: Mapping[str, object] = {**draft, "actor_kind": "system"}
        if self.subjects is not None:
            with _asking():
                subject = draft.get("subject")
                # A token whose row was erased still names its entries; taken for an identifier it would get another one.
                if not is_token(subject) or self.subjects.find(str(subject)) is not None:
                    fields = self.subjects.about(fields, wait_seconds)
        return self._encoded(fields, governance.REDACTOR)

    def stand_in(self, key: str, draft: Draft) -> Row:
        """Return the row of the spool for an entry whose subject gets no token now."""
        assert self.subjects is not None  # noqa: S101 - without a map no token is wanting
        fields, sealed = self.subjects.stand_in(_fields(draft))
        return f"{key}+{sealed}", self._encoded(fields, self._redactor)

    def settled(self, row: Row, wait_seconds: float) -> Row:
        """Return a row of the spool as the log gets it: under its key alone, and with the token in place of a stand-in."""
        key, _, sealed = row[0].partition("+")
        if self.subjects is None or not sealed:
            return key, row[1]
        with _asking():
            return key, self.subjects.settled(row[1], sealed, wait_seconds)

    def _encoded(self, fields: Mapping[str, object], redactor: Redactor, signal: str = "audit") -> bytes:
        return entry.encode(
            fields, service=self._service, moment=self._clock.now(), redactor=redactor, signal=signal
        )


def _fields(draft: Draft) -> Mapping[str, object]:
    if isinstance(draft, AuditDraft):
        return draft.as_mapping()
    if not isinstance(draft, (dict, Mapping)):  # pyright: ignore[reportUnnecessaryIsInstance]  # a caller may give anything
        raise AuditWriteError("the audit entry's draft must be an AuditDraft, or a mapping of its fields")
    return draft


@contextmanager
def _asking() -> Generator[None]:
    """Ask the map of subjects, outside the trail's gate because it has its own."""
    try:
        yield
    except AuditError as exc:
        raise NoTokenError(str(exc)) from None
