"""The command `healthobs audit`: verify, show, prove, export, hold and prune a trail.

What only reads works on a copy and without a private key. Exit status: 0 good, 1 tampered (the first bad entry
is named), 2 cannot say (no trail, unreadable, wrong arguments, refused).
"""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from healthobs.audit import changes, export, governance, reading, store, tiles, verification
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint, to_base64
from healthobs.audit.merkle import leaf_hash
from healthobs.audit.reader import consistency, inclusion
from healthobs.audit.records import Checkpoint, Verification
from healthobs.audit.sqlite import CUT_OFF
from healthobs.audit.store import Connection, StoreError
from healthobs.exceptions import AuditError, AuditTamperedError, HealthobsError

GOOD, TAMPERED, UNKNOWN = 0, 1, 2
#: How often tiles are written before nothing can be said, because entries go each time.
_TRIES = 4
_REMEDY = (
    "; who wrote was killed in the middle: start the service, which undoes that,"
    " or have sqlite3 read a copy of the file and its -journal first"
)


def parser() -> argparse.ArgumentParser:
    """Return the parser of `healthobs audit`."""
    top = argparse.ArgumentParser(
        prog="healthobs audit", description="Verify, prove, export, hold and prune an audit trail."
    )
    commands = top.add_subparsers(dest="command", required=True)
    verify = _add(commands, "verify", "recompute every entry and check every signed checkpoint")
    verify.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="signed checkpoint kept elsewhere that the log must still contain (repeatable)",
    )
    verify.add_argument(
        "--approver",
        action="append",
        default=[],
        metavar="VKEY",
        help="public key of an approver of prunings who must have been named first (repeatable; default: whom the log names)",
    )
    fsck = _add(commands, "fsck", "check an exported directory of tiles, or the database under a trail")
    fsck.add_argument("--erased", action="store_true", help="accept tiles whose entries were erased by order")
    fsck.set_defaults(checkpoint=[], approver=[])
    _add(commands, "checkpoint", "print the latest signed checkpoint; keep it elsewhere")
    prove = _add(commands, "prove", "print the proof that an entry is in the log, as JSON")
    prove.add_argument("index", type=int, help="position of the entry, from 0")
    prove.add_argument("--tlog-proof", action="store_true", help="print it as C2SP tlog-proof instead")
    consistent = _add(commands, "consistency", "print the proof that the log only grew, as JSON")
    consistent.add_argument("old", type=int, help="earlier number of entries")
    consistent.add_argument("new", type=int, nargs="?", help="later number of entries (default: all)")
    exported = _add(commands, "export", "print every entry as one JSON line, oldest first")
    form = exported.add_mutually_exclusive_group()
    form.add_argument("--csv", action="store_true", help="as comma-separated values instead")
    form.add_argument("--fhir", action="store_true", help="as FHIR R4 AuditEvents instead, one on each line")
    form.add_argument("--tiles", type=Path, metavar="DIR", help="as C2SP tiles, into a directory")
    changes.add(commands)
    return top


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("path", help="the trail's SQLite file or a copy of it, or its database URL")
    command.add_argument(
        "--vkey",
        action="append",
        help="public key that must have signed (default: those that the file names)",
    )
    command.add_argument("--json", action="store_true", help="answer as JSON")
    return command


def main(argv: Sequence[str] | None = None) -> int:
    """Run `healthobs audit` with `argv`.

    Args:
        argv: Arguments after ``audit``; default the process's own.

    Returns:
        0 good, 1 tampered, 2 cannot say.
    """
    chosen = parser().parse_args(argv)
    try:
        if "change" in chosen:
            change: Callable[[argparse.Namespace], Iterable[str]] = chosen.change
            for line in change(chosen):
                _out(line)
            return GOOD
        if chosen.command == "fsck" and Path(chosen.path).is_dir():
            return _fsck_tiles(chosen)
        with contextlib.closing(changes.place_of(chosen.path).connect(read_only=True)) as connection:
            try:
                return _Command(chosen, connection).run()
            except StoreError:
                altered = connection.altered_tables()  # which is why a statement was none for it
                if not altered:
                    raise
                raise AuditTamperedError(f"the table {altered[0]} is altered") from None
    except AuditTamperedError as exc:
        print(f"TAMPERED: {exc}", file=sys.stderr)  # noqa: T201
        return TAMPERED
    except StoreError as exc:
        remedy = _REMEDY if exc.code == CUT_OFF else ""
        what = "database" if "://" in getattr(chosen, "path", "") else "file"
        return _cannot_say(f"the {what} cannot be read ({exc.code}){remedy}")
    except (HealthobsError, ValueError) as exc:
        return _cannot_say(str(exc))
    except BrokenPipeError:
        raise
    except OSError as exc:
        return _cannot_say(f"the file cannot be opened ({exc.strerror or type(exc).__name__})")
    except Exception as exc:  # noqa: BLE001  # the status of a traceback would say that it is tampered
        return _cannot_say(f"the command broke off ({type(exc).__name__})")


def _fsck_tiles(chosen: argparse.Namespace) -> int:
    if not chosen.vkey:
        raise ValueError("a directory of tiles holds no key; pin the log's with --vkey")
    verdict = tiles.check(Path(chosen.path), Verifier(*chosen.vkey), erased=chosen.erased)
    _show(verdict, f"{verdict.size} entries in tiles, {verdict.erased} of them erased")
    if verdict.first:
        _out(f"by order: entries before {verdict.first} pruned")
    return GOOD if verdict.ok else TAMPERED


def _show(verdict: Verification, counted: str) -> None:
    bad = verdict.first_bad_index
    where = "" if bad is None else f", first bad entry {bad}"
    _out(f"ok: {counted} verify" if verdict.ok else f"TAMPERED: {counted} do not verify{where}")
    for problem in verdict.problems:
        _out(f"  {problem}")


def _cannot_say(why: str) -> int:
    print(f"cannot say: {why}", file=sys.stderr)  # noqa: T201
    return UNKNOWN


class _Command:
    """One command on one trail that is open for reading."""

    def __init__(self, chosen: argparse.Namespace, connection: Connection) -> None:
        self._chosen = chosen
        self._connection = connection
        log = store.read_log(connection)
        if log is None:
            raise ValueError("no audit trail is there")
        self._pinned = bool(chosen.vkey)
        self._verifier = Verifier(*(chosen.vkey or (log[1],)))
        #: Opens what any key that the log names signed; in `verify` each must be vouched for.
        self._ring = verification.ring(self._verifier, governance.orders(connection))
        if not self._pinned:
            self._verifier = self._ring

    def run(self) -> int:
        command: int = getattr(self, f"_{self._chosen.command}")()
        return command

    def _latest(self) -> Checkpoint:
        _, note = store.head(self._connection)
        return self._opened(note, "latest checkpoint")

    def _opened(self, note: object, which: str) -> Checkpoint:
        try:
            return open_checkpoint(note if isinstance(note, str) else "", self._ring)
        except NoteError as exc:
            raise AuditTamperedError(f"the {which}: {exc}") from None

    def _verify(self) -> int:
        known = [path.read_text(encoding="utf-8") for path in self._chosen.checkpoint]
        verdict = verification.verify(self._connection, self._verifier, known, self._chosen.approver)
        answer = {
            "ok": verdict.ok,
            "origin": self._verifier.name,
            "size": verdict.size,
            "root": verdict.root.hex() or None,
            "checkpoints": verdict.checkpoints,
            "vkey": self._verifier.vkey,
            "vkey_pinned": self._pinned,
            "first": verdict.first,
            "erased": verdict.erased,
            "first_bad_index": verdict.first_bad_index,
            "problems": [{"index": problem.index, "what": problem.what} for problem in verdict.problems],
        }
        if self._chosen.json:
            self._print(answer)
        else:
            self._tell(verdict)
        return GOOD if verdict.ok else TAMPERED

    def _tell(self, verdict: Verification) -> None:
        _show(verdict, f"{verdict.size} entries under {verdict.checkpoints} checkpoints")
        if verdict.first or verdict.erased:
            _out(f"by order: entries before {verdict.first} pruned, bodies of {verdict.erased} erased")
        _out(f"log {self._verifier.vkey}")
        if not self._pinned:
            _out("the key was taken from the file: this shows consistency, not origin; pin it with --vkey")

    def _fsck(self) -> int:
        """Check the database's own structure, then the log in it."""
        damage = self._connection.damage()
        if damage is not None:
            raise AuditTamperedError(f"the database is damaged ({damage})")
        return self._verify()

    def _checkpoint(self) -> int:
        latest = self._latest()
        answer = {**_shown(latest), "vkey": self._verifier.vkey}
        self._print(answer, [latest.note.removesuffix("\n")])
        return GOOD

    def _prove(self) -> int:
        """Prove what was recorded, and say so only while that still is what is there, or went by order."""
        latest = self._latest()
        proof = inclusion(self._connection, self._chosen.index, latest.size, self._ring)
        if not proof.verify(latest.root):
            return self._broken(f"entry {proof.index} is not under the signed root")
        self._check_body(proof.index, proof.leaf)
        if self._chosen.tlog_proof:
            _out(export.tlog_proof(proof, latest.note).removesuffix("\n"))
            return GOOD
        shown = {
            "index": proof.index,
            "leaf": to_base64(proof.leaf),
            "path": [to_base64(node) for node in proof.path],
        }
        self._print({**shown, "checkpoint": _shown(latest), "vkey": self._verifier.vkey})
        return GOOD

    def _check_body(self, index: int, leaf: bytes) -> None:
        ((body,),) = self._connection.execute("SELECT body FROM entry WHERE idx = ?", (index,))
        stored = store.stored_bytes(body)
        if stored is None and not reading.erased_by(self._connection, [index], self._ring):
            raise AuditTamperedError("the body is missing", index=index)
        if stored is not None and leaf_hash(stored) != leaf:
            raise AuditTamperedError("the body is not what was recorded", index=index)

    def _consistency(self) -> int:
        proof = consistency(self._connection, self._chosen.old, self._chosen.new, self._ring)
        shown = {"old": proof.old, "new": proof.new, "path": [to_base64(node) for node in proof.path]}
        roots = [self._signed_root(size) for size in (proof.old, proof.new)]
        if roots[0] is not None and roots[1] is not None and not proof.verify(roots[0], roots[1]):
            return self._broken(f"the log of {proof.new} entries does not extend that of {proof.old}")
        old_root, new_root = (None if root is None else to_base64(root) for root in roots)
        self._print({**shown, "old_root": old_root, "new_root": new_root, "vkey": self._verifier.vkey})
        return GOOD

    def _signed_root(self, size: int) -> bytes | None:
        """Return the root that was signed at `size`; None when no batch ended there."""
        rows = self._connection.execute("SELECT note FROM checkpoint WHERE size = ?", (size,))
        return self._opened(rows[0][0], f"checkpoint of size {size}").root if rows else None

    def _export(self) -> int:
        """Write what there is, and then say whether it is what was recorded, and all of it."""
        if self._chosen.tiles is not None:
            _out(f"{self._tiles()} files written")
        elif self._chosen.csv:
            export.csv(self._connection, sys.stdout)
        else:
            for entry in (export.fhir if self._chosen.fhir else export.entries)(self._connection):
                _out(json.dumps(entry, ensure_ascii=False))
        verdict = verification.verify(self._connection, self._verifier)
        if verdict.ok:
            return GOOD
        first = verdict.first_bad_index
        raise AuditTamperedError(
            next(problem.what for problem in verdict.problems if problem.index == first), index=first
        )

    def _tiles(self) -> int:
        """Write tiles, and again where entries were erased meanwhile; as of one moment it would keep writers out all the while."""
        with tiles.alone(self._chosen.tiles):
            return self._tiles_alone()

    def _tiles_alone(self) -> int:
        for _ in range(_TRIES):
            first, latest = reading.pruned(self._connection), self._latest()
            erased, fault = store.erased(self._connection, latest.size), None
            try:
                count = tiles.export(self._connection, latest, self._chosen.tiles)
            except AuditTamperedError as exc:
                count, fault = 0, exc
            if reading.pruned(self._connection) != first:
                raise AuditError(
                    "the log was pruned while it was exported; export it again, into a new directory"
                )
            since = governance.orders(self._connection, latest.size, self._latest().size - 1)
            ordered = any(order.action == governance.ERASE for order in since)
            if not ordered and store.erased(self._connection, latest.size) == erased:
                if fault is not None:
                    raise fault
                return count
        raise AuditError("entries were erased while the log was exported; export it again")

    def _broken(self, what: str) -> int:
        self._print({"ok": False, "problem": what}, [f"TAMPERED: {what}"])
        return TAMPERED

    def _print(self, answer: Mapping[str, Any], lines: Sequence[str] | None = None) -> None:
        """Print `lines`, or the answer as JSON where it was asked for or is all there is."""
        for line in (json.dumps(answer, indent=2),) if lines is None or self._chosen.json else lines:
            _out(line)


def _shown(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": to_base64(checkpoint.root),
        "note": checkpoint.note,
    }


def _out(line: str) -> None:
    print(line)  # noqa: T201
