"""Whose code logs: the application's, or a library's.

A library is what is installed: it lies in `site-packages`, or in a folder beside the metadata of its distribution
(``pip install --target``); Python's own modules are libraries, too. The package that makes the `Observability` is the
application wherever it lies. A record is a library's when its logger has the name of an installed package, or when its
place in the code lies in a library; each pair of the two is looked at once.

Limits: of an application that is installed in several packages, those that do not make the `Observability` are libraries.
What lies among the application's own files without metadata, such as a copied module, is the application.
"""

from __future__ import annotations

import re
import sys
import sysconfig
from functools import lru_cache
from inspect import currentframe
from os import sep
from pathlib import Path
from types import FrameType

_SITE = r"[/\\](?:site|dist)-packages[/\\]"
_INSTALLED = re.compile(_SITE)
#: What hands on records of others: whose one is tells its logger alone.
_HANDS_ON = re.compile(_SITE + r"(?:structlog|loguru)[/\\]")
_PYTHONS = ("<frozen ", *(f"{Path(sysconfig.get_path(name))}{sep}" for name in ("stdlib", "platstdlib")))
#: The first part of each path that a distribution has recorded.
_RECORDED = re.compile(r'^"?([^/\\".,]+)', re.MULTILINE)
_WARNING = ("healthobs", "logging", "warnings", "_py_warnings")
#: Where installed packages of the application begin.
_applications: set[str] = set()


def application_is_here() -> None:
    """Remember the package whose code called healthobs as the application's."""
    frame = _caller(("healthobs",))
    home = "" if frame is None else _home(_module(frame))
    if _is_installed(home):
        _applications.add(home)
        is_library.cache_clear()


def forget() -> None:
    """Forget what was found out: a test may install what was not there."""
    _applications.clear()
    for known in (is_library, _is_installed, _distributed):
        known.cache_clear()


@lru_cache(maxsize=4096)
def is_library(name: str, path: str) -> bool:
    """Return whether a record is a library's.

    Args:
        name: Of its logger, or of the module that logs.
        path: Of the file that logs.
    """
    if name.partition(".")[0] == "healthobs":
        return False  # what is handed on here is judged before
    home = _home(name)
    if _is_installed(home) and not _is_applications(home):
        return True
    if _HANDS_ON.search(path) is not None or _is_applications(path):
        return False
    return path.startswith(_PYTHONS) or _is_installed(path)


def warns_for_a_library() -> bool:
    """Return whether the warning that is being shown was raised by a library, or nobody knows."""
    frame = _caller(_WARNING)
    return frame is None or is_library(_module(frame), frame.f_code.co_filename)


def _caller(passing: tuple[str, ...]) -> FrameType | None:
    """Return the nearest frame that is in none of the packages `passing`."""
    frame = currentframe()
    while frame is not None and _module(frame).partition(".")[0] in passing:
        frame = frame.f_back
    return frame


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _home(name: str) -> str:
    """Return where the top package of a dotted name lies: its folder, or a module's file; empty when it is not loaded."""
    module = sys.modules.get(name.partition(".")[0])
    for folder in getattr(module, "__path__", ()):
        return f"{Path(folder)}{sep}"
    return getattr(module, "__file__", None) or ""


def _is_applications(path: str) -> bool:
    return path.startswith(tuple(_applications))


@lru_cache(maxsize=4096)
def _is_installed(path: str) -> bool:
    if _INSTALLED.search(path) is not None:
        return True
    for entry in sys.path:
        folder = f"{Path(entry).absolute()}{sep}"
        if path.startswith(folder):
            top = re.split(r"[/\\.]", path[len(folder) :], maxsplit=1)[0]
            if top in _distributed(folder):
                return True
    return False


@lru_cache(maxsize=256)
def _distributed(folder: str) -> frozenset[str]:
    """Return the top packages that have been put into `folder` by an installer."""
    records = Path(folder).glob("*.dist-info/RECORD")
    return frozenset(
        top for one in records for top in _RECORDED.findall(one.read_text("utf-8", errors="replace"))
    )
