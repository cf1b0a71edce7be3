from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.models.config import ModelConfig
from dpserver.models.potential import Prediction
from dpserver.models.section import parse
from dpserver.models.tensors import TensorModel, TensorPrediction
from dpserver.train.loss import Labels, Loss, TensorLoss
from dpserver.train.loss_config import LossConfig, TensorLossConfig
from tests.train import teacher

COUNTS = (3, 5)
TYPES = (0, 1, 1, 0, 1, 1, 0, 1)
N_COORDINATES = 2
BARE = {"start_pref_e": 0.0, "start_pref_f": 0.0, "start_pref_v": 0.0}
LABELS = {
    "energy": (2,),
    "forces": (8, 3),
    "virial": (2, 3, 3),
    "atom_energy": (8,),
    "atom_pref": (8,),
    "atom_energy_coeff": (8,),
    "drdq": (8, 3 * N_COORDINATES),
}


@pytest.fixture
def batch() -> tuple[Prediction, Labels]:
    """Two frames of different size with known differences."""
    rng = np.random.default_rng(0)

    def tensor(*shape: int) -> torch.Tensor:
        return torch.tensor(rng.normal(size=shape))

    prediction = Prediction(tensor(2), tensor(8, 3), tensor(2, 3, 3), tensor(8))
    return prediction, labels({name: tensor(*shape) for name, shape in LABELS.items()})


def labels(values: dict[str, torch.Tensor]) -> Labels:
    frame_idx = torch.tensor(np.repeat([0, 1], COUNTS))
    return Labels(values, torch.tensor(COUNTS, dtype=torch.float64), frame_idx, torch.tensor(TYPES))


def value(batch: tuple[Prediction, Labels], lr: float = 1e-3, **options: Any) -> float:
    """The loss at the start, where every prefactor is the one of the start."""
    given = {key.replace("start", "limit"): 1.0 for key in options if key.startswith("start")}
    config = parse(LossConfig, {**given, **options}, "loss")
    return float(Loss(config, start_lr=1e-3)(*batch, lr=lr).total)


def arrays(batch: tuple[Prediction, Labels]) -> dict[str, np.ndarray]:
    prediction, reference = batch
    found = {name: tensor.numpy() for name, tensor in reference.values.items()}
    return {
        **found,
        "de": prediction.energy.numpy() - found["energy"],
        "df": prediction.forces.numpy() - found["forces"],
        "dv": prediction.virial.numpy() - found["virial"],
        "dae": prediction.atom_energy.numpy() - found["atom_energy"],
    }


def huber(error: np.ndarray, delta: float) -> np.ndarray:
    small = np.abs(error) <= delta
    return np.where(small, error**2 / 2, delta * (np.abs(error) - delta / 2))


N = np.array(COUNTS, dtype=float)


@pytest.mark.parametrize(("is_intensive", "power"), [(False, 1), (True, 2)])
def test_is_the_formula_of_the_paper(batch, is_intensive, power):
    config = LossConfig(
        start_pref_e=0.5, limit_pref_e=2.0, start_pref_f=100.0, limit_pref_f=1.0, start_pref_v=0.1, limit_pref_v=3.0,
        intensive_ener_virial=is_intensive,
    )  # fmt: skip
    errors = Loss(config, start_lr=1e-3)(*batch, lr=2.5e-4)
    p = (2.0 - 1.5 * 0.25, 1.0 + 99.0 * 0.25, 3.0 - 2.9 * 0.25)
    a = arrays(batch)
    expected = p[0] * (a["de"] ** 2 / N**power).mean() + p[1] * (a["df"] ** 2).mean()
    expected += p[2] * ((a["dv"] ** 2).mean(axis=(1, 2)) / N**power).mean()
    assert float(errors.total) == pytest.approx(expected, rel=1e-13)


def test_atomic_energies(batch):
    assert value(batch, **BARE, start_pref_ae=0.7) == pytest.approx(0.7 * (arrays(batch)["dae"] ** 2).mean(), rel=1e-13)


def test_forces_with_a_weight_for_each_atom(batch):
    a = arrays(batch)
    expected = 3.0 * (a["df"] ** 2 * a["atom_pref"][:, None]).mean()
    assert value(batch, **BARE, start_pref_pf=3.0) == pytest.approx(expected, rel=1e-13)


def test_forces_whose_weights_are_not_given(batch):
    prediction, reference = batch
    bare = labels({name: reference.values[name] for name in ("energy", "forces")})
    expected = 3.0 * (arrays(batch)["df"] ** 2).mean()
    options = {**BARE, "start_pref_pf": 3.0}
    assert value((prediction, bare), **options, use_default_pf=True) == pytest.approx(expected, rel=1e-13)
    assert value((prediction, bare), **options) == 0.0


def test_generalized_forces(batch):
    a = arrays(batch)
    squares = []
    for frame, atoms in enumerate(np.split(np.arange(8), [COUNTS[0]])):
        for q in range(N_COORDINATES):
            projected = sum(a["df"][i] @ a["drdq"][i].reshape(3, N_COORDINATES)[:, q] for i in atoms)
            squares.append(projected**2)
        assert len(squares) == (frame + 1) * N_COORDINATES
    options = {**BARE, "start_pref_gf": 2.0, "numb_generalized_coord": N_COORDINATES}
    assert value(batch, **options) == pytest.approx(2.0 * np.mean(squares), rel=1e-13)


def test_forces_relative_to_their_size(batch):
    a = arrays(batch)
    scaled = a["df"] / (np.linalg.norm(a["forces"], axis=1, keepdims=True) + 0.3)
    options = {**BARE, "start_pref_f": 5.0, "relative_f": 0.3}
    assert value(batch, **options) == pytest.approx(5.0 * (scaled**2).mean(), rel=1e-13)


def test_energies_with_a_coefficient_for_each_atom(batch):
    a, prediction = arrays(batch), batch[0]
    summed = np.add.reduceat(a["atom_energy_coeff"] * prediction.atom_energy.numpy(), [0, COUNTS[0]])
    expected = 2.0 * ((summed - a["energy"]) ** 2 / N).mean()
    options = {**BARE, "start_pref_e": 2.0, "enable_atom_ener_coeff": True}
    assert value(batch, **options) == pytest.approx(expected, rel=1e-13)


def test_absolute_errors(batch):
    a = arrays(batch)
    whole = {"start_pref_e": 0.5, "start_pref_f": 7.0, "start_pref_v": 0.2, "start_pref_ae": 0.3, "loss_func": "mae"}
    rest = 0.5 * np.abs(a["de"] / N).mean() + 0.2 * (np.abs(a["dv"]).mean(axis=(1, 2)) / N).mean()
    rest += 0.3 * np.abs(a["dae"]).mean()
    assert value(batch, **whole) == pytest.approx(rest + 7.0 * np.abs(a["df"]).mean(), rel=1e-13)
    lengths = np.linalg.norm(a["df"], axis=1).mean()
    assert value(batch, **whole, f_use_norm=True) == pytest.approx(rest + 7.0 * lengths, rel=1e-13)


def test_huber(batch):
    a = arrays(batch)
    whole = {"start_pref_e": 0.5, "start_pref_f": 7.0, "start_pref_v": 0.2, "start_pref_ae": 0.3, "use_huber": True}
    per_atom = a["dv"] / N[:, None, None]
    rest = 0.5 * huber(a["de"] / N, 0.2).mean() + 0.2 * huber(per_atom, 0.1).mean() + 0.3 * huber(a["dae"], 0.2).mean()
    delta = [0.2, 0.9, 0.1]
    expected = rest + 7.0 * huber(a["df"], 0.9).mean()
    assert value(batch, **whole, huber_delta=delta) == pytest.approx(expected, rel=1e-13)
    lengths = huber(np.linalg.norm(a["df"], axis=1), 0.9).mean()
    assert value(batch, **whole, huber_delta=delta, f_use_norm=True) == pytest.approx(rest + 7.0 * lengths, rel=1e-13)
    assert value(batch, **whole, huber_delta=0.2) == value(batch, **whole, huber_delta=[0.2] * 3)


def test_prefactors_go_from_start_to_limit():
    loss = Loss(LossConfig(start_pref_f=1000.0, limit_pref_f=1.0), start_lr=1e-3)
    assert loss.prefactor("f", 1e-3) == pytest.approx(1000.0)
    assert loss.prefactor("f", 0.0) == pytest.approx(1.0)
    assert loss.prefactor("v", 1e-3) == 0.0


def test_a_term_takes_part_where_both_of_its_prefactors_differ_from_zero(batch):
    one_sided = LossConfig(start_pref_ae=1.0, limit_pref_ae=0.0)
    assert one_sided.terms == {"e", "f"}
    plain, other = (Loss(c, 1e-3)(*batch, lr=1e-3).total for c in (LossConfig(), one_sided))
    assert plain == other


def test_rmse_is_per_atom_and_per_component(batch):
    rmse = Loss(LossConfig(), 1e-3)(*batch, 1e-3).rmse()
    a = arrays(batch)
    assert rmse["e"] == pytest.approx(np.sqrt(((a["de"] / N) ** 2).mean()), rel=1e-13)
    assert rmse["f"] == pytest.approx(np.sqrt((a["df"] ** 2).mean()), rel=1e-13)
    assert set(rmse) == {"total", "e", "f", "v"}


@pytest.mark.parametrize("options", [{"loss_func": "mae"}, {"use_huber": True}, {"relative_f": 1.0}])
def test_errors_are_shown_as_they_are_however_they_are_weighed(batch, options):
    plain, other = (Loss(c, 1e-3)(*batch, 1e-3).rmse() for c in (LossConfig(), parse(LossConfig, options, "loss")))
    assert {k: v for k, v in plain.items() if k != "total"} == {k: v for k, v in other.items() if k != "total"}


def test_missing_labels_take_no_part(batch):
    prediction, reference = batch
    bare = labels({"energy": reference.values["energy"]})
    errors = Loss(LossConfig(), 1e-3)(prediction, bare, 1e-3)
    assert set(errors.rmse()) == {"total", "e"}
    assert float(errors.total) == pytest.approx(0.02 * float((arrays(batch)["de"] ** 2 / N).mean()))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"start_pref_e": 0, "start_pref_f": 0}, "loss.start_pref_e: every term of the loss has a prefactor of 0"),
        ({"start_pref_gf": 1, "limit_pref_gf": 1}, "loss.numb_generalized_coord: must be greater than 0"),
        ({"f_use_norm": True}, "loss.f_use_norm: has a meaning only with"),
        ({"use_huber": True, "relative_f": 1.0}, "loss.use_huber: does not go together with relative_f"),
        ({"huber_delta": [0.1, 0.2]}, "loss.huber_delta: must be a number > 0, or three of them"),
        ({"huber_delta": 0}, "loss.huber_delta: must be a number > 0"),
        ({"loss_func": "rmse"}, "loss.loss_func: input should be 'mse' or 'mae', got \"rmse\""),
        ({"start_pref_h": 10}, "loss.start_pref_h: 10 is not supported by dpserver; supported: 0.0"),
        ({"relative_f": 0.0}, "loss.relative_f: input should be greater than 0"),
    ],
)
def test_what_has_no_meaning_is_refused(options, expected):
    with pytest.raises(ConfigError) as error:
        parse(LossConfig, options, "loss")
    assert str(error.value).startswith(expected)


def test_labels_that_are_needed():
    assert list(LossConfig().labels) == ["energy", "forces"]
    weighed = LossConfig(start_pref_f=0.0, start_pref_pf=1.0, limit_pref_pf=1.0)
    assert set(weighed.labels) == {"energy", "atom_pref", "forces"}
    assert weighed.labels["atom_pref"] == "loss.start_pref_pf and loss.limit_pref_pf"
    assert "atom_pref" not in weighed.model_copy(update={"use_default_pf": True}).labels
    assert weighed.columns == ["e", "pf"]


# --- tensors -----------------------------------------------------------------------------------------------------


def tensor_loss(**options: Any) -> TensorLoss:
    model = {
        **teacher.MODEL,
        "descriptor": {**teacher.MODEL["descriptor"], "sel": [10, 10]},
        "fitting_net": {"type": "dipole", "neuron": [4], "sel_type": [0]},
    }
    return TensorLoss(
        parse(TensorLossConfig, {"type": "tensor", **options}, "loss"), TensorModel(parse(ModelConfig, model))
    )


@pytest.fixture
def tensors() -> tuple[TensorPrediction, Labels]:
    rng = np.random.default_rng(1)
    is_selected = torch.tensor([t == 0 for t in TYPES], dtype=torch.float64)[:, None]
    atoms, reference = (torch.tensor(rng.normal(size=(8, 3))) * is_selected for _ in range(2))
    total = torch.tensor(rng.normal(size=(2, 3)))
    values = {"dipole": torch.tensor(rng.normal(size=(2, 3))), "atom_dipole": reference}
    return TensorPrediction(total, atoms), labels({**values, "atom_weight": torch.tensor(rng.uniform(size=8))})


def test_tensors_of_atoms_and_of_structures(tensors):
    prediction, reference = tensors
    errors = tensor_loss(pref=2.0, pref_atomic=0.5)(prediction, reference, 1e-3)
    selected = [i for i, t in enumerate(TYPES) if t == 0]
    local = ((prediction.atoms - reference.values["atom_dipole"]).numpy()[selected] ** 2).mean()
    whole = (prediction.total - reference.values["dipole"]).numpy()
    assert float(errors.total) == pytest.approx(2.0 * (whole**2).mean() + 0.5 * local, rel=1e-13)
    assert errors.rmse()["local_dipole"] == pytest.approx(np.sqrt(local), rel=1e-13)
    assert errors.rmse()["global_dipole"] == pytest.approx(np.sqrt(((whole / N[:, None]) ** 2).mean()), rel=1e-13)


def test_tensors_with_a_weight_for_each_atom(tensors):
    prediction, reference = tensors
    loss = tensor_loss(pref=0.0, pref_atomic=0.5, enable_atomic_weight=True)
    selected = [i for i, t in enumerate(TYPES) if t == 0]
    error = (prediction.atoms - reference.values["atom_dipole"]) * reference.values["atom_weight"][:, None]
    assert float(loss(prediction, reference, 1e-3).total) == pytest.approx(
        0.5 * float((error[selected] ** 2).mean()), rel=1e-13
    )


def test_tensors_without_labels(tensors):
    prediction, reference = tensors
    bare = labels({"dipole": reference.values["dipole"]})
    assert set(tensor_loss(pref=1.0, pref_atomic=1.0)(prediction, bare, 1e-3).rmse()) == {"total", "global_dipole"}


def test_a_loss_of_nothing_is_refused():
    with pytest.raises(ConfigError, match=r"loss\.pref: and pref_atomic are both 0"):
        parse(TensorLossConfig, {"type": "tensor", "pref": 0, "pref_atomic": 0}, "loss")
    assert tensor_loss(pref=1.0, pref_atomic=0.0).config.labels_of("polar") == {"polar": "loss.pref"}
