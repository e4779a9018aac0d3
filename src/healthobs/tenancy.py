"""`tenant`: which of the tenants that `Settings.tenants` declares a request or a job is for.

A bounded dimension of every signal: metric label, log field ``tenant``, span attribute ``healthobs.tenant``, audit
field ``tenant``. A name that is not declared counts as ``_other`` and is kept nowhere; where none was stated the label
is empty, which to Prometheus is no label, and the other signals leave it out.

Limits: gauges of what is in progress have no such label, since a tenant may be known only later; a tenant's
series begin with its first request or call.
"""

from __future__ import annotations

from collections.abc import Collection, Generator
from contextlib import contextmanager

from healthobs import _runtime
from healthobs.exceptions import ConfigurationError

ATTRIBUTE = "healthobs.tenant"
#: Every tenant that is not declared; no declared name begins with an underscore.
OTHER = "_other"


def bounded(tenants: Collection[str], name: str) -> str:
    """Return `name` when it is declared, else the one that stands for all others."""
    return name if name in tenants else OTHER


def stated() -> str:
    """Return the tenant that work in this context is for, bounded when it was stated; empty when none was."""
    exchange, inside = _runtime.exchange.get(), _runtime.tenant.get()
    name = inside[1] if inside is not None and inside[0] is exchange else getattr(exchange, "tenant", "")
    return name if isinstance(name, str) else ""


def here(tenants: Collection[str]) -> str:
    """Return the same for an `Observability` with these tenants, which need not be the one it was stated to."""
    name = stated()
    return bounded(tenants, name) if name else ""


def refuse_identifiers(tenants: Collection[str]) -> None:
    """Refuse names in which a pattern finds an identifier: redaction would mask them in one signal and not in another.

    Raises:
        ConfigurationError: One does; it is not echoed.
    """
    from healthobs.redaction.scan import scan  # keeps its patterns out of `import healthobs`

    found = [number for number, name in enumerate(tenants, 1) if scan(name)[1]]
    if found:
        places = ", ".join(map(str, found))
        raise ConfigurationError(
            f"tenants: name {places} looks like an identifier of a person or a card: declare an opaque name"
        )


def set_tenant(name: str) -> None:
    """State whose request this is, as soon as it is known: in a hook, or from a claim of a verified token.

    Outside a request nothing happens (`use_tenant` is for that), nor where no tenants are declared.

    Args:
        name: The tenant; one that `Settings.tenants` does not declare counts as ``_other``, an empty one as none.

    Example:
        >>> set_tenant("north")
    """
    exchange = _runtime.exchange.get()
    if exchange is not None:
        exchange.tenant = _known(name)


@contextmanager
def use_tenant(name: str) -> Generator[None]:
    """Work for this tenant inside the `with` block, in this context only: a job, or a part of a request.

    Args:
        name: As in `set_tenant`.

    Example:
        >>> from healthobs import Settings, observe
        >>> from healthobs.testing import Capture
        >>> @observe("bill")
        ... def bill() -> None: ...
        >>> with Capture(Settings(tenants=("north", "south"))) as capture, use_tenant("north"):
        ...     bill()
        >>> capture.metric("healthobs_operations_total", operation="bill", outcome="ok", tenant="north")
        1.0
    """
    token = _runtime.tenant.set((_runtime.exchange.get(), _known(name)))
    try:
        yield
    finally:
        _runtime.tenant.reset(token)


def _known(name: str) -> str:
    obs = _runtime.current_or_none()
    tenants = () if obs is None else obs.settings.tenants
    return bounded(tenants, str(name)) if tenants and name else ""
