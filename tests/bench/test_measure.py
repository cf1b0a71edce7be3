"""What `dpserver bench` counts."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from types import SimpleNamespace
from typing import Any

import pytest

from dpserver.bench import measure, stages
from dpserver.errors import DeviceError
from tests import structures

FRAME = structures.cubic()


class Clock:
    """A clock that goes on when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    found = Clock()
    monkeypatch.setattr(import_module("dpserver.bench.measure"), "time", found)
    return found


def slow_at_first(clock: Clock, n_slow: int) -> Callable[[Any], dict[str, float]]:
    """What takes 1 s, but the first times, when it compiles, 100 s."""
    seconds = iter([100.0] * n_slow + [1.0] * 10)

    def run(_: Any) -> dict[str, float]:
        took = next(seconds)
        clock.now += took
        return {"edges": took}

    return run


@pytest.mark.parametrize("repeats", [1, 3])
def test_evaluations_that_compile_do_not_count(clock: Clock, repeats: int) -> None:
    """Two of them: kernels for parameters of frames are made when these come for the second time."""
    model: Any = SimpleNamespace(evaluate=slow_at_first(clock, 2))
    timing = measure(model, FRAME, repeats)
    assert (timing.least, timing.median) == (1.0, 1.0)


def test_what_does_not_fit_is_refused_in_words() -> None:
    def evaluate(_: Any) -> None:
        raise MemoryError("24 atoms take about 3 GB, and 2 GB are left")

    model: Any = SimpleNamespace(evaluate=evaluate)
    with pytest.raises(DeviceError, match=r"^24 atoms do not fit into the memory of the device: .* 2 GB are left$"):
        measure(model, FRAME, 1)


@pytest.mark.parametrize("repeats", [1, 3])
def test_stages_that_compile_do_not_count(clock: Clock, repeats: int) -> None:
    compiled = SimpleNamespace(profile=slow_at_first(clock, 1), products=lambda _: 7.0)
    model: Any = SimpleNamespace(compiled=lambda: [compiled])
    found = stages(model, FRAME, repeats)
    assert found is not None
    assert (found.seconds, found.products) == ({"edges": 1.0}, 7.0)
