"""Checks what comes in: JSON bodies, forms and query strings, against pydantic models.

JSON is read as I-JSON (RFC 7493): UTF-8, no duplicate members, no lone surrogates, no numbers beyond 64 bits;
no NaN or Infinity (RFC 8259 §6). No text has control characters, nor what turns the direction in which it is shown. Errors name a pointer and pydantic's error code, never the value, and
a pointer stops before the first name that the model does not know, because that name is input too.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from itertools import islice
from typing import Any, ClassVar, NoReturn, Self, TypeVar

import pydantic
from flask import Request
from gunicorn.http.errors import ParseException  # type: ignore[import-untyped]

from reference_services._kit.problems import Problem

MAX_BODY_BYTES = 1024 * 1024
MAX_ERRORS = 50
_MAX_INTEGER = 2**63 - 1
_INTEGER_TEXT = re.compile(r"-?[0-9]+")
#: Control characters but for tab and the ends of lines (FHIR R4, "string") and U+001D, which is between the elements of a
#: scanned GS1 code, the separators U+2028 and U+2029, and what overrides the direction of text (Unicode UTS 55 §2.1), by which a signed reason could show as another one.
_CONTROLS = re.compile("[\0-\x08\x0b\x0c\x0e-\x1c\x1e\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069]")
#: Where one of them may be in a JSON document, escaped or not.
_SUSPICIOUS = re.compile(
    rb"\\u00[0189]|\\u007[fF]|\\u20[26]|\\[bf]|\x7f|\xc2[\x80-\x9f]|\xe2\x80[\xa8-\xae]|\xe2\x81[\xa6-\xa9]"
)
_Json = dict[str, "_Json"] | list["_Json"] | str | int | float | None
#: Names and indexes that lead to a part of a document.
_Place = tuple[int | str, ...]
#: The same as a chain to the whole document, which a million parts can share.
_Link = tuple["_Link", int | str] | None
_M = TypeVar("_M", bound=pydantic.BaseModel)


class Model(pydantic.BaseModel):
    """Base of every request and response: strict types, no unknown members, immutable, silent about inputs."""

    model_config = pydantic.ConfigDict(
        strict=True,
        extra="forbid",
        frozen=True,
        hide_input_in_errors=True,
        allow_inf_nan=False,
        validate_by_name=True,
        validate_by_alias=True,
    )
    #: Whether members that are None are left out of responses (FHIR has no null).
    omit_none: ClassVar[bool] = False

    @classmethod
    def of(cls, row: Mapping[str, Any], **more: Any) -> Self:
        """Return the model of a stored row: of its columns those that are members here, and `more`."""
        return cls(**{name: row[name] for name in cls.model_fields if name in row} | more)


class NoQuery(Model):
    """A route without query parameters."""


class _MalformedError(ValueError):
    """JSON that parses in Python but is not I-JSON; the argument is the problem's code."""


def json_body(request: Request, model: type[_M]) -> _M:
    """Read the request's JSON body as `model`.

    Raises:
        Problem: 415 not JSON, 413 over 1 MiB, 400 not well-formed, 422 not valid.
    """
    mimetype = request.mimetype
    if mimetype != "application/json" and not (
        mimetype.startswith("application/") and mimetype.endswith("+json")
    ):
        raise Problem(415, "unsupported_media_type", "Send the body as application/json.")
    if request.headers.get("Content-Encoding", "identity") != "identity":
        raise Problem(415, "unsupported_media_type", "Send the body without a content coding.")
    raw = _received(request)
    _check_json(raw)
    if _SUSPICIOUS.search(raw) and (places := list(islice(_control_places(json.loads(raw)), MAX_ERRORS))):
        raise _holds_controls(places, model, "Text may not contain control characters.")
    try:
        return model.model_validate_json(raw)
    except pydantic.ValidationError as exc:
        raise _invalid(exc, model, "The body does not satisfy the schema of this route.") from None


def form_body(request: Request, model: type[_M]) -> _M:
    """Read an `application/x-www-form-urlencoded` body as `model`; a repeated field is refused.

    Raises:
        Problem: 415 another content type, 413 too large, 422 not valid.
    """
    if request.mimetype != "application/x-www-form-urlencoded":
        raise Problem(415, "unsupported_media_type", "Send the body as application/x-www-form-urlencoded.")
    _received(request)
    return _strings(request.form.lists(), model, "The form does not satisfy the schema of this route.")


def query(request: Request, model: type[_M]) -> _M:
    """Read the query string as `model`; unknown and repeated parameters are refused, and integers but in digits.

    Raises:
        Problem: 422 with a pointer to each parameter that is not valid.
    """
    return _strings(
        request.args.lists(), model, "The query parameters do not satisfy the schema of this route."
    )


def _strings(pairs: Iterable[tuple[str, list[str]]], model: type[_M], title: str) -> _M:
    given = dict(pairs)
    known = _known_names(model)
    repeated = [name for name, values in given.items() if len(values) > 1 and name in known]
    if repeated:
        raise Problem(422, "invalid_request", title, [(f"/{_escape(name)}", "repeated") for name in repeated])
    if places := [(name,) for name, values in given.items() if any(map(_CONTROLS.search, values))]:
        raise _holds_controls(places, model, title)
    flat = {name: values[0] for name, values in given.items()}
    # pydantic reads what Python does, 5.0 and 1_000 too; of what is no integer to others nothing is left to read.
    flat |= {name: "" for name in flat.keys() & _integers(model) if not _INTEGER_TEXT.fullmatch(flat[name])}
    try:
        return model.model_validate_strings(flat, strict=False)
    except pydantic.ValidationError as exc:
        raise _invalid(exc, model, title) from None


def _received(request: Request) -> bytes:
    """Return the body, which the request keeps.

    Raises:
        Problem: 400 when its transfer coding is broken or it ends early, which the server notices at this read.
    """
    try:
        return request.get_data(cache=True)
    except (ParseException, OSError):
        raise Problem(400, "malformed_body", "The body cannot be read to its end.") from None


def _check_json(raw: bytes) -> None:
    """Refuse what pydantic's parser lets through: duplicates, NUL, NaN, numbers that overflow a store."""
    try:
        json.loads(
            raw.decode("utf-8"),
            object_pairs_hook=_unique,
            parse_constant=_constant,
            parse_int=_integer,
            parse_float=_number,
        )
    except _MalformedError as exc:
        raise Problem(400, str(exc), "The body is not acceptable JSON (RFC 7493).") from None
    except (ValueError, RecursionError):
        raise Problem(400, "malformed_json", "The body is not well-formed JSON in UTF-8.") from None


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) != len(pairs):
        raise _MalformedError("duplicate_member")
    return members


def _constant(_: str) -> NoReturn:
    raise _MalformedError("not_a_number")


def _integer(text: str) -> int:
    if len(text) > 20 or not -_MAX_INTEGER <= (value := int(text)) <= _MAX_INTEGER:
        raise _MalformedError("number_out_of_range")
    return value


def _number(text: str) -> float:
    if len(text) > 400 or not math.isfinite(value := float(text)):
        raise _MalformedError("number_out_of_range")
    return value


def _control_places(document: _Json) -> Iterator[_Place]:
    """Yield where control characters are: the location of a text, or of a name."""
    waiting: list[tuple[_Link, _Json]] = [(None, document)]
    for link, item in waiting:  # which grows meanwhile
        if isinstance(item, str) and _CONTROLS.search(item):
            yield _place(link)
        for part, value in _parts(item):
            waiting.append(((link, part), value))
            if isinstance(part, str) and _CONTROLS.search(part):
                yield _place((link, part))


def _parts(item: _Json) -> Iterable[tuple[int | str, _Json]]:
    if isinstance(item, dict):
        return item.items()
    return enumerate(item) if isinstance(item, list) else ()


def _place(link: _Link) -> _Place:
    parts: list[int | str] = []
    while link is not None:
        link, part = link
        parts.append(part)
    return tuple(reversed(parts))


def _holds_controls(places: Iterable[_Place], model: type[pydantic.BaseModel], title: str) -> Problem:
    known = _known_names(model)
    pointers = dict.fromkeys(_pointer(place, known) for place in places)
    return Problem(422, "invalid_request", title, [(name, "control_character") for name in pointers])


def _invalid(exc: pydantic.ValidationError, model: type[pydantic.BaseModel], title: str) -> Problem:
    details = exc.errors(include_url=False, include_context=False, include_input=False)
    if any(detail["type"] == "json_invalid" for detail in details):
        return Problem(400, "malformed_json", "The body is not well-formed JSON in UTF-8.")
    known = _known_names(model)
    pairs = dict.fromkeys((_pointer(detail["loc"], known), detail["type"]) for detail in details)
    return Problem(422, "invalid_request", title, list(pairs)[:MAX_ERRORS])


def _pointer(location: _Place, known: frozenset[str]) -> str:
    """Return an RFC 6901 pointer up to the first name that the schema does not contain."""
    parts: list[str] = []
    for part in location:
        if isinstance(part, str) and part not in known:
            break
        parts.append(f"/{_escape(str(part))}")
    return "".join(parts)


def _escape(part: str) -> str:
    return part.replace("~", "~0").replace("/", "~1")


@lru_cache(maxsize=256)
def _known_names(model: type[pydantic.BaseModel]) -> frozenset[str]:
    """Return every property name in the schema of `model`, nested models included."""
    schema = model.model_json_schema(by_alias=True)
    objects: list[Mapping[str, Any]] = [schema, *schema.get("$defs", {}).values()]
    names = {name for found in objects for name in found.get("properties", {})}
    return frozenset(names | set(model.model_fields))


@lru_cache(maxsize=256)
def _integers(model: type[pydantic.BaseModel]) -> frozenset[str]:
    """Return the members of `model` that are integers, or integers and optional."""
    members: Mapping[str, Any] = model.model_json_schema(by_alias=True).get("properties", {})
    kinds = {name: {one.get("type") for one in (had, *had.get("anyOf", ()))} for name, had in members.items()}
    return frozenset(name for name, found in kinds.items() if found & {"integer", "string"} == {"integer"})
