"""Breaks the reference services on purpose, from outside, to see which control notices: `healthobs compliance sabotage`.

Each sabotage acts on settings, environment, database, a file, a process around the service, or the clock; never on a
probe or on what it calls. It lives here and not in the library, which must not ship switches that break things.

Limits: services run in one process on temporary SQLite files; what only a server, an edge or PostgreSQL can break is
not broken here.
"""

from __future__ import annotations

from reference_services.sabotage.matrix import Row, main, run, undeclared
from reference_services.sabotage.plans import SABOTAGES, Sabotage
from reference_services.sabotage.world import World

__all__ = ["SABOTAGES", "Row", "Sabotage", "World", "main", "run", "undeclared"]
