"""Runs sabotages and prints the matrix of sabotages and controls: the diagonal fails, what else changes is declared."""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from healthobs.compliance import State
from reference_services.sabotage.plans import SABOTAGES, Sabotage
from reference_services.sabotage.world import World
from reference_services.services import SERVICES

_SIGNS: Mapping[State, str] = {
    "pass": "p", "fail": "f", "partial": "P", "not-applicable": "n", "unknown": "u", "attested": "a",
}  # fmt: skip


class Row(NamedTuple):
    """What one sabotage did: the states before and after, of the controls that have a probe."""

    sabotage: Sabotage
    before: Mapping[str, State]
    after: Mapping[str, State]

    @property
    def changed(self) -> dict[str, State]:
        """The controls whose state is another one."""
        return {name: state for name, state in self.after.items() if self.before.get(name) != state}

    @property
    def expected(self) -> dict[str, State]:
        """The changes that were declared."""
        return {**self.sabotage.also, self.sabotage.control: "fail"}


def observed(service: str) -> Mapping[str, State]:
    """Return the states of a service that nobody breaks, after it has worked.

    Args:
        service: Its name.
    """
    with tempfile.TemporaryDirectory() as folder, World(Path(folder), service) as world:
        world.fill()
        world.engine.run()
        return _probed(world)


def _probed(world: World) -> dict[str, State]:
    states = world.engine.run()
    return {name: states[name] for name, made in world.engine.controls.items() if made.probe is not None}


def run(sabotage: Sabotage, before: Mapping[str, State]) -> Row:
    """Break a new service and run its controls.

    Args:
        sabotage: What to do.
        before: The states without it.
    """
    with (
        tempfile.TemporaryDirectory() as folder,
        World(Path(folder), sabotage.service, environ=sabotage.environ, settings=sabotage.settings) as world,
    ):
        world.fill()
        world.engine.run()
        sabotage.act(world)
        return Row(sabotage, before, _probed(world))


def undeclared(row: Row) -> dict[str, State]:
    """Return each cell that is not as declared: a change that was not, and a declared one that did not come."""
    changed, expected = row.changed, row.expected
    return {name: row.after[name] for name in row.after if changed.get(name) != expected.get(name)}


def without_sabotage(controls: Iterable[str], sabotages: Iterable[Sabotage]) -> set[str]:
    """Return the controls that no sabotage is meant to make fail."""
    return set(controls) - {sabotage.control for sabotage in sabotages}


def table(rows: Sequence[Row]) -> str:
    """Return the matrix: ``F`` the diagonal, a letter each declared change, ``.`` unchanged, ``!`` not as declared."""
    columns = list(dict.fromkeys(name for row in rows for name in row.after))
    width = max((len(row.sabotage.name) for row in rows), default=0)
    lines = [f"{number:>2} = {name}" for number, name in enumerate(columns, 1)]
    lines.append(" " * width + "  " + " ".join(f"{number:>2}" for number in range(1, len(columns) + 1)))
    for row in rows:
        wrong = undeclared(row)
        cells = " ".join(f"{_cell(row, name, wrong):>2}" for name in columns)
        lines.append(f"{row.sabotage.name:<{width}}  {cells}  on the {row.sabotage.on}")
    lines.append(
        "F must fail and does; f u p P n a: declared change to that state; . unchanged; ! not as declared"
    )
    return "\n".join(lines)


def _cell(row: Row, name: str, wrong: Mapping[str, State]) -> str:
    if name not in row.after:
        return ""
    if name in wrong:
        return "!"
    if name == row.sabotage.control:
        return "F"
    return _SIGNS[row.after[name]] if name in row.changed else "."


def main(argv: Sequence[str] = ()) -> int:
    """Run every sabotage and print the matrix.

    Args:
        argv: Arguments after ``healthobs compliance sabotage``.

    Returns:
        0 when every cell is as declared and every control has a sabotage, else 1.
    """
    parser = argparse.ArgumentParser(prog="healthobs compliance sabotage", description=main.__doc__)
    parser.add_argument("--only", metavar="CONTROL", help="break only what this control looks at")
    only: str | None = parser.parse_args(list(argv)).only
    before = {service: observed(service) for service in SERVICES}
    rows = [
        run(sabotage, before[sabotage.service]) for sabotage in SABOTAGES if only in (None, sabotage.control)
    ]
    print(table(rows))  # noqa: T201
    wrong = [
        f"{row.sabotage.name}: {name} is {state}" for row in rows for name, state in undeclared(row).items()
    ]
    wrong += [
        f"{service}: {name} fails although nobody broke it"
        for service, states in before.items()
        for name, state in states.items()
        if state == "fail" and not (name == "H-514" and "patient_id" in SERVICES[service].info.telemetry_keys)
    ]
    bare = without_sabotage((name for states in before.values() for name in states), SABOTAGES)
    wrong += [f"{name} has no sabotage" for name in sorted(bare)]
    for line in wrong:
        print(line, file=sys.stderr)  # noqa: T201
    return 1 if wrong or not rows else 0
