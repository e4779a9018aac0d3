"""Adopting what a process has: exporters wrapped in place, foreign server spans, a registry."""

from __future__ import annotations

import io
import json
import logging
from dataclasses import replace
from typing import Any

import pytest
import structlog
from opentelemetry.context import attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.sdk.trace.sampling import ALWAYS_OFF
from opentelemetry.trace import ProxyTracerProvider, SpanKind, get_current_span, set_span_in_context
from prometheus_client import CollectorRegistry, Counter, generate_latest
from tests.set_ups import PHI, WHO

from asgi_calls import call_asgi
from healthobs import Observability, Settings, asgi, traced, use
from healthobs.compliance import Control, Outcome
from healthobs.exceptions import ConfigurationError


def name_of(exporter: InMemorySpanExporter) -> Any:
    """Return the patient's name as the last span shows it."""
    return (exporter.get_finished_spans()[-1].attributes or {})["patient.name"]


class TestTracerProvider:
    """`Observability(tracer_provider=…)`."""

    def test_exporters_are_wrapped_and_given_back(self) -> None:
        """Whatever records through the provider is redacted meanwhile, through processors of any kind and age."""
        exporters = [InMemorySpanExporter() for _ in range(3)]
        provider = TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporters[0]))
        provider.add_span_processor(BatchSpanProcessor(exporters[1]))
        foreign = provider.get_tracer("contrib")

        def seen() -> list[Any]:
            foreign.start_span("x", attributes={"patient.name": "Jane"}).end()
            provider.force_flush()
            return [name_of(exporter) for exporter in exporters if exporter.get_finished_spans()]

        before = seen()
        obs = Observability(Settings(), tracer_provider=provider)
        provider.add_span_processor(SimpleSpanProcessor(exporters[2]))
        during = seen()
        obs.close()
        assert before == ["Jane"] * 2
        assert during == ["[PHI:key]"] * 3
        assert seen() == ["Jane"] * 3
        assert "add_span_processor" not in vars(provider)

    def test_names_are_learnt_in_strict(self) -> None:
        """On somebody else's exporting thread too, names and keys of the code pass, and those of data do not."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(BatchSpanProcessor(exporter))
        obs = Observability(Settings(redaction="strict"), tracer_provider=provider)

        def work() -> None:
            with obs.tracing.tracer.start_as_current_span("claim settled") as span:
                span.set_attribute("batch_total", 3)
                span.add_event("step done", {"left": 1, WHO: 1})

        work()
        provider.force_flush()
        obs.close()
        (span,) = exporter.get_finished_spans()
        (event,) = span.events
        assert (span.name, dict(span.attributes or {})) == ("claim settled", {"batch_total": 3})
        assert (event.name, dict(event.attributes or {})) == (
            "step done",
            {"left": 1, "[PHI:strict]": "[PHI:key]"},
        )
        held: Any = provider
        assert len(held._active_span_processor._span_processors) == 1

    def test_spans_are_made_there(self) -> None:
        """Our spans and other instrumentation's are of one trace; closing leaves the provider running."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        obs = Observability(Settings(), tracer_provider=provider)

        @traced("ours")
        def ours() -> None:
            provider.get_tracer("contrib").start_span("theirs").end()

        with use(obs):
            ours()
        obs.close()
        theirs, mine = exporter.get_finished_spans()
        assert theirs.parent is not None
        assert theirs.parent.span_id == mine.context.span_id
        provider.get_tracer("contrib").start_span("after").end()
        assert exporter.get_finished_spans()[-1].name == "after"

    def test_refusals(self) -> None:
        """A provider that is none of the SDK's, and exporters beside an adopted one."""
        with pytest.raises(ConfigurationError, match="holds no provider of the OpenTelemetry SDK"):
            Observability(Settings(), tracer_provider=ProxyTracerProvider())
        with pytest.raises(ConfigurationError, match="give one or the other"):
            Observability(
                Settings(), tracer_provider=TracerProvider(), span_exporters=[InMemorySpanExporter()]
            )

    def test_disabled(self) -> None:
        """Switched off, the provider is wrapped all the same, and we record nothing in it."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        obs = Observability(Settings(disabled=True), tracer_provider=provider)
        obs.tracing.tracer.start_span("ours").end()
        provider.get_tracer("contrib").start_span("theirs", attributes={"patient.name": "Jane"}).end()
        obs.close()
        assert [span.name for span in exporter.get_finished_spans()] == ["theirs"]
        assert name_of(exporter) == "[PHI:key]"


class TestSeveralOnOneProvider:
    """Two that adopt one provider: a reload makes the new one before it closes the old."""

    @pytest.mark.parametrize("first", [0, 1])
    @pytest.mark.parametrize("strict", [0, 1])
    def test_each_redacts_until_it_is_closed(self, first: int, strict: int) -> None:
        """The stricter decides while it is there, in any order, through processors that come later too."""
        provider, exporters = TracerProvider(), [InMemorySpanExporter() for _ in range(2)]
        processor = SimpleSpanProcessor(exporters[0])
        provider.add_span_processor(processor)

        def seen() -> set[tuple[Any, ...]]:
            fields = {"ward.word": WHO, "patient.name": WHO}
            provider.get_tracer("contrib").start_span("x", attributes=fields).end()
            spans = [one.get_finished_spans()[-1] for one in exporters if one.get_finished_spans()]
            return {tuple((span.attributes or {})[key] for key in fields) for span in spans}

        modes = ["mask", "mask"]
        modes[strict] = "strict"
        several = [
            Observability(Settings(redaction=mode), tracer_provider=provider, logs="off")  # type: ignore[arg-type]
            for mode in modes
        ]
        provider.add_span_processor(SimpleSpanProcessor(exporters[1]))
        both = seen()
        several.pop(first).close()
        provider.add_span_processor(SimpleSpanProcessor(late := InMemorySpanExporter()))
        exporters.append(late)
        one = seen()
        several.pop().close()
        assert both == {("[PHI:strict]", "[PHI:key]")}
        assert one == {("[PHI:strict]" if first != strict else WHO, "[PHI:key]")}
        assert seen() == {(WHO, WHO)}
        assert processor.span_exporter is exporters[0]
        assert "add_span_processor" not in vars(provider)

    def test_a_later_patch_of_somebody_else_stays(self) -> None:
        """What stands in front of us when we are closed is not taken off, and nothing is redacted through it."""
        provider, exporter = TracerProvider(), InMemorySpanExporter()
        obs = Observability(Settings(), tracer_provider=provider, logs="off")
        ours = provider.add_span_processor

        def theirs(span_processor: Any) -> None:
            ours(span_processor)

        provider.add_span_processor = theirs  # type: ignore[method-assign]
        obs.close()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        provider.get_tracer("contrib").start_span("x", attributes={"patient.name": WHO}).end()
        assert provider.add_span_processor is theirs
        assert name_of(exporter) == WHO


class Around:
    """Another instrumentation's ASGI middleware: a server span around, and one of its own around each send."""

    def __init__(self, app: Any, provider: TracerProvider) -> None:
        self.app = app
        self.tracer = provider.get_tracer("opentelemetry.instrumentation.asgi")

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        async def sending(message: Any) -> None:
            with self.tracer.start_as_current_span("http send"):
                await send(message)

        with self.tracer.start_as_current_span("GET /x", kind=SpanKind.SERVER):
            await self.app(scope, receive, sending)


Around.__module__ = "opentelemetry.instrumentation.asgi"


async def plain(scope: Any, receive: Any, send: Any) -> None:
    """Answer, and mark the span that is current."""
    get_current_span().set_attribute("marked", True)
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": b"x"})


class TestServerSpan:
    """An application that is instrumented already gets no second one."""

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("sampled", [True, False])
    def test_theirs_is_used(self, inside: bool, sampled: bool) -> None:
        """Whether it is around ours or inside: the access line carries its ids, and the application sees it."""
        exporter = InMemorySpanExporter()
        provider = TracerProvider() if sampled else TracerProvider(sampler=ALWAYS_OFF)
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        stream = io.StringIO()
        obs = Observability(Settings(), tracer_provider=provider, log_stream=stream)
        app: Any = (
            asgi.Middleware(Around(plain, provider), obs)  # type: ignore[arg-type]
            if inside
            else Around(asgi.Middleware(plain, obs), provider)
        )
        assert call_asgi(app, "GET", "/x").status == 200
        obs.close()
        spans = [span for span in exporter.get_finished_spans() if span.kind is SpanKind.SERVER]
        line = json.loads(stream.getvalue().splitlines()[-1])
        assert len(spans) == (1 if sampled else 0)
        if sampled:
            assert (spans[0].attributes or {})["marked"] is True
            assert f"{spans[0].context.trace_id:032x}" == line["trace_id"]
            assert f"{spans[0].context.span_id:016x}" == line["span_id"]

    def test_a_remote_or_inner_span_is_none(self) -> None:
        """A span that is no server's does not keep the request from having its own."""
        exporter, provider = InMemorySpanExporter(), TracerProvider()
        provider.add_span_processor(SimpleSpanProcessor(exporter))
        obs = Observability(Settings(), tracer_provider=provider, logs="off")
        token = attach(set_span_in_context(provider.get_tracer("test").start_span("test")))
        try:
            call_asgi(asgi.Middleware(plain, obs), "GET", "/x")
        finally:
            detach(token)
            obs.close()
        assert [span.kind for span in exporter.get_finished_spans()] == [SpanKind.SERVER]


class TestRegistry:
    """`Observability(registry=…)`."""

    def test_given_back(self) -> None:
        """Old series stay in it; ours leave it when we close, and can come again."""
        registry = CollectorRegistry()
        old = Counter("old_total", "Old", registry=registry)
        old.inc()
        before = generate_latest(registry)
        for _ in range(2):
            obs = Observability(Settings(), registry=registry)
            assert b"healthobs_build_info" in generate_latest(registry)
            assert b"old_total 1.0" in obs.metrics.exposition(None)[1]
            obs.close()
            assert generate_latest(registry) == before


class TestAStartThatFails:
    """What was taken over when `Observability` raises."""

    @pytest.mark.parametrize(
        ("settings", "controls", "error"),
        [
            ({"audit_database_url": "sqlite:////proc/nope/a.db"}, 0, "audit database file cannot be created"),
            ({}, 2, "id"),
            ({"out_of_scope": ("nothing",)}, 1, "out_of_scope must name some of"),
        ],
    )
    @pytest.mark.filterwarnings("ignore:hipaa is declared")
    def test_is_given_back(
        self, settings: dict[str, Any], controls: int, error: str, root: io.StringIO
    ) -> None:
        """Nothing of ours is left in provider, registry, `logging` and structlog, and the next try tells the same."""
        same = Control(
            "S-1", "policy 7", "company", "x", "x", "measure", lambda _context: Outcome("pass", "x")
        )
        provider, exporter, registry = TracerProvider(), InMemorySpanExporter(), CollectorRegistry()
        provider.add_span_processor(processor := SimpleSpanProcessor(exporter))
        call_handlers, chain = logging.Logger.callHandlers, structlog.get_config()["processors"]
        steps, exposed = list(chain), generate_latest(registry)
        handlers = logging.getLogger().handlers[:]
        for _ in range(2):
            with pytest.raises(ConfigurationError, match=error):
                Observability(
                    replace(PHI, capture_stdlib=True, **settings),
                    tracer_provider=provider,
                    registry=registry,
                    controls=(same,) * controls,
                )
            assert processor.span_exporter is exporter
            assert "add_span_processor" not in vars(provider)
            assert logging.Logger.callHandlers is call_handlers
            assert (logging.getLogger().handlers, handlers[0].filters) == (handlers, [])
            assert (chain, generate_latest(registry)) == (steps, exposed)
        assert root.getvalue() == ""
