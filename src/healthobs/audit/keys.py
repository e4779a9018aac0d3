"""Secret files of the audit trail, above all the signing keys of a log: Ed25519 in PEM, for their owner only.

The first key in the file is the current one. `rotate` puts a new one before it; the earlier ones go on
signing beside it, so that whoever knows only them can follow, until `retire` takes them out.

Limits: the file is not encrypted; protect it like the service's other secrets, or mount it from a key store.
Whoever has the key can rewrite the log, which only a checkpoint held elsewhere then shows.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
import secrets
import stat
from collections.abc import Callable, Generator
from pathlib import Path
from typing import TYPE_CHECKING

from healthobs.exceptions import ConfigurationError

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

#: Group may read (a mounted secret with a group id); nothing else, and nobody else anything.
_TOO_OPEN = 0o037
#: Ends the name of the file beside a key that says which logs, maps of subjects or witness's states it began, and where.
BEGUN = ".logs"
#: Stands there before the place of a map, where before that of a log its origin does.
MAP = "subjects"
#: Stands there before the place of a witness's state.
WITNESS = "witness"
#: Ends the name of the file beside a key that keeps those which were dropped; nothing here reads it.
RETIRED = ".retired"
_PEM = re.compile(rb"-----BEGIN [A-Z ]+-----\r?\n.*?-----END [A-Z ]+-----\r?\n?", re.DOTALL)


def load_or_create(path: Path) -> Ed25519PrivateKey:
    """Return the key in `path`, which is made first when missing; of several that make it at once, one wins.

    Raises:
        ConfigurationError: The file cannot be read or made, is readable by others, or holds no Ed25519 key.
    """
    if not path.exists():
        create_secret(path, _new_pem())
    return load(path)


def load(path: Path) -> Ed25519PrivateKey:
    """Return the current key in `path`.

    Raises:
        ConfigurationError: As `load_or_create`.
    """
    return load_all(path)[0]


def load_all(path: Path) -> tuple[Ed25519PrivateKey, ...]:
    """Return the current key in `path` and the retiring ones after it.

    Raises:
        ConfigurationError: As `load_or_create`.
    """
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key
    except ImportError:
        raise ConfigurationError("the audit trail needs cryptography; install healthobs[audit]") from None
    found: list[Ed25519PrivateKey] = []
    for pem in _PEM.findall(read_secret(path)) or [b""]:
        try:
            key = load_pem_private_key(pem, password=None)
        except (ValueError, TypeError):
            key = None
        if not isinstance(key, Ed25519PrivateKey):
            raise ConfigurationError(
                "the audit key file must hold one unencrypted Ed25519 private key in PEM form"
                " (after a rotation several, the current one first)"
            )
        found.append(key)
    return tuple(found)


def rotate(path: Path) -> Ed25519PrivateKey:
    """Put a new key before those in `path` and return it; the log's next opening records the change.

    Restart every process that signs with the file: until then it goes on with the keys it has.

    Raises:
        ConfigurationError: As `load_or_create`.
    """
    with _locked(path):
        before = load_all(path)
        pem = _new_pem()
        _replace(path, pem + b"".join(_pem(key) for key in before))
        return load(path)


def retire(path: Path, expected: Ed25519PrivateKey | None = None) -> int:
    """Take all but the current key out of `path`, and return how many those were.

    They go to the file of its name and `.retired`, for the case that a process still signs with them alone: put
    back after the current key, they let the log be opened. Delete it once every process was restarted.

    Raises:
        ConfigurationError: As `load_or_create`; or they cannot be kept, or `expected` is not the current key, and none was
            dropped.
    """
    with _locked(path):
        current, *earlier = load_all(path)
        if expected is not None and _pem(expected) != _pem(current):
            raise ConfigurationError("no key was dropped: the key file was rotated meanwhile; ask again")
        if earlier:
            _replace(path, _pem(current), lambda: _keep_retired(path, b"".join(map(_pem, earlier))))
    return len(earlier)


def logs(path: Path) -> list[tuple[int, str]]:
    """Return where the key in `path` began logs, as far as anybody wrote it down: number of the line, and place.

    Raises:
        ConfigurationError: As `begun`.
    """
    lines = ((number, *line.partition(" ")) for number, line in enumerate(_begun_lines(path), 1) if line)
    return [(number, place) for number, origin, _, place in lines if origin not in {MAP, WITNESS}]


def has_begun(path: Path, origin: str) -> bool:
    """Return whether the key in `path` began `origin` (a log's, or what else it is) at any place, as far as anybody wrote it down.

    Raises:
        ConfigurationError: As `begun`.
    """
    return any(line.partition(" ")[0] == origin for line in _begun_lines(path))


def begun(path: Path, place: str) -> str | None:
    """Return what the key in `path` began at `place`, as far as anybody wrote it down: a log's origin, or what else it is.

    Raises:
        ConfigurationError: What was written down cannot be read, or nobody could write `place` down.
    """
    if "\n" in place:
        raise ConfigurationError(
            "the path of an audit trail, subject map or witness's state must hold no line feed"
        )
    for line in _begun_lines(path):
        origin, _, where = line.partition(" ")
        if same_place(where, place):
            return origin
    return None


def note_begun(path: Path, place: str, origin: str) -> None:
    """Write down beside the key in `path` that it is that of `origin` at `place`, where the folder may be written to.

    Raises:
        ConfigurationError: As `begun`.
    """
    if begun(path, place) == origin:
        return
    with _locked(path):
        lines = [
            line for line in _begun_lines(path) if line and not same_place(line.partition(" ")[2], place)
        ]
        with contextlib.suppress(ConfigurationError):  # a mounted secret
            _replace_begun(path, os.fsencode("".join(f"{line}\n" for line in (*lines, f"{origin} {place}"))))


def same_place(one: str, other: str) -> bool:
    """Return whether two places are one: a file has several names, a database elsewhere that by which it is known."""
    return one == other or (one[:1] == other[:1] == "/" and _real(one) == _real(other))


def _real(place: str) -> str:
    try:
        return os.path.realpath(place)
    except ValueError:  # no file can have that name
        return place


@contextlib.contextmanager
def _locked(path: Path) -> Generator[None]:
    """Let one process at a time change the key file `path` and what is beside it, where its file system has locks."""
    with contextlib.ExitStack() as undo:
        with contextlib.suppress(OSError):
            while not _lock(path, undo):
                undo.pop_all().close()
        yield


def _lock(path: Path, undo: contextlib.ExitStack) -> bool:
    """Lock the file and return whether it still is the one of that name; whoever had the lock may have replaced it."""
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    undo.callback(os.close, descriptor)
    fcntl.flock(descriptor, fcntl.LOCK_EX)
    undo.callback(fcntl.flock, descriptor, fcntl.LOCK_UN)  # a child forked meanwhile has it, too
    return os.path.samestat(os.fstat(descriptor), path.stat())


def gone(path: Path, what: str) -> ConfigurationError:
    """Return the refusal to begin another in place of what the key in `path` began."""
    return ConfigurationError(
        f"the {what} that this key file began here is gone; restore it, or take its line out of the file"
        f" {_begun_file(path).name} beside the key to begin another"
    )


def _begun_file(path: Path) -> Path:
    return path.with_name(path.name + BEGUN)


def _begun_lines(path: Path) -> list[str]:
    try:
        text = os.fsdecode(_begun_file(path).read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as exc:
        raise ConfigurationError(
            f"the file {_begun_file(path).name} beside the key cannot be read ({_reason(exc)});"
            " give it the owner and the mode of the key"
        ) from None
    return text.split("\n")


def read_secret(path: Path) -> bytes:
    """Return what is in a file that nobody but its owner (and its group, reading) may touch.

    Raises:
        ConfigurationError: The file cannot be read, or is open to others.
    """
    try:
        mode = path.stat().st_mode
        content = path.read_bytes()
    except OSError as exc:
        remedy = "; restore it from where you keep it" if isinstance(exc, FileNotFoundError) else ""
        raise ConfigurationError(
            f"the key file {path.name} cannot be read ({_reason(exc)}){remedy}"
        ) from None
    if mode & _TOO_OPEN:
        raise ConfigurationError(f"the key file {path.name} is open to others; chmod 600 it")
    return content


def create_secret(path: Path, content: bytes) -> None:
    """Write a new 0600 file so that a reader sees all of it or none; one that is there is left as it is.

    Raises:
        ConfigurationError: It cannot be made.
    """

    def place(draft: Path) -> None:
        with contextlib.suppress(FileExistsError):
            os.link(draft, path)  # unlike a rename it never replaces the key of another process

    _write(path, content, place)


def _replace(path: Path, content: bytes, first: Callable[[], None] = lambda: None) -> None:
    """Replace a key file, after `first`; owner, group and mode stay, so that the service can read what root made."""

    def place(draft: Path) -> None:
        first()
        _put(draft, path)

    _write(path, content, place, lambda descriptor: _keep_owner(descriptor, path))


def _keep_retired(path: Path, content: bytes) -> None:
    kept, key = path.with_name(path.name + RETIRED), path.stat()
    try:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC
        with open(os.open(kept, flags, 0o600), "ab") as file:  # noqa: PTH123  # a descriptor, made 0600 from the start
            with contextlib.suppress(OSError):  # only root gives files away
                os.fchown(file.fileno(), key.st_uid, key.st_gid)
            os.fchmod(file.fileno(), 0o600)
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        sync_directory(kept.parent)
    except OSError as exc:
        raise ConfigurationError(
            f"no key was dropped: {kept.name} beside the key cannot be written ({_reason(exc)})"
        ) from None


def _replace_begun(path: Path, content: bytes) -> None:
    """Replace the file beside the key in `path`: a new one is the key's owner's, as far as it can be given to them."""
    begun = _begun_file(path)
    _write(
        begun, content, lambda draft: _put(draft, begun), lambda descriptor: _share(descriptor, begun, path)
    )


def _put(draft: Path, path: Path) -> None:
    os.replace(draft, path)  # noqa: PTH105  # atomic, and said so


def _keep_owner(descriptor: int, path: Path) -> None:
    kept, made = path.stat(), os.fstat(descriptor)
    try:
        if (made.st_uid, made.st_gid) != (kept.st_uid, kept.st_gid):
            os.fchown(descriptor, kept.st_uid, kept.st_gid)
        os.fchmod(descriptor, stat.S_IMODE(kept.st_mode))
    except OSError as exc:
        raise ConfigurationError(
            f"the key file {path.name} is not replaced, because its owner, group and mode cannot be kept"
            f" ({_reason(exc)}); do it as its owner, or as root"
        ) from None


def _share(descriptor: int, path: Path, key: Path) -> None:
    try:
        kept = path.stat()
    except FileNotFoundError:
        kept = key.stat()
    for owner, group in ((kept.st_uid, -1), (-1, kept.st_gid)):
        with contextlib.suppress(OSError):  # only root gives files away
            os.fchown(descriptor, owner, group)
    if os.fstat(descriptor).st_gid == kept.st_gid:
        os.fchmod(descriptor, stat.S_IMODE(kept.st_mode))


def _write(
    path: Path, content: bytes, place: Callable[[Path], None], give: Callable[[int], None] = lambda _: None
) -> None:
    draft = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
            with open(descriptor, "wb") as file:  # noqa: PTH123  # a descriptor, made 0600 from the start
                give(file.fileno())
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            place(draft)
            sync_directory(path.parent)
        finally:
            draft.unlink(missing_ok=True)
    except OSError as exc:
        raise ConfigurationError(f"the key file {path.name} cannot be created ({_reason(exc)})") from None


def _new_pem() -> bytes:
    try:
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
    except ImportError:
        raise ConfigurationError("the audit trail needs cryptography; install healthobs[audit]") from None
    return _pem(Ed25519PrivateKey.generate())


def _pem(key: Ed25519PrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def sync_directory(path: Path) -> None:
    """Make the names in a directory durable."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _reason(exc: OSError) -> str:
    return exc.strerror or type(exc).__name__
