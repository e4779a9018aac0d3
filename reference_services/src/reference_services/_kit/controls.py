"""What every reference service observes about itself, beside the library's controls.

* H-312.a1.keys, custody of key files (45 CFR 164.312(a)(1), 21 CFR 11.10(d), PCI DSS 4.0 3.6.1): who can read a key can read
  records, sign, or forge tokens; and what is lost or exchanged shows only at the next start.

Limits: of a file its mode, owner and content are seen; not who has read it, and no copy of it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from healthobs.compliance import Control, Outcome, control
from healthobs.files import read_raw

if TYPE_CHECKING:
    from reference_services._kit.app import Kit

_CUSTODY = "every key file is the service's alone, and holds what was loaded"


def controls(kit: Callable[[], Kit]) -> tuple[Control, ...]:
    """Return the controls of the service that `kit` returns once it exists."""
    return (control("H-312.a1", part="keys", criterion=_CUSTODY)(lambda _context: custody(kit())),)


def custody(kit: Kit) -> Outcome:
    """Look at each key file."""
    if not kit.key_files:
        return Outcome("unknown", "no key file is loaded")
    faults = kit.key_faults()
    if faults:
        return Outcome("fail", "; ".join(faults), len(faults))
    return Outcome("pass", f"{len(kit.key_files)} key files are private and unchanged", len(kit.key_files))


def contents(paths: Iterable[Path], most_bytes: int) -> Iterator[bytes]:
    """Yield the first `most_bytes` of each file; one that goes meanwhile, as a journal does, is passed over.

    Raises:
        OSError: One is there and cannot be read.
    """
    for path in paths:
        if path.is_file():
            try:
                content = read_raw(path, most_bytes)
            except FileNotFoundError:
                continue
            yield content
