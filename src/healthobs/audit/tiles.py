"""The log as a directory of static files (C2SP tlog-tiles), and proofs and checks from such files alone.

`checkpoint`, `tile/<L>/<N>[.p/<W>]` with up to 256 hashes, `tile/entries/<N>[.p/<W>]` with length-prefixed
entries. Any client of the format reads it; the directory can be served or archived as it is.

Limits: an erased body is written as an entry of length 0, which by intent does not hash to its leaf. Of a pruned
log, tiles and bundles that end at its first entry or before are left out ("Pruning"); the order that says so is one of
the entries. Those of an earlier export are not taken away: export a pruned log into a new directory. Nothing is compressed.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Generator, Iterable, Mapping
from contextlib import contextmanager
from pathlib import Path

from healthobs.audit import approval, governance, merkle, reading, store
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.entry import MAX_BODY
from healthobs.audit.governance import Order, Range
from healthobs.audit.records import Checkpoint, Problem, Verification
from healthobs.audit.store import ReadConnection
from healthobs.exceptions import AuditError, AuditTamperedError

_WIDTH = merkle.TILE_WIDTH
_HASH = merkle.HASH_BYTES
_LENGTH_BYTES = 2
_CHECKPOINT = "checkpoint"
#: Below the directory, what is being written; one that an export left behind is written over by the next.
_DRAFT = ".new"
#: In every entry by which the trail governs itself.
_GOVERNING = b'"action":"audit.'


def tile_path(level: int | str, number: int, width: int = _WIDTH) -> str:
    """Return where a tile is, below the prefix; level ``entries`` for a bundle.

    Example:
        >>> tile_path(0, 1234067), tile_path("entries", 5, 112)
        ('tile/0/x001/x234/067', 'tile/entries/005.p/112')
    """
    parts = [f"{number % 1000:03d}"]
    while number := number // 1000:
        parts.append(f"x{number % 1000:03d}")
    partial = "" if width == _WIDTH else f".p/{width}"
    return f"tile/{level}/{'/'.join(reversed(parts))}{partial}"


def export(connection: ReadConnection, checkpoint: Checkpoint, directory: Path) -> int:
    """Write the log as of `checkpoint` into `directory`, and return the number of files.

    Of a tile with a hole what comes before it is written, and every other tile as it is. Each file is there as it was or as it
    is now. Narrower bundles of an earlier export stay, without the entries that were erased by order since.

    Args:
        connection: The log. Where others erase or prune meanwhile what they took can be missing without its order.
        checkpoint: A checkpoint of it; the file `checkpoint` is its note.
        directory: Made when missing. The caller reads the checkpoint, and calls this, within `alone`.

    Raises:
        AuditTamperedError: An entry below the checkpoint's size is missing, or is no hash; what can be written is.
    """
    fetch = store.tiles(connection)
    gone = governance.erased(governance.orders(connection))
    count = 1
    holes: list[AuditTamperedError] = []
    for level, number, width in _tiles(checkpoint.size, reading.pruned(connection)):
        try:
            hashes = fetch(level, number, width)
        except AuditTamperedError as exc:
            holes.append(exc)
            width = (exc.index or 0) - number * _WIDTH  # as far as it goes
            hashes = fetch(level, number, width)
        if not hashes or len(hashes) != width * _HASH:
            continue
        _write(directory, tile_path(level, number, width), hashes)
        count += 1
        if level == 0:
            bodies = _bodies(connection, number * _WIDTH, width)
            _write(directory, tile_path("entries", number, width), _joined(bodies))
            _forget(directory, number, bodies, gone)
            count += 1
    _write(directory, _CHECKPOINT, checkpoint.note.encode())  # last: it promises what is there by then
    if holes:
        raise holes[0]
    return count


@contextmanager
def alone(directory: Path) -> Generator[None]:
    """Make a directory where it is missing, and be the only export that writes there.

    A checkpoint that is read meanwhile is no older than the one that is there: what others export comes before, or after.
    """
    directory.mkdir(parents=True, exist_ok=True)
    with _locked(directory, fcntl.LOCK_EX):
        yield


@contextmanager
def _locked(directory: Path, kind: int) -> Generator[None]:
    """Let one process at a time write into a directory, and nobody check it meanwhile, where its file system has locks."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, kind)
        yield
    finally:
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has it, too
        os.close(descriptor)


def _tiles(size: int, first: int = 0) -> Iterable[tuple[int, int, int]]:
    """Yield level, number and width of each tile of a log of `size` entries that begins with entry `first`."""
    for level in range(merkle.tile_levels(size)):
        nodes = size >> level * merkle.TILE_HEIGHT
        for number in range(_kept_from(level, first), -(-nodes // _WIDTH)):
            yield level, number, min(_WIDTH, nodes - number * _WIDTH)


def _bodies(connection: ReadConnection, start: int, width: int) -> list[bytes]:
    rows = connection.execute(
        "SELECT body FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (start, start + width)
    )
    return [store.stored_bytes(body) or b"" for (body,) in rows]


def _joined(bodies: Iterable[bytes]) -> bytes:
    """Return bodies in a bundle; one that is longer than an entry can be is not what was recorded, cut or not."""
    return b"".join(len(body).to_bytes(_LENGTH_BYTES) + body for body in (body[:MAX_BODY] for body in bodies))


def _forget(directory: Path, number: int, bodies: list[bytes], gone: list[Range]) -> None:
    """Take erased entries out of the narrower bundles of an earlier export."""
    places = {
        place
        for place, body in enumerate(bodies)
        if not body and governance.covers(gone, number * _WIDTH + place)
    }
    for width in range(min(places, default=_WIDTH) + 1, len(bodies)):
        name = tile_path("entries", number, width)
        before = _read(directory / name)
        parts = _entries(before)
        if before and _joined(parts) == before and len(parts) == width:
            after = _joined(b"" if place in places else part for place, part in enumerate(parts))
            if after != before:
                _write(directory, name, after)


def _write(directory: Path, name: str, content: bytes) -> None:
    draft, path = directory / _DRAFT, directory / name
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        draft.write_bytes(content)
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)


def check(directory: Path, verifier: Verifier, erased: bool = False) -> Verification:
    """Recompute an exported log from its entries and hold every tile and the checkpoint against them.

    Whatever else is there is a problem, as a reader could take it for signed: bytes behind the last entry or leaf, files
    that a log of this size does not have, links to others. A narrower tile of an earlier export may stay while it tells the same.

    Args:
        directory: What `export` wrote; one that goes on is waited for. Tiles may be missing at the beginning by an order that
            is among its entries.
        verifier: The key that must have signed.
        erased: Accept an entry of length 0 for what its leaf says where an order among the entries took it away.

    Raises:
        AuditError: There is no checkpoint, or it does not verify.
    """
    with contextlib.ExitStack() as until_then:
        with contextlib.suppress(OSError):  # what cannot be opened has no checkpoint
            until_then.enter_context(_locked(directory, fcntl.LOCK_SH))
        return _check(directory, verifier, erased)


def _check(directory: Path, verifier: Verifier, erased: bool) -> Verification:
    try:
        checkpoint = open_checkpoint((directory / _CHECKPOINT).read_text(encoding="utf-8"), verifier)
    except (OSError, UnicodeDecodeError, NoteError) as exc:
        raise AuditError(f"there is no checkpoint that verifies ({type(exc).__name__})") from None
    problems: list[Problem] = []
    first = _pruned(directory, checkpoint)
    tree, nodes = _kept(directory, checkpoint.size, first)
    orders: list[Order] = []
    empty: list[int] = []
    for number in range(first // _WIDTH, -(-checkpoint.size // _WIDTH)):
        width = min(_WIDTH, checkpoint.size - number * _WIDTH)
        tile, bundle = _leaves_and_entries(directory, number, width)
        leaves, bodies = _hashes(tile), _entries(bundle)
        for place in range(width):
            index = number * _WIDTH + place
            leaf = leaves[place] if place < len(leaves) else b""
            body = bodies[place] if place < len(bodies) else None
            if body == b"":
                empty.append(index)
            if body is None or (merkle.leaf_hash(body) != leaf and not (erased and body == b"")):
                problems.append(Problem(index, "the entry is not what its leaf says"))
            elif _GOVERNING in body and (order := governance.order_of(index, leaf, body)) is not None:
                orders.append(order)
            for level, _, node in tree.append(leaf):
                nodes.setdefault(level, []).append(node)
        if len(tile) > width * _HASH or bundle != _joined(bodies[:width]):
            problems.append(Problem(None, f"tile {number} is not {width} whole entries and leaves"))
    if erased:
        problems += _unordered(empty, governance.erased(orders))
    for level in range(1, merkle.tile_levels(checkpoint.size)):
        problems += _wrong_tiles(directory, level, nodes.get(level, []), _kept_from(level, first))
    problems += _surplus(directory, checkpoint.size, first)
    if tree.root() != checkpoint.root:
        problems.append(Problem(None, "the leaves are not those that were signed"))
    problems.sort(key=lambda problem: checkpoint.size if problem.index is None else problem.index)
    return Verification(
        not problems, checkpoint.size - first, tree.root(), tuple(problems), 1, first=first, erased=len(empty)
    )


def _unordered(empty: list[int], gone: list[Range]) -> list[Problem]:
    return [
        Problem(index, "the entry is empty, and no order among the entries says so")
        for index in empty
        if not governance.covers(gone, index)
    ]


def _leaves_and_entries(directory: Path, number: int, width: int) -> tuple[bytes, bytes]:
    """Return a tile of level 0 and its bundle; nothing of what is not there."""
    return (
        _read(directory / tile_path(0, number, width)),
        _read(directory / tile_path("entries", number, width)),
    )


def _pruned(directory: Path, checkpoint: Checkpoint) -> int:
    """Return how many entries are missing from the beginning by an order that is among those that are there."""
    found: list[Order] = []
    there: int | None = None
    for number in range(-(-checkpoint.size // _WIDTH)):
        width = min(_WIDTH, checkpoint.size - number * _WIDTH)
        tile, bundle = _leaves_and_entries(directory, number, width)
        if there is None:
            if not tile and not bundle:
                continue
            there = number * _WIDTH
            if not there:
                return 0
        rows = zip(_hashes(tile), _entries(bundle), strict=False)
        orders = (governance.order_of(there, *row) for there, row in enumerate(rows, number * _WIDTH))
        found += [order for order in orders if order is not None]
    faults = approval.judge(found, checkpoint.origin).faults
    good = (order.below for order in found if order.index not in faults)
    return max((below for below in good if below <= (there or 0)), default=0)


def _kept_from(level: int, first: int) -> int:
    """Return the first tile of a level that a log keeps which was pruned before `first`: the first that ends beyond."""
    return first // (_WIDTH << level * merkle.TILE_HEIGHT)


def _kept(directory: Path, size: int, first: int) -> tuple[merkle.CompactRange, dict[int, list[bytes]]]:
    """Return the tree over the first entries, which were pruned, and their nodes in the tiles that stay, by level.

    What the root hangs on is all that these tiles say of them, so a wrong node makes a wrong root.
    """
    nodes: dict[int, list[bytes]] = {}
    for level in range(1, merkle.tile_levels(size)):
        number, there = _kept_from(level, first), first >> level * merkle.TILE_HEIGHT
        width = min(_WIDTH, (size >> level * merkle.TILE_HEIGHT) - number * _WIDTH)
        hashes = _hashes(_read(directory / tile_path(level, number, width)))
        nodes[level] = hashes[: there - number * _WIDTH]

    def subtree(start: int, end: int) -> bytes:
        level, rest = divmod((end - start).bit_length() - 1, merkle.TILE_HEIGHT)
        place = (start >> level * merkle.TILE_HEIGHT) - _kept_from(level, first) * _WIDTH
        return merkle.root_of(nodes[level][place : place + (1 << rest)])

    return merkle.CompactRange(first, [subtree(*peak) for peak in merkle.peak_bounds(first)]), nodes


def _wrong_tiles(directory: Path, level: int, nodes: list[bytes], kept_from: int) -> Iterable[Problem]:
    for number, start in enumerate(range(0, len(nodes), _WIDTH), kept_from):
        expected = nodes[start : start + _WIDTH]
        if _hashes(_read(directory / tile_path(level, number, len(expected)))) != expected:
            yield Problem(None, f"tile {number} of level {level} is not that of the entries")


def _surplus(directory: Path, size: int, first: int) -> list[Problem]:
    """Say how many files and links are no tile of a log of `size` entries from `first` on, nor the beginning of one."""
    widths: dict[str, int] = {}
    for level, number, width in _tiles(size, first):
        widths[tile_path(level, number)] = width
        if level == 0:
            widths[tile_path("entries", number)] = width
    surplus = sum(not _belongs(directory, name, widths) for name in _names(directory))
    what = f"{surplus} files are no tiles of {size} entries, and none of fewer"
    return [Problem(None, what)] if surplus else []


def _names(directory: Path) -> Iterable[str]:
    """Yield what is below a directory, and is none itself, or none that can be read."""
    closed: list[OSError] = []
    for place, folders, files in os.walk(directory, onerror=closed.append):
        links = (name for name in folders if (Path(place) / name).is_symlink())
        for name in (*files, *links):
            yield (Path(place) / name).relative_to(directory).as_posix()
    for fault in closed:
        yield Path(fault.filename).relative_to(directory).as_posix()


def _belongs(directory: Path, name: str, widths: Mapping[str, int]) -> bool:
    """Return whether a file is the checkpoint, a tile or a bundle, or the beginning of one in whole pieces."""
    if (directory / name).is_symlink() or not (directory / name).is_file():
        return False
    if name == _CHECKPOINT:
        return True
    stem, _, width = name.partition(".p/")
    widest = widths.get(stem, 0)
    whole = stem if widest == _WIDTH else f"{stem}.p/{widest}"
    if name == whole:
        return True
    if width not in map(str, range(1, widest)):
        return False
    part = _read(directory / name)
    if stem.startswith("tile/entries/"):
        parts = _entries(part)
        is_whole = _joined(parts) == part
    else:
        parts = _hashes(part)
        is_whole = len(part) == len(parts) * _HASH
    return is_whole and len(parts) == int(width) and _read(directory / whole).startswith(part)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes() if path.is_file() else b""
    except OSError:
        return b""


def _hashes(tile: bytes) -> list[bytes]:
    return [tile[place : place + _HASH] for place in range(0, len(tile), _HASH)]


def _entries(bundle: bytes) -> list[bytes]:
    found: list[bytes] = []
    place = 0
    while place < len(bundle):
        start = place + _LENGTH_BYTES
        place = start + int.from_bytes(bundle[place:start])
        found.append(bundle[start:place])
    return found
