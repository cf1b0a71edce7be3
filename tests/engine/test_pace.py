from __future__ import annotations

import numpy as np
import pytest

from dpserver.engine.pace import GAPS, Cost, Gaps


def test_nothing_is_known_at_first():
    assert Cost().seconds(100) is None
    assert Gaps().mean is None


def test_one_size_says_only_how_long_that_size_takes():
    cost = Cost()
    for _ in range(3):
        cost.add(6144, 0.024)
    assert cost.seconds(6144) == pytest.approx(0.024)
    assert cost.seconds(192) == pytest.approx(0.024 / 32)


def test_two_sizes_show_the_fixed_part_and_it_is_remembered():
    cost = Cost()
    cost.add(192, 0.0056)
    cost.add(6144, 0.0234)
    for _ in range(500):
        assert cost.seconds(192) == pytest.approx(0.0056, rel=1e-3)
        assert cost.seconds(12288) == pytest.approx(0.0418, rel=1e-2)
        cost.add(6144, 0.0234)


def test_noise_never_makes_more_atoms_cheaper_or_few_atoms_free():
    rng = np.random.default_rng(1)
    for _ in range(100):
        cost = Cost()
        for n_atoms in rng.integers(1, 1000, 5):
            cost.add(int(n_atoms), float(rng.exponential()))
        seconds = [cost.seconds(n) for n in (0, 1, 10, 100, 1000)]
        assert seconds[0] >= -1e-12
        assert seconds == sorted(seconds)


def test_batches_that_all_take_the_same_promise_nothing_of_a_much_larger_one():
    cost = Cost()
    assert cost.at_most(1) is None
    cost.add(20, 1e-3)
    cost.add(24, 1e-3)
    assert cost.seconds(300_000) == pytest.approx(1e-3)  # the slope says so
    assert cost.at_most(300_000) > 10
    assert cost.at_most(44) == pytest.approx(2e-3, rel=0.01)
    assert cost.at_most(20) == pytest.approx(1e-3)


def test_caution_never_asks_for_less_and_more_atoms_never_take_less():
    rng = np.random.default_rng(2)
    for _ in range(100):
        cost = Cost()
        for n_atoms in rng.integers(1, 1000, 5):
            cost.add(int(n_atoms), float(rng.exponential()))
        bounds = [cost.at_most(n) for n in (0, 1, 10, 100, 1000, 10_000)]
        assert bounds == sorted(bounds)
        assert all(cost.at_most(n) >= cost.seconds(n) * (1 - 1e-12) for n in (1, 10, 100, 1000, 10_000))


def test_what_has_changed_is_learnt():
    cost = Cost()
    for seconds in (1.0, 0.1):
        for _ in range(50):
            cost.add(1000, seconds)
    assert cost.seconds(1000) == pytest.approx(0.1, rel=0.1)


def test_the_first_gaps_are_averaged_and_old_ones_fade():
    gaps = Gaps()
    for seconds in (1e-4, 3e-4, 2e-4):
        gaps.add(seconds)
    assert gaps.mean == pytest.approx(2e-4)
    for _ in range(5 * GAPS):
        gaps.add(5e-4)
    assert gaps.mean == pytest.approx(5e-4, rel=0.01)
