"""The Merkle tree against known answers and an independent reference (RFC 9162 §2.1)."""

from __future__ import annotations

from hashlib import sha256
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs.audit import merkle
from healthobs.audit.records import ConsistencyProof, InclusionProof

# The leaves and roots that implementations of RFC 6962 have exchanged since its first version.
LEAVES = [bytes.fromhex(text) for text in (
    "", "00", "10", "2021", "3031", "40414243", "5051525354555657", "606162636465666768696a6b6c6d6e6f",
)]  # fmt: skip
ROOTS = [
    "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855",
    "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d",
    "fac54203e7cc696cf0dfcb42c92a1d9dbaf70ad9e621f4bd8d98662f00e3c125",
    "aeb6bcfe274b70a14fb067a5e5578264db0fa9b51af5e0ba159158f329e06e77",
    "d37ee418976dd95753c1c73862b9398fa2a2cf9b4ff0fdfe8b30cd95209614b7",
    "4e3bbb1f7b478dcfe71fb631631519a3bca12c9aefca1612bfce4c13a86264d4",
    "76e67dadbcdf1e10e1b74ddc608abd2f98dfb16fbce75277b5232a127f2087ef",
    "ddb89be403809e325750d3d263cd78929c2942b7942a34b77e122c9594a74c8c",
    "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328",
]


def reference(leaves: list[bytes]) -> bytes:
    """MTH of RFC 9162 §2.1.1, word for word, over leaf hashes."""
    if not leaves:
        return sha256(b"").digest()
    if len(leaves) == 1:
        return leaves[0]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    return sha256(b"\x01" + reference(leaves[:k]) + reference(leaves[k:])).digest()


def reference_inclusion(index: int, leaves: list[bytes]) -> list[bytes]:
    """PATH of RFC 9162 §2.1.3.1, word for word."""
    if len(leaves) == 1:
        return []
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if index < k:
        return [*reference_inclusion(index, leaves[:k]), reference(leaves[k:])]
    return [*reference_inclusion(index - k, leaves[k:]), reference(leaves[:k])]


def reference_consistency(old: int, leaves: list[bytes], *, known: bool = True) -> list[bytes]:
    """SUBPROOF of RFC 9162 §2.1.4.1, word for word."""
    if old == len(leaves):
        return [] if known else [reference(leaves)]
    k = 1
    while k * 2 < len(leaves):
        k *= 2
    if old <= k:
        return [*reference_consistency(old, leaves[:k], known=known), reference(leaves[k:])]
    return [*reference_consistency(old - k, leaves[k:], known=False), reference(leaves[:k])]


def hashes(count: int) -> list[bytes]:
    return [merkle.leaf_hash(index.to_bytes(4)) for index in range(count)]


def subtree_of(leaves: list[bytes]) -> merkle.Subtree:
    def subtree(start: int, end: int) -> bytes:
        size = end - start
        assert size & (size - 1) == 0, "only perfect subtrees may be asked for"
        assert start % size == 0, "only aligned subtrees may be asked for"
        return reference(leaves[start:end])

    return subtree


@st.composite
def trees(draw: Any) -> tuple[list[bytes], int]:
    """A tree of 1 to 70 leaves and a number from 0 to its size - 1."""
    count = draw(st.integers(1, 70))
    return hashes(count), draw(st.integers(0, count - 1))


class TestHashes:
    """Leaves, nodes and known roots."""

    def test_leaf_and_node_are_told_apart(self) -> None:
        """A leaf that looks like two hashes has another hash than the node over them (RFC 9162 §2.1.1)."""
        pair = bytes(64)
        assert merkle.leaf_hash(pair) != merkle.node_hash(pair[:32], pair[32:])
        assert merkle.leaf_hash(b"") == sha256(b"\x00").digest()

    @pytest.mark.parametrize("size", range(9))
    def test_known_roots(self, size: int) -> None:
        """The published roots of 0 to 8 leaves come out."""
        assert merkle.root_of(map(merkle.leaf_hash, LEAVES[:size])).hex() == ROOTS[size]


class TestCompactRange:
    """The growing edge of a tree."""

    @given(st.integers(0, 600))
    def test_root_is_the_reference_root(self, count: int) -> None:
        """Appending one by one gives the root that the definition gives."""
        leaves = hashes(count)
        tree = merkle.CompactRange()
        for leaf in leaves:
            tree.append(leaf)
        assert (tree.size, tree.root()) == (count, reference(leaves))

    def test_completed_nodes_are_tiles(self) -> None:
        """Each run of 256 leaves, and no other, reports the hash over exactly these."""
        leaves = hashes(600)
        tree = merkle.CompactRange()
        completed = [node for leaf in leaves for node in tree.append(leaf)]
        assert completed == [(1, 0, reference(leaves[:256])), (1, 1, reference(leaves[256:512]))]

    def test_second_level(self) -> None:
        """After 256 tiles there is a node over all of them."""
        leaf = merkle.leaf_hash(b"")
        tree = merkle.CompactRange()
        completed = [node for _ in range(65_536) for node in tree.append(leaf)]
        assert [(level, number) for level, number, _ in completed[-2:]] == [(1, 255), (2, 0)]
        assert completed[-1][2] == tree.root()

    @given(st.integers(0, 100), st.integers(0, 30))
    def test_resumes_from_peaks(self, count: int, more: int) -> None:
        """A range rebuilt from the peaks goes on as if it had seen every leaf."""
        leaves = hashes(count + more)
        peaks = [reference(leaves[start:end]) for start, end in merkle.peak_bounds(count)]
        tree = merkle.CompactRange(count, peaks)
        for leaf in leaves[count:]:
            tree.append(leaf)
        assert tree.root() == reference(leaves)

    def test_copy_is_independent(self) -> None:
        """What happens to a copy does not happen to the original."""
        tree = merkle.CompactRange()
        tree.append(merkle.leaf_hash(b"1"))
        before = tree.root()
        tree.copy().append(merkle.leaf_hash(b"2"))
        assert (tree.size, tree.root()) == (1, before)


class TestInclusion:
    """Proofs that an entry is there."""

    @given(trees())
    def test_path_is_that_of_the_definition(self, tree: tuple[list[bytes], int]) -> None:
        """The path has the nodes, in the order, of RFC 9162 §2.1.3.1."""
        leaves, index = tree
        path = merkle.inclusion_path(index, len(leaves), subtree_of(leaves))
        assert list(path) == reference_inclusion(index, leaves)

    @given(trees())
    def test_right_proof_verifies(self, tree: tuple[list[bytes], int]) -> None:
        """Every leaf of every tree can be proved."""
        leaves, index = tree
        proof = InclusionProof(index, len(leaves), leaves[index], tuple(reference_inclusion(index, leaves)))
        assert proof.verify(reference(leaves))

    @given(trees(), st.data())
    def test_wrong_proof_does_not(self, tree: tuple[list[bytes], int], data: st.DataObject) -> None:
        """Another leaf, index, size, root, or a changed, longer or shorter path is refused."""
        leaves, index = tree
        size, root = len(leaves), reference(leaves)
        path = reference_inclusion(index, leaves)
        other = merkle.leaf_hash(b"other")
        position = data.draw(st.integers(0, len(path)))
        wrong_index = data.draw(st.integers(-1, size + 1).filter(lambda number: number != index))
        wrong = [
            (other, index, size, path, root),
            (leaves[index], wrong_index, size, path, root),
            (leaves[index], index, size, path, other),
            (leaves[index], index, size, [*path[:position], other, *path[position:]], root),
            (leaves[index], index, size, [*path[:position], *path[position + 1 :]], root if path else other),
        ]
        if position < len(path):
            wrong.append((leaves[index], index, size, [*path[:position], other, *path[position + 1 :]], root))
        else:
            wrong.pop()  # nothing was taken away
        assert [case for case in wrong if merkle.verify_inclusion(*case)] == []

    @given(trees(), st.integers(1, 200))
    def test_wrong_size_needs_another_path(self, tree: tuple[list[bytes], int], size: int) -> None:
        """A proof only verifies for a size whose path has the same shape as the true one's."""
        leaves, index = tree
        path = reference_inclusion(index, leaves)
        if merkle.verify_inclusion(leaves[index], index, size, path, reference(leaves)):
            assert index < size
            shapes = [reference_inclusion(index, hashes(count)) for count in (size, len(leaves))]
            assert len(shapes[0]) == len(shapes[1])

    @pytest.mark.parametrize(("index", "size"), [(-1, 5), (5, 5), (0, 0)])
    def test_no_such_leaf(self, index: int, size: int) -> None:
        """There is no proof for a leaf that the tree does not have."""
        with pytest.raises(ValueError, match="index must be"):
            merkle.inclusion_path(index, size, subtree_of(hashes(5)))
        assert not merkle.verify_inclusion(hashes(1)[0], index, size, [], hashes(1)[0])


class TestConsistency:
    """Proofs that the log only grew."""

    @given(trees())
    def test_path_is_that_of_the_definition(self, tree: tuple[list[bytes], int]) -> None:
        """The path has the nodes, in the order, of RFC 9162 §2.1.4.1."""
        leaves, number = tree
        old = number + 1
        path = merkle.consistency_path(old, len(leaves), subtree_of(leaves))
        assert list(path) == reference_consistency(old, leaves)

    @given(trees())
    def test_right_proof_verifies(self, tree: tuple[list[bytes], int]) -> None:
        """Every prefix of every tree, the whole tree included, can be proved."""
        leaves, number = tree
        old = number + 1
        proof = ConsistencyProof(old, len(leaves), tuple(reference_consistency(old, leaves)))
        assert proof.verify(reference(leaves[:old]), reference(leaves))

    @given(trees(), st.data())
    def test_wrong_proof_does_not(self, tree: tuple[list[bytes], int], data: st.DataObject) -> None:
        """A rewritten past, a forged root, or a changed, longer or shorter path is refused."""
        leaves, number = tree
        old, new = number + 1, len(leaves)
        path = reference_consistency(old, leaves)
        old_root, new_root = reference(leaves[:old]), reference(leaves)
        other = merkle.leaf_hash(b"other")
        position = data.draw(st.integers(0, len(path)))
        rewritten = [other, *leaves[1:]]
        wrong = [
            (old, new, path, other, new_root),
            (old, new, path, old_root, other),
            (old, new, [*path[:position], other, *path[position:]], old_root, new_root),
            (old, new, reference_consistency(old, rewritten), old_root, reference(rewritten)),
        ]
        if position < len(path):
            wrong.append((old, new, [*path[:position], other, *path[position + 1 :]], old_root, new_root))
            wrong.append((old, new, [*path[:position], *path[position + 1 :]], old_root, new_root))
        assert [case for case in wrong if merkle.verify_consistency(*case)] == []

    def test_empty_tree_is_a_prefix_of_all(self) -> None:
        """The empty log needs no nodes, only its fixed root."""
        leaves = hashes(3)
        assert merkle.verify_consistency(0, 3, [], merkle.EMPTY_ROOT, reference(leaves))
        assert not merkle.verify_consistency(0, 3, [], leaves[0], reference(leaves))
        assert not merkle.verify_consistency(0, 3, [leaves[0]], merkle.EMPTY_ROOT, reference(leaves))

    @pytest.mark.parametrize(("old", "new"), [(0, 3), (4, 3), (-1, 3)])
    def test_no_such_sizes(self, old: int, new: int) -> None:
        """A log that shrank has no proof."""
        with pytest.raises(ValueError, match="old size must be"):
            merkle.consistency_path(old, new, subtree_of(hashes(3)))

    def test_backwards_is_refused(self) -> None:
        """A bigger old tree never verifies, whatever the path."""
        leaves = hashes(4)
        assert not merkle.verify_consistency(4, 3, leaves, reference(leaves), reference(leaves[:3]))
