"""`Annotated[..., PHI("name")]`: marked fields of plain classes are masked when such an object reaches telemetry."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Annotated, Any, NamedTuple

import pydantic
import pytest

from healthobs import Settings
from healthobs.redaction import PHI, Redactor
from healthobs.testing import Capture

NAME = "Ottoline Quassler"


@dataclass
class Base:
    """A class to inherit a mark from."""

    alias: Annotated[str, PHI("alias")] = NAME


@dataclass
class Patient(Base):
    """Marks of every depth."""

    name: Annotated[str, PHI("name")] = NAME
    others: list[Annotated[str, PHI("name")]] = field(default_factory=lambda: [NAME])
    maybe: Annotated[str | None, PHI()] = NAME
    beds: int = 3


class Visit(pydantic.BaseModel):
    """A pydantic model, with a marked class inside."""

    seen: Patient
    nurse: Annotated[str, PHI("staff"), pydantic.Field(min_length=1)]
    ward: str


class Row(NamedTuple):
    """A named tuple is a tuple, yet its marks count."""

    name: Annotated[str, PHI("name")]
    beds: int


@dataclass
class Unmarked:
    """A class without marks."""

    ward: str = NAME


@dataclass
class Unresolved:
    """An annotation that names nothing."""

    name: Annotated[Missing, PHI("name")] = NAME  # type: ignore[name-defined]  # noqa: F821


PATIENT = {
    "alias": "[PHI:alias]", "name": "[PHI:name]", "others": "[PHI:name]", "maybe": "[PHI:value]", "beds": 3,
}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Patient(), PATIENT),
        (Visit(seen=Patient(), nurse=NAME, ward="north"), {"seen": PATIENT, "nurse": "[PHI:staff]", "ward": "north"}),
        ([Row(NAME, 2)], [{"name": "[PHI:name]", "beds": 2}]),
        ({"who": Row(NAME, 2)}, {"who": {"name": "[PHI:name]", "beds": 2}}),
        (Unmarked(), "[PHI:type]"),
        (Unresolved(), "[PHI:type]"),
        (Patient, "[PHI:type]"),
    ],
)  # fmt: skip
def test_what_is_shown(value: object, shown: Any) -> None:
    """Marked fields are masked under their kind, the others as values of their own; no mark, no fields."""
    assert Redactor().value("step", value) == shown


@pytest.mark.parametrize("mode", ["watch", "mask", "strict"])
def test_it_holds_in_a_log_line(mode: Any) -> None:
    """Whatever the step, a marked object shows no marked value in a line."""
    with Capture(Settings(redaction=mode)) as capture:
        capture.obs.logs.emit(
            "info", "seen", {"who": Patient(), "row": Row(NAME, 1) if mode != "watch" else 1}
        )
    assert capture.leaks(NAME) == ()


@pytest.mark.parametrize("kind", ["", "Name", "a b", "[PHI"])
def test_a_kind_is_a_word(kind: str) -> None:
    """The kind is shown, so it may not hold data."""
    with pytest.raises(ValueError, match="kind names the sort of data"):
        PHI(kind)


def test_deep_objects_are_masked_whole() -> None:
    """Fields count as a level of nesting."""
    value: object = Row(NAME, 1)
    for _ in range(4):
        value = [value]
    assert Redactor().value("step", value) == [[[["[PHI:type]"]]]]
