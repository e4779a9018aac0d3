"""What a record of the standard library may say: its template is judged before it is formatted.

Messages of known servers and clients quote the request: their paths become the route's template, or a mark, to the end of
what quotes them, since a path may hold blanks; what other arguments may say is told by `healthobs.logs.servers`; a message that
was made of data ends where it begins to quote. Celery's quote a task's result and exception, asyncio's an exception and the
arguments of a callback, those of Django's database the statement and its parameters. What any other library says is judged by
`healthobs.logs.libraries`.

Limits: the servers are known by the names of their loggers, and Flask's line by its beginning.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from typing import Any, cast

from opentelemetry import trace

from healthobs import _runtime
from healthobs.logs.libraries import (
    NAMED,
    VALUE,
    is_librarys,
    judged_arguments,
    judged_template,
    judged_warning,
    values,
)
from healthobs.logs.origins import warns_for_a_library
from healthobs.logs.servers import REQUEST, TARGET, argument, known_method, known_version, without_targets
from healthobs.redaction import Redactor

_SERVERS = frozenset(
    {"django", "gunicorn", "httpcore", "httpx", "hypercorn", "urllib3", "uvicorn", "waitress", "werkzeug"}
)
#: Loggers whose arguments are the application's data.
_QUOTING = re.compile(r"(?:asyncio|celery|django\.db)(?:\..*)?", re.DOTALL)
#: Where a server's message begins to quote what it was sent; no apostrophe in a word.
_QUOTE = re.compile(r"""(?:(?<!\w)|\bb)['"]|[(<]""")
#: Where asyncio's message begins to quote: arguments, objects, what they raised.
_ASYNCIO = re.compile(r"[(\n]|<(?!locals>)| exception=")
_FLASK = re.compile(r"Exception on (.*) \[(\w+)\]", re.DOTALL)
_ACCESS = '%s - "%s %s HTTP/%s" %d'
_ACCESS_BY_ATOMS = frozenset({"gunicorn.access", "hypercorn.access"})
#: Loggers of Django whose message is that of an exception, the application's too.
_OF_EXCEPTIONS = "django.security."
_ADDRESS = "%s://"
_WERKZEUG = '"%s" %s %s'
#: What ends the template of an access line; werkzeug writes the address before it.
_REQUEST_LINES = {"werkzeug": _WERKZEUG + "\n", "django.server": _WERKZEUG}
#: gunicorn's atoms that are numbers or times of its own.
_ATOMS = re.compile(r"[-\d.<>]*")
_TASK = frozenset({"description", "name", "runtime"})
_TASK_ID = re.compile("[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
_NUMBERS = ("s", "B", "b", "T", "D", "M", "L", "p")


class Rendered(str):
    """A text that was judged already."""

    __slots__ = ()


class Sealed(Rendered):
    """A whole line, rendered from fields that were judged already: it may leave as it is."""

    __slots__ = ()


class Own(str):
    """A text that healthobs wrote itself: it may leave as it is."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[str], tuple[str]]:
        """Pickle as plain text: who reads a `SocketHandler` or a queue need not have healthobs."""
        return str, (str(self),)


class OwnTexts(tuple[Any, ...]):
    """Several texts that healthobs wrote itself."""

    __slots__ = ()

    def __reduce__(self) -> tuple[type[tuple[Any, ...]], tuple[tuple[Any, ...]]]:
        """As of `Own`."""
        return tuple, (tuple(self),)


def own(fields: Mapping[str, Any]) -> dict[str, Any]:
    """Return `fields` of healthobs' own, marked so that no set-up that they pass through judges them again."""
    return {
        key: Own(value) if type(value) is str else OwnTexts(value) if type(value) in (list, tuple) else value
        for key, value in fields.items()
    }


class RenderedFields(dict[str, Any]):
    """Fields that were judged already."""


#: What every record has; anything else in it is a field of whoever logged, or of a filter.
STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


def complete(record: logging.LogRecord) -> None:
    """Give `record` a name and a path that are texts, as `logging` would show them: one that was made by hand need have none."""
    for key in ("name", "pathname"):
        if not isinstance(record.__dict__.get(key), str):
            setattr(record, key, str(record.__dict__.get(key)))


def note(record: logging.LogRecord, redactor: Redactor) -> None:
    """Have `redactor` learn, while the caller is near on the stack, what of `record` is written in the code.

    That is the template with the names it formats, and the names of fields and arguments; of a library's record, in `mask`,
    the template and arguments.
    """
    if not redactor.strict:
        if is_librarys(record, redactor):
            for text in (record.msg, *values(record.args)):
                if type(text) is str:
                    redactor.is_written(text)
        return
    template, arguments = cast("Any", record.msg), cast("Any", record.args)
    if type(template) is str and redactor.is_written(template):
        for name in NAMED.findall(template):
            redactor.written(name)
    named = cast("dict[object, object]", arguments) if type(arguments) is dict else {}
    fields = {name: record.__dict__[name] for name in record.__dict__.keys() - STANDARD}
    redactor.note({**fields, **{name: value for name, value in named.items() if type(name) is str}})


def current_ids() -> tuple[str, str]:
    """Return trace id and span id of the current span, in hexadecimal; empty where there is none."""
    context = trace.get_current_span().get_span_context()
    if not context.trace_id:
        return "", ""
    return f"{context.trace_id:032x}", f"{context.span_id:016x}"


def clean(record: logging.LogRecord, redactor: Redactor) -> tuple[str, Any]:
    """Return template and arguments of `record` as they may leave; they fit each other, or arguments are None.

    Arguments of access logs keep their number, because formatters of their servers take them apart.
    """
    template, arguments = cast("str", record.msg), cast("Any", record.args)
    if isinstance(template, Rendered):
        return str(template) if isinstance(template, Sealed) else redactor.text(template), None
    server = redactor.mode != "watch" and record.name.partition(".")[0] in _SERVERS
    if server and record.name == "uvicorn.access" and isinstance(arguments, tuple) and len(arguments) == 5:  # pyright: ignore[reportUnknownArgumentType]
        return _ACCESS, _uvicorn(cast("tuple[object, ...]", arguments), redactor)
    if server and record.name in _ACCESS_BY_ATOMS and isinstance(arguments, Mapping):
        return template, _gunicorn(cast("Mapping[str, object]", arguments), redactor)
    line = _REQUEST_LINES.get(record.name)
    if server and line and template.endswith(line) and isinstance(arguments, tuple) and arguments:
        return _WERKZEUG, _werkzeug(cast("tuple[object, ...]", arguments))
    failed = None if arguments or redactor.mode == "watch" else _FLASK.fullmatch(template)
    if failed is not None:
        return f"Exception on {_route()} [{known_method(failed[2])}]", None
    if redactor.mode != "watch" and record.name == "asyncio" and not arguments:
        template = _ASYNCIO.split(template, maxsplit=1)[0]
    if record.name == "py.warnings" and redactor.mode == "mask" and warns_for_a_library():
        text = str(values(arguments)[0]) if arguments else template
        return "%s", (judged_warning(text, redactor),)
    if arguments and redactor.mode != "watch" and _QUOTING.fullmatch(record.name):
        judged, fitting = redactor.name(template), _quoted(template, arguments, redactor)
        return (judged, fitting) if _fits(judged, fitting) else (judged, None)
    if not server and is_librarys(record, redactor):
        judged = judged_template(record, template, redactor)
        fitting = judged_arguments(template, arguments, redactor) if arguments else None
        return (judged, fitting) if fitting is None or _fits(judged, fitting) else (judged, None)
    if not arguments:
        return redactor.name(_of_server(record.name, template, redactor) if server else template), None
    judged = _servers_template(template, redactor) if server else redactor.name(template)
    fitting = _of_servers(template, arguments, redactor) if server else _arguments(arguments, redactor)
    return (judged, fitting) if _fits(judged, fitting) else (judged, None)


def _fits(template: str, arguments: Any) -> bool:
    """Return whether `template` takes `arguments`: not a mark under %d, and the template alone says enough."""
    try:
        return isinstance(template % arguments, str)
    except Exception:  # noqa: BLE001  # whatever an argument or a mistaken template raises
        return False


def _arguments(arguments: Any, redactor: Redactor) -> Any:
    if isinstance(arguments, Mapping):  # `%r` shows its names, too
        named = cast("Mapping[str, object]", arguments)
        redacted = redactor.mapping(named)
        return named if redactor.mode == "watch" else redacted
    return tuple(redactor.value("argument", value) for value in arguments)


def _servers_template(template: str, redactor: Redactor) -> str:
    """Return a server's template as it may leave: an address that is made of its fields is none yet."""
    if redactor.strict and not redactor.is_written(template):
        return redactor.name(template)
    return _ADDRESS.join(map(redactor.text, template.split(_ADDRESS)))


def _of_servers(template: str, arguments: Any, redactor: Redactor) -> Any:
    """Return the arguments of a server's message: what it was handed is not among them."""
    if not isinstance(arguments, Mapping):
        return tuple(redactor.value("argument", argument(value)) for value in arguments)
    named = cast("Mapping[str, object]", arguments)
    names = NAMED.findall(template)
    if not names:  # it shows the whole mapping
        return (VALUE,)
    return redactor.mapping({name: argument(named[name]) for name in names if name in named})


def _uvicorn(arguments: tuple[object, ...], redactor: Redactor) -> tuple[object, ...]:
    address, method, _path, version, status = arguments
    return (
        redactor.value("argument", address),
        known_method(method),
        _route(),
        known_version(version),
        _status(status),
    )


def _werkzeug(arguments: tuple[object, ...]) -> tuple[object, ...]:
    found = REQUEST.search(str(arguments[0]))
    method, version = found.groups() if found else ("", "")
    numbers = (str(one) if _ATOMS.fullmatch(str(one)) else "-" for one in arguments[1:])
    return (f"{known_method(method)} {_route()} {known_version(version)}", *numbers)


def _quoted(template: str, arguments: Any, redactor: Redactor) -> Any:
    """Return numbers, and what names a task's run; all else is the application's data."""
    if not isinstance(arguments, Mapping):
        return tuple(one if type(one) in (int, float, bool) else VALUE for one in arguments)
    if not NAMED.search(template):  # it shows the whole mapping
        return (VALUE,)
    task = cast("Mapping[str, object]", arguments)
    safe: dict[str, object] = dict.fromkeys(task, VALUE)
    safe.update({key: redactor.text(str(task[key])) for key in _TASK & task.keys()})
    if _TASK_ID.fullmatch(str(task.get("id"))):  # one that the application chose is its data
        safe["id"] = task["id"]
    return safe


def _gunicorn(atoms: Mapping[str, object], redactor: Redactor) -> Mapping[str, object]:
    line = f"{known_method(atoms.get('m'))} {_route()} {known_version(atoms.get('H'))}"
    safe = _Atoms({key: str(atoms[key]) for key in _NUMBERS if _ATOMS.fullmatch(str(atoms.get(key, "?")))})
    safe.update(l="-", u="-", t=atoms.get("t", "-"), r=line, m=known_method(atoms.get("m")), U=_route())
    safe.update(H=known_version(atoms.get("H")), h=redactor.value("argument", atoms.get("h")))
    return safe


class _Atoms(dict[str, object]):
    """What an access line may hold; every other atom is a mark."""

    def __missing__(self, _key: str) -> str:
        return "[PHI:key]"


def _of_server(name: str, message: str, redactor: Redactor) -> str:
    """Return a server's `message` without request targets, what it quotes, and the traceback that werkzeug appends."""
    if name.startswith(_OF_EXCEPTIONS) and not redactor.is_written(message):
        return str(argument(message))
    head, cut, _traceback = message.partition("Error on request:")
    if not redactor.is_written(message):
        head = _unquoted(head)
    return without_targets(head + cut)


def _unquoted(text: str) -> str:
    found = _QUOTE.search(text)
    return text if found is None else f"{text[: found.start()]}{VALUE}"


def _route() -> str:
    """Return the template of the route that is being answered, or a mark."""
    exchange = _runtime.exchange.get()
    return TARGET if exchange is None else exchange.route or TARGET


def _status(status: object) -> int:
    return status if isinstance(status, int) else 0
