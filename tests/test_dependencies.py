"""The dependency page against the metadata, and the size of the core."""

from __future__ import annotations

import re
import sys
import tomllib
from importlib import import_module
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


class TestLocks:
    """`requirements/*.lock`."""

    @pytest.mark.parametrize("name", ["run", "tests", "dev", "bench", "standards"])
    def test_hash_pinned_and_without_an_index(self, name: str) -> None:
        """Every package is pinned with hashes; no index, no address, none of our own distributions is named."""
        text = (ROOT / "requirements" / f"{name}.lock").read_text()
        requirements = [block for block in re.split(r"\n(?=[a-zA-Z])", text) if block.strip()]
        assert len(requirements) > 20
        unpinned = [
            block.split()[0] for block in requirements if "==" not in block or "--hash=sha256:" not in block
        ]
        assert unpinned == []
        assert (
            re.findall(r"://|--index|--find-links|file:|^-e|^healthobs|^reference", text, re.MULTILINE) == []
        )

    @pytest.mark.parametrize("name", ["run", "tests", "dev", "bench"])
    def test_the_build_backend_is_in_it(self, name: str) -> None:
        """Nothing is fetched unpinned while our distributions are built."""
        assert "\nhatchling==" in (ROOT / "requirements" / f"{name}.lock").read_text()

    def test_smaller_locks_agree_with_the_largest(self) -> None:
        """What the demo and the tests run with is what everything else was checked with."""

        def pins(name: str) -> set[str]:
            text = (ROOT / "requirements" / f"{name}.lock").read_text()
            return set(re.findall(r"^([a-z0-9-]+==[^ \\]+)", text, re.MULTILINE))

        assert pins("run") <= pins("tests") <= pins("dev")
        assert not pins("standards") & pins("tests")


class TestExtras:
    """A module of the library whose framework is not installed."""

    @pytest.mark.parametrize("name", ["flask", "django", "celery"])
    def test_the_extra_is_named(self, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
        """The error says what to install, and is the one that an import gives."""

        class Absent:
            def find_spec(self, wanted: str, *_: object) -> None:
                if wanted == name:
                    raise ModuleNotFoundError(f"No module named {name!r}", name=name)

        for module in [each for each in sys.modules if each == name or each.startswith(f"{name}.")]:
            monkeypatch.delitem(sys.modules, module)
        monkeypatch.setattr(sys, "meta_path", [Absent(), *sys.meta_path])
        monkeypatch.delitem(sys.modules, f"healthobs.{name}", raising=False)
        with pytest.raises(
            ModuleNotFoundError, match=rf"is not installed; pip install healthobs\[{name}\]"
        ) as caught:
            import_module(f"healthobs.{name}")
        assert caught.value.name == name

    @pytest.mark.parametrize(
        ("name", "part"), [("django", "django.conf"), ("celery", "celery.app"), ("flask", "flask")]
    )
    def test_what_the_framework_lacks_is_its_own(
        self, name: str, part: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Where the framework is there and something that it needs is not, its own error is what is seen."""

        class Lacking:
            def find_spec(self, wanted: str, *_: object) -> None:
                if wanted == part:
                    raise ModuleNotFoundError("No module named 'elsewhere'", name="elsewhere")

        monkeypatch.delitem(sys.modules, part, raising=False)
        monkeypatch.setattr(sys, "meta_path", [Lacking(), *sys.meta_path])
        monkeypatch.delitem(sys.modules, f"healthobs.{name}", raising=False)
        with pytest.raises(ModuleNotFoundError) as caught:
            import_module(f"healthobs.{name}")
        assert (caught.value.name, "healthobs" in str(caught.value)) == ("elsewhere", False)
