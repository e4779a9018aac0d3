"""Which module holds a tracer: one that the code keeps (`tracer = get_tracer("ledger")`) was named by the code.

Limits: those of `healthobs.redaction.literals`. A tracer that is held by an object only, and whose name is no module's and
no constant of a function that is running, is taken for one that was made of data.
"""

from __future__ import annotations

from typing import Any

from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Tracer

from healthobs.redaction.literals import globals_nearby

#: Where the SDK's tracer keeps its scope; the second is of earlier versions.
_NAMES = ("_instrumentation_scope", "instrumentation_scope")


def is_held(scope: InstrumentationScope) -> bool:
    """Return whether the module of a function that is running holds a tracer of `scope`."""
    return any(_is_tracer_of(one, scope) for names in globals_nearby() for one in list(names.values()))


def _is_tracer_of(one: object, scope: InstrumentationScope) -> bool:
    if not issubclass(type(one), Tracer):  # not `isinstance`, which asks proxies of other things
        return False
    # OpenTelemetry's own proxy, of before there was a provider, keeps the tracer it passes on to.
    tracer: Any = getattr(one, "_real_tracer", None) or one
    return any(getattr(tracer, name, None) == scope for name in _NAMES)
