"""The dependency page against the metadata, and the size of the core."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs/explanation/dependencies.md"


def direct_dependencies() -> set[str]:
    """Return every runtime dependency that the two distributions declare, extras included."""
    library = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    services = tomllib.loads((ROOT / "reference_services/pyproject.toml").read_text())["project"]
    lines = [*library["dependencies"], *services["dependencies"]]
    lines += [line for extra in library["optional-dependencies"].values() for line in extra]
    return {canonicalize_name(Requirement(line).name) for line in lines} - {"healthobs"}


def closure(name: str, seen: set[str]) -> set[str]:
    """Return what installing `name` (without extras) brings on this interpreter, itself included."""
    name = canonicalize_name(name)
    if name in seen:
        return seen
    seen.add(name)
    for line in requires(name) or ():
        requirement = Requirement(line)
        if requirement.marker is None or requirement.marker.evaluate({"extra": ""}):
            closure(requirement.name, seen)
    return seen


class TestDependencies:
    """`docs/explanation/dependencies.md`."""

    def test_every_direct_dependency_is_explained(self) -> None:
        """Each declared runtime dependency has a row, and no row names one that is not declared."""
        rows = re.findall(r"^\|(?: `[\w-]+` \|)? ([a-z][a-z0-9-]+) \|", PAGE.read_text(), re.MULTILINE)
        assert set(rows) == direct_dependencies()

    def test_the_core_installs_at_most_eight_packages(self) -> None:
        """`pip install healthobs` brings at most eight packages besides healthobs itself."""
        core = closure("healthobs", set()) - {"healthobs"}
        assert len(core) <= 8, sorted(core)

    def test_an_unknown_package_is_noticed(self) -> None:
        """The closure is computed from what is installed: a missing package is an error, not an empty set."""
        with pytest.raises(PackageNotFoundError):
            closure("no-such-distribution", set())
