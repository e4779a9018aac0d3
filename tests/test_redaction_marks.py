"""`Annotated[..., PHI("name")]`: marked fields of plain classes are masked when such an object reaches telemetry."""

from __future__ import annotations

import sys
import textwrap
import time
from dataclasses import dataclass, field
from typing import Annotated, Any, Generic, Literal, NamedTuple, NewType, NotRequired, TypedDict, TypeVar

import pydantic
import pytest
from typing_extensions import TypeAliasType

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


class Bare(NamedTuple):
    """A named tuple without marks."""

    name: str = NAME
    beds: int = 3


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
        ([Bare()], ["[PHI:type]"]),
        (time.gmtime(0), "[PHI:type]"),
        ((1, 2), (1, 2)),
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


T = TypeVar("T")
U = TypeVar("U")
Alias = TypeAliasType("Alias", "Annotated[str, PHI('name')]")
Named = TypeAliasType("Named", Annotated[str, PHI("name")])
Either = TypeAliasType("Either", Annotated[T, PHI("name")], type_params=(T,))
Nested = TypeAliasType("Nested", "list[Nested] | str")  # type: ignore[misc]
Name = NewType("Name", Annotated[str, PHI("name")])  # type: ignore[valid-newtype]
Ward = NewType("Ward", str)


class Chart(TypedDict):
    """A dictionary with a mark."""

    beds: int
    who: NotRequired[list[Annotated[str, PHI("name")]]]


class Bare(TypedDict):
    """A dictionary without a mark."""

    ward: Literal["north"]


@dataclass
class Behind(Generic[T]):
    """Marks that stand behind something."""

    mrn: Annotated[str, PHI("mrn"), "a comment"]
    alias: Named = NAME
    either: Either[str] = NAME
    textual: Alias = NAME
    nested: Nested = NAME  # type: ignore[assignment]
    new: Name = Name(NAME)
    chart: list[Chart] = field(default_factory=list)
    parameter: T | None = None
    ward: Ward = Ward("north")
    bare: Bare = field(default_factory=lambda: Bare(ward="north"))


@dataclass
class Inherits(Behind[Annotated[str, PHI("name")]], Generic[U]):
    """A parameter that a base has got."""

    second: U | None = None


@dataclass(frozen=True)
class Frozen(Generic[T]):
    """What cannot be told its parameter."""

    mrn: Annotated[str, PHI("mrn")]
    parameter: T


class Model(pydantic.BaseModel, Generic[T]):
    """A generic pydantic model."""

    mrn: Annotated[str, PHI("mrn")]
    one: T
    several: list[T]
    alias: Named = NAME
    ward: str = "north"


BEHIND = {
    "mrn": "[PHI:mrn]", "alias": "[PHI:name]", "either": "[PHI:name]", "textual": "[PHI:value]",
    "nested": "[PHI:value]", "new": "[PHI:name]", "chart": "[PHI:name]", "parameter": "[PHI:value]",
    "ward": "north", "bare": {"ward": "north"},
}  # fmt: skip
MODEL = {"mrn": "[PHI:mrn]", "one": "[PHI:name]", "several": "[PHI:name]", "alias": "[PHI:name]", "ward": "north"}  # fmt: skip


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        (Behind(NAME, chart=[Chart(beds=1, who=[NAME])]), BEHIND),
        (Behind[Annotated[str, PHI("name")]](NAME), BEHIND | {"parameter": "[PHI:name]"}),
        (Behind[int](NAME, parameter=3), BEHIND | {"parameter": 3}),
        (Behind[Annotated[int, []]](NAME, parameter=3), BEHIND),
        (Inherits(NAME, second=NAME), BEHIND | {"parameter": "[PHI:name]", "second": "[PHI:value]"}),
        (Inherits[str](NAME, second="north"), BEHIND | {"parameter": "[PHI:name]", "second": "north"}),
        (Frozen[Annotated[str, PHI("name")]](NAME, NAME), {"mrn": "[PHI:mrn]", "parameter": "[PHI:value]"}),
        (Model[Annotated[str, PHI("name")]](mrn=NAME, one=NAME, several=[NAME]), MODEL),
        (Model[Name](mrn=NAME, one=Name(NAME), several=[Name(NAME)]), MODEL),
        (Model[str](mrn=NAME, one="x", several=["x"]), MODEL | {"one": "x", "several": ["x"]}),
        (Model(mrn=NAME, one=NAME, several=[NAME]), MODEL | {"one": "[PHI:value]", "several": "[PHI:value]"}),
    ],
)  # fmt: skip
def test_marks_behind_something(value: object, shown: Any) -> None:
    """A name of a type hides no mark, nor a parameter or a dictionary; where a mark's place cannot be told, the field is masked."""
    assert Redactor().value("step", value) == shown


@pytest.mark.skipif(sys.version_info < (3, 12), reason="a statement of 3.12")
def test_the_statement_type() -> None:
    """`type X = ...` and the parameters of 3.12 are as their older forms."""
    made: dict[str, Any] = {"PHI": PHI, "Annotated": Annotated, "dataclass": dataclass}
    code = """
        type Named = Annotated[str, PHI("name")]
        type Missing = Annotated[Nowhere, PHI("name")]

        @dataclass
        class Visit[T]:
            mrn: Annotated[str, PHI("mrn")]
            alias: Named
            missing: Missing
            parameter: T
        """
    # Without this module's `annotations`: as texts they could not be resolved outside of one.
    exec(compile(textwrap.dedent(code), "<code>", "exec", dont_inherit=True), made)
    visit = made["Visit"][made["Named"]](NAME, NAME, NAME, NAME)
    assert Redactor().value("step", visit) == {
        "mrn": "[PHI:mrn]", "alias": "[PHI:name]", "missing": "[PHI:value]", "parameter": "[PHI:name]",
    }  # fmt: skip
