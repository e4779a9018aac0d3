"""What a power cut leaves, from recorded system calls: files of which some unsynced writes are gone.

`record` runs a program under strace; `Disk` replays what it wrote in one folder. A write is safe once its file was
synced after it, a name (new, gone, renamed) once its folder was. Everything else may be there or not, in any
combination: POSIX promises no order.
"""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

_CALLS = "openat,pwrite64,write,ftruncate,fsync,fdatasync,unlink,rename,link"
_LINE = re.compile(r"(\d+) (\w+)\((.*)\) += (-?\d+)")
_UNFINISHED = re.compile(r"(\d+) (.*) <unfinished \.\.\.>")
_RESUMED = re.compile(r"(\d+) <\.\.\. \w+ resumed>(.*)")
_FD_PATH = re.compile(r"(\d+)<([^>]*)>")
_TEXT = re.compile(r'"((?:[^"\\]|\\.)*)"')


@dataclass(frozen=True)
class Call:
    """One system call that succeeded."""

    name: str
    paths: tuple[str, ...]
    data: bytes
    numbers: tuple[int, ...]
    flags: str


def record(code: str, *arguments: str, inject: str = "") -> tuple[list[Call], str]:
    """Run Python code under strace; return its calls, in the order in which they ended, and its output."""
    log = Path(arguments[0]) / "strace"
    command = ["strace", "-f", "-y", "-x", "-s", "1000000", "-o", str(log), "-e", f"trace={_CALLS}"]
    command += ["-e", f"inject={inject}"] if inject else []
    command += [sys.executable, "-c", code, *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    return list(_parse(log.read_text())), done.stdout


def _parse(text: str) -> Iterator[Call]:
    begun: dict[str, str] = {}
    for raw in text.splitlines():
        line = re.sub(r"^(\d+) +", r"\1 ", raw)
        if unfinished := _UNFINISHED.match(line):
            begun[unfinished[1]] = unfinished[2]
            continue
        if resumed := _RESUMED.match(line):
            line = f"{resumed[1]} {begun.pop(resumed[1])}{resumed[2]}"
        match = _LINE.match(line)
        if match is None or int(match[4]) < 0:
            continue
        name, body = match[2], match[3]
        texts = [_decoded(found) for found in _TEXT.findall(body)]
        rest = _TEXT.sub("", body)
        paths = [path for _, path in _FD_PATH.findall(rest)]
        if name in ("openat", "unlink", "rename", "link"):
            paths = [text.decode() for text in texts]
        numbers = tuple(int(number) for number in re.findall(r", (\d+)(?=,|$)", rest))
        yield Call(name, tuple(paths), texts[0] if texts else b"", numbers, rest)


def _decoded(text: str) -> bytes:
    return text.encode().decode("unicode_escape").encode("latin-1")


@dataclass(eq=False)
class _File:
    safe: bytearray = field(default_factory=bytearray)
    now: bytearray = field(default_factory=bytearray)
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)

    def do(self, offset: int, data: bytes | None) -> None:
        self.pending.append((offset, data))
        _apply(self.now, offset, data)

    def sync(self) -> None:
        self.safe, self.pending = bytearray(self.now), []


def _apply(content: bytearray, offset: int, data: bytes | None) -> None:
    """Write at the offset, or cut or extend to it where there is no data."""
    if len(content) < offset:
        content.extend(bytes(offset - len(content)))
    if data is None:
        del content[offset:]
    else:
        content[offset : offset + len(data)] = data


class Disk:
    """One folder, as it is and as a power cut may leave it."""

    def __init__(self, folder: Path) -> None:
        self._folder = str(folder)
        self._now: dict[str, _File] = {}
        self._safe: dict[str, _File] = {}
        #: Names that were made or are gone since the folder was synced, in order.
        self._names: list[tuple[str, _File | None]] = []

    def play(self, call: Call) -> bool:
        """Do what the call did; return whether it changed anything here."""
        if not any(path.startswith(self._folder) for path in call.paths):
            return False
        path = call.paths[0]
        if path == self._folder:
            if call.name in ("fsync", "fdatasync"):
                self._safe, self._names = dict(self._now), []
            return True
        if path.endswith(("-shm", ".lock", "strace")):
            return False
        if call.name == "openat":
            return "O_CREAT" in call.flags and path not in self._now and self._name(path, _File())
        if call.name == "unlink":
            return self._name(path, None)
        if call.name == "link":
            return self._name(call.paths[1], self._now[path])
        if call.name == "rename":
            self._name(call.paths[1], self._now[path])
            return self._name(path, None)
        file = self._now[path]
        if call.name in ("fsync", "fdatasync"):
            file.sync()
        elif call.name == "ftruncate":
            file.do(call.numbers[0], None)
        elif call.name == "pwrite64":
            file.do(call.numbers[1], call.data)
        else:
            file.do(len(file.now), call.data)
        return True

    def _name(self, path: str, file: _File | None) -> bool:
        self._names.append((path, file))
        _set(self._now, path, file)
        return True

    def unsafe(self) -> int:
        """Return how many writes and names would be in danger now."""
        return len(self._names) + sum(len(file.pending) for file in self._now.values())

    def crashes(self) -> Iterator[dict[str, bytes]]:
        """Give the folder after a power cut now: all of the unsafe gone, none, each alone gone, each alone there."""
        files = {id(file): file for file in (*self._safe.values(), *self._now.values())}
        files |= {id(file): file for _, file in self._names if file is not None}
        count = len(self._names) + sum(len(file.pending) for file in files.values())
        everything = frozenset(range(count))
        singles = [frozenset({number}) for number in range(count)] if count <= 40 else []
        for kept in {frozenset(), everything, *singles, *(everything - single for single in singles)}:
            names = dict(self._safe)
            for number, (path, file) in enumerate(self._names):
                if number in kept:
                    _set(names, path, file)
            number = len(self._names)
            contents: dict[int, bytearray] = {}
            for key, file in files.items():
                contents[key] = bytearray(file.safe)
                for offset, data in file.pending:
                    if number in kept:
                        _apply(contents[key], offset, data)
                    number += 1
            yield {Path(path).name: bytes(contents[id(file)]) for path, file in names.items()}


def _set(names: dict[str, _File], path: str, file: _File | None) -> None:
    if file is None:
        names.pop(path, None)
    else:
        names[path] = file
