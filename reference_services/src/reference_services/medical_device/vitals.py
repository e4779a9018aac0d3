"""Which vital signs are taken, in which units, and within which limits. Pure data.

Codes are LOINC as US Core's vital signs use them, units UCUM; the table is closed, and a wrong unit is refused,
never guessed. Priorities of alarms are those of IEEE 11073-10207 (BICEPS). The limits are examples for adults,
not clinical advice.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one code in one unit: beyond `hard` is impossible, beyond `soft` is an alarm.

    Args:
        hard: Lowest and highest value that is taken.
        soft: Lowest and highest value without an alarm.
        low: Priority of the alarm below `soft`.
        high: Priority of the alarm above `soft`.
    """

    hard: tuple[str, str]
    soft: tuple[str, str]
    low: str = "Me"
    high: str = "Me"


_SATURATION = {"%": Limits(("0", "100"), ("90", "100"), "Hi")}
#: LOINC code -> UCUM unit -> limits.
CODES: Mapping[str, Mapping[str, Limits]] = MappingProxyType(
    {
        "8867-4": {"/min": Limits(("0", "350"), ("40", "130"), "Hi")},
        "9279-1": {"/min": Limits(("0", "120"), ("8", "30"), "Hi")},
        "59408-5": _SATURATION,
        "2708-6": _SATURATION,
        "8310-5": {
            "Cel": Limits(("20", "45"), ("35", "39.5")),
            "[degF]": Limits(("68", "113"), ("95", "103.1")),
        },
        "8480-6": {"mm[Hg]": Limits(("0", "300"), ("80", "180"), "Hi")},
        "8462-4": {"mm[Hg]": Limits(("0", "250"), ("40", "120"))},
        "8302-2": {"cm": Limits(("20", "275"), ("20", "275"))},
        "29463-7": {"kg": Limits(("0.2", "650"), ("0.2", "650"))},
        "39156-5": {"kg/m2": Limits(("5", "150"), ("5", "150"))},
    }
)
PRIORITIES = ("Lo", "Me", "Hi")
