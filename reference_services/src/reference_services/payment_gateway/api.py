"""The routes of payment-gateway."""

from __future__ import annotations

from flask import Flask

from reference_services._kit import Kit, ServiceInfo, application
from reference_services.payment_gateway import models, store
from reference_services.payment_gateway.controls import controls
from reference_services.payment_gateway.service import Service

INFO = ServiceInfo(
    name="payment-gateway",
    title="Payment gateway",
    version="0.1.0",
    prefix="payment_gateway",
    port=8082,
    frameworks=("sox", "pci-dss", "hipaa"),
    description="Takes card payments under dual control and keeps no card number.",
)


@application(INFO, store.METADATA, Service, controls)
def create_app(kit: Kit, service: Service) -> Flask:
    """Add the routes."""
    kit.post(
        "/tokens", body=models.CardInput, returns={201: models.Token}, scope="payment:write", audit="card.tokenise",
        resource_type="token", idempotent=True, remembered={"cvc": None, "number": service.fingerprint},
        summary="Turn a card into a token",
    )(service.tokenise)  # fmt: skip
    for way, body, summary in (
        ("process", models.PaymentRequest, "Make a payment"),
        ("charge", models.ChargeRequest, "Make a payment, captured at once"),
    ):
        kit.post(
            f"/{way}", body=body, returns=dict.fromkeys((201, 202, 402), models.Payment), scope="payment:write",
            audit=f"payment.{way}", resource_type="payment", idempotent=True, before=service.admit, summary=summary,
        )(service.pay)  # fmt: skip
    kit.get(
        "/payments/<payment_id>", returns={200: models.Payment}, scope="payment:read", audit="payment.read",
        resource_type="payment", summary="Show a payment",
    )(service.read)  # fmt: skip
    kit.post(
        "/payments/<payment_id>/approvals", body=models.Decision, returns={200: models.Payment}, scope="payment:approve",
        audit="payment.decide", resource_type="payment", idempotent=True, summary="Approve or reject a payment",
    )(service.decide)  # fmt: skip
    for step, view, summary in (
        ("capture", service.capture, "Capture an authorised payment"),
        ("void", service.void, "Give up an authorised payment"),
    ):
        kit.post(
            f"/payments/<payment_id>/{step}", returns={200: models.Payment}, scope="payment:write",
            audit=f"payment.{step}", resource_type="payment", idempotent=True, summary=summary,
        )(view)  # fmt: skip
    kit.get(
        "/alerts", query=models.AlertQuery, returns={200: models.Alerts}, scope="payment:read", audit="alerts.read",
        resource_type="alert", summary="Alerts, latest first",
    )(service.alerts)  # fmt: skip
    return kit.finish(checks={"ledger": service.ledger_balances})
