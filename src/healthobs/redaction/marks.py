"""Which fields of an object are marked with `PHI`, from the annotations of its class.

A mark counts however deep it stands: in a list, behind a name of a type (`type`, `NewType`), in a parameter of a generic
class, in a `TypedDict`. A field of which it cannot be told whether there is one is masked as ``[PHI:value]``, in a class
that has marks; an object of any other class is masked whole, as is one whose annotations cannot be resolved.

Limits: a dictionary does not know its `TypedDict`, so outside a field the marks of that are not seen. An object that
cannot keep what it was parametrised with (a frozen dataclass, a named tuple) does not tell it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import (
    Any,
    ForwardRef,
    Literal,
    ParamSpec,
    TypeVar,
    TypeVarTuple,
    cast,
    get_args,
    get_origin,
    get_type_hints,
)

from healthobs.redaction.phi import PHI, Phi


@dataclasses.dataclass(frozen=True, slots=True)
class _Untold:
    """A mark that may be there."""

    kind: str = "value"


_UNTOLD = _Untold()


def marked_fields(value: object) -> dict[str, object] | None:
    """Return the fields of an object of a class with marks, the marked ones as `Phi`; None for any other object."""
    kinds = _marks(cast("Any", type(value)))
    if not kinds:
        return None
    # `Page[int]`, which an object of the generic class Page keeps
    parametrised = getattr(value, "__orig_class__", None)
    if parametrised is not None:
        with contextlib.suppress(TypeError):  # a parameter that has no hash
            kinds = _marks(cast("Any", type(value)), parametrised)
    read = {name: getattr(value, name) for name in _field_names(value)}
    return {name: Phi(item, kinds[name]) if name in kinds else item for name, item in read.items()}


def _field_names(value: object) -> Iterator[str]:
    kind: Any = type(value)
    # pydantic's models, dataclasses, named tuples; none of them needs to be imported.
    for holder in ("model_fields", "__dataclass_fields__", "_fields"):
        yield from cast("Mapping[str, object] | tuple[str, ...]", getattr(kind, holder, ()))


@lru_cache(maxsize=1024)
def _marks(kind: Any, parametrised: object = None) -> Mapping[str, str]:
    """Return the kind of each marked field of a class, and of those that may be; nothing where none is marked."""
    try:
        hints = {name: [hint] for name, hint in get_type_hints(kind, include_extras=True).items()}
        # pydantic puts a parameter in the place of its variable
        models = {name: [field.annotation, *_notes(field.metadata)] for name, field in _models(kind).items()}
    except Exception:  # noqa: BLE001 - a name that cannot be resolved: then the object is masked whole
        return {}
    bound = _bound(kind, parametrised)
    found = {name: _mark(parts, bound) for name, parts in hints.items()}
    for name, parts in models.items():
        if found.get(name) in (None, _UNTOLD):
            found[name] = _mark(parts, bound)
    if all(mark in (None, _UNTOLD) for mark in found.values()):
        return {}
    return {name: mark.kind for name, mark in found.items() if mark is not None}


def _models(kind: Any) -> Mapping[str, Any]:
    return cast("Mapping[str, Any]", getattr(kind, "model_fields", {}))


def _notes(metadata: Iterable[object]) -> list[object]:
    """Return of an annotation's metadata what may be a mark; a text in it is no name of a type."""
    return [one for one in metadata if not isinstance(one, str)]


def _bound(kind: Any, parametrised: object) -> Mapping[object, list[object]]:
    """Return what stands for each variable of a generic class and its bases; nothing for one that nobody bound."""
    bound: dict[object, list[object]] = {}
    classes = cast("tuple[Any, ...]", kind.__mro__)
    bases = [base for one in classes for base in cast("Any", vars(one)).get("__orig_bases__", ())]
    for alias in (parametrised, *bases):
        variables, arguments = _variables(get_origin(alias)), get_args(alias)
        if len(variables) == len(arguments):  # else one of them stands for several
            for variable, argument in zip(variables, arguments, strict=True):
                bound.setdefault(variable, []).append(argument)
    if get_origin(parametrised) is not kind:
        for variable in _variables(kind):
            bound[variable] = []
    return bound


def _variables(kind: Any) -> tuple[object, ...]:
    return cast("tuple[object, ...]", getattr(kind, "__parameters__", ()))


def _mark(parts: Iterable[object], bound: Mapping[object, list[object]]) -> PHI | _Untold | None:
    """Return the mark in an annotation, however deep: ``list[Annotated[str, PHI("name")]] | None``.

    `_UNTOLD` when none is seen, and one may be in what cannot be looked into.
    """
    waiting, seen = list(parts), list[object]()
    told = True
    while waiting:
        part = waiting.pop(0)
        if isinstance(part, PHI):
            return part
        if any(part is one for one in seen):  # a name of a type may stand in its own meaning
            continue
        seen.append(part)
        try:
            waiting[:0] = _inside(part, bound)
        except Exception:  # noqa: BLE001 - a name that cannot be resolved
            told = False
    return None if told else _UNTOLD


def _inside(part: Any, bound: Mapping[object, list[object]]) -> list[object]:
    """Return what an annotation is made of, as far as a mark can be in it.

    Raises:
        LookupError: It is a text, or a variable that stands for nothing known.
    """
    if isinstance(part, (TypeVar, ParamSpec, TypeVarTuple)) and bound.get(part):
        return bound[part]
    if isinstance(part, (str, ForwardRef, TypeVar, ParamSpec, TypeVarTuple)):
        raise LookupError
    origin = get_origin(part)
    if origin is Literal:
        return []
    parts = [*_notes(getattr(part, "__metadata__", ())), *get_args(part)]
    named = part if origin is None else origin
    if hasattr(named, "__supertype__"):  # a NewType
        parts.append(named.__supertype__)
    if hasattr(named, "__value__"):  # a TypeAliasType, of `typing` or of `typing_extensions`
        parts.append(named.__value__)
    if hasattr(named, "__required_keys__"):  # a TypedDict
        parts += get_type_hints(named, include_extras=True).values()
    return parts
