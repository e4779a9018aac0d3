"""The library's own controls: those requirements of the catalogue whose subject the library has.

Two are the library's alone: that every exporter and sink redacts, and that responses carry their headers (OWASP Secure
Headers Project, RFC 9651). Services add theirs with `control`.

Limits: each control shows what its criterion says and no more of the clause than that.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from healthobs.compliance.control import Control
from healthobs.compliance.probes_audit import (
    Integrity,
    Recording,
    copies_entries,
    names_actors,
    notices_refusals,
    reaches_in_emergencies,
    records_events,
    refuses_changes,
    samples_entries,
)
from healthobs.compliance.probes_clock import ClockInSync, KernelClock, read_kernel_clock
from healthobs.compliance.probes_http import refuses_bad_tokens, refuses_strangers, sends_headers
from healthobs.compliance.probes_retention import Looks, Retained
from healthobs.compliance.probes_telemetry import (
    hides_authentication_data,
    hides_card_numbers,
    masks_identifiers,
    wraps_every_exporter,
)
from healthobs.compliance.requirements import REQUIREMENTS, control

#: Six years, twelve months, and seven years as a policy counts them and with their leap days.
_SIX, _ONE, _SEVEN, _SEVEN_LONG = 2_192, 365, 2_555, 2_557
_KEPT = "the service states at least {} days, and what is gone from the log went by order, {} after it came, and under no hold"
_NOTICED = "a call whose entry the trail refuses is denied, counted as a fault of audit and logged"
_COPIES = "a run of entries is copied as JSON and tlog-proof, which verify, and as CSV and AuditEvents, which say the same"
_EMERGENCY = (
    "where a spool is configured it can be used, and each use of break-glass has a reason and a review"
)
_EVENTS = (
    "each of the newest entries that was answered has its six fields, and each kind of event is among them"
)
_ACTORS = "each of the newest entries about a person that was answered names its actor"


def library_controls(
    *, kernel_clock: Callable[[], KernelClock | None] = read_kernel_clock
) -> tuple[Control, ...]:
    """Return the library's controls, for one engine: some of their probes remember their last run.

    Args:
        kernel_clock: Where the kernel's clock state comes from.

    Example:
        >>> [control.id for control in library_controls()][:3]
        ['H-312.a1', 'H-312.b', 'H-312.c']
    """
    dear = partial(control, valid_for_s=900, every_s=60)
    looks = Looks()
    return (
        control("H-312.a1")(refuses_strangers),
        # Some services hold nobody's record
        dear("H-312.a2i", criterion=_ACTORS, required=False)(names_actors),
        # No review is recorded yet, so it cannot pass
        dear("H-312.a2ii", criterion=_EMERGENCY, required=False)(reaches_in_emergencies),
        dear("H-312.b")(Recording()),
        dear("H-312.c")(Integrity()),
        control("H-312.d")(refuses_bad_tokens),
        dear("H-316", criterion=_KEPT.format(_SIX, "six years"))(Retained(looks, _SIX)),
        control("H-514", required=False)(
            masks_identifiers
        ),  # a name in free text has no pattern, so in mask it cannot pass
        Control(
            "G-wrap",
            "45 CFR 164.502(b)",
            "hipaa",
            "Every exporter and log sink redacts",
            "no span exporter, log handler or structlog chain stands outside the redactor, and no propagator sends baggage "
            "that nobody allowed",
            "config",
            wraps_every_exporter,
        ),
        control("P-10d")(refuses_strangers),
        dear(
            "P-10c",
            criterion="entries drawn at random are read, match their hashes, and are under the checkpoint",
        )(samples_entries),
        dear("P-10b", criterion=_COPIES)(copies_entries),
        dear("C-3.3")(hides_authentication_data),
        dear("C-3.5")(hides_card_numbers),
        # Two kinds only the service can name, so it cannot pass
        dear("C-10.2", criterion=_EVENTS, required=False)(records_events),
        control("C-10.3")(refuses_changes),
        dear("C-10.5", criterion=_KEPT.format(_ONE, "twelve months"))(Retained(looks, _ONE)),
        control("C-10.6", required=False)(ClockInSync(kernel_clock)),  # a container often may not ask
        control("C-10.7", criterion=_NOTICED)(notices_refusals),
        dear("S-ret", criterion=_KEPT.format(_SEVEN, "seven years"))(
            Retained(looks, _SEVEN_LONG, stated=_SEVEN, others=_SIX)
        ),
        Control(
            "HDR",
            "OWASP Secure Headers Project; RFC 9651",
            "owasp",
            "Security and compliance headers",
            "they are on a success, on an unknown path, on a wrong method and on what protected routes answer to strangers",
            "probe",
            sends_headers,
        ),
    )


def with_catalogue(controls: tuple[Control, ...]) -> tuple[Control, ...]:
    """Return `controls`, and after them each requirement of the catalogue that none of them observes.

    Example:
        >>> len(with_catalogue(()))
        52
    """
    observed = {name for made in controls for name in (made.id, made.id.rpartition(".")[0])}
    return (*controls, *(row.unobserved() for name, row in REQUIREMENTS.items() if name not in observed))
