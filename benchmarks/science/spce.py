"""A flexible SPC/E water as an exact teacher: bonds, angles, Lennard-Jones between oxygens, and charges of points.

SPC/Fw of Wu, Tepper and Voth (J. Chem. Phys. 124, 024503, 2006):

    E = Σ k_b/2 (r_OH - r₀)² + Σ k_a/2 (θ - θ₀)² + Σ_OO S(r) 4ε ((σ/r)¹² - (σ/r)⁶) + ½ Σ' k q_i q_j/r_ij

the last sum over atoms of different molecules and all images (Ewald, the surroundings conducting), all pairs in an open
structure. S switches the Lennard-Jones energy off between 5 and 6 Å by a quintic, so that two molecules further apart
than the usual cutoff of a network interact by their charges alone. Atoms come as O H H, molecule by molecule.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar, Final

import ase
import numpy as np
from ase import units
from ase.calculators.calculator import Calculator, all_changes
from ase.md.langevin import Langevin
from ase.md.velocitydistribution import MaxwellBoltzmannDistribution, Stationary

from benchmarks.science.analysis import nearest_images
from dpserver import neighbors
from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.models.config import ElectrostaticsConfig
from dpserver.models.electrostatics_sum import ChargeSum
from dpserver.units import COULOMB

KCAL: Final = units.kcal / units.mol
BOND, BOND_LENGTH = 1059.162 * KCAL, 1.012  # eV/Å², Å
BEND, ANGLE = 75.90 * KCAL, np.radians(113.24)  # eV/rad²
EPSILON, SIGMA = 0.1554253 * KCAL, 3.165492  # eV, Å
CHARGES: Final = {"O": -0.82, "H": 0.41}  # e
LJ_REACH: Final = (5.0, 6.0)  # Å
DENSITY: Final = 0.0334  # molecules per Å³, of the liquid at 1 g/cm³

_SPLIT: Final = 0.8  # Å⁻¹, α of the Ewald sum: half the inverse of a Gaussian's width
_NEAR: Final = 6.0  # Å: erfc(α r) is 1e-11 there, and the Lennard-Jones energy 0
_Q: Final = np.array([CHARGES["O"], CHARGES["H"], CHARGES["H"]])
_FAR: Final = ChargeSum(
    ElectrostaticsConfig(charges=CHARGES, sigma=1 / (2 * _SPLIT), method="ewald", accuracy=1e-10), threads=1
)


def evaluate(frames: Frames) -> ForceResult:
    """Energies, forces and virials of water.

    Args:
        frames: molecules as O H H, types 0 and 1; periodic in all directions or in none.
    """
    found = [_one(frame) for frame in frames]
    return ForceResult(
        np.array([e for e, _, _ in found]),
        np.concatenate([f for _, f, _ in found]),
        np.stack([v for _, _, v in found]),
        np.zeros(frames.n_atoms),
        frames.frame_idx.copy(),
    )


class SpcFw(Calculator):  # type: ignore[misc]
    """The same for ASE."""

    implemented_properties: ClassVar[list[str]] = ["energy", "forces", "stress"]

    def calculate(
        self, atoms: ase.Atoms | None = None, properties: Sequence[str] = ("energy",), system_changes: Any = all_changes
    ) -> None:
        """Evaluate the atoms."""
        super().calculate(atoms, properties, system_changes)
        energy, forces, virial = _one(frames_of([self.atoms]))
        self.results = {"energy": energy, "forces": forces}
        if self.atoms.pbc.all():
            self.results["stress"] = -virial.reshape(-1)[[0, 4, 8, 5, 2, 1]] / self.atoms.get_volume()


def frames_of(structures: Sequence[ase.Atoms]) -> Frames:
    """Structures of ASE as a batch."""
    return Frames.concatenate(
        Frames.single(a.positions, a.numbers == 1, a.cell.array if a.pbc.all() else None) for a in structures
    )


def _one(frame: Frames) -> tuple[float, Floats, Floats]:
    """Energy, forces (n, 3) and virial (3, 3) of one structure."""
    is_periodic = bool(frame.pbc.all())
    cell = frame.cell[0] if is_periodic else None
    gradient, virial = np.zeros((frame.n_atoms, 3)), np.zeros((3, 3))
    energy = _molecules(frame.positions, cell, gradient, virial) + _between(frame, gradient, virial)
    charges = np.tile(_Q, frame.n_atoms // 3)
    if is_periodic:
        far = _FAR.evaluate(frame, charges)
        energy += float(far.atom_energy.sum())
        gradient += far.gradient
        virial += far.virial[0]
    return energy, -gradient, virial


def _molecules(x: Floats, cell: Floats | None, gradient: Floats, virial: Floats) -> float:
    """Bonds and angles; in a cell also what the charges of one molecule are counted for too much."""
    first, second = x[1::3] - x[0::3], x[2::3] - x[0::3]
    if cell is not None:
        first, second = nearest_images(first, cell), nearest_images(second, cell)
    a, b = np.linalg.norm(first, axis=1), np.linalg.norm(second, axis=1)
    cosine = (first * second).sum(axis=1) / (a * b)
    theta = np.arccos(cosine)
    energy = float((BOND / 2 * ((a - BOND_LENGTH) ** 2 + (b - BOND_LENGTH) ** 2)).sum())
    energy += float((BEND / 2 * (theta - ANGLE) ** 2).sum())
    slope = -BEND * (theta - ANGLE) / np.sin(theta)  # dE/dcos
    u, v = first / a[:, None], second / b[:, None]
    by_first = (BOND * (a - BOND_LENGTH))[:, None] * u + (slope / a)[:, None] * (v - cosine[:, None] * u)
    by_second = (BOND * (b - BOND_LENGTH))[:, None] * v + (slope / b)[:, None] * (u - cosine[:, None] * v)
    if cell is not None:  # the Ewald sum takes pairs of one molecule in
        for pair, vector, by in ((0, first, by_first), (1, second, by_second)):
            energy += _unpaired(vector, _Q[0] * _Q[1 + pair], by)
        third, by_third = second - first, np.zeros_like(first)
        energy += _unpaired(third, _Q[1] * _Q[2], by_third)
        by_first, by_second = by_first - by_third, by_second + by_third
    gradient[1::3] += by_first
    gradient[2::3] += by_second
    gradient[0::3] -= by_first + by_second
    virial -= by_first.T @ first + by_second.T @ second
    return energy


def _unpaired(vectors: Floats, product: float, by: Floats) -> float:
    """Take the energy of pairs of point charges off; adds the derivatives by their vectors to `by`."""
    r = np.linalg.norm(vectors, axis=1)
    by += (COULOMB * product / r**3)[:, None] * vectors
    return -float((COULOMB * product / r).sum())


def _between(frame: Frames, gradient: Floats, virial: Floats) -> float:
    """Lennard-Jones of oxygens, and the charges: screened in a cell, whole between molecules of an open structure."""
    from scipy.special import erfc

    n, is_periodic = frame.n_atoms, bool(frame.pbc.all())
    charges = np.tile(_Q, n // 3)
    if is_periodic:
        edges = neighbors.build(frame, _NEAR)
        i, j = edges.centre, edges.neighbour
        vectors = frame.positions[j] - frame.positions[i] + edges.shift @ frame.cell[0]
    else:
        i, j = np.nonzero(~np.eye(n, dtype=bool))
        vectors = frame.positions[j] - frame.positions[i]
    r = np.linalg.norm(vectors, axis=1)
    products = COULOMB * charges[i] * charges[j]
    if is_periodic:
        energy = products * erfc(_SPLIT * r) / r
        slope = -energy / r - products * 2 * _SPLIT / np.sqrt(np.pi) * np.exp(-((_SPLIT * r) ** 2)) / r
    else:
        products = np.where(i // 3 == j // 3, 0.0, products)
        energy = products / r
        slope = -energy / r
    oxygens = (i % 3 == 0) & (j % 3 == 0) & (r < LJ_REACH[1])
    value, by = _lennard_jones(r[oxygens])
    energy[oxygens] += value
    slope[oxygens] += by
    force = 0.5 * (slope / r)[:, None] * vectors  # every pair comes twice
    for d in range(3):
        gradient[:, d] += np.bincount(j, force[:, d], n) - np.bincount(i, force[:, d], n)
    virial -= force.T @ vectors
    return 0.5 * float(energy.sum())


def _lennard_jones(r: Floats) -> tuple[Floats, Floats]:
    """Energy and its derivative."""
    sixth = (SIGMA / r) ** 6
    energy, slope = 4 * EPSILON * (sixth**2 - sixth), 4 * EPSILON * (6 * sixth - 12 * sixth**2) / r
    width = LJ_REACH[1] - LJ_REACH[0]
    u = np.clip((r - LJ_REACH[0]) / width, 0, 1)
    switch, by = 1 + u**3 * (-6 * u**2 + 15 * u - 10), -30 * u**2 * (1 - u) ** 2 / width
    return energy * switch, slope * switch + energy * by


def pair_energies(first: Floats, second: Floats) -> Floats:
    """Interaction of pairs of molecules, (n,), eV.

    Args:
        first: O H H of one of each pair, (n, 3, 3), Å.
        second: of the other.
    """
    r = np.linalg.norm(first[:, :, None] - second[:, None], axis=3)
    coulomb = (COULOMB * _Q[:, None] * _Q / r).sum(axis=(1, 2))
    near = np.minimum(r[:, 0, 0], LJ_REACH[1])
    return coulomb + _lennard_jones(near)[0]


# Structures.


def molecule() -> Floats:
    """One molecule at its minimum, O at the origin, (3, 3), Å."""
    half = ANGLE / 2
    arms = [[np.sin(half), 0.0, np.cos(half)], [-np.sin(half), 0.0, np.cos(half)]]
    return np.array([[0.0, 0.0, 0.0], *(BOND_LENGTH * np.array(arms))])


def rotations(rng: np.random.Generator, n: int) -> Floats:
    """Proper rotations, drawn evenly, (n, 3, 3)."""
    a, b, c, d = np.moveaxis((q := rng.normal(size=(n, 4))) / np.linalg.norm(q, axis=1, keepdims=True), 1, 0)
    rows = [
        [1 - 2 * (c**2 + d**2), 2 * (b * c - a * d), 2 * (b * d + a * c)],
        [2 * (b * c + a * d), 1 - 2 * (b**2 + d**2), 2 * (c * d - a * b)],
        [2 * (b * d - a * c), 2 * (c * d + a * b), 1 - 2 * (b**2 + c**2)],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def liquid(n_side: int, seed: int) -> ase.Atoms:
    """n_side³ molecules of any orientation on a cubic grid at the density of the liquid."""
    rng = np.random.default_rng(seed)
    length = (n_side**3 / DENSITY) ** (1 / 3)
    grid = np.stack(np.meshgrid(*[np.arange(n_side)] * 3, indexing="ij"), axis=-1).reshape(-1, 3) * length / n_side
    x = grid[:, None] + molecule() @ rotations(rng, len(grid))
    return ase.Atoms("OHH" * len(grid), x.reshape(-1, 3), cell=length * np.eye(3), pbc=True)


def cluster(n_molecules: int, seed: int, closest: float = 2.7, spread: float = 3.1) -> ase.Atoms:
    """Molecules of any orientation in a ball, their oxygens no closer than a distance, Å."""
    rng = np.random.default_rng(seed)
    radius = spread * n_molecules ** (1 / 3)
    places: list[Floats] = []
    while len(places) < n_molecules:
        place = rng.uniform(-radius, radius, size=3)
        if all(np.linalg.norm(place - other) > closest for other in places) and np.linalg.norm(place) < radius:
            places.append(place)
    x = np.array(places)[:, None] + molecule() @ rotations(rng, n_molecules)
    return ase.Atoms("OHH" * n_molecules, x.reshape(-1, 3))


def sample(
    atoms: ase.Atoms, temperature: float, steps: int, stride: int, seed: int, settling: int = 0, timestep: float = 0.5
) -> list[ase.Atoms]:
    """Frames of Langevin dynamics with the teacher, whose start is left out.

    Args:
        atoms: to start from; not changed.
        temperature: K.
        steps: after the settling.
        stride: steps between two frames.
        seed: of velocities and thermostat.
        settling: steps before the first frame.
        timestep: fs.
    """
    rng, moving = np.random.default_rng(seed), atoms.copy()
    moving.calc = SpcFw()
    MaxwellBoltzmannDistribution(moving, temperature_K=temperature, rng=rng)
    Stationary(moving)
    dynamics = Langevin(
        moving, timestep * units.fs, temperature_K=temperature, friction=0.02 / units.fs, rng=rng, fixcm=False
    )
    dynamics.run(settling)
    frames = []
    for _ in range(steps // stride):
        dynamics.run(stride)
        frames.append(ase.Atoms(moving.symbols, moving.positions, cell=moving.cell, pbc=moving.pbc))
    return frames


def write_system(folder: Path, structures: Sequence[ase.Atoms]) -> Path:
    """Label structures of one composition and write them in DeePMD's npy format; returns the folder."""
    frames = frames_of(structures)
    found, n = evaluate(frames), len(structures)
    arrays = {"coord": frames.positions, "energy": found.energy, "force": found.forces, "box": frames.cell}
    if frames.pbc.all():
        arrays["virial"] = found.virial
    else:
        arrays["box"] = np.tile(100 * np.eye(3), (n, 1, 1))
    write_npy(folder, ("O", "H"), frames.types[: frames.n_atoms // n], arrays)
    if not frames.pbc.all():
        (folder / "nopbc").touch()
    return folder


def write_npy(folder: Path, type_map: Sequence[str], types: Ints, arrays: Mapping[str, Floats]) -> None:
    """Write frames of one composition in DeePMD's npy format.

    Args:
        folder: the system.
        type_map: names of the species.
        types: of the atoms, (n_atoms,).
        arrays: by the names of the files, of any shape that begins with frames or their atoms; energy among them.
    """
    target, n_frames = folder / "set.000", len(arrays["energy"])
    target.mkdir(parents=True, exist_ok=True)
    (folder / "type_map.raw").write_text("\n".join(type_map) + "\n", encoding="utf-8")
    (folder / "type.raw").write_text("\n".join(map(str, types)) + "\n", encoding="utf-8")
    for name, values in arrays.items():
        np.save(target / f"{name}.npy", values if name == "energy" else values.reshape(n_frames, -1))
