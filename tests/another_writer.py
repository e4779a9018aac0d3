"""What another process meets that begins to write to a database."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

OTHER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1], timeout=0, isolation_level=None)
try:
    connection.execute("BEGIN IMMEDIATE")
except sqlite3.OperationalError as exc:
    print(exc)
else:
    print("begun")
"""


def another_writer(path: Path) -> str:
    """Return what another process meets that begins to write."""
    done = subprocess.run(
        [sys.executable, "-c", OTHER, str(path)], capture_output=True, text=True, check=True
    )
    return done.stdout.strip()
