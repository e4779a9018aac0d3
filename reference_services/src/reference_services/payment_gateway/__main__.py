"""`python -m reference_services.payment_gateway` serves payment-gateway."""

from __future__ import annotations

from reference_services._kit import launch
from reference_services.payment_gateway.api import INFO

if __name__ == "__main__":
    launch(INFO, "reference_services.payment_gateway.api:create_app()")
