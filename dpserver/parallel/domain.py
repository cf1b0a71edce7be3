"""Cut a large structure into parts whose answers sum to the whole's. Pure geometry: knows no process and no model.

An energy that is a sum over atoms, E = Σ_i e_i, with e_i a function of the atoms within rcut of i, is cut by cutting
the sum. A part owns some atoms, its centres, and holds as ghosts all atoms, periodic images included, that were within
rcut + skin of any of them. Evaluated as an open structure with `Frames.is_ghost`, it gives the energy and the virial of
its centres, and the forces that these exert on all its atoms:

    E = Σ_parts E_p,   Ξ = Σ_parts Ξ_p,   F_k = Σ_parts Σ_{a in p: index(a) = k} F_pa

Each atom is owned once, and so these are the whole's sums in another order.

**How long a part holds.** Every atom within rcut of an owned one is in its part, as long as `Decomposition.is_valid`:
that is the criterion of neighbour lists with a skin (`neighbors.motion`), for the positions and the cell of the whole.
What evaluates a part keeps a neighbour list of its own, with a skin of its own, of the atoms that the part has. The two
need not know of each other: a pair within rcut of which one is owned has both its atoms in the part, by the first
criterion; and a pair of the part's atoms within rcut is in the part's list, by the second. It does not matter that a
list lacks pairs that were further apart than rcut + skin when the part was made: these come within rcut only after
the part has ceased to hold. With equal skins the two are made anew at about the same time, which costs least.

**Balance.** The parts come from bisection: a group of atoms is cut across its longest side, so that the work of its
halves is as the numbers of parts that each is to become, and these again. Work is estimated from the density around
each atom, and corrected by measured times (`Decomposition.reweighted`, `load.Load`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dpserver.errors import ConfigError
from dpserver.frames import Bools, CommitteeResult, Floats, ForceResult, Frames, Ints, Responses
from dpserver.neighbors.grid import Grid, completed, heights, integers
from dpserver.neighbors.lists import check_density
from dpserver.neighbors.motion import Snapshot
from dpserver.parallel import gathering

SKIN: Final = 1.0
"""How much further than the cutoff parts reach by default, Å: as far as the kernels' neighbour lists."""

NEIGHBOURS_PER_CENTRE: Final = 200.0
"""So many neighbours, the skin included, take as long as what is done once for each atom, the fitting net mainly."""

_SLICES: Final = 256


@dataclass(frozen=True, eq=False)
class Part:
    """One part of a structure, as it sees its atoms: those it owns first, then its ghosts.

    Attributes:
        index: atom of the whole, (n_atoms,).
        shift: lattice vectors between that and where the part sees it, integers, (n_atoms, 3).
        n_owned: atoms that are its centres.
    """

    index: Ints
    shift: Ints
    n_owned: int

    @property
    def n_atoms(self) -> int:
        """Owned ones and ghosts."""
        return len(self.index)

    @property
    def n_ghosts(self) -> int:
        """Atoms that are other parts', or images of its own."""
        return len(self.index) - self.n_owned


@dataclass(frozen=True, eq=False)
class Decomposition:
    """A structure cut into parts; see the module.

    Arrays over all parts have those of the first part first, and so on; `parts` are views of them.

    Attributes:
        parts: each with its atoms; where there are fewer atoms than parts, some are empty and need no evaluation.
        n_atoms: of the whole.
        rcut: cutoff radius, Å.
        skin: Å.
        weights: work that each atom of the whole was taken for, (n_atoms,), in units of its own.
        index: atom of the whole of each atom of the parts, (n_local,).
        shift: its lattice shift, integers, (n_local, 3).
        offsets: first atom of each part, and the total, (n_parts + 1,).
        n_owned: of each part, (n_parts,).
    """

    parts: tuple[Part, ...]
    n_atoms: int
    rcut: float
    skin: float
    weights: Floats
    index: Ints
    shift: Ints
    offsets: Ints
    n_owned: Ints
    _types: Ints
    _is_ghost: Bools
    _snapshot: Snapshot
    _copies: Ints
    _copies_of: Ints

    @classmethod
    def build(
        cls, frame: Frames, n_parts: int, rcut: float, skin: float = SKIN, weights: Floats | None = None
    ) -> Decomposition:
        """Cut a structure.

        Args:
            frame: one structure, checked; where it has ghosts, they are ghosts of its parts, and no part's own.
            n_parts: number of parts; there may be more than atoms.
            rcut: cutoff radius, Å.
            skin: how much further parts reach, Å.
            weights: work for each atom, (n_atoms,), positive; by default estimated from the density around it.

        Raises:
            ConfigError: there is not exactly one frame, or a number makes no sense.
            StructureError: the density is absurd.
        """
        _check(frame, n_parts, skin, weights)
        check_density(frame, rcut)  # parts are open, and of these no list can tell
        cell, pbc = completed(frame.cell[0], frame.pbc[0]), frame.pbc[0]
        # Cells begin behind the widest gap, so that no slab or droplet lies across a face.
        fractional = frame.positions @ np.linalg.inv(cell)
        begin = np.array([_widest_gap_ends(fractional[:, d]) if pbc[d] else 0.0 for d in range(3)])
        moved = Frames.single(frame.positions - begin @ cell, frame.types, frame.cell[0], pbc.tolist())
        grid = Grid.build(moved, rcut + skin)
        fractional -= begin + grid.wraps
        work = estimated_work(grid, rcut + skin) if weights is None else np.asarray(weights, dtype=np.float64)
        owned = np.arange(frame.n_atoms) if frame.is_ghost is None else np.flatnonzero(~frame.is_ghost)
        part_of = np.full(frame.n_atoms, n_parts)
        part_of[owned] = _bisect(heights(cell)[:, None] * fractional[owned].T, work[owned], n_parts)
        return cls._with_ghosts(frame, grid, part_of, (n_parts, rcut, skin), work)

    @classmethod
    def _with_ghosts(
        cls, frame: Frames, grid: Grid, part_of: Ints, numbers: tuple[int, float, float], weights: Floats
    ) -> Decomposition:
        """Find the ghosts of each part."""
        n_parts, rcut, skin = numbers
        owner = part_of[grid.order]
        arrays = grid.positions, owner, grid.bounds, gathering.bin_owners(owner, grid.bounds), grid.table
        around, reach = integers(grid.n_around), rcut + skin
        around = around[np.argsort((around**2).sum(axis=1), kind="stable")]  # most are found close by
        ghosts = np.empty((3, 4 * frame.n_atoms + 4096), dtype=np.int64)  # room not written to takes no memory
        while (n := gathering.find_ghosts(*arrays, around, grid.translations, reach**2, n_parts, ghosts)) < 0:
            ghosts = np.empty((3, 2 * ghosts.shape[1]), dtype=np.int64)
        ghosts = ghosts[:, :n]
        n_owned = np.bincount(owner, minlength=n_parts)[:n_parts]
        offsets = np.append(0, np.cumsum(n_owned + np.bincount(ghosts[0], minlength=n_parts)))
        wraps = grid.wraps.astype(np.int64)
        index, shift = gathering.list_atoms(owner, grid.order, wraps, ghosts, grid.images, offsets, n_owned)
        parts = tuple(
            Part(index[low:high], shift[low:high], int(n))
            for low, high, n in zip(offsets[:-1], offsets[1:], n_owned, strict=True)
        )
        copies, copies_of = gathering.inverse(index, frame.n_atoms)
        where = frame.types.copy(), _is_ghost(frame).copy(), Snapshot.take(frame), copies, copies_of
        return cls(parts, frame.n_atoms, rcut, skin, weights, index, shift, offsets, n_owned, *where)

    @property
    def n_parts(self) -> int:
        """Number of parts, empty ones included."""
        return len(self.parts)

    @property
    def work(self) -> Floats:
        """Work of each part, as the weights of its atoms have it, (n_parts,)."""
        owned = [part.index[: part.n_owned] for part in self.parts]
        return np.array([self.weights[atoms].sum() for atoms in owned])

    def is_valid(self, frame: Frames) -> bool:
        """Tell whether a structure may still be evaluated in these parts.

        Args:
            frame: a later one; an atom that has been put back into the cell since counts as one that has moved.

        Returns:
            Whether it has the same atoms, ghosts and periodic directions, and no two atoms can have come within rcut of
            which one is owned by a part and the other not in it; see the module.
        """
        snapshot = self._snapshot
        is_same = np.array_equal(frame.types, self._types) and np.array_equal(frame.pbc[0], snapshot.pbc)
        is_same = is_same and np.array_equal(_is_ghost(frame), self._is_ghost)
        return is_same and snapshot.compare(frame, self.rcut, self.rcut + self.skin, self.skin)[0]

    def local(self, frame: Frames, part: int) -> Frames:
        """The structure that a part is to evaluate; empty for a part without atoms. Messages name atoms of the whole.

        Args:
            frame: the whole.
            part: number of the part.
        """
        mine = self.parts[part]
        is_ghost = np.arange(mine.n_atoms) >= mine.n_owned
        return Frames(
            self.positions(frame, part),
            frame.types[mine.index],
            np.zeros((1, 3, 3)),
            np.zeros((1, 3), dtype=bool),
            np.zeros(mine.n_atoms, dtype=np.int64),
            is_ghost,
            frame.fparam,
            None if frame.aparam is None else frame.aparam[mine.index],
            mine.index if frame.names is None else frame.names[mine.index],
        )

    def positions(self, frame: Frames, part: int | None = None, out: Floats | None = None) -> Floats:
        """Where a part, or all parts one after the other, see their atoms.

        x_index + shift @ cell

        Args:
            frame: the whole.
            part: its number; None for all.
            out: an array to write to, by default a new one.

        Returns:
            (atoms of the part, 3) or (n_local, 3), Å.
        """
        low, high = (0, len(self.index)) if part is None else self.offsets[part : part + 2]
        found = np.empty((high - low, 3)) if out is None else out
        x = np.ascontiguousarray(frame.positions)
        gathering.gather(x, self.index[low:high], self.shift[low:high], frame.cell[0], found)
        return found

    def sum(self, values: Floats) -> Floats:
        """Add up what the parts found for each atom of the whole, always in the same order.

        Args:
            values: of the atoms of all parts, one part after the other, (n_local, 3): forces.

        Returns:
            (n_atoms, 3).
        """
        found = np.empty((self.n_atoms, 3))
        gathering.add_copies(np.ascontiguousarray(values), self._copies, self._copies_of, found)
        return found

    def total(self, results: Sequence[ForceResult | None]) -> ForceResult:
        """Put the answers to the parts together.

        Args:
            results: for each part that to its `local`; None for those without atoms.

        Returns:
            The answer to the whole.
        """
        given = [(part, r) for part, r in zip(self.parts, results, strict=True) if r is not None]
        atom_energy = np.zeros(self.n_atoms)
        for part, result in given:
            atom_energy[part.index[: part.n_owned]] = result.atom_energy[: part.n_owned]
        members = [r.committee for _, r in given if r.committee is not None]
        return ForceResult(
            np.sum([r.energy for _, r in given], axis=0),
            self.sum(np.concatenate([r.forces for _, r in given])),
            np.sum([r.virial for _, r in given], axis=0),
            atom_energy,
            np.zeros(self.n_atoms, dtype=np.int64),
            self._committee(members) if members else None,
            self._responses([r.responses for _, r in given if r.responses is not None]),
        )

    def _responses(self, parts: Sequence[Responses]) -> Responses | None:
        """Dipoles and polarizabilities are sums over atoms like energies; a derivative is one like forces."""
        if not parts:
            return None
        dipoles, polars = (
            [r.dipole for r in parts if r.dipole is not None],
            [r.polar for r in parts if r.polar is not None],
        )
        charges = [r.born_charges for r in parts if r.born_charges is not None]
        return Responses(
            np.sum(dipoles, axis=0) if dipoles else None,
            np.sum(polars, axis=0) if polars else None,
            np.stack([self.sum(by) for by in np.moveaxis(np.concatenate(charges), 2, 0)], axis=2) if charges else None,
        )

    def _committee(self, members: Sequence[CommitteeResult]) -> CommitteeResult:
        forces = np.concatenate([m.forces for m in members], axis=1)
        return CommitteeResult(
            np.sum([m.energy for m in members], axis=0),
            np.stack([self.sum(f) for f in forces]),
            np.sum([m.virial for m in members], axis=0),
        )

    def reweighted(self, seconds: Floats) -> Floats:
        """Work for each atom, corrected by how long the parts took: for the next `build`.

        Args:
            seconds: that each part took, (n_parts,); parts without atoms do not count.

        Returns:
            (n_atoms,), 1 on average.
        """
        work, found = self.work, self.weights.copy()
        for part, took, expected in zip(self.parts, seconds, work, strict=True):
            if part.n_owned and took > 0:
                found[part.index[: part.n_owned]] *= took / expected
            elif part.n_owned:  # not measured: as fast as all together
                found[part.index[: part.n_owned]] *= seconds.sum() / work.sum()
        return np.asarray(found / found.mean()) if found.any() else self.weights


def estimated_work(grid: Grid, reach: float) -> Floats:
    """Work for each atom from the density around it: 1 for the atom, and more for its neighbours.

    The density is that of the bin it lies in and the 26 around.

    Args:
        grid: the atoms in bins.
        reach: of neighbour lists, Å.

    Returns:
        (n_atoms,), in the order of the structure.
    """
    around = np.diff(grid.bounds).reshape(grid.n_bins).astype(np.float64)
    for d in range(3):
        sides = [np.roll(around, step, axis=d) for step in (1, -1)]
        if not grid.is_periodic[d]:
            for side, lost in zip(sides, (0, -1), strict=True):
                np.moveaxis(side, d, 0)[lost] = 0.0
        around = around + sides[0] + sides[1]
    neighbours = np.maximum(around.ravel() - 1, 0) / (27 * grid.bin_volume) * 4 / 3 * np.pi * reach**3
    found = np.empty(len(grid.order))
    found[grid.order] = np.repeat(1 + neighbours / NEIGHBOURS_PER_CENTRE, np.diff(grid.bounds))
    return found


def _is_ghost(frame: Frames) -> Bools:
    return np.zeros(frame.n_atoms, dtype=bool) if frame.is_ghost is None else frame.is_ghost


def _check(frame: Frames, n_parts: int, skin: float, weights: Floats | None) -> None:
    if frame.n_frames != 1:
        raise ConfigError(f"one structure at a time is cut into parts, got {frame.n_frames}")
    if n_parts < 1:
        raise ConfigError(f"the number of parts must be at least 1, got {n_parts}")
    if not skin >= 0:
        raise ConfigError(f"the skin of parts must not be negative, got {skin:g} Å")
    if weights is not None and (np.shape(weights) != (frame.n_atoms,) or not (np.asarray(weights) > 0).all()):
        raise ConfigError(f"weights must be {frame.n_atoms} positive numbers, one for each atom")


def _widest_gap_ends(fractional: Floats) -> float:
    """Where atoms begin along a periodic direction, fractional; 0 where they are everywhere."""
    places = ((fractional - np.floor(fractional)) * _SLICES).astype(np.int64) % _SLICES
    taken = np.flatnonzero(np.bincount(places, minlength=_SLICES))
    gaps = np.diff(taken, append=taken[0] + _SLICES)
    widest = int(gaps.argmax())
    return float(taken[(widest + 1) % len(taken)] / _SLICES) if gaps[widest] > 1 else 0.0


def _bisect(x: Floats, work: Floats, n_parts: int) -> Ints:
    """Cut atoms into groups of as much work by recursive bisection.

    Args:
        x: coordinates along the directions that are cut, in units of length, (3, n_atoms).
        work: of each, (n_atoms,).
        n_parts: number of groups.

    Returns:
        Group of each atom, (n_atoms,).
    """
    part_of = np.zeros(len(work), dtype=np.int64)
    groups = [(np.arange(len(work)), 0, n_parts)]
    while groups:
        atoms, first, n = groups.pop()
        if n == 1 or not len(atoms):
            part_of[atoms] = first
            continue
        sides = [coordinate[atoms] for coordinate in x]
        atoms = atoms[np.argsort(max(sides, key=np.ptp), kind="stable")]
        done = np.append(0.0, np.cumsum(work[atoms]))
        cut = int(np.abs(done - done[-1] * (n // 2) / n).argmin())
        groups += [(atoms[:cut], first, n // 2), (atoms[cut:], first + n // 2, n - n // 2)]
    return part_of
