"""A log's side of witnessing: has each checkpoint cosigned, and says how independent that is.

C2SP tlog-witness. What a checkpoint proves grows with who saw it: `self-signed` (nobody but the log),
`self-witnessed` (only witnesses of the same operator), `witnessed` (one of another administrative domain).
A witness that holds a later checkpoint than the log has, or one that the log does not extend, shows a log
that was put back or rewritten; that is logged, and remembered until the process ends. The control H-312.c asks in each
of its rounds (`healthobs.compliance`), so wherever controls are on nobody else has to.

Limits: HTTP is the caller's (`Send`). Independence is declared in the configuration; nothing here can measure
it. A cosignature counts for `fresh_seconds`, by the wall clock and by the monotonic one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

from healthobs.audit.checkpoint import NoteError, Opened, Verifier, to_base64
from healthobs.clock import Clock
from healthobs.exceptions import ConfigurationError, HealthobsError

if TYPE_CHECKING:
    from healthobs.audit.records import Checkpoint
    from healthobs.audit.trail import AuditTrail

WitnessState = Literal["self-signed", "self-witnessed", "witnessed"]
#: Posts a body to a URL and returns status and body; raises OSError or `HealthobsError` when there is no answer.
Send = Callable[[str, bytes], tuple[int, bytes]]
_ATTEMPTS = 3
_logger = logging.getLogger("healthobs")


@dataclass(frozen=True, slots=True)
class WitnessPeer:
    """A witness to ask.

    Args:
        vkey: Its cosignature key (type 0x04).
        url: Its submission prefix, without the final slash.
        independent: It is run by another administrative domain: other people, other machines, other credentials.
    """

    vkey: str
    url: str
    independent: bool = False


@dataclass(frozen=True, slots=True)
class Round:
    """What one round of asking gave.

    Args:
        note: The checkpoint with the cosignatures that were obtained.
        size: Its size.
        cosigned: Names of the witnesses that cosigned.
        unanswered: Names of those that could not be asked, or answered nothing usable.
        contradicted: Names of those that hold a later checkpoint, or one that this log does not extend.
    """

    note: str
    size: int
    cosigned: tuple[str, ...]
    unanswered: tuple[str, ...]
    contradicted: tuple[str, ...]


class Witnesses:
    """The witnesses of one log.

    Args:
        trail: The log; its `witness_state` is then that of these witnesses.
        peers: Whom to ask.
        send: Does the HTTP.
        clock: Default the system's.
        fresh_seconds: How long a cosignature counts.

    Raises:
        ConfigurationError: A peer's vkey is none of a witness, or is given twice.
    """

    def __init__(
        self,
        trail: AuditTrail,
        peers: Sequence[WitnessPeer],
        send: Send,
        *,
        clock: Clock | None = None,
        fresh_seconds: float = 3600.0,
    ) -> None:
        self._trail = trail
        self._send = send
        self._clock = clock or Clock()
        self._fresh_seconds = fresh_seconds
        self._peers = [(peer, _verifier(peer)) for peer in peers]
        if len({peer.vkey for peer in peers}) != len(peers):
            raise ConfigurationError("a witness is named twice; each counts once")
        #: Size that each witness cosigned last, and when: POSIX time, and monotonic nanoseconds here.
        self._sizes: dict[str, int] = {}
        self._times: dict[str, tuple[int, int]] = {}
        self._contradicted: set[str] = set()
        self.latest: Round | None = None
        trail.witnesses = self

    @property
    def state(self) -> WitnessState:
        """How independent the witnesses are that cosigned lately."""
        fresh = [peer for peer, _ in self._peers if self._is_fresh(peer.vkey)]
        if any(peer.independent for peer in fresh):
            return "witnessed"
        return "self-witnessed" if fresh else "self-signed"

    def _is_fresh(self, vkey: str) -> bool:
        """Return whether a witness cosigned lately; a wall clock that is set back makes nothing younger."""
        if vkey not in self._times:
            return False
        wall_s, monotonic_ns = self._times[vkey]
        ages = self._clock.wall_ns() / 1e9 - wall_s, (self._clock.monotonic_ns() - monotonic_ns) / 1e9
        return max(ages) <= self._fresh_seconds

    @property
    def contradicted(self) -> tuple[str, ...]:
        """Names of the witnesses that have seen another or a later history of this log; empty is good."""
        return tuple(sorted(self._contradicted))

    def ask(self) -> Round:
        """Have the latest checkpoint cosigned by every witness; a fault of one does not stop the others.

        Raises:
            AuditError: The trail cannot be read.
        """
        lines: list[str] = []
        asked: dict[str, list[str]] = {"cosigned": [], "unanswered": [], "contradicted": []}
        checkpoint = self._trail.checkpoint()
        for peer, verifier in self._peers:
            result, got = self._ask(peer, verifier, checkpoint)
            asked[result].append(verifier.name)
            lines += got
        new = set(asked["contradicted"]) - self._contradicted
        if new:
            self._contradicted |= new
            _logger.error("audit_trail_contradicted", extra={"witnesses": sorted(new)})
        self.latest = Round(
            checkpoint.note + "".join(lines),
            checkpoint.size,
            *(tuple(asked[name]) for name in ("cosigned", "unanswered", "contradicted")),
        )
        return self.latest

    def _ask(self, peer: WitnessPeer, verifier: Verifier, checkpoint: Checkpoint) -> tuple[str, list[str]]:
        old = self._sizes.get(peer.vkey, 0)
        for _ in range(_ATTEMPTS):
            if old > checkpoint.size:
                return ("unanswered" if self._was_overtaken(old) else "contradicted"), []
            try:
                status, body = self._send(f"{peer.url}/add-checkpoint", self._body(old, checkpoint))
            except (OSError, HealthobsError, ValueError):  # ValueError: entries under the checkpoint are gone
                return "unanswered", []
            if status == 200:
                return self._accept(peer, verifier, checkpoint, body)
            if status == 422 and old:
                return "contradicted", []
            size = body.removesuffix(b"\n")
            if status != 409 or not size.isdigit() or len(size) > 18 or int(size) == old:
                return "unanswered", []
            old = int(size)
        return "unanswered", []

    def _was_overtaken(self, size: int) -> bool:
        """Say whether the log has grown to `size` since its checkpoint was taken: another replica was faster."""
        return self._trail.checkpoint().size >= size

    def _body(self, old: int, checkpoint: Checkpoint) -> bytes:
        path = self._trail.consistency_proof(old, checkpoint.size).path if old else ()
        proof = "".join(f"{to_base64(node)}\n" for node in path)
        return f"old {old}\n{proof}\n{checkpoint.note}".encode()

    def _accept(
        self, peer: WitnessPeer, verifier: Verifier, checkpoint: Checkpoint, body: bytes
    ) -> tuple[str, list[str]]:
        """Take over the lines that are this witness's, when they verify."""
        text = checkpoint.note.rpartition("\n\n")[0]
        try:
            lines = body.decode()
            opened: Opened = verifier.opened(f"{text}\n\n{lines}")
        except (UnicodeDecodeError, NoteError):
            return "unanswered", []
        now = self._clock.wall_ns() // 1_000_000_000
        self._sizes[peer.vkey] = checkpoint.size
        said = min(opened.signers[peer.vkey] or 0, now)  # a witness's clock may run ahead
        self._times[peer.vkey] = said, self._clock.monotonic_ns()
        ours = [line for line in lines.splitlines(keepends=True) if line.startswith(f"— {verifier.name} ")]
        return "cosigned", ours


def _verifier(peer: WitnessPeer) -> Verifier:
    try:
        verifier = Verifier(peer.vkey)
    except NoteError:
        raise ConfigurationError("a witness's vkey is malformed; copy it from the witness") from None
    if not verifier.cosigns:
        raise ConfigurationError("a witness's vkey must be of type 0x04 (cosignature/v1)")
    return verifier
