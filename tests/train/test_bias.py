"""Energies of the species: after a change no energy per species is left to be explained, and no force has moved."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dpserver.errors import DataError
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.train.bias import change_bias, set_bias
from dpserver.train.data import LabelledFrames, read_system
from dpserver.train.systems import System
from tests import structures
from tests.models.test_pair_table import make as make_with_table
from tests.train import teacher


@pytest.fixture
def potential() -> Potential:
    """The teacher, wrong about the energies of the species."""
    found = teacher.teacher()
    found.energy_bias += found.energy_bias.new_tensor([3.0, -0.5])
    return found


def labelled(frames, name: str = "x") -> LabelledFrames:
    energy = teacher.teacher().evaluate(frames).energy
    return LabelledFrames(frames, energy, None, None, ("O", "H"), name)


@pytest.fixture
def mixed() -> list[System]:
    """Structures of different composition, so that both energies can be told apart."""
    whole = structures.cubic()
    parts = [whole, structures.triclinic(), structures.cluster(), structures.only(whole, 0), structures.only(whole, 1)]
    return [System(labelled(frame, str(k)), 4.0, 2) for k, frame in enumerate(parts)]


def test_what_is_lacking_is_added(potential, mixed):
    change = change_bias(potential, mixed)
    assert potential.energy_bias.numpy() == pytest.approx(teacher.BIAS, abs=1e-9)
    assert change.before == pytest.approx(teacher.BIAS + np.array([3.0, -0.5]))
    assert change.after == pytest.approx(teacher.BIAS, abs=1e-9)
    assert change.n_frames == 5
    assert change.error_before > 0.1
    assert change.error_after < 1e-10


def test_no_energy_per_species_is_left_to_be_explained_and_forces_stay(potential, mixed):
    rng = np.random.default_rng(0)
    for system in mixed:  # errors that no energies of the species can explain
        system.data.energy[:] += rng.normal(size=system.data.n_frames)
    before = [potential.evaluate(s.data.frames) for s in mixed]
    change_bias(potential, mixed)
    after = [potential.evaluate(s.data.frames) for s in mixed]
    left = np.array([s.data.energy[0] - r.energy[0] for s, r in zip(mixed, after, strict=True)])
    counts = np.array([np.bincount(s.data.frames.types, minlength=2) for s in mixed])
    assert counts.T @ left == pytest.approx(np.zeros(2), abs=1e-7)
    for one, other in zip(before, after, strict=True):
        assert (one.forces == other.forces).all()
        assert (one.virial == other.virial).all()


def test_the_energies_alone_decide_on_demand(potential, mixed):
    energy = np.array([s.data.energy[0] for s in mixed])
    counts = np.array([np.bincount(s.data.frames.types, minlength=2) for s in mixed])
    change = change_bias(potential, mixed, is_set=True)
    expected = np.linalg.lstsq(counts, energy, rcond=None)[0]
    assert change.after == pytest.approx(expected)
    again = teacher.teacher()
    set_bias(again, [s.data for s in mixed])
    assert again.energy_bias.numpy() == pytest.approx(expected)


def test_energies_that_are_given_are_kept(mixed):
    fitting = {**teacher.MODEL["fitting_net"], "atom_ener": [None, -13.0]}
    descriptor = {**teacher.MODEL["descriptor"], "sel": [60, 120], "set_davg_zero": True}
    model = Potential(parse(ModelConfig, {**teacher.MODEL, "descriptor": descriptor, "fitting_net": fitting}))
    set_bias(model, [s.data for s in mixed])
    assert float(model.energy_bias[1]) == -13.0
    oxygen = float(model.energy_bias[0])
    change_bias(model, mixed)
    assert float(model.energy_bias[1]) == -13.0
    assert float(model.energy_bias[0]) != oxygen


def test_species_without_energy_do_not_count(mixed):
    descriptor = {**teacher.MODEL["descriptor"], "sel": [60, 120]}
    model = Potential(parse(ModelConfig, {**teacher.MODEL, "descriptor": descriptor, "atom_exclude_types": [1]}))
    set_bias(model, [s.data for s in mixed])
    counts = np.array([np.bincount(s.data.frames.types, minlength=2) for s in mixed]) * [1, 0]
    energy = np.array([s.data.energy[0] for s in mixed])
    assert model.energy_bias.numpy() == pytest.approx(np.linalg.lstsq(counts, energy, rcond=None)[0])


@pytest.mark.parametrize("is_set", [False, True])
def test_a_table_without_the_energies_of_the_species_takes_their_part(mixed, is_set):
    model = make_with_table(srtab_add_bias=False, smin_alpha=0.15, sw_rmin=0.5, sw_rmax=2.2)
    kept = model.energy_bias.clone()
    references = np.array([model.evaluate(s.data.frames).energy[0] for s in mixed])
    model.energy_bias += torch.tensor([3.0, -0.5])
    for system, energy in zip(mixed, references, strict=True):
        system.data.energy[:] = energy
    change = change_bias(model, mixed, is_set=is_set)
    left = [(model.evaluate(s.data.frames).energy[0] - s.data.energy[0]) / s.data.frames.n_atoms for s in mixed]
    assert change.error_after == pytest.approx(np.sqrt(np.mean(np.square(left))), abs=1e-9)
    if not is_set:
        assert model.energy_bias.numpy() == pytest.approx(kept.numpy(), abs=1e-8)


def test_only_some_frames_are_taken_on_demand(tmp_path: Path, potential):
    teacher.write_npy(tmp_path / "data", 5)
    system = System(read_system(tmp_path / "data", ("O", "H")), 4.0, 2)
    system.data.energy[1:4] += 1e6
    assert change_bias(potential, [system], [2]).n_frames == 2
    assert potential.evaluate(system.data.frames).energy[[0, 4]] == pytest.approx(system.data.energy[[0, 4]])


def test_energies_with_coefficients(potential, mixed):
    rng = np.random.default_rng(1)
    weighed = []
    for system in mixed:
        frames, c = system.data.frames, rng.normal(size=system.data.frames.n_atoms)
        atoms = teacher.teacher().evaluate(frames).atom_energy
        data = LabelledFrames(frames, np.array([c @ atoms]), None, None, ("O", "H"), "x", atom_energy_coeff=c)
        weighed.append(System(data, 4.0, 2))
    change_bias(potential, weighed)
    assert potential.energy_bias.numpy() == pytest.approx(teacher.BIAS, abs=1e-8)


def test_without_energies_there_is_nothing_to_fit(potential, mixed):
    frames = mixed[0].data.frames
    bare = System(LabelledFrames(frames, None, None, None, ("O", "H"), "x"), 4.0, 2)
    with pytest.raises(DataError, match="the data has no energies"):
        change_bias(potential, [bare])
    before = potential.energy_bias.clone()
    set_bias(potential, [bare.data])
    assert (potential.energy_bias == before).all()
    assert change_bias(potential, [bare, *mixed]).n_frames == 5
