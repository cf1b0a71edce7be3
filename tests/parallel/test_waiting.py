from __future__ import annotations

from itertools import pairwise

import pytest

from dpserver.errors import DeviceError
from dpserver.parallel.waiting import Patience


class Time:
    """A clock that only sleeping and looking move."""

    def __init__(self) -> None:
        self.now = 0.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        self.now += 1e-6
        return self.now

    def sleep(self, seconds: float) -> None:
        self.pauses.append(seconds)
        self.now += seconds


def patience(time: Time, **options) -> Patience:
    return Patience(clock=time.clock, sleep=time.sleep, **options)


def test_what_is_there_is_not_waited_for():
    time = Time()
    patience(time).until(lambda: True)
    assert not time.pauses
    assert not time.now


def test_it_looks_without_a_pause_first_and_then_ever_more_rarely():
    time = Time()
    patience(time).until(lambda: time.now > 0.5)
    assert time.pauses[0] == pytest.approx(5e-5)
    assert all(a <= b for a, b in pairwise(time.pauses))
    assert time.pauses[-1] == Patience.longest
    assert time.now - 0.5 < 1.1e-3


@pytest.mark.parametrize("at", [1e-4, 1e-3, 1e-2, 0.3])
def test_it_is_late_by_a_share_of_the_time_waited_and_never_by_a_millisecond(at):
    time = Time()
    patience(time).until(lambda: time.now >= at)
    assert time.now - at <= min(1.1e-3, max(1e-4, 0.03 * at))


def test_all_are_waited_for():
    time = Time()
    patience(time).until_all([lambda: time.now > 0.1, lambda: time.now > 0.02, lambda: time.now > 0.2])
    assert 0.2 < time.now < 0.202


def test_it_ends_where_there_is_nothing_to_wait_for():
    def check() -> None:
        raise DeviceError("rank 3 is gone")

    with pytest.raises(DeviceError, match="rank 3"):
        patience(Time(), check=check).until(lambda: False)
