"""`python -m reference_services.auth` serves auth-service."""

from __future__ import annotations

from reference_services._kit import launch
from reference_services.auth.api import INFO

if __name__ == "__main__":
    launch(INFO, "reference_services.auth.api:create_app()")
