"""Other forms of the two answers: `application/health+json`, and the one with causes."""

from __future__ import annotations

import pytest
from tests.healthy import Time

from healthobs.health import Degraded, Health
from healthobs.health.formats import draft06, with_causes


class TestFormats:
    """`application/health+json`, and causes."""

    @pytest.mark.parametrize(
        ("result", "critical", "overall", "grade"),
        [(True, True, "pass", "pass"), (False, True, "fail", "fail"), (False, False, "warn", "warn")],
    )
    def test_draft06(
        self, health: Health, ticking: Time, *, result: bool, critical: bool, overall: str, grade: str
    ) -> None:
        """pass, warn or fail, for the whole and for each check, with its response time."""
        health.readiness()
        health.register("database", lambda: result, critical=critical)
        status, body = health.readiness()
        ticking.elapsed = 3.0
        assert draft06(health, status, body["checks"]) == {
            "status": overall,
            "serviceId": "phi-service",
            "releaseId": "1.0.0",
            "checks": {
                "database:responseTime": [
                    {
                        "componentType": "component",
                        "observedValue": 0.0,
                        "observedUnit": "ms",
                        "status": grade,
                        "time": "2025-11-23T10:30:00Z",
                    }
                ]
            },
        }

    def test_draft06_of_the_life_cycle(self, ticking: Time) -> None:
        """Draining and starting are no component of their own; a check that never ran has no time."""
        health = Health("phi-service", "1", ticking.clock())
        assert draft06(health, *_words(health)) == {
            "status": "fail",
            "serviceId": "phi-service",
            "releaseId": "1",
            "checks": {"lifecycle": [{"componentType": "system", "status": "fail"}]},
        }

    def test_degraded_warns(self, health: Health) -> None:
        """Degraded is a warning, and the service passes on."""

        def check() -> None:
            raise Degraded

        health.register("cache", check)
        assert draft06(health, *_words(health))["status"] == "warn"

    def test_causes_are_types(self, health: Health, ticking: Time) -> None:
        """The answer with causes names the exception's type, its age and whether it matters; never its text."""

        def check() -> None:
            ticking.elapsed += 0.25
            raise OSError("patient Jane")

        health.register("database", check)
        _, body = health.readiness()
        ticking.elapsed += 1.5
        assert with_causes(health, body)["checks"] == {
            "database": {
                "word": "not_ready",
                "critical": True,
                "cause": "OSError",
                "duration_seconds": 0.25,
                "age_seconds": 1.5,
            },
            "lifecycle": {"word": "starting"},
        }


def _words(health: Health) -> tuple[int, dict[str, str]]:
    status, body = health.readiness()
    return status, body["checks"]
