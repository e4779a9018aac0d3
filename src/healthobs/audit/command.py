"""The command `healthobs audit`: verify, show, prove and export a trail, offline, without the private key.

Everything is read-only and works on a copy. Exit status: 0 good, 1 tampered (the first bad entry is named),
2 cannot say (no trail, unreadable, wrong arguments).
"""

from __future__ import annotations

import argparse
import base64
import contextlib
import json
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from healthobs.audit import reading, store, verification
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.records import Checkpoint
from healthobs.audit.sqlite import SqliteStore
from healthobs.audit.store import Connection, StoreError
from healthobs.audit.trail import consistency, inclusion
from healthobs.exceptions import AuditTamperedError, HealthobsError

GOOD, TAMPERED, UNKNOWN = 0, 1, 2


def parser() -> argparse.ArgumentParser:
    """Return the parser of `healthobs audit`."""
    top = argparse.ArgumentParser(
        prog="healthobs audit", description="Verify, prove and export an audit trail."
    )
    commands = top.add_subparsers(dest="command", required=True)
    _verify_arguments(_add(commands, "verify", "recompute every entry and check every signed checkpoint"))
    _add(commands, "checkpoint", "print the latest signed checkpoint; keep it elsewhere")
    prove = _add(commands, "prove", "print the proof that an entry is in the log, as JSON")
    prove.add_argument("index", type=int, help="position of the entry, from 0")
    consistent = _add(commands, "consistency", "print the proof that the log only grew, as JSON")
    consistent.add_argument("old", type=int, help="earlier number of entries")
    consistent.add_argument("new", type=int, nargs="?", help="later number of entries (default: all)")
    _add(commands, "export", "print every entry as one JSON line, oldest first")
    return top


def _add(commands: Any, name: str, text: str) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("path", type=Path, help="the trail's SQLite file, or a copy of it")
    command.add_argument("--vkey", help="public key that must have signed (default: the one in the file)")
    command.add_argument("--json", action="store_true", help="answer as JSON")
    return command


def _verify_arguments(command: argparse.ArgumentParser) -> None:
    command.add_argument(
        "--checkpoint",
        type=Path,
        action="append",
        default=[],
        metavar="FILE",
        help="signed checkpoint kept elsewhere that the log must still contain (repeatable)",
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run `healthobs audit` with `argv`.

    Args:
        argv: Arguments after ``audit``; default the process's own.

    Returns:
        0 good, 1 tampered, 2 cannot say.
    """
    chosen = parser().parse_args(argv)
    try:
        with contextlib.closing(SqliteStore(chosen.path).connect(read_only=True)) as connection:
            return _Command(chosen, connection).run()
    except AuditTamperedError as exc:
        print(f"TAMPERED: {exc}", file=sys.stderr)  # noqa: T201
        return TAMPERED
    except StoreError as exc:
        return _cannot_say(f"the file cannot be read ({exc.code})")
    except (HealthobsError, ValueError) as exc:
        return _cannot_say(str(exc))
    except OSError as exc:
        return _cannot_say(f"the file cannot be opened ({exc.strerror or type(exc).__name__})")


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
            raise ValueError("the file holds no audit trail")
        self._pinned = chosen.vkey is not None
        self._verifier = Verifier(chosen.vkey if self._pinned else log[1])

    def run(self) -> int:
        command: int = getattr(self, f"_{self._chosen.command}")()
        return command

    def _latest(self) -> Checkpoint:
        _, note = store.head(self._connection)
        return self._opened(note, "latest checkpoint")

    def _opened(self, note: object, which: str) -> Checkpoint:
        try:
            return open_checkpoint(note if isinstance(note, str) else "", self._verifier)
        except NoteError as exc:
            raise AuditTamperedError(f"the {which}: {exc}") from None

    def _verify(self) -> int:
        known = [path.read_text(encoding="utf-8") for path in self._chosen.checkpoint]
        verdict = verification.verify(self._connection, self._verifier, known)
        answer = {
            "ok": verdict.ok,
            "origin": self._verifier.name,
            "size": verdict.size,
            "root": verdict.root.hex() or None,
            "checkpoints": verdict.checkpoints,
            "vkey": self._verifier.vkey,
            "vkey_pinned": self._pinned,
            "first_bad_index": verdict.first_bad_index,
            "problems": [{"index": problem.index, "what": problem.what} for problem in verdict.problems],
        }
        self._print(answer, self._verdict_lines(verdict.ok, answer, map(str, verdict.problems)))
        return GOOD if verdict.ok else TAMPERED

    def _verdict_lines(self, ok: bool, answer: dict[str, Any], problems: Iterable[str]) -> list[str]:
        counted = f"{answer['size']} entries under {answer['checkpoints']} checkpoints"
        bad = answer["first_bad_index"]
        where = "" if bad is None else f", first bad entry {bad}"
        lines = [f"ok: {counted} verify" if ok else f"TAMPERED: {counted} do not verify{where}"]
        lines += [f"  {problem}" for problem in problems]
        lines.append(f"log {self._verifier.vkey}")
        if not self._pinned:
            lines.append(
                "the key was taken from the file: this shows consistency, not origin; pin it with --vkey"
            )
        return lines

    def _checkpoint(self) -> int:
        latest = self._latest()
        answer = {**_shown(latest), "vkey": self._verifier.vkey}
        self._print(answer, [latest.note.removesuffix("\n")])
        return GOOD

    def _prove(self) -> int:
        latest = self._latest()
        proof = inclusion(self._connection, self._chosen.index, latest.size)
        if not proof.verify(latest.root):
            return self._broken(f"entry {proof.index} is not under the signed root")
        shown = {"index": proof.index, "leaf": _b64(proof.leaf), "path": [_b64(node) for node in proof.path]}
        self._print({**shown, "checkpoint": _shown(latest), "vkey": self._verifier.vkey})
        return GOOD

    def _consistency(self) -> int:
        proof = consistency(self._connection, self._chosen.old, self._chosen.new)
        shown = {"old": proof.old, "new": proof.new, "path": [_b64(node) for node in proof.path]}
        roots = [self._signed_root(size) for size in (proof.old, proof.new)]
        if roots[0] is not None and roots[1] is not None and not proof.verify(roots[0], roots[1]):
            return self._broken(f"the log of {proof.new} entries does not extend that of {proof.old}")
        old_root, new_root = (None if root is None else _b64(root) for root in roots)
        self._print({**shown, "old_root": old_root, "new_root": new_root, "vkey": self._verifier.vkey})
        return GOOD

    def _signed_root(self, size: int) -> bytes | None:
        """Return the root that was signed at `size`; None when no batch ended there."""
        rows = self._connection.execute("SELECT note FROM checkpoint WHERE size = ?", (size,))
        return self._opened(rows[0][0], f"checkpoint of size {size}").root if rows else None

    def _export(self) -> int:
        rows = self._connection.execute("SELECT idx, leaf, body FROM entry ORDER BY idx")
        for index, leaf, body in rows:
            _out(json.dumps(reading.decoded(index, leaf, body), ensure_ascii=False))
        return GOOD

    def _broken(self, what: str) -> int:
        self._print({"ok": False, "problem": what}, [f"TAMPERED: {what}"])
        return TAMPERED

    def _print(self, answer: dict[str, Any], lines: Sequence[str] | None = None) -> None:
        """Print `lines`, or the answer as JSON where it was asked for or is all there is."""
        if lines is None or self._chosen.json:
            _out(json.dumps(answer, indent=2))
        else:
            for line in lines:
                _out(line)


def _shown(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "origin": checkpoint.origin,
        "size": checkpoint.size,
        "root": _b64(checkpoint.root),
        "note": checkpoint.note,
    }


def _b64(raw: bytes) -> str:
    return base64.b64encode(raw).decode()


def _out(line: str) -> None:
    print(line)  # noqa: T201
