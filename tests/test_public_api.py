"""What `healthobs` exports, and what importing it does not do."""

from __future__ import annotations

import os
import subprocess
import sys

import healthobs

NAMES = {
    "AuditError", "AuditTamperedError", "AuditWriteError", "ClientError", "ConfigurationError", "Degraded",
    "HealthobsError", "HealthobsWarning", "InstrumentationError", "LabelError", "MetricNameError",
    "Observability", "Phi", "RedactionError", "Settings", "TokenError", "audited", "carry", "classified",
    "counted", "current", "health_check", "in_flight", "install", "job", "logged", "observe", "readiness_check",
    "set_tenant", "timed", "traced", "use", "use_tenant",
}  # fmt: skip


def run(code: str, *options: str) -> str:
    """Run `code` in a fresh interpreter, unmeasured (coverage would import more), and return what it prints."""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("COVERAGE_")}
    done = subprocess.run(
        [sys.executable, "-W", "error", *options, "-c", code],
        check=True,
        capture_output=True,
        text=True,
        env=environment,
    )
    return done.stdout.strip()


class TestExports:
    """`healthobs.__all__`."""

    def test_names(self) -> None:
        """The public names are these; each exists and says what it is."""
        assert set(healthobs.__all__) == NAMES
        assert all(getattr(healthobs, name).__doc__ for name in NAMES)

    def test_sorted(self) -> None:
        """The list is sorted, so that a change reads well."""
        assert healthobs.__all__ == sorted(healthobs.__all__)


class TestImport:
    """`import healthobs`."""

    def test_imports_nothing_heavy(self) -> None:
        """No framework, exporter, cryptography, database or HTTP client is loaded, no audit log and no pattern of redaction."""
        heavy = (
            "flask",
            "werkzeug",
            "cryptography",
            "sqlite3",
            "urllib3",
            "requests",
            "joserfc",
            "gunicorn",
            "google",
            "healthobs.audit.trail",
            "healthobs.redaction.scan",
        )
        code = f"import sys, healthobs; print([name for name in {heavy!r} if name in sys.modules])"
        assert run(code) == "[]"

    def test_reads_no_environment(self) -> None:
        """Healthobs itself reads no variable at import."""
        code = (
            "import os, opentelemetry.sdk.trace, opentelemetry.sdk.trace.export, prometheus_client, structlog, wrapt\n"
            "read = []\n"
            "class Watched(type(os.environ)):\n"
            "    def __getitem__(self, key):\n"
            "        import sys\n"
            "        frame = sys._getframe(1)\n"
            "        while frame and 'os.py' in frame.f_code.co_filename or 'collections' in frame.f_code.co_filename:\n"
            "            frame = frame.f_back\n"
            "        if 'healthobs' in frame.f_code.co_filename: read.append(key)\n"
            "        return super().__getitem__(key)\n"
            "os.environ.__class__ = Watched\n"
            "import healthobs\n"
            "print(read)"
        )
        assert run(code) == "[]"

    def test_starts_no_thread(self) -> None:
        """Importing starts nothing."""
        assert run("import healthobs, threading; print(threading.active_count())") == "1"
