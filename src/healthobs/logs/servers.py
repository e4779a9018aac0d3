"""What an argument of a server's or a client's message may say: nothing of what it was handed.

Numbers, addresses, and texts of closed vocabularies pass: HTTP's methods, versions and reason phrases, names of signals, what
Django says of its CSRF check. A request target becomes a mark, and so does any other text or collection.

Limits: data that is equal to a text of these vocabularies passes, and so does a number that is written as text.
"""

from __future__ import annotations

import re
import signal
from collections.abc import Collection
from http import HTTPStatus
from typing import cast

from healthobs.logs.libraries import VALUE
from healthobs.redaction import Phi

TARGET = "[PHI:url]"
_METHODS = frozenset(
    ("CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "QUERY", "TRACE")
)
_TARGET = re.compile(
    r"""(?:(?<![\w.%-])/|(?<![\w+.-])[a-zA-Z][\w+.-]*://).*?(?= HTTP/\d(?:\.\d)?["')]*\Z|\Z)""", re.DOTALL
)
_VERSION = re.compile(r"(HTTP/)?\d(\.\d)?")
#: A request line, in werkzeug's colours or without.
REQUEST = re.compile(r"^(?:\x1b\[\d+m)*([A-Z]+) .* (HTTP/\d\.\d)(?:\x1b\[\d+m)*$", re.DOTALL)
#: A number, a version, a scheme, an address or its parts; gunicorn writes an address as a pair.
_PLAIN = re.compile(
    r"-|https?|(?:HTTP/)?\d+(?:\.\d+)*(?::\d+)?|localhost|::1?|\('(?:localhost|[\d.]+|::1?)', \d+\)"
)
#: How a refusal of `http.server` or of gunicorn begins; behind it follows what was refused.
_REFUSAL = re.compile(
    r"(?:Bad|Invalid|Line|Too|Unsupported)"
    r"(?: (?:HTTP(?:_HOST|/0\.9)?|[Hh]eaders?|line|long|many|[Mm]ethod|request|syntax|too|type|[Vv]ersion)\b)+(?:: | |\Z)"
)
_SAID = frozenset(
    (
        "",
        *_METHODS,
        *(status.phrase for status in HTTPStatus),
        *(one.name for one in signal.Signals),
        *(one.name.removeprefix("SIG").lower() for one in signal.Signals),
        "CSRF cookie not set.",
        "CSRF token missing.",
        "Referer checking failed - no Referer.",
    )
)


def argument(value: object) -> object:
    """Return an argument of a server's message without what the server was handed; patterns are not looked for.

    Example:
        >>> [argument(one) for one in ("GET", "OTTOLINE", "/patients/7", 404, {"path": "/patients/7"})]
        ['GET', '[PHI:value]', '[PHI:url]', 404, '[PHI:value]']
    """
    if isinstance(value, str):
        return _text(str.__str__(value))
    if value is None or isinstance(value, (int, float, Phi)):
        return cast("object", value)
    return VALUE if isinstance(value, Collection) else "[PHI:type]"


def _text(text: str) -> str:
    if text in _SAID or _PLAIN.fullmatch(text):
        return text
    if _TARGET.match(text):
        return without_targets(text)
    request = REQUEST.search(text)
    if request is not None:
        return f"{known_method(request[1])} {TARGET} {request[2]}"
    refusal = _REFUSAL.match(text)
    if refusal is None:
        return VALUE
    return text if refusal.end() == len(text) else refusal[0] + VALUE


def without_targets(text: str) -> str:
    """Return `text` with a mark from where a request target begins, to its end."""
    return _TARGET.sub(TARGET, text)


def known_method(method: object) -> str:
    """Return a method of HTTP, or what stands for any other."""
    return method if isinstance(method, str) and method in _METHODS else "_OTHER"


def known_version(version: object) -> str:
    """Return a version of HTTP, or what stands for any other."""
    return version if isinstance(version, str) and _VERSION.fullmatch(version) else "?"
