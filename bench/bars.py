"""What a bench holds: exact counts always, ratios of times only where asked, for they move with the machine.

A bar on counts must hold everywhere. One on times is far from what a quiet machine shows, and another program on the same
cores can still break it: it gates under ``--times`` alone, and without is reported as missed.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterable
from typing import NamedTuple


class Bar(NamedTuple):
    """A bound, and whether what was measured keeps it."""

    holds: bool
    line: str
    timed: bool = False


def at_most(what: str, measured: float, most: float, *, timed: bool = False) -> Bar:
    """Return the bar that `measured` is at most `most`."""
    return Bar(measured <= most, f"{what}: {measured:.4g}, at most {most:.4g}", timed)


def at_least(what: str, measured: float, least: float, *, timed: bool = False) -> Bar:
    """Return the bar that `measured` is at least `least`."""
    return Bar(measured >= least, f"{what}: {measured:.4g}, at least {least:.4g}", timed)


def verdict(bars: Iterable[Bar], arguments: list[str]) -> int:
    """Print the bars that do not hold, and how many do.

    Args:
        bars: All that were measured.
        arguments: The command line's; with ``--times`` the bars on times gate too.

    Returns:
        The exit status: 1 where a bar that gates does not hold.
    """
    parser = argparse.ArgumentParser(prog="python -m bench")
    parser.add_argument("--times", action="store_true", help="bars on times gate too: for a quiet machine")
    times = parser.parse_args(arguments).times
    all_bars = list(bars)
    missed = [bar for bar in all_bars if not bar.holds]
    failed = [bar for bar in missed if times or not bar.timed]
    for bar in missed:
        print(f"{'FAIL' if bar in failed else 'missed, a time'}  {bar.line}")
    print(f"{len(all_bars)} bars, {len(missed) - len(failed)} on times missed, {len(failed)} failed")
    return 1 if failed else 0
