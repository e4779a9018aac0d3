"""Settings and where they come from."""

from __future__ import annotations

import inspect
import re
from dataclasses import FrozenInstanceError, fields
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

import healthobs
import reference_services
from healthobs.compliance.requirements import REQUIREMENTS
from healthobs.config import FRAMEWORKS, Settings, unknown_variables
from healthobs.exceptions import ConfigurationError, HealthobsWarning


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
                service_name=" ",
                log_level="loud",  # type: ignore[arg-type]
                max_series=0,
                prefix="not a prefix",
                audit_retention_days=0,
                control_interval_seconds=-1,
            )
        assert len(caught.value.problems) == 6

    @pytest.mark.parametrize("seconds", [0, -1, 61])
    def test_no_append_waits_for_ever(self, seconds: int) -> None:
        """Nor is one refused before it was tried."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(audit_timeout_seconds=seconds)
        assert caught.value.problems == ("audit_timeout_seconds must be 1 to 60",)
        assert Settings(audit_timeout_seconds=60).audit_timeout_seconds == 60

    @pytest.mark.parametrize("frameworks", [("HIPAA",), ["Hipaa", "PCI-DSS"]])
    def test_frameworks_are_kept_in_lower_case(self, frameworks: Any) -> None:
        """The case of a framework does not decide whether the service declares PHI."""
        settings = Settings(frameworks=frameworks)
        assert settings.frameworks == tuple(name.lower() for name in frameworks)
        assert settings.redaction_mode == "strict"

    @pytest.mark.parametrize("frameworks", [("hippa",), ("sox", "hipaa "), ("",)])
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

    @pytest.mark.parametrize(
        ("name", "value", "problem"),
        [
            ("service_name", None, "must be a text"),
            ("prefix", 4711, "must be a text"),
            ("audit_database_url", Path("4711"), "must be a text"),
            ("tenant_header", b"4711", "must be a text"),
            ("endpoints", "4711", "must be True or False"),
            ("disabled", "false", "must be True or False"),
            ("headers", 1, "must be True or False"),
            ("ops_port", "4711", "must be a whole number"),
            ("max_series", 1.5, "must be a whole number"),
            ("max_stall_seconds", True, "must be a whole number"),
            ("audit_key_file", 4711, "must be a path"),
            ("audit_subjects_file", "", "must be a path"),
            ("compliance_documents", b"4711", "must be a path"),
            ("log_fields", {"trace_id": "4711"}, "must be a tuple of texts"),
            ("allowed_keys", (4711,), "must be a tuple of texts"),
            ("frameworks", (None,), "must be a tuple of texts"),
            ("builtin_checks", None, "must be a tuple of texts"),
            ("tenants", 4711, "must be a tuple of texts"),
            ("log_level", 20, "must be one of debug, info, warning, error, critical"),
            ("log_level", ["4711"], "must be one of debug, info, warning, error, critical"),
            ("redaction", "Strict", "must be one of watch, mask, strict"),
        ],
    )
    def test_another_type_is_refused(self, name: str, value: Any, problem: str) -> None:
        """Nothing is taken for something else, nor fails later without its name; the value is not in the error."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(**{name: value})
        assert caught.value.problems == (f"{name} {problem}",)

    def test_wrong_types_hide_no_other_problem(self) -> None:
        """What has the wrong type is named beside what has a wrong value."""
        with pytest.raises(ConfigurationError) as caught:
            Settings(ops_port="9000", max_series=0, prefix="a-b", frameworks=None)  # type: ignore[arg-type]
        assert [problem.split()[0] for problem in caught.value.problems] == [
            "frameworks", "ops_port", "max_series", "prefix",
        ]  # fmt: skip

    @pytest.mark.parametrize("name", [spec.name for spec in fields(Settings) if "Path" in str(spec.type)])
    def test_a_path_may_be_a_text(self, name: str) -> None:
        """Both say the same, from the environment too."""
        given: dict[str, Any] = {name: "a/b"}
        for settings in (Settings(**given), Settings.from_env({}, **given)):
            assert getattr(settings, name) == Path("a/b")

    def test_several_texts_are_kept_as_a_tuple(self) -> None:
        """A list that its owner changes later does not change the settings."""
        given = ["a"]
        settings = Settings(allowed_keys=given)  # type: ignore[arg-type]
        given.append("b")
        assert settings.allowed_keys == ("a",)

    @pytest.mark.parametrize("endpoint", ["localhost:4318", "grpc://h:4317", "http://", "http:h", "h/v1"])
    def test_spans_go_to_a_url(self, endpoint: str) -> None:
        """What the exporter could not send to is refused at the start, before every span is lost."""
        for source in ({}, {"OTEL_EXPORTER_OTLP_ENDPOINT": endpoint}):
            with pytest.raises(ConfigurationError) as caught:
                Settings.from_env(source, **({} if source else {"otlp_endpoint": endpoint}))
            assert caught.value.problems == ("otlp_endpoint must be a URL of http:// or https://",)
        assert Settings(otlp_endpoint="HTTPS://otel:4318/").otlp_endpoint == "HTTPS://otel:4318/"

    @pytest.mark.parametrize(
        ("url", "shown"),
        [
            ("postgresql://root:hunter2@db:5432/x", "postgresql://[masked]@db:5432/x"),
            ("postgresql://root:hun@ter/2@db/x?sslmode=on", "postgresql://[masked]@db/x?[masked]"),
            ("postgresql://db/x?user=root&password=hunter2", "postgresql://db/x?[masked]"),
            ("root:hunter2@db/x", "[masked]@db/x"),
            ("sqlite:///audit.db", "sqlite:///audit.db"),
        ],
    )
    def test_shown_without_passwords(self, url: str, shown: str) -> None:
        """Whoever prints settings, or has them in a traceback with locals, tells no password."""
        settings = Settings(audit_database_url=url)
        assert f"audit_database_url={shown!r}" in repr(settings)
        assert repr(settings) == str(settings)
        assert repr(settings).startswith("Settings(service_name='unknown_service', ")
        told = repr(Settings(otlp_endpoint="https://me:hunter2@otel:4318"))
        assert "otlp_endpoint='https://[masked]@otel:4318'" in told

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

    def test_one_map_of_subjects(self) -> None:
        """A trail has one map, and what replicas share has a key that is named; no value is quoted."""
        url = "postgresql://me:hunter2@db/x"
        with pytest.raises(ConfigurationError) as caught:
            Settings(audit_subjects_file=Path("4711"), audit_subjects_url=url)
        assert caught.value.problems == (
            "audit_subjects_file and audit_subjects_url exclude each other: a trail has one map",
            "audit_subjects_url in PostgreSQL needs audit_subjects_key_file, which its replicas share",
        )
        variables = {"HEALTHOBS_AUDIT_SUBJECTS_URL": url, "HEALTHOBS_AUDIT_SUBJECTS_KEY_FILE": "k"}
        assert Settings.from_env(variables).audit_subjects_url == url
        assert "hunter2" not in repr(Settings.from_env(variables))
        assert Settings(audit_subjects_url="sqlite:///map.db").audit_subjects_key_file is None

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

    def test_a_variable_that_is_no_setting_is_told_of(self) -> None:
        """A misspelt name is not ignored in silence; the warning has the names, and no value."""
        environ = {"HEALTHOBS_MAX_SERIE": "4711", "HEALTHOBS_REGION": "4711", "OTHER_WARD": "4711"}
        with pytest.warns(HealthobsWarning) as caught:
            assert Settings.from_env(environ).max_series == 200
        assert [str(warning.message) for warning in caught] == [
            "no setting has these variables, which change nothing: HEALTHOBS_MAX_SERIE, HEALTHOBS_REGION"
        ]
        assert caught[0].filename == __file__

    @pytest.mark.parametrize(
        ("misspelt", "meant"),
        [
            ("HEALTHOBS_FRAMEWORK", "HEALTHOBS_FRAMEWORKS"),
            ("HEALTHOBS_FRAMWORKS", "HEALTHOBS_FRAMEWORKS"),
            ("HEALTHOBS_REDACT", "HEALTHOBS_REDACTION"),
            ("HEALTHOBS_REDACTON", "HEALTHOBS_REDACTION"),
            ("healthobs_frameworks", "HEALTHOBS_FRAMEWORKS"),
        ],
    )
    def test_a_misspelt_variable_cannot_switch_strict_off(self, misspelt: str, meant: str) -> None:
        """Where redaction depends on it, a name that is nearly right stops the start."""
        with pytest.raises(ConfigurationError) as caught:
            Settings.from_env({misspelt: "4711", "HEALTHOBS_MAX_SERIES": "many"})
        assert caught.value.problems == (
            f"{misspelt} is no setting: {meant} decides what is redacted",
            "HEALTHOBS_MAX_SERIES must be a whole number",
        )

    @pytest.mark.parametrize(
        "environ",
        [
            {"HEALTHOBS_SERVICE_HOST": "10.0.0.1", "HEALTHOBS_SERVICE_PORT": "80"},
            {"HEALTHOBS_SERVICE_PORT_HTTP": "80", "HEALTHOBS_PORT": "tcp://10.0.0.1:80"},
            {"HEALTHOBS_PORT_80_TCP": "tcp://10.0.0.1:80", "HEALTHOBS_PORT_80_TCP_ADDR": "10.0.0.1"},
            {"HEALTHOBS_WARD_SERVICE_HOST": "10.0.0.1", "HEALTHOBS_WARD_PORT": "tcp://10.0.0.1:80"},
            {"HEALTHOBS_TOKEN": "x", "HEALTHOBS_OPS_FD": "3", "HEALTHOBS_DATA_DIR": "x"},
            {"HEALTHOBS_MUST_HAVE_SERVERS": "1", "HEALTHOBS_MISSPELT": ""},
        ],
    )
    def test_variables_of_others_are_nobodys_mistake(self, environ: dict[str, str]) -> None:
        """Kubernetes sets some for each Service of such a name, and the project reads some that are no settings."""
        assert Settings.from_env(environ) == Settings()

    def test_every_variable_that_the_project_reads_is_known(self) -> None:
        """What code reads under the prefix is a setting, or named among the others."""
        root = Path(__file__).resolve().parent.parent
        installed = [Path(str(package.__file__)).parent for package in (healthobs, reference_services)]
        folders = (*installed, *(root / name for name in ("reference_services", "tests", "bench")))
        files = [path for folder in folders for path in folder.rglob("*.py")]
        read = {
            name
            for path in files
            for name in re.findall(
                r'(?:environ\[|get\(|getenv\(|_FD = )"(HEALTHOBS_\w+)"', path.read_text(encoding="utf-8")
            )
        }
        assert {"HEALTHOBS_DATA_DIR", "HEALTHOBS_OPS_FD", "HEALTHOBS_TOKEN"} < read
        assert unknown_variables(dict.fromkeys(read, "x")) == []

    def test_unreadable_variables_hide_no_other_problem(self) -> None:
        """One start names what cannot be read and what is not allowed."""
        environ = {
            "HEALTHOBS_MAX_SERIES": "many",
            "HEALTHOBS_REDACTION": "stric",
            "HEALTHOBS_FRAMEWORKS": "hippa",
        }
        with pytest.raises(ConfigurationError) as caught:
            Settings.from_env(environ, audit_retention_days=0)
        assert [problem.split()[0] for problem in caught.value.problems] == [
            "HEALTHOBS_MAX_SERIES", "frameworks", "redaction", "audit_retention_days",
        ]  # fmt: skip

    @given(st.text(st.characters(codec="ascii", categories=["L"]), min_size=8))
    def test_no_value_is_echoed(self, secret: str) -> None:
        """An error never carries what the variable held."""
        with pytest.raises(ConfigurationError) as caught:
            Settings.from_env({"HEALTHOBS_MAX_SERIES": secret, "HEALTHOBS_LOG_LEVEL": "info"})
        assert secret not in str(caught.value)
