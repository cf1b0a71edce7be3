"""A potential for tests of the serving half: quick, smooth, exact derivatives, and no torch."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np

from dpserver.frames import Floats, ForceResult, Frames

SPECIES = ("O", "H")


class PairModel:
    """E = Σ_pairs k_ab (1 - r²/rcut²)³ over all images closer than rcut; cells must be at least rcut wide.

    Args:
        stiffness: k_ab, eV; differs between species, so that a wrong order shows.
        rcut: Å.
        template: the model's own order of atoms.
        min_distance: of each pair, Å; by default nothing is known.
        crowd_distance: the same of pairs in numbers.
    """

    species = SPECIES

    def __init__(
        self,
        stiffness: tuple[float, float, float] = (0.8, 0.35, 0.2),
        rcut: float = 3.0,
        template: tuple[str, ...] | None = None,
        min_distance: Floats | None = None,
        crowd_distance: Floats | None = None,
    ) -> None:
        oo, oh, hh = stiffness
        self.stiffness = np.array([[oo, oh], [oh, hh]])
        self.rcut = rcut
        self.template = template
        self.min_distance = np.full((2, 2), np.inf) if min_distance is None else min_distance
        self.crowd_distance = np.full((2, 2), np.inf) if crowd_distance is None else crowd_distance
        self.batches: list[int] = []

    def evaluate(self, frames: Frames) -> ForceResult:
        self.batches.append(frames.n_frames)
        energy = np.zeros(frames.n_frames)
        forces = np.zeros((frames.n_atoms, 3))
        virial = np.zeros((frames.n_frames, 3, 3))
        atom_energy = np.zeros(frames.n_atoms)
        offsets = frames.offsets
        for k, frame in enumerate(frames):
            e, f, v = self._frame(frame)
            energy[k], virial[k] = e.sum(), v
            forces[offsets[k] : offsets[k + 1]] = f
            atom_energy[offsets[k] : offsets[k + 1]] = e
        return ForceResult(energy, forces, virial, atom_energy, frames.frame_idx.copy())

    def _frame(self, frame: Frames) -> tuple[Floats, Floats, Floats]:
        x, cell, pbc = frame.positions, frame.cell[0], frame.pbc[0]
        images = np.array(list(itertools.product(*([-1, 0, 1] if p else [0] for p in pbc))), dtype=float)
        if pbc.any():
            fractional = x @ np.linalg.pinv(cell)
            x = x - np.where(pbc, np.floor(fractional), 0.0) @ cell
        r = x[None, None, :, :] - x[None, :, None, :] + (images @ cell)[:, None, None, :]
        square = (r**2).sum(axis=3)
        square[(images == 0).all(axis=1)] += np.diag(np.full(len(x), np.inf))
        k = self.stiffness[np.ix_(frame.types, frame.types)]
        gap = np.where(square < self.rcut**2, 1 - square / self.rcut**2, 0.0)
        slope = -6 * k * gap**2 / self.rcut**2  # (dE/dr) / r of one directed pair
        gradient = slope[..., None] * np.where(np.isfinite(square)[..., None], r, 0.0)
        return (
            (k * gap**3).sum(axis=(0, 2)) / 2,
            gradient.sum(axis=(0, 2)),
            -np.einsum("sijc,sijd->cd", gradient, r) / 2,
        )


class Faulty(PairModel):
    """A pair model that does something else first.

    Args:
        fault: called with each batch; may raise, or change the result by returning another one.
    """

    def __init__(self, fault: Callable[[Frames, ForceResult], ForceResult], **options: object) -> None:
        super().__init__(**options)  # type: ignore[arg-type]
        self.fault = fault

    def evaluate(self, frames: Frames) -> ForceResult:
        return self.fault(frames, super().evaluate(frames))
