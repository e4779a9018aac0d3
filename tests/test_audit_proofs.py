"""Checkpoints and proofs as a trail gives them."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.audit_trails import READ, _damage, leaves

from healthobs.audit import merkle, open_trail
from healthobs.audit.checkpoint import Verifier, open_checkpoint
from healthobs.audit.trail import AuditTrail
from healthobs.exceptions import AuditTamperedError


class TestCheckpoint:
    """The latest signed root."""

    def test_of_an_empty_log(self, trail: AuditTrail) -> None:
        """A log signs from its very beginning."""
        checkpoint = trail.checkpoint()
        assert (checkpoint.size, checkpoint.root, checkpoint.origin) == (0, merkle.EMPTY_ROOT, trail.origin)

    def test_is_verifiable_without_the_private_key(self, trail: AuditTrail) -> None:
        """The vkey alone opens the note, which says what the object says."""
        trail.append(READ)
        checkpoint = trail.checkpoint()
        assert open_checkpoint(checkpoint.note, Verifier(trail.vkey)) == checkpoint
        assert (checkpoint.size, checkpoint.root) == (1, merkle.root_of(leaves(trail.path)))


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[AuditTrail, list[bytes]]]:
    """A trail of 300 entries, so that kept nodes are used, and its leaves."""
    path = tmp_path_factory.mktemp("long") / "audit.db"
    trail = open_trail(f"sqlite:///{path}", service="s")
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda _: trail.append(READ), range(300)))
    yield trail, leaves(path)
    trail.close()


class TestProofs:
    """Proofs from the store."""

    @given(data=st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_inclusion(self, long: tuple[AuditTrail, list[bytes]], data: st.DataObject) -> None:
        """Each entry can be proved against the root of each size that has it."""
        trail, known = long
        size = data.draw(st.integers(1, len(known)))
        index = data.draw(st.integers(0, size - 1))
        proof = trail.inclusion_proof(index, size)
        assert proof.leaf == known[index]
        assert proof.verify(merkle.root_of(known[:size]))
        assert not proof.verify(merkle.root_of(known[: size - 1]))

    @given(data=st.data())
    @settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_consistency(self, long: tuple[AuditTrail, list[bytes]], data: st.DataObject) -> None:
        """Each size can be shown to start with each smaller one."""
        trail, known = long
        new = data.draw(st.integers(1, len(known)))
        old = data.draw(st.integers(1, new))
        proof = trail.consistency_proof(old, new)
        assert proof.verify(merkle.root_of(known[:old]), merkle.root_of(known[:new]))
        assert not proof.verify(merkle.EMPTY_ROOT, merkle.root_of(known[:new]))

    def test_default_is_the_whole_log(self, long: tuple[AuditTrail, list[bytes]]) -> None:
        """Without a size, the latest checkpoint's root is what is proved against."""
        trail, known = long
        root = trail.checkpoint().root
        assert trail.inclusion_proof(299).verify(root)
        assert trail.consistency_proof(256).verify(merkle.root_of(known[:256]), root)

    def test_no_such_entry_or_size(self, long: tuple[AuditTrail, list[bytes]]) -> None:
        """Numbers outside of the log are refused."""
        trail, _ = long
        for ask in (
            lambda: trail.inclusion_proof(300),
            lambda: trail.inclusion_proof(-1),
            lambda: trail.inclusion_proof(5, 5),
            lambda: trail.inclusion_proof(5, 301),
            lambda: trail.consistency_proof(0),
            lambda: trail.consistency_proof(5, 4),
            lambda: trail.consistency_proof(5, 301),
        ):
            with pytest.raises(ValueError, match=r"index|size"):
                ask()

    def test_missing_leaves(self, trail: AuditTrail) -> None:
        """A proof over entries that are gone names the first of them."""
        for _ in range(4):
            trail.append(READ)
        _damage(trail.path, "DELETE FROM entry WHERE idx = 1")
        with pytest.raises(AuditTamperedError, match="entry 1"):
            trail.inclusion_proof(3)
