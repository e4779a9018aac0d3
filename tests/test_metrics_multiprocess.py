"""Dead workers' metric files: merged without changing any sum, under a lock, never while the pid is in use."""

from __future__ import annotations

import fcntl
import json
import os
import struct
import tempfile
import threading
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry
from prometheus_client.mmap_dict import MmapedDict
from prometheus_client.multiprocess import MultiProcessCollector
from tests.forked import is_locked, lingering

from healthobs.config import Settings
from healthobs.exceptions import ConfigurationError
from healthobs.metrics import Metrics, multiprocess

#: Pids that no process can have (above the kernel's limit of 2**22).
DEAD = st.integers(2**22 + 1, 2**22 + 4)
SUMS = ("counter", "histogram", "summary", "gauge_sum")
KINDS = (*SUMS, "gauge_min", "gauge_max", "gauge_mostrecent")


def write(path: Path, kind: str, pid: int | str, name: str, value: float, stamp: float = 0.0) -> None:
    """Write one value as the process `pid` would; a counter adds."""
    file: Any = MmapedDict(str(path / f"{kind}_{pid}.db"))
    key = json.dumps([name, name, {"label": "x"}, "help"])
    old = file.read_value(key)[0] if kind in SUMS else 0.0
    file.write_value(key, old + value, stamp)
    file.close()


def read(path: Path) -> dict[str, float]:
    """Return every value that a scrape shows."""
    collector: Any = MultiProcessCollector
    return {
        sample.name: sample.value
        for metric in collector(CollectorRegistry(), str(path)).collect()
        for sample in metric.samples
    }


class TestBury:
    """`bury`."""

    @given(
        writes=st.lists(
            st.tuples(st.sampled_from(KINDS), DEAD, st.integers(1, 100), st.floats(1, 9)), max_size=30
        ),
        order=st.permutations(list(range(2**22 + 1, 2**22 + 5))),
    )
    def test_a_scrape_shows_the_same_before_and_after(
        self, writes: list[tuple[str, int, int, float]], order: list[int]
    ) -> None:
        """Whoever is buried, in whatever order, every value but a live gauge's stays as it was."""
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder)
            for number, (kind, pid, value, _stamp) in enumerate(writes):
                write(path, kind, pid, f"m_{kind}", float(value), 1.0 + number)
            before = read(path)
            for pid in order:
                assert multiprocess.bury(path, pid)
                assert read(path) == before
            assert {file.stem.rpartition("_")[2] for file in path.glob("*.db")} <= {"archive"}

    def test_live_gauges_die(self, tmp_path: Path) -> None:
        """What a dead worker had in flight is in flight no longer."""
        write(tmp_path, "gauge_livesum", 2**22 + 1, "active", 4.0)
        assert multiprocess.bury(tmp_path, 2**22 + 1)
        assert read(tmp_path) == {}

    def test_a_pid_in_use_is_left_alone(self, tmp_path: Path) -> None:
        """A process that has got the pid again goes on in the files; merging them would take them from it."""
        write(tmp_path, "counter", os.getpid(), "m", 1.0)
        assert not multiprocess.bury(tmp_path, os.getpid())
        assert (tmp_path / f"counter_{os.getpid()}.db").exists()

    def test_another_users_process_is_in_use(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A pid that may not be signalled is there all the same."""

        def denied(_pid: int, _signal: int) -> None:
            raise PermissionError

        monkeypatch.setattr(os, "kill", denied)
        assert not multiprocess.bury(tmp_path, 2**22 + 1)

    def test_never_during_a_scrape(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """A merge waits for the scrape's lock, and is put off when it does not come."""
        monkeypatch.setattr(multiprocess, "_MAX_WAIT_SECONDS", 0.05)
        write(tmp_path, "counter", 2**22 + 1, "m", 1.0)
        with multiprocess.reading(tmp_path):
            assert not multiprocess.bury(tmp_path, 2**22 + 1)
            assert (tmp_path / f"counter_{2**22 + 1}.db").exists()
        assert multiprocess.bury(tmp_path, 2**22 + 1)

    def test_scrapes_wait_for_a_merge(self, tmp_path: Path) -> None:
        """A scrape that meets a merge begins when it is over, so it never sees a value twice."""
        began = threading.Event()
        with (tmp_path / "lock").open("w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)

            def scrape() -> None:
                with multiprocess.reading(tmp_path):
                    began.set()

            thread = threading.Thread(target=scrape)
            thread.start()
            assert not began.wait(0.05)
        thread.join(30)
        assert began.is_set()

    def test_fork_takes_no_lock_along(self, tmp_path: Path) -> None:
        """A worker forked during a scrape does not put off merges once that is over, however long it lives."""
        with lingering() as fork:
            with multiprocess.reading(tmp_path):
                fork()
            assert not is_locked(tmp_path / "lock")


class TestReadable:
    """`readable`."""

    def test_a_file_just_made_is_left_out(self, tmp_path: Path) -> None:
        """A worker makes a file before it writes to it; a scrape in between must not fail."""
        write(tmp_path, "counter", 1, "m", 1.0)
        (tmp_path / "counter_2.db").touch()
        assert multiprocess.readable(tmp_path) == [str(tmp_path / "counter_1.db")]
        with pytest.raises(struct.error):  # the planted fault: what the reader makes of it
            read(tmp_path)


class TestWipe:
    """`wipe`."""

    def test_nothing_of_an_earlier_start_is_left(self, tmp_path: Path) -> None:
        """Files go, but for those of the process that has loaded the application already (preload)."""
        for pid in (1, 2):
            write(tmp_path, "counter", pid, "m", 1.0)
        multiprocess.note_own(tmp_path, "m")
        multiprocess.wipe(tmp_path, keep_pid=2)
        assert [file.name for file in tmp_path.glob("*.db")] == ["counter_2.db"]
        assert multiprocess.own_families(tmp_path) == {"m"}
        multiprocess.wipe(tmp_path)
        assert list(tmp_path.iterdir()) == []

    def test_makes_the_directory(self, tmp_path: Path) -> None:
        """A directory that is not there is made, with those above it, for its owner only."""
        multiprocess.wipe(tmp_path / "new" / "one")
        assert (tmp_path / "new" / "one").stat().st_mode & 0o777 == 0o700


class TestDirectory:
    """`directory`."""

    def test_one_that_is_not_there_is_refused(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Before any file is opened in it: the variable is named, its value is not."""
        monkeypatch.setenv(multiprocess.VARIABLE, str(tmp_path / "none"))
        with pytest.raises(
            ConfigurationError, match=rf"^{multiprocess.VARIABLE} names no directory"
        ) as caught:
            Metrics(Settings())
        assert "none" not in str(caught.value)

    @pytest.mark.parametrize(("value", "expected"), [("/x", Path("/x")), ("", None), (None, None)])
    def test_reads_the_environment(
        self, monkeypatch: pytest.MonkeyPatch, value: str | None, expected: Path | None
    ) -> None:
        """Unset and empty mean that this process counts alone."""
        monkeypatch.delenv(multiprocess.VARIABLE, raising=False)
        if value is not None:
            monkeypatch.setenv(multiprocess.VARIABLE, value)
        assert multiprocess.directory() == expected
