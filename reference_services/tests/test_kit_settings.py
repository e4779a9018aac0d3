"""Where a service runs: its settings, and its start under gunicorn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from healthobs import ConfigurationError, Observability
from healthobs.audit.subjects import is_token
from reference_services import services
from reference_services._kit import ServiceSettings, launch
from reference_services._kit.settings import PEERS


class TestServiceSettings:
    """`ServiceSettings.from_env`."""

    def test_defaults(self, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Without variables a service listens on its own port of the loopback address, state under .healthobs."""
        monkeypatch.chdir(tmp_path)
        made = ServiceSettings.from_env(bench.info, {})
        assert (made.host, made.port, made.workers, made.threads) == ("127.0.0.1", 8099, 1, 16)
        assert made.data_dir == tmp_path / ".healthobs"
        assert made.database_url == f"sqlite:///{tmp_path}/.healthobs/bench.db"
        assert made.observability.audit_database_url == f"sqlite:///{tmp_path}/.healthobs/bench.audit.db"
        assert made.observability.audit_key_file == tmp_path / ".healthobs/bench.audit.key"
        assert made.peers["auth-service"] == "http://127.0.0.1:8085"

    def test_variables_win(self, bench: Any) -> None:
        """Every place can be set."""
        made = ServiceSettings.from_env(
            bench.info,
            {
                "HOST": "0.0.0.0", "PORT": "9", "WORKERS": "2", "THREADS": "8", "DATABASE_URL": "sqlite:///x.db",
                "AUDIT_DATABASE_URL": "sqlite:///a.db", "AUDIT_KEY_FILE": "/k", "AUTH_SERVICE_URL": "http://auth/",
                "AUTH_ISSUER": "i", "AUTH_AUDIENCE": "a", "HEALTHOBS_HEADERS": "false", "OWN_FILE": "/own",
            },
        )  # fmt: skip
        assert (made.host, made.port, made.workers, made.threads) == ("0.0.0.0", 9, 2, 8)
        assert (made.database_url, made.issuer, made.audience) == ("sqlite:///x.db", "i", "a")
        assert made.observability.audit_database_url == "sqlite:///a.db"
        assert str(made.observability.audit_key_file) == "/k"
        assert made.observability.headers is False
        assert made.peers["auth-service"] == "http://auth"
        assert str(made.file("OWN_FILE", "other")) == "/own"
        assert made.file("OTHER_FILE", "other") == made.data_dir / "other"

    def test_with_and_without_a_trail(self, bench: Any) -> None:
        """A service without a trail is given none; places named in healthobs' own variables are kept."""
        without = ServiceSettings.from_env(replace(bench.info, audit=False), {})
        assert without.observability.audit_database_url is None
        named = {"HEALTHOBS_AUDIT_DATABASE_URL": "sqlite:///a", "HEALTHOBS_AUDIT_KEY_FILE": "/b"}
        kept = ServiceSettings.from_env(bench.info, named).observability
        assert (kept.audit_database_url, str(kept.audit_key_file)) == ("sqlite:///a", "/b")

    def test_map_of_subjects_is_where_the_log_is(self, bench: Any) -> None:
        """Who holds PHI has a map: in a file beside a log in a file, in the database that replicas share beside theirs, or as it is told."""
        info, server = replace(bench.info, frameworks=("hipaa",)), {"AUDIT_DATABASE_URL": "postgresql://db/a"}

        def mapped(**environ: str) -> tuple[str | None, ...]:
            made = ServiceSettings.from_env(info, {"HEALTHOBS_DATA_DIR": "/d", **environ}).observability
            places = made.audit_subjects_file, made.audit_subjects_url, made.audit_subjects_key_file
            return tuple(None if place is None else str(place) for place in places)

        assert mapped() == ("/d/bench.subjects.db", None, None)
        assert mapped(**server) == (None, "postgresql://db/a", "/d/bench.subjects.key")
        key = {"HEALTHOBS_AUDIT_SUBJECTS_KEY_FILE": "/k"}
        assert mapped(**server, **key) == (None, "postgresql://db/a", "/k")
        assert mapped(**server, **key, HEALTHOBS_AUDIT_SUBJECTS_URL="postgresql://db/b") == (
            None,
            "postgresql://db/b",
            "/k",
        )
        assert mapped(**server, HEALTHOBS_AUDIT_SUBJECTS_FILE="/m") == ("/m", None, None)

    def test_who_has_break_glass_has_a_spool(self, bench: Any) -> None:
        """Care goes on there against a file while the trail is away; elsewhere, or told so, the policy is another one."""

        def told(*, break_glass: bool, **environ: str) -> tuple[str, str]:
            info = replace(bench.info, break_glass=break_glass)
            made = ServiceSettings.from_env(info, {"HEALTHOBS_DATA_DIR": "/d", **environ}).observability
            return made.audit_policy, str(made.audit_spool_file)

        assert told(break_glass=True) == ("spool", "/d/bench.audit.spool")
        assert told(break_glass=False) == ("deny", "None")
        assert told(break_glass=True, HEALTHOBS_AUDIT_SPOOL_FILE="/s") == ("spool", "/s")
        assert told(break_glass=True, HEALTHOBS_AUDIT_POLICY="deny")[0] == "deny"

    @pytest.mark.server
    def test_log_and_map_in_one_database(self, bench: Any, tmp_path: Path, postgres: Any) -> None:
        """Two replicas whose log is in PostgreSQL give a patient one token there."""
        info = replace(bench.info, frameworks=("hipaa",))
        url = postgres.url(postgres.database())
        environ = {"HEALTHOBS_DATA_DIR": str(tmp_path), "AUDIT_DATABASE_URL": url}
        settings = replace(ServiceSettings.from_env(info, environ).observability, control_interval_seconds=0)
        replicas = [Observability(settings) for _ in range(2)]
        for obs in replicas:
            assert obs.audit is not None
            obs.audit.append({"action": "patient.read", "subject": "MRN-0012345"})
            obs.close()
        bodies = [
            json.loads(body) for (body,) in postgres.execute(url, "SELECT body FROM healthobs_audit.entry")
        ]
        tokens = {body["subject"] for body in bodies if body["action"] == "patient.read"}
        assert [is_token(token) for token in tokens] == [True]

    @pytest.mark.parametrize("value", ["0", "65536", "x", "-1", "٣", "9" * 5000])
    def test_wrong_numbers(self, bench: Any, value: str) -> None:
        """All wrong numbers are named at once, without their value."""
        with pytest.raises(ConfigurationError) as raised:
            ServiceSettings.from_env(bench.info, {"PORT": value, "WORKERS": "none"})
        assert raised.value.problems == (
            "PORT must be a whole number from 1 to 65535",
            "WORKERS must be a whole number from 1 to 64",
        )

    def test_secrets_do_not_show(self, bench: Any) -> None:
        """Neither the database URL nor the environment appears in the representation."""
        made = ServiceSettings.from_env(bench.info, {"DATABASE_URL": "postgresql://u:hunter2@h/d"})
        assert "hunter2" not in repr(made)

    def test_peers_match_the_manifest(self) -> None:
        """The peers' default ports are the services' own."""
        assert {name: port for name, (_, port) in PEERS.items()} == {
            name: service.port for name, service in services.SERVICES.items()
        }


class TestLaunch:
    """The start under gunicorn."""

    def test_gunicorn_gets_the_settings(
        self, bench: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """The launcher hands host, port, workers and threads to gunicorn and makes the data folder."""
        served: dict[str, Any] = {}
        monkeypatch.setattr(
            "healthobs.gunicorn.serve", lambda uri, **options: served.update(uri=uri, **options)
        )
        monkeypatch.setenv("HEALTHOBS_DATA_DIR", str(tmp_path / "data"))
        monkeypatch.setenv("PORT", "1234")
        launch(bench.info, "x:create_app()")
        assert (served["uri"], served["host"], served["port"]) == ("x:create_app()", "127.0.0.1", 1234)
        assert (served["workers"], served["threads"], served["ops_port"]) == (1, 16, 2234)
        assert (tmp_path / "data").stat().st_mode & 0o777 == 0o700
