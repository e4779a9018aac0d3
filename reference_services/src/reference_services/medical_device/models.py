"""Requests and answers of medical-device."""

from __future__ import annotations

from datetime import date
from typing import Annotated, ClassVar, Literal

from pydantic import Field

from reference_services._kit import Model
from reference_services.medical_device.udi import MAX_LENGTH

_Decimal = Annotated[str, Field(pattern="^-?(0|[1-9][0-9]{0,5})([.][0-9]{1,4})?$")]
_Line = Annotated[str, Field(min_length=1, max_length=80)]
_MAX_BIGINT = 2**63 - 1


class UdiInput(Model):
    """A unique device identifier: bracketed, or as in the barcode with U+001D as separator."""

    udi: Annotated[
        str,
        Field(
            min_length=1,
            max_length=MAX_LENGTH,
            examples=["(01)00844588003288(17)290101(10)LOT42(21)SN4711"],
        ),
    ]


class IssueView(Model):
    """What is wrong with an identifier."""

    code: str
    expected: str
    found: str


class UdiView(Model):
    """A parsed identifier."""

    omit_none: ClassVar[bool] = True

    issuer: Literal["gs1"]
    device_identifier: str
    lot: str | None = None
    serial: str | None = None
    manufactured: date | None = None
    expiry: date | None = None
    quantity: int | None = None
    additional_id: str | None = None
    issues: list[IssueView]


class DeviceInput(UdiInput):
    """A device to register; its identifier must be free of issues and carry a serial number."""

    name: _Line


class Device(Model):
    """A registered device."""

    omit_none: ClassVar[bool] = True

    id: str
    device_identifier: str
    serial: str
    lot: str | None = None
    manufactured: str | None = None
    expiry: str | None = None
    name: str
    status: str
    calibration_due: str | None = None
    registered: str


class Item(Model):
    """One observation; the value is an integer or a decimal text, never a JSON float."""

    code: Annotated[str, Field(max_length=20, examples=["8867-4"])]
    value: int | Annotated[str, Field(max_length=20)]
    unit: Annotated[str, Field(max_length=20, examples=["/min"])]
    effective: Annotated[str, Field(max_length=30, examples=["2026-01-31T08:15:00Z"])]
    sequence: Annotated[int, Field(ge=0, le=_MAX_BIGINT)]


class Batch(Model):
    """Observations of one device, in any order."""

    observations: Annotated[list[Item], Field(min_length=1, max_length=1000)]


class Rejected(Model):
    """An item that was refused."""

    index: int
    code: str


class BatchResult(Model):
    """What became of a batch: every item is counted once."""

    accepted: int
    duplicate: int
    rejected: list[Rejected]


class AlarmView(Model):
    """An alarm: one device, one cause."""

    device_id: str
    cause: str
    kind: str
    priority: str
    first: str
    last: str
    count: int


class Alarms(Model):
    """The latest alarms, and how many there are."""

    total: int
    alarms: list[AlarmView]


class AlarmQuery(Model):
    """How many alarms to show."""

    limit: Annotated[int, Field(ge=1, le=1000)] = 100


class CalibrationInput(Model):
    """A calibration that was done."""

    as_found: _Decimal
    as_left: _Decimal
    performed_by: Annotated[str, Field(min_length=1, max_length=64)]
    due: date


class Calibration(Model):
    """A recorded calibration."""

    id: str
    device_id: str
    as_found: str
    as_left: str
    performed_by: str
    due: str
    recorded_by: str
    recorded: str


class SignatureInput(Model):
    """What a signature means."""

    meaning: Literal["review", "approval", "responsibility", "authorship"]
    reason: Annotated[str, Field(min_length=1, max_length=200)]


class SignatureView(Model):
    """A signature as 21 CFR 11.50 has it shown, and what it is worth now."""

    id: str
    printed_name: str
    signed: str
    meaning: str
    reason: str
    record_sha256: str
    state: Literal["valid", "invalidated", "forged"]
    jws: str


class Signatures(Model):
    """The signatures on a record."""

    kind: str
    record_id: str
    record_sha256: str
    signatures: list[SignatureView]
