"""Liveness and readiness of one service, in words that cannot leak anything.

Liveness asks liveness checks only: restarting a service does not mend its database (Kubernetes,
"Configure Liveness, Readiness and Startup Probes"). Readiness asks all its checks in parallel, each under
its own timeout, and answers within `ANSWER_BUDGET_SECONDS`. Words: ``ready degraded not_ready timeout
starting draining`` for readiness, ``ok failed`` for liveness; no exception text, ever.

Limits: state is per process; checks run when somebody asks, never on a metrics scrape.
"""

from healthobs.health.checks import ANSWER_BUDGET_SECONDS, Degraded, OnTransition
from healthobs.health.decorators import health_check, readiness_check
from healthobs.health.engine import QUIET_SECONDS, Health, gauge_value, register_builtin_checks

__all__ = [
    "ANSWER_BUDGET_SECONDS",
    "QUIET_SECONDS",
    "Degraded",
    "Health",
    "OnTransition",
    "gauge_value",
    "health_check",
    "readiness_check",
    "register_builtin_checks",
]
