"""Arrivals recorded from i-PI 3.3.1 (zero-cost models, 16 beads or the ring polymer contraction of the examples), and
simulated ones in which advice would be wrong."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pytest

from dpserver.monitor.waves import Waves, WaveWatch, cost_of_a_batch, find_waves, is_worth_a_word

RECORDED = json.loads(Path(__file__).with_name("recorded.json").read_text())
Batch = tuple[int, float, float]  # structures, first arrival, end; s


def analyse(batches: Sequence[Batch], n_connections: int) -> Waves | None:
    watch = WaveWatch()
    for batch in batches:
        watch.add(*batch)
    return find_waves(watch.parts(), n_connections)


def simulate(sizes: Sequence[Sequence[int]], within: float = 5e-4, between: float = 5e-3) -> Iterator[Batch]:
    """Steps of several parts each; an evaluation takes 10 ms."""
    now = 0.0
    for step in sizes:
        for part in step:
            yield part, now, now + 0.01
            now += 0.01 + within
        now += between - within


def split_at_random(n_frames: int, share: float, n_steps: int = 60, seed: int = 0) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    cuts = rng.integers(1, n_frames, n_steps)
    return [[int(c), n_frames - int(c)] if rng.random() < share else [n_frames] for c in cuts]


@pytest.mark.parametrize(
    ("name", "n_frames", "is_advised"),
    [
        ("split", 16, True),
        ("latency 1e-3", 16, False),
        ("no fixed cost", 16, False),
        ("fewer connections than beads", None, False),
        ("before consolidated messages", 16, False),
        ("ring polymer contraction, split", 10, True),
        ("ring polymer contraction, 8 connections", None, False),
        ("multiple time steps", 1, False),
    ],
)
def test_recorded_runs(name, n_frames, is_advised):
    run = RECORDED[name]
    waves = analyse([(n, a / 1e3, e / 1e3) for n, a, e, _ in run["batches"]], run["connections"])
    cost = cost_of_a_batch((n * run["atoms"], s / 1e3) for n, _, _, s in run["batches"])
    assert (waves and waves.n_frames) == n_frames
    assert (waves is not None and is_worth_a_word(waves, cost)) == is_advised


@pytest.mark.parametrize("n_frames", [4, 8, 32])
@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
def test_waves_of_beads(n_frames, share):
    steps = split_at_random(n_frames, share)
    waves = analyse(list(simulate(steps)), n_frames)
    assert waves is not None
    assert waves.n_frames == n_frames
    assert waves.split == pytest.approx(sum(len(step) > 1 for step in steps) / len(steps), abs=0.05)
    assert waves.extra == waves.split
    assert waves.period == pytest.approx(0.0153 if share == 0.5 else 0.015 if share == 0 else 0.0255, rel=0.7)


def test_three_parts_are_two_evaluations_too_many():
    steps = [[1, k, 15 - k] for k in (3, 4, 5, 6, 7)] * 8
    waves = analyse(list(simulate(steps)), 16)
    assert waves is not None
    assert waves.split == 1
    assert waves.extra == 2


def test_what_arrived_before_the_last_answer_was_split_by_us():
    """The scheduler did not wait; had it waited, it would have got them all."""
    batches = []
    for k in range(60):
        now = k * 0.03
        batches += [(1 + k % 7, now, now + 0.01), (15 - k % 7, now + 0.002, now + 0.02)]
    waves = analyse(batches, 16)
    assert waves == Waves(16, 0.0, 0.0, pytest.approx(0.03))


WRONG = {
    "one bead": [[1]] * 100,
    "two systems that take turns": [[8]] * 100,
    "two systems of different size that take turns": [[8, 4]] * 60,
    "fewer beads for the second force, one after the other": [[32, 4]] * 60,
    "native batches, two a step": [[16, 16]] * 60,
}


@pytest.mark.parametrize("steps", WRONG.values(), ids=WRONG)
def test_no_advice_for_what_the_peer_means(steps):
    waves = analyse(list(simulate(steps)), 64)
    assert waves is None or not is_worth_a_word(waves, 0.01)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("n_connections", [2, 4, 8, 32])
def test_no_advice_for_simulations_that_know_nothing_of_each_other(n_connections, seed):
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, n_connections + 1, 150)
    gaps = rng.exponential(2e-3, 150)
    starts = np.cumsum(gaps + 0.01)
    waves = analyse([(int(n), t, t + 0.01) for n, t in zip(sizes, starts, strict=True)], n_connections)
    assert waves is None or not is_worth_a_word(waves, 0.01)


def test_no_advice_when_the_parts_of_a_step_are_as_far_apart_as_steps():
    steps = split_at_random(16, 1.0)
    waves = analyse(list(simulate(steps, within=5e-3, between=5e-3)), 16)
    assert waves is not None
    assert waves.split == 0


def test_too_little_to_go_by():
    assert analyse([], 8) is None
    assert analyse(list(simulate([[8]] * 29)), 8) is None
    assert analyse(list(simulate([[8]] * 30)), 8) is not None


def test_a_wave_is_not_larger_than_the_connections():
    assert analyse(list(simulate(split_at_random(16, 1.0))), 15) is None


def test_only_the_last_steps_count():
    steps = split_at_random(16, 1.0, 200) + [[16]] * 200
    waves = analyse(list(simulate(steps)), 16)
    assert waves is not None
    assert waves.split == 0


@pytest.mark.parametrize(("fixed", "per_atom"), [(0.01, 0.0), (0.01, 1e-6), (0.0, 1e-6), (0.0, 0.0)])
def test_the_fixed_cost_of_a_batch_is_the_intercept(fixed, per_atom):
    batches = [(n, fixed + per_atom * n + hiccup) for n in range(192, 3200, 192) for hiccup in (0, 0, 0, 0.5)]
    assert cost_of_a_batch(batches) == pytest.approx(fixed, abs=1e-9)


def test_the_fixed_cost_is_unknown_for_batches_of_one_size():
    assert cost_of_a_batch([]) == 0
    assert cost_of_a_batch([(192, 0.01)] * 10) == 0


def test_the_fixed_cost_is_neither_negative_nor_more_than_a_batch_takes():
    assert cost_of_a_batch([(100, 0.01), (200, 0.03)]) == 0
    assert cost_of_a_batch([(100, 0.03), (200, 0.01)]) == pytest.approx(0.01)


@pytest.mark.parametrize(
    ("split", "period", "cost", "is_worth"),
    [
        (0.5, 0.05, 0.01, True),
        (0.3, 0.05, 0.01, False),  # seldom
        (0.5, 0.05, 1e-3, False),  # cheap, in itself
        (0.5, 0.5, 0.01, False),  # cheap, beside the rest
    ],
)
def test_what_is_worth_a_word(split, period, cost, is_worth):
    assert is_worth_a_word(Waves(16, split, split, period), cost) == is_worth
