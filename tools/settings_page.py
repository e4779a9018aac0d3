"""Generate `docs/reference/settings.md` from the code; without `--write`, fail when the page is stale."""

from __future__ import annotations

import inspect
import re
import sys
from dataclasses import fields
from pathlib import Path

from healthobs.config import Settings, variables

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/settings.md"
HEADER = """# Settings

`healthobs.Settings` is one frozen object, read once. Precedence: explicit argument, then `HEALTHOBS_*`, then the
OpenTelemetry variable where there is one, then the default. Sampler, span limits and exporter options are read by the
OpenTelemetry SDK from its own variables. Another variable under `HEALTHOBS_` is warned of (`HealthobsWarning`).

| Field | Meaning | Type | Default | Variables |
| --- | --- | --- | --- | --- |
"""


def meanings() -> dict[str, str]:
    """Return what the docstring of `Settings` says of each field, on one line."""
    arguments = inspect.cleandoc(Settings.__doc__ or "").partition("Args:\n")[2]
    found = re.findall(r"^    (\w+): (.*(?:\n {8}.*)*)", arguments, re.MULTILINE)
    return {name: " ".join(text.split()).replace("``", "`").replace("|", "\\|") for name, text in found}


def page() -> str:
    """Return the page's text."""
    told = meanings()
    rows = []
    for spec in fields(Settings):
        names = ", ".join(f"`{name}`" for name in variables(spec.name))
        kind = str(spec.type).replace("|", "\\|")
        rows.append(f"| `{spec.name}` | {told[spec.name]} | `{kind}` | `{spec.default!r}` | {names} |")
    return HEADER + "\n".join(rows) + "\n\nThe class: {py:class}`healthobs.config.Settings`.\n"


def main() -> int:
    """Write the page, or compare it."""
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if not PAGE.exists() or PAGE.read_text(encoding="utf-8") != page():
        print(
            "docs/reference/settings.md is stale: run `python tools/settings_page.py --write`",
            file=sys.stderr,
        )
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
