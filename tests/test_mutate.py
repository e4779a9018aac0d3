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


def test_tells_killed_from_surviving(tmp_path: Path) -> None:
    """A change that a test notices is killed; one that only a test of chance fails for is named, line and all."""
    (tmp_path / "src").mkdir()
    (tmp_path / "src" / "little.py").write_text(MODULE, encoding="utf-8")
    (tmp_path / "test_little.py").write_text(TEST, encoding="utf-8")
    (tmp_path / "pytest.ini").write_text("[pytest]\npythonpath = src\n", encoding="utf-8")
    done = subprocess.run(
        [sys.executable, TOOL, "src/little.py", "--tests", "test_little.py", "--least", "99"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    survivors = [line.split()[1] for line in done.stdout.splitlines() if line.startswith("survived")]
    assert survivors == ["src/little.py:2"], done.stdout + done.stderr
    assert "3 of 3 mutants: 2 killed, score 66.7 %" in done.stdout
    assert done.returncode == 1
