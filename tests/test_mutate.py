"""`tools/mutate.py`: faults that a test notices count, the others are named."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

TOOL = Path(__file__).resolve().parent.parent / "tools" / "mutate.py"
MODULE = """def positive(number: int) -> bool:
    return number > 0
"""
TEST = """from pathlib import Path
from little import positive
def test_positive():
    assert (positive(1), positive(-1)) == (True, False)
def test_fails_every_other_time():
    positive(1)
    mark = Path("mark")
    if mark.exists():
        mark.unlink()
        raise AssertionError
    mark.touch()
"""


NAMED = """def number() -> int:
    return 3
"""
NAMED_TEST = """import pytest
from named import number
@pytest.mark.parametrize("number_there", [number()])
def test_is_one(number_there):
    assert isinstance(number(), int)
"""
HELPED = """import argparse
def parser() -> argparse.ArgumentParser:
    made = argparse.ArgumentParser(description="Counts.")
    made.add_argument("--number", default="1", metavar="N", help="how many")
    return made
"""
HELPED_TEST = """from helped import parser
def test_number():
    assert parser().parse_args([]).number == "1"
"""


def run(folder: Path, module: str, code: str, test: str) -> subprocess.CompletedProcess[str]:
    (folder / "src").mkdir()
    (folder / "src" / f"{module}.py").write_text(code, encoding="utf-8")
    (folder / f"test_{module}.py").write_text(test, encoding="utf-8")
    (folder / "pytest.ini").write_text("[pytest]\npythonpath = src\n", encoding="utf-8")
    return subprocess.run(
        [sys.executable, TOOL, f"src/{module}.py", "--tests", f"test_{module}.py", "--least", "99"],
        cwd=folder, capture_output=True, text=True, check=False,
    )  # fmt: skip


def test_tells_killed_from_surviving(tmp_path: Path) -> None:
    """A change that a test notices is killed; one that only a test of chance fails for is named, line and all."""
    done = run(tmp_path, "little", MODULE, TEST)
    survivors = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("survived")]
    assert survivors == ["src/little.py:2"], done.stdout + done.stderr
    assert "3 of 3 mutants: 2 killed, score 66.7 %" in done.stdout
    assert done.returncode == 1


def test_test_that_is_not_there_kills_nothing(tmp_path: Path) -> None:
    """A change by which the nearest test has another name, so that pytest finds none, is not noticed by that."""
    done = run(tmp_path, "named", NAMED, NAMED_TEST)
    survivors = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("survived")]
    assert set(survivors) == {"src/named.py:2"}, done.stdout + done.stderr


def test_help_texts_are_left_alone(tmp_path: Path) -> None:
    """What only `--help` shows is no behaviour; the name and the default of an argument are."""
    done = run(tmp_path, "helped", HELPED, HELPED_TEST)
    assert "4 of 4 mutants: 4 killed" in done.stdout, done.stdout + done.stderr
