"""The smooth descriptor: the contract in several configurations, and what is its own."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import EXACT, PotentialContract, assert_close, scaled
from tests.tolerances import DIFFERENCES

RCUT = 4.0


def make(*, fitting: dict[str, Any] | None = None, frames: Frames | None = None, **descriptor: Any) -> Potential:
    """A small model of water with random weights, and forces of about 1 eV/Å in these frames."""
    net = {"neuron": [10, 10], "resnet_dt": True, **(fitting or {})}
    shape = {"sel": [20, 40], "rcut": RCUT, "rcut_smth": 0.5, "neuron": [4, 8, 8], "axis_neuron": 3, **descriptor}
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": "se_e2_a", **shape},
        "fitting_net": net,
    }
    potential = Potential(parse(ModelConfig, model), seed=21)
    # Isotropic, as statistics over all directions are: anything else would break the rotational symmetry.
    potential.descriptor.davg[:, 0] = torch.tensor([0.06, 0.05])
    potential.descriptor.dstd.copy_(torch.tensor([[0.15, 0.09, 0.09, 0.09], [0.12, 0.08, 0.08, 0.08]]))
    # Time steps start at 0.1; those of trained nets are larger, and with them the nets are less flat.
    for name, weights in potential.named_parameters():
        if name.endswith("timestep"):
            torch.nn.init.uniform_(weights, 0.5, 1.0, generator=torch.Generator().manual_seed(22))
    return scaled(potential, every_cell() if frames is None else frames)


def every_cell() -> Frames:
    names = (structures.cubic, structures.triclinic, structures.slab, structures.wire, structures.cluster)
    return Frames.concatenate([*(make_frame() for make_frame in names), structures.tiny(), structures.molecule()])


class SeE2AContract(PotentialContract):
    descriptor: ClassVar[dict[str, Any]] = {}
    fitting: ClassVar[dict[str, Any]] = {}

    def potential(self) -> Potential:
        return make(fitting=self.fitting, **self.descriptor)

    def frames(self) -> Frames:
        return every_cell()


class TestTwoSided(SeE2AContract):
    descriptor: ClassVar = {"type_one_side": False}


class TestOneSided(SeE2AContract):
    descriptor: ClassVar = {"type_one_side": True}


class TestResnetDt(SeE2AContract):
    descriptor: ClassVar = {"type_one_side": True, "resnet_dt": True, "rcut_smth": 2.0}


class TestExcludedTypes(SeE2AContract):
    descriptor: ClassVar = {"type_one_side": False, "exclude_types": [[0, 1]]}


class TestExcludedTypesOneSided(SeE2AContract):
    descriptor: ClassVar = {"type_one_side": True, "exclude_types": [[1, 1]]}


class TestProtectedOtherActivation(SeE2AContract):
    descriptor: ClassVar = {"env_protection": 0.1, "activation_function": "silut:1.0"}
    fitting: ClassVar = {"activation_function": "gelu", "resnet_dt": False, "neuron": [7, 7, 14]}


ACTIVATIONS = ("tanh", "relu", "relu6", "softplus", "sigmoid", "gelu", "gelu_tf", "silu", "silut", "linear", "none")


@pytest.mark.parametrize("name", ACTIVATIONS)
def test_every_activation_gives_consistent_forces(name: str) -> None:
    potential = make(activation_function=name, fitting={"activation_function": name})
    frame = structures.cluster()
    forces = potential.evaluate(frame).forces
    step = np.random.default_rng(1).normal(size=(frame.n_atoms, 3))
    step /= np.linalg.norm(step)
    h = 1e-6 if name.startswith("relu") else 3e-5  # a kink on the way would be seen
    up, down = potential.evaluate(structures.copies(frame, np.array([step, -step]) * h)).energy
    assert (down - up) / (2 * h) == pytest.approx(np.sum(forces * step), abs=5 * DIFFERENCES)
    assert np.abs(forces).max() > 0.05


# --- the cutoff ------------------------------------------------------------------------------------------------------


def pair(distances: np.ndarray, species: tuple[int, int] = (0, 1)) -> Frames:
    """Two atoms, and a third one near the first so that angles count, at each of the distances."""
    u = np.array([0.6, -0.64, 0.48])
    third = np.array([0.3, 0.8, 0.5])
    return Frames.concatenate(Frames.single([np.zeros(3), d * u, third], [*species, 1]) for d in distances)


@pytest.mark.parametrize("one_side", [True, False])
@pytest.mark.parametrize("exclude", [[], [[0, 0]]])
def test_energy_and_forces_are_continuous_across_the_cutoff(one_side: bool, exclude: list[list[int]]) -> None:
    potential = make(type_one_side=one_side, exclude_types=exclude)
    assert potential.descriptor.davg[:, 0].abs().min() > 0
    outside = potential.evaluate(pair(np.array([RCUT + 1e-9])))
    inside = RCUT - np.array([1e-9, 1e-6, 1e-4, 1e-2])
    result = potential.evaluate(pair(inside))
    energies = np.abs(result.energy - outside.energy)
    forces = np.abs(result.forces.reshape(4, 3, 3) - outside.forces).max(axis=(1, 2))
    assert np.all(energies[:3] <= 1e-11)
    assert np.all(forces[:3] <= [1e-11, 1e-9, 1e-6])
    assert energies[3] > 0  # they do interact


def test_energy_is_smooth_along_a_path_through_the_cutoff() -> None:
    potential = make(type_one_side=False)
    distances = np.linspace(RCUT - 0.3, RCUT + 0.1, 401)
    result = potential.evaluate(pair(distances, (0, 0)))
    along = result.forces.reshape(-1, 3, 3)[:, 1] @ np.array([0.6, -0.64, 0.48])
    spacing = distances[1] - distances[0]
    numeric = -np.gradient(result.energy, spacing)
    np.testing.assert_allclose(along[1:-1], numeric[1:-1], rtol=0, atol=1e-5)
    assert np.abs(np.diff(along)).max() < 20 * np.abs(along).max() * spacing
    np.testing.assert_allclose(along[distances > RCUT], 0, atol=1e-13)


def test_no_jump_where_two_neighbours_change_places() -> None:
    """What the local frame cannot do: two equal atoms at one distance, either of them the nearer."""
    potential = make()

    def energy(difference: float) -> float:
        near, far = 1.5 + difference, 1.5 - difference
        positions = [[0, 0, 0], [near, 0, 0], [0, far, 0], [0.2, 0.1, 1.1]]
        return float(potential.evaluate(Frames.single(positions, [0, 1, 1, 1])).energy[0])

    slope = (energy(1e-3) - energy(-1e-3)) / 2e-3
    assert energy(1e-9) - energy(-1e-9) == pytest.approx(2e-9 * slope, abs=1e-12)


# --- sel -------------------------------------------------------------------------------------------------------------


def test_more_neighbours_than_sel_are_an_error() -> None:
    potential = make(sel=[20, 40])
    frame = structures.cubic()
    edges = potential.graph(frame)
    counts = edges.blocks[0, 1].segments.counts
    enough = make(sel=[20, int(max(edges.blocks[c, 1].segments.width for c in range(2)))])
    enough.evaluate(frame)
    few = Potential(parse(ModelConfig, model_with_sel([20, int(counts.max()) - 1])))
    with pytest.raises(
        StructureError, match=r"atom \d+ has \d+ neighbours of type 1 within 4\.0 Å.*at most \d+ \(sel\)"
    ):
        few.evaluate(frame)


def model_with_sel(sel: list[int] | str) -> dict[str, Any]:
    descriptor = {"type": "se_e2_a", "sel": sel, "rcut": RCUT, "neuron": [4], "axis_neuron": 2}
    return {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": {"neuron": [4]}}


def test_sel_must_be_resolved() -> None:
    with pytest.raises(ConfigError, match=r"descriptor\.sel is 'auto'.*dpserver train"):
        Potential(parse(ModelConfig, model_with_sel("auto")))


@pytest.mark.parametrize("one_side", [True, False])
@pytest.mark.parametrize("exclude", [[], [[0, 1]], [[0, 0]]])
def test_descriptor_slot_by_slot(one_side: bool, exclude: list[list[int]]) -> None:
    """Against DeePMD-kit's own way: every slot of `sel` filled, the empty ones with R̃ = 0 before normalisation.

    An excluded neighbour takes its slot and adds nothing; with a net for each pair, that of an excluded pair is gone.
    """
    potential = make(type_one_side=one_side, sel=[15, 27], exclude_types=exclude)
    frame = structures.cluster()
    graph = potential.graph(frame)
    d, types, r_ij = potential.descriptor, torch.as_tensor(frame.types), graph.vectors()
    description = d(graph, r_ij)[0]
    rows = (d.environment(r_ij) - d.davg[0]) / d.dstd[0]
    empty = (-d.davg[0] / d.dstd[0])[None]
    for place, atom in enumerate(graph.atoms[0].tolist()):
        moment = torch.zeros(4, 8, dtype=torch.float64)
        for species, sel in enumerate((15, 27)):
            is_excluded = [0, species] in exclude
            if is_excluded and not one_side:
                continue
            mine = rows[(graph.centre == atom) & (types[graph.neighbour] == species)]
            assert 0 < len(mine) < sel
            slots = torch.cat([torch.zeros_like(mine) if is_excluded else mine, empty.expand(sel - len(mine), 4)])
            net = d.embedding[species if one_side else species * 2]
            moment += slots.T @ net(slots[:, :1]) / (15 + 27)
        expected = (moment.T @ moment[:, :3]).flatten()
        torch.testing.assert_close(expected, description.features[place], rtol=1e-12, atol=1e-14)
        torch.testing.assert_close(moment[1:].T, description.directions[place], rtol=1e-12, atol=1e-14)


# --- geometry, any ---------------------------------------------------------------------------------------------------

MODEL = make(type_one_side=False)


@settings(max_examples=30, deadline=None)
@given(seed=st.integers(0, 2**32 - 1), far=st.integers(0, 30), kind=st.integers(0, 6))
def test_rotated_moved_wrapped_and_shuffled_at_once(seed: int, far: int, kind: int) -> None:
    rng = np.random.default_rng(seed)
    frame = every_cell()[kind]
    expected = MODEL.evaluate(frame)
    turn = structures.rotation(rng)
    other, order = structures.permuted(frame, rng)
    other = structures.wrapped(other, rng, far)
    other = structures.moved(structures.strained(other, turn - np.eye(3)), rng.uniform(-50, 50, size=3))
    result = MODEL.evaluate(other)
    assert_close(result, expected.energy, (expected.forces @ turn)[order], turn.T @ expected.virial @ turn, EXACT)
