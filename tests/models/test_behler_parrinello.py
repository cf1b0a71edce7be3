"""Atom-centred symmetry functions: the contract, the papers' formulas by plain loops, and what is their own."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.frames import Floats, Frames
from dpserver.models import behler_parrinello, deepmd
from dpserver.models.behler_parrinello import BehlerParrinello
from dpserver.models.config import BehlerParrinelloConfig, ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import PotentialContract, scaled

RCUT = 3.5
RADIAL = [[0.5, 0.0], [4.0, 1.0], [2.0, 2.2]]
ANGULAR = [[0.05, 1, 1], [0.05, -1, 1], [0.2, -1, 3], [0.0, 1, 8]]


def make(frames: Frames, **descriptor: Any) -> Potential:
    """A small model of water with random weights and the statistics of some frames."""
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {"type": "behler_parrinello", "rcut": RCUT, "radial": RADIAL, "angular": ANGULAR, **descriptor},
        "fitting_net": {"neuron": [8, 8]},
    }
    potential = Potential(parse(ModelConfig, model), seed=31)
    potential.descriptor.fit_normalisation([potential.graph(frames)], 1e-2)
    return scaled(potential, frames)


def every_cell() -> Frames:
    names = (structures.triclinic, structures.slab, structures.cluster)
    return Frames.concatenate([*(make_frame() for make_frame in names), structures.tiny(), structures.molecule()])


class BehlerParrinelloContract(PotentialContract):
    descriptor: ClassVar[dict[str, Any]] = {}

    def potential(self) -> Potential:
        return make(self.frames(), **self.descriptor)

    def frames(self) -> Frames:
        return every_cell()


class TestBoth(BehlerParrinelloContract):
    pass


class TestRadialOnly(BehlerParrinelloContract):
    descriptor: ClassVar = {"angular": [], "radial": "auto:5"}


# --- the oracle ------------------------------------------------------------------------------------------------------


def neighbours(frame: Frames, atom: int) -> list[tuple[int, Floats]]:
    """Species of all neighbours within the cutoff and vectors to them, images tried one by one."""
    reach = [range(-4, 5) if periodic else [0] for periodic in frame.pbc[0]]
    shifts = [np.array([a, b, c]) @ frame.cell[0] for a in reach[0] for b in reach[1] for c in reach[2]]
    found = [
        (int(species), x + shift - frame.positions[atom])
        for species, x in zip(frame.types, frame.positions, strict=True)
        for shift in shifts
    ]
    return [(species, v) for species, v in found if 1e-9 < np.linalg.norm(v) < RCUT]


def fade(r: float) -> float:
    return (math.cos(math.pi * r / RCUT) + 1) / 2 if r < RCUT else 0.0


def describe(frame: Frames, atom: int) -> list[float]:
    """D of one atom before standardisation, from the words of the papers."""
    near = neighbours(frame, atom)
    features = [
        sum(math.exp(-eta * (r - shift) ** 2) * fade(r) for s, v in near if s == k for r in [float(np.linalg.norm(v))])
        for k in range(2)
        for eta, shift in RADIAL
    ]
    for pair in ((0, 0), (0, 1), (1, 1)):
        for eta, sign, zeta in ANGULAR:
            total = 0.0
            for n, (s, u) in enumerate(near):
                for t, v in near[:n]:
                    if (min(s, t), max(s, t)) != pair:
                        continue
                    r, q, p = (float(np.linalg.norm(w)) for w in (u, v, u - v))
                    angle = (1 + sign * float(u @ v) / (r * q)) ** zeta
                    total += angle * math.exp(-eta * (r**2 + q**2 + p**2)) * fade(r) * fade(q) * fade(p)
            features.append(2 ** (1 - zeta) * total)
    return features


@pytest.mark.parametrize("at_once", [4_000_000, 50], ids=["in one go", "in parts"])
def test_features_against_plain_loops(at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behler_parrinello, "_AT_ONCE", at_once)
    for frame in every_cell():
        potential = make(frame)
        graph = potential.graph(frame)
        for species, raw in enumerate(potential.descriptor.environment(graph, graph.vectors())):
            expected = [describe(frame, atom) for atom in graph.atoms[species].tolist()]
            np.testing.assert_allclose(raw.detach().numpy(), np.array(expected), rtol=1e-11, atol=1e-13)


def test_water_by_hand() -> None:
    """One molecule with an angle of 90° and bonds of 1 Å: cos θ = 0 at the oxygen."""
    frame = Frames.single([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 1, 1])
    potential = make(every_cell())
    graph = potential.graph(frame)
    oxygen = potential.descriptor.environment(graph, graph.vectors())[0][0].tolist()
    expected = 2.0 ** (1 - 3) * math.exp(-0.2 * 4) * fade(1.0) ** 2 * fade(math.sqrt(2))
    assert oxygen[3 + 1] == pytest.approx(2 * fade(1.0))  # η = 4, R_s = 1
    assert oxygen[6 + 2 * 4 + 2] == pytest.approx(expected)


# --- the cutoff ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("far", [0, 1], ids=["the pair's", "the triple's"])
def test_energy_and_forces_are_continuous_at_the_cutoff(far: int) -> None:
    """A hydrogen leaves the oxygen's sphere, or that of the other hydrogen while both stay in the oxygen's."""
    potential = make(every_cell())

    def at(distance: float) -> tuple[float, Floats]:
        angle = 2 * math.asin(distance / 2 / 2.4)
        bent = [2.4 * math.cos(angle), 2.4 * math.sin(angle), 0]
        moved = [0, distance, 0.1] if far == 0 else bent
        frame = Frames.single([[0, 0, 0], [2.4, 0, 0] if far else [0.9, 0, 0], moved], [0, 1, 1])
        result = potential.evaluate(frame)
        return float(result.energy[0]), result.forces

    edge = RCUT if far else math.sqrt(RCUT**2 - 0.1**2)
    for step in (1e-4, 1e-6):
        (e_in, f_in), (e_out, f_out) = at(edge - step), at(edge + step)
        assert abs(e_in - e_out) <= 10 * step * max(np.abs(f_in).max(), 1e-3)
        np.testing.assert_allclose(f_in, f_out, rtol=0, atol=50 * step)


def test_a_neighbour_beyond_the_cutoff_counts_for_nothing() -> None:
    potential = make(every_cell())
    alone = potential.evaluate(Frames.single([[0, 0, 0], [0.9, 0.3, 0]], [0, 1]))
    beside = potential.evaluate(Frames.single([[0, 0, 0], [0.9, 0.3, 0], [5.0, 0, 0]], [0, 1, 0]))
    np.testing.assert_allclose(beside.atom_energy[:2], alone.atom_energy, rtol=0, atol=1e-12)


# --- statistics ------------------------------------------------------------------------------------------------------


def test_normalisation_is_that_of_the_frames() -> None:
    frames = Frames.concatenate([structures.cubic(), structures.cubic(9)])
    potential = make(frames)
    whole, parts = potential.graph(frames), [potential.graph(frame) for frame in frames]
    potential.descriptor.fit_normalisation(parts, 1e-6)
    for species, (d, _) in enumerate(potential.descriptor(whole, whole.vectors())):
        d = d[:, potential.descriptor.dstd[species] > 1e-5]  # few oxygens have two others near
        assert d.shape[1] > 12
        torch.testing.assert_close(d.mean(dim=0), torch.zeros(d.shape[1], dtype=torch.float64), rtol=0, atol=1e-9)
        torch.testing.assert_close(d.std(dim=0, correction=0), torch.ones(d.shape[1], dtype=torch.float64))


def test_small_deviations_are_protected() -> None:
    """A feature that is the same for all atoms by a share of its size, one that is nearly nothing by a number."""
    molecule = Frames.single([[0, 0, 0], [1, 0, 0], [0, 1, 0]], [0, 1, 1])
    descriptor = BehlerParrinello(
        parse(BehlerParrinelloConfig, {"rcut": RCUT, "radial": [[4.0, 1.0], [50.0, 3.0]], "angular": []}), 2
    )
    potential = make(every_cell())
    descriptor.fit_normalisation([potential.graph(molecule)], 1e-2)
    assert float(descriptor.dstd[0, 2]) == pytest.approx(1e-2 * 2 * fade(1.0))
    assert float(descriptor.dstd[0, 3]) == 1e-4


def test_too_many_triples_for_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(behler_parrinello, "_MANY", 10)
    monkeypatch.setattr("dpserver.models.memory.memory_left", lambda: 1000)
    with pytest.raises(MemoryError, match=r"evaluating \d+ pairs of neighbours takes about"):
        make(structures.cubic())


# --- configuration ---------------------------------------------------------------------------------------------------


def section(**keys: Any) -> BehlerParrinelloConfig:
    model = {"type_map": ["O", "H"], "descriptor": {"type": "behler_parrinello", **keys}}
    found = parse(ModelConfig, model, "model").descriptor
    assert isinstance(found, BehlerParrinelloConfig)
    return found


def test_functions_by_default() -> None:
    found = section(rcut=4.8)
    assert found == section(rcut=4.8, radial="auto", angular="auto") == section(rcut=4.8, radial="auto:12")
    assert (len(found.radial), len(found.angular)) == (12, 12)
    shifts = np.array(found.radial)[:, 1]
    assert shifts[0] == 0.8
    np.testing.assert_allclose(np.diff(shifts), 1 / 3)
    np.testing.assert_allclose(np.array(found.radial)[:, 0], 0.5 / (1 / 3) ** 2)
    assert sorted({eta for eta, _, _ in found.angular}) == pytest.approx([0.5 / 4.8**2, 0.5 / 2.4**2])
    assert parse(BehlerParrinelloConfig, found.model_dump(mode="json")) == found
    assert len(section(radial="auto:3", angular="auto:1").angular) == 6


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"radial": "auto:1000000000"}, r'model\.descriptor\.radial: after "auto:" comes a number of .* to 1000'),
        ({"radial": "auto:0"}, r'model\.descriptor\.radial: after "auto:" comes a number'),
        ({"angular": "many"}, r'model\.descriptor\.angular: expected a list of functions, "auto" or "auto:n"'),
        ({"angular": [[0.1, 2, 1]]}, r"model\.descriptor\.angular\[0\]\[1\]: .*lambda must be 1 or -1"),
        ({"angular": [[0.1, 1, 1.5]]}, r"model\.descriptor\.angular\[0\]\[2\]: .*integer"),
        ({"radial": []}, r"model\.descriptor\.radial: "),
        ({"radial": [[1.0, 0.5], [1.0, 0.5]]}, r"model\.descriptor\.radial: names a function twice"),
        ({"rcut": -1.0}, r"model\.descriptor\.rcut: .*greater than 0"),
        ({"rcut": "auto"}, r"model\.descriptor\.rcut: "),
        ({"sel": [3, 4]}, r"model\.descriptor\.sel: unknown key"),
    ],
)
def test_what_is_refused(keys: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        section(**keys)


def test_excluded_pairs_are_refused() -> None:
    model = {"type_map": ["O", "H"], "descriptor": {"type": "behler_parrinello"}, "pair_exclude_types": [[0, 1]]}
    with pytest.raises(ConfigError, match="is not supported with the descriptor behler_parrinello"):
        parse(ModelConfig, model)


def test_there_is_nothing_to_export(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="descriptor behler_parrinello cannot be exported: DeePMD-kit's"):
        deepmd.save(tmp_path / "w.dp", make(structures.molecule()))
