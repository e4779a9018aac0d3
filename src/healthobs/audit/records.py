"""What the audit trail hands out: receipts, pages, checkpoints, proofs and verdicts. All frozen, all plain."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from healthobs.audit import merkle


@dataclass(frozen=True, slots=True)
class Receipt:
    """Proof of entry: the entry is on disk and under a signed checkpoint.

    Args:
        origin: Which log (the first line of its checkpoints).
        index: Position of the entry, from 0.
        size: Entries under the checkpoint that its batch was signed with.
        root: Merkle root of that checkpoint (32 bytes).
    """

    origin: str
    index: int
    size: int
    root: bytes

    @property
    def log_id(self) -> str:
        """The part of the origin that tells this log from every other of its service."""
        return self.origin.rsplit("/", 1)[-1]


@dataclass(frozen=True, slots=True)
class Page:
    """Some entries, newest first.

    Args:
        entries: Decoded bodies, each with its ``index`` and ``hash`` (hex of its leaf).
        next_cursor: What to pass for the entries before these; None when there are none.
        total: Entries that match the filters, on all pages.
    """

    entries: list[dict[str, Any]]
    next_cursor: str | None
    total: int


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A signed statement of the log's size and root (C2SP tlog-checkpoint).

    Args:
        origin: Which log.
        size: Entries under it.
        root: Merkle root over them (32 bytes).
        note: The signed note; keep it outside, it is what a later log is held against.
    """

    origin: str
    size: int
    root: bytes
    note: str


@dataclass(frozen=True, slots=True)
class InclusionProof:
    """Shows that an entry is in the tree of a given size (RFC 9162 §2.1.3)."""

    index: int
    size: int
    leaf: bytes
    path: tuple[bytes, ...]

    def verify(self, root: bytes) -> bool:
        """Return whether the path leads from the leaf to `root`."""
        return merkle.verify_inclusion(self.leaf, self.index, self.size, self.path, root)


@dataclass(frozen=True, slots=True)
class ConsistencyProof:
    """Shows that the tree of size `new` starts with the tree of size `old` (RFC 9162 §2.1.4)."""

    old: int
    new: int
    path: tuple[bytes, ...]

    def verify(self, old_root: bytes, new_root: bytes) -> bool:
        """Return whether the path connects the two roots."""
        return merkle.verify_consistency(self.old, self.new, self.path, old_root, new_root)


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that does not verify.

    Args:
        index: First entry concerned; None when no entry but a checkpoint or a guard is at fault.
        what: In words, without any value of the entry.
    """

    index: int | None
    what: str

    def __str__(self) -> str:
        return self.what if self.index is None else f"entry {self.index}: {self.what}"


@dataclass(frozen=True, slots=True)
class Verification:
    """The verdict on a whole trail.

    Args:
        ok: No problem was found.
        size: Entries that were read.
        root: Merkle root recomputed over them; empty when the tree could not be built.
        problems: What was found, in the order of the log.
        checkpoints: Signed checkpoints that were checked.
        first: The first entry; 0 unless those before it were pruned by order.
        erased: Entries whose bodies are gone.
    """

    ok: bool
    size: int
    root: bytes
    problems: tuple[Problem, ...]
    checkpoints: int = 0
    first: int = 0
    erased: int = 0

    @property
    def first_bad_index(self) -> int | None:
        """The lowest entry that a problem names."""
        return min((problem.index for problem in self.problems if problem.index is not None), default=None)
