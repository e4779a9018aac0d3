"""The file of the clients that may ask for tokens; every entry is checked before any is used."""

from __future__ import annotations

import json
import re

from healthobs.exceptions import ConfigurationError
from reference_services._kit import ServiceSettings
from reference_services.auth import domain

_SHA256 = re.compile(r"[0-9a-f]{64}", re.ASCII)


class ClientsFileError(ValueError):
    """The clients file does not hold what it must; the message names the entry by number only."""


def configured(settings: ServiceSettings) -> list[domain.OAuthClient] | None:
    """Return the clients of the file that is configured; None when none is, which leaves the known ones as they are.

    Raises:
        ConfigurationError: The file cannot be read, or does not hold what it must.
    """
    if not settings.environ.get("AUTH_CLIENTS_FILE"):
        return None
    try:
        return parse(settings.file("AUTH_CLIENTS_FILE", "").read_text(encoding="utf-8"))
    except OSError:
        raise ConfigurationError("AUTH_CLIENTS_FILE names a file that cannot be read") from None
    except ClientsFileError as error:
        raise ConfigurationError(f"AUTH_CLIENTS_FILE: {error}") from None


def parse(text: str) -> list[domain.OAuthClient]:
    """Read the text of a clients file.

    Raises:
        ClientsFileError: With the number of the first bad entry.
    """
    try:
        entries = json.loads(text)
    except ValueError:
        raise ClientsFileError("the clients file is not JSON") from None
    if not isinstance(entries, list):
        raise ClientsFileError("the clients file must hold a JSON array")
    clients = [_client(number, entry) for number, entry in enumerate(entries)]
    if len({client.client_id for client in clients}) != len(clients):
        raise ClientsFileError("two clients have the same client_id")
    return clients


def _client(number: int, entry: object) -> domain.OAuthClient:
    if not isinstance(entry, dict) or entry.keys() != {"client_id", "secret_sha256", "scopes", "roles"}:
        raise ClientsFileError(f"client {number} must have client_id, secret_sha256, scopes and roles")
    lists = (entry["scopes"], entry["roles"])
    if not all(isinstance(one, list) and all(isinstance(item, str) for item in one) for one in lists):
        raise ClientsFileError(f"scopes and roles of client {number} must be arrays of strings")
    name, digest, scopes = entry["client_id"], entry["secret_sha256"], tuple(entry["scopes"])
    if not isinstance(name, str) or not domain.CLIENT_ID.fullmatch(name) or ":" in name:
        raise ClientsFileError(f"client_id of client {number} must be printable ASCII without a colon")
    if not isinstance(digest, str) or not _SHA256.fullmatch(digest) or digest == domain.NO_SECRET:
        raise ClientsFileError(f"secret_sha256 of client {number} must be 64 lower-case hex digits")
    if not scopes or not domain.SCOPE.fullmatch(" ".join(scopes)):
        raise ClientsFileError(f"scopes of client {number} are malformed")
    return domain.OAuthClient(name, digest, scopes, tuple(entry["roles"]))
