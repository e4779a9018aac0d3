"""What the routes of a test's service take and return."""

from __future__ import annotations

from reference_services._kit import Model


class Thing(Model):
    """A model with an optional member."""

    name: str
    size: int | None = None


class Sparse(Thing):
    """A model that leaves null members out."""

    omit_none = True


def nothing() -> dict[str, str]:
    return {}
