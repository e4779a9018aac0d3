"""Instrumentation scopes: what a tracer, or a logger of OpenTelemetry's, says of who it is.

OpenTelemetry, "Instrumentation Scope". Name, version and attributes are given where the tracer is made, which
``get_tracer(__name__)`` does of code and ``get_tracer(f"ward.{patient}")`` of data; names are judged by whoever asks here.

Limits: in ``strict`` a version passes by its form (``1.2``, ``0.48b0``), or when it is written in the code.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from healthobs.redaction.redactor import Redactor

_VERSION = re.compile(r"v?\d{1,4}(?:\.\d{1,4}){1,3}(?:[-.+]?(?:a|b|rc|alpha|beta|dev|post)\.?\d{1,3})?")
_SCHEMA = re.compile(r"https://opentelemetry\.io/schemas/\d{1,3}\.\d{1,3}\.\d{1,3}")


def redacted(scope: Any, redactor: Redactor, shown: Callable[[str], str], *, signal: str) -> Any:
    """Return `scope` itself when all of it may leave, else a redacted copy; a version or schema that may not leave is left out.

    Args:
        scope: The SDK's.
        redactor: Decides on all but the name.
        shown: Returns the name as it may leave.
        signal: For the counter.
    """
    attributes = redactor.changed(scope.attributes or {}, signal=signal)
    name, version, schema_url = shown(scope.name), scope.version, scope.schema_url
    is_number = version is None or _VERSION.fullmatch(str(version)) is not None
    version = _kept(version, redactor, signal, known=is_number)
    if _SCHEMA.fullmatch(str(schema_url)) is None:
        schema_url = _kept(schema_url, redactor, signal, known=False)
    if (
        attributes is None
        and name is scope.name
        and version is scope.version
        and schema_url is scope.schema_url
    ):
        return scope
    return type(scope)(name, version, schema_url, scope.attributes if attributes is None else attributes)


def _kept(text: str | None, redactor: Redactor, signal: str, *, known: bool) -> str | None:
    if not text or (redactor.text(text, signal=signal) is text and (known or not redactor.strict)):
        return text
    return text if redactor.name(text, signal=signal) is text else None
