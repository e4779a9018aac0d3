"""Commands of `healthobs audit` that change a trail or its keys: hold, erase, approvers, prune, approve, rotate.

Each needs a private key: the log's, to record what was done, or an approver's, to sign an order. What only lists,
prints an order or tries one out needs none, and writes nothing.

Limits: the log's key alone names the first approvers; from then on two of them sign each change (`healthobs.audit.approval`).
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from healthobs.audit import governance, keys, opening, store
from healthobs.audit.checkpoint import NoteError, Signer, Verifier
from healthobs.audit.retention import Retention, RetentionReader, approve
from healthobs.audit.sqlite import SqliteStore
from healthobs.audit.store import ReadConnection, Store
from healthobs.exceptions import AuditError, AuditTamperedError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

_SERVICE = "healthobs-audit"


def add(commands: Any) -> None:
    """Add the commands to the parser's."""
    hold = _add(commands, "hold", "keep entries from being erased or pruned", _hold)
    hold.add_argument(
        "name", nargs="?", help="name of the hold, kept as it is; without it, the holds in force are listed"
    )
    hold.add_argument("--release", action="store_true", help="release the hold of that name")
    _what(hold)
    _what(_add(commands, "erase", "take bodies of entries away; every proof still holds", _erase))
    prune = _add(
        commands,
        "prune",
        "take away all entries before an index, by order of two approvers named in the log",
        _prune,
    )
    prune.add_argument("--order", type=Path, help="the order, signed by two approvers")
    prune.add_argument("--below", type=int, help="print an order for this index instead, to be signed")
    prune.add_argument("--dry-run", action="store_true", help="check everything and take nothing away")
    approvers = _add(commands, "approvers", "list those who may approve prunings, or name others", _approvers)
    approvers.add_argument(
        "--name",
        action="append",
        default=[],
        metavar="VKEY",
        help="name these (repeatable): at once when nobody is named, else print the order that two of those before sign",
    )
    approvers.add_argument(
        "--order", type=Path, help="carry out such an order, signed by two of those before"
    )
    signing = commands.add_parser("approve", help="sign an order, and print it signed")
    signing.add_argument(
        "order", type=Path, help="the order, as prune --below, approvers --name or approve printed it"
    )
    signing.add_argument("--key-file", type=Path, required=True, help="the approver's key")
    signing.add_argument("--name", required=True, help="the approver's name, such as example.org/alice")
    signing.set_defaults(change=_approve)
    made = commands.add_parser(
        "approver-key", help="make an approver's key where there is none; print its vkey"
    )
    made.add_argument("key_file", type=Path, help="the approver's key file")
    made.add_argument("--name", required=True, help="the approver's name, such as example.org/alice")
    made.set_defaults(change=_approver_key)
    rotate = commands.add_parser("rotate", help="put a new key before those in a key file")
    rotate.add_argument("key_file", type=Path, help="the log's key file")
    rotate.add_argument(
        "--retire",
        action="append",
        metavar="LOG",
        help="end the overlap instead: drop all earlier keys, once these logs (file or URL), and those in files that the key"
        " began, are signed with the new one",
    )
    rotate.add_argument(
        "--since",
        action="append",
        metavar="LOG=ENTRIES",
        help="with --retire: of so many entries that log was when its last process was restarted; before, some may have"
        " signed without the new key (default: from its first signature on none may)",
    )
    rotate.set_defaults(change=_rotate)


def _add(
    commands: Any, name: str, text: str, change: Callable[[argparse.Namespace], Iterator[str]]
) -> argparse.ArgumentParser:
    command: argparse.ArgumentParser = commands.add_parser(name, help=text, description=text)
    command.add_argument("path", help="the trail's SQLite file or its database URL")
    command.add_argument("--key-file", type=Path, help="the log's key (default: the file's name and .key)")
    command.add_argument("--actor", default=f"uid-{os.getuid()}", help="opaque id of who does it")
    command.add_argument("--reason", default="", help="why")
    command.set_defaults(change=change)
    return command


def _what(command: argparse.ArgumentParser) -> None:
    command.add_argument("--subject", help="entries about this subject, by its token or as entries have it")
    command.add_argument("--entries", help="entries FIRST-LAST")


def place_of(path: str) -> Store:
    """Return the store that is meant by a file's name or a database URL."""
    return opening.store_of(path) if "://" in path else SqliteStore(Path(path))


def _reader(chosen: argparse.Namespace) -> RetentionReader:
    return RetentionReader(opening.open_reader(place_of(chosen.path)))


@contextlib.contextmanager
def _retention(chosen: argparse.Namespace) -> Generator[Retention]:
    place = place_of(chosen.path)
    opening.open_reader(place, live=True)  # where no log is, none is begun
    if chosen.key_file is None:
        _check_default_key(place.path)
    url = chosen.path if "://" in chosen.path else f"sqlite:///{Path(chosen.path).absolute()}"
    trail = opening.open_trail(url, service=_SERVICE, key_file=chosen.key_file)
    try:
        yield Retention(trail)
    finally:
        trail.close()


def _check_default_key(path: Path | None) -> None:
    if path is None:
        raise ValueError("name the log's key with --key-file")
    key_file = path.with_name(f"{path.name}.key")
    if not key_file.exists():
        raise ValueError(
            f"there is no key file {key_file.name} beside the log; name the log's key with --key-file,"
            " or restore it from where you keep it"
        )


def _say(text: str) -> None:
    """Tell whoever looks at an answer without lines that it is one."""
    print(text, file=sys.stderr)  # noqa: T201


def _range(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    first, _, last = text.partition("-")
    if not first.isdecimal() or not (last or first).isdecimal():
        raise ValueError("--entries must be FIRST-LAST, such as 0-99")
    return int(first), int(last or first)


def _hold(chosen: argparse.Namespace) -> Iterator[str]:
    if chosen.name is None:
        found = _reader(chosen).holds()
        yield from (f"{hold.details.get('hold')}: since entry {hold.index}" for hold in found)
        if not found:
            _say("no hold is in force")
        return
    if not chosen.reason.strip():
        raise ValueError("give --reason: why entries are held or released is kept in the log")
    with _retention(chosen) as retention:
        if chosen.release:
            yield f"released in entry {retention.release(chosen.name, actor=chosen.actor, reason=chosen.reason).index}"
        else:
            receipt = retention.hold(
                chosen.name,
                actor=chosen.actor,
                reason=chosen.reason,
                subject=chosen.subject,
                entries=_range(chosen.entries),
            )
            yield f"held by entry {receipt.index}"
            count = retention.entries_held(chosen.name)
            yield f"{count} {'entry' if count == 1 else 'entries'} so far"


def _erase(chosen: argparse.Namespace) -> Iterator[str]:
    with _retention(chosen) as retention:
        erased = retention.erase(
            actor=chosen.actor,
            reason=chosen.reason,
            subject=chosen.subject,
            entries=_range(chosen.entries),
        )
        yield f"{len(erased)} bodies erased"


def _prune(chosen: argparse.Namespace) -> Iterator[str]:
    if chosen.below is not None:
        order = _reader(chosen).order(chosen.below)
        whole = governance.whole_tiles(chosen.below)
        if whole < chosen.below:  # beside the order, which is all that may be printed
            note = f"rounded down from {chosen.below} to {whole}, to whole tiles of 256 entries"
            print(note, file=sys.stderr)  # noqa: T201
        yield order.removesuffix("\n")
        return
    if chosen.order is None:
        raise ValueError("give --order FILE, or --below INDEX to make one")
    order = chosen.order.read_text(encoding="utf-8")
    if chosen.dry_run:
        yield f"entries before {_reader(chosen).prunable(order)} may be pruned"
        return
    with _retention(chosen) as retention:
        first = retention.prune(order, actor=chosen.actor, reason=chosen.reason)
        yield f"entries before {first} were pruned"


def _approvers(chosen: argparse.Namespace) -> Iterator[str]:
    reader = _reader(chosen)
    force = reader.approvers()
    if chosen.order or (chosen.name and not force.vkeys):
        with _retention(chosen) as retention:
            note = (
                chosen.order.read_text(encoding="utf-8")
                if chosen.order
                else retention.appointment(chosen.name)
            )
            receipt = retention.appoint(note, actor=chosen.actor, reason=chosen.reason)
            yield f"named by entry {receipt.index}"
    elif chosen.name:
        yield reader.appointment(chosen.name).removesuffix("\n")
    else:
        yield from (f"{vkey}: since entry {force.index}" for vkey in force.vkeys)
        if not force.vkeys:
            _say("the log names no approvers")


def _approve(chosen: argparse.Namespace) -> Iterator[str]:
    signer = Signer(chosen.name, keys.load(chosen.key_file))
    order = approve(chosen.order.read_text(encoding="utf-8"), signer)
    # Under another name it is another key to the log: here it can be seen which
    print(f"signed as {signer.vkey}", file=sys.stderr)  # noqa: T201
    yield order.removesuffix("\n")


def _approver_key(chosen: argparse.Namespace) -> Iterator[str]:
    yield Signer(chosen.name, keys.load_or_create(chosen.key_file)).vkey


def _rotate(chosen: argparse.Namespace) -> Iterator[str]:
    key_file: Path = chosen.key_file
    if chosen.retire is None:
        if chosen.since is not None:
            raise ValueError("--since goes with --retire")
        keys.rotate(key_file)
        yield "a new key signs beside the earlier ones from the next start on"
        return
    key = keys.load(key_file)
    since = dict(map(_entries, chosen.since or ()))
    for asked in _asked(chosen.retire, key_file):
        asked.check(key, since.pop(asked.place.name, 0))
    if since:
        raise ValueError("--since names a log that is not asked; write it as the refusal does")
    dropped = keys.retire(key_file, key)
    yield f"{dropped} earlier keys dropped; restart what signs with the file"
    if dropped:
        yield (
            f"kept in {key_file.name}{keys.RETIRED} beside it;"
            " delete that file once every process that signs was restarted"
        )


def _entries(text: str) -> tuple[str, int]:
    place, _, number = text.rpartition("=")
    if not (place and number.isascii() and number.isdecimal()):
        raise ValueError("--since takes LOG=ENTRIES, as a refusal writes it")
    return place, int(number)


@dataclass(frozen=True, slots=True)
class _Asked:
    """A log that must be signed with the current key before those before it are dropped: nobody could sign it any more.

    Args:
        name: What errors call it.
        place: Where it is.
        remedy: What else errors say.
    """

    name: str
    place: Store
    remedy: str = ""

    def check(self, key: Ed25519PrivateKey, since: int) -> None:
        """Return when it is signed with the key, and only with it since the key was first used or it had `since` entries.

        Raises:
            AuditError: It is not, or there is no log.
        """
        try:
            with contextlib.closing(self.place.connect(read_only=True)) as connection:
                log = store.read_log(connection)
                if log is None:
                    raise AuditError("there is no audit trail")
                verifier = Verifier(Signer(log[0], key).vkey)
                size, latest = store.head(connection)
                if since > size:
                    raise AuditError("it has fewer entries than --since says")
                lacking = _last_without(connection, verifier, since)
        except AuditTamperedError:
            raise
        except AuditError as exc:
            raise AuditError(
                f"{self.name} cannot be asked, so no key was dropped: {exc}{self.remedy}"
            ) from None
        if not _signed(latest, verifier):
            raise AuditError(
                f"the latest checkpoint of {self.name} is not signed with the new key, so no key was dropped;"
                f" restart every process that signs with the file first{self.remedy}"
            )
        if lacking is not None:
            raise AuditError(
                f"{self.name} was signed without the new key, lastly at size {lacking}, after others had signed with it,"
                " so no key was dropped; restart every process that signs with the file,"
                f" and where all were restarted since, say so with --since {self.place.name}={lacking + 1}{self.remedy}"
            )


def _asked(named: Sequence[str], key_file: Path) -> Iterator[_Asked]:
    """Yield the logs that were named, and those in files that the key began.

    Raises:
        AuditError: The key began one that is no file, and it was not named.
    """
    if not all(named):
        raise ValueError("a LOG after --retire is empty; give its file or URL")
    places = [place_of(name) for name in named]
    for place in places:
        yield _Asked("the log in PostgreSQL" if place.path is None else place.path.name, place)
    for number, where in keys.logs(key_file):
        if any(keys.same_place(place.name, where) for place in places):
            continue
        line = f"line {number} of {key_file.name}{keys.BEGUN}"
        remedy = "; if that log is no more, take the line out of the file"
        if not where.startswith("/"):
            raise AuditError(
                f"{line} is of a log that is no file; name it too, after --retire, as its service does{remedy};"
                " no key was dropped"
            )
        yield _Asked(f"{Path(where).name} ({line})", SqliteStore(Path(where)), remedy)


def _last_without(connection: ReadConnection, verifier: Verifier, since: int) -> int | None:
    """Return the size of the last checkpoint without the key's signature after the first with it; None when all have it.

    Those before `since` are not looked at: after it all must have it.
    """
    used, last = since > 0, None
    for size, note in store.checkpoints(connection, store.HIGHEST):
        if size < since:
            continue
        if _signed(note, verifier):
            used = True
        elif used:
            last = size
    return last


def _signed(note: object, verifier: Verifier) -> bool:
    try:
        return isinstance(note, str) and bool(verifier.open(note))
    except NoteError:
        return False
