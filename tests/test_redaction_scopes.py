"""What an instrumentation scope, and a name, may say of whose they are."""

from __future__ import annotations

import hashlib
import sys
from types import ModuleType

import pytest
from opentelemetry.sdk.util.instrumentation import InstrumentationScope

from healthobs.redaction import Redactor, describe_exception
from healthobs.redaction.literals import is_in_a_module
from healthobs.redaction.scopes import redacted

SCHEMA = "https://opentelemetry.io/schemas/1.27.0"
SSN = "078-05-1120"


def name_passes(name: str) -> str:
    return name


class TestScope:
    """`redacted`."""

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    @pytest.mark.parametrize("version", [None, "1.2", "0.48b0", "v2.1.0-rc.1"])
    @pytest.mark.parametrize("schema", [None, SCHEMA])
    def test_plain(self, mode: str, version: str | None, schema: str | None) -> None:
        """Name, a version by its form, and OpenTelemetry's own schemas leave as they are, uncopied."""
        scope = InstrumentationScope("ledger", version, schema)
        assert redacted(scope, Redactor(mode), name_passes, signal="trace") is scope  # type: ignore[arg-type]

    def test_free_text(self) -> None:
        """A version and a schema that are free text stay in mask, and are left out in strict."""
        version, schema = (
            " ".join(("the", each)) for each in ("west's", "ward's")
        )  # no constants of this code
        scope = InstrumentationScope("ledger", version, schema)
        assert redacted(scope, Redactor("mask"), name_passes, signal="trace") is scope
        shown = redacted(scope, Redactor("strict"), name_passes, signal="trace")
        assert (shown.name, shown.version, shown.schema_url) == ("ledger", None, "")

    @pytest.mark.parametrize("mode", ["mask", "strict"])
    def test_identifiers(self, mode: str) -> None:
        """What a pattern finds goes, wherever it stands; the rest stays."""
        scope = InstrumentationScope("a", f"1 {SSN}", f"https://x.example/{SSN}", {"note": SSN, "lines": 3})
        shown = redacted(scope, Redactor(mode), lambda _: "[PHI:strict]", signal="trace")  # type: ignore[arg-type]
        assert (shown.name, shown.version, shown.schema_url) == ("[PHI:strict]", None, "")
        assert SSN not in str(dict(shown.attributes))
        assert dict(shown.attributes)["lines"] == 3

    def test_counted(self) -> None:
        """What is left out counts under the signal that is given."""
        counted: list[tuple[str, str]] = []
        redactor = Redactor("mask", on_redaction=lambda signal, kind: counted.append((signal, kind)))
        redacted(InstrumentationScope("a", f"1 {SSN}"), redactor, name_passes, signal="log")
        assert set(counted) == {("log", "ssn")}


class TestNames:
    """What is known to be of the code."""

    def test_module_whose_parent_is_not_loaded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """A module is known by its whole name, and what is in it by its names."""
        module = ModuleType("ward.west")
        module.Bed = type("Bed", (), {"Frame": 1})  # type: ignore[attr-defined]
        monkeypatch.setitem(sys.modules, "ward.west", module)
        names = (
            "ward.west",
            "ward.west.Bed",
            "ward.west.Bed.Frame",
            "ward",
            "ward.west.Ottoline",
            "westward",
        )
        assert [is_in_a_module(name) for name in names] == [True, True, True, False, False, False]

    def test_fingerprint(self) -> None:
        """It is of type, places without lines, and causes: the same in every process and version."""
        try:
            raise ValueError
        except ValueError as exc:
            facts = describe_exception(exc)
        places = [frame.rpartition(":")[0] for frame in facts.frames]
        digest = hashlib.sha256("\n".join(["ValueError", *places]).encode()).hexdigest()
        assert (len(places), facts.fingerprint) == (1, digest[:16])
