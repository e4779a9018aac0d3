"""Run the README's example and hold the output it shows; `--write` puts the real output in.

The example is taken from the README itself, so what is shown is what it does. Ids and clock are fixed by
`healthobs.testing.Capture`; the request is one GET with an identifier in its path.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from healthobs import Settings
from healthobs.flask import init_app, remove_app
from healthobs.testing import Capture

README = Path(__file__).resolve().parent.parent / "README.md"
EXAMPLE = re.compile(r"```python\n(?P<code>from flask.*?)```", re.DOTALL)
OUTPUT = re.compile(r"(?<=<!-- output -->\n)```text\n.*?```", re.DOTALL)
METRICS = ("phi_request_duration_seconds_count", "phi_operations_total")


def output(code: str) -> str:
    """Return what one call of the example leaves, as the README shows it."""
    namespace: dict[str, Any] = {"__name__": "app"}
    exec(compile(code, "README.md", "exec"), namespace)
    app = namespace["app"]
    settings: Settings = app.extensions["healthobs"].obs.settings
    remove_app(app)
    # A round of the controls beside the request would ask the clock, now here, now there.
    with Capture(replace(settings, control_interval_seconds=0)) as capture:
        init_app(app, capture.obs)
        response = app.test_client().get(
            "/patients/4711", headers={"X-Request-Id": "0af76519-16cd-43dd-8448-eb211c80319c"}
        )
        headers = [f"{name}: {value}" for name, value in response.headers if not name.startswith("Content-L")]
        response.close()
        exposition = app.test_client().get("/metrics").text
        remove_app(app)
    names = {f"{span.context.span_id:016x}": span.name for span in capture.spans}
    spans = [
        f"{span.name}  trace={span.context.trace_id:032x}  parent={names.get(f'{span.parent.span_id:016x}') if span.parent else None}"
        for span in capture.spans
    ]
    metrics = [line for line in exposition.splitlines() if line.startswith(METRICS)]
    lines = [json.dumps(line, separators=(",", ":")) for line in capture.log_lines]
    sections = (("spans", spans), ("metrics", metrics), ("log", lines), ("headers", headers))
    return "\n\n".join(f"# {title}\n" + "\n".join(content) for title, content in sections)


def main() -> int:
    """Write the output into the README, or compare it."""
    text = README.read_text(encoding="utf-8")
    example = EXAMPLE.search(text)
    if example is None or not OUTPUT.search(text):
        print("README.md lacks the example or its output", file=sys.stderr)
        return 1
    shown = f"```text\n{output(example['code'])}\n```"
    fresh = OUTPUT.sub(lambda _: shown, text)
    if "--write" in sys.argv[1:]:
        README.write_text(fresh, encoding="utf-8")
        return 0
    if fresh != text:
        print("README.md shows an old output: run `python tools/readme_example.py --write`", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
