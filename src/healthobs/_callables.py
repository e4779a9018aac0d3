"""One wrapper per callable, chosen by kind, that tells an observer when the call starts, pauses and ends.

Four kinds of plain function get a closure: function, coroutine function, generator function, async
generator function. What is not a plain function (classmethod, staticmethod, partial, callable object)
gets one `wrapt.FunctionWrapper`, never two. A generator's observation is entered at each resumption and
left at each yield, so that nothing of it is seen by the caller in between (PEP 342, PEP 380, PEP 525).

Limits: a wrapt proxy cannot be pickled.
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol

import wrapt

from healthobs._runtime import process
from healthobs.exceptions import InstrumentationError


class Call(Protocol):
    """One observed call."""

    def enter(self) -> None:
        """Make the call's span current, for as long as its code runs."""

    def leave(self) -> None:
        """Undo `enter`."""

    def finish(self, result: Any, exc: BaseException | None) -> None:
        """End the call; may raise only what the audit policy demands."""


class Observer(Protocol):
    """What decides, at each call, whether and how it is observed."""

    def begin(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        """Start observing a call that is entered already; None leaves it unobserved. Never raises."""


def wrap(fn: Any, observer: Observer) -> Any:
    """Return `fn` wrapped for its kind.

    Raises:
        InstrumentationError: `fn` is a class, a property, or not callable.
    """
    if isinstance(fn, type):
        raise InstrumentationError("a class cannot be observed: decorate its methods instead")
    if isinstance(fn, property):
        raise InstrumentationError("a property cannot be observed: decorate its getter, below @property")
    if inspect.isfunction(fn):
        return _closure(fn)(fn, observer)
    if isinstance(fn, (classmethod, staticmethod)):
        inner = fn.__func__
        if inspect.isfunction(inner):
            return type(fn)(_closure(inner)(inner, observer))
    if not callable(fn) and not isinstance(fn, (classmethod, staticmethod)):
        raise InstrumentationError("only callables can be observed: apply the decorator to a function")
    return _proxy(fn, observer)


def target(fn: Any) -> Any:
    """Return the function that says which kind `fn` is."""
    while True:
        if isinstance(fn, functools.partial):
            fn = fn.func
        elif isinstance(fn, (classmethod, staticmethod)):
            fn = fn.__func__
        elif not inspect.isroutine(fn) and hasattr(type(fn), "__call__"):  # noqa: B004 - the method itself is wanted
            return type(fn).__call__
        else:
            return fn


def _closure(fn: Any) -> Callable[[Any, Observer], Any]:
    if inspect.isasyncgenfunction(fn):
        return _async_generator
    if inspect.isgeneratorfunction(fn):
        return _generator
    if inspect.iscoroutinefunction(fn):
        return _coroutine
    return _function


def _function(fn: Any, observer: Observer) -> Any:
    begin = observer.begin

    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not process.active:
            return fn(*args, **kwargs)
        call = begin(args, kwargs)
        if call is None:
            return fn(*args, **kwargs)
        try:
            result = fn(*args, **kwargs)
        except BaseException as exc:
            call.finish(None, exc)
            raise
        call.finish(result, None)
        return result

    return wrapper


def _coroutine(fn: Any, observer: Observer) -> Any:
    begin = observer.begin

    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = begin(args, kwargs) if process.active else None
        if call is None:
            return await fn(*args, **kwargs)
        try:
            result = await fn(*args, **kwargs)
        except BaseException as exc:
            call.finish(None, exc)
            raise
        call.finish(result, None)
        return result

    return wrapper


def _generator(fn: Any, observer: Observer) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = observer.begin(args, kwargs) if process.active else None
        if call is None:
            return (yield from fn(*args, **kwargs))
        return (yield from _drive(fn(*args, **kwargs), call))

    return wrapper


def _drive(inner: Generator[Any, Any, Any], call: Call) -> Generator[Any, Any, Any]:
    """Run `inner` to its end, entered only while it runs (PEP 380's expansion, with the observation in it)."""
    resume: Callable[[], Any] = functools.partial(next, inner)
    entered = True
    try:
        while True:
            if not entered:
                call.enter()
                entered = True
            item = resume()
            call.leave()
            entered = False
            try:
                sent = yield item
            except GeneratorExit:
                call.enter()
                entered = True
                inner.close()
                raise
            except BaseException as thrown:
                resume = functools.partial(inner.throw, thrown)
            else:
                resume = functools.partial(inner.send, sent)
    except StopIteration as stop:
        call.finish(stop.value, None)
        return stop.value
    except BaseException as exc:
        call.finish(None, exc)
        raise


def _async_generator(fn: Any, observer: Observer) -> Any:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = observer.begin(args, kwargs) if process.active else None
        inner = fn(*args, **kwargs)
        driven = inner if call is None else _drive_async(inner, call)
        try:
            resume: Callable[[], Any] = driven.__anext__
            while True:
                try:
                    item = await resume()
                except StopAsyncIteration:
                    return
                try:
                    sent = yield item
                except GeneratorExit:
                    raise
                except BaseException as thrown:
                    resume = functools.partial(driven.athrow, thrown)
                else:
                    resume = functools.partial(driven.asend, sent)
        finally:
            await driven.aclose()

    return wrapper


async def _drive_async(inner: AsyncGenerator[Any, Any], call: Call) -> AsyncGenerator[Any, Any]:
    """Run `inner` to its end, entered only while it runs."""
    resume: Callable[[], Any] = inner.__anext__
    entered = True
    try:
        while True:
            if not entered:
                call.enter()
                entered = True
            item = await resume()
            call.leave()
            entered = False
            try:
                sent = yield item
            except GeneratorExit:
                call.enter()
                entered = True
                await inner.aclose()
                raise
            except BaseException as thrown:
                resume = functools.partial(inner.athrow, thrown)
            else:
                resume = functools.partial(inner.asend, sent)
    except StopAsyncIteration:
        call.finish(None, None)
    except BaseException as exc:
        call.finish(None, exc)
        raise


def _proxy(fn: Any, observer: Observer) -> Any:
    """Wrap what is no plain function with one wrapt proxy; its calls go through the closure of its kind."""
    make = _closure(target(fn))

    def enter(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return make(wrapped, observer)(*args, **kwargs)

    return wrapt.FunctionWrapper(fn, enter)
