"""The library's own controls: those whose subject the library has.

Citations: 45 CFR 164.312 and 164.514 (HIPAA), PCI DSS 4.0 requirements, OWASP Secure Headers Project.
Services add their own to these.

Limits: each control shows what its criterion says and no more of the clause than that.
"""

from __future__ import annotations

from collections.abc import Callable

from healthobs.compliance.control import Control
from healthobs.compliance.probes_audit import Integrity, records_and_proves, refuses_changes
from healthobs.compliance.probes_clock import ClockInSync, KernelClock, read_kernel_clock
from healthobs.compliance.probes_http import refuses_bad_tokens, refuses_strangers, sends_headers
from healthobs.compliance.probes_telemetry import (
    hides_authentication_data,
    hides_card_numbers,
    masks_identifiers,
    wraps_every_exporter,
)


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
    return (
        Control(
            "H-312.a1",
            "45 CFR 164.312(a)(1)",
            "hipaa",
            "Access control",
            "every declared route answers 401 or 403 without credentials",
            "probe",
            refuses_strangers,
        ),
        Control(
            "H-312.b",
            "45 CFR 164.312(b)",
            "hipaa",
            "Audit controls",
            "a canary entry is recorded, read back, and included under the signed checkpoint",
            "probe",
            records_and_proves,
            valid_for_s=900,
            every_s=60,
        ),
        Control(
            "H-312.c",
            "45 CFR 164.312(c)(1)",
            "hipaa",
            "Integrity of the audit trail",
            "every entry, checkpoint and guard verifies, and the trail extends what was verified before",
            "measure",
            Integrity(),
            valid_for_s=900,
            every_s=60,
        ),
        Control(
            "H-312.d",
            "45 CFR 164.312(d)",
            "hipaa",
            "Entity authentication",
            "garbage, unsigned and forged tokens, and those that the issuer supplies, are refused",
            "probe",
            refuses_bad_tokens,
        ),
        Control(
            "H-514",
            "45 CFR 164.514(b)(2)",
            "hipaa",
            "The eighteen identifiers stay out of telemetry",
            "each is masked under its key and in free text",
            "probe",
            masks_identifiers,
            required=False,  # no pattern finds a name, so this cannot pass
        ),
        Control(
            "G-wrap",
            "45 CFR 164.502(b)",
            "hipaa",
            "Every span exporter redacts",
            "no span exporter of the tracer provider stands outside the redactor",
            "config",
            wraps_every_exporter,
        ),
        Control(
            "C-3.3",
            "PCI DSS 4.0 3.3.1.2",
            "pci-dss",
            "No card verification code is kept",
            "a canary verification code is in neither telemetry nor the audit trail's bytes",
            "probe",
            hides_authentication_data,
            valid_for_s=900,
            scope="chd",
            every_s=60,
        ),
        Control(
            "C-3.5",
            "PCI DSS 4.0 3.4.1, 3.5.1",
            "pci-dss",
            "Card numbers are unreadable",
            "a canary card number is in neither telemetry nor the audit trail's bytes",
            "probe",
            hides_card_numbers,
            valid_for_s=900,
            scope="chd",
            every_s=60,
        ),
        Control(
            "C-10.3",
            "PCI DSS 4.0 10.3.2, 10.3.4",
            "pci-dss",
            "Audit entries cannot be changed",
            "update, delete, replace and misnumbering of an entry are refused",
            "probe",
            refuses_changes,
        ),
        Control(
            "C-10.6",
            "PCI DSS 4.0 10.6.1",
            "pci-dss",
            "Clocks are in sync",
            "the kernel has a time source and is at most 1 s off; the wall clock has not jumped by 0.5 s",
            "measure",
            ClockInSync(kernel_clock),
            required=False,  # a container often may not ask
        ),
        Control(
            "HDR",
            "OWASP Secure Headers Project; RFC 9651",
            "owasp",
            "Security and compliance headers",
            "they are on a success, on an unknown path and on a wrong method",
            "probe",
            sends_headers,
        ),
    )
