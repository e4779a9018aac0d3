"""A tracer provider that the process has already: its exporters are wrapped in place, and given back.

Whatever records through that provider (contrib instrumentation, the application's own spans) is redacted from
then on, processors that are added later included.

Limits: the SDK has no public way to list processors, so they are found by the names of their attributes; one
that sends spans without a `SpanExporter` cannot be wrapped, and is what `healthobs doctor` reports.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

from healthobs.exceptions import ConfigurationError
from healthobs.tracing.exporters import RedactingSpanExporter

_MAX_DEPTH = 8


class Slot(NamedTuple):
    """Where an exporter is held: `owner.name` is `exporter`."""

    owner: Any
    name: str
    exporter: SpanExporter


def sdk_provider(provider: Any) -> TracerProvider:
    """Return the SDK's provider that `provider` is or wraps.

    Raises:
        ConfigurationError: There is none inside.
    """
    for _ in range(_MAX_DEPTH):
        if isinstance(provider, TracerProvider):
            return provider
        provider = getattr(provider, "provider", None)
    raise ConfigurationError(
        "tracer_provider holds no provider of the OpenTelemetry SDK: set that up before, or leave the argument out"
    )


def exporters(provider: TracerProvider) -> Iterator[Slot]:
    """Yield the place of each exporter, however deep its processor is nested."""
    for processor in processors(provider):
        yield from _slots(processor)


def processors(provider: TracerProvider) -> Iterator[Any]:
    """Yield the innermost processors: those that hand spans on to an exporter, or keep them."""
    yield from _leaves(getattr(provider, "_active_span_processor", None), _MAX_DEPTH)


def _leaves(processor: Any, depth: int) -> Iterator[Any]:
    inner = list(_inside(processor)) if depth else []
    for each in inner:
        yield from _leaves(each, depth - 1)
    several = hasattr(processor, "_span_processors")  # the SDK's own, which only hand on
    if isinstance(processor, SpanProcessor) and not several and (not inner or any(_slots(processor))):
        yield processor


def _inside(processor: Any) -> Iterator[SpanProcessor]:
    held: list[Any] = list(getattr(processor, "__dict__", {}).values())
    for value in held:
        if isinstance(value, (list, tuple)):
            several = cast("Sequence[object]", value)
            yield from (each for each in several if isinstance(each, SpanProcessor))
        elif isinstance(value, SpanProcessor):
            yield value


def _slots(processor: Any) -> Iterator[Slot]:
    for owner in (processor, getattr(processor, "_batch_processor", None)):
        for name, value in getattr(owner, "__dict__", {}).items():
            if isinstance(value, SpanExporter):
                yield Slot(owner, name, value)


class Adoption:
    """Exporters of somebody else's provider, wrapped until `release`.

    Args:
        provider: The provider.
        wrap: Makes the exporter that redacts.
    """

    def __init__(
        self, provider: TracerProvider, wrap: Callable[[SpanExporter], RedactingSpanExporter]
    ) -> None:
        self._provider = provider
        self._wrap = wrap
        self._wrapped: list[tuple[Slot, RedactingSpanExporter]] = []
        self._wrap_all()
        self._add = provider.add_span_processor
        provider.add_span_processor = self._added  # type: ignore[method-assign]

    def _wrap_all(self) -> None:
        for slot in list(exporters(self._provider)):
            if not isinstance(slot.exporter, RedactingSpanExporter):
                wrapper = self._wrap(slot.exporter)
                setattr(slot.owner, slot.name, wrapper)
                self._wrapped.append((slot, wrapper))

    def _added(self, span_processor: SpanProcessor) -> None:
        self._add(span_processor)
        self._wrap_all()

    def release(self) -> None:
        """Give every exporter back to its processor."""
        for slot, wrapper in self._wrapped:
            if getattr(slot.owner, slot.name) is wrapper:
                setattr(slot.owner, slot.name, slot.exporter)
        self._wrapped.clear()
        vars(self._provider).pop("add_span_processor", None)
