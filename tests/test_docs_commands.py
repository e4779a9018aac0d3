"""The command lines of the tutorial, run as they stand there, beside the file that it tells to save."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sysconfig
import time
from pathlib import Path

import pytest

from live_servers import serving

pytestmark = pytest.mark.server

PAGE = Path(__file__).resolve().parent.parent / "docs/tutorial/audited-service.md"


def blocks(page: str, language: str) -> list[str]:
    """Return the blocks of code of a page."""
    return re.findall(rf"^```{language}\n(.*?)^```", page, re.MULTILINE | re.DOTALL)


def lines(page: str) -> list[list[str]]:
    """Return its command lines, as words."""
    found = "".join(blocks(page, "console")).replace("\\\n", "")
    return [shlex.split(line.removeprefix("$ "), comments=True) for line in found.splitlines()]


def partial(status: str) -> list[str]:
    """Return the controls that a status says are met in part."""
    return re.findall(r"^  (\S+) +partial", status, re.MULTILINE)


def test_the_tutorial_of_an_audited_service(tmp_path: Path) -> None:
    """The file starts under gunicorn, a write is in the log, in the metrics no patient, and the gate names two controls."""
    if shutil.which("curl") is None:
        pytest.skip("the tutorial asks with curl")
    page = PAGE.read_text(encoding="utf-8")
    (tmp_path / "ward.py").write_text(blocks(page, "python")[0], encoding="utf-8")
    install, doctor, export, gunicorn, *after = lines(page)
    assert (install[0], export[0], gunicorn[0]) == ("pip", "export", "gunicorn")
    name, _, value = export[1].partition("=")
    environment = {**os.environ, "PATH": f"{sysconfig.get_path('scripts')}{os.pathsep}{os.environ['PATH']}"}

    def run(words: list[str]) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False, timeout=60
        )

    told = run(doctor)
    assert (told.returncode, told.stdout) == (0, "nothing is wrong\n")
    words = [word.replace("127.0.0.1:8080", "127.0.0.1:PORT") for word in gunicorn]
    with serving(tmp_path, ["-m", *words], **{name: value}) as server:
        here = [[word.replace(":8080", f":{server.port}") for word in line] for line in after]
        write, metrics, verify, export_entries, gate = map(run, here)
        deadline = time.monotonic() + 60  # the worker that answers may not have ended its first round
        while partial(gate.stdout) != ["H-312.c", "H-312.d"] and time.monotonic() < deadline:
            gate = run(here[-1])
    assert (write.returncode, write.stdout) == (0, '{"bed":"b-1"}\n')
    assert 'ward_operations_total{operation="assign_bed",outcome="ok"} 1.0' in metrics.stdout
    assert (verify.returncode, verify.stdout.startswith("ok: ")) == (0, True)
    assert '"action": "bed.assign"' in export_entries.stdout
    assert gate.returncode == 1
    assert partial(gate.stdout) == ["H-312.c", "H-312.d"]
    for said in (metrics, verify, export_entries, gate, server.log.read_text()):
        assert "0012345" not in str(said)
