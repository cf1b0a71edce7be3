"""Structures for tests: water-like, irregular enough that no two distances agree, in every kind of cell."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np

from dpserver.frames import Floats, Frames

SPECIES = ("O", "H")
SPACING = 3.1  # Å, near that of liquid water

SHEAR = np.array([[1.05, 0.0, 0.1], [-0.45, 0.95, 0.0], [0.35, 0.4, 1.1]])


def water(
    n: tuple[int, int, int] = (2, 2, 2),
    shear: Floats | None = None,
    pbc: tuple[bool, bool, bool] = (True, True, True),
    seed: int = 0,
) -> Frames:
    """A grid of n molecules, oriented at random and distorted, O H H each; open directions have no lattice vector."""
    rng = np.random.default_rng(seed)
    cell = np.diag(n) * SPACING @ (np.eye(3) if shear is None else shear)
    grid = np.stack(np.meshgrid(*map(np.arange, n), indexing="ij"), axis=-1).reshape(-1, 3) / n
    positions = np.concatenate([origin + _molecule(rng) for origin in grid @ cell])
    positions += rng.normal(scale=0.07, size=positions.shape)
    return Frames.single(positions, [0, 1, 1] * len(grid), np.where(np.array(pbc)[:, None], cell, 0.0), pbc)


def _molecule(rng: np.random.Generator) -> Floats:
    half = np.radians(rng.uniform(100, 109)) / 2
    flat = np.array([[0, 0, 0], [np.sin(half), np.cos(half), 0], [-np.sin(half), np.cos(half), 0]])
    return flat * rng.uniform(0.92, 1.02, size=(3, 1)) @ rotation(rng)


def rotation(rng: np.random.Generator) -> Floats:
    """A proper rotation, drawn evenly."""
    q, r = np.linalg.qr(rng.normal(size=(3, 3)))
    q = q * np.sign(np.diag(r))
    return q * np.sign(np.linalg.det(q))


def cubic(seed: int = 1) -> Frames:
    return water(seed=seed)


def triclinic(seed: int = 2) -> Frames:
    return water((2, 1, 2), SHEAR, seed=seed)


def slab(seed: int = 3) -> Frames:
    """Periodic along two vectors that are not at right angles, open along the third."""
    return water((2, 2, 1), SHEAR, (True, True, False), seed)


def wire(seed: int = 4) -> Frames:
    return water((1, 1, 3), None, (False, False, True), seed)


def cluster(seed: int = 5) -> Frames:
    return water((2, 2, 1), None, (False, False, False), seed)


def tiny(seed: int = 6) -> Frames:
    """One molecule in a cell that is smaller than any cutoff: the atoms see their own images."""
    return water((1, 1, 1), SHEAR, seed=seed)


def molecule(seed: int = 7) -> Frames:
    return water((1, 1, 1), None, (False, False, False), seed)


def atom(species: int = 0) -> Frames:
    return Frames.single([[0.3, -1.2, 5.0]], [species])


def only(frames: Frames, species: int) -> Frames:
    """What is left of one frame when all other species are taken away."""
    keep = frames.types == species
    aparam = None if frames.aparam is None else frames.aparam[keep]
    return replace(
        frames,
        positions=frames.positions[keep],
        types=frames.types[keep],
        frame_idx=frames.frame_idx[keep],
        aparam=aparam,
    )


def strained(frames: Frames, strain: Floats) -> Frames:
    """x -> x (1 + ε) for positions and cells."""
    deform = np.eye(3) + strain
    return replace(frames, positions=frames.positions @ deform, cell=frames.cell @ deform)


def moved(frames: Frames, displacement: Floats) -> Frames:
    return replace(frames, positions=frames.positions + displacement)


def wrapped(frames: Frames, rng: np.random.Generator, far: int = 4) -> Frames:
    """Each atom moved by up to `far` of each lattice vector of its periodic directions."""
    shift = rng.integers(-far, far + 1, size=(frames.n_atoms, 3)) * frames.pbc[frames.frame_idx]
    return moved(frames, np.einsum("as,asd->ad", shift, frames.cell[frames.frame_idx]))


def permuted(frames: Frames, rng: np.random.Generator) -> tuple[Frames, np.ndarray]:
    """The atoms of each frame shuffled, and the place in the old batch of each new atom."""
    offsets = frames.offsets
    order = np.concatenate([lo + rng.permutation(hi - lo) for lo, hi in pairwise(offsets)])
    aparam = None if frames.aparam is None else frames.aparam[order]
    return replace(frames, positions=frames.positions[order], types=frames.types[order], aparam=aparam), order


def supercell(frame: Frames, direction: int = 0) -> Frames:
    """One frame twice along a periodic direction: all atoms, then their copies."""
    shift, cell = frame.cell[0, direction], frame.cell[0].copy()
    cell[direction] *= 2
    positions = np.concatenate([frame.positions, frame.positions + shift])
    aparam = None if frame.aparam is None else np.tile(frame.aparam, (2, 1))
    return Frames.single(positions, np.tile(frame.types, 2), cell, tuple(frame.pbc[0]), frame.fparam, aparam)


def copies(frame: Frames, displacements: Floats) -> Frames:
    """One frame displaced in several ways: displacements (n_copies, n_atoms, 3)."""
    return Frames.concatenate(moved(frame, d) for d in displacements)
