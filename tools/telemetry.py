"""Holds `src/healthobs/telemetry.yaml`: every name that telemetry of the library shows, with its stability.

Metrics and healthobs' own log lines are read from the source, because no single run makes all of them; span attributes, other
log fields, headers and audit fields are what a run leaves that uses every part. A name that is new is added by `--write`; one that is gone is
an error until it stands under `deprecated` with what replaces it.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

import yaml

import healthobs

ROOT = Path(__file__).resolve().parent.parent
TREE = ROOT / "src" / "healthobs"
#: Where only the installed package is at hand, it is held instead: the page is part of it.
SOURCE = TREE if TREE.is_dir() else Path(healthobs.__file__).parent
PAGE = SOURCE / "telemetry.yaml"
KINDS = ("metrics", "span_attributes", "log_events", "log_fields", "headers", "audit_fields")
MAKERS = ("counter", "gauge", "histogram", "GaugeMetricFamily", "CounterMetricFamily")
#: Calls that write a line of healthobs' own, and which of their arguments is the event.
LINES = {"emit": 1, "_alarm": 1, "error": 0}
VIEW = "PrefixCollector"
HEAD = """\
# Names that telemetry shows; they are API (docs/explanation/telemetry-is-api.md). Made by tools/telemetry.py --write.
# <prefix> stands for Settings.prefix; for the decorators' metrics it is healthobs when there is none.
# A label with a question mark is there only when Settings.tenants declares tenants.
"""


def metrics(source: Path = SOURCE) -> dict[str, list[str]]:
    """Return the labels of each metric that the source declares, by name."""
    found: dict[str, list[str]] = {}
    for path in sorted(source.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        names = {
            target.id: node.value
            for node in ast.walk(tree)
            if isinstance(node, (ast.Assign, ast.AnnAssign)) and node.value is not None
            for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
            if isinstance(target, ast.Name)
        }
        for node in ast.walk(tree):
            if not isinstance(node, ast.Call) or len(node.args) < 2:
                continue
            called = _called(node, names)
            name = _text(node.args[called == VIEW], names) if called in (*MAKERS, VIEW) else ""
            if name:
                found[name] = _labels(node, names, node.args[-1] if called == VIEW else None)
    return dict(sorted(found.items()))


def log_lines(source: Path = SOURCE) -> tuple[set[str], set[str]]:
    """Return the events of healthobs' own log lines that the source writes, and the fields that it adds to them."""
    events, fields = set[str](), set[str]()
    for path in sorted(source.rglob("*.py")):
        tree = ast.parse(path.read_text(encoding="utf-8"))
        calls = [node for node in ast.walk(tree) if isinstance(node, ast.Call) and _called(node, {}) in LINES]
        events |= {_event(node) for node in calls} | set(_rendered(tree))
        given = [
            keyword.value for node in calls for keyword in node.keywords if keyword.arg in ("own", "extra")
        ]
        assigned = [
            node.value
            for node in ast.walk(tree)
            if isinstance(node, ast.Assign)
            and isinstance(node.targets[0], ast.Name)
            and node.targets[0].id == "own"
        ]
        if any(isinstance(value, ast.Name) for value in given):
            given += assigned
        fields |= {
            str(key.value)
            for value in given
            for part in ast.walk(value)
            if isinstance(part, ast.Dict)
            for key in part.keys
            if isinstance(key, ast.Constant)
        }
    return events - {""}, fields


def _rendered(tree: ast.AST) -> Iterator[str]:
    """Yield the events of lines that the source makes field by field."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if isinstance(key, ast.Constant) and key.value == "event" and "timestamp" in ast.dump(node):
                    yield _text(value, {})


def _event(node: ast.Call) -> str:
    place = LINES[_called(node, {})]
    event = _text(node.args[place], {}) if len(node.args) > place else ""
    return event if event.isidentifier() else ""


def _called(node: ast.Call, names: Mapping[str, ast.expr]) -> str:
    called: ast.expr = node.func
    if isinstance(called, ast.Name):  # a maker under another name: `make = metrics.histogram`
        called = names.get(called.id, called)
    return called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")


def _text(node: ast.expr, names: Mapping[str, ast.expr]) -> str:
    if isinstance(node, ast.Name) and node.id in names:
        node = names[node.id]
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if not isinstance(node, ast.JoinedStr):
        return ""
    parts = [part.value if isinstance(part, ast.Constant) else "<prefix>" for part in node.values]
    text = "".join(map(str, parts))
    first = node.values[0]
    if isinstance(first, ast.FormattedValue) and isinstance(first.value, ast.Name):
        inner = names.get(first.value.id)
        if isinstance(inner, ast.JoinedStr):  # a stem that is a constant of the function
            text = text.replace("<prefix>", _text(inner, names), 1)
    return text


def _labels(node: ast.Call, names: Mapping[str, ast.expr], view: ast.expr | None) -> list[str]:
    if view is not None:  # new label names by recorded ones
        more = isinstance(view, ast.BinOp)
        view = view.left if isinstance(view, ast.BinOp) else view
        shown = names.get(view.id) if isinstance(view, ast.Name) else view
        values = shown.values if isinstance(shown, ast.Dict) else []
        found = [str(value.value) for value in values if isinstance(value, ast.Constant)]
        return [*found, "tenant?"] if more else found
    given = next((kw.value for kw in node.keywords if kw.arg == "labelnames"), None)
    given = given or (node.args[2] if len(node.args) > 2 else None)
    if isinstance(given, ast.Name):
        given = names.get(given.id)
    items = given.elts if isinstance(given, ast.Tuple) else []
    labels = [str(item.value) for item in items if isinstance(item, ast.Constant)]
    return [*labels, "tenant?"] if any(keyword.arg == "by_tenant" for keyword in node.keywords) else labels


def observed() -> dict[str, list[str]]:
    """Return the names of every kind but metrics that a run leaves which uses every part."""
    from telemetry_run import run

    return run()


def today() -> dict[str, dict[str, Any]]:
    """Return what there is, by kind and name; a metric has its labels."""
    names = observed()
    events, fields = log_lines()
    names |= {"log_events": sorted(events), "log_fields": sorted({*names["log_fields"], *fields})}
    shown: dict[str, dict[str, Any]] = {kind: dict.fromkeys(names[kind], None) for kind in KINDS[1:]}
    return {"metrics": dict(metrics()), **shown}


def problems(declared: Mapping[str, Any], there: Mapping[str, Mapping[str, Any]]) -> Iterator[str]:
    """Yield each difference between what is declared and what is there."""
    deprecated = declared.get("deprecated") or {}
    for kind in KINDS:
        known: Mapping[str, Any] = declared.get(kind) or {}
        for name, labels in there[kind].items():
            if name not in known:
                yield f"{kind}: {name} is new: run `python tools/telemetry.py --write`"
            elif labels is not None and known[name]["labels"] != labels:
                yield f"{kind}: {name} has other labels than declared: that is a breaking change"
        for name in known:
            if name not in there[kind]:
                yield f"{kind}: {name} is gone: move it under `deprecated`, with `replaced_by`"
    for name, entry in deprecated.items():
        if not entry.get("replaced_by") or not entry.get("since"):
            yield f"deprecated: {name} needs `replaced_by` and `since`"


def written(declared: Mapping[str, Any], there: Mapping[str, Mapping[str, Any]]) -> str:
    """Return the page with what is new added; nothing that is declared is taken away."""
    since = version("healthobs")
    lines = [HEAD]
    for kind in KINDS:
        known: Mapping[str, Any] = declared.get(kind) or {}
        lines.append(f"{kind}:")
        for name in sorted({*known, *there[kind]}):
            entry = known.get(name) or {"stability": "stable", "since": since}
            if kind == "metrics" and "labels" not in entry:
                entry = {"labels": there[kind][name], **entry}
            lines.append(
                f"  {name}: {yaml.safe_dump(entry, default_flow_style=True, sort_keys=False, width=1000).strip()}"
            )
    kept = yaml.safe_dump({"deprecated": declared.get("deprecated") or {}}, sort_keys=False)
    return "\n".join(lines) + "\n" + kept


def main() -> int:
    """Compare, or write."""
    declared = yaml.safe_load(PAGE.read_text(encoding="utf-8")) if PAGE.exists() else {}
    there = today()
    if "--write" in sys.argv:
        PAGE.write_text(written(declared, there), encoding="utf-8")
        return 0
    found = list(problems(declared, there))
    for problem in found:
        print(problem, file=sys.stderr)
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
