"""`Observability`: one frozen object that owns tracer provider, registry, logs, audit trail, health and controls.

Several can live in one process, and which one is in force is `install`'s and `use`'s business. Nothing global is
touched but what is redacted where PHI is declared, and given back: log set-ups, and OpenTelemetry's propagator. Nothing
runs in the background until it is asked to: spans are exported from a thread that the first span starts, controls from
one that `controls.start` starts.

Limits: in Prometheus's multiprocess mode only one of a process may record metrics.
"""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Sequence
from functools import cache
from typing import TYPE_CHECKING, Any, Final, TextIO, get_args

from healthobs._runtime import all_operations, current_or_none
from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.exceptions import AuditError, ConfigurationError, HealthobsWarning
from healthobs.health import Health
from healthobs.health.wiring import build_health
from healthobs.logs import LogMode, Logs
from healthobs.logs.pipeline import CAPTURE_BESIDE_PROCESSOR
from healthobs.metrics import Metrics
from healthobs.redaction import Redactor
from healthobs.tenancy import OTHER, refuse_identifiers
from healthobs.tracing import Tracing, build_tracing

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter
    from opentelemetry.sdk.trace.id_generator import IdGenerator
    from opentelemetry.trace import TracerProvider
    from prometheus_client import CollectorRegistry

    from healthobs.audit import AuditTrail
    from healthobs.audit.subjects import SubjectMap
    from healthobs.compliance import Control, ControlEngine
    from healthobs.tracing.textmap import AllowedBaggage


#: Settings that are nothing without an audit trail.
_OF_A_TRAIL = (
    "audit_key_file", "audit_policy", "audit_spool_file", "audit_subjects_file", "audit_subjects_key_file",
    "audit_subjects_url",
)  # fmt: skip


#: What is warned of, where PHI is declared and the trail has no map of subjects.
_SUBJECTS_AS_GIVEN = (
    "hipaa is declared, and the audit trail keeps subjects as they are given, for good: set Settings.audit_subjects_file"
    " (or audit_subjects_url), so that its entries have random tokens instead"
)


class Observability:
    """Everything one service records with.

    Args:
        settings: What to build.
        clock: Wall and monotonic clock of every signal; default the system's.
        span_exporters: Where spans go besides `settings.otlp_endpoint`; each is wrapped by the redactor.
        simple_spans: Export each span when it ends, on the caller's thread (for tests).
        id_generator: Makes trace and span ids; default random.
        registry: Prometheus registry to record in; default a new one. Our metrics are taken off it again when
            this object is closed.
        log_stream: Where log lines go; default standard output.
        tracer_provider: A provider that the process has already (the SDK's, or one that wraps it): spans are
            made there, and its exporters are wrapped by the redactor in place until this object is closed.
            `settings.otlp_endpoint` is not used then.
        logs: ``own`` writes JSON lines; ``processor`` leaves the structlog or standard-library set-up that is
            there its format, writes through it, and puts ids and redaction into it until this object is
            closed; ``off`` writes no log line. With ``own``, a service that declares PHI (framework ``hipaa``) has
            the handlers and structlog processors that are there redacted as well, until this object is closed.
        audit: The audit trail; default the one that `settings.audit_database_url` names, if any. One that is
            passed stays open when this object is closed.
        controls: Controls of the service, besides the library's own. Controls are observed when some are
            given, or when `settings.endpoints` asks for `/compliance/status`.

    Raises:
        ConfigurationError: The settings ask for an extra that is not installed, two controls have one id, or
            arguments contradict each other.
        AuditError: The audit trail cannot be opened.
        RedactionError: Redaction let a canary span with HIPAA's eighteen identifiers pass.

    Warns:
        HealthobsWarning: PHI is declared (framework ``hipaa``), and the settings name an audit trail and no map of subjects:
            its entries keep subjects as they are given.

    Whatever is raised, what was taken over until then has been given back.

    Example:
        >>> obs = Observability(Settings(service_name="demo"))
        >>> obs.audit is None
        True
        >>> obs.close()
    """

    #: Whether the trail that the settings name outlives this; `healthobs.testing` has one that does not.
    _keeps_for_good = True

    def __init__(
        self,
        settings: Settings,
        *,
        clock: Clock | None = None,
        span_exporters: Sequence[SpanExporter] | None = None,
        simple_spans: bool = False,
        id_generator: IdGenerator | None = None,
        registry: CollectorRegistry | None = None,
        log_stream: TextIO | None = None,
        tracer_provider: TracerProvider | None = None,
        logs: LogMode = "own",
        audit: AuditTrail | None = None,
        controls: Sequence[Control] = (),
    ) -> None:
        _check_arguments(settings, logs, audit)
        if tracer_provider is not None and (span_exporters or id_generator or simple_spans):
            raise ConfigurationError(
                "an adopted tracer_provider has exporters and ids of its own: give one or the other"
            )
        if settings.audit_policy == "spool" and audit is not None and audit.spool is None:
            raise ConfigurationError(
                "audit_policy spool needs an audit trail that was opened with a spool_file"
            )
        self.settings: Final = settings
        self.clock: Final = clock or Clock()
        self.redactor: Final = Redactor(
            settings.redaction_mode, allowed_keys=settings.allowed_keys, on_redaction=self._count_redaction
        )
        refuse_identifiers(settings.tenants)
        own = (settings.service_name, settings.service_version, settings.environment)
        for name in (*settings.tenants, OTHER, *own):
            self.redactor.written(name)  # labels and fields of `strict`
        with contextlib.ExitStack() as undo:
            self.metrics: Final = Metrics(settings, registry=registry, redactor=self.redactor)
            undo.callback(self.metrics.release)
            if not settings.disabled:
                from healthobs.tracing.canary import (
                    release_canary,
                )  # runs once: no part of `import healthobs`

                release_canary(self.redactor)
            failed = self.metrics.count_internal_error
            self.tracing: Final[Tracing] = build_tracing(
                settings,
                self.redactor,
                exporters=span_exporters or (),
                id_generator=id_generator,
                simple=simple_spans,
                on_error=failed,
                adopt=tracer_provider,
            )
            undo.callback(self.tracing.close)
            self._baggage: Final = _guarded_baggage(settings)
            undo.callback(self._release_baggage)
            self.logs: Final = Logs(
                settings, self.redactor, self.clock, log_stream, on_error=failed, mode=logs
            )
            undo.callback(self.logs.release)
            self._owns_audit: Final = audit is None
            self.audit: Final[AuditTrail | None] = audit if audit is not None else self._open_audit()
            undo.callback(self._close_audit)
            if self.audit is not None:
                self.audit.on_waiting = self._show_waiting
                if self.audit.spool is not None:
                    self.audit.on_damage = self._damage_alarm()
            self.health: Final[Health] = build_health(self)
            undo.callback(self.health.close)
            if settings.series_from_zero and not settings.disabled:
                self.metrics.before_first_scrape(self._declare_operations)
            self.controls: Final[ControlEngine | None] = self._build_controls(controls)
            if settings.capture_stdlib:
                self.logs.capture_stdlib()
            undo.pop_all()  # complete: `close` is what ends it
        self._frozen: Final = True

    def __setattr__(self, name: str, value: Any) -> None:
        """Refuse changes after construction."""
        if hasattr(self, "_frozen"):
            raise AttributeError("an Observability is frozen: build another one with other settings")
        object.__setattr__(self, name, value)

    def fault(self, component: str, part: str, exc: BaseException) -> None:
        """Count a fault of telemetry, and log the first of each part as ``telemetry_fault``; never raises.

        Args:
            component: As it is counted (`healthobs_internal_errors_total`).
            part: Which part of it, of a closed vocabulary.
            exc: What was raised.
        """
        self.metrics.count_internal_error(component)
        self.logs.fault(component, part, exc)

    def flush(self, timeout_seconds: float = 5.0) -> bool:
        """Export what is queued; return whether everything was sent in time.

        Args:
            timeout_seconds: Seconds to wait at most.
        """
        return self.tracing.flush(int(timeout_seconds * 1000))

    def close(self) -> None:
        """Stop what runs, flush, and release what this object opened; it may be called twice."""
        if self.controls is not None:
            self.controls.stop()
        self.health.close()
        self.tracing.close()
        self._release_baggage()
        self.logs.release()
        self.metrics.release()
        self._close_audit()

    def _release_baggage(self) -> None:
        if self._baggage is not None:
            self._baggage.release()

    def _close_audit(self) -> None:
        if self._owns_audit and self.audit is not None:
            with contextlib.suppress(AuditError):
                self.audit.close()
            if self.audit.subjects is not None:
                self.audit.subjects.close()

    def _open_audit(self) -> AuditTrail | None:
        url = self.settings.audit_database_url
        if url is None:
            return None
        from healthobs.audit import open_trail  # keeps cryptography out of `import healthobs`

        subjects = self._open_subjects()
        if subjects is None and "hipaa" in self.settings.frameworks and self._keeps_for_good:
            warnings.warn(_SUBJECTS_AS_GIVEN, HealthobsWarning, stacklevel=3)
        return open_trail(
            url,
            service=self.settings.service_name,
            key_file=self.settings.audit_key_file,
            clock=self.clock,
            # The trail is kept by law, not telemetry: its details are masked at every step, and never dropped.
            redactor=Redactor(
                "mask", allowed_keys=self.settings.allowed_keys, on_redaction=self._count_redaction
            ),
            timeout_seconds=self.settings.audit_timeout_seconds,
            spool_file=self.settings.audit_spool_file,
            subjects=subjects,
        )

    def _open_subjects(self) -> SubjectMap | None:
        place = self.settings.audit_subjects_url or self.settings.audit_subjects_file
        if place is None:
            return None
        from healthobs.audit.subjects import SubjectMap

        return SubjectMap(place, self.settings.audit_subjects_key_file)

    def _damage_alarm(self) -> Callable[[int], None]:
        logs = self.logs
        lost = self.metrics.counter(
            "healthobs_audit_spool_damaged_total",
            "Lines of the audit spool that could not be read: acknowledged entries that are lost",
        )

        def alarm(lines: int) -> None:
            lost.inc(lines)
            logs.emit("error", "audit_spool_damaged", own={"lines": lines})

        return alarm

    def _show_waiting(self, rows: int) -> None:
        gauge = self.metrics.gauge(
            "healthobs_audit_outbox_waiting",
            "Audit entries in the outbox that the log did not take at the last attempt",
            multiprocess_mode="livemax",
        )
        gauge.set(rows)

    def _build_controls(self, controls: Sequence[Control]) -> ControlEngine | None:
        if not controls and not self.settings.endpoints:
            return None
        from healthobs.compliance.wiring import build_engine

        return build_engine(self, controls)

    def _declare_operations(self) -> None:
        for operation in all_operations():
            operation.declare(self)

    def _count_redaction(self, signal: str, kind: str) -> None:
        self.metrics.count_redaction(signal, kind)


def _guarded_baggage(settings: Settings) -> AllowedBaggage | None:
    """Hold what OpenTelemetry's propagator sends to the allow-list, where PHI is declared."""
    if "hipaa" not in settings.frameworks or settings.redaction_mode == "watch":
        return None
    from healthobs.tracing.textmap import AllowedBaggage  # keeps the propagators out of `import healthobs`

    return AllowedBaggage(settings.baggage)


def _check_arguments(settings: object, logs: object, audit: object) -> None:
    """Refuse what would be taken for something else."""
    problems: list[str] = []
    if not isinstance(settings, Settings):
        problems.append("settings must be a healthobs.Settings")
    else:
        if settings.capture_stdlib and logs == "processor":
            problems.append(CAPTURE_BESIDE_PROCESSOR)
        if audit is None and settings.audit_database_url is None:
            problems += (
                f"{name} needs an audit trail: set audit_database_url, or pass Observability(audit=...)"
                for name in _OF_A_TRAIL
                if getattr(settings, name) not in (None, "deny", "alert")
            )
    if logs not in get_args(LogMode):
        problems.append(f"logs must be one of {', '.join(get_args(LogMode))}")
    if problems:
        raise ConfigurationError(*problems)


@cache
def _nothing() -> Observability:
    """Return the one that records nothing."""
    return Observability(Settings(disabled=True))


def current() -> Observability:
    """Return the `Observability` in force here; one that records nothing when there is none.

    Example:
        >>> current().settings.disabled
        True
    """
    return current_or_none() or _nothing()
