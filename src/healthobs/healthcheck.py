"""A health check for images without a shell: `python -m healthobs.healthcheck [URL]`.

Exits 0 when the URL answers 200 within two seconds, 1 otherwise, with one line on standard error. Without a URL it
asks `/health` on this machine: on the ops port (`HEALTHOBS_OPS_PORT`, `OPS_PORT`) where there is one, else on `PORT`,
under `HEALTHOBS_ENDPOINT_PREFIX`.
It uses the standard library only, because a container engine runs it every few seconds.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, Sequence
from http.client import HTTPConnection, HTTPException
from urllib.parse import urlsplit

TIMEOUT_SECONDS = 2.0
_PORTS = ("HEALTHOBS_OPS_PORT", "OPS_PORT", "PORT")


def main(argv: Sequence[str] | None = None, environ: Mapping[str, str] | None = None) -> int:
    """Ask the URL once.

    Args:
        argv: At most one plain-HTTP URL, default from the command line.
        environ: Where ports are read from; default `os.environ`.

    Returns:
        0 healthy, 1 not, 2 when called wrongly.
    """
    arguments = sys.argv[1:] if argv is None else list(argv)
    url = arguments[0] if len(arguments) == 1 else None
    if not arguments:
        url = _local_url(os.environ if environ is None else environ)
    parts = urlsplit(url) if url else None
    if parts is None or parts.scheme != "http" or not parts.hostname:
        print("usage: python -m healthobs.healthcheck [http://HOST:PORT/health]", file=sys.stderr)  # noqa: T201
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


def _local_url(environ: Mapping[str, str]) -> str | None:
    name = next((name for name in _PORTS if environ.get(name, "0").strip("0")), "")
    port = environ.get(name, "")
    prefix = environ.get("HEALTHOBS_ENDPOINT_PREFIX", "") if name == "PORT" else ""
    host = environ.get("HOST", "")
    everywhere = host in ("", "0.0.0.0", "::")  # noqa: S104 - asked on the loopback address then
    address = "127.0.0.1" if everywhere else host
    return f"http://{address}:{port}{prefix}/health" if port.isdecimal() else None


if __name__ == "__main__":
    sys.exit(main())
