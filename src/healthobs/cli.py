"""The command `healthobs`: a door to the commands of the library and of whoever plugs one in.

A distribution adds a command by an entry point of the group ``healthobs.commands`` whose object takes the
remaining arguments as a list and returns the exit status. Only the chosen command is imported.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points, version
from typing import cast

GROUP = "healthobs.commands"
USAGE_ERROR = 2
#: A command of another distribution of the project.
_DEMO = "demo"
_NO_DEMO = "demo comes with the reference services; install ./reference_services of the project"
#: Exit status when nobody reads the output any more, as a shell shows a tool that SIGPIPE ended.
BROKEN_PIPE = 141
_Command = Callable[[list[str]], int | None]


#: Commands of the library itself, and where their `main` is; a plug-in cannot take their names.
_OWN = {
    "audit": ("verify, prove and export an audit trail", "healthobs.audit.command"),
    "doctor": ("examine how an application is set up", "healthobs.doctor"),
    "explain": ("print what log files tell of one trace or failure", "healthobs.explain"),
    "compliance": (
        "states of controls, OSCAL export, signed attestations and waivers",
        "healthobs.compliance.command",
    ),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; default the process's own.

    Returns:
        The command's exit status; 2 when there is no such command or it cannot be loaded.

    Example:
        >>> main(["--version"])
        healthobs 0.1.0
        0
    """
    try:
        status = _run(sys.argv[1:] if argv is None else list(argv))
        sys.stdout.flush()
    except BrokenPipeError:  # such as `| head`: nobody reads on
        with contextlib.suppress(OSError, ValueError):  # a standard output that is no file
            # What is still buffered goes there
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return BROKEN_PIPE
    return status


def _run(argv: list[str]) -> int:
    plugins = {point.name: point for point in entry_points(group=GROUP) if point.name not in _OWN}
    parser = _parser(plugins)
    chosen = parser.parse_args(argv)
    if chosen.version:
        print(f"healthobs {version('healthobs')}")  # noqa: T201
        return 0
    if chosen.command is None:
        parser.print_help()
        return USAGE_ERROR
    if chosen.command in _OWN:
        command: _Command = import_module(_OWN[chosen.command][1]).main
        return command(chosen.arguments) or 0
    return _run_plugin(chosen.command, plugins.get(chosen.command), chosen.arguments)


def _parser(plugins: dict[str, EntryPoint]) -> argparse.ArgumentParser:
    lines = [f"  {name:<12} {text}" for name, (text, _) in _OWN.items()]
    lines += [f"  {name:<12} from {_origin(point)}" for name, point in sorted(plugins.items())]
    parser = argparse.ArgumentParser(
        prog="healthobs",
        description="Observability and compliance for healthcare services.",
        epilog="commands:\n" + "\n".join(lines),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="store_true", help="print the version and exit")
    parser.add_argument("command", nargs="?", help="one of the commands below")
    parser.add_argument("arguments", nargs=argparse.REMAINDER, help="passed to the command; try --help there")
    return parser


def _origin(point: EntryPoint) -> str:
    return point.dist.name if point.dist is not None else point.value


def _run_plugin(name: str, point: EntryPoint | None, arguments: list[str]) -> int:
    if point is None and name == _DEMO:
        if {"-h", "--help"}.intersection(arguments):
            print(f"healthobs demo: runs the reference services against each other. {_NO_DEMO}")  # noqa: T201
            return 0
        _complain(_NO_DEMO)
        return USAGE_ERROR
    if point is None:
        _complain("there is no such command; healthobs --help lists them")
        return USAGE_ERROR
    try:
        command = cast("_Command", point.load())
    except (ImportError, AttributeError) as exc:
        _complain(
            f"the command {point.name} of {_origin(point)} cannot be loaded ({type(exc).__name__}: {exc})"
        )
        return USAGE_ERROR
    return command(arguments) or 0


def _complain(what: str) -> None:
    print(f"healthobs: {what}", file=sys.stderr)  # noqa: T201
