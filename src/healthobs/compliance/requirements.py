"""The catalogue: 52 requirements as data, and how a probe is bound to one of them by its id.

45 CFR 164.308 to 164.528 (HIPAA), 21 CFR Part 11, PCI DSS 4.0, and internal control over financial reporting
(SOX §404). A requirement that nobody observes is ``unknown``: it is listed here, so it is shown as missing.

Limits: `seen_by` says what evidence a running service can give, not that this release gives it; `attested` is what
no probe sees. Texts of 21 CFR 11.50 to 11.300 were not checked against the current CFR. No lawyer has read this.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from healthobs.compliance.control import Control, Method, Probe
from healthobs.exceptions import ConfigurationError

#: id | citation | title | scope | method | seen by | only attested
_ROWS = """
H-308.1D | 45 CFR 164.308(a)(1)(ii)(D) | Activity review | phi | measure | the last review entry by a reviewer is younger than the policy allows | quality of the review
H-308.3C | 45 CFR 164.308(a)(3)(ii)(C) | Access ends with employment | phi | probe | the token of a disabled canary account is refused | the personnel process
H-308.4 | 45 CFR 164.308(a)(4) | Access is authorised | phi | config | every route has a declared policy | design of the roles
H-308.5 | 45 CFR 164.308(a)(5)(i) | Training | phi | attestation | - | training, once a year
H-308.5C | 45 CFR 164.308(a)(5)(ii)(C) | Log-in monitoring | phi | probe | a bad log-in leaves an audit entry and moves a counter |
H-308.6 | 45 CFR 164.308(a)(6)(ii) | Incident response | phi | measure | the alerting watchdog was seen in the last five minutes | plan and drills
H-308.7A | 45 CFR 164.308(a)(7)(ii)(A) | Backup | phi | measure | the last copy elsewhere is recent, and its checkpoint is consistent with ours | restore drills
H-308.b | 45 CFR 164.308(b) | Business associate contracts | phi | attestation | - | the contracts
H-310.d | 45 CFR 164.310(d)(2)(i) | Disposal of media | phi | probe | what was sealed under a destroyed key no longer opens | physical media
H-312.a1 | 45 CFR 164.312(a)(1) | Access control | phi | probe | every declared route answers 401 or 403 without credentials |
H-312.a2i | 45 CFR 164.312(a)(2)(i) | Unique user identification | phi | measure | no audit entry of a person's access lacks its actor |
H-312.a2ii | 45 CFR 164.312(a)(2)(ii) | Emergency access | phi | probe | break-glass works, and each use has a reason and a review | the procedure
H-312.a2iii | 45 CFR 164.312(a)(2)(iii) | Automatic log-off | phi | probe | an expired token is refused, and tokens live no longer than the policy allows |
H-312.a2iv | 45 CFR 164.312(a)(2)(iv) | Encryption at rest | phi | probe | a canary and sampled records are unreadable in what is stored | encryption of disks
H-312.b | 45 CFR 164.312(b) | Audit controls | phi | probe | a canary entry is recorded, read back, and included under the signed checkpoint |
H-312.c | 45 CFR 164.312(c)(1) | Integrity | phi | measure | every entry, checkpoint and guard verifies, the trail extends what was verified before, and an independent witness cosigned |
H-312.d | 45 CFR 164.312(d) | Entity authentication | phi | probe | every route refuses garbage, unsigned and forged tokens, and one of which only the signature is wrong | identity proofing
H-312.e | 45 CFR 164.312(e) | Transmission security | phi | probe | the service's own sockets negotiate TLS 1.2 or later, and no plain port is open | TLS at the edge
H-316 | 45 CFR 164.316(b)(2)(i) | Documentation is kept six years | phi | probe | pruning an entry before its time is refused, and holds are honoured | which logs are documentation
H-502b | 45 CFR 164.502(b), 164.514(d) | Minimum necessary | phi | probe | every answer is a view, and no view shows a field that it does not declare | needs of the roles
H-514 | 45 CFR 164.514(b)(2) | The eighteen identifiers stay out of telemetry | phi | probe | each is masked under its key and in free text | expert determination
H-528 | 45 CFR 164.528(b)(2) | Accounting of disclosures | phi | probe | each disclosure has date, recipient, description and purpose, and a canary's report is complete | disclosures outside the system
P-10a | 21 CFR 11.10(a) | Validation; altered records are discerned | part11 | probe | the running build is the validated one, and an altered canary record is detected | the validation study
P-10b | 21 CFR 11.10(b) | Copies, readable and electronic | part11 | probe | an exported sample verifies in both forms |
P-10c | 21 CFR 11.10(c) | Records are retrievable while they are kept | part11 | sample | old records drawn at random are read and match their hashes |
P-10d | 21 CFR 11.10(d) | Access for the authorised only | part11 | probe | every declared route answers 401 or 403 without credentials |
P-10e | 21 CFR 11.10(e) | Time-stamped trail; changes do not obscure | part11 | probe | a changed canary record keeps its earlier version |
P-10f | 21 CFR 11.10(f) | Sequence of steps | part11 | probe | a transition that is not allowed is refused |
P-10g | 21 CFR 11.10(g) | Authority checks | part11 | probe | signing in the wrong role is refused |
P-10h | 21 CFR 11.10(h) | Device checks | devices | probe | an unknown device and a wrong check digit are refused |
P-10ij | 21 CFR 11.10(i), (j) | Training and accountability | part11 | attestation | - | training and written policies
P-10k | 21 CFR 11.10(k) | Document control | part11 | config | the served documentation is of the running build | the procedure
P-50 | 21 CFR 11.50 | What a signature says | signatures | sample | every signature has name, time and meaning, in the readable copy too |
P-70 | 21 CFR 11.70 | Signatures are bound to their records | signatures | probe | a signature that is moved to another record does not hold |
P-100 | 21 CFR 11.100 | Signatures are one person's | signatures | measure | no two persons share a signer's id, and none is used again | identity proofing, letter to the FDA
P-200 | 21 CFR 11.200(a) | Two components of a signature | signatures | probe | signing with the session alone is refused |
P-300 | 21 CFR 11.300 | Identification codes and passwords | signatures | probe | codes are unique, guessing is locked out, and unauthorised use raises an alert | loss of devices
C-3.3 | PCI DSS 4.0 3.3.1.2 | No card verification code is kept | chd | probe | a canary verification code is in neither telemetry nor an audit entry's bytes |
C-3.5 | PCI DSS 4.0 3.4.1, 3.5.1 | Card numbers are unreadable | chd | probe | a canary card number is in neither telemetry nor an audit entry's bytes | custody of keys
C-4.2 | PCI DSS 4.0 4.2.1 | Strong cryptography in transit | chd | probe | the service's own sockets negotiate TLS 1.2 or later, and no plain port is open | TLS at the edge
C-7.3 | PCI DSS 4.0 7.2.1, 7.3.3 | All is denied by default | chd | probe | every route has a declared policy, and an unknown role is refused | reviews of access (7.2.4)
C-8 | PCI DSS 4.0 8.2.8, 8.3.4, 8.3.6, 8.4.2 | Sessions, passwords and second factors | chd | probe | the eleventh attempt and a token without second factor are refused; idle limits are in force |
C-10.2 | PCI DSS 4.0 10.2.1, 10.2.2 | Seven kinds of event with six fields | chd | measure | each kind was seen or tested, and no entry lacks a field |
C-10.3 | PCI DSS 4.0 10.3.2, 10.3.4 | Audit entries cannot be changed | chd | probe | update, delete, replace and misnumbering of an entry are refused |
C-10.4 | PCI DSS 4.0 10.4.1, 10.4.1.1 | Daily, automated review of logs | chd | measure | the alert rules are loaded and were evaluated recently | follow-up
C-10.5 | PCI DSS 4.0 10.5.1 | Twelve months of logs, three at hand | chd | measure | the entries that can be read go back far enough |
C-10.6 | PCI DSS 4.0 10.6.1 | Clocks are in sync | chd | measure | the kernel has a time source and is at most 1 s off; the wall clock has not jumped by 0.5 s |
C-10.7 | PCI DSS 4.0 10.7.2 | Failures of logging are detected | chd | probe | an append that fails raises a counter and denies the request | the response
S-sod | 15 U.S.C. 7262; COSO 2013 principle 10 | Separation of duties | finance | probe | no stored decision is the initiator's own, and a self-approval is refused | matrix of roles
S-dual | 15 U.S.C. 7262; COSO 2013 principle 10 | Dual control | finance | probe | every payment beyond a threshold has the approvers it needs, and each threshold is in force | choice of thresholds
S-chg | 15 U.S.C. 7262; COSO 2013 principle 11 | Only approved builds run | finance | config | the running build's digest has signed provenance with a change id |
S-ret | Company policy, seven years; 18 U.S.C. 1519 | Records are kept and held | finance | probe | pruning is refused under a hold and inside seven years, and no number is missing | the policy
"""
_FRAMEWORKS = {"H": "hipaa", "P": "fda-21cfr11", "C": "pci-dss", "S": "sox"}
#: What a service may declare that it does not have (`Settings.out_of_scope`), and what that means.
SCOPES: Mapping[str, str] = MappingProxyType(
    {
        "phi": "protected health information",
        "chd": "cardholder data",
        "part11": "electronic records under 21 CFR Part 11",
        "signatures": "electronic signatures",
        "devices": "medical devices as sources of data",
        "finance": "transactions that financial reports rest on",
    }
)


@dataclass(frozen=True, slots=True)
class Requirement:
    """One row of the catalogue.

    Args:
        id: Short name (``H-312.b``).
        cite: The clause.
        framework: Lower-case framework.
        title: A few words.
        scope: What a service may declare not to have, so that this does not apply; a name in `SCOPES`.
        method: Kind of evidence.
        seen_by: What a probe is to see; empty when there is nothing to see.
        attested: What only a person can declare; empty when there is no such part.
    """

    id: str
    cite: str
    framework: str
    title: str
    scope: str
    method: Method
    seen_by: str
    attested: str

    def unobserved(self) -> Control:
        """Return the control of a requirement that nothing observes; the gate does not ask for it."""
        return Control(
            self.id, self.cite, self.framework, self.title,
            self.seen_by or f"a person attests: {self.attested}",
            self.method, scope=self.scope, required=False,
        )  # fmt: skip


def _read(row: str) -> Requirement:
    name, cite, title, scope, method, seen_by, attested = (cell.strip() for cell in row.split("|"))
    method_: Any = method
    return Requirement(
        name, cite, _FRAMEWORKS[name[0]], title, scope, method_, "" if seen_by == "-" else seen_by, attested
    )


#: The 52 requirements by id, in the order of the catalogue.
REQUIREMENTS: Mapping[str, Requirement] = MappingProxyType(
    {row.id: row for row in map(_read, _ROWS.strip().splitlines())}
)


def control(
    id: str,  # noqa: A002 - the word of the catalogue
    *,
    part: str = "",
    criterion: str = "",
    valid_for_s: int = 600,
    every_s: int = 0,
    required: bool = True,
) -> Callable[[Probe], Control]:
    """Bind a probe to a requirement of the catalogue: title, citation, framework and scope come from there.

    Args:
        id: Of the requirement.
        part: Name of one of several probes of a requirement; the control's id is then ``<id>.<part>``.
        criterion: What this probe must see, where that is more exact than the catalogue's words.
        valid_for_s: Seconds after which a result decays to ``unknown``.
        every_s: Least seconds between scheduled runs, for probes that are dear.
        required: Whether the gate needs it.

    Raises:
        ConfigurationError: The catalogue has no such id.

    Example:
        >>> from healthobs.compliance import Outcome
        >>> @control("H-528")
        ... def disclosures(context):
        ...     return Outcome("pass", "12 disclosures are complete", 12)
        >>> disclosures.id, disclosures.cite
        ('H-528', '45 CFR 164.528(b)(2)')
    """
    row = REQUIREMENTS.get(id)
    if row is None:
        raise ConfigurationError(
            "the catalogue has no such requirement: use an id of healthobs.compliance.REQUIREMENTS, or a Control"
        )

    def bind(probe: Probe) -> Control:
        return Control(
            f"{id}.{part}" if part else id,
            row.cite,
            row.framework,
            row.title,
            criterion or row.seen_by,
            "probe" if row.method == "attestation" else row.method,
            probe,
            valid_for_s=valid_for_s,
            required=required,
            scope=row.scope,
            every_s=every_s,
        )

    return bind
