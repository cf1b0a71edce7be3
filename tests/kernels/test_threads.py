from __future__ import annotations

import gc
import threading
import time

import pytest

from dpserver.errors import ConfigError
from dpserver.kernels import threads as module
from dpserver.kernels.threads import Threads, available_cores
from tests.patience import PATIENCE


def test_every_thread_runs_the_job_once_and_at_the_same_time() -> None:
    barrier = threading.Barrier(4)
    seen: list[tuple[int, int]] = []

    def job(number: int) -> None:
        barrier.wait(PATIENCE)
        seen.append((number, threading.get_ident()))

    threads = Threads(4)
    for _ in range(3):
        seen.clear()
        threads.run(job)
        assert sorted(number for number, _ in seen) == [0, 1, 2, 3]
        assert len({ident for _, ident in seen}) == 4
        assert dict(seen)[0] == threading.get_ident()


def test_one_thread_is_the_caller() -> None:
    before = threading.active_count()
    threads = Threads(1)
    assert threading.active_count() == before
    found: list[int] = []
    threads.run(found.append)
    assert found == [0]


@pytest.mark.parametrize("bad", [0, 2])
def test_an_error_is_raised_after_all_are_done(bad: int) -> None:
    done: list[int] = []

    def job(number: int) -> None:
        if number == bad:
            raise ValueError(f"thread {number}")
        time.sleep(0.01)
        done.append(number)

    threads = Threads(3)
    with pytest.raises(ValueError, match=f"thread {bad}"):
        threads.run(job)
    assert sorted(done) == sorted({0, 1, 2} - {bad})
    threads.run(done.append)
    assert len(done) == 5


def test_threads_end_with_their_pool() -> None:
    before = set(threading.enumerate())
    threads = Threads(3)
    mine = set(threading.enumerate()) - before
    assert len(mine) == 2
    del threads
    gc.collect()
    for thread in mine:
        thread.join(PATIENCE)
        assert not thread.is_alive()


def test_number_of_threads() -> None:
    assert Threads().count == available_cores() >= 1
    with pytest.raises(ConfigError, match="must be at least 1, got 0"):
        Threads(0)


@pytest.mark.parametrize(("cores", "most"), [(1, 256), (2, 256), (100, 400)])
def test_far_more_threads_than_cores_are_refused(monkeypatch: pytest.MonkeyPatch, cores: int, most: int) -> None:
    monkeypatch.setattr(module, "available_cores", lambda: cores)
    module.check_count(most)
    before = threading.active_count()
    with pytest.raises(ConfigError, match=f"must be at most {most}, got {most + 1}; this process may use {cores} core"):
        Threads(most + 1)
    assert threading.active_count() == before
