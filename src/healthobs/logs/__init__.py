"""Logs: one redacted JSON object per line, with the ids of the current span.

``{"timestamp", "level", "event", "service", "trace_id", "span_id", …fields}``; timestamps are RFC 3339 with
microseconds in UTC. One `write` per line, so that threads and forked processes do not mix lines. structlog
loggers and, when asked, the standard library's root logger give the same lines; neither is configured
globally. A service that declares PHI has what else writes redacted too, in its own format.

Limits: text is scanned for patterns, not understood: put values into fields, not into the event. Loggers of
other libraries with handlers of their own and `propagate = False` are not captured, only redacted.
"""

from healthobs.logs.pipeline import LogMode, Logs

__all__ = ["LogMode", "Logs"]
