"""The checks that come with the signals: ``metrics``, ``tracing``, ``audit_trail``; and one for another service."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from http import HTTPStatus
from http.client import HTTPConnection, HTTPException, HTTPSConnection
from urllib.parse import urlsplit

from healthobs.clock import Clock
from healthobs.health.checks import ANSWER_BUDGET_SECONDS, Degraded
from healthobs.health.decorators import readiness_check
from healthobs.health.engine import Health

#: Seconds without a further failed export after which ``tracing`` is ready again.
QUIET_SECONDS = 30.0


def register_builtin_checks(
    health: Health,
    *,
    metrics: Callable[[], Iterable[object]] | None = None,
    export_failures: Callable[[], int] | None = None,
    audit: Callable[[], None] | None = None,
    audit_critical: bool = True,
) -> None:
    """Register ``metrics``, ``tracing`` and ``audit_trail`` for the signals that a service has.

    The first two are not critical and at worst ``degraded``: losing telemetry must not take a clinical service
    away. The audit trail is critical: what cannot be recorded must not be answered (45 CFR 164.312(b)), except where care
    under break-glass goes on against a spool.

    Args:
        health: Where to register.
        metrics: Yields the metric families of a scrape.
        export_failures: Returns how many exports of spans have failed so far.
        audit: Raises when the trail cannot take an entry.
        audit_critical: Whether the service is then of no use to anybody.

    Raises:
        InstrumentationError: One of the names is taken.

    Example:
        >>> health = Health("demo", "1.0.0", Clock())
        >>> register_builtin_checks(health, export_failures=lambda: 0)
        >>> list(health.snapshot())
        ['tracing']
    """
    if metrics is not None:
        health.register("metrics", _metrics_check(metrics), critical=False, ttl=15.0)  # a whole scrape
    if export_failures is not None:
        health.register("tracing", _tracing_check(export_failures, health.clock), critical=False)
    if audit is not None:
        health.register("audit_trail", audit, timeout=ANSWER_BUDGET_SECONDS, critical=audit_critical)


def http_dependency(
    peer: str, url: str, *, timeout: float = 0.5, critical: bool = False, interval: float | None = None
) -> Callable[[], None]:
    """Register a readiness check that asks another service whether it lives.

    It asks the peer's `/health`, never its `/readiness`: services that wait for each other's readiness may all
    wait for ever. Not ready there is ``degraded`` here, unless `critical`. The question leaves no span.

    Args:
        peer: Name of the other service; the check is called so, with underscores.
        url: Its base URL.
        timeout: Seconds until the run is abandoned.
        critical: Whether this service is of no use without the other.
        interval: See `readiness_check`.

    Returns:
        The check.

    Raises:
        InstrumentationError: See `Health.register`.
    """
    register = readiness_check(
        peer.replace("-", "_"), timeout=timeout, critical=critical, interval=interval
    )  # fmt: skip
    return register(
        partial(_ask, f"{url.rstrip('/')}/health", timeout, Unreachable if critical else Degraded)
    )


class Unreachable(Exception):  # noqa: N818 - a state, not an error
    """The other service does not answer, or says that it is unhealthy."""


def _ask(url: str, timeout: float, otherwise: type[Exception]) -> None:
    try:
        well = _status(url, timeout) == HTTPStatus.OK
    except (OSError, HTTPException):
        well = False
    if not well:
        raise otherwise


def _status(url: str, timeout: float) -> int:
    parts = urlsplit(url)
    kind = HTTPSConnection if parts.scheme == "https" else HTTPConnection
    connection = kind(parts.hostname or "", parts.port, timeout=timeout)
    try:
        connection.request("GET", parts.path)
        return connection.getresponse().status
    finally:
        connection.close()


def _metrics_check(collect: Callable[[], Iterable[object]]) -> Callable[[], None]:
    def metrics() -> None:
        try:
            families = list(collect())
        except Exception as exc:
            raise Degraded from exc
        if not families:
            raise Degraded

    return metrics


def _tracing_check(export_failures: Callable[[], int], clock: Clock) -> Callable[[], None]:
    seen = 0
    quiet_from_ns: int | None = None

    def tracing() -> None:
        nonlocal seen, quiet_from_ns
        before, seen = seen, export_failures()
        now = clock.monotonic_ns()
        if seen > before:
            quiet_from_ns = now + int(QUIET_SECONDS * 1e9)
        if quiet_from_ns is not None and now < quiet_from_ns:
            raise Degraded

    return tracing
