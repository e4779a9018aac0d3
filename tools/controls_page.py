"""Generate `docs/reference/controls.md` from the catalogue; without `--write`, fail when the page is stale."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

from healthobs.compliance import REQUIREMENTS, SCOPES, Control, library_controls
from healthobs.compliance.engine import CATALOGUE_VERSION
from reference_services._kit import controls as kit
from reference_services.auth import controls as auth
from reference_services.medical_device import controls as medical_device
from reference_services.payment_gateway import controls as payment_gateway
from reference_services.phi import controls as phi

PAGE = Path(__file__).resolve().parent.parent / "docs/reference/controls.md"
OWN = {
    "each reference service": kit,
    "auth-service": auth,
    "payment-gateway": payment_gateway,
    "phi-service": phi,
    "medical-device": medical_device,
}
HEADER = f"""# Controls

The catalogue, version {CATALOGUE_VERSION}, as `healthobs.compliance.REQUIREMENTS` has it: {len(REQUIREMENTS)} requirements, of which
{sum(bool(row.seen_by) for row in REQUIREMENTS.values())} can have evidence at run time and {sum(not row.seen_by for row in REQUIREMENTS.values())} can only be attested. What nobody observes is `unknown`. The states are
explained in [](../explanation/controls.md).

## What is observed today

| Control | By | What must be seen |
| --- | --- | --- |
"""


def observed() -> Iterator[tuple[str, Control]]:
    """Yield every control that has a probe, and whose it is."""
    for control in library_controls():
        yield "the library", control
    for service, module in OWN.items():
        for control in module.controls(lambda: None):  # type: ignore[attr-defined]
            yield service, control


def page() -> str:
    """Return the page's text."""
    lines = [f"| `{control.id}` | {owner} | {control.criterion} |" for owner, control in observed()]
    lines += [
        "",
        "## The requirements",
        "",
        "| Id | Citation | Requirement | Scope | Evidence at run time | Only attested |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    lines += [
        f"| `{row.id}` | {row.cite} | {row.title} | `{row.scope}` | {row.seen_by or '-'} | {row.attested or '-'} |"
        for row in REQUIREMENTS.values()
    ]
    lines += ["", "## Scopes", "", "What `Settings.out_of_scope` may name:", ""]
    lines += [f"* `{name}`: {meaning}" for name, meaning in SCOPES.items()]
    return HEADER + "\n".join(lines) + "\n"


def main() -> int:
    """Write the page, or compare it."""
    if "--write" in sys.argv[1:]:
        PAGE.write_text(page(), encoding="utf-8")
        return 0
    if PAGE.read_text(encoding="utf-8") != page():
        print(f"{PAGE.name} is stale: run tools/controls_page.py --write", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
