"""The structures that benchmarks evaluate: water of examples/water, tiled."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dpserver.bench import tiled
from dpserver.frames import Frames

ROOT = Path(__file__).resolve().parents[1]
SPECIES = ("O", "H")


def _read(path: Path) -> Frames:
    """The only frame of an extended XYZ file."""
    _, comment, *lines = path.read_text(encoding="utf-8").split("\n")
    cell = np.array(comment.split('Lattice="')[1].split('"')[0].split(), dtype=np.float64).reshape(3, 3)
    rows = [line.split() for line in lines if line]
    return Frames.single([row[1:4] for row in rows], [SPECIES.index(row[0]) for row in rows], cell)


WATER = _read(ROOT / "examples" / "water" / "water.xyz")
"""64 molecules of liquid water; its types are indices into `SPECIES`."""


def water(n: int) -> Frames:
    """Water, n times along each direction."""
    return tiled(WATER, n)


def tiles_of(n_atoms: int) -> int:
    """How often to tile for about so many atoms."""
    return max(round((n_atoms / WATER.n_atoms) ** (1 / 3)), 1)
