"""One of the five services as a test asks it: in the name of a role, and with its signals and its database at hand."""

from __future__ import annotations

import sqlite3
import uuid
from pathlib import Path
from typing import Any, ClassVar


class OneService:
    """A service of a `World`.

    Args:
        world: The five.
        folder: Where it keeps their data.
    """

    name: ClassVar[str]
    prefix: ClassVar[str]
    #: What every token allows.
    scopes: ClassVar[tuple[str, ...]] = ()
    #: Whose token is sent unless told otherwise.
    role: ClassVar[str] = ""

    def __init__(self, world: Any, folder: Path) -> None:
        self.world = world
        self.folder = folder / self.name
        self.client = world.client(self.name)
        self._headers: dict[str, dict[str, str]] = {}

    def headers(self, role: str) -> dict[str, str]:
        """Return the header of the client of a role; its token is asked for once."""
        return self._headers.setdefault(role, self.world.bearer(*self.scopes, role=role))

    def post(self, path: str, body: Any, *, role: str | None = None, key: str | None = None) -> Any:
        """Post a body as the client of a role."""
        headers = {**self.headers(role or self.role), "Idempotency-Key": key or str(uuid.uuid4())}
        return self.client.post(path, json=body, headers=headers)

    def get(self, path: str, role: str | None = None) -> Any:
        """Get a path as the client of a role."""
        return self.client.get(path, headers=self.headers(role or self.role))

    def sample(self, name: str, **labels: str) -> float:
        """Return the value of one of its own metrics, or of the library's."""
        full = name if name.startswith("healthobs_") else f"{self.prefix}_{name}"
        return self.world.obs(self.name).metrics.registry.get_sample_value(full, labels) or 0.0

    def entries(self, action: str) -> list[dict[str, Any]]:
        """Return the audit entries of an action."""
        return list(self.world.obs(self.name).audit.read(action=action).entries)

    def database(self, statement: str, *parameters: object) -> list[Any]:
        """Run a statement on the database from outside."""
        connection = sqlite3.connect(self.folder / f"{self.prefix}.db")
        try:
            found = connection.execute(statement, parameters).fetchall()
            connection.commit()
        finally:
            connection.close()
        return found


def refusal(answer: Any) -> tuple[int, str, list[tuple[str, str]]]:
    """Return status, code and errors of a problem."""
    body = answer.get_json()
    assert (answer.content_type, body["status"]) == ("application/problem+json", answer.status_code)
    return (
        answer.status_code,
        body["code"],
        [(error["pointer"], error["code"]) for error in body.get("errors", [])],
    )
