"""The documentation against the code: examples run, generated pages are fresh, the README's commands exist."""

from __future__ import annotations

import ast
import importlib.metadata
import inspect
import re
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

import healthobs

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


#: Modules of ours that need an extra; the longest that fits counts.
NEEDED = {
    "healthobs.audit": "audit",
    "healthobs.audit.postgres": "postgres",
    "healthobs.celery": "celery",
    "healthobs.client": "client",
    "healthobs.client.httpx": "httpx",
    "healthobs.client.requests": "requests",
    "healthobs.compliance.documents": "audit",
    "healthobs.django": "django",
    "healthobs.flask": "flask",
    "healthobs.gunicorn": "gunicorn",
    "healthobs.tokens": "tokens",
}


def imported(page: str) -> set[str]:
    """Return the modules that the Python examples of a page import."""
    code = "\n".join(
        re.findall(r"^```(?:python|\{code-block\} python)\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    )
    found: set[str] = set()
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            found.add(str(node.module))
    return found


def distributions(extras: set[str]) -> set[str]:
    """Return what `healthobs` with these extras brings by itself, by name."""
    own = [Requirement(line) for line in importlib.metadata.requires("healthobs") or ()]
    environments = [{"extra": extra} for extra in ("", *extras)]
    return {one.name for one in own if one.marker is None or any(map(one.marker.evaluate, environments))}


class TestInstallLines:
    """The line at the head of a page is enough for its examples."""

    @pytest.mark.parametrize("page", sorted((ROOT / "docs/how-to").glob("*.md")), ids=lambda page: page.stem)
    def test_suffices(self, page: Path) -> None:
        """Each import comes from the standard library, the core, an extra that is named, or a package that is."""
        text = page.read_text(encoding="utf-8")
        line = re.match(r"# .+\n\n```console\n\$ pip install (\S+)(.*?)  # in a clone\n```\n", text)
        assert line is not None
        extras = set(re.findall(r"[a-z]+", line[1]))
        available = distributions(extras) | set(line[2].split())
        of_module = importlib.metadata.packages_distributions()
        for module in imported(text):
            top = module.partition(".")[0]
            if top == "healthobs":
                fitting = [name for name in NEEDED if f"{module}.".startswith(f"{name}.")]
                assert {NEEDED[name] for name in fitting} <= extras, module
            elif top not in sys.stdlib_module_names:
                owners = {name.lower().replace("_", "-") for name in of_module[top]}
                assert owners & {name.lower() for name in available}, module


class TestDecoratorsPage:
    """`docs/reference/decorators.md`."""

    def test_signatures(self) -> None:
        """Each is the code's: names and defaults, in their order."""
        page = (ROOT / "docs/reference/decorators.md").read_text(encoding="utf-8")
        block = re.search(r"```text\n(.*?)```", page, re.DOTALL)
        assert block is not None
        told = dict(re.findall(r"@(\w+)\((.*)\)", re.sub(r"\n\s+", " ", block[1])))
        assert {*told} == {*re.findall(r"`@(\w+)`", page)}
        for name, text in told.items():
            parts: list[str] = []
            for one in inspect.signature(getattr(healthobs, name)).parameters.values():
                if one.kind is one.KEYWORD_ONLY and "*" not in parts:
                    parts.append("*")
                shown = "name" if one.name == "target" else one.name
                parts.append(shown if one.default is one.empty else f"{shown}={one.default!r}")
            assert text == ", ".join(parts), name


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
