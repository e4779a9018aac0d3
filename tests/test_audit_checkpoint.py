"""Signed notes, checkpoints and key files: C2SP signed-note, C2SP tlog-checkpoint."""

from __future__ import annotations

import base64
import os
import stat
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from hypothesis import given
from hypothesis import strategies as st

from healthobs.audit import keys, merkle
from healthobs.audit.checkpoint import NoteError, Signer, Verifier, open_checkpoint, read_statement
from healthobs.exceptions import ConfigurationError

ORIGIN = "healthobs.example/phi-service/0a1b2c3d"
ROOT = merkle.leaf_hash(b"root")
# The example that the format's first implementation documents.
KNOWN_VKEY = "PeterNeumann+c74f20a3+ARpc2QcUPDhMQegwxbzhKqiBfsVkmqq/LDE4izWy10TW"
KNOWN_TEXT = (
    "If you think cryptography is the answer to your problem,\nthen you don't know what your problem is.\n"
)
KNOWN_NOTE = f"{KNOWN_TEXT}\n— PeterNeumann x08go/ZJkuBS9UG/SffcvIAQxVBtiFupLLr8pAcElZInNIuGUgYN1FFYC2pZSNXgKvqfqdngotpRZb6KE6RyyBwJnAM=\n"


@pytest.fixture(scope="module")
def signer() -> Signer:
    return Signer(ORIGIN, Ed25519PrivateKey.generate())


@pytest.fixture(scope="module")
def verifier(signer: Signer) -> Verifier:
    return Verifier(signer.vkey)


class TestVerifier:
    """A known key opens what it signed, and nothing else."""

    def test_known_note(self) -> None:
        """A note and key that another implementation made verify here."""
        assert Verifier(KNOWN_VKEY).open(KNOWN_NOTE) == KNOWN_TEXT

    @given(position=st.integers(0, len(KNOWN_NOTE) - 1), letter=st.sampled_from("aZ0+/=\n —\x00é"))
    def test_no_character_can_change(self, position: int, letter: str) -> None:
        """Changing any one character of a note makes it fail (or leaves it the same note)."""
        altered = KNOWN_NOTE[:position] + letter + KNOWN_NOTE[position + 1 :]
        if altered != KNOWN_NOTE:
            with pytest.raises(NoteError):
                Verifier(KNOWN_VKEY).open(altered)

    @pytest.mark.parametrize(
        "vkey",
        [
            "",
            "name",
            "name+00000000",
            "name+00000000+AAAA",
            "name+00000000+!",
            KNOWN_VKEY.replace("c74f20a3", "c74f20a4"),
            KNOWN_VKEY.replace("PeterNeumann", "Peter Neumann"),
            KNOWN_VKEY.replace("+ARpc", "+AhpC"),
            KNOWN_VKEY.replace("+ARpc", "+Ahpc"),
        ],
    )
    def test_bad_vkey_is_refused(self, vkey: str) -> None:
        """A vkey that is malformed, or whose id is not its key's, is refused without being repeated."""
        with pytest.raises(NoteError) as caught:
            Verifier(vkey)
        assert len(vkey) < 5 or vkey not in str(caught.value)

    def test_surrounding_space_is_no_matter(self, signer: Signer) -> None:
        """A vkey that was read from a file with its newline is accepted."""
        assert Verifier(f" {signer.vkey}\n").name == ORIGIN


class TestNote:
    """The signed-note format, its round trip and its refusals."""

    @given(st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=60))
    def test_round_trip(self, text: str) -> None:
        """What was signed opens to the same text."""
        signer = Signer(ORIGIN, Ed25519PrivateKey.generate())
        assert Verifier(signer.vkey).open(signer.sign(f"{text}\n")) == f"{text}\n"

    def test_text_may_hold_empty_lines(self, signer: Signer, verifier: Verifier) -> None:
        """The last empty line separates, not the first."""
        assert verifier.open(signer.sign("a\n\nb\n")) == "a\n\nb\n"

    def test_witness_signatures_are_ignored(self, signer: Signer, verifier: Verifier) -> None:
        """Signatures of keys we do not know neither help nor hurt."""
        witness = Signer("witness.example/w1", Ed25519PrivateKey.generate())
        ours = signer.sign("text\n")
        both = ours + witness.sign("text\n").rpartition("\n\n")[2]
        assert verifier.open(both) == "text\n"
        with pytest.raises(NoteError, match="not signed by the expected key"):
            verifier.open(witness.sign("text\n"))

    def test_same_name_other_key(self, verifier: Verifier) -> None:
        """A key that took our name is not our key."""
        impostor = Signer(ORIGIN, Ed25519PrivateKey.generate())
        with pytest.raises(NoteError, match="not signed by the expected key"):
            verifier.open(impostor.sign("text\n"))

    def test_one_bad_signature_of_ours_rejects_all(self, signer: Signer, verifier: Verifier) -> None:
        """A good and a forged signature under our name and id is no good note."""
        good = signer.sign("text\n")
        forged = signer.sign("other\n").rpartition("\n\n")[2]
        with pytest.raises(NoteError, match="does not match"):
            verifier.open(good + forged)

    @pytest.mark.parametrize(
        "note",
        [
            "",
            "text\n",
            "text\n\n",
            "text\n\nno signature line\n",
            "te\x07xt\n\n— a AAAA\n",
            "text\n\n— a+b AAAA\n",
            "text\n\n— a !\n",
            "text\n\n" + "— a AAAAAAAA\n" * 65,
            "x" * 70_000 + "\n\n— a AAAAAAAA\n",
        ],
    )
    def test_malformed(self, verifier: Verifier, note: str) -> None:
        """What is not in the format is refused, however long or odd."""
        with pytest.raises(NoteError):
            verifier.open(note)

    def test_signature_that_is_no_base64(self, verifier: Verifier) -> None:
        """A signature that cannot be decoded is nobody's."""
        with pytest.raises(NoteError, match="not signed by the expected key"):
            verifier.open(f"text\n\n— {ORIGIN} AAA\n")

    @pytest.mark.parametrize("name", ["", "two words", "a+b", "é", "a" * 201, "/x"])
    def test_name_must_fit_a_signature_line(self, name: str) -> None:
        """An origin with spaces, plus or control characters cannot sign."""
        with pytest.raises(ConfigurationError, match="origin"):
            Signer(name, Ed25519PrivateKey.generate())


class TestCheckpoint:
    """A checkpoint is a note about one log."""

    def test_text_is_origin_size_root(self, signer: Signer, verifier: Verifier) -> None:
        """The three lines of C2SP tlog-checkpoint, and nothing else, are signed."""
        text = verifier.open(signer.checkpoint(7, ROOT).note)
        assert text == f"{ORIGIN}\n7\n{base64.b64encode(ROOT).decode()}\n"

    def test_round_trip(self, signer: Signer, verifier: Verifier) -> None:
        """A checkpoint opens to what was signed."""
        signed = signer.checkpoint(7, ROOT)
        assert open_checkpoint(signed.note, verifier) == signed

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "o\n1\n",
            f"\n1\n{base64.b64encode(ROOT).decode()}\n",
            f"o\n01\n{base64.b64encode(ROOT).decode()}\n",
            f"o\n-1\n{base64.b64encode(ROOT).decode()}\n",
            f"o\n1e3\n{base64.b64encode(ROOT).decode()}\n",
            f"o\n{'9' * 30}\n{base64.b64encode(ROOT).decode()}\n",
            f"o\n1\n{base64.b64encode(ROOT).decode()}\nextension\n",
            f"o\n1\n{base64.b64encode(ROOT).decode()}",
            "o\n1\nAAAA\n",
            "o\n1\n!\n",
        ],
    )
    def test_malformed_statement(self, text: str) -> None:
        """Leading zeros, signs, missing or further lines and short roots are refused."""
        with pytest.raises(NoteError):
            read_statement(text)

    def test_other_logs_checkpoint_is_refused(self, signer: Signer, verifier: Verifier) -> None:
        """A checkpoint that our key signed for another log's name says nothing about ours."""
        text = f"other.example/log\n7\n{base64.b64encode(ROOT).decode()}\n"
        with pytest.raises(NoteError, match="another log"):
            open_checkpoint(signer.sign(text), verifier)


class TestKeyFile:
    """The key file is made once, for its owner, and never shown."""

    def test_created_for_its_owner_only(self, tmp_path: Path) -> None:
        """A new key file is 0600 whatever the umask, and nothing else is left beside it."""
        path = tmp_path / "new" / "audit.key"
        before = os.umask(0)
        try:
            keys.load_or_create(path)
        finally:
            os.umask(before)
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert [item.name for item in path.parent.iterdir()] == ["audit.key"]

    def test_same_key_every_time(self, tmp_path: Path) -> None:
        """Loading again gives the key that was made."""
        path = tmp_path / "audit.key"
        made = keys.load_or_create(path).private_bytes_raw()
        assert keys.load(path).private_bytes_raw() == made
        assert keys.load_or_create(path).private_bytes_raw() == made

    def test_of_many_creators_one_wins(self, tmp_path: Path) -> None:
        """Callers that make the file at once all end with the same key."""
        path = tmp_path / "audit.key"
        with ThreadPoolExecutor(8) as pool:
            made = list(pool.map(lambda _: keys.load_or_create(path).private_bytes_raw(), range(8)))
        assert len(set(made)) == 1

    def test_never_replaces_a_key(self, tmp_path: Path) -> None:
        """Losing the race to create the file leaves the winner's key in place."""
        path = tmp_path / "audit.key"
        winner = keys.load_or_create(path).private_bytes_raw()
        keys.create_secret(path, keys._new_pem())
        assert keys.load(path).private_bytes_raw() == winner

    @pytest.mark.parametrize("mode", [0o644, 0o604, 0o660, 0o602])
    def test_open_to_others_is_refused(self, tmp_path: Path, mode: int) -> None:
        """A key that others can read or the group can write is refused with the remedy."""
        path = tmp_path / "audit.key"
        keys.load_or_create(path)
        path.chmod(mode)
        with pytest.raises(ConfigurationError, match="chmod 600"):
            keys.load(path)

    def test_group_readable_is_accepted(self, tmp_path: Path) -> None:
        """A secret that is mounted for a group (0440) can be used."""
        path = tmp_path / "audit.key"
        made = keys.load_or_create(path).private_bytes_raw()
        path.chmod(0o440)
        assert keys.load(path).private_bytes_raw() == made

    def test_content_is_never_repeated(self, tmp_path: Path) -> None:
        """A file that holds something else is refused without showing what."""
        path = tmp_path / "audit.key"
        for content in (b"SECRET-VALUE", self._pem_of_another_kind(), self._encrypted_pem(), b""):
            path.write_bytes(content)
            path.chmod(0o600)
            with pytest.raises(ConfigurationError, match="one unencrypted Ed25519") as caught:
                keys.load(path)
            assert "SECRET" not in str(caught.value)
            assert caught.value.__suppress_context__ or caught.value.__context__ is None

    def test_missing_and_impossible(self, tmp_path: Path) -> None:
        """A file that is not there, or cannot be, is a configuration error."""
        with pytest.raises(ConfigurationError, match="cannot be read"):
            keys.load(tmp_path / "none")
        (tmp_path / "file").write_text("")
        with pytest.raises(ConfigurationError, match="cannot be created"):
            keys.load_or_create(tmp_path / "file" / "audit.key")

    def test_without_cryptography(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without the extra, the message names it."""
        path = tmp_path / "audit.key"
        for name in [name for name in sys.modules if name.startswith("cryptography")]:
            monkeypatch.setitem(sys.modules, name, None)
        monkeypatch.setitem(sys.modules, "cryptography", None)
        for attempt in (
            lambda: keys.load_or_create(path),
            lambda: keys.load(path),
            lambda: Verifier(KNOWN_VKEY),
        ):
            with pytest.raises(ConfigurationError, match=r"healthobs\[audit\]"):
                attempt()

    @staticmethod
    def _pem_of_another_kind() -> bytes:
        return generate_private_key(SECP256R1()).private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        )

    @staticmethod
    def _encrypted_pem() -> bytes:
        return Ed25519PrivateKey.generate().private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"password"),
        )
