"""Merkle tree hashes and proofs (RFC 9162 §2.1, the tree of RFC 6962) over SHA-256.

Pure functions and one small accumulator: nothing here reads a database. Where an algorithm needs the hash of
a perfect subtree it asks a callable, so that a store can answer from kept nodes instead of all leaves.

Limits: SHA-256 only; sizes up to 2**63 - 1.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from hashlib import sha256

from healthobs.exceptions import AuditTamperedError

HASH_BYTES = 32
#: Root of the empty tree (RFC 9162 §2.1.1).
EMPTY_ROOT = sha256().digest()
#: Kept nodes cover 256**level leaves, the tile height of C2SP tlog-tiles.
TILE_HEIGHT = 8
#: Hashes in a full tile.
TILE_WIDTH = 1 << TILE_HEIGHT

#: Answers the hash over leaves [start, end), a perfect aligned subtree.
Subtree = Callable[[int, int], bytes]
#: Answers the hashes of a tile one after the other: level, number, width (256 unless it is partial).
Fetch = Callable[[int, int, int], bytes]


def leaf_hash(data: bytes) -> bytes:
    """Return the hash of a leaf: SHA-256(0x00 || data)."""
    return sha256(b"\x00" + data).digest()


def node_hash(left: bytes, right: bytes) -> bytes:
    """Return the hash of an inner node: SHA-256(0x01 || left || right)."""
    return sha256(b"\x01" + left + right).digest()


class CompactRange:
    """The right edge of a growing tree: enough to append leaves and to know the root.

    Args:
        size: Leaves so far.
        peaks: Hashes of the perfect subtrees that `size` splits into, largest first.

    Example:
        >>> tree = CompactRange()
        >>> tree.append(leaf_hash(b"one"))
        []
        >>> tree.root() == leaf_hash(b"one")
        True
    """

    __slots__ = ("_peaks", "size")

    def __init__(self, size: int = 0, peaks: Iterable[bytes] = ()) -> None:
        self.size: int = size
        self._peaks = list(peaks)

    def append(self, leaf: bytes) -> list[tuple[int, int, bytes]]:
        """Add a leaf.

        Returns:
            The tile nodes that became complete, as (level, number, hash); mostly none.
        """
        completed: list[tuple[int, int, bytes]] = []
        node, height, size = leaf, 0, self.size
        while size >> height & 1:
            node = node_hash(self._peaks.pop(), node)
            height += 1
            if height % TILE_HEIGHT == 0:
                completed.append((height // TILE_HEIGHT, size >> height, node))
        self._peaks.append(node)
        self.size = size + 1
        return completed

    def root(self) -> bytes:
        """Return the Merkle root over the leaves so far."""
        if not self._peaks:
            return EMPTY_ROOT
        root = self._peaks[-1]
        for peak in reversed(self._peaks[:-1]):
            root = node_hash(peak, root)
        return root

    @property
    def peaks(self) -> tuple[bytes, ...]:
        """Hashes of the perfect subtrees that the size splits into, largest first."""
        return tuple(self._peaks)

    def copy(self) -> CompactRange:
        """Return an independent copy, to be thrown away when a commit fails."""
        return CompactRange(self.size, self._peaks)


def root_of(leaves: Iterable[bytes]) -> bytes:
    """Return the Merkle root over leaf hashes."""
    tree = CompactRange()
    for leaf in leaves:
        tree.append(leaf)
    return tree.root()


def tile_levels(size: int) -> int:
    """Return how many levels of tiles a tree of `size` leaves has (C2SP tlog-tiles, "Merkle Tree").

    Example:
        >>> tile_levels(0), tile_levels(255), tile_levels(256), tile_levels(70_000)
        (0, 1, 2, 3)
    """
    return -(-size.bit_length() // TILE_HEIGHT) if size else 0


def peak_bounds(size: int) -> list[tuple[int, int]]:
    """Return the perfect subtrees [start, end) that a tree of `size` leaves splits into, largest first.

    Example:
        >>> peak_bounds(7)
        [(0, 4), (4, 6), (6, 7)]
    """
    bounds: list[tuple[int, int]] = []
    start = 0
    for height in range(size.bit_length() - 1, -1, -1):
        if size >> height & 1:
            bounds.append((start, start + (1 << height)))
            start += 1 << height
    return bounds


def range_hash(start: int, end: int, subtree: Subtree) -> bytes:
    """Return the tree hash over leaves [start, end), where `start` is a multiple of the first peak's width."""
    peaks = [subtree(start + low, start + high) for low, high in peak_bounds(end - start)]
    return CompactRange(end - start, peaks).root()


def _split(size: int) -> int:
    """Return the largest power of two smaller than `size` (RFC 9162 §2.1.1)."""
    return 1 << (size - 1).bit_length() - 1


def inclusion_path(index: int, size: int, subtree: Subtree) -> tuple[bytes, ...]:
    """Return the inclusion path of leaf `index` in the tree of `size` leaves (RFC 9162 §2.1.3.1).

    Raises:
        ValueError: The tree of that size has no such leaf.
    """
    if not 0 <= index < size:
        raise ValueError("the index must be 0 or more, and less than the tree size")
    path: list[bytes] = []
    start, end = 0, size
    while end - start > 1:
        middle = start + _split(end - start)
        if index < middle:
            path.append(range_hash(middle, end, subtree))
            end = middle
        else:
            path.append(range_hash(start, middle, subtree))
            start = middle
    return tuple(reversed(path))


def consistency_path(old: int, new: int, subtree: Subtree) -> tuple[bytes, ...]:
    """Return the consistency path from the tree of `old` leaves to that of `new` (RFC 9162 §2.1.4.1).

    Raises:
        ValueError: `old` is not between 1 and `new`. (Every tree is consistent with the empty one.)
    """
    if not 0 < old <= new:
        raise ValueError("the old size must be 1 or more, and at most the new size")
    path: list[bytes] = []
    start, end = 0, new
    while end != old:
        middle = start + _split(end - start)
        if old <= middle:
            path.append(range_hash(middle, end, subtree))
            end = middle
        else:
            path.append(range_hash(start, middle, subtree))
            start = middle
    if start:  # otherwise the verifier knows this node: it is the old root
        path.append(range_hash(start, end, subtree))
    return tuple(reversed(path))


class TileTree:
    """A tree of a given size that is read by whole tiles, each once.

    Args:
        size: Leaves in the tree.
        fetch: Gets a tile.
    """

    def __init__(self, size: int, fetch: Fetch) -> None:
        self._size = size
        self._fetch = fetch
        self._tiles: dict[tuple[int, int], bytes] = {}

    def subtree(self, start: int, end: int) -> bytes:
        """Return the hash over the perfect aligned subtree [start, end)."""
        height = (end - start).bit_length() - 1
        level, rest = divmod(height, TILE_HEIGHT)
        first = start >> level * TILE_HEIGHT
        return root_of(self._nodes(level, first, first + (1 << rest)))

    def _nodes(self, level: int, first: int, end: int) -> Iterable[bytes]:
        tile = self._tile(level, first >> TILE_HEIGHT)
        offset = first % TILE_WIDTH
        for place in range(offset, offset + end - first):
            yield tile[place * HASH_BYTES : (place + 1) * HASH_BYTES]

    def _tile(self, level: int, number: int) -> bytes:
        known = self._tiles.get((level, number))
        if known is None:
            width = min(TILE_WIDTH, (self._size >> level * TILE_HEIGHT) - number * TILE_WIDTH)
            known = self._tiles[level, number] = self._fetch(level, number, width)
            if len(known) != width * HASH_BYTES:
                raise AuditTamperedError("a tile has not as many hashes as the tree's size asks for")
        return known


def verify_inclusion(leaf: bytes, index: int, size: int, path: Sequence[bytes], root: bytes) -> bool:
    """Return whether `path` leads from `leaf` at `index` to the `root` of `size` leaves (RFC 9162 §2.1.3.2)."""
    if not 0 <= index < size:
        return False
    first, last, result = index, size - 1, leaf
    for node in path:
        if last == 0:
            return False
        if first & 1 or first == last:
            result = node_hash(node, result)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            result = node_hash(result, node)
        first, last = first >> 1, last >> 1
    return last == 0 and result == root


def verify_consistency(old: int, new: int, path: Sequence[bytes], old_root: bytes, new_root: bytes) -> bool:
    """Return whether `path` shows that the tree of `new` leaves extends that of `old` (RFC 9162 §2.1.4.2).

    Unlike the RFC's algorithm it also answers for equal sizes (equal roots, empty path) and for the empty
    old tree (its root is fixed, empty path).
    """
    if old == new or old == 0:
        expected = new_root if old == new else EMPTY_ROOT
        return 0 <= old <= new and not path and old_root == expected
    if not 0 < old < new or not path:
        return False
    nodes = list(path)
    if old & (old - 1) == 0:
        nodes.insert(0, old_root)
    first, last = old - 1, new - 1
    while first & 1:
        first, last = first >> 1, last >> 1
    old_result = new_result = nodes[0]
    for node in nodes[1:]:
        if last == 0:
            return False
        if first & 1 or first == last:
            old_result, new_result = node_hash(node, old_result), node_hash(node, new_result)
            while not first & 1 and first:
                first, last = first >> 1, last >> 1
        else:
            new_result = node_hash(new_result, node)
        first, last = first >> 1, last >> 1
    return last == 0 and old_result == old_root and new_result == new_root
