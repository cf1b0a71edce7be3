"""Frames of close contacts: what a few hundred frames of a liquid do not tell a network, and dynamics asks of it.

    python -m benchmarks.science.contacts data/data_0 data/data_1 data/data_2 --out data/contacts

In each frame of ab initio water one molecule is pushed against another until two of their atoms are as close as in the
liquid's closest pairs, or closer. Energy and forces are those of the frame, and of the push what SPC/Fw (spce.py) says
of it: the repulsion between two O, and between two H, is that of an empirical model. It has none between O and H; there
the molecules' own O keep each other apart.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.science import spce
from benchmarks.science.analysis import nearest_images
from benchmarks.science.common import read_system
from dpserver.errors import ConfigError
from dpserver.frames import Floats, Frames, Ints


@dataclass(frozen=True)
class Push:
    """Two atoms to bring together.

    Attributes:
        first: which of the molecule that is moved, O H H.
        second: which of another.
        distance: wanted, Å.
        share: of the tries; what comes of them depends on the liquid.
    """

    first: tuple[int, ...]
    second: tuple[int, ...]
    distance: tuple[float, float]
    share: float


PUSHES: Final = (
    Push((0,), (0,), (2.05, 2.5), 0.5),
    Push((1, 2), (1, 2), (1.1, 1.5), 0.25),
    Push((0,), (1, 2), (1.15, 1.45), 0.25),
)
LEAST: Final = {0: 2.0, 1: 1.1, 2: 1.05}  # Å, between atoms of two molecules, by the number of H in the pair
CHANGE: Final = (0.1, 4.0)  # eV, by a push
_LONGEST: Final = 2.0  # Å, of a push: further ones end in other molecules
_TRIES: Final = 2000


def molecules(positions: Floats, cell: Floats, symbols: Sequence[str]) -> tuple[Floats, Ints] | None:
    """Molecules of one frame as O H H, each whole: positions (m, 3, 3) and the atoms' numbers (m, 3).

    None where an O has not exactly two H nearest to it.
    """
    is_oxygen = np.array(symbols) == "O"
    oxygens, hydrogens = np.flatnonzero(is_oxygen), np.flatnonzero(~is_oxygen)
    arms = nearest_images(positions[hydrogens][:, None] - positions[oxygens], cell)
    owner = np.linalg.norm(arms, axis=2).argmin(axis=1)
    if (np.bincount(owner, minlength=len(oxygens)) != 2).any():
        return None
    of_molecule = np.argsort(owner, kind="stable").reshape(-1, 2)
    numbers = np.column_stack([oxygens, hydrogens[of_molecule]])
    found = np.repeat(positions[oxygens][:, None], 3, axis=1)
    found[:, 1:] += arms[of_molecule, np.arange(len(oxygens))[:, None]]
    return found, numbers


def pushed(whole: Floats, cell: Floats, rng: np.random.Generator) -> Floats | None:
    """The molecules with one of them pushed against another, (m, 3, 3); None where this try ends in no contact.

    Args:
        whole: molecules as O H H, (m, 3, 3), Å.
        cell: rows are the cell vectors, Å.
        rng: of what is pushed, and how far.
    """
    push = PUSHES[rng.choice(len(PUSHES), p=[p.share for p in PUSHES])]
    moved, other = rng.choice(len(whole), size=2, replace=False)
    way = nearest_images(whole[other, rng.choice(push.second)] - whole[moved, rng.choice(push.first)], cell)
    r = float(np.linalg.norm(way))
    step = r - rng.uniform(*push.distance)
    if not 0 < step < _LONGEST:
        return None
    found = whole.copy()
    found[moved] += step * way / r
    others = np.delete(found, moved, axis=0).reshape(-1, 3)
    distances = np.linalg.norm(nearest_images(others[:, None] - found[moved], cell), axis=2)
    hydrogens = (np.arange(len(others)) % 3 > 0)[:, None].astype(int) + np.array([0, 1, 1])
    is_apart = all(distances[hydrogens == k].min() > least for k, least in LEAST.items())
    return found if is_apart else None


def contact(
    positions: Floats, cell: Floats, symbols: Sequence[str], rng: np.random.Generator
) -> tuple[Floats, float, Floats] | None:
    """A contact made from a frame: positions, and what the push changes in energy and forces, Å and eV.

    None where the frame has no whole molecules, or no push was found.
    """
    known = molecules(positions, cell, symbols)
    if known is None:
        return None
    whole, numbers = known
    types = np.tile([0, 1, 1], len(whole))
    before = spce.evaluate(Frames.single(whole.reshape(-1, 3), types, cell))
    for _ in range(_TRIES):
        found = pushed(whole, cell, rng)
        if found is None:
            continue
        after = spce.evaluate(Frames.single(found.reshape(-1, 3), types, cell))
        change = float(after.energy[0] - before.energy[0])
        if CHANGE[0] < change < CHANGE[1]:
            new, forces = positions.copy(), np.zeros_like(positions)
            new[numbers.reshape(-1)] = found.reshape(-1, 3)
            forces[numbers.reshape(-1)] = after.forces - before.forces
            return new, change, forces
    return None


def write(folder: Path, sources: Sequence[Path], seed: int) -> int:
    """Write a contact for each frame of some systems that has one, as a system; returns the number of frames.

    Raises:
        ConfigError: the systems have other atoms, none of their frames has a contact, or there is something in the
            folder.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigError(f"{folder} exists and is not empty; name another with --out, or remove it")
    rng, systems = np.random.default_rng(seed), [read_system(source) for source in sources]
    symbols = systems[0].symbols
    if set(symbols) != {"O", "H"}:
        raise ConfigError(f"{sources[0]}: expected water, O and H, got {' '.join(sorted(set(symbols)))}")
    columns: dict[str, list[Any]] = {"coord": [], "box": [], "energy": [], "force": []}
    for source, system in zip(sources, systems, strict=True):
        if system.symbols != symbols:
            raise ConfigError(f"{source}: its atoms are not those of {sources[0]}, in the same order")
        for x, cell, energy, forces in zip(system.positions, system.cells, system.energy, system.forces, strict=True):
            made = contact(x, cell, symbols, rng)
            if made is not None:
                values = made[0], cell, energy + made[1], forces + made[2]
                for column, value in zip(columns.values(), values, strict=True):
                    column.append(value)
    if not columns["energy"]:
        raise ConfigError("no frame has a contact: expected liquid water, each O with two H nearest to it")
    types = np.array([symbol == "H" for symbol in symbols], dtype=np.int64)
    spce.write_npy(folder, ("O", "H"), types, {name: np.array(column) for name, column in columns.items()})
    return len(columns["energy"])


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("systems", type=Path, nargs="+", help="folders of water in DeePMD's npy format")
    parser.add_argument("--out", type=Path, required=True, help="the folder to write, a system as well")
    parser.add_argument("--seed", type=int, default=7)
    arguments = parser.parse_args()
    try:
        n_frames = write(arguments.out, arguments.systems, arguments.seed)
    except (ConfigError, OSError) as error:
        sys.exit(f"error: {error}")
    print(f"{n_frames} frames in {arguments.out}")


if __name__ == "__main__":
    main()
