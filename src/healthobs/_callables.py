"""One wrapper per callable, chosen by kind, that tells an observed call when it starts, pauses and ends.

Four kinds of plain function get a closure: function, coroutine function, generator function, async generator
function. What is not a plain function (partial, callable object, built-in, a descriptor around one of these)
gets one `wrapt.FunctionWrapper`, never two. A generator's observation is left at each yield and entered
again at each resumption, so that the caller sees nothing of it in between (PEP 342, PEP 380, PEP 525).

Limits: the kind is that of the callable given, so a foreign decorator that turns a coroutine function into a
plain function hides it. A wrong number of arguments for a generator or coroutine is reported when it is
first resumed. A wrapt proxy cannot be pickled.
"""

from __future__ import annotations

import functools
import inspect
import weakref
from collections.abc import AsyncGenerator, Callable, Generator
from typing import Any, Protocol, cast

import wrapt

from healthobs.exceptions import InstrumentationError

#: Where a wrapper keeps what it was made from. wrapt stores names with this prefix on the proxy itself.
_MARK = "_self_healthobs_plan"


class Call(Protocol):
    """One observed call; it is entered when it is made."""

    def resume(self) -> None:
        """Make the call's span current again, on top of the caller's context."""

    def pause(self) -> None:
        """Give the caller its own context back before an item is handed out."""

    def finish(self, result: Any, exc: BaseException | None) -> None:
        """End the call; raises only what the audit policy demands."""


#: Starts observing a call, or says with None that it is left alone. Never raises. `bound` is the callable
#: itself when it was not known at decoration (a bound method of a proxy).
Begin = Callable[..., "Call | None"]


class Gate(Protocol):
    """Says whether `Begin` is to be asked at all: read at each call, so it must cost nothing."""

    active: bool


class _Unobserved:
    """Stands in for a call that is left alone."""

    def resume(self) -> None:
        """Do nothing."""

    def pause(self) -> None:
        """Do nothing."""

    def finish(self, result: Any, exc: BaseException | None) -> None:
        """Do nothing."""


_UNOBSERVED = _Unobserved()


def is_plain(fn: Any) -> bool:
    """Return whether `fn` is a function, or a classmethod or staticmethod around one."""
    while isinstance(fn, (classmethod, staticmethod)):
        fn = cast("Any", fn).__func__
    return inspect.isfunction(fn)


def target(fn: Any) -> Any:
    """Return the function that says which kind `fn` is."""
    while True:
        if isinstance(fn, functools.partial):
            fn = cast("Any", fn).func
        elif isinstance(fn, (classmethod, staticmethod)):
            fn = cast("Any", fn).__func__
        elif inspect.isroutine(fn):
            return fn
        else:
            return type(fn).__call__


def check(fn: Any) -> None:
    """Refuse what cannot be observed.

    Raises:
        InstrumentationError: `fn` is a class, a property, a partialmethod, or not callable.
    """
    if isinstance(fn, type):
        raise InstrumentationError("a class cannot be observed: decorate its methods instead")
    if isinstance(fn, (property, functools.cached_property)):
        raise InstrumentationError("a property cannot be observed: decorate its getter, below @property")
    if isinstance(fn, functools.partialmethod):
        raise InstrumentationError("a partialmethod cannot be observed: decorate the method that it calls")
    if not callable(fn) and not isinstance(fn, (classmethod, staticmethod)):
        raise InstrumentationError("only callables can be observed: apply the decorator to a function")


def wrap(fn: Any, begin: Begin, plan: Any, gate: Gate) -> Any:
    """Return `fn` wrapped for its kind, with `plan` remembered on the wrapper.

    Args:
        fn: What `check` let pass; descriptors around plain functions are to be unpacked before.
        begin: Called at each call.
        plan: Anything; `recall` gives it back.
        gate: While it is not active, a call goes straight to `fn`.
    """
    wrapper = _closure_for(fn)(fn, begin, gate) if inspect.isfunction(fn) else _proxy(fn, begin, gate)
    setattr(wrapper, _MARK, ((fn, plan), weakref.ref(wrapper)))
    return wrapper


def recall(fn: Any) -> tuple[Any, Any] | None:
    """Return what `fn` was made from and its plan, or None when `wrap` did not make it.

    `functools.wraps` copies attributes onto foreign wrappers: a mark counts only on the wrapper that it was
    made for, otherwise fusing would silently remove the decorator in between.
    """
    mark = getattr(fn, _MARK, None)
    return mark[0] if mark is not None and mark[1]() is fn else None


def _closure_for(fn: Any) -> Callable[[Any, Begin, Gate], Any]:
    if inspect.isasyncgenfunction(fn):
        return _async_generator
    if inspect.isgeneratorfunction(fn):
        return _generator
    if inspect.iscoroutinefunction(fn):
        return _coroutine
    return _function


def _function(fn: Any, begin: Begin, gate: Gate) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if not gate.active:
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


def _coroutine(fn: Any, begin: Begin, gate: Gate) -> Any:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> Any:
        call = begin(args, kwargs) if gate.active else None
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


def _generator(fn: Any, begin: Begin, gate: Gate) -> Any:
    @functools.wraps(fn)
    def wrapper(*args: Any, **kwargs: Any) -> Generator[Any, Any, Any]:
        call = begin(args, kwargs) if gate.active else None
        if call is None:
            unobserved: Generator[Any, Any, Any] = fn(*args, **kwargs)
            return (yield from unobserved)
        inner: Any = None
        resume: Any = None
        value: Any = None
        closing: BaseException | None = None
        try:
            inner = fn(*args, **kwargs)
            resume = inner.send
            while True:
                item = resume(value)
                call.pause()
                try:
                    value = yield item
                    resume, closing = inner.send, None
                except BaseException as thrown:  # noqa: BLE001 - the body decides, as it would undecorated
                    resume, value = inner.throw, thrown
                    closing = thrown if isinstance(thrown, GeneratorExit) else None
                call.resume()
        except StopIteration as stop:
            call.finish(stop.value, closing)
            return stop.value
        except BaseException as exc:
            call.finish(None, exc)
            if inner is not None:
                inner.close()
            raise
        finally:
            resume = value = closing = None  # an exception must not keep this frame alive in a cycle

    return wrapper


def _async_generator(fn: Any, begin: Begin, gate: Gate) -> Any:
    @functools.wraps(fn)
    async def wrapper(*args: Any, **kwargs: Any) -> AsyncGenerator[Any, Any]:
        call = (begin(args, kwargs) if gate.active else None) or _UNOBSERVED
        inner: Any = None
        resume: Any = None
        value: Any = None
        closing: BaseException | None = None
        try:
            inner = fn(*args, **kwargs)
            resume = inner.asend
            while True:
                item = await resume(value)
                call.pause()
                try:
                    value = yield item
                    resume, closing = inner.asend, None
                except BaseException as thrown:  # noqa: BLE001 - the body decides, as it would undecorated
                    resume, value = inner.athrow, thrown
                    closing = thrown if isinstance(thrown, GeneratorExit) else None
                call.resume()
        except StopAsyncIteration:
            call.finish(None, closing)
        except BaseException as exc:
            call.finish(None, exc)
            if inner is not None:
                await inner.aclose()
            raise
        finally:
            resume = value = closing = None

    return wrapper


def _invoke(bound: Any, /, *args: Any, **kwargs: Any) -> Any:
    return bound(*args, **kwargs)


def _proxy(fn: Any, begin: Begin, gate: Gate) -> Any:
    """Wrap what is no plain function in one wrapt proxy, whose calls run through the closure of their kind."""

    def begin_bound(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call | None:
        return begin(args[1:], kwargs, args[0])

    run = _closure_for(target(fn))(_invoke, begin_bound, gate)

    def enter(wrapped: Any, _instance: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        return run(wrapped, *args, **kwargs)

    return cast("Any", wrapt.FunctionWrapper)(fn, enter)
