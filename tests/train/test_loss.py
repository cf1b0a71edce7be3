import numpy as np
import pytest
import torch

from dpserver.models.potential import Prediction
from dpserver.train.config import LossConfig
from dpserver.train.loss import Labels, Loss

COUNTS = (3, 5)


@pytest.fixture
def batch() -> tuple[Prediction, Labels]:
    """Two frames of different size with known differences."""
    rng = np.random.default_rng(0)
    frame_idx = torch.tensor(np.repeat([0, 1], COUNTS))

    def tensor(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.normal(size=shape))

    prediction = Prediction(tensor(2), tensor(8, 3), tensor(2, 3, 3), tensor(8))
    labels = Labels(tensor(2), tensor(8, 3), tensor(2, 3, 3), torch.tensor(COUNTS, dtype=torch.float64), frame_idx)
    return prediction, labels


def by_hand(prediction: Prediction, labels: Labels, power: int, p: tuple[float, float, float]) -> float:
    """The loss of each frame written out, averaged over frames."""
    total = 0.0
    for frame, n in enumerate(COUNTS):
        here = labels.frame_idx == frame
        de = float(prediction.energy[frame] - labels.energy[frame])
        df = (prediction.forces - labels.forces)[here].numpy()
        dv = (prediction.virial - labels.virial)[frame].numpy()
        total += p[0] * de**2 / n**power + p[1] * (df**2).sum() / (3 * n) + p[2] * (dv**2).sum() / 9 / n**power
    return total / len(COUNTS)


@pytest.mark.parametrize(("is_intensive", "power"), [(False, 1), (True, 2)])
def test_is_the_formula(batch, is_intensive, power):
    config = LossConfig(
        start_pref_e=0.5, limit_pref_e=2.0, start_pref_f=100.0, limit_pref_f=1.0, start_pref_v=0.1, limit_pref_v=3.0,
        intensive_ener_virial=is_intensive,
    )  # fmt: skip
    errors = Loss(config, start_lr=1e-3)(*batch, lr=2.5e-4)
    expected = by_hand(*batch, power, (2.0 - 1.5 * 0.25, 1.0 + 99.0 * 0.25, 3.0 - 2.9 * 0.25))
    assert float(errors.total) == pytest.approx(expected, rel=1e-13)


def test_prefactors_go_from_start_to_limit():
    loss = Loss(LossConfig(start_pref_f=1000.0, limit_pref_f=1.0), start_lr=1e-3)
    assert loss.prefactor("f", 1e-3) == pytest.approx(1000.0)
    assert loss.prefactor("f", 0.0) == pytest.approx(1.0)


def test_rmse_is_per_atom_and_per_component(batch):
    prediction, labels = batch
    rmse = Loss(LossConfig(), 1e-3)(prediction, labels, 1e-3).rmse()
    de = ((prediction.energy - labels.energy) / torch.tensor(COUNTS)).numpy()
    assert rmse["e"] == pytest.approx(np.sqrt((de**2).mean()), rel=1e-13)
    assert set(rmse) == {"total", "e", "f", "v"}


def test_missing_labels_take_no_part(batch):
    prediction, labels = batch
    bare = Labels(labels.energy, None, None, labels.counts, labels.frame_idx)
    errors = Loss(LossConfig(start_pref_e=1.0, start_pref_f=0.0, limit_pref_f=0.0), 1e-3)(prediction, bare, 1e-3)
    assert set(errors.rmse()) == {"total", "e"}
    assert float(errors.total) == pytest.approx(
        float(((prediction.energy - labels.energy) ** 2 / labels.counts).mean())
    )
