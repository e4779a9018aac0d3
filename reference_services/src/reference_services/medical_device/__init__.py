"""medical-device: devices by UDI, their observations, alarms, calibrations and signed records, port 8084."""
