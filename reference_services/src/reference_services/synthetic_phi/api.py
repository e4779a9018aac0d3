"""synthetic-phi-service: fictitious patients over HTTP, each provably nobody's.

Open by design (no token): nothing it holds is protected health information, and every answer is verified
against the reserved ranges before it leaves (45 CFR 164.514(b)(2)).
"""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from flask import Flask

from healthobs import Observability, counted, traced
from healthobs.clock import rfc3339
from reference_services._kit import Kit, Problem, ServiceInfo, ServiceSettings
from reference_services.synthetic_phi import domain, models, proofs

if TYPE_CHECKING:
    from _typeshed.wsgi import WSGIApplication

INFO = ServiceInfo(
    name="synthetic-phi-service",
    title="Synthetic PHI service",
    version="1.0.0",
    prefix="synthetic_phi",
    port=8081,
    frameworks=("hipaa",),
    description="Fictitious patients whose every identifier lies in a range that cannot be anybody's.",
    conf="U",
    telemetry_keys=("patient_id",),  # nobody has these ids
)
_GENERATED = "synthetic_phi_patients_generated_total"
_GENERATED_HELP = "Synthetic patients generated"


@counted(_GENERATED, documentation=_GENERATED_HELP, amount=lambda _patient: 1)
@traced("generate_single_patient")
def generate_single_patient(seed: int, index: int) -> domain.Patient:
    """Return one patient, in a span of its own."""
    return domain.patient(seed, index)


@counted(_GENERATED, documentation=_GENERATED_HELP, amount=len)
@traced("generate_batch_patients")
def generate_batch_patients(seed: int, first: int, count: int) -> list[domain.Patient]:
    """Return a batch of patients, in one span."""
    return domain.patients(seed, first, count)


def create_app(
    settings: ServiceSettings | None = None,
    *,
    obs: Observability | None = None,
    transport: Mapping[str, WSGIApplication] | None = None,
) -> Flask:
    """Return the service as a Flask application."""
    kit = Kit(INFO, settings, obs=obs, transport=transport)
    kit.obs.metrics.counter(_GENERATED, _GENERATED_HELP)  # a counter born above 0 is invisible to rate()

    @kit.get(
        "/synthetic-patient",
        query=models.PatientQuery,
        returns={200: models.SyntheticPatient},
        summary="One patient, new or of a seed",
        audit="synthetic.generate",
        resource_type="SyntheticPatient",
    )
    def get_patient(query: models.PatientQuery) -> Any:
        seed, index = _source(query.seed, query.index, 1)
        made = generate_single_patient(seed, index)
        _require_synthetic([made])
        kit.log.info(
            "generated_synthetic_patient", patient_id=made["id"], diagnosis_count=len(made["diagnosis"])
        )
        return made

    @kit.post(
        "/synthetic-patient",
        body=models.BatchRequest,
        returns={200: models.Batch},
        summary="A batch of 1 to 100 patients",
        audit="synthetic.generate_batch",
        resource_type="SyntheticPatient",
    )
    def post_batch(body: models.BatchRequest) -> Any:
        seed, first = _source(body.seed, body.index, body.count)
        made = generate_batch_patients(seed, first, body.count)
        _require_synthetic(made)
        kit.log.info(
            "generated_synthetic_batch",
            batch_size=len(made),
            diagnosis_count=sum(len(patient["diagnosis"]) for patient in made),
        )
        return {
            "patients": made,
            "count": len(made),
            "metadata": {
                "generation_time": rfc3339(kit.clock.now()),
                "compliance": "HIPAA_SYNTHETIC",
                "phi_safe": "true",
                "seed": seed,
                "index": first,
                "generator_version": domain.GENERATOR_VERSION,
            },
        }

    @kit.post(
        "/synthetic-patient/verify",
        body=models.VerifyRequest,
        returns={200: models.Verification},
        summary="Which members of a record are proven synthetic",
        audit="synthetic.verify",
        resource_type="SyntheticPatient",
    )
    def verify(body: models.VerifyRequest) -> models.Verification:
        verdicts = proofs.verify(body.patient, body.seed, body.index)
        known = models.SyntheticPatient.model_fields
        members = [
            models.Verdict(
                member=name if name in known else None,
                verdict="proven" if proven else "unproven",
                reason=reason,
            )
            for name, (proven, reason) in verdicts.items()
        ]
        proven = sum(member.verdict == "proven" for member in members)
        return models.Verification(
            synthetic=proven == len(members),
            proven=proven,
            unproven=len(members) - proven,
            members=members,
        )

    return kit.finish(checks={"data_generator": domain.self_test})


def _source(seed: int | None, index: int | None, count: int) -> tuple[int, int]:
    """Return seed and first index: as asked, or random, so that no two calls give the same patient."""
    if seed is None:
        if index is not None:
            raise Problem(422, "invalid_request", "An index needs a seed.", [("/index", "seed_missing")])
        return secrets.randbelow(domain.MAX_SEED + 1), secrets.randbelow(domain.MAX_INDEX - count)
    first = index or 0
    if first + count - 1 > domain.MAX_INDEX:
        raise Problem(
            422, "invalid_request", "The batch ends after the last index.", [("/index", "too_large")]
        )
    return seed, first


def _require_synthetic(made: list[domain.Patient]) -> None:
    """Refuse to answer with a record that its own identifiers do not prove synthetic."""
    if not all(rule(patient[name]) for patient in made for name, (rule, _) in proofs.PROOFS.items()):
        raise Problem(500, "not_synthetic", "The generator made a record outside the reserved ranges.")
