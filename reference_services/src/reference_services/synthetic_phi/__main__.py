"""Starts synthetic-phi-service under gunicorn."""

from __future__ import annotations

from reference_services._kit import launch
from reference_services.synthetic_phi.api import INFO

if __name__ == "__main__":
    launch(INFO, "reference_services.synthetic_phi.api:create_app()")
