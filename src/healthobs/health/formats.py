"""Other forms of the two answers: `application/health+json`, and the one with causes for the ops port.

Format: draft-inadarei-api-health-check-06 (expired April 2022, and what tools read): ``pass``, ``warn``, ``fail``.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any

from healthobs.clock import rfc3339
from healthobs.health.checks import GOOD, Facts
from healthobs.health.engine import Health

MEDIA_TYPE = "application/health+json"


def draft06(health: Health, status: int, words: Mapping[str, str]) -> dict[str, Any]:
    """Return the draft's body for an answer of `status` with these words."""
    facts, now = health.facts(), health.clock.now()
    checks: dict[str, Any] = {}
    for name, word in words.items():
        known = facts.get(name)
        if known is None:
            checks[name] = [{"componentType": "system", "status": _grade(word, critical=True)}]
            continue
        entry: dict[str, Any] = {
            "componentType": "component",
            "observedValue": round(known.duration_seconds * 1000, 3),
            "observedUnit": "ms",
            "status": _grade(word, critical=known.critical),
        }
        if known.age_seconds is not None:
            entry["time"] = rfc3339(now - timedelta(seconds=known.age_seconds), timespec="seconds")
        checks[f"{name}:responseTime"] = [entry]
    grades = {entry[0]["status"] for entry in checks.values()}
    overall = "fail" if status != 200 else "warn" if grades - {"pass"} else "pass"
    return {
        "status": overall,
        "serviceId": health.service,
        "releaseId": health.version,
        **({"checks": checks} if checks else {}),
    }


def with_causes(health: Health, body: Mapping[str, Any]) -> dict[str, Any]:
    """Return a readiness body in which each word comes with what is known of its check."""
    facts = health.facts()
    checks = {name: {"word": word, **_detail(facts.get(name))} for name, word in body["checks"].items()}
    return {**body, "checks": checks}


def _detail(known: Facts | None) -> dict[str, Any]:
    if known is None:
        return {}
    return {
        "critical": known.critical,
        "cause": known.cause,
        "duration_seconds": round(known.duration_seconds, 6),
        "age_seconds": None if known.age_seconds is None else round(known.age_seconds, 3),
    }


def _grade(word: str, *, critical: bool) -> str:
    if word in GOOD:
        return "warn" if word == "degraded" else "pass"
    return "fail" if critical else "warn"
