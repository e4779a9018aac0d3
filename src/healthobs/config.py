"""Settings: one frozen object, read once, from an injectable mapping.

Precedence: explicit argument > `HEALTHOBS_*` > `OTEL_*` > default. Where OpenTelemetry has a variable,
that variable is used and not renamed (OpenTelemetry specification, "Environment Variable
Specification"); sampler, span limits and exporter options are read by its SDK itself.
"""

from __future__ import annotations

import os
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal, cast, get_args

from healthobs.exceptions import ConfigurationError, HealthobsWarning

LogLevel = Literal["debug", "info", "warning", "error", "critical"]
RedactionMode = Literal["watch", "mask", "strict"]
Audience = Literal["trusted", "all"]
AuditPolicy = Literal["deny", "spool", "alert"]

BUILTIN_CHECKS = ("metrics", "tracing", "audit_trail")
#: What `Settings.frameworks` may name: those of the control catalogue, then those that only a header names.
FRAMEWORKS = ("hipaa", "sox", "pci-dss", "fda-21cfr11", "hitech", "gdpr", "soc2")

_TENANT, _MOST_TENANTS = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}"), 100
_HEADER = re.compile(r"[A-Za-z0-9-]*")
_LEAST = {
    "max_series": 1,
    "audit_retention_days": 1,
    "control_interval_seconds": 0,
    "max_stall_seconds": 0,
    "drain_delay_seconds": 0,
}
_PREFIX = re.compile(r"(?:/[A-Za-z0-9._~-]+)*")
_ENDPOINT = re.compile(r"https?://[^/?#\s]\S*", re.IGNORECASE)
#: Fields that may hold a password: in what stands before the host, or in the query.
_URLS = ("audit_database_url", "audit_subjects_url", "otlp_endpoint")
_SECRETS = re.compile(r"(?:(?<=://)|\A(?![\w+.-]*://)).*@|(?<=\?).+", re.DOTALL)


#: Variables under the prefix that are read elsewhere: by commands and servers, the reference services, the tests.
_READ_ELSEWHERE = frozenset(
    f"HEALTHOBS_{name}"
    for name in (
        "DATA_DIR",
        "IMAGE_SERVICE",
        "MUST_HAVE_PEERS",
        "MUST_HAVE_SERVERS",
        "NPM",
        "OPS_FD",
        "TOKEN",
    )
)
#: What Kubernetes sets for a Service whose name begins like ours.
_SERVICE_LINK = re.compile(
    r"HEALTHOBS(_\w+)?_(SERVICE_HOST|SERVICE_PORT(_\w+)?|PORT_\d+_(TCP|UDP|SCTP)(_\w+)?)"
)
#: A misspelt one of these would switch `strict` off.
_DECISIVE, _NEAR = ("FRAMEWORKS", "REDACTION"), 0.8
#: What a warning and the doctor say, before the names.
UNKNOWN = "no setting has these variables, which change nothing: "


#: Standard variables, by the field that they set where its own does not.
_OTEL = {
    "service_name": "OTEL_SERVICE_NAME",
    "disabled": "OTEL_SDK_DISABLED",
    "otlp_endpoint": "OTEL_EXPORTER_OTLP_ENDPOINT",
    "log_level": "OTEL_LOG_LEVEL",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What an `Observability` is built from.

    Its `repr` shows no password of a URL.

    Args:
        service_name: `service.name` of every signal.
        service_version: `service.version` of every signal.
        environment: `deployment.environment.name`.
        prefix: When set, HTTP and decorator metrics also appear under this name, and compliance and
            outbound metrics take it (`<prefix>_request_duration_seconds`).
        disabled: Switch all telemetry off (`OTEL_SDK_DISABLED`); audit, health and redaction of what others write go on.
        otlp_endpoint: Where spans go (OTLP over HTTP, base URL with ``http://`` or ``https://``); None exports nothing.
        trust_incoming: Continue an incoming `traceparent`; when False, link it from a new root. `init_app` takes
            a function that says so for each request.
        baggage: Names of W3C baggage entries that are read from trusted callers and passed on by
            `healthobs.client`, and where PHI is declared by OpenTelemetry's propagator; none otherwise.
        tenants: Names of the tenants that requests and jobs are for, at most 100; each becomes a value of `tenant` in every
            signal, and every other name ``_other``. Empty: no signal has it. `set_tenant` states it.
        tenant_header: Request header that states the tenant, read from callers whose trace is continued
            (`trust_incoming`); a gateway must set or remove it.
        excluded: Paths (exact) whose requests leave no span, sample, access line or header of the server's; they
            are only counted. What the view itself calls still reports.
        log_level: Lowest level that is written.
        log_fields: Other names for fields of log lines, each as ``name=other``, such as ``trace_id=dd.trace_id``.
        capture_stdlib: Route the standard library's root logger through the same redacted JSON lines; for ``logs="own"``:
            refused beside ``processor``, which redacts what is there already, and without effect beside ``off``.
        redaction: ``watch`` counts what ``mask`` would change and changes nothing; ``mask`` masks what keys, types
            and patterns identify; ``strict`` also drops free text under unknown keys, and names that are not written
            in the code. None: ``strict`` when `frameworks` has ``hipaa`` (the service declares PHI), else ``mask``.
        allowed_keys: Exact names of log fields and span attributes that never hold a person's data, though
            their names look like it; their plain values pass redaction.
        max_series: Series per metric, and tenant where there are some, before further label values share one overflow series; series that
            decorators declare do not count.
        series_from_zero: Create at the first scrape, at 0, the series of every decorated function and of every route (status
            200 and 500), so that `rate()` sees their first increment; code that is never called is scraped too then.
        exemplars: Attach trace ids to histogram samples of sampled requests.
        headers: Send compliance and security headers.
        audience: Who gets the compliance headers: ``all``, or only callers that `init_app(trusted=…)` accepts.
        frameworks: Frameworks named in the `Compliance` header: ``hipaa``, ``sox``, ``pci-dss``, ``fda-21cfr11`` (those
            of the control catalogue), ``hitech``, ``gdpr``, ``soc2``; kept in lower case, others refused.
        trace_response: Send `traceresponse` with the trace and span id (W3C Trace Context Level 2, candidate
            draft); to the same audience as the compliance headers.
        endpoints: Serve `/metrics`, `/compliance/status` and `/audit/trail` beside the two probes.
        endpoint_prefix: Path under which all of these and the probes are served (`/_ops` makes `/_ops/health`), for an
            application that answers `/health` or `/metrics` itself; the ops port has none.
        builtin_checks: Readiness checks that come with the signals: ``metrics``, ``tracing`` (neither critical),
            ``audit_trail`` (critical unless `audit_policy` is ``spool``, where there is a trail).
        max_stall_seconds: Liveness fails when requests are in flight and none ends or sends a chunk for so long;
            0 never. Set it above the slowest request that is silent.
        drain_delay_seconds: Seconds to go on serving, not ready, after the first SIGTERM; 0 leaves SIGTERM to the
            server.
        ops_port: Port of its own for `/health`, `/readiness` with causes and `/metrics`, answered while every
            worker is busy; 0 opens none.
        ops_host: Address of the ops port.
        control_interval_seconds: How often the control engine runs what is due; 0 runs it only on demand.
        required_controls: Ids of controls that the gate asks for besides those that have a probe.
        out_of_scope: What the service declares not to have, so that controls of it do not apply: ``phi``,
            ``chd`` (cardholder data), ``part11``, ``signatures``, ``devices``, ``finance``.
        compliance_documents: Folder of signed attestations and waivers (``*.json``); None has none.
        compliance_keys: Public keys (vkeys) of the people whose signature on those documents counts.
        audit_database_url: Database of the audit trail: a file (``sqlite:///PATH``) or ``postgresql://...``; None
            keeps no trail.
        audit_key_file: Ed25519 signing key of the checkpoints (PEM), created 0600 with a new log; an existing log needs
            its own: restore it where it is missing.
        audit_policy: ``deny`` (no answer without a durable entry), ``spool`` (the same, but care under break-glass
            goes on with its entry in `audit_spool_file`) or ``alert`` (answer, count, log).
        audit_spool_file: Where entries wait while the store is down, under ``spool``; created 0600.
        audit_subjects_file: Encrypted map (`healthobs.audit.subjects`) from which each entry gets a random token in place of
            its subject; created 0600, on a local disk, and never the audit database. None records subjects as given.
        audit_subjects_url: The map in a database instead, which replicas share: ``postgresql://...``, the schema
            ``healthobs_subjects`` (or ``sqlite:///PATH``).
        audit_subjects_key_file: The map's key, created 0600 when missing and the map is new; default the file's name and
            ``.key``, with PostgreSQL none. Keep it away from the audit database and its backups.
        audit_timeout_seconds: How long a call waits, at most, for the store to take its entry (a lock, a slow disk, a server that
            hangs) before the policy decides, 1 to 60; for SQLite's own lock 5 at most. It holds its thread meanwhile.
        audit_retention_days: Retention stated by `/audit/trail`.
    """

    service_name: str = "unknown_service"
    service_version: str = "0.0.0"
    environment: str = "development"
    prefix: str | None = None
    disabled: bool = False
    otlp_endpoint: str | None = None
    trust_incoming: bool = True
    baggage: tuple[str, ...] = ()
    tenants: tuple[str, ...] = ()
    tenant_header: str = ""
    excluded: tuple[str, ...] = ()
    log_level: LogLevel = "info"
    log_fields: tuple[str, ...] = ()
    capture_stdlib: bool = False
    redaction: RedactionMode | None = None
    allowed_keys: tuple[str, ...] = ()
    max_series: int = 200
    series_from_zero: bool = False
    exemplars: bool = True
    headers: bool = False
    audience: Audience = "trusted"
    frameworks: tuple[str, ...] = ()
    trace_response: bool = False
    endpoints: bool = False
    endpoint_prefix: str = ""
    builtin_checks: tuple[str, ...] = BUILTIN_CHECKS
    max_stall_seconds: int = 0
    drain_delay_seconds: int = 0
    ops_port: int = 0
    ops_host: str = "127.0.0.1"
    control_interval_seconds: int = 60
    required_controls: tuple[str, ...] = ()
    out_of_scope: tuple[str, ...] = ()
    compliance_documents: Path | None = None
    compliance_keys: tuple[str, ...] = ()
    audit_database_url: str | None = None
    audit_key_file: Path | None = None
    audit_policy: AuditPolicy = "deny"
    audit_spool_file: Path | None = None
    audit_subjects_file: Path | None = None
    audit_subjects_url: str | None = None
    audit_subjects_key_file: Path | None = None
    audit_timeout_seconds: int = 10
    audit_retention_days: int = 2555

    def __post_init__(self) -> None:
        """Check every field and report all problems at once."""
        problems = self._take_types()
        problems += self._unknown_words()
        if not all(name and other for name, _, other in (pair.partition("=") for pair in self.log_fields)):
            problems.append("log_fields must be pairs such as trace_id=dd.trace_id")
        if not self.service_name.strip():
            problems.append("service_name must be a name, such as payment-gateway")
        problems += [
            f"{name} must be {'at least 1' if least else '0 or more'}"
            for name, least in _LEAST.items()
            if getattr(self, name) < least
        ]
        if len(self.tenants) > _MOST_TENANTS or not all(_TENANT.fullmatch(name) for name in self.tenants):
            problems.append(
                f"tenants must be at most {_MOST_TENANTS} names of letters, digits and . _ -, of up to 64"
            )
        if not _HEADER.fullmatch(self.tenant_header) or (self.tenant_header and not self.tenants):
            problems.append("tenant_header must be a header's name, beside the tenants that it may state")
        if not 0 <= self.ops_port <= 65535:
            problems.append("ops_port must be 1 to 65535, or 0 for none")
        if not _PREFIX.fullmatch(self.endpoint_prefix):
            problems.append("endpoint_prefix must be a path such as /_ops, without a slash at its end")
        if self.otlp_endpoint and not _ENDPOINT.fullmatch(self.otlp_endpoint):
            problems.append("otlp_endpoint must be a URL of http:// or https://")
        problems += self._of_the_trail()
        if self.prefix is not None and not self.prefix.isidentifier():
            problems.append("prefix must be a Prometheus name part such as 'payment_gateway'")
        if problems:
            raise ConfigurationError(*problems)

    def _of_the_trail(self) -> Iterator[str]:
        """Yield what is wrong with the settings of the audit trail."""
        if not 1 <= self.audit_timeout_seconds <= 60:
            yield "audit_timeout_seconds must be 1 to 60"
        if self.audit_policy == "spool" and self.audit_database_url and not self.audit_spool_file:
            yield "audit_policy spool needs audit_spool_file: without it care under break-glass is denied"
        if self.audit_subjects_file and self.audit_subjects_url:
            yield "audit_subjects_file and audit_subjects_url exclude each other: a trail has one map"
        if (self.audit_subjects_url or "").startswith("postgresql") and not self.audit_subjects_key_file:
            yield "audit_subjects_url in PostgreSQL needs audit_subjects_key_file, which its replicas share"

    def _unknown_words(self) -> Iterator[str]:
        """Yield what is wrong with fields of a closed vocabulary."""
        if set(self.frameworks) - set(FRAMEWORKS):
            yield f"frameworks must be among {', '.join(FRAMEWORKS)}"
        if set(self.builtin_checks) - set(BUILTIN_CHECKS):
            yield f"builtin_checks must be among {', '.join(BUILTIN_CHECKS)}"
        words = {
            "log_level": LogLevel,
            "redaction": RedactionMode,
            "audience": Audience,
            "audit_policy": AuditPolicy,
        }
        for name, choices in words.items():
            value = getattr(self, name)
            if value not in get_args(choices) and not (name == "redaction" and value is None):
                yield f"{name} must be one of {', '.join(get_args(choices))}"

    def __repr__(self) -> str:
        """Show every field, and of URLs nothing that may be a password."""
        shown = {spec.name: getattr(self, spec.name) for spec in fields(self)}
        shown |= {name: _without_secrets(shown[name]) for name in _URLS}
        return f"{type(self).__name__}({', '.join(f'{name}={value!r}' for name, value in shown.items())})"

    def _take_types(self) -> list[str]:
        """Refuse what has another type than its field; paths may be given as texts, and several texts as a list."""
        problems: list[str] = []
        for spec in fields(self):
            try:
                value = _typed(str(spec.type), getattr(self, spec.name))
            except ValueError as exc:
                problems.append(f"{spec.name} {exc}")
                value = spec.default  # nothing is made of it: the other checks go on
            object.__setattr__(self, spec.name, value)
        object.__setattr__(self, "frameworks", tuple(name.lower() for name in self.frameworks))
        return problems

    @property
    def redaction_mode(self) -> RedactionMode:
        """The step of `redaction` that is in force."""
        return self.redaction or ("strict" if "hipaa" in self.frameworks else "mask")

    @classmethod
    def from_env(cls, environ: Mapping[str, str] | None = None, **overrides: Any) -> Settings:
        """Read the settings from `environ`, explicit arguments first.

        Args:
            environ: Where to read from; default `os.environ`.
            **overrides: Fields that win over the environment.

        Raises:
            ConfigurationError: With every problem found; values are named by variable, never echoed.

        Warns:
            HealthobsWarning: Variables under ``HEALTHOBS_`` are no settings. One that is nearly the name of ``HEALTHOBS_FRAMEWORKS``
                or ``HEALTHOBS_REDACTION`` is a problem, for it would leave redaction weaker than was meant.

        Example:
            >>> Settings.from_env({"OTEL_SERVICE_NAME": "billing"}).service_name
            'billing'
        """
        environ = os.environ if environ is None else environ
        values: dict[str, Any] = dict(overrides)
        unknown = unknown_variables(environ)
        meant = {name: _meant(name) for name in unknown}
        problems = [
            f"{name} is no setting: {near} decides what is redacted" for name, near in meant.items() if near
        ]
        ignored = [name for name in unknown if not meant[name]]
        if ignored:
            warnings.warn(UNKNOWN + ", ".join(ignored), HealthobsWarning, stacklevel=2)
        for spec in fields(cls):
            if spec.name in values:
                continue
            for variable in variables(spec.name):
                if environ.get(variable, "") != "":
                    try:
                        values[spec.name] = _parse(spec.name, str(spec.type), environ[variable])
                    except ValueError as exc:
                        problems.append(f"{variable} {exc}")
                    break
        try:
            settings = cls(**values)
        except ConfigurationError as exc:
            raise ConfigurationError(*problems, *exc.problems) from None
        if problems:
            raise ConfigurationError(*problems)
        return settings


def variables(name: str) -> tuple[str, ...]:
    """Return the variables that set the field `name`; the first that is set wins."""
    own = f"HEALTHOBS_{name.upper()}"
    return (own, _OTEL[name]) if name in _OTEL else (own,)


def unknown_variables(environ: Mapping[str, str]) -> list[str]:
    """Return the variables of `environ` that are named like settings, and are none; sorted.

    Example:
        >>> unknown_variables({"HEALTHOBS_FRAMEWORK": "hipaa", "HEALTHOBS_REDACTION": "mask", "HOME": "/"})
        ['HEALTHOBS_FRAMEWORK']
    """
    known = _READ_ELSEWHERE.union(variables(spec.name)[0] for spec in fields(Settings))
    return sorted(
        name
        for name, value in environ.items()
        if name.upper().startswith("HEALTHOBS_")
        and value
        and name not in known
        and not _SERVICE_LINK.fullmatch(name)
        and not (name.endswith("_PORT") and "://" in value)
    )


def _meant(variable: str) -> str:
    """Return the decisive variable whose name is nearly that of `variable`, if any."""
    from difflib import get_close_matches  # dear to import, and needed where something is misspelt

    near = get_close_matches(variable.upper().removeprefix("HEALTHOBS_"), _DECISIVE, 1, _NEAR)
    return f"HEALTHOBS_{near[0]}" if near else ""


def _typed(kind: str, value: Any) -> Any:
    """Return `value` in the type that a field states; what cannot be has no part in the error."""
    if value is None and kind.endswith("| None"):
        return None
    if kind == "bool" and type(value) is not bool:
        raise ValueError("must be True or False")
    if kind == "int" and type(value) is not int:
        raise ValueError("must be a whole number")
    if kind.startswith("str") and not isinstance(value, str):
        raise ValueError("must be a text")
    if kind.startswith("Path"):
        if not value or not isinstance(value, (str, Path)):
            raise ValueError("must be a path")
        return Path(value)
    if kind.startswith("tuple"):
        # A text is a sequence too: of letters, which no later check would find.
        if isinstance(value, (str, bytes)):
            raise ValueError("must be a tuple of texts, not one text")
        if not isinstance(value, (tuple, list, set, frozenset)):
            raise ValueError("must be a tuple of texts")
        texts = tuple(cast("Iterable[object]", value))
        if not all(isinstance(text, str) for text in texts):
            raise ValueError("must be a tuple of texts")
        return texts
    return value


def _without_secrets(url: str | None) -> str | None:
    """Return `url` without what stands before its host and in its query, where passwords are."""
    return url and _SECRETS.sub(lambda found: "[masked]@" if found[0].endswith("@") else "[masked]", url)


def _parse(name: str, kind: str, text: str) -> Any:
    """Turn an environment variable's text into the field's type."""
    if kind == "bool":
        lowered = text.strip().lower()
        if lowered not in ("true", "false", "1", "0"):
            raise ValueError("must be true or false")
        return lowered in ("true", "1")
    if kind == "int":
        if not text.strip().isdecimal():
            raise ValueError("must be a whole number")
        return int(text)
    if kind.startswith("tuple"):
        return tuple(part.strip() for part in text.split(",") if part.strip())
    if kind.startswith("Path"):
        return Path(text)
    if name == "log_level":
        return {"warn": "warning", "fatal": "critical"}.get(text.lower(), text.lower())
    return text
