import math

import pytest

from dpserver.errors import ConfigError
from dpserver.models.section import Section, parse
from dpserver.train.learning_rate import ExponentialDecay, LearningRateConfig

N = 1000


class Whole(Section):
    learning_rate: LearningRateConfig = ExponentialDecay()


def schedule(**options):
    return parse(Whole, {"learning_rate": options}).learning_rate


def test_the_usual_one_is_exponential():
    assert isinstance(schedule(), ExponentialDecay)
    assert isinstance(schedule(start_lr=1e-2), ExponentialDecay)


def test_cosine():
    lr = schedule(type="cosine", start_lr=2e-3, stop_lr=1e-5)
    assert lr.at(0, N) == 2e-3
    for step in (1, 250, 999):
        # half a wave between the two, by the identity cos²(x/2) = (1 + cos x)/2
        expected = 1e-5 + (2e-3 - 1e-5) * math.cos(math.pi * step / N / 2) ** 2
        assert lr.at(step, N) == pytest.approx(expected, rel=1e-12)
    assert lr.at(N, N) == pytest.approx(1e-5)
    assert lr.at(2 * N, N) == pytest.approx(1e-5)


@pytest.mark.parametrize("decay_type", ["inverse_linear", "cosine", "linear"])
def test_stable_then_decay(decay_type):
    lr = schedule(type="wsd", start_lr=1e-3, stop_lr=1e-5, decay_phase_ratio=0.25, decay_type=decay_type)
    assert {lr.at(step, N) for step in range(0, 750, 50)} == {1e-3}
    assert lr.at(750, N) == pytest.approx(1e-3)
    halfway = {
        "inverse_linear": 2 / (1 / 1e-3 + 1 / 1e-5),  # the harmonic mean
        "cosine": (1e-3 + 1e-5) / 2,
        "linear": (1e-3 + 1e-5) / 2,
    }
    assert lr.at(875, N) == pytest.approx(halfway[decay_type], rel=1e-12)
    assert lr.at(N, N) == pytest.approx(1e-5, rel=1e-12)


def test_a_quarter_of_a_cosine_is_not_that_of_a_line():
    options = {"type": "wsd", "stop_lr": 1e-5, "decay_phase_ratio": 1.0}
    cosine, linear = (schedule(**options, decay_type=kind) for kind in ("cosine", "linear"))
    assert cosine.at(250, N) == pytest.approx(1e-5 + (1e-3 - 1e-5) * (1 + math.sqrt(0.5)) / 2, rel=1e-12)
    assert linear.at(250, N) == pytest.approx(1e-3 - (1e-3 - 1e-5) / 4, rel=1e-12)


@pytest.mark.parametrize("kind", ["exp", "cosine", "wsd"])
def test_the_warm_up_is_a_line_and_the_rest_starts_after_it(kind):
    lr = schedule(type=kind, start_lr=1e-3, stop_lr=1e-6, warmup_steps=100, warmup_start_factor=0.2)
    assert lr.at(0, N) == pytest.approx(2e-4)
    assert lr.at(50, N) == pytest.approx(6e-4)
    assert lr.at(100, N) == pytest.approx(1e-3)
    assert lr.at(N, N) == pytest.approx(1e-6, rel=1e-9)
    cold = schedule(type=kind, start_lr=1e-3, stop_lr=1e-6)
    if kind != "wsd":
        assert lr.at(600, N) == pytest.approx(cold.at(500, N - 100), rel=1e-12)


def test_the_warm_up_as_a_part():
    lr = schedule(warmup_ratio=0.1, stop_lr=1e-6)
    assert lr.warmup(1234) == 123
    assert lr.at(0, N) == 0.0
    assert lr.at(100, N) == 1e-3


def test_a_warm_up_must_leave_something():
    with pytest.raises(ConfigError, match=r"warmup_steps: must be smaller than the 50 steps .* got 100"):
        schedule(warmup_steps=100).at(0, 50)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"type": "step"}, "learning_rate.type: supported are 'exp', 'cosine', 'wsd'; got \"step\""),
        ({"type": "cosine", "decay_steps": 3}, "learning_rate.decay_steps: unknown key"),
        ({"type": "wsd", "stop_lr": 0}, "learning_rate.stop_lr: must be greater than 0 with the type wsd"),
        ({"type": "wsd", "decay_phase_ratio": 1.5}, "learning_rate.decay_phase_ratio: input should be less than"),
        ({"warmup_steps": 3, "warmup_ratio": 0.1}, "learning_rate.warmup_ratio: says the same as warmup_steps"),
        ({"stop_lr": 1.0}, "learning_rate.stop_lr: must not exceed start_lr"),
        ({"warmup_ratio": 1.0}, "learning_rate.warmup_ratio: input should be less than 1"),
        ({"start_lr": "1e-3"}, "learning_rate.start_lr: input should be a valid number"),
        (3, "learning_rate: "),
    ],
)
def test_refuses(options, expected):
    with pytest.raises(ConfigError) as error:
        parse(Whole, {"learning_rate": options})
    assert str(error.value).startswith(expected)


def test_the_card_says_what_has_an_influence():
    assert schedule(stop_lr=1e-6).summary() == {
        "type": "exp", "start_lr": 1e-3, "stop_lr": 1e-6, "decay_steps": 5000, "smooth": False,
    }  # fmt: skip
    assert schedule(warmup_steps=3).summary()["warmup_start_factor"] == 0.0
