"""`python -m healthobs` is the command `healthobs`."""

from __future__ import annotations

import sys

from healthobs.cli import main

if __name__ == "__main__":
    sys.exit(main())
