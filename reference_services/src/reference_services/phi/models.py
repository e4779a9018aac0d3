"""What phi-service takes and gives. Lengths are bounded; nothing is optional that a view could then leak."""

from __future__ import annotations

from datetime import date
from typing import Annotated, Literal

from pydantic import Field

from reference_services._kit import Model

Text = Annotated[str, Field(min_length=1, max_length=200)]
ShortText = Annotated[str, Field(min_length=1, max_length=64)]


class Identifier(Model):
    """A number and who assigned it."""

    system: Annotated[str, Field(min_length=1, max_length=200, examples=["urn:oid:2.999.1.1"])]
    value: Annotated[str, Field(min_length=1, max_length=64, examples=["SYN-0000000000"])]


class GivenIdentifier(Identifier):
    """An identifier to store or to seek: more than blanks."""

    # What `str.strip` leaves something of: to it U+001D is a blank, too.
    value: Annotated[
        str, Field(min_length=1, max_length=64, pattern=r"[^\s\x1d]", examples=["SYN-0000000000"])
    ]


class Address(Model):
    """Where the patient lives."""

    line: Text
    city: Text
    state: ShortText
    postal_code: Annotated[str, Field(min_length=1, max_length=16)]
    country: Annotated[str, Field(min_length=2, max_length=2)] = "US"


class Contact(Model):
    """A telephone number or e-mail address."""

    system: Literal["phone", "email"]
    value: Text


class Condition(Model):
    """A coded diagnosis."""

    code: ShortText
    system: Text
    display: Text


class PatientRecord(Model):
    """A whole record, as the synthetic-phi-service makes it."""

    first_name: Text
    last_name: Text
    date_of_birth: date
    gender: Literal["male", "female", "other", "unknown"]
    address: Address | None = None
    telecom: Annotated[list[Contact], Field(max_length=20)] = Field(default_factory=list)
    identifiers: Annotated[list[GivenIdentifier], Field(min_length=1, max_length=20)]
    conditions: Annotated[list[Condition], Field(max_length=100)] = Field(default_factory=list)


class ConditionView(Model):
    """A diagnosis as a view shows it: research has the code alone."""

    code: str
    system: str
    display: str | None = None


class PatientView(Model):
    """What a caller's role and purpose of use show of a record; the rest is absent."""

    omit_none = True

    view: Literal["full", "billing", "deidentified"]
    id: str | None = None
    version: int | None = None
    first_name: str | None = None
    last_name: str | None = None
    date_of_birth: date | None = None
    gender: str | None = None
    address: Address | None = None
    telecom: list[Contact] | None = None
    identifiers: list[Identifier] | None = None
    conditions: list[ConditionView] | None = None
    birth_year: int | None = None
    age_group: str | None = None
    zip3: str | None = None


class Search(Model):
    """Body of `POST /patients/search`; an identifier never travels in a URL."""

    identifier: GivenIdentifier


class SearchResult(Model):
    """The record found, if any."""

    omit_none = True

    total: int
    patients: list[PatientView]
