"""A tracer provider that the process has already: its exporters are wrapped in place, and given back.

Whatever records through that provider (contrib instrumentation, the application's own spans) is redacted from
then on, processors that are added later included.

Limits: the SDK has no public way to list processors, so they are found by the names of their attributes; one
that sends spans without a `SpanExporter` cannot be wrapped, and is what `healthobs doctor` reports. Two redactors of one
step are taken as alike, whatever keys they allow.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple, cast

from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SpanExporter

from healthobs.exceptions import ConfigurationError
from healthobs.redaction import Redactor
from healthobs.tracing.exporters import NotesNames, RedactingSpanExporter

_MAX_DEPTH = 8
#: The ladder of redaction, the weakest first.
_STEPS = ("watch", "mask", "strict")


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


def opaque(provider: TracerProvider) -> list[str]:
    """Return, by the name of its type, each processor that gets spans at their end and has no exporter that could be wrapped."""
    return [
        type(one).__name__ for one in processors(provider) if not _is_silent(one) and not any(_slots(one))
    ]


def _is_silent(processor: SpanProcessor) -> bool:
    """Return whether nothing happens when a span ends, nor just before (a hook of newer SDKs)."""
    return all(
        getattr(type(processor), hook, None) is getattr(SpanProcessor, hook, None)
        for hook in ("on_end", "_on_ending")
    )


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


def layers(exporter: SpanExporter) -> Iterator[SpanExporter]:
    """Yield `exporter` and what it wraps: wrappers of ours from outside to inside, then the one that sends."""
    yield exporter
    while isinstance(exporter, RedactingSpanExporter):
        exporter = exporter.inner
        yield exporter


def redacts(exporter: SpanExporter, redactor: Redactor) -> bool:
    """Return whether what goes through `exporter` is masked at least as `redactor` does it."""
    asked = _STEPS.index(redactor.mode)
    modes = [one.redactor.mode for one in layers(exporter) if isinstance(one, RedactingSpanExporter)]
    return any(_STEPS.index(mode) >= asked for mode in modes)


class Adoption:
    """Exporters of somebody else's provider, wrapped until `release`.

    Several can be on one provider: each wraps what the others have wrapped, and takes out only its own.

    Args:
        provider: The provider.
        wrap: Makes the exporter that redacts.
        notes: Sees each span begin, until `release`.
    """

    def __init__(
        self,
        provider: TracerProvider,
        wrap: Callable[[SpanExporter], RedactingSpanExporter],
        notes: NotesNames | None = None,
    ) -> None:
        self._provider = provider
        self._wrap = wrap
        self._notes = notes
        if notes is not None:
            provider.add_span_processor(cast("SpanProcessor", notes))
        self._released = False
        self._wrapped: list[tuple[Slot, RedactingSpanExporter]] = []
        self._wrap_all()
        self._add = provider.add_span_processor
        provider.add_span_processor = self._added  # type: ignore[method-assign]

    def _wrap_all(self) -> None:
        ours = {id(wrapper) for _slot, wrapper in self._wrapped}
        for slot in list(exporters(self._provider)):
            if not ours.intersection(map(id, layers(slot.exporter))):
                wrapper = self._wrap(slot.exporter)
                setattr(slot.owner, slot.name, wrapper)
                self._wrapped.append((slot, wrapper))

    def _added(self, span_processor: SpanProcessor) -> None:
        self._add(span_processor)
        if not self._released:
            self._wrap_all()

    def release(self) -> None:
        """Give every exporter back to its processor, or to the wrapper of another adoption that stands around it."""
        self._released = True
        for slot, wrapper in self._wrapped:
            outside = getattr(slot.owner, slot.name)
            if outside is wrapper:
                setattr(slot.owner, slot.name, wrapper.inner)
            for layer in layers(outside):
                if isinstance(layer, RedactingSpanExporter) and layer.inner is wrapper:
                    layer.inner = wrapper.inner
        self._wrapped.clear()
        held: Any = getattr(self._provider, "_active_span_processor", None)
        if self._notes is not None and held is not None:
            held._span_processors = tuple(one for one in held._span_processors if one is not self._notes)
        self._step_out()

    def _step_out(self) -> None:
        """Take `_added` out of the row; behind what somebody else has put there it stays, and only passes on."""
        first: Any = vars(self._provider).get("add_span_processor")
        if first == self._added:
            del vars(self._provider)["add_span_processor"]
            if self._provider.add_span_processor != self._add:  # the method of its class needs no attribute
                self._provider.add_span_processor = self._add  # type: ignore[method-assign]
            return
        at = getattr(first, "__self__", None)
        while isinstance(at, Adoption):
            if at._add == self._added:
                at._add = self._add
                return
            at = getattr(at._add, "__self__", None)
