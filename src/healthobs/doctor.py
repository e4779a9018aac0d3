"""`healthobs doctor MODULE:APP`: what is wrong with how an application is set up; it changes nothing.

It imports the application as a server would and looks at it, at the tracer providers, at gunicorn's settings
(`GUNICORN_CMD_ARGS`, `WEB_CONCURRENCY`, the literals of `gunicorn.conf.py`) at the handlers of
`logging` and structlog's processors, and at the environment.

Limits: what the application does when it is imported, it does. Settings that are computed are not understood.
"""

from __future__ import annotations

import argparse
import ast
import contextlib
import importlib
import inspect
import logging
import os
import shlex
import sqlite3
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import structlog
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider

from healthobs import asgi, wsgi
from healthobs._runtime import all_operations
from healthobs.config import UNKNOWN, unknown_variables
from healthobs.decorators.above import passed_over
from healthobs.exceptions import ConfigurationError, HealthobsError
from healthobs.logs.sinks import raw_sinks
from healthobs.redaction.failures import describe_exception
from healthobs.tracing import LazyExporter
from healthobs.tracing.adoption import exporters, layers, opaque, redacts, sdk_provider
from healthobs.tracing.foreign import INSTRUMENTED, PACKAGE
from healthobs.tracing.textmap import RAW, sends_raw_baggage

OK, FINDINGS, CANNOT_LOAD = 0, 1, 2
_MAX_LAYERS = 64
_SHOWN_FRAMES = 20
_LIMITS = {f"OTEL_{part}ATTRIBUTE_VALUE_LENGTH_LIMIT" for part in ("", "SPAN_", "LOGRECORD_")}
_FORM = "name what the server serves as MODULE:APP, or MODULE:create_app()"
_INSIDE = ("wsgi_app", "app", "_app", "wsgi", "application", "build_middleware_stack", "middleware")


class Finding(NamedTuple):
    """One thing that is wrong: its name, what was seen, what to do; a `note` only informs."""

    name: str
    seen: str
    remedy: str
    note: bool = False


def examine(
    app: Any,
    *,
    environ: Mapping[str, str] | None = None,
    folder: Path | None = None,
    sqlite_version: tuple[int, ...] | None = None,
) -> list[Finding]:
    """Return what is wrong with `app` and the process around it.

    Args:
        app: A WSGI or ASGI application.
        environ: Environment variables; default the process's.
        folder: Where `gunicorn.conf.py` would be; default the current one.
        sqlite_version: Version of SQLite; default the linked one.

    Example:
        >>> from healthobs import Observability, Settings, wsgi
        >>> examine(wsgi.Middleware(lambda environ, start_response: [], Observability(Settings())), environ={})
        []
    """
    environ = os.environ if environ is None else environ
    if sqlite_version is None:
        sqlite_version = sqlite3.sqlite_version_info
    server = _server(environ, folder or Path())
    layers = list(_layers(app))
    observed = [layer for layer in layers if isinstance(layer, (wsgi.Middleware, asgi.Middleware))]
    providers = _providers(observed)
    return [
        *_absence(app, observed),
        *_doubles(layers, observed),
        *_shadowed(observed),
        *_passed_over(observed),
        *_escapes(providers, observed),
        *_preload(server, providers),
        *_multiprocess(server, environ),
        *_sqlite(sqlite_version, observed),
        *_unaudited(observed),
        *_spools(observed),
        *_subjects(observed),
        *_loggers(observed),
        *_baggage(observed),
        *_cut(environ, observed),
        *_dropped_lines(observed),
        *_variables(environ),
    ]


def _layers(app: Any) -> Iterator[Any]:
    """Yield `app` and what it wraps, by the attributes and closures that middleware uses."""
    waiting, seen = [app], set[int]()
    while waiting and len(seen) < _MAX_LAYERS:
        layer = waiting.pop(0)
        if id(layer) in seen or layer is None:
            continue
        seen.add(id(layer))
        yield layer
        waiting += [getattr(layer, name) for name in _INSIDE if hasattr(layer, name)]
        for cell in getattr(layer, "__closure__", None) or ():
            with contextlib.suppress(ValueError):  # a cell that is not filled yet
                if callable(cell.cell_contents):
                    waiting.append(cell.cell_contents)


def _is_foreign(layer: Any) -> bool:
    kind = f"{layer.__class__.__module__}.{layer.__class__.__name__}"
    return kind.startswith(PACKAGE) and "Middleware" in kind


def _is_factory(app: Any) -> bool:
    """Return whether `app` needs no argument and has no place for those that a server gives."""
    try:
        parameters = inspect.signature(app).parameters.values()
    except (TypeError, ValueError):  # written in C
        return False
    return all(one.default is not one.empty or one.kind is one.VAR_KEYWORD for one in parameters)


def _absence(app: Any, observed: Sequence[Any]) -> Iterator[Finding]:
    if observed:
        return
    if _is_factory(app):
        name = getattr(app, "__name__", "create_app")
        yield Finding(
            "application_factory",
            f"{name} takes no arguments, so it makes an application and is none; only what is around it was examined",
            f"name the call: {name}()",
        )
    else:
        yield Finding(
            "not_observed",
            "healthobs is not on this application, so only what is around it was examined",
            "add it with init_app or Middleware, or name the object that the server serves",
            note=True,
        )


def _doubles(layers: Sequence[Any], observed: Sequence[Any]) -> Iterator[Finding]:
    if len(observed) > 1:
        yield Finding(
            "double_instrumentation",
            f"healthobs is on the application {len(observed)} times",
            "keep one: init_app, or Middleware",
        )
    foreign = sum(map(_is_foreign, layers)) + any(getattr(layer, INSTRUMENTED, False) for layer in layers)
    if foreign > 1:
        yield Finding(
            "double_instrumentation",
            f"OpenTelemetry makes {foreign} server spans of each request",
            "keep one of its instrumentations: the framework's, or the middleware",
        )
    if foreign and any(not layer.obs.tracing.is_adopted for layer in observed):
        yield Finding(
            "double_instrumentation",
            "OpenTelemetry's server spans and healthobs' own go to two tracer providers",
            "pass Observability(tracer_provider=opentelemetry.trace.get_tracer_provider())",
        )


def _shadowed(observed: Sequence[Any]) -> Iterator[Finding]:
    for layer in observed:
        routes = layer.endpoints.shadowed(layer.own_templates())
        if routes:
            yield Finding(
                "shadowed_routes",
                f"healthobs answers {', '.join(routes)}, and the application's own routes there are never asked",
                "set Settings.endpoint_prefix, or remove those routes",
            )


def _passed_over(observed: Sequence[Any]) -> Iterator[Finding]:
    for layer in observed:
        views = passed_over(layer.own_views())
        if views:
            yield Finding(
                "decorators_above_the_route",
                f"decorators that stand above a route decorator never run: {', '.join(views)}",
                "put them below the route decorator",
            )


def _providers(observed: Sequence[Any]) -> list[TracerProvider]:
    found = [layer.obs.tracing.provider for layer in observed]
    with contextlib.suppress(ConfigurationError):  # none is set: asking the API for it would set one
        found.append(sdk_provider(getattr(trace, "_TRACER_PROVIDER", None)))
    return list({id(provider): provider for provider in found}.values())


def _escapes(providers: Sequence[TracerProvider], observed: Sequence[Any]) -> Iterator[Finding]:
    remedy = "pass the tracer provider to Observability(tracer_provider=…), before or after adding processors"
    for provider in providers:
        asked = [layer.obs.redactor for layer in observed if layer.obs.tracing.provider is provider]
        for slot in exporters(provider):
            sends = list(layers(slot.exporter))[-1]
            if sends is slot.exporter or not all(redacts(slot.exporter, one) for one in asked):
                how = "unredacted" if sends is slot.exporter else "redacted less than the service asks"
                seen = f"spans leave {how} through {type(sends).__name__}"
                yield Finding("exporter_escapes_redaction", seen, remedy)
        for name in opaque(provider):
            seen = f"{name} gets ended spans and has no exporter that could be wrapped"
            yield Finding("exporter_escapes_redaction", seen, "give it a SpanExporter, or take it off")


def _preload(server: Mapping[str, Any], providers: Sequence[TracerProvider]) -> Iterator[Finding]:
    if not server.get("preload_app"):
        return
    made: set[str] = set()
    for provider in providers:
        for slot in exporters(provider):
            exporter = list(layers(slot.exporter))[-1]
            if not isinstance(exporter, LazyExporter) or exporter.is_made:
                made.add(type(exporter).__name__)
    if made:
        yield Finding(
            "preload_with_used_exporter",
            f"gunicorn preloads, and before the fork there is already {', '.join(sorted(made))}",
            "switch preload off, or use Settings.otlp_endpoint, whose exporter is made in each worker",
        )


def _multiprocess(server: Mapping[str, Any], environ: Mapping[str, str]) -> Iterator[Finding]:
    workers, folder = server.get("workers", 1), environ.get("PROMETHEUS_MULTIPROC_DIR")
    if workers > 1 and not folder:
        yield Finding(
            "missing_multiprocess_directory",
            f"{workers} workers, and each would count for itself",
            "set PROMETHEUS_MULTIPROC_DIR to an empty directory before the server starts, "
            "or start it with healthobs.gunicorn.serve",
        )
    elif folder and not (Path(folder).is_dir() and os.access(folder, os.W_OK)):
        yield Finding(
            "missing_multiprocess_directory",
            "PROMETHEUS_MULTIPROC_DIR names no directory that can be written to",
            "create it before the server starts",
        )


def _sqlite(version: tuple[int, ...], observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for a trail in WAL mode under a SQLite that may lose it; one that keeps to the rollback journal is safe."""
    trails = [layer.obs.audit for layer in observed if layer.obs.audit is not None]
    if not trails:
        return
    from healthobs.audit.sqlite import (
        is_wal,
        wal_is_safe,
    )  # where there is a trail, the extra `audit` is installed

    files = [trail.path for trail in trails if trail.path is not None and trail.path.is_file()]
    if not wal_is_safe(version) and any(map(is_wal, files)):
        yield Finding(
            "vulnerable_sqlite",
            f"the audit trail is in WAL mode, in which SQLite {'.'.join(map(str, version))} can lose an acknowledged "
            "commit",
            "use 3.51.3, 3.50.7 or 3.44.6, or stop what else holds the file open and start again: the trail then "
            "takes the rollback journal",
        )


def _unaudited(observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for functions that do nothing without an entry, where there is nothing to keep one."""
    parts = [operation.plan.audited for operation in all_operations()]
    denied = sorted({part.action for part in parts if part is not None and part.insists})
    if denied and any(layer.obs.audit is None for layer in observed):
        yield Finding(
            "audited_without_a_trail",
            f"there is no audit trail, so each call is denied (503) of {', '.join(denied)}",
            "set Settings.audit_database_url, or pass Observability(audit=...)",
        )


def _spools(observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for care that would be denied while the store is down, because there is nowhere to spool."""
    trails = [layer.obs.audit for layer in observed if layer.obs.audit is not None]
    parts = [operation.plan.audited for operation in all_operations()]
    spooling = sorted({part.action for part in parts if part is not None and part.policy == "spool"})
    if spooling and any(trail.spool is None for trail in trails):
        yield Finding(
            "spool_without_file",
            f"the policy spool is that of {', '.join(spooling)}, and the audit trail has no spool",
            "set Settings.audit_spool_file, or care under break-glass is denied while the audit store is down",
        )


def _subjects(observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for a trail that keeps whom its entries are about as it is told, in a service that declares PHI."""
    declared = [layer.obs for layer in observed if "hipaa" in layer.obs.settings.frameworks]
    if any(obs.audit is not None and obs.audit.subjects is None for obs in declared):
        yield Finding(
            "subjects_as_given",
            "hipaa is declared, and the audit trail keeps subjects as they are given, for good",
            "set Settings.audit_subjects_file (or audit_subjects_url), or open the trail with a SubjectMap, so that its entries "
            "have random tokens instead",
        )


def _loggers(observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for what writes log lines past the redaction of a service that declares PHI."""
    declared = [layer.obs for layer in observed if "hipaa" in layer.obs.settings.frameworks]
    remedy = "set Settings.capture_stdlib (with logs='own'), or else pass Observability(logs='processor') after logging is set up"
    if not any(getattr(obs.logs, "_adoption", None) is not None for obs in declared):
        for obs in declared:
            if getattr(obs.logs, "_capture", None) is None:
                yield Finding(
                    "logs_escape_redaction",
                    "hipaa is declared, and what the server, the framework and libraries log is not redacted",
                    remedy,
                )
    found = raw_sinks() if declared else []
    if found:
        yield Finding(
            "logs_escape_redaction",
            f"hipaa is declared, and these write unredacted: {', '.join(found)}",
            remedy,
        )


def _baggage(observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for a propagator that sends to peers what nobody allowed, in a service that declares PHI."""
    if any("hipaa" in layer.obs.settings.frameworks for layer in observed) and sends_raw_baggage():
        yield Finding(
            "baggage_escapes_the_allow_list",
            f"hipaa is declared, and {RAW} sends every entry to peers",
            "call set_global_textmap before the Observability is made, and let redaction do more than watch",
        )


def _cut(environ: Mapping[str, str], observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for limits by which OpenTelemetry's SDK leaves a part of an identifier, in which no pattern finds it."""
    declared = [layer.obs for layer in observed if "hipaa" in layer.obs.settings.frameworks]
    limits = sorted(name for name in _LIMITS if environ.get(name))
    if limits and any(obs.redactor.mode == "mask" for obs in declared):
        yield Finding(
            "values_cut_before_redaction",
            f"hipaa is declared, and values are cut before they are redacted by: {', '.join(limits)}",
            "unset it, or let redaction be strict",
        )


def _dropped_lines(observed: Sequence[Any]) -> Iterator[Finding]:
    """Look for healthobs' own lines that the set-up they go through drops by their level."""
    obs = next((layer.obs for layer in observed if layer.obs.logs.mode == "processor"), None)
    factory = structlog.get_config()["logger_factory"]
    through_logging = not structlog.is_configured() or isinstance(factory, structlog.stdlib.LoggerFactory)
    if obs is None or obs.settings.disabled or not through_logging:
        return
    logger, level = logging.getLogger("healthobs"), obs.settings.log_level.upper()
    if not logger.isEnabledFor(logging.getLevelNamesMapping()[level]):
        yield Finding(
            "lines_below_level",
            f"logs='processor', and logging drops lines of level {level.lower()}: access lines are of level info",
            f"logging.getLogger('healthobs').setLevel(logging.{level}), or raise Settings.log_level",
        )


def _variables(environ: Mapping[str, str]) -> Iterator[Finding]:
    unknown = unknown_variables(environ)
    if unknown:
        yield Finding(
            "unknown_variables", UNKNOWN + ", ".join(unknown), "take the names that the settings' page lists"
        )


def _server(environ: Mapping[str, str], folder: Path) -> dict[str, Any]:
    """Return what is known of gunicorn's `workers` and `preload_app`, the command line's arguments last."""
    known: dict[str, Any] = {}
    if environ.get("WEB_CONCURRENCY", "").isdecimal():
        known["workers"] = int(environ["WEB_CONCURRENCY"])
    config = folder / "gunicorn.conf.py"
    if config.is_file():
        for statement in ast.parse(config.read_text(encoding="utf-8")).body:
            if isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant):
                names = [target.id for target in statement.targets if isinstance(target, ast.Name)]
                known |= dict.fromkeys(names, statement.value.value)
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-w", "--workers", type=int)
    parser.add_argument("--preload", action="store_true", default=None, dest="preload_app")
    told, _ = parser.parse_known_args(shlex.split(environ.get("GUNICORN_CMD_ARGS", "")))
    return known | {name: value for name, value in vars(told).items() if value is not None}


def main(argv: list[str]) -> int:
    """Run the command; return 0 when nothing is wrong, 1 when something is, 2 when it cannot be loaded."""
    parser = argparse.ArgumentParser(prog="healthobs doctor", description="Examine an application's set-up.")
    parser.add_argument(
        "app", metavar="MODULE:APP", help="as a server takes it; APP may be a call: create_app()"
    )
    chosen = parser.parse_args(argv)
    try:
        app = _load(chosen.app)
    except HealthobsError as exc:  # its message tells the remedy, and quotes no value
        print(f"healthobs: {chosen.app} cannot be loaded ({type(exc).__name__}: {exc})", file=sys.stderr)  # noqa: T201
        return CANNOT_LOAD
    except Exception as exc:  # noqa: BLE001 - the application's own code runs here
        facts = describe_exception(exc)
        said = _missing(exc) if isinstance(exc, ModuleNotFoundError) else facts.message
        why = facts.type if said is None else f"{facts.type}: {said}"
        print(f"healthobs: {chosen.app} cannot be loaded ({why})", *_places(exc), sep="\n  ", file=sys.stderr)  # noqa: T201
        return CANNOT_LOAD
    found = examine(app)
    for finding in found:
        print(f"{finding.name}: {finding.seen}. {finding.remedy[0].upper()}{finding.remedy[1:]}.")  # noqa: T201
    if all(finding.note for finding in found):
        print("nothing is wrong")  # noqa: T201
        return OK
    return FINDINGS


def _missing(exc: ModuleNotFoundError) -> str | None:
    """Return what is missing: the name of a module is no data, and what this package says of it tells the remedy."""
    (raised,) = traceback.extract_tb(exc.__traceback__)[-1:]
    return str(exc) if Path(raised.filename).parent == Path(__file__).parent else exc.name


def _places(exc: Exception) -> Iterator[str]:
    """Yield where it was raised, the innermost last: files, lines and names of the code, and no value."""
    own = {__file__, importlib.__file__}
    for frame in traceback.extract_tb(exc.__traceback__, limit=-_SHOWN_FRAMES):
        if frame.filename not in own and not frame.filename.startswith("<frozen"):
            yield f"at {frame.filename}:{frame.lineno} in {frame.name}"
    if isinstance(exc, SyntaxError) and exc.filename and exc.lineno:
        yield f"at {exc.filename}:{exc.lineno}"


def _load(uri: str) -> Any:
    at, _, name = uri.partition(":")
    if not at:
        raise ConfigurationError(f"there is no module: {_FORM}")
    sys.path.insert(0, str(Path.cwd()))
    found: Any = importlib.import_module(at)
    for part in (name.removesuffix("()") or "app").split("."):
        try:
            found = getattr(found, part)
        except AttributeError:
            raise ConfigurationError(f"{at} has no {part}: {_FORM}") from None
        at = f"{at}.{part}"
    app = found() if name.endswith("()") else found
    if not callable(app):
        raise ConfigurationError("it is no application: name a callable as MODULE:APP")
    return app
