"""What a control is: an identified requirement, a criterion, and a probe that can fail.

Six states: ``pass`` and ``fail`` come from a probe that ran, ``partial`` says that some parts of many were
shown, ``attested`` that a named person declared it, ``not-applicable`` that a declared scope excludes it,
``unknown`` everything else (never run, stale, probe errored, not visible from here). Nothing is a constant.

Limits: run-time evidence is not certification.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, NamedTuple, cast, get_args

from healthobs.clock import Clock
from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.redaction import Redactor

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

    from healthobs.audit.trail import AuditTrail
    from healthobs.metrics import Metrics

State = Literal["pass", "fail", "partial", "not-applicable", "unknown", "attested"]
Method = Literal["probe", "measure", "config", "sample", "attestation"]
STATES: tuple[State, ...] = get_args(State)
METHODS: tuple[Method, ...] = get_args(Method)
#: States in which a required control lets the gate open.
ACCEPTED: frozenset[State] = frozenset({"pass", "attested", "not-applicable"})
#: Audit subject and action of what probes write, so that it never counts as a business event.
CANARY_SUBJECT = "canary"
CANARY_ACTION = "control.canary"

_ID = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,31}\Z")
_FRAMEWORK = re.compile(r"[a-z][a-z0-9-]{0,31}\Z")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What one run of a probe saw.

    Args:
        state: One of `STATES`.
        text: What was seen, in words; never a value from a person's record.
        n: How many things were looked at, a whole number; reported, not judged: where that is none and nothing else was tried, the state is
            ``unknown``.
        missing: For ``partial``: the parts that were not shown.
        unset: For ``unknown``: the set-up leaves nothing to look at, and `text`, a literal, says to everybody what it lacks.

    Raises:
        ValueError: The state is none, or it is `unset` in another one than ``unknown``; or a field has another type.

    Example:
        >>> Outcome("pass", "42 entries verified", 42).state
        'pass'
    """

    state: State
    text: str
    n: int | None = None
    missing: tuple[str, ...] = ()
    unset: bool = False

    def __post_init__(self) -> None:
        """Check that the state is one, that nothing but what a set-up lacks is for everybody, and that all of it is JSON."""
        if self.state not in STATES:
            raise ValueError(  # a literal, because log lines keep no other message
                "the state of an outcome is one of pass, fail, partial, not-applicable, unknown, attested"
            )
        if self.unset and self.state != "unknown":
            raise ValueError("unset says that nothing could be looked at, so its state is unknown")
        if not all(map(_is_text, (self.text, *_members(self.missing)))):
            raise ValueError("an outcome has a text, and a tuple of texts for what is missing")
        if self.n is not None and type(self.n) is not int:
            raise ValueError("the n of an outcome is a whole number, or none")
        object.__setattr__(self, "text", _encodable(self.text))
        object.__setattr__(self, "missing", tuple(map(_encodable, self.missing)))


def _is_text(value: object) -> bool:
    return isinstance(value, str)


def _members(value: object) -> tuple[object, ...]:
    """Return the members of a tuple, and of what is none something that is no text."""
    return cast("tuple[object, ...]", value) if isinstance(value, tuple) else (None,)


def _encodable(text: str) -> str:
    """Return `text` without lone surrogates, as names of files have them where they are not UTF-8."""
    return text.encode("utf-8", "replace").decode()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer of the service to a request it made to itself; header names in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes


#: Sends (method, path, headers, body) to the service's own application, inside the process.
Call = Callable[[str, str, Mapping[str, str], bytes], Reply]


@dataclass(frozen=True, slots=True)
class Route:
    """A route that must refuse callers without credentials, with values put in for its parameters."""

    method: str
    path: str


class Rehearsal(NamedTuple):
    """What became of a call whose audit entry the trail refused.

    Args:
        answered: Whether its value was handed out all the same.
        counted: Faults that were counted, by component.
        told: Log lines that were written, by event.
    """

    answered: bool
    counted: tuple[str, ...]
    told: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeContext:
    """What probes may look at.

    Args:
        settings: Of the service.
        clock: Wall and monotonic time.
        redactor: The service's own; what it lets through, telemetry lets through.
        audit: The audit trail, when there is one.
        provider: The tracer provider, when there is one.
        call: Sends requests to the service itself; None until an application is bound.
        protected: Routes declared to need credentials.
        metrics: Of the service, when there are some.
        refused_tokens: By name, tokens that the service must refuse: ``bad_signature``, with which nothing else is
            wrong (`healthobs.tokens.Verifier.forged`), and those that only the issuer can make (``expired``,
            ``wrong_audience``). The probes add those that anybody can make.
        rehearse: Ends a call of the service's whose audit entry the trail refuses, and says what became of it; nothing is
            counted or logged by it. None until an application is bound, or where there is no trail.
    """

    settings: Settings
    clock: Clock
    redactor: Redactor
    audit: AuditTrail | None = None
    provider: TracerProvider | None = None
    call: Call | None = None
    protected: Sequence[Route] = ()
    metrics: Metrics | None = None
    refused_tokens: Callable[[], Mapping[str, str]] | None = None
    rehearse: Callable[[], Rehearsal] | None = None


Probe = Callable[[ProbeContext], Outcome]


@dataclass(frozen=True, slots=True)
class Control:
    """One requirement and how it is observed.

    Args:
        id: Short name, as in the catalogue (``H-312.b``).
        cite: The clause (``45 CFR 164.312(b)``).
        framework: Lower-case framework (``hipaa``); label `type` of the check counter.
        title: A few words.
        criterion: What must be seen for ``pass``.
        method: How it is observed.
        probe: Looks and returns an `Outcome`; whatever it raises makes the control ``unknown``. None when only a
            person can attest it, or nothing observes it yet.
        valid_for_s: Seconds after which a result decays to ``unknown``.
        required: Whether the gate needs it.
        scope: What the control is about (``chd``); a service that declares not to have it makes it
            ``not-applicable``.
        every_s: Least seconds between scheduled runs, for probes that are dear; 0 runs at every round.

    Raises:
        ConfigurationError: Listing everything that is wrong.

    Example:
        >>> control = Control("S-1", "policy 7", "company", "Ledger balances", "sum is 0", "measure",
        ...                   lambda context: Outcome("pass", "sum is 0"))
        >>> control.required
        True
    """

    id: str
    cite: str
    framework: str
    title: str
    criterion: str
    method: Method
    probe: Probe | None = None
    valid_for_s: int = 600
    required: bool = True
    scope: str | None = None
    every_s: int = 0

    def __post_init__(self) -> None:
        """Check every field and report all problems at once."""
        problems: list[str] = []
        if not _ID.match(self.id):
            problems.append("a control's id is up to 32 letters, digits, dots, hyphens and underscores")
        if not _FRAMEWORK.match(self.framework):
            problems.append("a control's framework is lower-case letters, digits and hyphens")
        if not (self.cite and self.title and self.criterion):
            problems.append("a control needs cite, title and criterion")
        if self.method not in METHODS:
            problems.append(f"a control's method is one of {', '.join(METHODS)}")
        if self.method == "attestation":
            if self.probe is not None:
                problems.append("a control whose method is attestation has no probe")
        elif self.probe is None and self.required:
            problems.append("a required control has a probe, unless its method is attestation")
        if self.valid_for_s < 1 or not 0 <= self.every_s < self.valid_for_s:
            problems.append("valid_for_s is at least 1, and every_s less than it")
        if problems:
            raise ConfigurationError(*problems)


@dataclass(frozen=True, slots=True)
class Result:
    """What a control's last run left behind.

    Args:
        control: Which control.
        outcome: What was seen.
        observed_at: RFC 3339 time of the run.
        observed_ns: Monotonic time of the run; ages are measured by it, so that a wall clock that is set back
            refreshes nothing.
        digest: SHA-256 over the canonical evidence.
    """

    control: Control
    outcome: Outcome
    observed_at: str
    observed_ns: int
    digest: str = field(repr=False)
