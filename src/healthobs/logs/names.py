"""Names of loggers: those that the code or the set-up wrote, and those that were made of data.

``logging.getLogger(__name__)`` is named by a module, ``getLogger(f"ward.{patient}")`` by a person. In ``strict`` only the
first passes: the name of a module, or of something in it; a constant of a function that is running; a logger that
a module of such a function holds; a logger that was there when redaction began.

Limits: those of `healthobs.redaction.literals`. A logger of another name that was made later and is held by an object
only is taken for one that was made of data; so is one that no module holds while its first 64 records are made.
"""

from __future__ import annotations

import logging

from healthobs.redaction import Redactor
from healthobs.redaction.literals import Looks, globals_nearby, is_in_a_module

_MAX_LENGTH = 256


class LoggerNames:
    """Decides on names of loggers.

    Args:
        redactor: Decides on what nobody knows.
    """

    def __init__(self, redactor: Redactor) -> None:
        self._redactor = redactor
        self._looks = Looks()
        self._known = {"root", "py.warnings", *logging.getLogger().manager.loggerDict}

    def is_written(self, name: str) -> bool:
        """Return whether `name` is known to be one of the code's, also as far as the stack tells; such a one is remembered."""
        if name in self._known:
            return True
        if len(name) <= _MAX_LENGTH and (
            is_in_a_module(name)
            or self._redactor.is_written(name)
            or (self._looks.again(name) and _is_held(name))
        ):
            self._known.add(name)
            return True
        return False

    def note(self, name: str) -> None:
        """Learn, while the caller is near on the stack, whether `name` is one of the code's."""
        if self._redactor.strict:
            self.is_written(name)

    def shown(self, name: str) -> str:
        """Return `name` as it may leave."""
        if self._redactor.strict and not self.is_written(name):
            return self._redactor.drop(name, signal="log")
        return self._redactor.text(name)


def _is_held(name: str) -> bool:
    """Return whether the module of a function that is running holds the logger itself."""
    logger = logging.getLogger().manager.loggerDict.get(name)
    return logger is not None and any(
        one is logger for names in globals_nearby() for one in list(names.values())
    )
