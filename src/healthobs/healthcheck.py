"""A health check for images without a shell: `python -m healthobs.healthcheck URL`.

Exits 0 when the URL answers 200 within two seconds, 1 otherwise, with one line on standard error. It
imports the standard library only, because a container engine runs it every few seconds.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 2.0


def main(argv: Sequence[str] | None = None) -> int:
    """Ask the URL once.

    Args:
        argv: One plain-HTTP URL, default from the command line.

    Returns:
        0 healthy, 1 not, 2 when called wrongly.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    parts = urlsplit(arguments[0]) if len(arguments) == 1 else None
    if parts is None or parts.scheme != "http" or not parts.hostname:
        print("usage: python -m healthobs.healthcheck http://HOST:PORT/health", file=sys.stderr)  # noqa: T201
        return 2
    connection = HTTPConnection(parts.hostname, parts.port or 80, timeout=TIMEOUT_SECONDS)
    try:
        connection.request("GET", parts.path or "/")
        status = connection.getresponse().status
    except (OSError, HTTPException) as exc:
        print(f"unhealthy: {type(exc).__name__}", file=sys.stderr)  # noqa: T201
        return 1
    finally:
        connection.close()
    if status != 200:
        print(f"unhealthy: status {status}", file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
