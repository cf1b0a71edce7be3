"""Models of DeePMD-kit that are stored with the tests, and what DeePMD-kit itself answers for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpserver.frames import Floats, Frames

FOLDER = Path(__file__).parents[2] / "data" / "deepmd"
NAMES = ("a", "r")
SUFFIXES = (".dp", ".yaml", ".pth", ".pt", ".pb")
EMBEDDED = tuple(f"{name}{suffix}" for name in ("t", "v") for suffix in (".dp", ".pth", ".pt"))
"""Files of models with embedded types."""


def answers(name: str) -> tuple[Frames, dict[str, Floats]]:
    """The structures of a model of this folder, and energy, forces, virial, atom_energy of them."""
    with np.load(FOLDER / f"{name}.npz") as z:
        pbc = np.repeat(z["cell"].any(axis=(1, 2))[:, None], 3, axis=1)
        frames = Frames(z["positions"], z["types"].astype(np.int64), z["cell"], pbc, z["frame_idx"].astype(np.int64))
        return frames, {key: z[key] for key in ("energy", "forces", "virial", "atom_energy")}


def reference(path: Path) -> tuple[list[str], Frames, dict[str, Floats]]:
    """Names, structures and DeePMD-kit's results e, v (per frame), f, ae (per atom) of a `frames.npz`."""
    with np.load(path) as z:
        frames = Frames(
            z["coords"].astype(np.float64),
            z["types"].astype(np.int64),
            z["cell"].astype(np.float64),
            z["pbc"].astype(bool),
            z["frame_idx"].astype(np.int64),
        )
        return list(z["names"]), frames, {name: z[name] for name in ("e", "f", "v", "ae")}
