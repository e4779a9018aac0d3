"""A container engine of one's own for tests, and stand-ins for the base images that no registry is asked for.

The engine is the machine's `dockerd` with its own data root and socket, no bridge and no firewall rules; it ends by
its process id. The stand-ins are made from the interpreter that runs the tests: one has a shell and
pip, as `python:*-slim`; the other, as the distroless Python, has neither and no root user.

Limits: needs root on Linux; the stand-ins carry this machine's C library, not Debian's of the real base.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

BUILD_IMAGE = "python:3.13-slim-trixie"
RUNTIME_IMAGE = "gcr.io/distroless/python3-debian13:nonroot"
WHEELS = "/wheels"
#: The interpreter that runs this, outside its virtual environment.
BASE = Path(sys.base_prefix)
PYTHON = f"python3.{sys.version_info.minor}"
_LEFT_OUT = {"__pycache__", "test", "tests", "idlelib", "tkinter", "turtledemo", "ensurepip", "site-packages"}


def why_not() -> str | None:
    """Return why no engine can run here, or None."""
    missing = [name for name in ("dockerd", "docker", "containerd", "runc") if shutil.which(name) is None]
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a container engine of one's own needs root on Linux"
    if not (BASE / "lib" / PYTHON / "site-packages" / "pip").is_dir():
        return "the interpreter that the tests were made from has no pip"
    return f"not installed: {', '.join(missing)} (Debian: apt-get install docker.io)" if missing else None


class Engine:
    """A running `dockerd`.

    Args:
        folder: Where it keeps everything; short, since a socket's path may have 107 bytes.
    """

    def __init__(self, folder: Path) -> None:
        self._host = f"unix://{folder}/sock"
        self._log = folder / "log"
        (folder / "daemon.json").write_text("{}", encoding="ascii")
        with self._log.open("wb") as log:
            self._process = subprocess.Popen(
                [
                    "dockerd", "--host", self._host, "--config-file", str(folder / "daemon.json"),
                    "--data-root", str(folder / "data"), "--exec-root", str(folder / "exec"),
                    "--pidfile", str(folder / "pid"), "--bridge", "none",
                    "--iptables=false", "--ip6tables=false",
                ],
                stdout=log, stderr=log,
            )  # fmt: skip

    def ready(self, seconds: float = 30) -> bool:
        """Wait until it answers; False when it has ended or does not."""
        end = time.monotonic() + seconds
        while time.monotonic() < end and self._process.poll() is None:
            if self.run("version", check=False).returncode == 0:
                return True
            time.sleep(0.2)
        return False

    def log(self) -> str:
        """Return the last lines that it wrote."""
        return "\n".join(self._log.read_text(encoding="utf-8", errors="replace").splitlines()[-5:])

    def close(self) -> None:
        """Remove every container, then end it."""
        if self._process.poll() is None:
            held = self.run("ps", "-aq", check=False).stdout.decode().split()
            if held:
                self.run("rm", "--force", "--volumes", *held, check=False)
            self._process.send_signal(signal.SIGTERM)
            self._process.wait(timeout=30)

    def run(
        self, *arguments: str, data: bytes | None = None, check: bool = True, timeout: float = 600
    ) -> subprocess.CompletedProcess[bytes]:
        """Run the client; its standard error is in the exception when it fails."""
        done = subprocess.run(
            ["docker", "--host", self._host, *arguments],
            input=data, capture_output=True, timeout=timeout, check=False,
            env={**os.environ, "DOCKER_BUILDKIT": "0"},
        )  # fmt: skip
        if check and done.returncode != 0:
            raise RuntimeError(f"docker {arguments[0]} failed:\n{done.stderr.decode()[-3000:]}")
        return done

    def inspect(self, name: str) -> Any:
        """Return what the engine knows of an image or container."""
        return json.loads(self.run("inspect", name).stdout)[0]

    def layer_files(self, image: str) -> dict[str, bytes]:
        """Return the files in the layers of `image`, the base image's excluded; a link is empty."""
        base = len(self.inspect(RUNTIME_IMAGE)["RootFS"]["Layers"])
        files = {}
        with tarfile.open(fileobj=io.BytesIO(self.run("save", image).stdout)) as saved:
            for layer in json.loads(_read(saved, "manifest.json"))[0]["Layers"][base:]:
                with tarfile.open(fileobj=io.BytesIO(_read(saved, layer))) as archive:
                    for member in archive.getmembers():
                        if not member.isdir():
                            files[member.name] = _read(archive, member.name) if member.isreg() else b""
        return files

    def import_bases(self, wheels: Path) -> None:
        """Make the two stand-ins; pip in the first finds only what `wheels` holds."""
        build = _Tree()
        build.interpreter(with_pip=True)
        for tool in ("ln", "mkdir"):
            build.program(Path(shutil.which(tool) or tool), f"usr/bin/{tool}")
        build.program(Path("/bin/sh"), "bin/sh")
        for wheel in wheels.iterdir():
            build.file(wheel, f"{WHEELS[1:]}/{wheel.name}")
        build.text("etc/pip.conf", f"[global]\nno-index = true\nfind-links = {WHEELS}\n")
        self._import(build, BUILD_IMAGE, "ENV PATH=/usr/bin:/bin")
        runtime = _Tree()
        runtime.interpreter(with_pip=False)
        self._import(runtime, RUNTIME_IMAGE, "ENV PATH=/usr/bin", "USER 65532")

    def _import(self, tree: _Tree, name: str, *changes: str) -> None:
        options = [word for change in changes for word in ("--change", change)]
        self.run("import", *options, "-", name, data=tree.bytes())


class _Tree:
    """A root file system in the making, as a tar archive."""

    def __init__(self) -> None:
        self._buffer = io.BytesIO()
        self._tar = tarfile.open(fileobj=self._buffer, mode="w", dereference=True)  # noqa: SIM115 - `bytes` closes it
        self._names: set[str] = set()
        self.text("etc/passwd", "root:x:0:0::/:\nnonroot:x:65532:65532::/home/nonroot:\n")
        self.text("etc/group", "root:x:0:\nnonroot:x:65532:\n")
        libraries = tarfile.TarInfo("lib")
        libraries.type, libraries.linkname = tarfile.SYMTYPE, "usr/lib"
        self._tar.addfile(libraries)
        temporary = tarfile.TarInfo("tmp")
        temporary.type, temporary.mode = tarfile.DIRTYPE, 0o1777
        self._tar.addfile(temporary)

    def bytes(self) -> bytes:
        self._tar.close()
        return self._buffer.getvalue()

    def file(self, source: Path, name: str) -> None:
        if name not in self._names:
            self._names.add(name)
            self._tar.add(source, name, recursive=False)

    def text(self, name: str, content: str) -> None:
        info = tarfile.TarInfo(name)
        info.size = len(content)
        self._tar.addfile(info, io.BytesIO(content.encode("ascii")))

    def program(self, source: Path, name: str) -> None:
        """Add an executable or shared object, and the libraries it needs where the loader looks for them."""
        self.file(source.resolve(), name)
        needed = subprocess.run(["ldd", source], capture_output=True, text=True, check=False).stdout
        for word in needed.split():
            if word.startswith("/"):
                library = Path(word)
                loader = library.name.startswith("ld-linux")
                self.file(library.resolve(), word[1:] if loader else f"usr/lib/{library.name}")

    def interpreter(self, *, with_pip: bool) -> None:
        """Add the interpreter that runs this, its standard library and what compiled packages need."""
        program, library = (BASE / "bin" / PYTHON).resolve(), BASE / "lib" / PYTHON
        self.program(program, f"usr/bin/{PYTHON}")
        self.program(program, "usr/bin/python3")
        packages = library / "site-packages"
        for path in (*_files(library), *(_files(packages / "pip") if with_pip else ())):
            name = f"usr/lib/{PYTHON}/{path.relative_to(library)}"
            (self.program if path.suffix == ".so" else self.file)(path, name)
        for name in (
            "libgcc_s.so.1",
            "libstdc++.so.6",
            "libpthread.so.0",
            "libdl.so.2",
            "librt.so.1",
            "libm.so.6",
        ):
            for folder in ("/lib/x86_64-linux-gnu", "/lib/aarch64-linux-gnu", "/lib64", "/usr/lib64"):
                if Path(folder, name).exists():
                    self.program(Path(folder, name), f"usr/lib/{name}")


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in _LEFT_OUT and not path.name.startswith("config-"):
            yield from _files(path)
        elif path.is_file():
            yield path


def _read(archive: tarfile.TarFile, name: str) -> bytes:
    found = archive.extractfile(name)
    assert found is not None, f"{name} is no file"
    return found.read()
