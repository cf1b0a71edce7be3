"""Flat, ragged batches of atomic structures and of their results: what every layer hands to the next.

A batch of n_frames structures holds its atoms one after the other, never padded; `frame_idx` tells whose an
atom is. Units are Å, eV and eV/Å. Lattice vectors are the rows of `cell`.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from dpserver.errors import StructureError
from dpserver.parts import Wholes

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Bools = NDArray[np.bool_]

_FEW = 64
"""Frames whose cells are worth remembering."""


@dataclass(frozen=True, eq=False)
class Frames:
    """A batch of structures.

    Attributes:
        positions: (n_atoms, 3), float64, Å.
        types: index of each atom's species in the model's `species`, (n_atoms,), int64.
        cell: lattice vectors as rows, (n_frames, 3, 3), float64, Å; rows of open directions may be zero.
        pbc: periodic directions, (n_frames, 3), bool.
        frame_idx: frame of each atom, ascending, (n_atoms,), int64.
        is_ghost: atoms that are only there as neighbours of others, (n_atoms,), bool: their own energy belongs to
            another part of the structure. None where there are none.
        fparam: parameters of each frame for models that take such, (n_frames, n_fparam), float64.
        aparam: parameters of each atom, (n_atoms, n_aparam), float64.
        names: number by which messages are to call each atom, that in the structure it is a part of, (n_atoms,), int64;
            None is its place in its frame.
        wholes: what the frames are parts of, for terms of long range; None where no term asks.
    """

    positions: Floats
    types: Ints
    cell: Floats
    pbc: Bools
    frame_idx: Ints
    is_ghost: Bools | None = None
    fparam: Floats | None = None
    aparam: Floats | None = None
    names: Ints | None = None
    wholes: Wholes | None = None

    @property
    def n_atoms(self) -> int:
        """Atoms of all frames together."""
        return len(self.positions)

    @property
    def n_frames(self) -> int:
        """Number of structures."""
        return len(self.cell)

    @property
    def counts(self) -> Ints:
        """Atoms per frame, (n_frames,), int64."""
        return np.bincount(self.frame_idx, minlength=self.n_frames).astype(np.int64)

    @property
    def offsets(self) -> Ints:
        """First atom of each frame and the total, (n_frames + 1,), int64."""
        return np.concatenate([[0], np.cumsum(self.counts)]).astype(np.int64)

    @classmethod
    def single(
        cls,
        positions: ArrayLike,
        types: ArrayLike,
        cell: ArrayLike | None = None,
        pbc: bool | Sequence[bool] | None = None,
        fparam: ArrayLike | None = None,
        aparam: ArrayLike | None = None,
    ) -> Frames:
        """Make a batch of one structure.

        Args:
            positions: (n_atoms, 3), Å.
            types: species indices, (n_atoms,).
            cell: (3, 3) with lattice vectors as rows, Å; None or zeros means an open system.
            pbc: periodic directions; by default all three with a cell and none without.
            fparam: parameters of the structure, for models that take such, (n_fparam,).
            aparam: parameters of its atoms, (n_atoms, n_aparam), or (n_atoms,) for one of each.

        Raises:
            StructureError: shapes do not fit, types are no indices, or a periodic direction has no lattice vector.
        """
        x = np.ascontiguousarray(positions, dtype=np.float64)
        t = _indices(types)
        h = np.zeros((3, 3)) if cell is None else np.ascontiguousarray(cell, dtype=np.float64)
        if x.ndim != 2 or x.shape[1] != 3:
            raise StructureError(f"positions must have shape (n_atoms, 3), got {x.shape}")
        if t.shape != (len(x),):
            raise StructureError(f"types must have shape ({len(x)},) to match the positions, got {t.shape}")
        if h.shape != (3, 3):
            raise StructureError(f"cell must have shape (3, 3), got {h.shape}")
        p = np.broadcast_to(np.asarray(bool(h.any()) if pbc is None else pbc, dtype=bool), (3,)).copy()
        f = None if fparam is None else np.ascontiguousarray(fparam, dtype=np.float64).reshape(1, -1)
        a = None if aparam is None else np.ascontiguousarray(aparam, dtype=np.float64)
        if a is not None and (a.ndim not in (1, 2) or len(a) != len(x)):
            raise StructureError(f"aparam must have shape ({len(x)}, n_aparam) to match the positions, got {a.shape}")
        a = None if a is None else a.reshape(len(x), -1)
        return cls(x, t, h[None], p[None], np.zeros(len(x), dtype=np.int64), fparam=f, aparam=a)

    @classmethod
    def concatenate(cls, batches: Iterable[Frames]) -> Frames:
        """Join batches in order into one; the result owns its arrays."""
        parts = list(batches)
        if not parts:
            return cls(
                np.zeros((0, 3)),
                np.zeros(0, dtype=np.int64),
                np.zeros((0, 3, 3)),
                np.zeros((0, 3), dtype=bool),
                np.zeros(0, dtype=np.int64),
            )
        first = np.cumsum([0, *(p.n_frames for p in parts)])
        return cls(
            np.concatenate([p.positions for p in parts]),
            np.concatenate([p.types for p in parts]),
            np.concatenate([p.cell for p in parts]),
            np.concatenate([p.pbc for p in parts]),
            np.concatenate([p.frame_idx + k for p, k in zip(parts, first[:-1], strict=True)]),
            _joined_ghosts(parts),
            _joined([p.fparam for p in parts], "fparam"),
            _joined([p.aparam for p in parts], "aparam"),
            _joined_names(parts),
            Wholes.joined([(p.wholes, p.n_frames) for p in parts]),
        )

    def of_frame(self, frame: int) -> str:
        """` of frame 3` for an error message; empty where there is one frame alone."""
        return "" if self.n_frames == 1 else f" of frame {frame}"

    def __getitem__(self, frame: int) -> Frames:
        """One frame as a batch of its own; its arrays are views."""
        if not 0 <= frame < self.n_frames:
            raise IndexError(f"frame {frame} of a batch of {self.n_frames}")
        return self.part(frame, frame + 1)

    def part(self, start: int, stop: int) -> Frames:
        """Consecutive frames, counted from 0 again; the arrays are views.

        Args:
            start: the first.
            stop: the last + 1.
        """
        lo, hi = np.searchsorted(self.frame_idx, [start, stop])
        return Frames(
            self.positions[lo:hi],
            self.types[lo:hi],
            self.cell[start:stop],
            self.pbc[start:stop],
            self.frame_idx[lo:hi] - start,
            None if self.is_ghost is None else self.is_ghost[lo:hi],
            None if self.fparam is None else self.fparam[start:stop],
            None if self.aparam is None else self.aparam[lo:hi],
            None if self.names is None else self.names[lo:hi],
            None if self.wholes is None else self.wholes.part(start, stop),
        )

    def __iter__(self) -> Iterator[Frames]:
        return (self[k] for k in range(self.n_frames))

    def check(self, n_species: int) -> None:
        """Refuse what no model can answer.

        Args:
            n_species: number of species the model knows.

        Raises:
            StructureError: no atoms, non-finite numbers, a singular periodic cell, or a type out of range.
        """
        if (self.counts == 0).any():
            raise StructureError(f"frame {int(np.argmin(self.counts))} has no atoms; expected at least one")
        if not np.isfinite(self.positions).all():
            bad = ~np.isfinite(self.positions).all(axis=1)
            atom = int(np.flatnonzero(bad)[0])
            raise StructureError(
                f"the position of atom {atom} is not finite ({self.positions[atom]}); "
                f"{int(bad.sum())} of {self.n_atoms} atoms: the dynamics has probably blown up"
            )
        if not np.isfinite(self.cell).all():
            raise StructureError("a lattice vector is not finite: the barostat has probably blown up")
        for name, owner, values in (("fparam", "frame", self.fparam), ("aparam", "atom", self.aparam)):
            if values is not None and not np.isfinite(values).all():
                row = int(np.argmin(np.isfinite(values).all(axis=1)))
                raise StructureError(f"{name} of {owner} {row}: expected finite numbers, got {values[row]}")
        wrong = (self.types < 0) | (self.types >= n_species)
        if wrong.any():
            atom = int(np.flatnonzero(wrong)[0])
            raise StructureError(f"atom {atom} has type {self.types[atom]}; the model knows 0 to {n_species - 1}")
        cells = np.asarray(self.cell, dtype=np.float64)
        if self.n_frames <= _FEW:
            _check_known_cells(cells.tobytes(), self.pbc.tobytes())
        else:
            _check_cells(cells, self.pbc)


def _joined_ghosts(parts: Sequence[Frames]) -> Bools | None:
    """Which atoms of a batch are ghosts; parts that do not say have none."""
    if all(p.is_ghost is None for p in parts):
        return None
    return np.concatenate([np.zeros(p.n_atoms, dtype=bool) if p.is_ghost is None else p.is_ghost for p in parts])


def _joined_names(parts: Sequence[Frames]) -> Ints | None:
    """What messages call the atoms of a batch; where a part does not say, their places in their frames."""
    if all(p.names is None for p in parts):
        return None
    places = [np.arange(p.n_atoms) - p.offsets[p.frame_idx] for p in parts]
    return np.concatenate([place if p.names is None else p.names for p, place in zip(parts, places, strict=True)])


def _joined(parts: Sequence[Floats | None], name: str) -> Floats | None:
    """The parameters of a batch.

    Raises:
        StructureError: only some parts have them, or not all the same number.
    """
    given = [p for p in parts if p is not None]
    if not given:
        return None
    if len(given) < len(parts) or len({p.shape[1] for p in given}) > 1:
        raise StructureError(f"all structures of a batch must have the same number of parameters {name}")
    return np.concatenate(given)


def _indices(types: ArrayLike) -> Ints:
    """Species indices as int64; symbols and fractions are refused."""
    try:
        given = np.asarray(types)
    except ValueError:
        raise StructureError("types must be one list of numbers; it holds lists of different lengths") from None
    if given.size and (given.dtype.kind not in "biuf" or not (np.isfinite(given) & (given == np.trunc(given))).all()):
        raise StructureError(
            f"types must be indices into the model's species, such as 0 for the first, got {given.ravel()[0]!s}, …; "
            "turn symbols into indices with species.index(symbol)"
        )
    return np.ascontiguousarray(given, dtype=np.int64)


def _scaled(vectors: Floats) -> Floats:
    """Divide each vector by its largest component, so that no product of them is too large for a number."""
    largest = np.abs(vectors).max(axis=-1, keepdims=True)
    return vectors / np.where(largest == 0.0, 1.0, largest)


@functools.lru_cache(maxsize=64)
def _check_known_cells(cell: bytes, pbc: bytes) -> None:
    """Refuse singular cells of a few frames; those of most simulations stay what they are, and are looked at once."""
    _check_cells(np.frombuffer(cell).reshape(-1, 3, 3), np.frombuffer(pbc, dtype=bool).reshape(-1, 3))


def _check_cells(cells: Floats, periodic: Bools) -> None:
    """Refuse singular cells.

    Args:
        cells: lattice vectors, (n_frames, 3, 3).
        periodic: directions, (n_frames, 3).
    """
    if (k := singular_cell(cells, periodic)) is not None:
        raise StructureError(
            f"the cell is singular: lattice vectors {cells[k][periodic[k]].tolist()} Å do not span a volume; "
            "send zeros for an open system"
        )


def singular_cell(cells: Floats, periodic: Bools) -> int | None:
    """The first cell whose periodic lattice vectors do not span a volume.

    Args:
        cells: lattice vectors, (n_frames, 3, 3).
        periodic: directions, (n_frames, 3).
    """
    # All at once; one by one only those that look singular, and those with open directions.
    rows = _scaled(cells)
    volume, product = np.abs(np.linalg.det(rows)), np.linalg.norm(rows, axis=2).prod(axis=1)
    suspects = np.flatnonzero(~periodic.all(axis=1) | (volume <= 2e-6 * product))
    return next((int(k) for k in suspects if _is_singular(cells[k][periodic[k]])), None)


def _is_singular(vectors: Floats) -> bool:
    """Periodic lattice vectors must be independent: their volume is compared with the product of their lengths."""
    if not len(vectors):
        return False
    rows = _scaled(vectors)
    lengths = np.linalg.norm(rows, axis=1)
    gram = float(np.linalg.det(rows @ rows.T))
    return not lengths.all() or gram <= float(1e-6 * lengths.prod()) ** 2


@dataclass(frozen=True, eq=False)
class CommitteeResult:
    """What each member of a committee says of a batch.

    Attributes:
        energy: (n_members, n_frames), float64, eV.
        forces: (n_members, n_atoms, 3), float64, eV/Å.
        virial: (n_members, n_frames, 3, 3), float64, eV.
    """

    energy: Floats
    forces: Floats
    virial: Floats

    @property
    def n_members(self) -> int:
        """Number of members."""
        return len(self.energy)

    def part(self, frames: slice, atoms: slice) -> CommitteeResult:
        """Some frames, and the atoms that are theirs; the arrays are views."""
        return CommitteeResult(self.energy[:, frames], self.forces[:, atoms], self.virial[:, frames])

    def force_deviation(self) -> Floats:
        """How far the members' forces on each atom lie apart, as DeePMD-kit's `model-devi` measures it.

        σ_i = sqrt(⟨|F_i − ⟨F_i⟩|²⟩), the averages over the members

        Returns:
            (n_atoms,), eV/Å.
        """
        variance: Floats = self.forces.var(axis=0).sum(axis=1)
        return np.sqrt(variance)


@dataclass(frozen=True, eq=False)
class TensorValues:
    """Dipoles or polarizabilities of a batch, in the units of the data that the model was trained with.

    Attributes:
        total: (n_frames, 3) or (n_frames, 3, 3), float64.
        atoms: what each atom adds, (n_atoms, 3) or (n_atoms, 3, 3), float64.
        born_charges: dμ_b/dx_a of each atom, (n_atoms, 3, 3) with a before b, float64, in e where dipoles are in e Å;
            None where they were not asked for.
    """

    total: Floats
    atoms: Floats
    born_charges: Floats | None = None


@dataclass(frozen=True, eq=False)
class Responses:
    """What other models say of a batch beside its forces; None where there is no such model.

    Attributes:
        dipole: (n_frames, 3), float64, e Å.
        polar: polarizability, (n_frames, 3, 3), float64, Å³.
        born_charges: dμ_b/dx_a of each atom, (n_atoms, 3, 3) with a before b, float64, e.
    """

    dipole: Floats | None = None
    polar: Floats | None = None
    born_charges: Floats | None = None

    def part(self, frames: slice, atoms: slice) -> Responses:
        """Some frames, and the atoms that are theirs; the arrays are views."""
        return Responses(
            None if self.dipole is None else self.dipole[frames],
            None if self.polar is None else self.polar[frames],
            None if self.born_charges is None else self.born_charges[atoms],
        )

    @classmethod
    def concatenate(cls, parts: Sequence[Responses]) -> Responses:
        """Join those of consecutive batches, which come of the same models."""

        def joined(values: Sequence[Floats | None]) -> Floats | None:
            given = [v for v in values if v is not None]
            return np.concatenate(given) if given else None

        return cls(
            joined([p.dipole for p in parts]), joined([p.polar for p in parts]), joined([p.born_charges for p in parts])
        )


@dataclass(frozen=True, eq=False)
class ForceResult:
    """Energies, forces and virials of a batch.

    Attributes:
        energy: (n_frames,), float64, eV.
        forces: (n_atoms, 3), float64, eV/Å.
        virial: -dE/d(strain), symmetric, (n_frames, 3, 3), float64, eV; equals -volume times stress.
        atom_energy: (n_atoms,), float64, eV.
        frame_idx: frame of each atom, ascending, (n_atoms,), int64.
        committee: what the members say whose mean this is; None where a single model answered.
        responses: what other models say of the same frames; None where there are none.
    """

    energy: Floats
    forces: Floats
    virial: Floats
    atom_energy: Floats
    frame_idx: Ints
    committee: CommitteeResult | None = None
    responses: Responses | None = None

    def __getitem__(self, frame: int) -> ForceResult:
        """The result of one frame; its arrays are views."""
        return self.part(slice(frame, frame + 1))

    def part(self, frames: slice, atoms: slice | None = None) -> ForceResult:
        """Consecutive frames, counted from 0 again; the arrays are views.

        Args:
            frames: first and last + 1, both given and not negative.
            atoms: theirs, if known.
        """
        if atoms is None:
            atoms = slice(*np.searchsorted(self.frame_idx, [frames.start, frames.stop]))
        return ForceResult(
            self.energy[frames],
            self.forces[atoms],
            self.virial[frames],
            self.atom_energy[atoms],
            self.frame_idx[atoms] - frames.start,
            None if self.committee is None else self.committee.part(frames, atoms),
            None if self.responses is None else self.responses.part(frames, atoms),
        )

    def is_finite(self) -> Bools:
        """Whether energy, forces and virial of each frame are finite, (n_frames,), bool; those of all members too."""
        good = np.isfinite(self.energy) & np.isfinite(self.virial).all(axis=(1, 2))
        is_sound = np.isfinite(self.forces)
        if not is_sound.all():
            np.logical_and.at(good, self.frame_idx, is_sound.all(axis=1))
        return good if self.responses is None else good & self._has_finite_responses(self.responses)

    def _has_finite_responses(self, responses: Responses) -> Bools:
        """Whether every number of other models is finite, for each frame, (n_frames,), bool."""
        good = np.ones(len(self.energy), dtype=bool)
        for values in (responses.dipole, responses.polar):
            if values is not None:
                good &= np.isfinite(values.reshape(len(good), -1)).all(axis=1)
        if responses.born_charges is not None:
            np.logical_and.at(good, self.frame_idx, np.isfinite(responses.born_charges).all(axis=(1, 2)))
        return good

    def max_force_deviation(self) -> Floats:
        """The largest `CommitteeResult.force_deviation` of each frame, (n_frames,), eV/Å; 0 without a committee."""
        largest = np.zeros(len(self.energy))
        if self.committee is not None:
            np.maximum.at(largest, self.frame_idx, self.committee.force_deviation())
        return largest
