"""What the reference services share: settings, routes, problems, tokens, state, idempotency, OpenAPI."""

from __future__ import annotations

from reference_services._kit.app import Kit
from reference_services._kit.auth import Principal
from reference_services._kit.database import by_id, count, insert, moment, rows
from reference_services._kit.launch import launch
from reference_services._kit.problems import Problem, invalid, unavailable
from reference_services._kit.settings import ServiceInfo, ServiceSettings
from reference_services._kit.validation import Model

__all__ = [
    "Kit", "Model", "Principal", "Problem", "ServiceInfo", "ServiceSettings", "by_id", "count", "insert", "invalid",
    "launch", "moment", "rows", "unavailable",
]  # fmt: skip
