"""Reads of the trail: filters, pages and cursors."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tests.audit_trails import READ, MakeTrail, _damage, leaves

from healthobs.audit import open_trail, reading
from healthobs.audit.trail import AuditTrail
from healthobs.clock import Clock
from healthobs.exceptions import AuditError

#: Few values per field, so that filters match something.
DRAFTS = st.fixed_dictionaries(
    {"action": st.sampled_from(["a.read", "a.write"])},
    optional={
        "actor": st.sampled_from(["x", "y"]),
        "subject": st.sampled_from(["s", "t", "'"]),
        "resource_id": st.sampled_from(["r", "q"]),
        "trace_id": st.sampled_from(["1" * 32, "2" * 32]),
    },
)


PATHS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "actor": lambda body: body["actor"]["id"],
    "action": lambda body: body["action"],
    "subject": lambda body: body["subject"],
    "resource_id": lambda body: body["resource"]["id"],
    "trace_id": lambda body: body["trace_id"],
}


class TestRead:
    """Filters and pages."""

    @given(
        drafts=st.lists(DRAFTS, min_size=20, max_size=20),
        filters=st.fixed_dictionaries(
            {},
            optional={
                "actor": st.sampled_from(["x", "y", "none"]),
                "action": st.sampled_from(["a.read", "a.write"]),
                "subject": st.sampled_from(["s", "'", "%"]),
                "resource_id": st.sampled_from(["r", "q"]),
                "trace_id": st.just("1" * 32),
                "start": st.integers(0, 24),
                "end": st.integers(0, 24),
            },
        ),
        limit=st.integers(1, 25),
        window=st.integers(1, 30),
    )
    @settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
    def test_is_what_a_list_would_say(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        drafts: list[dict[str, Any]],
        filters: dict[str, Any],
        limit: int,
        window: int,
    ) -> None:
        """Paging through any filter gives exactly the matching entries, newest first, and their number."""
        path = tmp_path_factory.mktemp("model") / "audit.db"
        seconds = iter(range(1_000))
        trail = open_trail(f"sqlite:///{path}", service="s", clock=Clock(lambda: next(seconds) * 10**9))
        for draft in drafts:
            trail.append(draft)
        trail.close()
        moments = {name: filters.pop(name) for name in ("start", "end") if name in filters}
        everything = [{**draft, "second": second, "index": second} for second, draft in enumerate(drafts)]
        expected = [
            item["index"]
            for item in reversed(everything)
            if all(item.get(name) == value for name, value in filters.items())
            and moments.get("start", 0) <= item["second"] < moments.get("end", 10**6)
        ]
        times = {name: datetime.fromtimestamp(value, UTC) for name, value in moments.items()}
        found, cursor, pages = [], None, 0
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(reading, "_WINDOW", window)
            while True:
                page = trail.read(**filters, **times, limit=limit, cursor=cursor)
                assert page.total == len(expected)
                found += page.entries
                cursor, pages = page.next_cursor, pages + 1
                if cursor is None:
                    break
        assert [body["index"] for body in found] == expected
        assert pages == max(1, -(-len(expected) // limit))
        assert all(PATHS[name](body) == value for body in found for name, value in filters.items())

    def test_entry_has_index_and_hash(self, trail: AuditTrail) -> None:
        """An entry on a page is its body, with position and leaf."""
        trail.append(READ)
        (entry,) = trail.read().entries
        assert (entry["index"], entry["hash"]) == (0, leaves(trail.path)[0].hex())
        assert entry["action"] == "patient.read"

    def test_paging_is_stable_while_entries_come(self, trail: AuditTrail) -> None:
        """Entries that come between two pages are on neither."""
        for _ in range(4):
            trail.append(READ)
        first = trail.read(limit=2)
        trail.append(READ)
        second = trail.read(limit=2, cursor=first.next_cursor)
        assert [entry["index"] for entry in first.entries + second.entries] == [3, 2, 1, 0]
        assert (second.next_cursor, second.total) == (None, 5)

    def test_empty(self, trail: AuditTrail) -> None:
        """A log without entries has one empty page."""
        page = trail.read()
        assert (page.entries, page.next_cursor, page.total) == ([], None, 0)

    def test_times_as_text(self, make_trail: MakeTrail) -> None:
        """RFC 3339 text in any zone, or without one, bounds the time: start included, end not."""
        trail = make_trail(clock=Clock(lambda: 3_600 * 10**9))
        trail.append(READ)
        assert trail.read(start="1970-01-01T01:00:00Z").total == 1
        assert trail.read(start="1970-01-01T02:00:00+01:00", end="1970-01-01T01:00:00.000001").total == 1
        assert trail.read(end=datetime(1970, 1, 1, 1, tzinfo=UTC)).total == 0

    @pytest.mark.parametrize(
        "wrong",
        [
            {"limit": 0},
            {"limit": 1001},
            {"cursor": ""},
            {"cursor": "-1"},
            {"cursor": "\u0661"},
            {"cursor": str(2**63)},
            {"cursor": "0" * 20},
            {"start": "yesterday"},
            {"end": "tomorrow"},
        ],
    )
    def test_bad_arguments(self, trail: AuditTrail, wrong: dict[str, Any]) -> None:
        """A bad limit, cursor or time is named, never echoed."""
        with pytest.raises(ValueError, match=next(iter(wrong))) as caught:
            trail.read(**wrong)
        assert "yesterday" not in str(caught.value)

    def test_times_beyond_utc(self, trail: AuditTrail) -> None:
        """The ends of the calendar in a far zone are the ends of time."""
        trail.append(READ)
        assert trail.read(start="0001-01-01T00:00:00+23:59", end="9999-12-31T23:59:59-23:59").total == 1
        assert trail.read(end="0001-01-01T00:00:00+23:59").total == 0

    def test_hostile_filter_values(self, trail: AuditTrail) -> None:
        """Quotes, wildcards and lone surrogates are only characters."""
        trail.append({**READ, "actor": "' OR 1=1 --"})
        assert trail.read(actor="' OR 1=1 --").total == 1
        assert [trail.read(actor=value).total for value in ("%", "\ud800", "\x00", "")] == [0, 0, 0, 0]

    def test_tampered_body_is_shown_as_such(self, trail: AuditTrail) -> None:
        """A body that is not what was recorded is not shown, but hides neither itself nor the others."""
        for _ in range(4):
            trail.append(READ)
        _damage(
            trail.path,
            "UPDATE entry SET body = '{' WHERE idx = 0",
            "UPDATE entry SET body = NULL WHERE idx = 1",
            "UPDATE entry SET body = '[]' WHERE idx = 2",
        )
        page = trail.read()
        assert [entry.get("unreadable") for entry in page.entries] == [None, True, True, True]
        assert all(entry["hash"] for entry in page.entries)
        assert trail.read(action="patient.read").total == 1

    def test_missing_entry_is_shown_as_such(self, trail: AuditTrail) -> None:
        """A deleted entry leaves a visible hole."""
        trail.append(READ)
        trail.append(READ)
        _damage(trail.path, "DELETE FROM entry WHERE idx = 0")
        shown = {"time": None, "action": None, "outcome": None, "unreadable": True}
        assert trail.read().entries[1] == {**shown, "index": 0, "hash": None}

    @pytest.mark.timeout(20)
    def test_entry_filed_far_behind_the_others(self, trail: AuditTrail) -> None:
        """A planted index beyond all others keeps no search from its end, at which the others are found."""
        for _ in range(3):
            trail.append(READ)
        for far in (2**61, 2**63 - 2):
            _damage(trail.path, f"INSERT INTO entry SELECT {far}, leaf, body FROM entry WHERE idx = 1")
        page = trail.read(action=READ["action"], limit=1)
        assert ([entry["index"] for entry in page.entries], page.total) == ([2**63 - 2], 5)
        page = trail.read(action=READ["action"], cursor=page.next_cursor)
        assert [entry["index"] for entry in page.entries] == [2**61, 2, 1, 0]

    def test_unreadable_store(self, trail: AuditTrail) -> None:
        """A store that is gone is an AuditError."""
        trail.path.unlink()
        with pytest.raises(AuditError, match="cannot be used"):
            trail.read()
