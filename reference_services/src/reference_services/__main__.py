"""Starts the service that `HEALTHOBS_IMAGE_SERVICE` names: the entry point of the container images."""

from __future__ import annotations

import os
import runpy
import signal
import sys

PACKAGES = ("synthetic_phi", "payment_gateway", "phi", "medical_device", "auth")


def main() -> None:
    """Run `python -m reference_services.<name>`.

    Raises:
        SystemExit: The variable is missing or names no service.
    """
    # Until gunicorn handles it; see `healthobs.gunicorn.hold_sigterm`, whose import alone would take too long.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    name = os.environ.get("HEALTHOBS_IMAGE_SERVICE", "")
    if name not in PACKAGES:
        sys.exit(f"HEALTHOBS_IMAGE_SERVICE must be one of {', '.join(PACKAGES)}")
    runpy.run_module(f"reference_services.{name}", run_name="__main__")


if __name__ == "__main__":
    main()
