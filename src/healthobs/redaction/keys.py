"""What a key says about its value: pass it, mask it, or scan it.

Allow-list first: exact names of the OpenTelemetry semantic conventions 1.x and of healthobs, all with a dot. Bare words
(`status`, `endpoint`) are anybody's, so what is under them is scanned. Then deny by the words in the name, so that
`patientSSN`, `patient.dob` and `PATIENT_DOB` are one thing.

Limits: only English names are known; what is unknown is scanned by value, never passed.
"""

from __future__ import annotations

import re
from enum import IntEnum
from itertools import pairwise


def _set(words: str) -> frozenset[str]:
    return frozenset(words.split())


class Action(IntEnum):
    """What happens to the value under a key."""

    ALLOW = 0
    SCAN = 1
    DENY = 2
    AGE = 3
    MEASURE = 4  # how many of what is denied: a number passes, a text does not


#: Keys whose values instrumentation sets from code, configuration or a protocol, never from a patient; not scanned.
ALLOWED = _set("""
    http.request.method http.response.status_code http.route
    http.request.resend_count http.request.body.size http.response.body.size
    url.scheme url.template server.address server.port client.port network.protocol.name
    network.protocol.version network.transport network.type network.peer.port
    error.type exception.type exception.escaped
    service.name service.version service.namespace service.instance.id
    host.name host.id host.arch host.type process.pid process.parent_pid process.executable.name
    process.creation.time thread.id thread.name
    code.function.name code.file.path code.line.number code.column.number
    db.system.name db.system db.operation.name db.collection.name db.namespace db.operation.batch.size
    db.response.status_code
    messaging.system messaging.operation.name messaging.operation.type messaging.destination.name
    messaging.batch.message_count rpc.system rpc.service rpc.method rpc.response.status_code
    rpc.grpc.status_code peer.service feature_flag.key user_agent.synthetic.type
    healthobs.redacted healthobs.tenant healthobs.error_id
    healthobs.exception.frames healthobs.exception.fingerprint healthobs.exception.causes
    telemetry.sdk.name telemetry.sdk.language telemetry.sdk.version telemetry.auto.version
    telemetry.distro.name telemetry.distro.version otel.scope.name otel.scope.version otel.status_code
    deployment.environment deployment.environment.name deployment.id deployment.name
    process.runtime.name process.runtime.version process.runtime.description
    k8s.cluster.name k8s.cluster.uid k8s.namespace.name k8s.node.name k8s.node.uid k8s.pod.name k8s.pod.uid
    k8s.container.name k8s.container.restart_count k8s.deployment.name k8s.deployment.uid k8s.replicaset.name
    k8s.replicaset.uid k8s.statefulset.name k8s.statefulset.uid k8s.daemonset.name k8s.daemonset.uid
    k8s.job.name k8s.job.uid k8s.cronjob.name k8s.cronjob.uid
    container.id container.name container.runtime container.image.name container.image.id container.image.tag
    container.image.tags cloud.provider cloud.account.id cloud.region cloud.availability_zone cloud.platform
    cloud.resource_id os.type os.name os.version os.description os.build_id
    """)
#: Words of which no part names a person. Values under them are scanned as text; in ``strict`` those that are written
#: in the code pass.
WORDS = _set("""
    timestamp level event service trace_id span_id logger version environment
    method route endpoint status status_code outcome operation action duration_seconds
    duration_ms response_bytes component metric signal control state check
    framework frameworks peer pid port error_id error_type
    exception_type exception_frames exception_fingerprint exception_causes audit_index
    """)

#: Metric labels as the semantic conventions spell them; instrumentation sets them from closed vocabularies.
LABELS = frozenset(key.replace(".", "_") for key in ALLOWED) - WORDS
#: One of these words in a key masks the value.
_DENIED = _set("""
    ssn ssns itin dob birth birthday birthdate born death deceased mrn mbi hicn npi medicare medicaid
    insurance insured subscriber beneficiary email mail emails phone phones fax telephone tel mobile
    street address addresses city zip zipcode postal postcode county lat lon latitude longitude geo
    card pan cvv cvc cav cid pin pinblock iban account acct password passwd pwd passphrase secret secrets token tokens
    authorization cookie cookies credential credentials apikey jwt bearer license licence passport vin plate
    biometric photo diagnosis diagnoses icd medication medications prescription allergy allergies
    symptom symptoms note notes comment comments narrative gender sex race ethnicity religion
    surname forename firstname lastname fullname fname lname nickname username maiden mother father spouse
    guardian kin stacktrace traceback body payload statement sql args kwargs params parameters
    locals query ip ipaddress fhir nhs imei udi dea nin aadhaar personnummer employer voiceprint initials addr
    """)
#: Pairs of words that mask together, though each alone is harmless.
_DENIED_PAIRS = tuple(
    frozenset(pair.split("+"))
    for pair in _set("""
        social+security medical+record api+key track+data track+1 track+2 private+key exception+message
        error+message url+full url+path http+url http+target http+path request+path raw+path request+uri
        request+url process+command process+owner health+number emergency+contact
        """)
)
#: Words that are identifiers of a person only together with one of `_ID_WORDS`.
_SUBJECTS = _set("""
    patient member person subject plan policy claim encounter chart device serial record admission certificate visit
    case hospital household national tax
    """)
_ID_WORDS = _set("id identifier ids number no num nr ref reference mrn key code serial")
#: Where one of these is told of, the name of a thing is a person's too.
_PERSONS = _set("patient member person subject holder owner participant guest user customer resident")
#: With one of these a worker is a person.
_WORK = _set("key social care case support health")
#: Two words written as one: `memberid`, `phoneno`, `patientmrn`.
_COMPOUNDS = frozenset(
    (
        *(subject + word for subject in _SUBJECTS | _DENIED for word in _ID_WORDS),
        *(
            whose + word
            for whose in ("patient", "member", "person", "subject")
            for word in (*_DENIED, "name")
        ),
    )
)
#: A name of one of these, which stands right before it, is no person's name.
_THINGS = _set("""
    service metric table file operation event check host thread span module function class queue column
    field header scope logger control job task worker route method db database schema index process program
    app application component system package product bucket topic stream cluster node pod container image
    role group policy plan device resource type action command test suite environment region zone tool
    """)
#: A key that ends in one of these is a measure of the thing, not the thing.
_MEASURES = _set("""
    count counts total seconds ms us ns size bytes length duration ratio percent rate enabled disabled sent
    found present valid invalid verified missing required generated type types limit max min version
    """)
#: Long words that mask even when the key has no word boundaries (`patientname`).
_GLUED = _set(
    "socialsecurity dateofbirth dateofdeath placeofbirth birthdate birthday birthplace emailaddress addressline "
    "phonenumber homephone cellphone workphone mobilephone patientname patientid firstname lastname fullname surname "
    "givenname familyname middlename maidenname nextofkin medicalrecord creditcard cardnumber accountnumber ssnumber "
    "password"
)

#: `IDs` and `SSNs` are words, too.
_WORD = re.compile(r"[A-Z]{2,}s(?![a-z])|[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")


def words(key: str) -> list[str]:
    """Split a key on camelCase, ``_``, ``.`` and ``-``, in lower case.

    Example:
        >>> words("patientSSN.last_4")
        ['patient', 'ssn', 'last', '4']
    """
    return [word.lower() for word in _WORD.findall(key)]


def classify(key: str, allowed: frozenset[str]) -> Action:
    """Return what to do with values under `key`; `allowed` are further exact names that pass."""
    if key in ALLOWED or key in allowed:
        return Action.ALLOW
    if key in WORDS:
        return Action.SCAN
    parts = words(key)
    if not parts:
        return Action.SCAN
    named = _names_a_person(parts, "".join(parts))
    if parts[-1] in _MEASURES:
        return Action.MEASURE if named else Action.SCAN
    aged = {"age", "ages"}.intersection(parts) and not {"max", "min", "cache"}.intersection(parts)
    if aged and (not named or parts[-1] in ("age", "ages", "years")):
        return Action.AGE
    if named:
        return Action.DENY
    several = [part if part in _THINGS else part.removesuffix("s") for part in parts]
    return Action.MEASURE if _names_a_person(several, "") else Action.SCAN


def _names_a_person(parts: list[str], squeezed: str) -> bool:
    told = frozenset(parts)
    if told & _DENIED or told & _COMPOUNDS or any(pair <= told for pair in _DENIED_PAIRS):
        return True
    if told & {"name", "names"} and not _names_a_thing(parts, told):
        return True
    if parts == ["patient"] or (told & _SUBJECTS and told & _ID_WORDS):
        return True
    return any(word in squeezed for word in _GLUED)


def _names_a_thing(parts: list[str], told: frozenset[str]) -> bool:
    if told & _PERSONS or ("worker" in told and told & _WORK):
        return False
    return all(before in _THINGS for before, word in pairwise(["", *parts]) if word in ("name", "names"))
