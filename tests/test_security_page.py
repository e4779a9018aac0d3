"""`SECURITY.md` claims nothing that no test shows."""

from __future__ import annotations

import ast
import re
from pathlib import Path

ROOT = Path(__file__).parents[1]
_NAMED = re.compile(r"`(test_\w+)::(?:(\w+)::)?(test_\w+)`")


def test_every_named_test_exists() -> None:
    """Each line of the threat model that claims something names tests, and each of them is there."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    named = _NAMED.findall(page)
    assert len(named) > 20
    missing = [
        f"{module}::{name}" for module, group, name in named if name not in _tests(module).get(group, set())
    ]
    assert missing == []


def test_every_row_is_backed() -> None:
    """A row of the audit trail's threat model either names a test or says that nothing defends."""
    page = (ROOT / "SECURITY.md").read_text(encoding="utf-8")
    rows = [line for line in page.partition("## The audit trail")[2].splitlines() if line.startswith("| ")][
        2:
    ]
    assert len(rows) > 12
    assert [row for row in rows if not _NAMED.search(row) and "**not**" not in row] == []


def _tests(module: str) -> dict[str, set[str]]:
    """Return the names of the tests in a module, by class (an empty name: none)."""
    (file,) = [
        path
        for place in ("tests", "reference_services/tests")
        for path in (ROOT / place).glob(f"{module}.py")
    ]
    found: dict[str, set[str]] = {}
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef):
            found.setdefault("", set()).add(node.name)
        elif isinstance(node, ast.ClassDef):
            found[node.name] = {item.name for item in node.body if isinstance(item, ast.FunctionDef)}
    return found
