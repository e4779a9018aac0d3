"""Has the services' audit logs witness each other (C2SP tlog-witness), where `WITNESSES_FILE` names the keys of all.

The file is JSON: by service the vkey of its log and of its witness, as `public_keys` returns them. Whoever starts the
services writes it before, so no key is taken on trust from the network.

Limits: one operator's witnesses: `self-witnessed` at best (`healthobs.audit.cosigning`). Replicas that sign with one witness's key must share its
state file, so they run on one machine.
"""

from __future__ import annotations

import json
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import TYPE_CHECKING

from healthobs.audit import keys, open_trail
from healthobs.audit.checkpoint import NoteError, Verifier
from healthobs.audit.cosigning import Witnesses, WitnessPeer
from healthobs.audit.witness import Cosigner, Witness, WitnessState
from healthobs.endpoints import WITNESS
from healthobs.exceptions import ConfigurationError
from reference_services._kit.settings import ServiceInfo, ServiceSettings

if TYPE_CHECKING:
    from reference_services._kit.app import Kit


def public_keys(info: ServiceInfo, settings: ServiceSettings) -> dict[str, str]:
    """Return the vkeys of a service's log and witness, which are made when missing."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    observed = settings.observability
    trail = open_trail(str(observed.audit_database_url), service=info.name, key_file=observed.audit_key_file)
    trail.close()
    return {"log": trail.vkey, "witness": _cosigner(info, settings.file(*_named(info))).vkey}


def witness(kit: Kit) -> Witness | None:
    """Have the log of `kit` witnessed by the services that `WITNESSES_FILE` names; return what witnesses theirs.

    Raises:
        ConfigurationError: The file is not as above, names a service that is none of the peers, or another log of this one.
    """
    path, trail = kit.settings.environ.get("WITNESSES_FILE"), kit.obs.audit
    if not path or trail is None:
        return None
    try:
        known: dict[str, dict[str, str]] = json.loads(Path(path).read_text(encoding="utf-8"))
        peers = {f"{kit.settings.peers[name]}{WITNESS}": name for name in known if name != kit.info.name}
        asked = [WitnessPeer(known[name]["witness"], url) for url, name in peers.items()]
        logs = {log.name: log for log in (Verifier(known[name]["log"]) for name in peers.values())}
        own = Verifier(known[kit.info.name]["log"]).name if kit.info.name in known else trail.origin
    except (OSError, ValueError, LookupError, TypeError, NoteError):
        raise ConfigurationError(
            "WITNESSES_FILE must name a JSON file with the vkeys of the log and the witness of each service;"
            " write it anew with reference_services._kit.witnessing.public_keys"
        ) from None

    if own != trail.origin:
        raise ConfigurationError(
            "WITNESSES_FILE names another log of this service than the one that is here; restore that log,"
            " or have it witnessed as a new one by writing the file anew"
        )

    def send(url: str, body: bytes) -> tuple[int, bytes]:
        prefix, _, last = url.rpartition("/")
        answer = kit.client(peers[prefix]).request("POST", f"{WITNESS}/{last}", content=body)
        return answer.status, answer.body

    Witnesses(trail, asked, send, clock=kit.clock)
    cosigner = kit.key(*_named(kit.info), partial(_cosigner, kit.info), _known_by)
    place = kit.settings.file("WITNESS_STATE_FILE", f"{kit.info.prefix}.witness.db")
    state = WitnessState(place, kit.settings.file(*_named(kit.info)))
    return Witness(cosigner, logs, state, kit.clock)


def _named(info: ServiceInfo) -> tuple[str, str]:
    return "WITNESS_KEY_FILE", f"{info.prefix}.witness.key"


def _cosigner(info: ServiceInfo, path: Path) -> Cosigner:
    return Cosigner(f"healthobs.example/{info.name}/witness", keys.load_or_create(path))


def _known_by(cosigner: Cosigner) -> str:
    return sha256(cosigner.vkey.encode()).hexdigest()
