"""OpenTelemetry's global propagator, where a service declares PHI: the baggage that it sends is held to the allow-list.

`opentelemetry.propagate.inject` is what contrib instrumentation of clients and queues calls. What comes in stays as
it is: the application's own code may read it.

Limits: a propagator that is set later is not covered (the control G-wrap and `healthobs doctor` name it), nor code that keeps
one of its own.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from opentelemetry import baggage, propagate
from opentelemetry.context import Context
from opentelemetry.propagators.textmap import (
    CarrierT,
    Getter,
    Setter,
    TextMapPropagator,
    default_getter,
    default_setter,
)

from healthobs.tracing.baggage import allowed_baggage

_CANARY = "healthobs.canary"
#: What control and doctor call it.
RAW = "OpenTelemetry's propagator of baggage"


class AllowedBaggage(TextMapPropagator):
    """Stands in front of the global propagator until `release`, and lets only some baggage reach it on its way out.

    Args:
        allowed: Names that may leave.
    """

    def __init__(self, allowed: Collection[str]) -> None:
        self._allowed = allowed
        self._inner = propagate.get_global_textmap()
        self._released = False
        propagate.set_global_textmap(self)

    def release(self) -> None:
        """Give the propagator back; inside what somebody else has set since, only pass on."""
        self._released = True
        outer = propagate.get_global_textmap()
        if outer is self:
            propagate.set_global_textmap(self._inner)
        while isinstance(outer, AllowedBaggage):
            if outer._inner is self:
                outer._inner = self._inner
            outer = outer._inner

    def inject(
        self, carrier: CarrierT, context: Context | None = None, setter: Setter[CarrierT] = default_setter
    ) -> None:
        """Write what may leave of `context`, as the propagator writes it."""
        if not self._released and baggage.get_all(context):
            context = allowed_baggage(self._allowed, context)
        self._inner.inject(carrier, context, setter)

    def extract(
        self,
        carrier: CarrierT,
        context: Context | None = None,
        getter: Getter[CarrierT] = default_getter,
    ) -> Context:
        """Read as the propagator reads."""
        return self._inner.extract(carrier, context, getter)

    @property
    def fields(self) -> set[str]:
        """Name the fields that the propagator writes."""
        return self._inner.fields


def sends_raw_baggage() -> bool:
    """Return whether the global propagator sends baggage that nobody allowed, or breaks when it is asked to."""
    carrier: dict[str, Any] = {}
    try:
        propagate.get_global_textmap().inject(carrier, baggage.set_baggage(_CANARY, _CANARY, Context()))
    except Exception:  # noqa: BLE001 - somebody else's code
        return True
    return _CANARY in str(carrier)
