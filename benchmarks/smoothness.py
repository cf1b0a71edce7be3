"""Jumps of the energy along a path: what is left of ΔE when the work of the forces is taken away.

    python benchmarks/smoothness.py examples/water/w.pt examples/water/water.xyz

All atoms move on straight lines in random directions. Between neighbouring points of the path ΔE + Σ F·Δx, with the
mean force of both, vanishes to third order in the step for a smooth energy, and is the jump for one that is not.
Appends a record to benchmarks/results/smoothness.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import ase.io
import numpy as np
import records

import dpserver
from dpserver.ase import species_types

BATCH = 8


def jumps(potential: dpserver.Potential, frame: dpserver.Frames, length: float, points: int) -> np.ndarray:
    """ΔE + Σ F·Δx between neighbouring points of a path, (points - 1,), eV.

    Args:
        potential: the model, in float64.
        frame: where the path starts.
        length: root mean square displacement of an atom over the whole path, Å.
        points: number of points.
    """
    direction = np.random.default_rng(0).normal(size=frame.positions.shape)
    direction *= length / np.sqrt((direction**2).sum(axis=1).mean())
    energies, forces = [], []
    for part in np.array_split(np.linspace(0.0, 1.0, points), points // BATCH):
        batch = dpserver.Frames.concatenate(
            dpserver.Frames.single(frame.positions + t * direction, frame.types, frame.cell[0]) for t in part
        )
        result = potential.evaluate(batch)
        energies.append(result.energy)
        forces.append(result.forces.reshape(len(part), -1))
    energy, force = np.concatenate(energies), np.concatenate(forces)
    work = (force[1:] + force[:-1]) / 2 @ direction.reshape(-1) / (points - 1)
    return np.asarray(np.diff(energy) + work)


def main() -> None:
    """Measure and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path)
    parser.add_argument("structure", type=Path)
    parser.add_argument("--length", type=float, default=0.05, help="Å")
    parser.add_argument("--points", type=int, default=800)
    args = parser.parse_args()
    potential = dpserver.load(args.model, precision="double")
    atoms = ase.io.read(args.structure)
    frame = dpserver.Frames.single(atoms.positions, species_types(atoms, potential.species), atoms.cell.array)
    left = np.abs(jumps(potential, frame, args.length, args.points))
    records.append(
        "smoothness",
        {
            "model": args.model.name,
            "descriptor": potential.config.descriptor.type,
            "n_atoms": frame.n_atoms,
            "path_rms_angstrom": args.length,
            "points": args.points,
            "largest_jump_mev": float(left.max() * 1e3),
            "jumps_over_0.1_mev": int((left > 1e-4).sum()),
            "median_mev": float(np.median(left) * 1e3),
        },
    )


if __name__ == "__main__":
    main()
