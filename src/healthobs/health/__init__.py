"""Liveness and readiness of one service, in words that cannot leak anything.

Liveness asks liveness checks only: restarting a service does not mend its database (Kubernetes,
"Configure Liveness, Readiness and Startup Probes"). Readiness asks all its checks in parallel, each under
its own timeout, and answers within `ANSWER_BUDGET_SECONDS`. Words: ``ready degraded not_ready timeout stale
starting draining`` for readiness, ``ok failed`` for liveness; no exception text, ever.

Limits: workers share draining and their verdicts (`Board`) where one server forked them; checks run in each. No
check runs for a metrics scrape.
"""

from healthobs.health.board import Board
from healthobs.health.builtin import QUIET_SECONDS, Unreachable, http_dependency, register_builtin_checks
from healthobs.health.checks import ANSWER_BUDGET_SECONDS, CheckOptions, Degraded, Facts, OnRun, OnTransition
from healthobs.health.decorators import health_check, readiness_check
from healthobs.health.engine import Health, gauge_value
from healthobs.health.progress import Progress

__all__ = [
    "ANSWER_BUDGET_SECONDS",
    "QUIET_SECONDS",
    "Board",
    "CheckOptions",
    "Degraded",
    "Facts",
    "Health",
    "OnRun",
    "OnTransition",
    "Progress",
    "Unreachable",
    "gauge_value",
    "health_check",
    "http_dependency",
    "readiness_check",
    "register_builtin_checks",
]
