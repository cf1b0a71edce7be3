"""Dipoles and polarizabilities: symmetries, derivatives, and what a configuration asks for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from tests import structures
from tests.models.test_se_e2_a import every_cell
from tests.tolerances import DIFFERENCES

STEP = 1e-5  # Å
EXACT = 1e-12

DESCRIPTOR = {
    "type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "axis_neuron": 3,
}  # fmt: skip
KINDS: dict[str, dict[str, Any]] = {
    "dipole": {"type": "dipole"},
    "selected": {"type": "dipole", "sel_type": [0]},
    "polar": {"type": "polar", "scale": [1.5, 0.5]},
    "matrix": {"type": "polar", "fit_diag": False, "pol_type": [1]},
}


def make(**fitting: Any) -> TensorModel:
    """A small model of water with random weights and tensors of about 1."""
    config = {
        "type_map": list(structures.SPECIES),
        "descriptor": DESCRIPTOR,
        "fitting_net": {"neuron": [10, 10], **fitting},
    }
    model = TensorModel(parse(ModelConfig, config), seed=31)
    model.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
    model.descriptor.dstd.copy_(torch.tensor([[0.15, 0.09, 0.09, 0.09], [0.12, 0.08, 0.08, 0.08]]))
    if model.kind == "polar":
        model.shift.copy_(torch.tensor([1.0, -0.5]))
    size = np.abs(model.evaluate(every_cell()).total).max()
    with torch.no_grad():
        for net in model.fitting:
            net[-1].weight *= 1 / size
    return model


@pytest.fixture(scope="module", params=KINDS)
def model(request: pytest.FixtureRequest) -> TensorModel:
    return make(**KINDS[request.param])


def turned(values: Floats, turn: Floats) -> Floats:
    """Vectors or tensors of structures whose positions are multiplied by `turn` from the right."""
    return values @ turn if values.shape[-2:] != (3, 3) or values.ndim == 2 else turn.T @ values @ turn


def test_tensors_turn_with_the_structure(model: TensorModel) -> None:
    frames, turn = every_cell(), structures.rotation(np.random.default_rng(1))
    before, after = model.evaluate(frames), model.evaluate(structures.strained(frames, turn - np.eye(3)))
    assert np.abs(before.total).max() > 0.1
    np.testing.assert_allclose(after.total, turned(before.total, turn), rtol=0, atol=EXACT)
    np.testing.assert_allclose(after.atoms, turned(before.atoms, turn), rtol=0, atol=EXACT)


def test_a_mirror_image_has_the_mirrored_tensors(model: TensorModel) -> None:
    frames, mirror = every_cell(), np.diag([1.0, 1.0, -1.0])
    before, after = model.evaluate(frames), model.evaluate(structures.strained(frames, mirror - np.eye(3)))
    np.testing.assert_allclose(after.total, turned(before.total, mirror), rtol=0, atol=EXACT)


def test_translation_permutation_and_other_cells_change_nothing(model: TensorModel) -> None:
    frames, rng = every_cell(), np.random.default_rng(2)
    expected = model.evaluate(frames)
    shift = rng.uniform(-20, 20, size=(frames.n_frames, 3))
    shuffled, order = structures.permuted(frames, rng)
    for other in (structures.moved(frames, shift[frames.frame_idx]), structures.wrapped(frames, rng)):
        np.testing.assert_allclose(model.evaluate(other).total, expected.total, rtol=0, atol=EXACT)
    found = model.evaluate(shuffled)
    np.testing.assert_allclose(found.total, expected.total, rtol=0, atol=EXACT)
    np.testing.assert_allclose(found.atoms, expected.atoms[order], rtol=0, atol=EXACT)


def test_supercell_has_twice_as_much(model: TensorModel) -> None:
    frame = structures.triclinic()
    one, two = model.evaluate(frame), model.evaluate(structures.supercell(frame))
    np.testing.assert_allclose(two.total, 2 * one.total, rtol=0, atol=EXACT)


def test_batch_equals_loop_and_atoms_sum_to_the_whole(model: TensorModel) -> None:
    frames = every_cell()
    batch = model.evaluate(frames)
    for k, frame in enumerate(frames):
        alone = model.evaluate(frame)
        np.testing.assert_allclose(batch.total[k], alone.total[0], rtol=0, atol=EXACT)
        np.testing.assert_allclose(batch.atoms[frames.frame_idx == k].sum(axis=0), alone.total[0], rtol=0, atol=EXACT)


def test_parts_with_ghosts_sum_to_the_whole(model: TensorModel) -> None:
    frames = every_cell()
    is_ghost = np.random.default_rng(3).random(frames.n_atoms) < 0.5
    parts = [model.evaluate(replace(frames, is_ghost=mask)) for mask in (is_ghost, ~is_ghost)]
    np.testing.assert_array_equal(parts[0].atoms[is_ghost], 0.0)
    np.testing.assert_allclose(parts[0].total + parts[1].total, model.evaluate(frames).total, rtol=0, atol=EXACT)


def test_polarizability_is_symmetric() -> None:
    for name in ("polar", "matrix"):
        atoms = make(**KINDS[name]).evaluate(every_cell()).atoms
        np.testing.assert_allclose(atoms, atoms.transpose(0, 2, 1), rtol=0, atol=EXACT)


def test_the_formulas() -> None:
    """Vectors and tensors from outputs and directions, by loops."""
    frame = structures.cubic()
    for name, fitting in KINDS.items():
        model = make(**fitting)
        graph = model.graph(frame)
        descriptions = model.descriptor(graph, graph.vectors())
        outputs = [o.detach().numpy() for o in model.fitting(graph, descriptions)]
        found = model.evaluate(frame).atoms
        for c, description in enumerate(descriptions):
            directions = description.directions.detach().numpy()
            for row, atom in enumerate(graph.atoms[c].tolist()):
                y, m = outputs[c][row], directions[row]
                if c not in model.selected:
                    expected = np.zeros(model.shape)
                elif model.kind == "dipole":
                    expected = sum(y[j] * m[j] for j in range(8))
                else:
                    full = np.diag(y) if name == "polar" else y.reshape(8, 8)
                    tensor = sum(
                        (full[j, k] + full[k, j]) / 2 * np.outer(m[j], m[k]) for j in range(8) for k in range(8)
                    )
                    scale = (1.5, 0.5)[c] if name == "polar" else 1.0
                    expected = scale * tensor + float(model.shift[c]) * np.eye(3)
                np.testing.assert_allclose(found[atom], expected, rtol=0, atol=EXACT)


@pytest.mark.parametrize("name", ["dipole", "selected"])
def test_born_charges_are_the_derivative_of_the_dipole(name: str) -> None:
    model = make(**KINDS[name])
    for frame in every_cell():
        charges = model.evaluate(frame, has_born_charges=True).born_charges
        assert charges is not None
        picks = np.random.default_rng(4).permutation(3 * frame.n_atoms)[:20]
        step = np.zeros((2, len(picks), frame.n_atoms, 3))
        step.reshape(2, len(picks), -1)[:, np.arange(len(picks)), picks] = np.array([[STEP], [-STEP]])
        up, down = model.evaluate(structures.copies(frame, np.concatenate(step))).total.reshape(2, -1, 3)
        numeric = (up - down) / (2 * STEP)
        np.testing.assert_allclose(charges.reshape(-1, 3)[picks], numeric, rtol=0, atol=DIFFERENCES)


def test_born_charges_of_a_batch_sum_to_zero_in_each_frame() -> None:
    frames = every_cell()
    charges = make(type="dipole").evaluate(frames, has_born_charges=True).born_charges
    assert charges is not None
    assert np.abs(charges).max() > 1e-2
    sums = np.zeros((frames.n_frames, 3, 3))
    np.add.at(sums, frames.frame_idx, charges)
    np.testing.assert_allclose(sums, 0.0, atol=EXACT)


def test_born_charges_of_a_polarizability_are_refused() -> None:
    with pytest.raises(ConfigError, match="Born charges are the derivative of a dipole"):
        make(type="polar").evaluate(structures.cubic(), has_born_charges=True)


def test_inputs_are_not_changed() -> None:
    frames = every_cell()
    for array in (frames.positions, frames.types, frames.cell, frames.pbc, frames.frame_idx):
        array.flags.writeable = False
    make(type="dipole").evaluate(frames, has_born_charges=True)


def test_mixed_and_single_precision_are_close(model: TensorModel) -> None:
    expected = model.evaluate(structures.cubic()).total
    for precision in ("mixed", "single"):
        model.set_precision(precision)
        found = model.evaluate(structures.cubic()).total
        np.testing.assert_allclose(found, expected, rtol=0, atol=2e-5)
    model.set_precision("double")


def test_parameters_of_frames_change_the_dipole() -> None:
    model = make(type="dipole", numb_fparam=1, default_fparam=[0.5])
    frame = structures.cubic()
    default = model.evaluate(frame).total
    same, other = (model.evaluate(replace(frame, fparam=np.array([[p]]))).total for p in (0.5, 0.9))
    np.testing.assert_array_equal(same, default)
    assert np.abs(other - default).max() > 1e-4


@pytest.mark.parametrize(
    ("descriptor", "kind", "expected"),
    [
        ({"type": "se_e2_r", "sel": [20, 40]}, "dipole", "dipole needs a descriptor with directions.*se_e2_r has none"),
        (DESCRIPTOR, "ener", "a model of tensors needs dipole or polar, got ener"),
    ],
)
def test_what_cannot_be_made(descriptor: dict[str, Any], kind: str, expected: str) -> None:
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": {"type": kind}}
    with pytest.raises(ConfigError, match=expected):
        TensorModel(parse(ModelConfig, config))


def test_a_potential_needs_energies() -> None:
    config = {"type_map": ["O", "H"], "descriptor": DESCRIPTOR, "fitting_net": {"type": "dipole"}}
    with pytest.raises(ConfigError, match="a potential needs ener, got dipole"):
        Potential(parse(ModelConfig, config))


def test_damaged_structures_are_refused() -> None:
    with pytest.raises(StructureError, match="has type 2"):
        make(type="dipole").evaluate(Frames.single([[0.0, 0, 0]], [2]))
