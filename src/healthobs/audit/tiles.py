"""The log as a directory of static files (C2SP tlog-tiles), and proofs and checks from such files alone.

`checkpoint`, `tile/<L>/<N>[.p/<W>]` with up to 256 hashes, `tile/entries/<N>[.p/<W>]` with length-prefixed
entries. Any client of the format reads it; the directory can be served or archived as it is.

Limits: an erased body is written as an entry of length 0, which by intent does not hash to its leaf. Of a pruned
log, tiles and bundles that end at its first entry or before are left out ("Pruning"); the order that says so is one of
the entries. Nothing is compressed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

from healthobs.audit import approval, governance, merkle, reading, store
from healthobs.audit.checkpoint import NoteError, Verifier, open_checkpoint
from healthobs.audit.entry import MAX_BODY
from healthobs.audit.governance import Order
from healthobs.audit.records import Checkpoint, Problem, Verification
from healthobs.audit.store import ReadConnection
from healthobs.exceptions import AuditError, AuditTamperedError

_WIDTH = merkle.TILE_WIDTH
_HASH = merkle.HASH_BYTES
_LENGTH_BYTES = 2


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

    Of a tile with a hole what comes before it is written, and every other tile as it is.

    Args:
        connection: The log.
        checkpoint: A checkpoint of it; the file `checkpoint` is its note.
        directory: Made when missing.

    Raises:
        AuditTamperedError: An entry below the checkpoint's size is missing, or is no hash; what can be written is.
    """
    fetch = store.tiles(connection)
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
        _write(directory / tile_path(level, number, width), hashes)
        count += 1
        if level == 0:
            bundle = _bundle(connection, number * _WIDTH, width)
            _write(directory / tile_path("entries", number, width), bundle)
            count += 1
    _write(directory / "checkpoint", checkpoint.note.encode())  # last: it promises what is there by then
    if holes:
        raise holes[0]
    return count


def _tiles(size: int, first: int = 0) -> Iterable[tuple[int, int, int]]:
    """Yield level, number and width of each tile of a log of `size` entries that begins with entry `first`."""
    for level in range(merkle.tile_levels(size)):
        nodes = size >> level * merkle.TILE_HEIGHT
        for number in range(_kept_from(level, first), -(-nodes // _WIDTH)):
            yield level, number, min(_WIDTH, nodes - number * _WIDTH)


def _bundle(connection: ReadConnection, start: int, width: int) -> bytes:
    rows = connection.execute(
        "SELECT body FROM entry WHERE idx >= ? AND idx < ? ORDER BY idx", (start, start + width)
    )
    return _joined(store.stored_bytes(body) or b"" for (body,) in rows)


def _joined(bodies: Iterable[bytes]) -> bytes:
    """Return bodies in a bundle; one that is longer than an entry can be is not what was recorded, cut or not."""
    return b"".join(len(body).to_bytes(_LENGTH_BYTES) + body for body in (body[:MAX_BODY] for body in bodies))


def _write(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def check(directory: Path, verifier: Verifier, erased: bool = False) -> Verification:
    """Recompute an exported log from its entries and hold every tile and the checkpoint against them.

    Whatever else is there is a problem, as a reader could take it for signed: bytes behind the last entry or leaf, and
    files that a log of this size does not have. A narrower tile of an earlier export may stay while it tells the same.

    Args:
        directory: What `export` wrote. Tiles may be missing at the beginning by an order that is among its entries.
        verifier: The key that must have signed.
        erased: Accept entries of length 0 for what their leaf says.

    Raises:
        AuditError: There is no checkpoint, or it does not verify.
    """
    try:
        checkpoint = open_checkpoint((directory / "checkpoint").read_text(encoding="utf-8"), verifier)
    except (OSError, UnicodeDecodeError, NoteError) as exc:
        raise AuditError(f"there is no checkpoint that verifies ({type(exc).__name__})") from None
    problems: list[Problem] = []
    first = _pruned(directory, checkpoint)
    tree, nodes = _kept(directory, checkpoint.size, first)
    gone = 0
    for number in range(first // _WIDTH, -(-checkpoint.size // _WIDTH)):
        width = min(_WIDTH, checkpoint.size - number * _WIDTH)
        tile, bundle = _leaves_and_entries(directory, number, width)
        leaves, bodies = _hashes(tile), _entries(bundle)
        for place in range(width):
            index = number * _WIDTH + place
            leaf = leaves[place] if place < len(leaves) else b""
            body = bodies[place] if place < len(bodies) else None
            gone += body == b""
            if body is None or (merkle.leaf_hash(body) != leaf and not (erased and body == b"")):
                problems.append(Problem(index, "the entry is not what its leaf says"))
            for level, _, node in tree.append(leaf):
                nodes.setdefault(level, []).append(node)
        if len(tile) > width * _HASH or bundle != _joined(bodies[:width]):
            problems.append(Problem(None, f"tile {number} is not {width} whole entries and leaves"))
    for level in range(1, merkle.tile_levels(checkpoint.size)):
        problems += _wrong_tiles(directory, level, nodes.get(level, []), _kept_from(level, first))
    surplus = _surplus(directory, checkpoint.size)
    if surplus:
        problems.append(
            Problem(None, f"{surplus} files are no tiles of {checkpoint.size} entries, and none of fewer")
        )
    if tree.root() != checkpoint.root:
        problems.append(Problem(None, "the leaves are not those that were signed"))
    return Verification(
        not problems, checkpoint.size - first, tree.root(), tuple(problems), 1, first=first, erased=gone
    )


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


def _surplus(directory: Path, size: int) -> int:
    """Return how many files are no tile of a log of `size` entries, nor the beginning of one."""
    widths: dict[str, int] = {}
    for level, number, width in _tiles(size):
        widths[tile_path(level, number)] = width
        if level == 0:
            widths[tile_path("entries", number)] = width
    files = (path for path in (directory / "tile").rglob("*") if path.is_file())
    return sum(not _belongs(directory, path.relative_to(directory).as_posix(), widths) for path in files)


def _belongs(directory: Path, name: str, widths: Mapping[str, int]) -> bool:
    stem, _, width = name.partition(".p/")
    widest = widths.get(stem, 0)
    whole = stem if widest == _WIDTH else f"{stem}.p/{widest}"
    if name == whole:
        return True
    if not width.isdecimal() or int(width) >= widest:
        return False
    part = _read(directory / name)
    parts = _entries(part) if stem.startswith("tile/entries/") else _hashes(part)
    return len(parts) == int(width) and _read(directory / whole).startswith(part)


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
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
