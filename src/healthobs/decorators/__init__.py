"""The decorators: each adds a part to the function's one plan, and however many there are, there is one wrapper.

A decorator does only static work at import; which `Observability` is meant is asked at each call, so
decorating before configuring works. They may be stacked in any order, and above or below `classmethod` and
`staticmethod`. A foreign decorator in between ends the fusion: what is above it observes its calls. A framework's
route decorator registers what is below it alone, so they stand below.

Limits: no argument and no result is recorded unless `fields`, `labels` or `amount` name it.
"""

from healthobs.decorators.public import (
    audited,
    classified,
    counted,
    in_flight,
    logged,
    observe,
    timed,
    traced,
)

__all__ = ["audited", "classified", "counted", "in_flight", "logged", "observe", "timed", "traced"]
