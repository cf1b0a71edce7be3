"""What every model must do: a test class inherits `EvaluationContract` or, for a potential, `PotentialContract`.

class TestMine(PotentialContract):
    def potential(self): return scaled(Potential(config), self.frames())
    def frames(self): ...
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from dpserver.engine import ForceModel
from dpserver.errors import StructureError
from dpserver.frames import Floats, ForceResult, Frames
from dpserver.models import checkpoint
from dpserver.models.potential import Potential
from tests import structures
from tests.tolerances import DIFFERENCES, TOLERANCES, Tolerance

STEP = 1e-5  # Å, and strain
EXACT = TOLERANCES[torch.float64]
ROUNDED = TOLERANCES[torch.float32]
TABULATED = Tolerance(energy=1e-9, forces=5e-9, virial=5e-9)


def scaled(potential: Potential, frames: Frames, force: float = 1.0) -> Potential:
    """Give a potential with random weights root-mean-square forces of `force` eV/Å, and the species their own bias.

    Random networks answer with energies so flat that any test of their derivatives would pass.
    """
    potential.energy_bias.copy_(torch.linspace(-7.0, 3.0, len(potential.species), dtype=torch.float64))
    factor = force / np.sqrt(np.mean(potential.evaluate(frames).forces ** 2))
    with torch.no_grad():
        for net in potential.fitting:
            net[-1].weight *= factor
    return potential


def assert_close(
    result: ForceResult, energy: Floats, forces: Floats, virial: Floats, tolerance: Tolerance = EXACT
) -> None:
    """Compare a batch's results with what is expected."""
    n_atoms = np.bincount(result.frame_idx, minlength=len(result.energy))
    limit = tolerance.virial * n_atoms[:, None, None]
    assert np.all(np.abs(result.energy - energy) <= tolerance.energy * n_atoms), (result.energy, energy)
    np.testing.assert_allclose(result.forces, forces, rtol=0, atol=tolerance.forces)
    assert np.all(np.abs(result.virial - virial) <= limit), (result.virial, virial)


class EvaluationContract:
    """Inherited by the tests of everything that evaluates.

    Attributes:
        answers_isolated: whether an atom without neighbours has an energy; otherwise it must be refused.
    """

    answers_isolated = True

    def potential(self) -> ForceModel:
        """A model in float64 with random weights, statistics that are not trivial, and forces of about 1 eV/Å."""
        raise NotImplementedError

    def frames(self) -> Frames:
        """Frames of different sizes, cells and periodicity, the first one periodic along its first vector."""
        raise NotImplementedError

    # --- what a caller relies on ---------------------------------------------------------------------------------

    def test_inputs_are_not_changed(self) -> None:
        frames = self.frames()
        arrays = {name: getattr(frames, name) for name in ("positions", "types", "cell", "pbc", "frame_idx")}
        before = {name: array.copy() for name, array in arrays.items()}
        for array in arrays.values():
            array.flags.writeable = False
        result = self.potential().evaluate(frames)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, before[name], err_msg=name)
            assert not np.shares_memory(array, result.frame_idx)

    def test_result_is_complete(self) -> None:
        frames = self.frames()
        result = self.potential().evaluate(frames)
        assert all(np.isfinite(getattr(result, a)).all() for a in ("energy", "forces", "virial", "atom_energy"))
        assert all(getattr(result, a).dtype == np.float64 for a in ("energy", "forces", "virial", "atom_energy"))
        assert result.forces.shape == (frames.n_atoms, 3)
        assert result.virial.shape == (frames.n_frames, 3, 3)
        np.testing.assert_array_equal(result.virial, result.virial.transpose(0, 2, 1))
        np.testing.assert_array_equal(result.frame_idx, frames.frame_idx)
        sums = np.bincount(frames.frame_idx, weights=result.atom_energy)
        np.testing.assert_allclose(result.energy, sums, rtol=1e-13)

    def test_same_numbers_twice(self) -> None:
        potential, frames = self.potential(), self.frames()
        first, second = potential.evaluate(frames), potential.evaluate(frames)
        for name in ("energy", "forces", "virial", "atom_energy"):
            np.testing.assert_array_equal(getattr(first, name), getattr(second, name))

    def test_batch_equals_loop(self) -> None:
        potential, frames = self.potential(), self.frames()
        assert len(set(frames.counts)) > 1
        order = [*range(frames.n_frames), 0]
        batch = potential.evaluate(Frames.concatenate(frames[k] for k in order))
        for place, k in enumerate(order):
            alone, together = potential.evaluate(frames[k]), batch[place]
            assert_close(together, alone.energy, alone.forces, alone.virial)
            np.testing.assert_allclose(together.atom_energy, alone.atom_energy, rtol=0, atol=EXACT.energy)

    def test_batch_without_structures(self) -> None:
        result = self.potential().evaluate(self.frames().part(0, 0))
        assert (result.energy.shape, result.virial.shape) == ((0,), (0, 3, 3))
        assert (result.forces.shape, result.atom_energy.shape, result.frame_idx.shape) == ((0, 3), (0,), (0,))

    def test_parts_with_ghosts_sum_to_the_whole(self) -> None:
        """Each atom's energy belongs to one part; in the others it is a ghost, which only has forces on it."""
        potential, frames = self.potential(), self.frames()
        is_ghost = np.random.default_rng(18).random(frames.n_atoms) < 0.5
        is_ghost[frames.frame_idx == 1] = True
        whole = potential.evaluate(frames)
        parts = [potential.evaluate(replace(frames, is_ghost=mask)) for mask in (is_ghost, ~is_ghost)]
        for part, mask in zip(parts, (is_ghost, ~is_ghost), strict=True):
            np.testing.assert_array_equal(part.atom_energy[mask], 0.0)
            np.testing.assert_allclose(part.atom_energy[~mask], whole.atom_energy[~mask], rtol=0, atol=EXACT.energy)
        assert parts[0].energy[1] == 0.0
        forces, virial = parts[0].forces + parts[1].forces, parts[0].virial + parts[1].virial
        assert_close(whole, parts[0].energy + parts[1].energy, forces, virial)

    # --- derivatives ---------------------------------------------------------------------------------------------

    def test_forces_are_the_energy_gradient(self) -> None:
        potential, rng = self.potential(), np.random.default_rng(11)
        for frame in self.frames():
            forces = potential.evaluate(frame).forces
            assert np.abs(forces).max() > 0.05, "the forces are too small to test anything"
            picks = rng.permutation(3 * frame.n_atoms)[:24]
            step = np.zeros((2, len(picks), frame.n_atoms, 3))
            step.reshape(2, len(picks), -1)[:, np.arange(len(picks)), picks] = np.array([[STEP], [-STEP]])
            up, down = potential.evaluate(structures.copies(frame, np.concatenate(step))).energy.reshape(2, -1)
            np.testing.assert_allclose(forces.flat[picks], (down - up) / (2 * STEP), rtol=0, atol=DIFFERENCES)

    def test_virial_is_the_strain_derivative(self) -> None:
        potential = self.potential()
        units = np.eye(9).reshape(9, 3, 3) * STEP
        for frame in self.frames():
            virial = potential.evaluate(frame).virial[0]
            batch = Frames.concatenate(structures.strained(frame, e) for e in [*units, *-units])
            up, down = potential.evaluate(batch).energy.reshape(2, 3, 3)
            scale = np.abs(virial).max()
            assert scale > 0.05, "the virial is too small to test anything"
            np.testing.assert_allclose(virial, (down - up) / (2 * STEP), rtol=0, atol=DIFFERENCES * scale)

    # --- symmetries ----------------------------------------------------------------------------------------------

    def test_translation(self) -> None:
        potential, frames = self.potential(), self.frames()
        expected = potential.evaluate(frames)
        shift = np.random.default_rng(13).uniform(-20, 20, size=(frames.n_frames, 3))
        result = potential.evaluate(structures.moved(frames, shift[frames.frame_idx]))
        assert_close(result, expected.energy, expected.forces, expected.virial)
        totals = [np.bincount(frames.frame_idx, weights=expected.forces[:, d]) for d in range(3)]
        np.testing.assert_allclose(totals, 0, atol=EXACT.forces)

    def test_rotation(self) -> None:
        potential, frames = self.potential(), self.frames()
        expected = potential.evaluate(frames)
        turn = structures.rotation(np.random.default_rng(14))
        result = potential.evaluate(structures.strained(frames, turn - np.eye(3)))
        assert_close(result, expected.energy, expected.forces @ turn, turn.T @ expected.virial @ turn)

    def test_permutation(self) -> None:
        potential, frames = self.potential(), self.frames()
        expected = potential.evaluate(frames)
        shuffled, order = structures.permuted(frames, np.random.default_rng(15))
        result = potential.evaluate(shuffled)
        assert_close(result, expected.energy, expected.forces[order], expected.virial)
        np.testing.assert_allclose(result.atom_energy, expected.atom_energy[order], rtol=0, atol=EXACT.forces)

    def test_atoms_in_other_cells(self) -> None:
        potential, frames = self.potential(), self.frames()
        expected = potential.evaluate(frames)
        result = potential.evaluate(structures.wrapped(frames, np.random.default_rng(16)))
        assert_close(result, expected.energy, expected.forces, expected.virial)

    def test_supercell(self) -> None:
        potential = self.potential()
        periodic = [f for f in self.frames() if f.pbc[0, 0]]
        assert periodic
        for frame in periodic:
            one, two = potential.evaluate(frame), potential.evaluate(structures.supercell(frame))
            assert_close(two, 2 * one.energy, np.tile(one.forces, (2, 1)), 2 * one.virial)

    # --- awkward structures --------------------------------------------------------------------------------------

    def test_isolated_atom(self) -> None:
        potential = self.potential()
        for species in range(len(potential.species)):
            frame = structures.atom(species)
            if not self.answers_isolated:
                with pytest.raises(StructureError, match=f"atom 0 of type {species} has 0 neighbours"):
                    potential.evaluate(frame)
                continue
            result = potential.evaluate(frame)
            assert np.isfinite(result.energy).all()
            np.testing.assert_array_equal(result.forces, 0)
            np.testing.assert_array_equal(result.virial, 0)

    def test_frame_without_a_species(self) -> None:
        potential, whole = self.potential(), self.frames()[0]
        strongest = 0.0
        for species in range(len(potential.species)):
            frame = structures.only(whole, species)
            if not self.answers_isolated:
                with pytest.raises(StructureError, match="has 0 neighbours of type"):
                    potential.evaluate(frame)
                continue
            alone = potential.evaluate(frame)
            batch = potential.evaluate(Frames.concatenate([whole, frame]))[1]
            assert_close(batch, alone.energy, alone.forces, alone.virial)
            strongest = max(strongest, np.abs(alone.forces).max())
        assert strongest > 1e-3 or not self.answers_isolated

    @pytest.mark.parametrize("frame", [structures.cubic(), structures.cluster()], ids=["cubic", "cluster"])
    def test_overlapping_atoms_are_refused(self, frame: Frames) -> None:
        positions = frame.positions.copy()
        positions[4] = positions[9] + 1e-3
        with pytest.raises(StructureError, match=r"atoms (4 and 9|9 and 4) are .* apart"):
            self.potential().evaluate(Frames.single(positions, frame.types, frame.cell[0]))


class PotentialContract(EvaluationContract):
    """Inherited by the tests of every descriptor."""

    def potential(self) -> Potential:
        raise NotImplementedError

    def test_each_atom_carries_the_bias_of_its_species(self) -> None:
        potential, frames = self.potential(), self.frames()
        before = potential.evaluate(frames)
        bias = np.linspace(2.5, -1.0, len(potential.species))
        potential.energy_bias += torch.from_numpy(bias)
        after = potential.evaluate(frames)
        shift = after.atom_energy - before.atom_energy
        np.testing.assert_allclose(shift, bias[frames.types], rtol=0, atol=EXACT.energy)
        np.testing.assert_array_equal(after.forces, before.forces)

    def test_loss_gradient_by_every_weight(self) -> None:
        """Energies, forces and virials are differentiated once more in training."""
        potential, generator = self.potential(), torch.Generator().manual_seed(12)
        graph = potential.graph(self.frames())
        reference = potential(graph)

        def draw(like: torch.Tensor) -> torch.Tensor:
            return torch.randn(like.shape, dtype=like.dtype, generator=generator)

        targets = [t + draw(t) for t in (reference.energy, reference.forces, reference.virial)]

        def loss() -> torch.Tensor:
            p = potential(graph, is_training=True)
            terms = zip((p.energy, p.forces, p.virial), targets, strict=True)
            return torch.stack([((a - b) ** 2).mean() for a, b in terms]).sum()

        names, weights = zip(*potential.named_parameters(), strict=True)
        gradient = torch.autograd.grad(loss(), weights, allow_unused=True, materialize_grads=True)
        scale = max(float(g.abs().max()) for g in gradient)
        for name, weight, g in zip(names, weights, gradient, strict=True):
            direction = draw(weight)
            direction /= direction.norm()
            values = []
            for sign in (1, -1):
                with torch.no_grad():
                    weight += sign * STEP * direction
                values.append(float(loss().detach()))
                with torch.no_grad():
                    weight -= sign * STEP * direction
            numeric = (values[0] - values[1]) / (2 * STEP)
            assert float((g * direction).sum()) == pytest.approx(numeric, rel=0, abs=DIFFERENCES * scale), name

    # --- precision and file --------------------------------------------------------------------------------------

    @pytest.mark.parametrize("precision", ["mixed", "single"])
    def test_float32(self, precision: str) -> None:
        potential, frames = self.potential(), self.frames()
        expected = potential.evaluate(frames)
        rounded = deepcopy(potential)
        rounded.set_precision(precision)
        assert {p.dtype for p in rounded.parameters()} == {torch.float32}
        result = rounded.evaluate(frames)
        assert_close(result, expected.energy, expected.forces, expected.virial, ROUNDED)
        assert not np.array_equal(result.forces, expected.forces)

    def test_saved_and_loaded(self, tmp_path: Path) -> None:
        potential, frames = self.potential(), self.frames()
        potential.template = ("O", "H", "H")
        potential.min_distance = np.array([[2.3, 0.9], [0.9, np.inf]])
        potential.crowd_distance = np.array([[2.5, 0.95], [0.95, np.inf]])
        checkpoint.save(tmp_path / "w.pt", potential)
        expected, loaded = potential.reference(frames), checkpoint.load(tmp_path / "w.pt", device="cpu")
        assert (loaded.species, loaded.rcut) == (potential.species, potential.rcut)
        assert (loaded.template, loaded.precision) == (potential.template, "double")
        np.testing.assert_array_equal(loaded.min_distance, potential.min_distance)
        np.testing.assert_array_equal(loaded.crowd_distance, potential.crowd_distance)
        result = loaded.reference(frames)
        for name in ("energy", "forces", "virial", "atom_energy"):
            np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
        fast = loaded.evaluate(frames)
        assert_close(fast, expected.energy, expected.forces, expected.virial, TABULATED)
        single = checkpoint.load(tmp_path / "w.pt", device="cpu", precision="single").evaluate(frames)
        assert_close(single, expected.energy, expected.forces, expected.virial, ROUNDED)
