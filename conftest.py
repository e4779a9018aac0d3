"""Run the Python examples of the README and the documentation as tests; no test depends on the clock, or on another.

Each test, and each page of examples, begins with nothing installed in the process and leaves it as it was.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser

#: Seconds for a check that was given no time of its own: a thread may wait for its turn on a busy machine.
PATIENCE_SECONDS = 30.0


@contextmanager
def _clean_process() -> Iterator[None]:
    from healthobs import _runtime
    from healthobs.health.decorators import pending
    from healthobs.logs.chain import StructlogChain
    from healthobs.logs.hook import Hook

    process, recording = _runtime.process, _runtime.recording
    found = process.active, process.default, process.board, recording.active
    adopted = {*StructlogChain.in_force, *Hook.filters}
    checks, pending._checks = pending._checks, {}
    process.active, process.default, process.board, recording.active = False, None, None, False
    try:
        yield
    finally:
        for adoption in (*StructlogChain.in_force, *Hook.filters):
            if adoption not in adopted:  # of an `Observability` that was not closed
                adoption.release()
        pending._checks = checks
        process.active, process.default, process.board, recording.active = found


@pytest.fixture(autouse=True)
def process_state() -> Iterator[None]:
    """Give each test a process without an `Observability`, and take away what it leaves."""
    with _clean_process():
        yield


@pytest.fixture(autouse=True)
def patient_checks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a health check with the default time have its turn; what shows a timeout gives a time of its own."""
    from healthobs.health import checks

    begin, default = checks.Check.__init__, checks.make_spec("default", lambda: True).timeout

    def patient(self: checks.Check, spec: checks.Spec, *arguments: Any, **options: Any) -> None:
        given = replace(spec, timeout=PATIENCE_SECONDS) if spec.timeout == default else spec
        begin(self, given, *arguments, **options)

    monkeypatch.setattr(checks.Check, "__init__", patient)


def _begin_page(namespace: dict[str, Any]) -> None:
    namespace["__name__"] = "page"  # functions have a module, as anywhere else
    stack = namespace["_process"] = ExitStack()
    stack.enter_context(_clean_process())
    # Django's settings are the process's, and a page may have some of its own.
    from django.conf import empty
    from django.conf import settings as django

    stack.callback(setattr, django, "_wrapped", django._wrapped)
    django._wrapped = empty


def _end_page(namespace: dict[str, Any]) -> None:
    namespace["_process"].close()


#: Where tests that share a fixture find it.
pytest_plugins = [
    "tests.audit_trails",
    "tests.controlled_service",
    "tests.healthy",
    "tests.postgres",
    "tests.retention_bench",
    "tests.set_ups",
    "tests.small_world",
    "tests.subject_places",
    "tests.tampered_logs",
]
pytest_collect_file = Sybil(
    parsers=[PythonCodeBlockParser(), SkipParser()],
    patterns=["README.md", "docs/**/*.md"],
    setup=_begin_page,
    teardown=_end_page,
).pytest()

# A gate gives the same answer twice: no deadline, and in CI the same examples each time; elsewhere new ones are tried.
settings.register_profile(
    "project",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("project")
