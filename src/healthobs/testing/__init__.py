"""A test kit: everything that an `Observability` records, in memory, with fixed ids and a stepping clock.

`Capture` uses the real parts (SDK, registry, redaction, audit trail in a temporary folder), none of them global,
so that tests can run side by side. When it is left it validates what was recorded: every span that was started
ended, and ended once; contexts were restored; in-flight gauges are back at 0; no label has a value outside its
declared set. `assert_no_phi` and `assert_indistinguishable` show that no patient's data got out; `check_app` that every
route leaves all four signals; `assert_pure_liveness` that a liveness probe asks nothing outside its process.
"""

from healthobs.testing.capture import Capture, CountingIds, SteppingClock
from healthobs.testing.leaks import assert_indistinguishable, assert_no_phi
from healthobs.testing.purity import assert_pure_liveness
from healthobs.testing.routes import check_app

__all__ = [
    "Capture",
    "CountingIds",
    "SteppingClock",
    "assert_indistinguishable",
    "assert_no_phi",
    "assert_pure_liveness",
    "check_app",
]
