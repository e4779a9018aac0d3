"""Alarms: what raises one, and when two sightings are one alarm. Pure.

Kind and priority use the words of IEEE 11073-10207 (BICEPS).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from reference_services.medical_device.domain import Observation
from reference_services.medical_device.vitals import CODES

#: The technical alarm of a device that measures without a calibration in force: cause, kind, priority.
_UNCALIBRATED = ("calibration", "Tec", "Lo")


@dataclass(frozen=True, slots=True)
class Alarm:
    """A condition of one device; the same cause again is the same alarm, seen once more."""

    cause: str
    kind: str
    priority: str
    first_ms: int
    last_ms: int
    count: int = 1

    def merged(self, other: Alarm) -> Alarm:
        """Return both sightings of one alarm as one."""
        first, last = min(self.first_ms, other.first_ms), max(self.last_ms, other.last_ms)
        return Alarm(self.cause, self.kind, self.priority, first, last, self.count + other.count)


def alarm_of(observation: Observation) -> Alarm | None:
    """Return the physiological alarm that an observation raises, or None; a late one is no alarm any more."""
    if "late" in observation.flags:
        return None
    limits, at = CODES[observation.code][observation.unit], observation.effective_ms
    if "soft_low" in observation.flags:
        return Alarm(f"{observation.code} low", "Phy", limits.low, at, at)
    if "soft_high" in observation.flags:
        return Alarm(f"{observation.code} high", "Phy", limits.high, at, at)
    return None


def alarms_of(observations: Iterable[Observation]) -> list[Alarm]:
    """Return the alarms that new observations raise, one for each cause."""
    merged: dict[str, Alarm] = {}
    for observation in observations:
        at = observation.effective_ms
        uncalibrated = Alarm(*_UNCALIBRATED, at, at) if "uncalibrated" in observation.flags else None
        raised = (alarm_of(observation), uncalibrated)
        for alarm in filter(None, raised):
            known = merged.get(alarm.cause)
            merged[alarm.cause] = known.merged(alarm) if known else alarm
    return list(merged.values())
