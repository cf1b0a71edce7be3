"""The local-frame descriptor of 2018: the contract away from swaps, the jump at a swap, and a plain-loop oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import StructureError
from dpserver.frames import Floats, Frames
from dpserver.models.config import LocFrameConfig, ModelConfig, parse
from dpserver.models.loc_frame import LocFrame
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import PotentialContract, scaled

RCUT = 4.0
WATER_RULE = [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0]
RADIAL_RULE = [0, 1, 0, 1, 1, 0, 1, 0, 1, 0, 1, 0]


def make(sel_a: list[int], sel_r: list[int], axis_rule: list[int], frames: Frames) -> Potential:
    """A small model of water with random weights and the statistics of the frames, a little off."""
    descriptor = {"type": "loc_frame", "sel_a": sel_a, "sel_r": sel_r, "rcut": RCUT, "axis_rule": axis_rule}
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": descriptor,
        "fitting_net": {"neuron": [14, 9, 5], "resnet_dt": False},
    }
    potential = Potential(parse(ModelConfig, model), seed=31)
    potential.descriptor.fit_normalisation([potential.graph(frames)], 0.1)
    potential.descriptor.davg.add_(0.03)
    return scaled(potential, frames)


class TestWater(PotentialContract):
    answers_isolated = False

    def potential(self) -> Potential:
        return make([2, 4], [3, 5], WATER_RULE, self.frames())

    def frames(self) -> Frames:
        """Every kind of cell, but none that shows an atom two of its own images at one distance."""
        return Frames.concatenate(
            [
                structures.cubic(),
                structures.water((2, 2, 2), structures.SHEAR, seed=8),
                structures.slab(),
                structures.wire(),
                structures.cluster(),
                structures.molecule(),
            ]
        )


class TestAxesFromRadialNeighbours(PotentialContract):
    answers_isolated = False

    def potential(self) -> Potential:
        return make([0, 3], [2, 4], RADIAL_RULE, self.frames())

    def frames(self) -> Frames:
        tilted = structures.water((2, 2, 2), structures.SHEAR, seed=8)
        return Frames.concatenate([structures.cubic(), tilted, structures.slab(), structures.cluster()])


# --- the oracle ------------------------------------------------------------------------------------------------------


def neighbours(frame: Frames, atom: int, species: int) -> list[Floats]:
    """Vectors to all neighbours of one species within the cutoff, by distance, images tried one by one."""
    reach = [range(-3, 4) if periodic else [0] for periodic in frame.pbc[0]]
    shifts = np.array([[a, b, c] for a in reach[0] for b in reach[1] for c in reach[2]]) @ frame.cell[0]
    vectors = (frame.positions[frame.types == species] - frame.positions[atom])[:, None] + shifts
    found = [v for v in vectors.reshape(-1, 3) if 1e-9 < np.linalg.norm(v) < RCUT]
    return sorted(found, key=lambda v: float(np.linalg.norm(v)))


def describe(config: LocFrameConfig, frame: Frames, atom: int) -> Floats:
    """D of one atom, from the words of the paper."""
    nearest = [neighbours(frame, atom, k) for k in range(2)]
    full = [vectors[:n] for vectors, n in zip(nearest, config.sel_a, strict=True)]
    radial = [v[a : a + r] for v, a, r in zip(nearest, config.sel_a, config.sel_r, strict=True)]
    first, second = ((full, radial)[kind][k][index] for kind, k, index in config.axes[frame.types[atom]])
    e_x = first / np.linalg.norm(first)
    e_z = np.cross(first, second) / np.linalg.norm(np.cross(first, second))
    e_y = np.cross(e_z, e_x)
    features: list[float] = []
    for vectors, n in zip(full, config.sel_a, strict=True):
        for v in vectors:
            features += [1 / np.linalg.norm(v), *(np.array([e_x @ v, e_y @ v, e_z @ v]) / (v @ v))]
        features += [0.0] * (4 * (n - len(vectors)))
    for vectors, n in zip(radial, config.sel_r, strict=True):
        features += [float(1 / np.linalg.norm(v)) for v in vectors] + [0.0] * (n - len(vectors))
    return np.array(features)


@pytest.mark.parametrize("model", [TestWater(), TestAxesFromRadialNeighbours()], ids=["water", "radial axes"])
def test_features_against_a_plain_loop(model: PotentialContract) -> None:
    potential = model.potential()
    descriptor, n_empty = potential.descriptor, 0
    for frame in model.frames():
        graph = potential.graph(frame)
        features = descriptor(graph, graph.vectors())
        for species, atoms in enumerate(graph.atoms):
            for d, atom in zip(features[species].features, atoms.tolist(), strict=True):
                expected = describe(descriptor.config, frame, atom)
                n_empty += int(np.sum(expected == 0))
                expected = (expected - descriptor.davg[species].numpy()) / descriptor.dstd[species].numpy()
                np.testing.assert_allclose(d.detach().numpy(), expected, rtol=1e-11, atol=1e-12)
    assert n_empty > 0  # the padding was seen


def test_the_water_of_2018_has_282_inputs_and_no_skip_connection() -> None:
    descriptor = {"type": "loc_frame", "sel_a": [16, 32], "sel_r": [30, 60], "rcut": 6.0, "axis_rule": WATER_RULE}
    fitting = {"neuron": [240, 120, 60, 30, 10], "resnet_dt": False}
    potential = Potential(
        parse(ModelConfig, {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": fitting})
    )
    assert potential.descriptor.n_features == 282
    for net in potential.fitting:
        assert [tuple(layer.weight.shape) for layer in net] == [
            (282, 240), (240, 120), (120, 60), (60, 30), (30, 10), (10, 1)
        ]  # fmt: skip
        assert not any(layer.copies for layer in net)
    frames = Frames.concatenate([structures.cubic(), structures.cluster()])
    assert np.isfinite(potential.evaluate(frames).energy).all()


def test_normalisation_is_that_of_the_frames() -> None:
    frames = Frames.concatenate([structures.cubic(), structures.cubic(9)])
    descriptor = make([2, 4], [3, 5], WATER_RULE, frames).descriptor
    assert isinstance(descriptor, LocFrame)
    whole = TestWater().potential().graph(frames)
    parts = [TestWater().potential().graph(frame) for frame in frames]
    descriptor.fit_normalisation(parts, 1e-3)
    for species, (d, _) in enumerate(descriptor(whole, whole.vectors())):
        free = descriptor.dstd[species] > 1e-3
        assert free.sum() > 20
        torch.testing.assert_close(d.mean(dim=0), torch.zeros(descriptor.n_features, dtype=torch.float64))
        torch.testing.assert_close(d.std(dim=0, correction=0)[free], torch.ones(int(free.sum()), dtype=torch.float64))


# --- the method's known drawback -------------------------------------------------------------------------------------

DIRECTIONS = np.array([[1, 0, 0], [0.1, 0.9, 0.2], [-0.5, 0.4, 0.8], [-0.3, -0.8, 0.4]])
DIRECTIONS /= np.linalg.norm(DIRECTIONS, axis=1, keepdims=True)


def star(distances: list[float]) -> Frames:
    """One O and four H at these distances."""
    return Frames.single([[0, 0, 0], *(np.array(distances)[:, None] * DIRECTIONS)], [0, 1, 1, 1, 1])


def jump(potential: Potential, before: list[float], after: list[float]) -> float:
    """Difference of the energies on the two sides of a swap."""
    energies = potential.evaluate(Frames.concatenate([star(before), star(after)])).energy
    return abs(float(energies[0] - energies[1]))


@pytest.mark.parametrize("gap", [1e-6, 1e-9])
@pytest.mark.parametrize("pair", [(1, 2), (2, 3)], ids=["axes", "order"])
def test_energy_jumps_where_neighbours_swap(gap: float, pair: tuple[int, int]) -> None:
    """The jump does not shrink with the distance to the swap, while forces are 1 eV/Å: it is no slope."""
    potential = TestWater().potential()
    sizes = []
    for g in (gap, 1e-4):
        distances = np.array([0.9, 1.1, 1.4, 1.8])
        distances[list(pair)] = distances[list(pair)].mean()
        before, after = distances.copy(), distances.copy()
        before[list(pair)] += [-g / 2, g / 2]
        after[list(pair)] += [g / 2, -g / 2]
        sizes.append(jump(potential, before.tolist(), after.tolist()))
    assert sizes[0] > 0.01  # eV
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)


def test_energy_jumps_at_the_cutoff() -> None:
    """Two molecules back to back, of which only the oxygens come within the cutoff."""
    potential = TestWater().potential()
    one = np.array([[0.0, 0.0, 0.0], [0.6, 0.75, 0.05], [0.5, -0.8, 0.1]])

    def pair(distance: float) -> Frames:
        return Frames.single(np.concatenate([one, one * [-1, 1, 1] - [distance, 0, 0]]), [0, 1, 1] * 2)

    energies = potential.evaluate(Frames.concatenate(map(pair, [RCUT - 1e-9, RCUT + 1e-9, RCUT + 1e-3]))).energy
    assert abs(energies[0] - energies[1]) > 0.01
    assert energies[1] == pytest.approx(energies[2], abs=1e-12)


def test_no_jump_between_radial_neighbours_of_one_species() -> None:
    """Radial entries are sorted numbers: their swap has a kink, not a jump."""
    potential = make([0, 2], [1, 4], [*WATER_RULE[:6], 1, 0, 0, 0, 1, 0], structures.cubic())
    assert jump(potential, [0.9, 1.1, 1.5 - 1e-9, 1.5 + 1e-9], [0.9, 1.1, 1.5 + 1e-9, 1.5 - 1e-9]) < 1e-7


# --- what has no frame -----------------------------------------------------------------------------------------------


def test_missing_axis_neighbour_names_atom_and_rule() -> None:
    potential = TestWater().potential()
    hydroxyl = Frames.single([[0, 0, 0], [0, 0, 0.97]], [0, 1])
    message = (
        r"^atom 0 of frame 1 of type 0 has 1 neighbours of type 1 within 4\.0 Å, "
        r"but its axis_rule \(0, 1, 1\) needs 2.*se_e2_a"
    )
    with pytest.raises(StructureError, match=message):
        potential.evaluate(Frames.concatenate([structures.cubic(), hydroxyl]))


@pytest.mark.parametrize("angle", [0.0, np.pi])
def test_axis_neighbours_on_one_line_are_refused(angle: float) -> None:
    distance = 0.95 if angle else 1.9
    positions = [[0, 0, 0], [0, 0, 0.97], [0, distance * np.sin(angle), distance * np.cos(angle)], [3, 0, 0]]
    frame = Frames.single(np.array(positions) @ structures.rotation(np.random.default_rng(1)), [0, 1, 1, 1])
    with pytest.raises(
        StructureError, match=r"^atom \d of type [01] lies on one line with the two neighbours.*axis_rule"
    ):
        TestWater().potential().evaluate(frame)


def test_neighbours_beyond_the_slots_are_not_seen() -> None:
    potential = make([1, 2], [1, 1], WATER_RULE, structures.cubic())
    near = [0.9, 1.1, 1.4, 1.8]
    energies = potential.evaluate(Frames.concatenate([star(near), star([*near[:3], 1.9])])).atom_energy
    assert energies[0] == energies[5]


def config(**changes: Any) -> dict[str, Any]:
    return {"type": "loc_frame", "sel_a": [2, 4], "sel_r": [3, 5], "rcut": RCUT, "axis_rule": WATER_RULE, **changes}


def test_a_list_with_a_skin_gives_the_same_features() -> None:
    """Edges longer than the cutoff are not neighbours."""
    short = LocFrame(parse(LocFrameConfig, config()), 2)
    frame = structures.cubic()
    long_range = make([2, 4], [3, 5], WATER_RULE, frame)
    graph = long_range.graph(frame)
    long_range.rcut = RCUT + 1.0
    padded = long_range.graph(frame)
    assert len(padded.centre) > len(graph.centre)
    for a, b in zip(short(graph, graph.vectors()), short(padded, padded.vectors()), strict=True):
        torch.testing.assert_close(a, b, rtol=0, atol=0)
