"""Settings and where they come from."""

from __future__ import annotations

import inspect
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs.compliance.requirements import REQUIREMENTS
from healthobs.config import FRAMEWORKS, Settings
from healthobs.exceptions import ConfigurationError


class TestSettings:
    """The frozen settings object."""

    def test_defaults_opt_in(self) -> None:
        """Nothing that takes something over, or sends something more, is on unless asked for."""
        settings = Settings()
        assert not (
            settings.headers or settings.endpoints or settings.capture_stdlib or settings.trace_response
        )
        assert settings.audit_database_url is None
        assert settings.otlp_endpoint is None

    def test_frozen(self) -> None:
        """Settings never change after they were read."""
        with pytest.raises(FrozenInstanceError):
            Settings().prefix = "other"  # type: ignore[misc]

    def test_all_problems_are_reported_at_once(self) -> None:
        """An operator sees every problem of one start, not one a start."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(
                log_level="loud",  # type: ignore[arg-type]
                max_series=0,
                prefix="not a prefix",
                audit_retention_days=0,
                control_interval_seconds=-1,
            )
        assert len(caught.value.problems) == 5

    @pytest.mark.parametrize("frameworks", [("HIPAA",), ["Hipaa", "PCI-DSS"]])
    def test_frameworks_are_kept_in_lower_case(self, frameworks: Any) -> None:
        """The case of a framework does not decide whether the service declares PHI."""
        settings = Settings(frameworks=frameworks)
        assert settings.frameworks == tuple(name.lower() for name in frameworks)
        assert settings.redaction_mode == "strict"

    @pytest.mark.parametrize("frameworks", [("hippa",), ("sox", "hipaa "), ("",), (None,)])
    def test_an_unknown_framework_is_refused(self, frameworks: Any) -> None:
        """A misspelt one must not switch `strict` off; the choices are named, the value is not."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(frameworks=frameworks)
        assert caught.value.problems == (f"frameworks must be among {', '.join(FRAMEWORKS)}",)

    @pytest.mark.parametrize("name", ["frameworks", "allowed_keys", "excluded"])
    def test_one_text_is_not_several(self, name: str) -> None:
        """A plain text where a tuple belongs would be taken letter by letter."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(**{name: "hipaa"})  # type: ignore[arg-type]
        assert caught.value.problems == (f"{name} must be a tuple of texts, not one text",)

    def test_every_framework_of_the_catalogue_may_be_named(self) -> None:
        """The catalogue and the settings know the same names."""
        assert {row.framework for row in REQUIREMENTS.values()} <= set(FRAMEWORKS)

    def test_documented(self) -> None:
        """Each field is described in the docstring."""
        described = inspect.getdoc(Settings) or ""
        assert [spec.name for spec in fields(Settings) if f"\n    {spec.name}: " not in described] == []


class TestFromEnv:
    """`Settings.from_env`."""

    def test_precedence(self) -> None:
        """Explicit argument before HEALTHOBS_* before OTEL_* before the default."""
        environ = {"OTEL_SERVICE_NAME": "otel", "HEALTHOBS_SERVICE_NAME": "own"}
        assert Settings.from_env({}).service_name == "unknown_service"
        assert Settings.from_env({"OTEL_SERVICE_NAME": "otel"}).service_name == "otel"
        assert Settings.from_env(environ).service_name == "own"
        assert Settings.from_env(environ, service_name="argument").service_name == "argument"

    def test_types(self) -> None:
        """Booleans, numbers, lists and paths are parsed from their text."""
        settings = Settings.from_env(
            {
                "OTEL_SDK_DISABLED": "TRUE",
                "HEALTHOBS_HEADERS": "0",
                "HEALTHOBS_MAX_SERIES": "17",
                "HEALTHOBS_FRAMEWORKS": "hipaa, sox,",
                "HEALTHOBS_AUDIT_KEY_FILE": "/keys/audit.pem",
                "OTEL_LOG_LEVEL": "WARN",
            }
        )
        assert (settings.disabled, settings.headers, settings.max_series) == (True, False, 17)
        assert settings.frameworks == ("hipaa", "sox")
        assert settings.audit_key_file == Path("/keys/audit.pem")
        assert settings.log_level == "warning"

    def test_frameworks_in_capitals_declare_phi(self) -> None:
        """What an operator writes in capitals is strict all the same."""
        settings = Settings.from_env({"HEALTHOBS_FRAMEWORKS": "HIPAA, PCI-DSS"})
        assert (settings.frameworks, settings.redaction_mode) == (("hipaa", "pci-dss"), "strict")

    def test_spool_needs_a_file(self) -> None:
        """Care under break-glass goes on only where there is somewhere to spool, so a policy without it does not start."""
        policy = {"HEALTHOBS_AUDIT_POLICY": "spool", "HEALTHOBS_AUDIT_DATABASE_URL": "sqlite:///a.db"}
        with pytest.raises(ConfigurationError, match="spool needs audit_spool_file"):
            Settings.from_env(policy)
        assert Settings.from_env({**policy, "HEALTHOBS_AUDIT_SPOOL_FILE": "spool"}).audit_policy == "spool"
        assert Settings(audit_policy="spool").audit_database_url is None

    def test_empty_is_unset(self) -> None:
        """An empty variable counts as absent, as the OpenTelemetry specification has it."""
        assert Settings.from_env({"OTEL_SERVICE_NAME": ""}).service_name == "unknown_service"

    def test_reads_the_process_environment_by_default(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without a mapping, `os.environ` is read at the call."""
        monkeypatch.setenv("HEALTHOBS_PREFIX", "from_process")
        assert Settings.from_env().prefix == "from_process"

    def test_problems_name_the_variable(self) -> None:
        """Each bad variable is named, all at once."""
        with pytest.raises(ConfigurationError) as caught:
            Settings.from_env({"HEALTHOBS_MAX_SERIES": "many", "OTEL_SDK_DISABLED": "perhaps"})
        assert caught.value.problems == (
            "OTEL_SDK_DISABLED must be true or false",
            "HEALTHOBS_MAX_SERIES must be a whole number",
        )

    @given(st.text(st.characters(codec="ascii", categories=["L"]), min_size=8))
    def test_no_value_is_echoed(self, secret: str) -> None:
        """An error never carries what the variable held."""
        with pytest.raises(ConfigurationError) as caught:
            Settings.from_env({"HEALTHOBS_MAX_SERIES": secret, "HEALTHOBS_LOG_LEVEL": "info"})
        assert secret not in str(caught.value)
