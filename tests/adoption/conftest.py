"""Existing applications of other people's making; they run where their libraries are (`nox -s peers`)."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
