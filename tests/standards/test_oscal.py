"""The OSCAL export against NIST's models, as the package `oscal` carries them (`nox -s standards`)."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.test_compliance_oscal import PUBLISHED, make_status

from healthobs.compliance.oscal import OSCAL_VERSION, assessment_results

oscal = pytest.importorskip("oscal", reason="nox -s standards installs it")
#: Every member that OSCAL 1.2 names where we write: the validator does not refuse others.
MEMBERS = frozenset(
    [
        "assessment-results",
        "uuid",
        "metadata",
        "title",
        "last-modified",
        "version",
        "oscal-version",
        "import-ap",
        "href",
        "results",
        "description",
        "start",
        "end",
        "reviewed-controls",
        "control-selections",
        "include-controls",
        "control-id",
        "observations",
        "props",
        "name",
        "ns",
        "value",
        "methods",
        "types",
        "collected",
        "findings",
        "target",
        "type",
        "target-id",
        "status",
        "state",
        "related-observations",
        "observation-uuid",
        "attestations",
        "parts",
        "prose",
        "back-matter",
        "resources",
    ]
)


@pytest.fixture(scope="module")
def validate(tmp_path_factory: pytest.TempPathFactory) -> Callable[[Any], bool]:
    """Return what says whether a document is valid; its database is unpacked in a temporary folder."""
    from oscal import AssessmentResults
    from oscal.oscal_support import configure_support

    support = configure_support(str(tmp_path_factory.mktemp("oscal") / "support.db"))
    assert f"v{OSCAL_VERSION}" in support.versions
    return lambda document: bool(AssessmentResults.loads(json.dumps(document)).is_valid)


@pytest.fixture
def document(tmp_path: Path) -> dict[str, Any]:
    """An export in which every state occurs."""
    return assessment_results(make_status(tmp_path), published=PUBLISHED)


def names(value: Any) -> set[str]:
    """Return every member name in a document."""
    if isinstance(value, dict):
        return set(value).union(*map(names, value.values()))
    return set().union(*map(names, value)) if isinstance(value, list) else set()


def test_valid(validate: Callable[[Any], bool], document: dict[str, Any]) -> None:
    """What is exported is an OSCAL 1.2 document, and every member is one that OSCAL has."""
    assert (validate(document), names(document) - MEMBERS) == (True, set())


def test_nothing_observed(validate: Callable[[Any], bool], tmp_path: Path) -> None:
    """So is the export of a service of which nothing is known."""
    status = make_status(tmp_path)
    rows = [row for row in status["controls"] if row["observed_at"] is None]
    assert validate(assessment_results({**status, "controls": rows}, published=PUBLISHED))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda root: root["results"][0]["findings"][0]["target"]["status"].update(state="unknown"),
        lambda root: root["results"][0]["observations"][0].pop("methods"),
        lambda root: root["results"][0]["observations"][0].update(collected="yesterday"),
        lambda root: root["results"][0].pop("reviewed-controls"),
        lambda root: root.pop("import-ap"),
        lambda root: root.update(uuid="1"),
        lambda root: root["metadata"].pop("oscal-version"),
    ],
)
def test_the_validator_can_fail(
    validate: Callable[[Any], bool], document: dict[str, Any], spoil: Callable[[Any], object]
) -> None:
    """Each planted fault is refused, so that its silence counts."""
    spoiled = copy.deepcopy(document)
    spoil(spoiled["assessment-results"])
    assert not validate(spoiled)
