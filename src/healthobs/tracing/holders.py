"""Which module holds a tracer: one that the code keeps (`tracer = get_tracer("ledger")`) was named by the code.

Limits: those of `healthobs.redaction.literals`. A tracer that is held by an object only, and whose name is no module's and
no constant of a function that is running, is taken for one that was made of data.
"""

from __future__ import annotations

from inspect import currentframe
from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Tracer

_FRAMES = 16
#: Where the SDK's tracer keeps its scope; the second is of earlier versions.
_NAMES = ("_instrumentation_scope", "instrumentation_scope")


def is_held(scope: InstrumentationScope) -> bool:
    """Return whether the module of a function that is running holds a tracer of `scope`."""
    frame = currentframe()
    for _ in range(_FRAMES):
        frame = None if frame is None else frame.f_back
        if frame is None:
            break
        if any(_is_tracer_of(one, scope) for one in list(frame.f_globals.values())):
            return True
    return False


def _is_tracer_of(one: object, scope: InstrumentationScope) -> bool:
    if not issubclass(type(one), Tracer):  # not `isinstance`, which asks proxies of other things
        return False
    # OpenTelemetry's own proxy, of before there was a provider, keeps the tracer it passes on to.
    tracer: Any = getattr(one, "_real_tracer", None) or one
    return any(getattr(tracer, name, None) == scope for name in _NAMES)
