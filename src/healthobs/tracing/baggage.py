"""Baggage by allow-list, in and out (W3C Baggage): what nobody named is neither read nor passed on.

Limits: the values are the caller's: they reach the service's own code and its peers, no signal.
"""

from __future__ import annotations

from collections.abc import Collection

from opentelemetry import baggage
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context

_FORMAT = W3CBaggagePropagator()


def read_baggage(header: str, allowed: Collection[str], context: Context) -> Context:
    """Return `context` with those entries of a `baggage` header that are allowed.

    Args:
        header: The header as received; what is malformed in it is skipped.
        allowed: Names that may enter.
        context: Where they are added.

    Example:
        >>> context = read_baggage("tenant=north,patient=4711", ("tenant",), Context())
        >>> dict(baggage.get_all(context))
        {'tenant': 'north'}
    """
    return _keep(_FORMAT.extract({"baggage": header}, Context()), allowed, context)


def write_baggage(allowed: Collection[str], context: Context | None = None) -> str | None:
    """Return the `baggage` header for an outgoing call, or None when nothing may go.

    An entry in whose value a pattern finds an identifier does not go, though its name is allowed.

    Args:
        allowed: Names that may leave.
        context: Where the entries are; default the current context.
    """
    carrier: dict[str, str] = {}
    _FORMAT.inject(carrier, allowed_baggage(allowed, context))
    return carrier.get("baggage")


def allowed_baggage(allowed: Collection[str], context: Context | None = None) -> Context:
    """Return `context` with those entries of its baggage alone that may leave.

    Args:
        allowed: Names that may leave.
        context: Where the entries are; default the current context.
    """
    from healthobs.redaction.scan import scan  # keeps its patterns out of `import healthobs`

    clean = {name for name, value in baggage.get_all(context).items() if not scan(str(value))[1]}
    return _keep(context, clean.intersection(allowed), baggage.clear(context))


def _keep(source: Context | None, allowed: Collection[str], context: Context) -> Context:
    for name, value in baggage.get_all(source).items():
        if name in allowed:
            context = baggage.set_baggage(name, value, context)
    return context
