"""Plant small faults in a module, one at a time, and see whether the tests that guard it notice.

``python tools/mutate.py src/healthobs/redaction --tests tests/test_redaction*.py --sample 200 --seed 1``

Each mutant runs in a forked process in which the module is imported from a changed syntax tree; no file is
written, so several runs can share one working tree. The score is the share of mutants that made tests fail, twice:
a test that fails now and then notices nothing, nor does one that runs out of time. With ``--least`` the exit code is
1 below it. What survives is printed, to be killed by a test or explained in ``docs/explanation/mutation.md``.

Limits: processes that a test starts import the real module; annotations, types, docstrings, texts of exceptions, help
texts of arguments and lines marked ``# no mutate`` are left alone. Needs `os.fork`.
"""

from __future__ import annotations

import argparse
import ast
import copy
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import random
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

#: As many of the tests that run a line are tried before all are.
NEAREST = 40
#: Arguments that only `--help` shows, and what takes them.
HELP = ("help", "description", "metavar")
ARGPARSE = ("add_argument", "add_parser", "ArgumentParser")
ROOTS = ("src", "reference_services/src", ".")
OTHER: dict[type[ast.AST], type[ast.AST]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.In: ast.NotIn, ast.NotIn: ast.In, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.And: ast.Or, ast.Or: ast.And,
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv, ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
    ast.Mod: ast.Mult, ast.BitOr: ast.BitAnd, ast.BitAnd: ast.BitOr, ast.Break: ast.Continue,
    ast.Continue: ast.Break,
}  # fmt: skip


class Mutant(NamedTuple):
    """One fault: the node in walking order, and which of the changes that fit it."""

    path: Path
    line: int
    node: int
    change: int
    text: str


def changes(node: ast.AST) -> list[tuple[str, ast.AST | None]]:
    """Return what can be made of `node`, each with a description; None removes the node from its block."""
    made: list[tuple[str, ast.AST | None]] = []
    if isinstance(node, ast.Compare):
        for place, operator in enumerate(node.ops):
            other = copy.deepcopy(node)
            other.ops[place] = OTHER[type(operator)]()  # type: ignore[call-overload]
            made.append((f"compare {ast.unparse(node)} -> {ast.unparse(other)}", other))
    elif isinstance(node, ast.BoolOp | ast.BinOp | ast.AugAssign) and type(node.op) in OTHER:
        other = copy.deepcopy(node)
        other.op = OTHER[type(node.op)]()  # type: ignore[assignment]
        made.append((f"operator {ast.unparse(node)} -> {ast.unparse(other)}", other))
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        made.append((f"drop not: {ast.unparse(node)}", node.operand))
    elif isinstance(node, ast.Constant):
        made += [(f"constant {node.value!r} -> {value!r}", ast.Constant(value)) for value in constants(node)]
    elif isinstance(node, ast.Return) and node.value is not None and not is_none(node.value):
        made.append((f"{ast.unparse(node)} -> return None", ast.Return(ast.Constant(None))))
    elif isinstance(node, ast.Break | ast.Continue):
        made.append((f"{ast.unparse(node)} -> the other", OTHER[type(node)]()))
    elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Call | ast.Await):
        made.append((f"remove {ast.unparse(node)}", None))
    if isinstance(node, ast.If | ast.While | ast.IfExp) and not isinstance(
        node.test, ast.Compare | ast.UnaryOp
    ):
        other = copy.deepcopy(node)
        other.test = ast.UnaryOp(ast.Not(), other.test)
        made.append((f"negate {ast.unparse(node.test)}", other))
    return [(text, change if change is None else ast.copy_location(change, node)) for text, change in made]


def constants(node: ast.Constant) -> list[object]:
    """Return the values to put in the place of a constant."""
    value = node.value
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, int | float):
        return [value + 1]
    return [f"XX{value}XX"] if isinstance(value, str) and value else []


def is_none(node: ast.AST) -> bool:
    """Return whether `node` is the constant None."""
    return isinstance(node, ast.Constant) and node.value is None


def children(node: ast.AST) -> Iterator[tuple[str, ast.AST]]:
    """Yield what of `node` runs and may be changed: no annotation, docstring, decorator or text of an error or argument."""
    for name, value in ast.iter_fields(node):
        if name in ("annotation", "returns", "decorator_list", "type_params"):
            continue
        items: list[Any] = value if isinstance(value, list) else [value]
        for item in items:
            if isinstance(item, ast.AST) and not _left_alone(node, item):
                yield name, item


def _left_alone(parent: ast.AST, node: ast.AST) -> bool:
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
        return True  # a docstring
    if isinstance(node, ast.Raise | ast.Import | ast.ImportFrom | ast.Assert):
        return True
    if isinstance(node, ast.If) and ast.unparse(node.test) in ("TYPE_CHECKING", "__name__ == '__main__'"):
        return True
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) in ("__all__", "__slots__"):
        return True
    if isinstance(node, ast.ClassDef) and "Protocol" in map(ast.unparse, node.bases):
        return True
    if isinstance(node, ast.FunctionDef) and "overload" in map(ast.unparse, node.decorator_list):
        return True
    if isinstance(node, ast.Subscript) and ast.unparse(node.value) in ("Literal", "Callable"):
        return True  # the name of a type
    if isinstance(node, ast.keyword) and node.arg in HELP and ast.unparse(parent.func).endswith(ARGPARSE):  # type: ignore[attr-defined]
        return True
    # The type in `cast("Type", value)` is for type checkers.
    return isinstance(parent, ast.Call) and ast.unparse(parent.func) == "cast" and node is parent.args[0]


def walk(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST, str]]:
    """Yield every node that may be changed with its parent and field, always in the same order."""
    for name, node in children(tree):
        yield node, tree, name
        yield from walk(node)


def mutants(path: Path) -> list[Mutant]:
    """Return every mutant of the module at `path`."""
    source = path.read_text(encoding="utf-8")
    lines = source.splitlines()
    found: list[Mutant] = []
    for number, (node, _, _) in enumerate(walk(ast.parse(source))):
        line: int = getattr(node, "lineno", 0)
        if line and "# no mutate" not in lines[line - 1]:
            found += [Mutant(path, line, number, at, text) for at, (text, _) in enumerate(changes(node))]
    return found


def mutated(mutant: Mutant) -> ast.Module:
    """Return the syntax tree of the module with the one fault in it."""
    tree = ast.parse(mutant.path.read_text(encoding="utf-8"))
    node, parent, field = list(walk(tree))[mutant.node]
    change = changes(node)[mutant.change][1] or ast.copy_location(ast.Pass(), node)
    value = getattr(parent, field)
    if isinstance(value, list):
        value[next(place for place, item in enumerate(value) if item is node)] = change
    else:
        setattr(parent, field, change)
    return ast.fix_missing_locations(tree)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.InspectLoader):
    """Imports one module from a changed syntax tree."""

    def __init__(self, name: str, path: Path, tree: ast.Module) -> None:
        self._name, self._path = name, path
        self._code = compile(tree, str(path), "exec")

    def find_spec(self, fullname: str, path: Any = None, target: Any = None) -> Any:  # noqa: ARG002
        """Claim the module."""
        if fullname != self._name:
            return None
        package = self._path.name == "__init__.py"
        spec = importlib.util.spec_from_loader(fullname, self, origin=str(self._path), is_package=package)
        if spec is not None:
            spec.has_location = True
            if package:
                spec.submodule_search_locations = [str(self._path.parent)]
        return spec

    def get_code(self, fullname: str) -> Any:  # noqa: ARG002
        """Return the changed code."""
        return self._code

    def get_source(self, fullname: str) -> str:  # noqa: ARG002
        """Return the unchanged text, for tracebacks."""
        return self._path.read_text(encoding="utf-8")


def module_name(path: Path) -> str:
    """Return the dotted name of the module at `path`."""
    absolute = path.resolve()
    for root in ROOTS:
        with suppress(ValueError):
            parts = absolute.relative_to(Path(root).resolve()).with_suffix("").parts
            return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
    raise SystemExit(f"{path} is in none of {', '.join(ROOTS)}")


class Recorder:
    """A plugin of pytest that records which tests run which lines of the files."""

    def __init__(self, files: list[Path]) -> None:
        import coverage

        self._files = files
        self._coverage = coverage.Coverage(
            data_file=None, config_file=False, include=[str(file.resolve()) for file in files]
        )
        self._coverage.start()

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Note what runs from here on, fixtures too, for this test."""
        self._coverage.switch_context(nodeid)

    def lines(self) -> dict[str, dict[int, list[str]]]:
        """Return the tests of each line of each file; those that first ran at an import have none."""
        self._coverage.stop()
        data = self._coverage.get_data()
        return {
            str(file): {
                line: [test for test in tests if test]
                for line, tests in data.contexts_by_lineno(str(file.resolve())).items()
            }
            for file in self._files
        }


def run_tests(tests: list[str], finder: Finder | None) -> int:
    """Run the tests in this process and return pytest's status."""
    if finder is not None:
        sys.meta_path.insert(0, finder)
    return pytest_main(tests)


def run_recorded(tests: list[str], files: list[Path], told: Path) -> int:
    """Run the tests on the code as it is; write what they imported, and the lines of the files that each ran."""
    recorder = Recorder(files)
    status = pytest_main(tests, recorder)
    names = [name for name in sys.modules if not name.startswith("_")]
    told.write_text(json.dumps({"names": names, "lines": recorder.lines()}), encoding="utf-8")
    return status


def pytest_main(tests: list[str], *plugins: object) -> int:
    """Run pytest until the first failure, with property tests that repeat."""
    import hypothesis
    import pytest

    hypothesis.settings.register_profile(
        "mutate", database=None, derandomize=True, deadline=None, max_examples=50,
        phases=(hypothesis.Phase.explicit, hypothesis.Phase.generate),
    )  # fmt: skip
    hypothesis.settings.load_profile("mutate")
    quiet = ["-x", "-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning"]
    return int(pytest.main([*quiet, *tests], plugins=[*plugins]))


def in_fork(action: Callable[[], int], seconds: float, *, quiet: bool = True) -> int | None:
    """Run `action` in a forked process and return its status; None when it took longer than `seconds`."""
    child = os.fork()
    if not child:
        status = 3
        try:
            os.setpgid(0, 0)
            if quiet:
                nowhere = os.open(os.devnull, os.O_WRONLY)
                os.dup2(nowhere, 1)
                os.dup2(nowhere, 2)
            status = action()
        except BaseException:  # noqa: BLE001  # a fork must not run on into its parent's code
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            os._exit(status)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.02)
    with suppress(ProcessLookupError):
        os.killpg(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


def preload(names: Iterable[str], own: set[str]) -> None:
    """Import what the tests need beside the project itself, once for all mutants."""
    for name in names:
        if name.partition(".")[0] not in own and importlib.util.find_spec(name.partition(".")[0]) is not None:
            with suppress(Exception):
                importlib.import_module(name)


def main() -> int:
    """Run the chosen mutants and print the score."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("modules", nargs="+", type=Path, help="files or folders")
    parser.add_argument("--tests", nargs="+", required=True, help="test files, or pytest arguments")
    parser.add_argument("--sample", type=int, default=0, help="how many mutants, chosen at random; 0: all")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument(
        "--least", type=float, default=0.0, help="lowest score in per cent that is no failure"
    )
    parser.add_argument("--jobs", type=int, default=1, help="so many mutants at once; tests mostly wait")
    arguments = parser.parse_args()

    files = [
        file
        for path in arguments.modules
        for file in (sorted(path.rglob("*.py")) if path.is_dir() else [path])
    ]
    every = [mutant for file in files for mutant in mutants(file)]
    chosen = every
    if 0 < arguments.sample < len(every):
        chosen = sorted(random.Random(arguments.seed).sample(every, arguments.sample))
    own = {module_name(file).partition(".")[0] for file in files} | {
        "tests",
        "conftest",
        "reference_services",
    }
    with tempfile.NamedTemporaryFile() as told:
        began = time.monotonic()
        if in_fork(lambda: run_recorded(arguments.tests, files, Path(told.name)), 900, quiet=False) != 0:
            raise SystemExit("the tests do not pass as they are: nothing to measure")
        limit = 10 + 4 * (time.monotonic() - began)
        known = json.loads(Path(told.name).read_text(encoding="utf-8"))
    preload([name for name in known["names"] if not name.startswith("test_")], own)
    lines: dict[str, dict[str, list[str]]] = known["lines"]

    def noticed(part: int) -> int:
        return sum(
            killed(mutant, lines[str(mutant.path)].get(str(mutant.line), []), arguments.tests, limit)
            for mutant in chosen[part :: arguments.jobs]
        )

    found = sum(counted(noticed, arguments.jobs))
    score = 100 * found / max(1, len(chosen))
    seed = f", seed {arguments.seed}" if len(chosen) < len(every) else ""
    print(f"{len(chosen)} of {len(every)} mutants{seed}: {found} killed, score {score:.1f} %")
    return int(score < arguments.least)


def counted(count: Callable[[int], int], jobs: int) -> list[int]:
    """Return what `count` gives for each of so many parts, all counted at once, each in a process of its own."""
    pipes: list[int] = []
    for part in range(jobs):
        reader, writer = os.pipe()
        if not os.fork():
            os.write(writer, str(count(part)).encode())
            os._exit(0)
        os.close(writer)
        pipes.append(reader)
    return [int(os.fdopen(pipe).read()) for pipe in pipes]  # a part that broke off is no number: an error


def killed(mutant: Mutant, nearest: list[str], tests: list[str], limit: float) -> bool:
    """Return whether tests fail, those that run the line tried first; print the mutant when none does."""
    finder = Finder(module_name(mutant.path), mutant.path.resolve(), mutated(mutant))
    for tried in (nearest[:NEAREST], tests):
        fail = _fail(tried, finder, limit) if tried else False
        if fail:
            return True
        if fail is None:
            return _told("timed out", mutant)
    return _told("survived ", mutant)


def _fail(tests: list[str], finder: Finder, limit: float) -> bool | None:
    """Return whether the tests fail twice in a row; None when they take longer than `limit` seconds."""
    for _ in range(2):
        status = in_fork(lambda: run_tests(tests, finder), limit)
        if status == 5 or (
            status == 4 and "::" in tests[0]
        ):  # no test has run: the mutant renamed a parameter
            return False
        if not status:
            return None if status is None else False
    return True


def _told(fate: str, mutant: Mutant) -> bool:
    print(f"{fate} {mutant.path}:{mutant.line}  {' '.join(mutant.text.split())[:150]}", flush=True)
    return False


if __name__ == "__main__":
    sys.exit(main())
