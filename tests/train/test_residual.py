"""Training beside charges: fixed ones are taken off the labels, others are trained with the rest."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import dpserver
from dpserver.errors import ConfigError, DataError
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.train.bias import change_bias
from dpserver.train.config import load_input
from dpserver.train.data import read_system
from dpserver.train.loop import Trainer
from dpserver.train.pretrained import Pretrained, completed
from dpserver.train.residual import take_charges_off
from dpserver.train.systems import System
from tests.train import teacher

CHARGES: dict[str, Any] = {"charges": {"O": -0.8, "H": 0.4}}
LEARNT: dict[str, dict[str, Any]] = {"of species": {"trainable": True}, "of environments": {"environment": {}}}


def section(**options: Any) -> dict[str, Any]:
    return {**teacher.MODEL, "electrostatics": {**CHARGES, **options}}


def trainer(folder: Path, restart: Path | None = None, **options: Any) -> Trainer:
    path = folder / "input.json"
    if not path.exists():
        teacher.write_input(folder, section(**options), numb_steps=12)
    return Trainer(load_input(path), folder, restart)


def charged(potential: Potential) -> Potential:
    """A copy of a potential with fixed charges."""
    config = {**potential.config.model_dump(mode="json"), "electrostatics": CHARGES}
    made = Potential(parse(ModelConfig, config))
    made.load_state_dict(potential.state_dict(), strict=False)
    return made


@pytest.fixture
def labelled(tmp_path: Path) -> System:
    """Frames whose labels have the energy of fixed charges in them."""
    teacher.write_npy(tmp_path / "water", 3)
    data = read_system(tmp_path / "water", ("O", "H"))
    found = charged(teacher.teacher()).reference(data.frames)
    labels = {"energy": found.energy, "forces": found.forces, "virial": found.virial, "atom_energy": found.atom_energy}
    return System(replace(data, **labels), 4.0, 2)


def test_labels_are_left_with_what_the_nets_say(labelled):
    before, expected = labelled.data, teacher.teacher().reference(labelled.data.frames)
    take_charges_off([labelled], parse(ModelConfig, section()))
    found = labelled.data
    assert np.abs(before.forces - found.forces).max() > 0.1
    for name, tolerance in (("energy", 1e-5), ("forces", 1e-5), ("virial", 1e-4), ("atom_energy", 1e-5)):
        np.testing.assert_allclose(getattr(found, name), getattr(expected, name), rtol=0, atol=tolerance, err_msg=name)


def test_energies_with_coefficients_lose_the_same_share(labelled):
    weights = np.linspace(0.0, 1.0, labelled.data.frames.n_atoms)
    charged_atoms = labelled.data.atom_energy
    labelled.data = replace(labelled.data, atom_energy_coeff=weights, forces=None, virial=None, atom_energy=None)
    before = labelled.data.energy
    take_charges_off([labelled], parse(ModelConfig, section()))
    far = weights * (charged_atoms - teacher.teacher().reference(labelled.data.frames).atom_energy)
    expected = np.bincount(labelled.data.frames.frame_idx, weights=far)
    assert before - labelled.data.energy == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("options", LEARNT.values(), ids=LEARNT)
def test_labels_stay_where_charges_are_learnt(labelled, options):
    before = labelled.data
    take_charges_off([labelled], parse(ModelConfig, section(**options)))
    take_charges_off([labelled], parse(ModelConfig, teacher.MODEL))
    assert labelled.data is before


def test_a_frame_whose_charges_do_not_add_up_is_named(labelled):
    model = parse(ModelConfig, section(charges={"O": -0.8, "H": 0.5}))
    with pytest.raises(
        DataError,
        match=r"water: the charges of frame 0 add up to \+1.6 e, the model is for \+0 e .*: the charges of the input "
        r"are wrong \(model\.electrostatics\.charges\), or the structure has other molecules, or lacks atoms$",
    ):
        take_charges_off([labelled], model)


def test_nets_are_fitted_to_the_rest_and_the_model_is_the_whole(tmp_path):
    t = trainer(tmp_path)
    assert t.fitted.electrostatics is None
    assert "polynomials" in t.evaluator.describe()
    assert t.run()
    t.save_model(tmp_path / "w.pt")
    loaded = dpserver.load(tmp_path / "w.pt", device="cpu")
    data = read_system(tmp_path / "valid", ("O", "H"))
    wrong = loaded.reference(data.frames).forces - data.forces
    assert np.sqrt(np.mean(wrong**2)) == pytest.approx(t.validate(whole=True)["f"], rel=1e-4)
    assert loaded.charges(data.frames) == pytest.approx(np.array([-0.8, 0.4])[data.frames.types])


@pytest.mark.parametrize("options", LEARNT.values(), ids=LEARNT)
def test_charges_are_learnt_and_a_restart_goes_on_the_same(tmp_path, options):
    t = trainer(tmp_path, **options)
    assert t.fitted is t.potential
    assert "polynomials" in t.evaluator.describe()
    frames = read_system(tmp_path / "valid", ("O", "H")).frames
    before = t.potential.charges(frames)
    assert t.run()
    after = t.potential.charges(frames)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(np.bincount(frames.frame_idx, weights=after), 0.0, atol=1e-12)
    stopped = trainer(tmp_path)
    stopped.run(should_stop=lambda: stopped.step == 5)
    again = trainer(tmp_path, tmp_path / "model.ckpt-5.pt")
    assert again.run()
    assert (again.potential.charges(frames) == after).all()


@pytest.mark.parametrize("options", LEARNT.values(), ids=LEARNT)
def test_energies_of_species_leave_room_for_charges_that_are_learnt(tmp_path, options):
    t = trainer(tmp_path, **options)
    data = t.systems[0].data
    assert data.energy is not None
    error = t.potential.reference(data.frames).energy - data.energy
    assert abs(error.mean()) < 0.2 * np.abs(error).max() + 1e-9


def test_a_model_that_is_started_from_keeps_its_charges(tmp_path):
    t = trainer(tmp_path, trainable=True)
    t.run()
    t.save_model(tmp_path / "w.pt")
    start = Pretrained.read(tmp_path / "w.pt")
    given = completed({"type_map": ["O", "H"]}, start.model, "w.pt")
    values = {**json.loads((tmp_path / "input.json").read_text()), "model": given}
    (tmp_path / "input.json").write_text(json.dumps(values))
    finetuned = Trainer(load_input(tmp_path / "input.json"), tmp_path, pretrained=start)
    frames = read_system(tmp_path / "valid", ("O", "H")).frames
    assert (finetuned.potential.charges(frames) == t.potential.charges(frames)).all()
    values["model"]["electrostatics"] = {**given["electrostatics"], "trainable": False}
    (tmp_path / "input.json").write_text(json.dumps(values))
    with pytest.raises(ConfigError, match=r"model.electrostatics.trainable is False, but True in the model"):
        Trainer(load_input(tmp_path / "input.json"), tmp_path, pretrained=start)
    with pytest.raises(ConfigError, match=r"model.electrostatics.trainable is False, but True in the model"):
        Trainer(load_input(tmp_path / "input.json"), tmp_path, tmp_path / "model.ckpt-10.pt")


def test_a_change_of_the_energies_of_species_sees_the_charges(labelled):
    potential = charged(teacher.teacher())
    potential.energy_bias += potential.energy_bias.new_tensor([2.0, 0.0])
    change = change_bias(potential, [labelled])
    assert change.error_after < 1e-8
    found = potential.reference(labelled.data.frames)
    assert found.energy == pytest.approx(labelled.data.energy, abs=1e-7)


def test_settings_that_are_hardly_meant_are_noted(tmp_path):
    assert trainer(tmp_path / "usual").notes == []
    (said,) = trainer(tmp_path / "wide", sigma=2.0).notes
    assert "model.electrostatics.sigma is 2 Å, more than a third of the cutoff of 4 Å" in said


def test_whether_the_input_leaves_the_charges_to_the_model(tmp_path):
    known = parse(ModelConfig, section()).model_dump(mode="json")
    path = teacher.write_input(tmp_path)
    assert not load_input(path).adopts_charges
    assert load_input(path, known).adopts_charges
    assert not load_input(path, teacher.MODEL).adopts_charges
    values = json.loads(path.read_text())
    path.write_text(json.dumps({**values, "model": section()}))
    assert not load_input(path, known).adopts_charges
