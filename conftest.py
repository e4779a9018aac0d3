"""Run the Python examples of the README and the documentation as tests; no test depends on the clock."""

from __future__ import annotations

import os
from typing import Any

from django.conf import empty
from django.conf import settings as django
from hypothesis import HealthCheck, settings
from sybil import Sybil
from sybil.parsers.markdown import PythonCodeBlockParser, SkipParser


def _begin_page(namespace: dict[str, Any]) -> None:
    namespace["__name__"] = "page"  # functions have a module, as anywhere else
    # Django's settings are the process's, and a page may have some of its own.
    namespace["_django"], django._wrapped = django._wrapped, empty


def _end_page(namespace: dict[str, Any]) -> None:
    django._wrapped = namespace["_django"]


pytest_plugins = ["tests.postgres"]
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
