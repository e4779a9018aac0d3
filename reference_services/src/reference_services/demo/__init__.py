"""`healthobs demo`: a patient's journey through the five services, and the proof of what it left behind."""
