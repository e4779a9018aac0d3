"""The route template of a request, from the ASGI scope and the application's own table of routes.

Starlette and FastAPI leave the matched route in `scope["route"]`, or only what answers in `scope["endpoint"]`. Either
names the last part alone: what it is mounted or included under is in the table. Another framework may state the template itself, in `scope["healthobs.route"]`.

Limits: a part of the table that another application keeps to itself is recorded under its mount.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

_PARAMETER = re.compile(r"\{[^{}:]*(?::([^{}]*))?\}")
_MAX_DEPTH = 16


class Routes:
    """Knows the full templates of an application's routes.

    Args:
        app: The application; middleware around it is looked through.
    """

    def __init__(self, app: Any) -> None:
        self._app = app
        self._known: dict[int, list[tuple[str, re.Pattern[str]]]] = {}

    def template(self, scope: Mapping[str, Any]) -> str | None:
        """Return the template of the route that `scope` was sent to; None when none matched."""
        stated = scope.get("healthobs.route")
        if stated is not None:
            return str(stated)
        route, endpoint = scope.get("route"), scope.get("endpoint")
        if not hasattr(route, "endpoint") and endpoint is not None:
            route = endpoint  # FastAPI states no other for a plain route, a mount or its own pages
        if route is None:
            return None
        templates = self._known.get(id(route))
        if templates is None:  # an application may add routes while it runs
            self._read()
            templates = self._known.setdefault(id(route), [])
        if len(templates) == 1:
            return templates[0][0]
        path = own_path(scope, scope.get("app_root_path", scope.get("root_path", "")))
        return next((template for template, pattern in templates if pattern.fullmatch(path)), None)

    def templates(self) -> list[str]:
        """Return the template of every route in the table, mounts among them."""
        return [template for _, template in _walk(_inner(self._app), "", _MAX_DEPTH)]

    def views(self) -> list[tuple[str, Any]]:
        """Return the template of every route in the table and the function that answers there."""
        return [
            (template, getattr(route, "endpoint", None))
            for route, template in _walk(_inner(self._app), "", _MAX_DEPTH)
        ]

    def methods(self) -> Iterator[tuple[str, str]]:
        """Yield each method and template of the table, but for mounts."""
        for route, template in _walk(_inner(self._app), "", _MAX_DEPTH):
            yield from ((method, template) for method in sorted(getattr(route, "methods", None) or ()))

    def _read(self) -> None:
        known: defaultdict[int, list[tuple[str, re.Pattern[str]]]] = defaultdict(list)
        for route, template in _walk(_inner(self._app), "", _MAX_DEPTH):
            found = (template, _pattern(template))
            known[id(route)].append(found)
            answers = getattr(route, "endpoint", None) or getattr(route, "app", None)
            if answers is not None and found not in known[id(answers)]:
                known[id(answers)].append(found)
        self._known = dict(known)


def own_path(scope: Mapping[str, Any], root: str) -> str:
    """Return the path below `root`, the prefix under which the server serves the application."""
    path: str = scope["path"]
    return path[len(root) :] if root and path.startswith(root + "/") else path


def _inner(app: Any) -> Any:
    """Look through middleware: each keeps what it wraps in `app`."""
    for _ in range(_MAX_DEPTH):
        if getattr(app, "routes", None) is not None:
            break
        app = getattr(app, "app", None)
    return app


def _walk(app: Any, prefix: str, depth: int) -> Iterator[tuple[Any, str]]:
    for route in (getattr(app, "routes", None) or ()) if depth else ():
        branches = getattr(route, "effective_route_contexts", None)
        if branches is not None:  # FastAPI keeps included routers as branches of the table
            for branch in branches():
                shown = branch.starlette_route or branch
                yield from _leaf(branch.original_route, prefix + shown.path, depth)
                if shown is not branch:
                    yield shown, prefix + shown.path
        else:
            yield from _leaf(route, prefix + getattr(route, "path", ""), depth)


def _leaf(route: Any, template: str, depth: int) -> Iterator[tuple[Any, str]]:
    yield route, template
    if not hasattr(route, "endpoint"):  # a mount
        yield from _walk(_inner(getattr(route, "app", None)), template, depth - 1)


def _pattern(template: str) -> re.Pattern[str]:
    text, end = "", 0
    for match in _PARAMETER.finditer(template):
        text += re.escape(template[end : match.start()]) + (".*" if match[1] == "path" else "[^/]+")
        end = match.end()
    return re.compile(text + re.escape(template[end:]))
