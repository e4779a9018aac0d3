"""Span exporters: one that redacts what passes through it, and one made late enough to survive a fork.

Redaction happens in the exporter, because the SDK freezes a span before a processor sees its end
(OpenTelemetry trace SDK, "OnEnding"); it runs off the caller's thread when spans are batched.

Limits: the SDK turns attribute values of unknown types into text when they are set, so an object's `repr`
arrives here as a string and is masked by its form only.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, cast

from opentelemetry.context import Context
from opentelemetry.sdk.resources import Resource
from opentelemetry.sdk.trace import Event, ReadableSpan, Span
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult
from opentelemetry.sdk.util.instrumentation import InstrumentationScope
from opentelemetry.trace import Link, SpanContext, Status

from healthobs.redaction import Redactor, scopes
from healthobs.redaction.keys import Action
from healthobs.redaction.literals import Looks, is_in_a_module
from healthobs.tracing.holders import is_held

_logger = logging.getLogger(__name__)

#: Marks an exception event as ours: only those may carry a message, because it is a literal of the code.
OUR_EXCEPTION = "healthobs.exception.fingerprint"
_MARK = re.compile(r"\[PHI:([a-z_]+)\]")
#: Further keys that instrumentations set, many from before the conventions were stable; unlike with `keys.ALLOWED`,
#: only the key passes in ``strict``.
_CONVENTIONS: tuple[str, ...] = tuple(
    """
    http.request.method_original url.full url.path url.query url.fragment client.address user_agent.original network.peer.address
    network.local.address network.local.port http.method http.scheme http.flavor http.host http.url http.target
    http.user_agent http.client_ip http.server_name http.status_code http.status_text http.request_content_length
    http.response_content_length net.peer.name net.peer.ip net.peer.port net.host.name net.host.ip net.host.port
    net.transport db.name db.user db.statement db.query.text db.operation db.sql.table db.connection_string
    messaging.destination messaging.message.id messaging.message_id exception.message exception.stacktrace
    enduser.id peer.ip
    """.split()  # noqa: SIM905 - as in `keys`
)
_RESOURCES_KEPT = 16
_NAMES_KEPT = 1024


class RedactingSpanExporter(SpanExporter):
    """Export redacted copies of spans through `inner`.

    Redacted are: name, status description, attributes, events with their names, links, resource,
    instrumentation scope and trace state. A span in which nothing changes is passed on itself, uncopied.
    Whatever the inner exporter raises is counted and answered with `FAILURE`.

    Args:
        inner: The exporter that sends.
        redactor: What decides.
        on_error: Called with ``tracing`` for each export that raised, and each span that could not be
            redacted and was dropped.
    """

    def __init__(
        self, inner: SpanExporter, redactor: Redactor, *, on_error: Callable[[str], None] | None = None
    ) -> None:
        self.inner: SpanExporter = inner
        self.failures: int = 0
        self._redactor = redactor
        self._on_error = on_error
        if redactor.strict:
            for key in _CONVENTIONS:
                redactor.written(key)
        self._clean_names: set[str] = set()
        self._clean_scopes: list[InstrumentationScope] = []
        self._resources: dict[int, tuple[Resource, Resource]] = {}

    @property
    def redactor(self) -> Redactor:
        """What decides."""
        return self._redactor

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Redact `spans` and hand them to the inner exporter; never raises."""
        safe: list[ReadableSpan] = []
        for span in spans:
            try:
                safe.append(self._redact(span))
            except Exception:  # noqa: BLE001  # fail closed: what cannot be redacted is dropped and counted
                self._failed()
        try:
            result = self.inner.export(safe)
        except Exception:  # noqa: BLE001  # a fault of telemetry is not the caller's
            result = SpanExportResult.FAILURE
        if result is not SpanExportResult.SUCCESS:
            self._failed()
        return result

    def shutdown(self) -> None:
        """Shut the inner exporter down."""
        try:
            self.inner.shutdown()
        except Exception:  # noqa: BLE001
            self._failed()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush the inner exporter."""
        try:
            return self.inner.force_flush(timeout_millis)
        except Exception:  # noqa: BLE001
            self._failed()
            return False

    def _failed(self) -> None:
        self.failures += 1
        if self.failures == 1:
            # No exception text: an exporter's error may quote the span.
            _logger.warning("exporting spans failed; further failures are only counted")
        if self._on_error is not None:
            with contextlib.suppress(Exception):  # nowhere left to tell
                self._on_error("tracing")

    def _redact(self, span: ReadableSpan) -> ReadableSpan:
        """Return `span` itself when all of it may leave, else a redacted copy."""
        # The copy is a plain dict: iterating the SDK's attributes costs a call per key.
        attributes = cast("dict[str, Any]", span.attributes or {}).copy()
        changed = self._redactor.changed(attributes)
        if changed is None and self._is_plain(span):
            return span
        return self._copy(span, attributes, changed)

    def _is_plain(self, span: ReadableSpan) -> bool:
        """Return whether nothing but the attributes can carry data; most spans are so."""
        name, context, parent = span.name, span.context, span.parent
        return (
            (name in self._clean_names or self._remember(span))
            and not span.events
            and not span.links
            and not span.status.description
            and (context is None or not context.trace_state)
            and (parent is None or not parent.trace_state)
            and self._resource(span.resource) is span.resource
            and self._scope(span.instrumentation_scope) is span.instrumentation_scope
        )

    def _remember(self, span: ReadableSpan) -> bool:
        """Return whether the span's name may leave as it is, and keep the answer when it may."""
        name = span.name
        if self._redactor.mode == "watch" or self._name(span, signal="") is not name:
            return False
        if len(self._clean_names) >= _NAMES_KEPT:
            self._clean_names.clear()  # names made of data must not grow the memory
        self._clean_names.add(name)
        return True

    def _name(self, span: ReadableSpan, *, signal: str = "trace") -> str:
        """Redact the name; one made of allow-listed attributes (`GET /patients/{id}`) is as good as written."""
        redactor, name = self._redactor, span.name
        if _is_route(name, span.attributes or {}, redactor):
            return name
        if redactor.strict and not redactor.is_written(name):
            attributes = (span.attributes or {}).items()
            allowed = [value for key, value in attributes if redactor.action(key) is Action.ALLOW]
            if not all(part in allowed for part in name.split(" ")):
                return redactor.name(name, signal=signal)
        return redactor.text(name, signal=signal)

    def _copy(
        self, span: ReadableSpan, attributes: dict[str, Any], changed: dict[str, Any] | None
    ) -> ReadableSpan:
        redactor = self._redactor
        clean = span.name in self._clean_names
        name = _without(span.name if clean else self._name(span), attributes, changed)
        context, parent = _bare(span.context, redactor), _bare(span.parent, redactor)
        resource, scope = self._resource(span.resource), self._scope(span.instrumentation_scope)
        events, status = [self._event(event) for event in span.events], self._status(span, attributes)
        links = [self._link(link) for link in span.links]
        unchanged = (
            changed is None
            and name is span.name
            and resource is span.resource
            and status is span.status
            and context is span.context
            and parent is span.parent
            and scope is span.instrumentation_scope
            and all(new is old for new, old in zip(events, span.events, strict=True))
            and all(new is old for new, old in zip(links, span.links, strict=True))
        )
        if unchanged:
            return span
        return _Copy(
            span,
            name=name,
            context=context,
            parent=parent,
            resource=resource,
            attributes=attributes
            if changed is None
            else {**changed, "healthobs.redacted": _kinds(changed, attributes)},
            events=events,
            links=links,
            status=status,
            scope=scope,
        )

    def _event(self, event: Event) -> Event:
        attributes = dict(event.attributes or {})
        own: dict[str, Any] = {}
        if event.name == "exception" and OUR_EXCEPTION in attributes and "exception.message" in attributes:
            # Our own event carries a message only when it is a literal of the raising code.
            own["exception.message"] = attributes.pop("exception.message")
        changed = self._attributes(attributes)
        for key, message in own.items():
            clean = self._redactor.text(str(message), signal="trace")
            if changed is not None or clean != message:
                changed = {**(changed or attributes), key: clean}
        name = self._redactor.name(event.name, signal="trace")
        if changed is None and name is event.name:
            return event
        return Event(name, {**attributes, **own} if changed is None else changed, event.timestamp)

    def _link(self, link: Link) -> Link:
        attributes = dict(link.attributes or {})
        changed = self._attributes(attributes)
        context = _bare(link.context, self._redactor)
        if changed is None and context is link.context:
            return link
        return Link(context, attributes if changed is None else changed)

    def _attributes(self, attributes: Mapping[str, Any]) -> dict[str, Any] | None:
        return self._redactor.changed(attributes) if attributes else None

    def _status(self, span: ReadableSpan, attributes: Mapping[str, Any]) -> Status:
        """Keep a description only as far as it is the exception's type; the SDK's own holds the message."""
        status = span.status
        description = status.description
        if not description:
            return status
        types = {str(attributes.get("error.type", ""))}
        types.update(str((event.attributes or {}).get("exception.type", "")) for event in span.events)
        if description in types:
            return status
        kind = description.partition(":")[0]
        if kind in types or kind in {one.rpartition(".")[2] for one in types}:
            return Status(status.status_code, kind)
        clean = self._redactor.value("status.description", description, signal="trace")
        return status if clean is description else Status(status.status_code, str(clean))

    def _resource(self, resource: Resource) -> Resource:
        """Redact a resource once: a provider has one, and its forked child another."""
        known = self._resources.get(id(resource))
        if known is not None and known[0] is resource:
            return known[1]
        for key in resource.attributes:  # named by the configuration
            self._redactor.written(key)
        changed = self._redactor.changed(resource.attributes)
        clean = resource if changed is None else Resource(changed, resource.schema_url)
        if len(self._resources) > _RESOURCES_KEPT:
            self._resources.clear()
        self._resources[id(resource)] = (resource, clean)
        return clean

    def _scope(self, scope: InstrumentationScope | None) -> InstrumentationScope | None:
        if scope is None or scope in self._clean_scopes:
            return scope
        clean: InstrumentationScope = scopes.redacted(scope, self._redactor, self._scope_name, signal="trace")
        if clean is scope and len(self._clean_scopes) < _RESOURCES_KEPT:
            self._clean_scopes.append(scope)
        return clean

    def _scope_name(self, name: str) -> str:
        """Return a scope's name as it may leave; in ``strict`` it is that of a module, or written in the code."""
        written = is_in_a_module(name) or not self._redactor.strict
        return (
            self._redactor.text(name, signal="trace")
            if written
            else self._redactor.name(name, signal="trace")
        )


class NotesNames:
    """Mixin of a span processor: in ``strict`` it learns which names and keys of spans and of their scopes are written in the code.

    That can be told only while the function that uses them is running, so the span is made one that looks.
    """

    redactor: Redactor
    _noting: tuple[type[Span], type[Span]] | None = None
    _noted_scopes: tuple[InstrumentationScope, ...] = ()
    _looks: Looks | None = None

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:  # noqa: ARG002 - the SDK's
        """Look at name and attributes, and go on looking."""
        redactor = self.redactor
        if not redactor.strict:
            return
        redactor.is_written(span.name)
        with contextlib.suppress(Exception):  # a name that is no text: the exporter drops the span
            self._note_scope(span.instrumentation_scope)
        for attributes in (span.attributes, *[link.attributes for link in span.links]):
            if attributes is not None:
                redactor.note(attributes)
        made = type(span)
        if self._noting is None or self._noting[0] is not made:
            if issubclass(made, _Noting):  # another processor's work
                return
            self._noting = (made, type("NotingSpan", (_Noting, made), {"redactor": redactor}))
        span.__class__ = self._noting[1]

    def _note_scope(self, scope: InstrumentationScope | None) -> None:
        if scope is None or scope in self._noted_scopes:
            return
        redactor = self.redactor
        if not (is_in_a_module(scope.name) or redactor.is_written(scope.name)):
            if self._looks is None:
                self._looks = Looks()
            if not (self._looks.again(scope) and is_held(scope)):
                return
            redactor.written(scope.name)
        for text in (scope.version, scope.schema_url):
            if text:
                redactor.is_written(text)
        redactor.note(scope.attributes or {})
        if len(self._noted_scopes) < _RESOURCES_KEPT:
            self._noted_scopes = (*self._noted_scopes, scope)


class _Noting(Span):
    """A span that notes which keys and names of events are written in the code; a subclass names the redactor."""

    redactor: Redactor

    def _look(self, attributes: Mapping[str, Any] | None, name: str = "") -> None:
        try:
            self.redactor.note(attributes or {})
            if name:
                self.redactor.is_written(name)
        except Exception:  # noqa: BLE001, S110  # what the SDK takes or refuses is the SDK's to say
            pass

    def set_attribute(self, key: str, value: Any) -> None:
        self._look({key: value} if type(key) is str else {})
        super().set_attribute(key, value)

    def set_attributes(self, attributes: Mapping[str, Any]) -> None:
        self._look(attributes)
        super().set_attributes(attributes)

    def update_name(self, name: str) -> None:
        self._look({}, name)
        super().update_name(name)

    def add_event(
        self, name: str, attributes: Mapping[str, Any] | None = None, timestamp: int | None = None
    ) -> None:
        self._look(attributes, name)
        super().add_event(name, attributes, timestamp)

    def add_link(self, context: SpanContext, attributes: Mapping[str, Any] | None = None) -> None:
        self._look(attributes)
        super().add_link(context, attributes)


class _Copy(ReadableSpan):
    """A redacted span; it keeps the counts of what the original dropped."""

    def __init__(
        self,
        original: ReadableSpan,
        *,
        name: str,
        context: SpanContext | None,
        parent: SpanContext | None,
        resource: Resource,
        attributes: Mapping[str, Any],
        events: Sequence[Event],
        links: Sequence[Link],
        status: Status,
        scope: InstrumentationScope | None,
    ) -> None:
        super().__init__(
            name=name,
            context=context,
            parent=parent,
            resource=resource,
            attributes=attributes,
            events=events,
            links=links,
            kind=original.kind,
            status=status,
            start_time=original.start_time,
            end_time=original.end_time,
            instrumentation_scope=scope,
        )
        self._dropped = (original.dropped_attributes, original.dropped_events, original.dropped_links)

    @property
    def dropped_attributes(self) -> int:
        return self._dropped[0]

    @property
    def dropped_events(self) -> int:
        return self._dropped[1]

    @property
    def dropped_links(self) -> int:
        return self._dropped[2]


def _is_route(name: str, attributes: Mapping[str, Any], redactor: Redactor) -> bool:
    """Return whether `name` is method and path template, both attributes, and the template one of the code."""
    method, _, route = name.partition(" ")
    return (
        redactor.is_template(route)
        and route in (attributes.get("http.route"), attributes.get("url.template"))
        and method == attributes.get("http.request.method")
    )


def _kinds(after: Mapping[str, Any], before: Mapping[str, Any]) -> str:
    """Return the kinds masked in `after` with their counts, such as ``key=1,ssn=2``."""
    new = {key: value for key, value in after.items() if before.get(key) is not value}
    # Keys and values are redacted already, so writing them out shows marks only.
    counts = Counter(_MARK.findall(repr(new)))
    return ",".join(f"{kind}={count}" for kind, count in sorted(counts.items()))


def _without(name: str, before: Mapping[str, Any], after: Mapping[str, Any] | None) -> str:
    """Take values that were masked out of the span's name: instrumentation puts raw paths there."""
    for key, clean in (after or {}).items():
        raw = before.get(key)
        if clean == "[PHI:key]" and isinstance(raw, str) and len(raw) > 2 and raw in name:
            name = name.replace(raw, "[PHI:key]")
    return name


def _bare(context: Any, redactor: Redactor) -> Any:
    """Return `context` without a trace state in which something was found: it comes from outside."""
    if context is None or not context.trace_state:
        return context
    header = context.trace_state.to_header()
    if not redactor.strict and redactor.text(header, signal="trace") is header:
        return context
    return SpanContext(context.trace_id, context.span_id, context.is_remote, context.trace_flags)


class LazyExporter(SpanExporter):
    """Make the real exporter at the first export, and again in a forked child.

    An exporter holds sockets and threads; one made before a fork would share them between processes.
    """

    def __init__(self, make: Callable[[], SpanExporter]) -> None:
        self._make = make
        self._exporter: SpanExporter | None = None
        self._pid = 0

    @property
    def is_made(self) -> bool:
        """Whether there is an exporter already, in this process or the one it was forked from."""
        return self._exporter is not None

    def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
        """Export through this process's exporter."""
        pid = os.getpid()
        if self._exporter is None or self._pid != pid:
            self._exporter, self._pid = self._make(), pid
        return self._exporter.export(spans)

    def shutdown(self) -> None:
        """Shut down what this process has made."""
        if self._exporter is not None and self._pid == os.getpid():
            self._exporter.shutdown()

    def force_flush(self, timeout_millis: int = 30_000) -> bool:
        """Flush what this process has made."""
        if self._exporter is None or self._pid != os.getpid():
            return True
        return self._exporter.force_flush(timeout_millis)
