"""An entry as a FHIR R4 AuditEvent in the shapes of IHE BALP (Basic Audit Log Patterns), as plain dicts.

The direction of the agents is BALP's, not intuition's: for a read the server is the source and the client the
destination; for create, update and query it is the reverse; for a delete they are custodian and application.
A failed or refused action has BALP's shape, but not its profile: those are for successes. The whole is HL7
FHIR R4 (4.0.1) AuditEvent; the trace id is a second transaction entity beside the request id's.

What the trail records of itself (`audit.*`) is no RESTful interaction with patient data, and has none of BALP's profiles: a
reading of the trail is DICOM's Audit Log Used, the rest an application activity, which the second code tells apart.

Details that begin with ``healthobs.`` are this module's; a detail of the application's whose name begins so, or with an
apostrophe, gets an apostrophe in front.

Limits: subject, actor and resource are the opaque ids of the log. Network addresses are not recorded, so the
agents' `network` says only what kind it would be. Actions whose verb is unknown become an application activity.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from healthobs.audit import governance

_TERMS = "http://terminology.hl7.org/CodeSystem/"
_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_BALP = "https://profiles.ihe.net/ITI/BALP/"
_SOURCE, _DESTINATION = (_DCM, "110153", "Source Role ID"), (_DCM, "110152", "Destination Role ID")
_Term = tuple[str, str, str]

#: Characters that no FHIR string has.
_CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f]")

#: Verb of an action (``patient.read``) by kind of interaction.
_VERBS = {
    "read": ("read", "view", "get", "introspect", "lookup", "reveal", "verify"),
    "create": ("create", "add", "register", "authorize", "charge", "issue", "sign", "generate", "record"),
    "update": ("update", "change", "correct", "approve", "reject", "capture", "refund", "revoke", "release"),
    "search": ("search", "query", "list", "find"),
    "delete": ("delete", "remove", "erase"),
    "disclosure": ("disclose", "disclosure", "export"),
}
_KINDS = {verb: kind for kind, verbs in _VERBS.items() for verb in verbs}
#: Action code, profile, agent type of the server, agent type of the client.
_SHAPES: dict[str, tuple[str, str, _Term, _Term]] = {
    "read": ("R", "Read", _SOURCE, _DESTINATION),
    "create": ("C", "Create", _DESTINATION, _SOURCE),
    "update": ("U", "Update", _DESTINATION, _SOURCE),
    "search": ("E", "Query", _DESTINATION, _SOURCE),
    "delete": (
        "D", "Delete", (_TERMS + "provenance-participant-type", "custodian", "Custodian"),
        (_DCM, "110150", "Application"),
    ),
    "disclosure": ("R", "PrivacyDisclosure.Source", _SOURCE, _DESTINATION),
}  # fmt: skip
_ISO = f"{_TERMS}iso-21089-lifecycle"
_ACTIVITY: _Term = (_DCM, "110100", "Application Activity")
_DESTROY: _Term = (_ISO, "destroy", "Destroy/Delete Record Lifecycle Event")
#: What the trail records of itself: type, subtype, action code.
_OWN: dict[str, tuple[_Term, _Term | None, str]] = {
    "audit.read": ((_DCM, "110101", "Audit Log Used"), None, "R"),
    governance.KEY: (_ACTIVITY, (_DCM, "110129", "Security Configuration"), "E"),
    governance.APPROVERS: (_ACTIVITY, (_DCM, "110136", "Security Roles Changed"), "E"),
    governance.HOLD: (_ACTIVITY, (_ISO, "hold", "Add Legal Hold Record Lifecycle Event"), "E"),
    governance.RELEASE: (_ACTIVITY, (_ISO, "unhold", "Remove Legal Hold Record Lifecycle Event"), "E"),
    governance.ERASE: (_ACTIVITY, _DESTROY, "D"),
    governance.PRUNE: (_ACTIVITY, _DESTROY, "D"),
    governance.DAMAGE: (_ACTIVITY, None, "E"),
}
_OUTCOMES = {"ok": "0", "denied": "4", "failed": "4", "error": "8"}


def audit_event(entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return the AuditEvent of a decoded entry, as pages and `reading.decoded` give it.

    Args:
        entry: A readable entry (not one whose body is gone).

    Example:
        >>> body = {"index": 0, "hash": "00", "time": "2026-01-01T00:00:00.000000Z", "service": "phi",
        ...         "action": "patient.read", "outcome": "ok", "actor": {"id": "client-1", "kind": "client"},
        ...         "subject": "s-17", "resource": {"type": "patient", "id": "p-1"}, "purpose": "TREAT",
        ...         "classification": "R", "reason": None, "details": {}, "trace_id": None, "request_id": None}
        >>> event = audit_event(body)
        >>> event["action"], event["agent"][0]["type"]["coding"][0]["display"]
        ('R', 'Source Role ID')
    """
    action = entry["action"]
    kind = None if action in _OWN else _KINDS.get(action.rpartition(".")[2])
    service = {"display": entry["service"]}
    event: dict[str, Any] = {
        "resourceType": "AuditEvent",
        **_what(kind, entry),
        "recorded": entry["time"],
        "outcome": _OUTCOMES.get(entry["outcome"], "4"),
        "outcomeDesc": _said(entry["reason"] or entry["outcome"]),
        "agent": _agents(kind, entry, service),
        "source": {
            "site": entry["service"],
            "observer": service,
            "type": [_coding((_TERMS + "security-source-type", "4", "Application Server"))],
        },
        "entity": _entities(kind, entry),
    }
    if entry["purpose"]:
        event["purposeOfEvent"] = [_concept((_TERMS + "v3-ActReason", entry["purpose"], ""))]
    return event


def _what(kind: str | None, entry: Mapping[str, Any]) -> dict[str, Any]:
    """Return profile, type, subtype and action."""
    own = _coding(("urn:healthobs:action", entry["action"], ""))
    if kind is None:
        what, more, action = _OWN.get(entry["action"], (_ACTIVITY, None, "E"))
        return {
            "type": _coding(what),
            "subtype": [own] if more is None else [_coding(more), own],
            "action": action,
        }
    action, profile, _, _ = _SHAPES[kind]
    if kind == "disclosure":
        shape = _coding((_DCM, "110106", "Export"))
        subtype = _coding((_ISO, "disclose", "Disclose Record Lifecycle Event"))
    else:
        shape = _coding((_TERMS + "audit-event-type", "rest", "RESTful Operation"))
        subtype = _coding(("http://hl7.org/fhir/restful-interaction", kind, kind))
        profile = f"Patient{profile}" if entry["subject"] else profile
    said: dict[str, Any] = {"type": shape, "subtype": [subtype, own], "action": action}
    complete = entry["subject"] or kind != "disclosure"  # a disclosure without its subject is not BALP's
    if entry["outcome"] == "ok" and complete:
        said["meta"] = {"profile": [f"{_BALP}StructureDefinition/IHE.BasicAudit.{profile}"]}
    return said


def _agents(kind: str | None, entry: Mapping[str, Any], service: dict[str, str]) -> list[dict[str, Any]]:
    """Return the server, the client, and the user where a person asked."""
    _, _, server, client = _SHAPES.get(kind or "", _SHAPES["read"])
    actor = _said(entry["actor"]["id"] or "unknown")
    who = {"identifier": {"value": actor}}
    is_user = entry["actor"]["kind"] == "user"
    agents: list[dict[str, Any]] = [
        {"type": _concept(server), "who": service, "requestor": False, "network": {"type": "1"}},
        {"type": _concept(client), "who": who, "requestor": not is_user, "network": {"type": "2"}},
    ]
    if is_user:
        role = _concept((_TERMS + "v3-ParticipationType", "IRCP", "information recipient"))
        agents.append({"type": role, "who": who, "requestor": True})
    if entry["purpose"]:
        agents[-1]["purposeOfUse"] = [_concept((_TERMS + "v3-ActReason", entry["purpose"], ""))]
    return agents


def _entities(kind: str | None, entry: Mapping[str, Any]) -> list[dict[str, Any]]:
    entities: list[dict[str, Any]] = []
    if entry["subject"]:
        entities.append(
            _entity(
                "1",
                ("1", "Patient"),
                what={"type": "Patient", "identifier": {"value": _said(entry["subject"])}},
            )
        )
    data = _entity("2", _role(kind, entry["action"]))
    resource = entry["resource"]
    if kind != "search":
        data["what"] = {"identifier": {"value": _said(resource["id"] or resource["type"] or entry["action"])}}
    elif resource["type"]:
        data["description"] = _said(resource["type"])
    if entry["classification"]:
        data["securityLabel"] = [_coding((_TERMS + "v3-Confidentiality", _code(entry["classification"]), ""))]
    tenant = {"healthobs.tenant": entry["tenant"]} if entry.get("tenant") else {}
    facts = {
        **{_theirs(name): value for name, value in entry["details"].items()},
        **tenant,
        "healthobs.index": entry["index"],
        "healthobs.leaf": entry["hash"],
    }
    data["detail"] = [{"type": _said(name), "valueString": _said(value)} for name, value in facts.items()]
    entities.append(data)
    for code, name in (("XrequestId", "request_id"), ("traceId", "trace_id")):
        if entry[name]:
            system = (
                f"{_BALP}CodeSystem/BasicAuditEntityType" if code == "XrequestId" else "urn:healthobs:entity"
            )
            entities.append(
                {
                    "type": {"system": system, "code": code},
                    "what": {"identifier": {"value": _said(entry[name])}},
                }
            )
    return entities


def _role(kind: str | None, action: str) -> tuple[str, str]:
    """Return what the data is in the event."""
    if action in _OWN:
        return "13", "Security Resource"
    return ("24", "Query") if kind == "search" else ("4", "Domain Resource")


def _theirs(name: str) -> str:
    """Return the name of an application's detail, which none of this module's is."""
    return f"'{name}" if name.startswith(("healthobs.", "'")) else name


def _said(value: object) -> str:
    """Return it as a FHIR string, which is neither empty nor blank, and has no control characters (R4, "Primitive types")."""
    return _CONTROL.sub("\ufffd", str(value)) if str(value).strip() else "-"


def _code(value: str) -> str:
    """Return it as a FHIR code, which has single blanks only, and only within (R4, "Primitive types")."""
    return " ".join(_said(value).split())


def _entity(kind: str, role: tuple[str, str], **more: Any) -> dict[str, Any]:
    names = {"1": "Person", "2": "System Object"}
    return {
        "type": _coding((_TERMS + "audit-entity-type", kind, names[kind])),
        "role": _coding((_TERMS + "object-role", *role)),
        **more,
    }


def _coding(term: _Term) -> dict[str, str]:
    system, code, display = term
    return {"system": system, "code": code, **({"display": display} if display else {})}


def _concept(term: _Term) -> dict[str, Any]:
    return {"coding": [_coding(term)]}
