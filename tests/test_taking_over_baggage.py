"""OpenTelemetry's own propagator, where a service declares PHI: baggage leaves by the allow-list of the settings."""

from __future__ import annotations

import io
from typing import Any

import pytest
from flask import Flask
from opentelemetry import baggage, propagate
from opentelemetry.baggage.propagation import W3CBaggagePropagator
from opentelemetry.context import Context, attach, detach
from opentelemetry.propagators.composite import CompositePropagator
from opentelemetry.trace import NonRecordingSpan, SpanContext, TraceFlags, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from healthobs import Observability, Settings
from healthobs.clock import Clock
from healthobs.compliance import ProbeContext
from healthobs.compliance.probes_telemetry import wraps_every_exporter
from healthobs.doctor import examine
from healthobs.flask import init_app
from healthobs.tracing.textmap import sends_raw_baggage

WHO, SSN = "Ottoline Quex", "078-05-1120"
PHI = Settings(frameworks=("hipaa",), baggage=("tenant", "ward"))
HEADER = f"patient={WHO.replace(' ', '+')},ssn={SSN},tenant=north,ward={SSN}"


pytestmark = pytest.mark.usefixtures("textmap")


def carried() -> Context:
    context = set_span_in_context(NonRecordingSpan(SpanContext(10, 11, False, TraceFlags(1))))
    for name, value in {"patient": WHO, "ssn": SSN, "tenant": "north", "ward": SSN}.items():
        context = baggage.set_baggage(name, value, context)
    return context


def sent(context: Context | None = None) -> dict[str, str]:
    carrier: dict[str, str] = {}
    propagate.inject(carrier, context)
    return carrier


def make(settings: Settings = PHI) -> Observability:
    return Observability(settings, log_stream=io.StringIO())


class TestBaggage:
    """What `opentelemetry.propagate.inject` writes, which contrib instrumentation calls."""

    def test_only_allowed_entries_leave(self, textmap: CompositePropagator) -> None:
        """Of a context that is passed and of the current one; the trace goes on, and closing gives all back."""
        obs = make()
        token = attach(carried())
        expected = {"traceparent": f"00-{10:032x}-{11:016x}-01", "baggage": "tenant=north"}
        assert sent() == sent(carried()) == expected
        assert sent(Context()) == {}
        obs.close()
        assert sent()["baggage"] == HEADER
        detach(token)
        assert propagate.get_global_textmap() is textmap

    def test_nothing_is_allowed(self) -> None:
        """Then no header is sent, also while telemetry is switched off."""
        obs = make(Settings(frameworks=("hipaa",), disabled=True))
        assert set(sent(carried())) == {"traceparent"}
        obs.close()

    def test_what_comes_in_stays(self, textmap: CompositePropagator) -> None:
        """The application may read what it was sent; fields are the propagator's."""
        obs = make()
        assert baggage.get_all(propagate.extract({"baggage": HEADER}))["patient"] == WHO
        assert propagate.get_global_textmap().fields == textmap.fields
        obs.close()

    @pytest.mark.parametrize("settings", [Settings(), Settings(frameworks=("hipaa",), redaction="watch")])
    def test_nothing_is_taken(self, settings: Settings, textmap: CompositePropagator) -> None:
        """Where no PHI is declared, and where redaction only watches."""
        obs = make(settings)
        assert propagate.get_global_textmap() is textmap
        obs.close()

    @pytest.mark.parametrize("first", [0, 1])
    def test_two_at_a_time(self, first: int, textmap: CompositePropagator) -> None:
        """Each gives back its own; while one is there, its allow-list holds."""
        both = [make(), make(Settings(frameworks=("hipaa",), baggage=("patient",)))]
        assert "baggage" not in sent(carried())
        both.pop(first).close()
        assert sent(carried())["baggage"] == ("patient=Ottoline+Quex", "tenant=north")[first]
        both[0].close()
        assert propagate.get_global_textmap() is textmap

    @pytest.mark.parametrize("wrapping", [True, False])
    def test_what_somebody_else_has_set_since_stays(self, wrapping: bool) -> None:
        """Also when ours is inside of it, where it only passes on."""
        obs = make()
        parts = [propagate.get_global_textmap()] if wrapping else [W3CBaggagePropagator()]
        theirs = CompositePropagator(parts)
        propagate.set_global_textmap(theirs)
        assert sends_raw_baggage() is not wrapping
        obs.close()
        assert propagate.get_global_textmap() is theirs
        assert sent(carried())["baggage"] == HEADER

    def test_a_start_that_fails_gives_it_back(
        self, textmap: CompositePropagator, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """As all else."""

        def fail(_obs: Observability) -> None:
            assert propagate.get_global_textmap() is not textmap
            raise LookupError

        monkeypatch.setattr("healthobs.observability.build_health", fail)
        with pytest.raises(LookupError):
            make()
        assert propagate.get_global_textmap() is textmap


def found(obs: Observability) -> tuple[str, str, list[Any]]:
    """Return what G-wrap says, and the doctor's findings about baggage."""
    context = ProbeContext(
        settings=obs.settings, clock=Clock(), redactor=obs.redactor, provider=obs.tracing.provider
    )
    outcome = wraps_every_exporter(context)
    findings = examine(init_app(Flask("app"), obs), environ={}, sqlite_version=(3, 51, 3))
    return (
        outcome.state,
        outcome.text,
        [one for one in findings if one.name == "baggage_escapes_the_allow_list"],
    )


class Broken(W3CBaggagePropagator):
    """A propagator that raises."""

    def inject(self, *_arguments: Any, **_named: Any) -> None:
        """Raise."""
        raise RuntimeError(WHO)


class TestItIsFound:
    """G-wrap and `healthobs doctor`."""

    def test_guarded(self) -> None:
        """Nothing is found."""
        obs = make()
        _state, evidence, findings = found(obs)
        obs.close()
        assert "baggage" not in evidence
        assert findings == []

    @pytest.mark.parametrize("theirs", [W3CBaggagePropagator(), Broken()])
    def test_set_since(self, theirs: Any) -> None:
        """A propagator that was set afterwards sends everything, or nobody can tell."""
        obs = make()
        propagate.set_global_textmap(theirs)
        state, evidence, findings = found(obs)
        obs.close()
        assert state == "fail"
        assert "OpenTelemetry's propagator of baggage" in evidence
        assert len(findings) == 1
        assert WHO not in evidence + findings[0].seen

    def test_without_baggage(self) -> None:
        """One that sends none is no finding."""
        obs = make()
        propagate.set_global_textmap(TraceContextTextMapPropagator())
        assert found(obs)[2] == []
        obs.close()

    def test_nobody_declares_phi(self) -> None:
        """Then it is nobody's business."""
        obs = make(Settings())
        assert found(obs)[2] == []
        obs.close()
