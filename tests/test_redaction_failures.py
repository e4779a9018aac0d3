"""Exceptions: what is told of them, and that their text never is unless the code holds it."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from healthobs.redaction import ExceptionFacts, describe_exception, failures
from healthobs.redaction.failures import _raised_literal

NEEDLE = "078-05-1120"


class DomainError(Exception):
    """An exception of an application."""


class Slotted(Exception):
    """An exception that refuses attributes."""

    def __getattribute__(self, name: str) -> Any:
        if name == "__dict__":
            raise RuntimeError(NEEDLE)
        return super().__getattribute__(name)


def literal(_value: str) -> None:
    raise DomainError("card expired")


def literal_from(value: str) -> None:
    try:
        int(value)
    except ValueError as exc:
        raise DomainError("not a number") from exc


def literal_from_none(value: str) -> None:
    try:
        int(value)
    except ValueError:
        raise DomainError("not a number") from None


def formatted(value: str) -> None:
    raise DomainError(f"bad {value}")


def concatenated(value: str) -> None:
    raise DomainError("bad " + value)


def passed_through(value: str) -> None:
    raise DomainError(value)


def equal_to_a_constant(value: str) -> None:
    if value == "078-05-1120":
        raise DomainError(value)


def two_arguments(value: str) -> None:
    raise DomainError("bad", value)


def called_with_a_list(value: str) -> None:
    raise DomainError(*["card expired"])


def chosen_by_an_index(value: str) -> None:
    raise (DomainError("card expired"), DomainError(value))[0]


def key_error(_value: str) -> None:
    raise KeyError("078-05-1120")


def looked_up(value: str) -> None:
    {}[value]  # type: ignore[index]


def converted(value: str) -> None:
    int(value)


def keyword(value: str) -> None:
    raise UnicodeDecodeError("utf-8", value.encode(), 0, 1, "bad")


def built_first(_value: str) -> None:
    exc = DomainError("card expired")
    raise exc


def bare_type(_value: str) -> None:
    raise DomainError


def asserted(value: str) -> None:
    assert value == "", value


def in_a_comprehension(value: str) -> None:
    [int(one) for one in [value]]


LITERAL = [(literal, "card expired"), (literal_from, "not a number"), (literal_from_none, "not a number")]
NEVER = [
    formatted, concatenated, passed_through, equal_to_a_constant, two_arguments, key_error, called_with_a_list, chosen_by_an_index, looked_up, converted,
    keyword, built_first, bare_type, asserted, in_a_comprehension,
]  # fmt: skip


def facts_of(function: Callable[[str], None], value: str = NEEDLE) -> ExceptionFacts:
    try:
        function(value)
    except Exception as exc:  # noqa: BLE001
        return describe_exception(exc)
    raise AssertionError("nothing was raised")


class TestMessage:
    """The message passes only when it is a literal of the `raise`."""

    @pytest.mark.parametrize(("function", "message"), LITERAL)
    def test_a_literal_of_the_raise_passes(self, function: Callable[[str], None], message: str) -> None:
        """What the programmer wrote holds no data."""
        assert facts_of(function).message == message

    @pytest.mark.parametrize("function", NEVER)
    def test_anything_else_never_passes(self, function: Callable[[str], None]) -> None:
        """Formatted, passed on, looked up, or made by the interpreter: the text may be data."""
        assert facts_of(function).message is None

    def test_an_exception_that_was_not_raised_has_none(self) -> None:
        """Without a traceback nothing shows where the text came from."""
        assert describe_exception(DomainError("card expired")).message is None

    def test_a_cause_made_on_the_spot_is_not_understood(self) -> None:
        """Where the byte code is not the plain form, the message is dropped."""

        def odd(value: str) -> None:
            raise DomainError("card expired") from ValueError(value)

        assert facts_of(odd).message is None

    def test_a_foreign_offset_is_not_understood(self) -> None:
        """A traceback that does not fit its code gives no message."""
        assert _raised_literal(literal.__code__, 99_999) is None

    def test_a_reraised_literal_still_passes(self) -> None:
        """The raise that made it counts, not the one that passed it on."""

        def reraise(value: str) -> None:
            try:
                literal(value)
            except DomainError:
                raise

        assert facts_of(reraise).message == "card expired"

    def test_replaced_arguments_do_not_pass(self) -> None:
        """Code between raise and report may put data into `args`."""

        def replace(value: str) -> None:
            try:
                literal(value)
            except DomainError as exc:
                exc.args = (value,)
                raise

        assert facts_of(replace).message is None


class TestDescribeException:
    """`describe_exception`: type, places, fingerprint, id."""

    def test_frames_name_module_function_and_line(self) -> None:
        """No source line and no local variable."""
        facts = facts_of(literal)
        assert [re.sub(r":\d+$", "", frame).rpartition(":")[2] for frame in facts.frames] == [
            "facts_of",
            "literal",
        ]
        assert facts.frames[-1].endswith(f":{literal.__code__.co_firstlineno + 1}")

    def test_the_type_is_qualified_except_for_builtins(self) -> None:
        """As the semantic conventions ask for `exception.type`."""
        assert facts_of(converted).type == "ValueError"
        assert facts_of(literal).type == f"{__name__}.DomainError"

    def test_a_type_named_after_data_is_masked(self) -> None:
        """A class made at run time may carry anything in its name."""
        odd = type(f"x {NEEDLE}", (Exception,), {})
        assert describe_exception(odd()).type == "[PHI:type]"

    def test_causes_are_types_only(self) -> None:
        """The chain is told without its texts."""
        assert facts_of(literal_from).causes == ("ValueError",)
        assert facts_of(literal_from_none).causes == ()

    def test_members_of_a_group_are_told(self) -> None:
        """Groups within groups are searched, each member once."""
        same = ValueError(NEEDLE)
        group = ExceptionGroup(NEEDLE, [same, ExceptionGroup("x", [same, KeyError(NEEDLE)])])
        group.__cause__ = same
        assert describe_exception(group).causes == ("ValueError", "ExceptionGroup", "KeyError")

    def test_many_members_are_cut(self) -> None:
        """The number of causes is bounded."""
        group = ExceptionGroup("x", [ValueError(str(n)) for n in range(100)])
        assert len(describe_exception(group).causes) == 8

    def test_a_cycle_of_causes_ends(self) -> None:
        """Two exceptions that caused each other."""
        first, second = ValueError(), KeyError()
        first.__cause__, second.__cause__ = second, first
        assert describe_exception(first).causes == ("KeyError",)

    def test_deep_recursion_keeps_the_innermost_frames(self) -> None:
        """Twenty frames are enough to find the place."""

        def dive(depth: int) -> None:
            if not depth:
                literal("")
            dive(depth - 1)

        facts = facts_of(lambda _value: dive(100))
        assert len(facts.frames) == 20
        assert ":literal:" in facts.frames[-1]

    def test_the_fingerprint_groups_by_place_not_by_data(self) -> None:
        """Two failures at one place are one problem."""
        first, second = facts_of(converted, NEEDLE), facts_of(converted, "987-65-4321")
        assert first.fingerprint == second.fingerprint
        assert first.fingerprint != facts_of(literal).fingerprint
        assert re.fullmatch("[0-9a-f]{16}", first.fingerprint)

    def test_one_exception_has_one_id(self) -> None:
        """Span, log line and answer name the same failure."""
        exc = ValueError()
        assert describe_exception(exc).error_id == describe_exception(exc).error_id
        assert describe_exception(exc).error_id != describe_exception(ValueError()).error_id

    def test_an_exception_without_attributes_is_described_too(self) -> None:
        """Its id is then new each time."""
        exc = Slotted(NEEDLE)
        assert re.fullmatch("[0-9a-f]{32}", describe_exception(exc).error_id)
        assert NEEDLE not in repr(describe_exception(exc))

    @given(st.text(min_size=3), st.sampled_from(NEVER))
    def test_no_data_in_any_fact(self, value: str, function: Callable[[str], None]) -> None:
        """Runs that differ only in data give the same facts, the id aside (non-interference)."""
        try:
            first, second = facts_of(function, f"<{value}>"), facts_of(function, f"<{value}!>")
        except AssertionError:
            return
        assert (first.type, first.frames, first.fingerprint, first.message, first.causes) == (
            second.type, second.frames, second.fingerprint, second.message, second.causes,
        )  # fmt: skip

    def test_notes_and_groups_do_not_leak(self) -> None:
        """Notes, causes' texts and members' texts are never told."""
        try:
            try:
                int(NEEDLE)
            except ValueError as exc:
                exc.add_note(NEEDLE)
                raise ExceptionGroup(f"g {NEEDLE}", [exc, KeyError(NEEDLE)]) from exc
        except ExceptionGroup as group:
            group.add_note(NEEDLE)
            facts = describe_exception(group)
        assert NEEDLE not in repr(facts)


class TestWhatMutantsShowed:
    """Rules that no test held until a planted fault survived."""

    def test_the_context_is_a_cause(self) -> None:
        """An exception raised while another was handled names that one, without `from`."""

        def implicit(_: str) -> None:
            try:
                int(NEEDLE)
            except ValueError:
                raise KeyError(NEEDLE)  # noqa: B904

        assert facts_of(implicit).causes == ("ValueError",)

    def test_the_same_type_elsewhere_is_another_problem(self) -> None:
        """The fingerprint holds the place, not only the type."""

        def here(value: str) -> None:
            int(value)

        def there(value: str) -> None:
            int(value)

        assert facts_of(here, NEEDLE).type == facts_of(there, NEEDLE).type
        assert facts_of(here, NEEDLE).fingerprint != facts_of(there, NEEDLE).fingerprint

    def test_code_of_no_module_is_named_so(self) -> None:
        """Code run with bare globals has no module's name: a question mark stands for it."""
        with pytest.raises(ZeroDivisionError) as caught:
            exec("def bare():\n    1 / 0\nbare()", {})
        assert describe_exception(caught.value).frames[-1] == "?:bare:2"


class TestDepth:
    """A traceback of many frames."""

    def test_the_innermost_stay(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """What raised is told, not who began."""
        monkeypatch.setattr(failures, "_MAX_FRAMES", 2)

        def third() -> None:
            raise LookupError

        def second() -> None:
            third()

        def first() -> None:
            second()

        with pytest.raises(LookupError) as caught:
            first()
        frames = describe_exception(caught.value).frames
        assert [frame.split(":")[1].rpartition(".")[2] for frame in frames] == ["second", "third"]
