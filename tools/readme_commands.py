"""Run the README's two commands as a stranger would: an empty clone, a clean environment, the pip that Python ships.

Exits with the first command's failing status. The commands are read from the README itself, so that
what is promised is what runs.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
#: What a stranger's shell has; virtual environments and tool settings of this one stay out.
KEPT = ("PATH", "HOME", "LANG", "TERM")
#: Where pip finds packages is the machine's business, not the project's.
KEPT_PREFIXES = ("PIP_", "SSL_", "REQUESTS_", "HTTP", "http", "https", "no_proxy", "NO_PROXY")


def commands() -> list[str]:
    """Return the one-line commands marked in the README, in order."""
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    found = re.findall(r"```console\n\$ (python3 -m venv [^\n]+)\n```", text)
    if len(found) != 2:
        raise SystemExit(f"README.md must mark exactly two one-line commands, found {len(found)}")
    return found


def main() -> int:
    """Clone, run both commands one after the other, return the exit status."""
    environment = {
        name: value for name, value in os.environ.items() if name in KEPT or name.startswith(KEPT_PREFIXES)
    }
    environment["PATH"] = os.pathsep.join(
        part for part in environment["PATH"].split(os.pathsep) if ".venv" not in part and ".nox" not in part
    )
    with tempfile.TemporaryDirectory() as scratch:
        clone = Path(scratch, "clone")
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        for command in commands():
            print(f"$ {command}", flush=True)
            done = subprocess.run(["bash", "-c", command], cwd=clone, env=environment, check=False)
            if done.returncode:
                return done.returncode
    return 0


if __name__ == "__main__":
    sys.exit(main())
