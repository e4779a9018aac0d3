"""What healthobs raises, and when.

```text
HealthobsError (Exception)
├── ConfigurationError (ValueError)      bad settings or environment; names every problem at once
├── InstrumentationError (TypeError)     a decorator misused; raised at import (`annotate`: by the call)
│   ├── MetricNameError (ValueError)     a metric name that Prometheus refuses or that is taken
│   └── LabelError (ValueError)          a label that was not declared
├── RedactionError                       redaction let a canary pass at start; names the kinds
├── AuditError
│   ├── AuditWriteError                  the trail refused an entry; the policy decides what follows
│   ├── AuditTamperedError               the trail does not verify; names the first bad index
│   └── RetentionError                   an entry may not be erased, pruned, held or released
├── ClientError                          an outgoing call got no answer
└── TokenError                           an access token was refused; carries a code, never the token
```

A failing health check or control is a result, not an exception. No message carries a user's data.
"""

from __future__ import annotations


class HealthobsError(Exception):
    """Base of everything that healthobs raises."""


class ConfigurationError(HealthobsError, ValueError):
    """Settings or environment are wrong; the message lists every problem and its remedy."""

    def __init__(self, *problems: str) -> None:
        self.problems = problems
        super().__init__("; ".join(problems))


class InstrumentationError(HealthobsError, TypeError):
    """A decorator or instrument is misused; raised at import or start-up, but for a wrong call of `annotate` or a metric."""


class MetricNameError(InstrumentationError, ValueError):
    """A metric name is invalid, or already taken by an instrument of another shape."""


class LabelError(InstrumentationError, ValueError):
    """A label was not declared, or is missing."""


class RedactionError(HealthobsError):
    """At start redaction let through what it must stop, so nothing is recorded and nothing starts."""


class AuditError(HealthobsError):
    """Base of the audit trail's errors."""


class AuditWriteError(AuditError):
    """The audit store refused an entry, so the access it records must not be answered."""


class AuditTamperedError(AuditError):
    """The audit trail does not verify."""

    def __init__(self, problem: str, *, index: int | None = None) -> None:
        self.problem = problem
        self.index = index
        at = "" if index is None else f" at entry {index}"
        super().__init__(f"audit trail does not verify{at}: {problem}")


class RetentionError(AuditError):
    """An entry may not be erased, pruned, held or released: too young, held, or the order is not good."""


class ClientError(HealthobsError):
    """An outgoing call got no answer (refused, timed out, or broken off)."""


class TokenError(HealthobsError):
    """An access token was refused.

    Args:
        code: One of the closed vocabulary documented in `healthobs.tokens`, such as ``expired``.
    """

    def __init__(self, code: str) -> None:
        self.code = code
        super().__init__(f"access token refused: {code}")


class HealthobsWarning(UserWarning):
    """Base of the warnings; a `UserWarning`, so that users see it."""
