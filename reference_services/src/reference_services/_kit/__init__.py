"""What the reference services share: settings, routes, problems, tokens, state, idempotency, OpenAPI."""

from __future__ import annotations

from reference_services._kit.app import Kit, application
from reference_services._kit.auth import Principal
from reference_services._kit.database import add_new, by_id, count, insert, moment, page, rows
from reference_services._kit.launch import launch
from reference_services._kit.problems import Problem, invalid, unavailable
from reference_services._kit.settings import ServiceInfo, ServiceSettings
from reference_services._kit.validation import Model

__all__ = [
    "Kit", "Model", "Principal", "Problem", "ServiceInfo", "ServiceSettings", "add_new", "application", "by_id", "count",
    "insert", "invalid", "launch", "moment", "page", "rows", "unavailable",
]  # fmt: skip
