"""From i-PI's files to the numbers of the picture."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from itertools import combinations_with_replacement
from pathlib import Path
from typing import Final

import numpy as np
from numpy.typing import NDArray

from dpserver.demo import rdf
from dpserver.demo.session import PROPERTIES
from dpserver.demo.trajectory import read_properties, read_trajectory
from dpserver.errors import DataError
from dpserver.units import BOLTZMANN

Floats = NDArray[np.float64]

BIN: Final = 0.02  # Å, width of a shell of g(r)

_SETTLING: Final = 0.25  # part of the run in which the beads spread out from one point
_FRAMES: Final = 400  # per bead; more would cost time and show nothing new


@dataclass(frozen=True, eq=False)
class Distribution:
    """Radial distribution functions by pair of species.

    Attributes:
        edges: bounds of the shells, (n_bins + 1,), Å.
        g: one curve per pair of species such as "OH", (n_bins,).
    """

    edges: Floats
    g: dict[str, Floats]


@dataclass(frozen=True, eq=False)
class Average:
    """A mean with the standard error of block averages, in the unit of the series."""

    mean: float
    error: float

    def __str__(self) -> str:
        return f"{self.mean:.1f}" if np.isnan(self.error) else f"{self.mean:.1f} ± {self.error:.1f}"


@dataclass(frozen=True, eq=False)
class Results:
    """What the run gives.

    Attributes:
        n_beads: beads whose trajectories were read.
        counts: atoms per species.
        time: (n_rows,), ps.
        settled: time from which averages are taken, ps.
        target_temperature: of the thermostat, K.
        temperature: of the simulation, averaged over the settled part, K.
        conserved: change since the first step, (n_rows,), meV per atom.
        kinetic: centroid-virial kinetic energy per atom, "all" and each species, (n_rows,), meV.
        kinetic_average: averages of `kinetic` over the settled part, meV.
        distribution: g(r) of the beads over the settled part.
    """

    n_beads: int
    counts: dict[str, int]
    time: Floats
    settled: float
    target_temperature: float
    temperature: Average
    conserved: Floats
    kinetic: dict[str, Floats]
    kinetic_average: dict[str, Average]
    distribution: Distribution

    @property
    def classical(self) -> float:
        """Classical kinetic energy 3/2 kT per atom, meV."""
        return 1.5e3 * BOLTZMANN * self.target_temperature


def analyse(output: Path, target_temperature: float) -> Results:
    """Read a run, complete or interrupted.

    Args:
        output: the run's directory.
        target_temperature: of the thermostat, K.

    Returns:
        Its curves and averages.

    Raises:
        DataError: there is not one complete step and frame yet.
    """
    table = read_properties(output / PROPERTIES)
    paths = sorted(output.glob("simulation.pos_*.xyz"))
    if not len(table["step"]) or not paths:
        raise DataError(f"{output} holds no complete step; let the demo run a little longer")
    frames_written = paths[0].read_text(encoding="utf-8").count("CELL")
    beads = [read_trajectory(path, every=1 + frames_written // _FRAMES) for path in paths]
    counts = dict(Counter(beads[0].symbols))
    n_atoms = sum(counts.values())
    time = table["time"]
    settled = float(time[0] + _SETTLING * (time[-1] - time[0]))
    is_settled = time >= settled
    kinetic = {"all": 1e3 * table["kinetic_cv"] / n_atoms}
    kinetic |= {s: 1e3 * table[f"kinetic_cv({s})"] / n for s, n in counts.items()}
    n_frames = min(len(b.positions) for b in beads)
    first = int(_SETTLING * n_frames)
    return Results(
        n_beads=len(beads),
        counts=counts,
        time=time,
        settled=settled,
        target_temperature=target_temperature,
        temperature=block_average(table["temperature"][is_settled]),
        conserved=1e3 * (table["conserved"] - table["conserved"][0]) / n_atoms,
        kinetic=kinetic,
        kinetic_average={name: block_average(series[is_settled]) for name, series in kinetic.items()},
        distribution=distribution(
            np.concatenate([b.positions[first:n_frames] for b in beads]),
            np.concatenate([b.cells[first:n_frames] for b in beads]),
            beads[0].symbols,
        ),
    )


def distribution(positions: Floats, cells: Floats, symbols: tuple[str, ...]) -> Distribution:
    """g(r) of all pairs of species, as far as the smallest cell allows.

    Args:
        positions: (n_frames, n_atoms, 3), Å.
        cells: (n_frames, 3, 3), Å.
        symbols: one per atom.

    Returns:
        The curves; pairs follow the order in which species appear among the atoms, except that O comes before H.
    """
    edges = _edges(int(rdf.largest_radius(cells) / BIN))
    species = sorted(set(symbols), key=lambda s: (s == "H", symbols.index(s)))
    atoms = {s: np.flatnonzero(np.array(symbols) == s) for s in species}
    return Distribution(
        edges,
        {
            a + b: rdf.radial_distribution(positions, cells, atoms[a], atoms[b], edges)
            for a, b in combinations_with_replacement(species, 2)
        },
    )


def block_average(series: Floats, n_blocks: int = 5) -> Average:
    """Mean and its standard error from the scatter of consecutive blocks.

    Args:
        series: (n_rows,).
        n_blocks: into how many blocks it is cut.

    Returns:
        The average; its error is NaN where there are fewer rows than blocks.
    """
    if len(series) < n_blocks:
        return Average(float(series.mean()), float("nan"))
    means = np.array([block.mean() for block in np.array_split(series, n_blocks)])
    return Average(float(series.mean()), float(means.std(ddof=1) / np.sqrt(n_blocks)))


def write_distribution(path: Path, curves: Distribution, comment: str) -> None:
    """Write curves as comma-separated values: the middle of each shell in Å, then one column per pair."""
    middle = 0.5 * (curves.edges[1:] + curves.edges[:-1])
    names = ["r", *(f"g_{pair}" for pair in curves.g)]
    np.savetxt(
        path,
        np.column_stack([middle, *curves.g.values()]),
        fmt=["%.2f", *["%.4f"] * len(curves.g)],
        delimiter=",",
        header=f"# {comment}\n{','.join(names)}",
        comments="",
    )


def read_distribution(path: Path) -> Distribution:
    """Read what `write_distribution` wrote.

    Raises:
        DataError: the file is not such a table.
    """
    lines = [line for line in path.read_text(encoding="utf-8").splitlines() if not line.startswith("#")]
    names = lines[0].split(",") if lines else []
    if names[:1] != ["r"] or any(not name.startswith("g_") for name in names[1:]):
        raise DataError(f"{path} must begin with a line of names r,g_AB,…; got {lines[0] if lines else 'nothing'!r}")
    table = np.array([line.split(",") for line in lines[1:]], dtype=np.float64)
    edges = _edges(len(table))
    if not np.allclose(table[:, 0], 0.5 * (edges[1:] + edges[:-1])):
        raise DataError(f"{path}: expected r in steps of {BIN} Å from {BIN / 2}, got {table[:3, 0]} …")
    return Distribution(edges, {name.removeprefix("g_"): g for name, g in zip(names[1:], table.T[1:], strict=True)})


def _edges(n_bins: int) -> Floats:
    return BIN * np.arange(n_bins + 1, dtype=np.float64)
