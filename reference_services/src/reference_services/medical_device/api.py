"""The routes of medical-device."""

from __future__ import annotations

from flask import Flask

from reference_services._kit import Kit, ServiceInfo, application
from reference_services.medical_device import models, store
from reference_services.medical_device.controls import controls
from reference_services.medical_device.service import Service

INFO = ServiceInfo(
    name="medical-device",
    title="Medical devices",
    version="0.1.0",
    prefix="medical_device",
    port=8084,
    frameworks=("fda-21cfr11", "hipaa"),
    description="Registers devices by UDI, takes their observations, raises alarms, keeps signed records.",
    telemetry_keys=("priority", "kind"),  # of an alarm: words of IEEE 11073-10207
)


@application(INFO, store.METADATA, Service, controls)
def create_app(kit: Kit, service: Service) -> Flask:
    """Add the routes."""
    kit.post(
        "/udi/parse", body=models.UdiInput, returns={200: models.UdiView}, scope="device:read", summary="Parse a UDI"
    )(service.parse)  # fmt: skip
    kit.post(
        "/devices", body=models.DeviceInput, returns={201: models.Device}, scope="device:write", audit="device.register",
        resource_type="device", idempotent=True, summary="Register a device",
    )(service.register)  # fmt: skip
    kit.get(
        "/devices/<uuid:device_id>", returns={200: models.Device}, scope="device:read", audit="device.read",
        resource_type="device", summary="Show a device",
    )(service.read)  # fmt: skip
    kit.post(
        "/devices/<uuid:device_id>/observations", body=models.Batch, returns={200: models.BatchResult}, scope="device:write",
        audit="observation.ingest", resource_type="device", summary="Take a batch of observations; replay-safe",
    )(service.observe)  # fmt: skip
    kit.get(
        "/alarms", query=models.AlarmQuery, returns={200: models.Alarms}, scope="device:read", audit="alarms.read",
        resource_type="alarm", summary="Alarms, latest first",
    )(service.alarms)  # fmt: skip
    kit.post(
        "/devices/<uuid:device_id>/calibrations", body=models.CalibrationInput, returns={201: models.Calibration},
        scope="device:write", audit="calibration.record", resource_type="device", idempotent=True,
        summary="Record a calibration",
    )(service.calibrate)  # fmt: skip
    kit.post(
        "/records/<kind>/<uuid:record_id>/signatures", body=models.SignatureInput, returns={201: models.SignatureView},
        scope="device:sign", audit="record.sign", resource_type="record", idempotent=True, summary="Sign a record",
    )(service.sign)  # fmt: skip
    kit.get(
        "/records/<kind>/<uuid:record_id>/signatures", returns={200: models.Signatures}, scope="device:read",
        audit="record.signatures", resource_type="record", summary="Signatures on a record",
    )(service.signatures)  # fmt: skip
    return kit.finish()
