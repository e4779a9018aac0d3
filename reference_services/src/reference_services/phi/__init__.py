"""phi-service: patients' records, encrypted at rest, shown by role and purpose of use, port 8083."""
