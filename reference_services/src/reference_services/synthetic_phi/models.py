"""What synthetic-phi-service takes and returns."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from reference_services._kit import Model
from reference_services.synthetic_phi import domain

Seed = Annotated[int, Field(ge=0, le=domain.MAX_SEED, description="Same seed, same patients")]
Index = Annotated[int, Field(ge=0, le=domain.MAX_INDEX, description="Number of the first patient")]


class Address(Model):
    """A postal address whose postal code is not in use."""

    line: str
    city: str
    state: str
    postal_code: str
    country: str


class Contact(Model):
    """A phone number or e-mail address reserved for examples."""

    system: Literal["phone", "email"]
    value: str


class Coding(Model):
    """A code of a code system."""

    code: str
    system: str
    display: str


class Vital(Model):
    """A vital sign: LOINC code, whole value, UCUM unit."""

    code: str
    system: str
    display: str
    value: int
    unit: str


class Identifier(Model):
    """A business identifier under the example OID arc."""

    system: str
    value: str


class Meta(Model):
    """Security labels; always HTEST."""

    security: list[Coding]


class SyntheticPatient(Model):
    """A patient who does not exist."""

    id: str
    first_name: str
    last_name: str
    gender: Literal["female", "male"]
    date_of_birth: str
    medical_record_number: str
    ssn: str
    address: Address
    telecom: list[Contact]
    diagnosis: list[str]
    conditions: list[Coding]
    vitals: list[Vital]
    identifiers: list[Identifier]
    meta: Meta
    created_at: str
    phi_tags: list[str]


class PatientQuery(Model):
    """Which patient; without a seed, one that nobody has seen."""

    seed: Seed | None = None
    index: Index | None = None


class BatchRequest(Model):
    """How many patients, and which."""

    count: Annotated[int, Field(ge=1, le=100)]
    seed: Seed | None = None
    index: Index | None = None


class BatchMetadata(Model):
    """How the batch was made; `seed` and `index` make it again."""

    generation_time: str
    compliance: Literal["HIPAA_SYNTHETIC"] = "HIPAA_SYNTHETIC"
    phi_safe: Literal["true", "false"]
    seed: int
    index: int
    generator_version: str


class Batch(Model):
    """Patients and how they were made."""

    patients: list[SyntheticPatient]
    count: int
    metadata: BatchMetadata


class VerifyRequest(Model):
    """A record to judge, and the seed it was made from, when known."""

    patient: Annotated[dict[str, object], Field(min_length=1, max_length=64)]
    seed: Seed | None = None
    index: Index = 0


class Verdict(Model):
    """What is proven about one member; `member` is null where the generator does not know its name."""

    member: str | None
    verdict: Literal["proven", "unproven"]
    reason: str


class Verification(Model):
    """Whether every member is proven, and each verdict."""

    synthetic: bool
    proven: int
    unproven: int
    members: list[Verdict]
