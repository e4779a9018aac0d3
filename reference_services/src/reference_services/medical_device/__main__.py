"""`python -m reference_services.medical_device` serves medical-device."""

from __future__ import annotations

from reference_services._kit import launch
from reference_services.medical_device.api import INFO

if __name__ == "__main__":
    launch(INFO, "reference_services.medical_device.api:create_app()")
