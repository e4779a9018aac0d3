"""The documentation against the code: examples run, generated pages are fresh, the README's commands exist."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


class TestGeneratedPages:
    """Pages made from the code."""

    @pytest.mark.parametrize("tool", ["settings_page.py", "controls_page.py", "readme_example.py"])
    def test_fresh(self, tool: str) -> None:
        """What is committed is what the code says today."""
        done = subprocess.run(
            [sys.executable, ROOT / "tools" / tool], capture_output=True, text=True, check=False
        )
        assert (done.returncode, done.stderr) == (0, "")


class TestReadme:
    """`README.md`."""

    def test_two_commands(self) -> None:
        """Exactly two one-line commands, each self-contained: a virtual environment, the lock, our two distributions."""
        sys.path.insert(0, str(ROOT / "tools"))
        try:
            from readme_commands import commands
        finally:
            sys.path.pop(0)
        demo, tests = commands()
        for command in (demo, tests):
            assert command.startswith("python3 -m venv .venv && ")
            assert "--require-hashes" in command
            assert "--no-deps --no-build-isolation . ./reference_services" in command
        assert demo.endswith(".venv/bin/healthobs demo")
        assert tests.endswith(".venv/bin/python -m pytest -n auto")
