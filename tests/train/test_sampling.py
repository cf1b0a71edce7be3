"""The order of batches."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from dpserver.errors import ConfigError, DataError
from dpserver.train.data import join
from dpserver.train.data_config import DataConfig
from dpserver.train.sampling import BatchSampler
from tests.train.datasets import system


def config(**options: Any) -> DataConfig:
    return DataConfig.model_validate({"systems": "data", **options})


def test_an_epoch_has_every_frame_once() -> None:
    sampler = BatchSampler([system(10)], config(batch_size=4), seed=1)
    epochs = [[next(sampler) for _ in range(3)] for _ in range(3)]
    for epoch in epochs:
        assert [len(b.frames) for b in epoch] == [4, 4, 2]
        assert sorted(np.concatenate([b.frames for b in epoch]).tolist()) == list(range(10))
    assert epochs[0][0].frames.tolist() != epochs[1][0].frames.tolist()


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [("auto", [11, 4]), ("auto:100", [20, 10]), (3, [3, 3]), ([5, 1], [5, 1]), ("auto:1", [1, 1]), (99, [20, 10])],
)
def test_batch_sizes(batch_size: object, expected: list[int]) -> None:
    systems = [system(20, 3), system(10, 8)]
    assert BatchSampler(systems, config(batch_size=batch_size), seed=1).batch_sizes == expected


def test_auto_batch_of_frames_of_different_size_goes_by_their_mean() -> None:
    ragged = join([system(10, 2), system(10, 6)])
    assert BatchSampler([ragged], config(), seed=1).batch_sizes == [8]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.25]),
        ({"auto_prob": "prob_uniform"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"sys_probs": [1, 3, 0]}, [0.25, 0.75, 0.0]),
        ({"auto_prob": "prob_sys_size;0:1:3;1:3:1"}, [0.75, 0.125, 0.125]),
        ({"auto_prob": "prob_sys_size;1:3:1"}, [0.0, 0.5, 0.5]),
    ],
)
def test_probabilities(options: dict[str, Any], expected: list[float]) -> None:
    systems = [system(20), system(10), system(10)]
    sampler = BatchSampler(systems, config(batch_size=2, **options), seed=1)
    np.testing.assert_allclose(sampler.probabilities, expected, rtol=1e-15)
    drawn = Counter(next(sampler).system for _ in range(2000))
    np.testing.assert_allclose([drawn[k] / 2000 for k in range(3)], expected, atol=0.05)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": [1, 2, 3]}, "batch_size: needs one number for each of the 2 systems found, got 3"),
        ({"sys_probs": [1.0]}, "sys_probs: needs one number for each of the 2 systems found, got 1"),
        ({"sys_probs": [0.0, 0.0]}, "sys_probs: all probabilities are 0"),
        ({"auto_prob": "prob_sys_size;0:3:1"}, "auto_prob: the block 0:3 ends beyond the 2 systems found"),
    ],
)
def test_configuration_that_does_not_fit(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        BatchSampler([system(2), system(2)], config(**options), seed=1)


def draw(sampler: BatchSampler, n: int) -> list[tuple[int, list[int]]]:
    return [(b.system, b.frames.tolist()) for b, _ in zip(sampler, range(n), strict=False)]


def test_same_seed_same_batches() -> None:
    systems = [system(10), system(6)]
    first, same, other = (BatchSampler(systems, config(batch_size=4), seed=s) for s in (7, 7, 8))
    batches = draw(first, 30)
    assert draw(same, 30) == batches
    assert draw(other, 30) != batches


def test_without_a_seed_every_sampler_differs_but_can_be_repeated() -> None:
    systems = [system(50)]
    a, b = (BatchSampler(systems, config(batch_size=5)) for _ in range(2))
    assert a.seed != b.seed
    assert draw(BatchSampler(systems, config(batch_size=5), a.seed), 20) == draw(a, 20)


@pytest.mark.parametrize("n_before", [0, 1, 7, 40])
def test_restored_state_continues(n_before: int) -> None:
    systems = [system(10), system(7, 5)]
    whole = BatchSampler(systems, config(batch_size=3), seed=5)
    draw(whole, n_before)
    state = json.loads(json.dumps(whole.state_dict()))
    restored = BatchSampler(systems, config(batch_size=3), seed=99)
    draw(restored, 3)
    restored.load_state_dict(state)
    assert draw(restored, 30) == draw(whole, 30)


def test_state_of_other_data_is_refused() -> None:
    state = BatchSampler([system(10)], config(batch_size=3), seed=5).state_dict()
    with pytest.raises(DataError, match=r"n_frames was \[10\], now is \[11\]"):
        BatchSampler([system(11)], config(batch_size=3), seed=5).load_state_dict(state)
    with pytest.raises(DataError, match=r"batch_sizes was \[3\], now is \[2\]"):
        BatchSampler([system(10)], config(batch_size=2), seed=5).load_state_dict(state)
