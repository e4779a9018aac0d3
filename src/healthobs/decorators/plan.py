"""What the decorators of one function ask for together: one frozen plan."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any

from healthobs.exceptions import InstrumentationError


@dataclass(frozen=True, slots=True)
class Traced:
    """Record a span."""

    kind: str = "internal"
    attributes: tuple[tuple[str, Any], ...] = ()
    new_trace: bool = False


@dataclass(frozen=True, slots=True)
class Counted:
    """Count calls: in the shared family, or in a counter of one's own."""

    metric: str | None = None
    documentation: str = ""
    amount: Callable[[Any], float] | None = None
    labels: tuple[tuple[str, Callable[[Any], Any]], ...] = ()


#: An action of an audit entry, or an outcome.
ACTION = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.:/-]{0,127}\Z")


@dataclass(frozen=True, slots=True)
class Audited:
    """Append one entry a call."""

    action: str
    resource_type: str | None = None
    policy: str | None = None

    @property
    def insists(self) -> bool:
        """Whether the function itself names a policy under which nothing is done without an entry."""
        return self.policy in ("deny", "spool")


@dataclass(frozen=True, slots=True)
class Classified:
    """State the confidentiality of the response."""

    conf: str
    frameworks: tuple[str, ...] = ()
    purpose: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Plan:
    """The parts that were asked for; None, False or empty is a part that was not.

    Args:
        name: Name of the span and value of the label ``operation``; None takes the function's.
        capture: Names of arguments that may be recorded on the span and the log line.
        error_if: Told the result; true makes the outcome ``error``.
        success_if: Told the exception; true makes the outcome ``ok``.
    """

    name: str | None = None
    traced: Traced | None = None
    timed: bool = False
    counted: tuple[Counted, ...] = ()
    in_flight: bool = False
    logged: str | None = None
    audited: Audited | None = None
    classified: Classified | None = None
    capture: frozenset[str] = frozenset()
    error_if: Callable[[Any], bool] | None = field(default=None, compare=False)
    success_if: Callable[[BaseException], bool] | None = field(default=None, compare=False)

    def merged(self, other: Plan) -> Plan:
        """Return both plans as one; the order does not matter.

        Raises:
            InstrumentationError: Both ask for the same part, or name the operation differently.
        """
        changes: dict[str, Any] = {}
        for spec in fields(self):
            mine, theirs = getattr(self, spec.name), getattr(other, spec.name)
            if not theirs:
                continue
            if not mine:
                changes[spec.name] = theirs
            elif spec.name == "capture":
                changes["capture"] = mine | theirs
            elif spec.name == "counted":
                changes["counted"] = _counters(mine, theirs)
            elif spec.name == "name":
                if mine != theirs:
                    raise InstrumentationError(
                        f"the operation has two names, '{mine}' and '{theirs}': name it once"
                    )
            else:
                raise InstrumentationError(
                    f"the part '{spec.name}' was asked for twice: remove one decorator"
                )
        return replace(self, **changes)


def _counters(mine: tuple[Counted, ...], theirs: tuple[Counted, ...]) -> tuple[Counted, ...]:
    taken = {part.metric for part in mine}
    if any(part.metric in taken for part in theirs):
        raise InstrumentationError(
            "the part 'counted' was asked for twice: remove one decorator, or give one a counter of its own"
        )
    return (*mine, *theirs)
