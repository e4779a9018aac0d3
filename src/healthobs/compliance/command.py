"""`healthobs compliance`: the status of a service, its OSCAL export, and documents that people sign.

``status`` and ``export`` read a service (its base URL, or the URL of the status) or a saved status document. Exit
status: 0 good, 1 the gate is shut (``status --gate``), 2 what was asked could not be done.

The gate judges what a saved document says by today: evidence that is too old is none, and a waiver ends.

Limits: nothing is sent but a GET, and no token to where that is redirected; a token is read from a file or ``$HEALTHOBS_TOKEN``, never from the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from datetime import UTC, date, datetime
from hashlib import sha256
from http.client import HTTPException
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, cast, get_args

from healthobs.clock import rfc3339
from healthobs.compliance.control import STATES
from healthobs.compliance.documents import Document, Kind, sign
from healthobs.compliance.oscal import assessment_results
from healthobs.compliance.report import gate_failures, gate_is_open
from healthobs.exceptions import ConfigurationError

GOOD, SHUT, CANNOT_SAY = 0, 1, 2
#: Entry points that break a service on purpose; a library that runs in production has none of its own.
SABOTAGE_GROUP = "healthobs.sabotage"
_TIMEOUT_SECONDS = 10.0
_MAX_BYTES = 8 * 2**20
#: What a bearer token may be (RFC 6750 §2.1).
_TOKEN = re.compile(r"[A-Za-z0-9._~+/-]+=*")
#: Members that the rows of every status have.
_ROW = frozenset({"id", "cite", "title", "state", "required", "observed_at", "valid_for_s", "waived_until"})


def main(argv: Sequence[str]) -> int:
    """Run one subcommand.

    Args:
        argv: Arguments after ``healthobs compliance``.

    Returns:
        The exit status.
    """
    arguments = list(argv)
    if arguments[:1] == ["sabotage"]:
        return _sabotage(arguments[1:])
    try:
        chosen = _parser().parse_args(arguments)
    except SystemExit as exc:
        return GOOD if exc.code in (0, None) else CANNOT_SAY
    try:
        return cast("int", chosen.run(chosen))
    except BrokenPipeError:  # nobody reads the output any more
        raise
    except (ConfigurationError, OSError, ValueError, HTTPException, RecursionError) as exc:
        print(f"healthobs compliance: {_explain(exc)}", file=sys.stderr)  # noqa: T201
        return CANNOT_SAY


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="healthobs compliance", description=(__doc__ or "").split("\n\n")[0]
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", help="URL of a service, or a file with its status")
    source.add_argument("--token-file", type=Path, help="bearer token with the scope compliance:read")
    status = commands.add_parser("status", parents=[source], help="print the state of every control")
    status.add_argument("--gate", action="store_true", help="exit 1 when a required control is not shown")
    status.add_argument("--json", action="store_true", help="print the document itself, to save it")
    status.set_defaults(run=_status)
    export = commands.add_parser("export", parents=[source], help="print the status in another form")
    export.add_argument("--oscal", action="store_true", required=True, help="OSCAL assessment-results 1.2")
    export.set_defaults(run=_export)
    document = commands.add_parser("sign", help="print a signed attestation or waiver")
    document.add_argument("kind", choices=get_args(Kind))
    document.add_argument("control", help="id of the control (H-308.5)")
    document.add_argument("--key", type=Path, required=True, help="Ed25519 key (PEM), made when missing")
    document.add_argument("--person", required=True, help="name of the key: role or work id")
    document.add_argument("--issued", help="first day (default today, UTC)")
    document.add_argument("--expires", required=True, help="last day (YYYY-MM-DD)")
    document.add_argument("--statement", required=True, help="what is declared, or why it is accepted")
    document.add_argument("--paper", type=Path, help="the document behind it, of which the digest is kept")
    document.set_defaults(run=_sign)
    commands.add_parser("sabotage", help="break services on purpose and print which control sees it")
    return parser


def _explain(exc: Exception) -> str:
    if isinstance(exc, urllib.error.HTTPError):
        exc.close()
        return f"the service answered {exc.code}"
    if isinstance(exc, OSError):
        return f"the source cannot be read ({exc.strerror or type(exc).__name__})"
    if isinstance(exc, ConfigurationError):
        return str(exc)
    # What is left quotes what it was given.
    return f"the source cannot be read ({type(exc).__name__})"


def _load(arguments: argparse.Namespace) -> dict[str, Any]:
    source: str = arguments.source
    if not _is_address(source):
        try:
            content = Path(source).read_bytes()
        except FileNotFoundError:
            raise ConfigurationError(
                "the source cannot be read: there is no such file; the address of a service begins with http:// or https://"
            ) from None
    else:
        url = source if source.endswith("/compliance/status") else source.rstrip("/") + "/compliance/status"
        request = urllib.request.Request(url)  # noqa: S310 - its scheme is one of the two above
        token = os.environ.get("HEALTHOBS_TOKEN", "")
        if arguments.token_file is not None:
            token = cast("Path", arguments.token_file).read_text("utf-8")
        if token := token.strip():
            if not _TOKEN.fullmatch(token):
                raise ConfigurationError("the token is none: letters, digits and -._~+/= only")
            request.add_unredirected_header("Authorization", f"Bearer {token}")
        with urllib.request.urlopen(request, timeout=_TIMEOUT_SECONDS) as answer:  # noqa: S310 - as above
            content = answer.read(_MAX_BYTES)
    try:
        status: Any = json.loads(content)
    except (ValueError, RecursionError):
        raise ConfigurationError("the source is no JSON document") from None
    if not _is_status(status):
        raise ConfigurationError("the source is no compliance status")
    return cast("dict[str, Any]", status)


def _is_address(source: str) -> bool:
    return source.startswith(("http://", "https://"))


def _as_of(rows: Sequence[Mapping[str, Any]], now: datetime) -> list[Mapping[str, Any]]:
    """Return saved rows as they are to be judged at a later moment."""
    judged: list[Mapping[str, Any]] = []
    for row in rows:
        seen, until = row["observed_at"], row["waived_until"]
        if (
            seen is not None
            and abs((now - datetime.fromisoformat(seen)).total_seconds()) > row["valid_for_s"]
        ):
            row = {**row, "state": "unknown", "evidence": None}
        if until is not None and until < now.date().isoformat():
            row = {**row, "waived_until": None}
        judged.append(row)
    return judged


def _is_status(status: Any) -> bool:
    """Return whether it has all that is read of one."""
    try:
        return (
            isinstance(status["disclaimer"], str)
            and isinstance(status["controls"], list)
            and set(STATES) <= status["counts"].keys()
            and all(map(_is_row, status["controls"]))
        )
    except (LookupError, TypeError, ValueError, AttributeError):
        return False


def _is_row(row: Any) -> bool:
    return (
        row.keys() >= _ROW
        and isinstance(row["id"], str)
        and row["state"] in STATES
        and isinstance(row["required"], bool)
        and isinstance(row["valid_for_s"], int)
        and (row["waived_until"] is None or bool(date.fromisoformat(row["waived_until"])))
        and (row["observed_at"] is None or datetime.fromisoformat(row["observed_at"]).tzinfo is not None)
        and isinstance(row.get("evidence"), dict | None)
        and isinstance(row.get("lacks"), str | None)
    )


def _status(arguments: argparse.Namespace) -> int:
    status = _load(arguments)
    if arguments.json:
        _print(json.dumps(status, ensure_ascii=False, indent=2))
    else:
        for row in cast("list[dict[str, Any]]", status["controls"]):
            _print(_line(row))
        _print("* the gate requires it")
        counts: Mapping[str, int] = status["counts"]
        _print(", ".join(f"{counts[state]} {state}" for state in STATES) + f" ({status['disclaimer']})")
    if not arguments.gate:
        return GOOD
    rows: list[dict[str, Any]] = status["controls"]
    told = _gate(rows if _is_address(arguments.source) else _as_of(rows, datetime.now(UTC)))
    for line in told:
        print(line, file=sys.stderr if arguments.json else sys.stdout)
    return SHUT if told else GOOD


def _line(row: Mapping[str, Any]) -> str:
    waived = f", waived until {row['waived_until']}" if row["waived_until"] else ""
    needed = "*" if row["required"] else " "
    return f"{row['state']:<15}{needed} {row['id']:<13} {row['title']} ({row['cite']}){waived}"


def _gate(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return lines that tell why the gate is shut; none when it is open."""
    if gate_is_open(rows):
        return []
    why = gate_failures(rows)
    if not why:
        return ["the gate is shut: nothing is required, so nothing was shown"]
    required = sum(bool(row["required"]) for row in rows)
    lines = (f"  {name:<13} {reason}" for name, reason in why.items())
    return [f"the gate is shut by {len(why)} of {required} required controls:", *lines]


def _export(arguments: argparse.Namespace) -> int:
    document = assessment_results(_load(arguments), published=rfc3339(datetime.now(UTC)))
    _print(json.dumps(document, ensure_ascii=False, indent=2))
    return GOOD


def _sign(arguments: argparse.Namespace) -> int:
    from healthobs.audit import keys
    from healthobs.audit.checkpoint import Signer

    if arguments.kind == "attestation" and arguments.paper is None:
        raise ConfigurationError(
            "an attestation needs --paper: the document behind it, of which the digest is kept"
        )
    document = Document(
        arguments.kind,
        arguments.control,
        arguments.issued or datetime.now(UTC).date().isoformat(),
        arguments.expires,
        arguments.statement,
        _digest(arguments.paper),
    )
    signer = Signer(arguments.person, keys.load_or_create(arguments.key))
    _print(sign(document, signer).rstrip("\n"))
    if not _is_known(document.control):
        print(  # noqa: T201
            "the catalogue has no such control: it counts where a service has one of its own by that id",
            file=sys.stderr,
        )
    print(f"compliance_keys must list {signer.vkey}", file=sys.stderr)  # noqa: T201
    return GOOD


def _digest(paper: Path | None) -> str:
    try:
        return "" if paper is None else sha256(paper.read_bytes()).hexdigest()
    except OSError as exc:
        raise ConfigurationError(f"the paper cannot be read ({exc.strerror or type(exc).__name__})") from None


def _is_known(name: str) -> bool:
    """Return whether the catalogue has a control, or the one that it is a part of, as a service's own may be."""
    from healthobs.compliance.catalogue import library_controls, with_catalogue

    known = {control.id for control in with_catalogue(library_controls())}
    return name in known or name.rpartition(".")[0] in known


def _sabotage(arguments: list[str]) -> int:
    """Hand over to whoever brings services that may be broken."""
    for point in entry_points(group=SABOTAGE_GROUP):
        return cast("int", point.load()(arguments))
    what = f"nothing here may be broken; install reference-services, or bring an entry point of the group {SABOTAGE_GROUP}"
    if {"-h", "--help"}.intersection(arguments):
        _print(
            f"healthobs compliance sabotage: breaks services on purpose, and prints which control sees it: {what}"
        )
        return GOOD
    print(f"healthobs compliance: {what}", file=sys.stderr)  # noqa: T201
    return CANNOT_SAY


def _print(text: str) -> None:
    print(text)  # noqa: T201
