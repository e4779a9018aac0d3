"""`python -m reference_services.phi` serves phi-service."""

from __future__ import annotations

from reference_services._kit import launch
from reference_services.phi.api import INFO

if __name__ == "__main__":
    launch(INFO, "reference_services.phi.api:create_app()")
