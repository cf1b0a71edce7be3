"""When cutting a structure anew is worth while."""

from __future__ import annotations

import numpy as np

from dpserver.parallel.load import Load


def record(load: Load, seconds: list[float], steps: int = 8, noise: float = 0.0) -> bool:
    rng = np.random.default_rng(0)
    for _ in range(steps):
        load.record(np.array(seconds) * (1 + noise * rng.random(len(seconds))))
    return load.has_drifted


def test_equal_times_are_no_reason_to_cut() -> None:
    load = Load()
    assert not load.has_drifted
    assert load.imbalance == 0.0
    assert not record(load, [1.0, 1.05, 1.0, 0.95], steps=30, noise=0.02)
    assert load.imbalance < 0.08


def test_a_slow_part_is_one_after_some_steps() -> None:
    load = Load()
    assert not record(load, [1.0, 1.0, 1.3], steps=7)
    assert record(load, [1.0, 1.0, 1.3], steps=1)
    np.testing.assert_allclose(load.seconds, [1.0, 1.0, 1.3])


def test_a_single_slow_step_is_not() -> None:
    load = Load()
    record(load, [1.0, 1.0])
    assert not record(load, [1.0, 9.0], steps=1)
    assert not record(load, [1.0, 1.0], steps=5)


def test_parts_without_atoms_do_not_count() -> None:
    load = Load()
    assert not record(load, [1.0, 0.0, 1.0, 0.0])
    assert load.imbalance == 0.0
    assert not record(Load(), [0.0, 0.0])


def test_what_cutting_cannot_mend_is_no_reason_to_cut_again() -> None:
    load = Load()
    assert record(load, [1.0, 1.0, 1.5])
    load.restart(has_moved_cuts=True)
    assert not record(load, [1.0, 1.0, 1.5])
    assert not record(load, [1.0, 1.0, 1.5], steps=100)
    load.restart(has_moved_cuts=False)  # atoms have moved
    assert not record(load, [1.0, 1.0, 1.5])
    assert record(load, [1.0, 1.0, 2.2])
    load.restart(has_moved_cuts=True)
    assert not record(load, [1.0, 1.0, 1.02])
    assert record(load, [1.0, 1.0, 1.3])  # what had been unavoidable is no longer
