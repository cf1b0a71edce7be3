"""Training inputs, learning rates and losses, compared with DeePMD-kit's own."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.models import checkpoint
from dpserver.models.config import (
    DipoleFittingConfig,
    EnergyFittingConfig,
    HybridConfig,
    LocFrameConfig,
    ModelConfig,
    PolarFittingConfig,
    SeAttenConfig,
    SeAttenV2Config,
    SeE2AConfig,
    SeE2RConfig,
    SeE3Config,
)
from dpserver.models.potential import Prediction
from dpserver.models.section import Section, parse
from dpserver.train.bias import change_bias
from dpserver.train.config import TrainInput
from dpserver.train.data_config import DataConfig, ValidationDataConfig
from dpserver.train.learning_rate import CosineDecay, ExponentialDecay, LearningRateConfig, StableThenDecay
from dpserver.train.loss import Labels, Loss
from dpserver.train.loss_config import LossConfig, TensorLossConfig
from dpserver.train.systems import open_systems
from dpserver.train.training_config import AdamConfig, AdamWConfig, TrainingConfig, ValidatingConfig
from tests.peers.cases import CASES
from tests.peers.conftest import DeePMDKit
from tests.train import teacher
from tests.train.inputs import ACCEPTED

pytestmark = pytest.mark.peer

SCHEDULES: list[dict[str, Any]] = [
    {"type": kind, "start_lr": 1e-3, "stop_lr": 1e-6, **more, **warm}
    for kind, more in (
        ("exp", {}),
        ("exp", {"decay_steps": 70}),
        ("exp", {"decay_steps": 70, "smooth": True}),
        ("exp", {"decay_steps": 70, "decay_rate": 0.8}),
        ("cosine", {}),
        ("wsd", {}),
        ("wsd", {"decay_phase_ratio": 0.95, "decay_type": "cosine"}),
        ("wsd", {"decay_phase_ratio": 0.3, "decay_type": "linear"}),
    )
    for warm in ({}, {"warmup_steps": 40, "warmup_start_factor": 0.1}, {"warmup_ratio": 0.07})
]
BARE = {f"{when}_pref_{what}": 0.0 for when in ("start", "limit") for what in "efv"}
LOSSES: list[dict[str, Any]] = [
    {"start_pref_e": 0.02, "limit_pref_e": 1.0, "start_pref_f": 1000.0, "limit_pref_f": 1.0, **more}
    for more in (
        {},
        {"start_pref_v": 0.3, "limit_pref_v": 2.0},
        {"start_pref_v": 0.3, "limit_pref_v": 2.0, "intensive_ener_virial": True},
        {"start_pref_ae": 0.3, "limit_pref_ae": 2.0},
        {"start_pref_pf": 0.3, "limit_pref_pf": 2.0},
        {"start_pref_gf": 0.3, "limit_pref_gf": 2.0, "numb_generalized_coord": 2},
        {"relative_f": 0.4, "start_pref_pf": 0.3, "limit_pref_pf": 2.0},
        {"enable_atom_ener_coeff": True},
        {"start_pref_v": 0.3, "limit_pref_v": 2.0, "loss_func": "mae", "start_pref_ae": 0.3, "limit_pref_ae": 2.0},
        {"loss_func": "mae", "f_use_norm": True, "start_pref_pf": 0.3, "limit_pref_pf": 2.0},
        {"loss_func": "mae", "intensive_ener_virial": True},
        {"use_huber": True, "huber_delta": [0.05, 0.4, 0.02], "start_pref_v": 0.3, "limit_pref_v": 2.0},
        {"use_huber": True, "huber_delta": 0.3, "f_use_norm": True, "start_pref_ae": 0.3, "limit_pref_ae": 2.0},
    )
]


class Whole(Section):
    learning_rate: LearningRateConfig = ExponentialDecay()


def ask(deepmd_kit: DeePMDKit, folder: Path, task: str, what: Any, **arguments: str) -> Any:
    """Hand something over as JSON and read the answer."""
    (folder / "request.json").write_text(json.dumps(what))
    deepmd_kit.do(task, requests=str(folder / "request.json"), answer=str(folder / "answer.json"), **arguments)
    return json.loads((folder / "answer.json").read_text())


def test_inputs_that_are_accepted_are_inputs_there_and_mean_the_same_when_completed(
    deepmd_kit: DeePMDKit, tmp_path: Path
) -> None:
    completed = ask(deepmd_kit, tmp_path, "normalize", ACCEPTED)
    assert [name for name, data in completed.items() if data is None] == []
    for name, data in completed.items():
        ours, theirs = parse(TrainInput, ACCEPTED[name]), parse(TrainInput, data)
        for section in ("learning_rate", "loss", "training", "optimizer"):
            assert getattr(ours, section) == getattr(theirs, section), (name, section)
        assert ours.model.descriptor == theirs.model.descriptor, name
        assert ours.options == theirs.options, name


SECTIONS: dict[str, dict[str, type[Section]]] = {
    "": {"": TrainInput},
    "model": {"": ModelConfig},
    "descriptor": {
        "se_e2_a": SeE2AConfig,
        "se_e2_r": SeE2RConfig,
        "se_e3": SeE3Config,
        "se_atten": SeAttenConfig,
        "se_atten_v2": SeAttenV2Config,
        "loc_frame": LocFrameConfig,
        "hybrid": HybridConfig,
    },
    "fitting_net": {"ener": EnergyFittingConfig, "dipole": DipoleFittingConfig, "polar": PolarFittingConfig},
    "learning_rate": {"exp": ExponentialDecay, "cosine": CosineDecay, "wsd": StableThenDecay},
    "loss": {"ener": LossConfig, "tensor": TensorLossConfig},
    "optimizer": {"Adam": AdamConfig, "AdamW": AdamWConfig},
    "training": {"": TrainingConfig},
    "training_data": {"": DataConfig},
    "validation_data": {"": ValidationDataConfig},
    "validating": {"": ValidatingConfig},
}


def test_every_key_there_is_known_here(deepmd_kit: DeePMDKit, tmp_path: Path) -> None:
    """Accepted, or refused with its own words: none is said to be unknown."""
    there = ask(deepmd_kit, tmp_path, "keys", None)
    for section, kinds in SECTIONS.items():
        for kind, ours in kinds.items():
            known = {*ours.known_keys(), *ours.fixed, *ours.hints}
            assert set(there[section][kind]) - known == set(), (section, kind)


@pytest.mark.parametrize("mode", ["change", "set"])
def test_energies_of_species_are_changed_alike(deepmd_kit: DeePMDKit, tmp_path: Path, mode: str) -> None:
    model = deepmd_kit.make(CASES["se_e2_a"].parameters, tmp_path / "model.pt")
    for k, n_frames in enumerate((2, 3)):
        teacher.write_npy(tmp_path / "data" / str(k), n_frames, seed=k, n_sets=1)
    request = {"input_file": str(model), "mode": mode, "system": str(tmp_path / "data")}
    (tmp_path / "request.json").write_text(json.dumps(request))
    deepmd_kit.do("change_bias", requests=str(tmp_path / "request.json"), answer=str(tmp_path / "there.pt"))
    potential = checkpoint.restore(checkpoint.read(model))
    systems = open_systems(parse(DataConfig, {"systems": str(tmp_path / "data")}), potential.config)
    change_bias(potential, systems, is_set=mode == "set")
    theirs = checkpoint.restore(checkpoint.read(tmp_path / "there.pt"))
    np.testing.assert_allclose(potential.energy_bias.numpy(), theirs.energy_bias.numpy(), rtol=1e-9, atol=1e-9)


def test_learning_rates(deepmd_kit: DeePMDKit, tmp_path: Path) -> None:
    requests = [
        {"options": options, "numb_steps": n, "steps": list(range(0, n + 1, 7))}
        for options in SCHEDULES
        for n in (500, 1500)
    ]
    for request, theirs in zip(requests, ask(deepmd_kit, tmp_path, "schedules", requests), strict=True):
        schedule = parse(Whole, {"learning_rate": request["options"]}).learning_rate
        ours = [schedule.at(step, request["numb_steps"]) for step in request["steps"]]
        np.testing.assert_allclose(ours, theirs, rtol=1e-12, err_msg=str(request["options"]))


def test_losses(deepmd_kit: DeePMDKit, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    n_frames, n_atoms = 3, 5
    shapes = {
        "energy": (n_frames, 1), "force": (n_frames, n_atoms, 3), "virial": (n_frames, 9),
        "atom_energy": (n_frames, n_atoms, 1),
    }  # fmt: skip
    predicted = {name: rng.normal(size=shape) for name, shape in shapes.items()}
    given = {name: rng.normal(size=shapes[name]) for name in ("energy", "force", "virial")}
    given["atom_ener"] = rng.normal(size=(n_frames, n_atoms, 1))
    given["atom_ener_coeff"] = rng.normal(size=(n_frames, n_atoms, 1))
    given["drdq"] = rng.normal(size=(n_frames, n_atoms, 3 * 2))
    weight = rng.uniform(size=(n_frames, n_atoms))
    arrays = {f"pred_{name}": values for name, values in predicted.items()}
    arrays |= {f"label_{name}": values for name, values in given.items()}
    np.savez(tmp_path / "arrays.npz", **arrays, label_atom_pref=np.repeat(weight[:, :, None], 3, axis=2))
    requests = [{"options": options, "lr": lr} for options in LOSSES for lr in (1e-3, 2.5e-4)]
    answers = ask(deepmd_kit, tmp_path, "losses", requests, arrays=str(tmp_path / "arrays.npz"))

    def flat(values: Any, *shape: int) -> torch.Tensor:
        return torch.tensor(values.reshape(*shape))

    prediction = Prediction(
        flat(predicted["energy"], -1),
        flat(predicted["force"], -1, 3),
        flat(predicted["virial"], -1, 3, 3),
        flat(predicted["atom_energy"], -1),
    )
    values = {
        "energy": flat(given["energy"], -1), "forces": flat(given["force"], -1, 3),
        "virial": flat(given["virial"], -1, 3, 3), "atom_energy": flat(given["atom_ener"], -1),
        "atom_energy_coeff": flat(given["atom_ener_coeff"], -1), "drdq": flat(given["drdq"], -1, 6),
        "atom_pref": flat(weight, -1),
    }  # fmt: skip
    counts = torch.full((n_frames,), float(n_atoms), dtype=torch.float64)
    frame_idx = torch.arange(n_frames).repeat_interleave(n_atoms)
    labels = Labels(values, counts, frame_idx, torch.zeros_like(frame_idx))
    for request, theirs in zip(requests, answers, strict=True):
        ours = Loss(parse(LossConfig, request["options"]), 1e-3)(prediction, labels, request["lr"])
        np.testing.assert_allclose(float(ours.total), theirs, rtol=1e-12, err_msg=str(request["options"]))
