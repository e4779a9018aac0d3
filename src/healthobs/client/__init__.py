"""Calls another service over HTTP: span, `traceparent`, request id, metrics, timeout and careful retries.

Span and metric names are those of the stable OpenTelemetry semantic conventions (HTTP spans, HTTP metrics
1.23+); `traceparent` is W3C Trace Context §3.2. The route template is recorded, never the path it became,
its query, or a body: identifiers of patients travel there.

`Client` sends by urllib3; `healthobs.client.requests` and `healthobs.client.httpx` observe the sessions and clients that an
application has already.

Each attempt is one span and one sample; a repeated one carries `http.request.resend_count`.

Limits: of `Client`, answers are read whole into memory; redirects are handed back, not followed; no circuit breaker.
"""

from healthobs.client.attempts import (
    IDEMPOTENT_METHODS,
    MAX_RETRY_AFTER_SECONDS,
    METHODS,
    RETRIED_STATUSES,
    Peer,
)
from healthobs.client.client import Client, ClientResponse, Pool, PoolResponse

__all__ = [
    "IDEMPOTENT_METHODS",
    "MAX_RETRY_AFTER_SECONDS",
    "METHODS",
    "RETRIED_STATUSES",
    "Client",
    "ClientResponse",
    "Peer",
    "Pool",
    "PoolResponse",
]
