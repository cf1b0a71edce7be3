"""Who evaluates what: a batch of structures as pieces, whole structures or parts of one, a share of them for each rank.

A rank evaluates all its pieces as one batch. What of it stays the same from step to step, its species and sizes, is
sent once, as a `Form`; a step is then nothing but numbers: cells, positions and parameters, in the order of the pieces.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import numpy as np

from dpserver.frames import Bools, CommitteeResult, Floats, ForceResult, Frames, Ints, Responses
from dpserver.parallel.domain import Decomposition
from dpserver.parts import Parts, Wholes

_HEAD: Final = 5


@dataclass(frozen=True)
class Piece:
    """Consecutive frames of a batch as they are, or one part of one frame.

    Attributes:
        start: first frame.
        stop: last frame + 1.
        part: number of the part; None for whole frames.
    """

    start: int
    stop: int
    part: int | None = None


@dataclass(frozen=True, eq=False)
class FormOfWholes:
    """The structures that the frames of a share are parts of, and the ranks that have the other parts.

    Attributes:
        counts: atoms of each, (n_frames,); 0 for frames that are whole.
        pbc: (n_frames, 3).
        ranks: all that have parts, in the order of the parts; each of them has some of every structure.
    """

    counts: Ints
    pbc: Bools
    ranks: tuple[int, ...]

    @property
    def is_part(self) -> Bools:
        """Which frames are parts of structures, (n_frames,)."""
        return self.counts > 0

    def encode(self) -> list[Ints]:
        """Write it as integers."""
        return [self.counts, self.pbc.ravel().astype(np.int64), np.array(self.ranks, dtype=np.int64)]

    @classmethod
    def decode(cls, numbers: Ints, n_frames: int) -> FormOfWholes | None:
        """Read what `encode` wrote; None where it wrote nothing."""
        if not len(numbers):
            return None
        counts, pbc, ranks = np.split(numbers, [n_frames, 4 * n_frames])
        return cls(counts.copy(), pbc.astype(bool).reshape(-1, 3), tuple(ranks.tolist()))


@dataclass(frozen=True, eq=False)
class Form:
    """What a share has in every step.

    Attributes:
        types: (n_atoms,).
        is_ghost: (n_atoms,); None where there is none.
        pbc: (n_frames, 3).
        counts: atoms of each frame, (n_frames,).
        n_fparam: parameters of each frame; -1 without.
        n_aparam: parameters of each atom; -1 without.
        wholes: of what the frames are parts, where that has to be known; None where not.
    """

    types: Ints
    is_ghost: Bools | None
    pbc: Bools
    counts: Ints
    n_fparam: int = -1
    n_aparam: int = -1
    wholes: FormOfWholes | None = None

    @property
    def n_frames(self) -> int:
        """Structures and parts of such."""
        return len(self.counts)

    @property
    def n_atoms(self) -> int:
        """Of all of them, ghosts included."""
        return len(self.types)

    @property
    def n_numbers(self) -> int:
        """Float64 of a step."""
        fparam, aparam = max(self.n_fparam, 0), max(self.n_aparam, 0)
        return self.n_frames * (9 + fparam) + self.n_atoms * (3 + aparam)

    @property
    def n_centres(self) -> int:
        """Atoms that are no ghosts."""
        return self.n_atoms - (0 if self.is_ghost is None else int(self.is_ghost.sum()))

    def encode(self) -> Ints:
        """Write it as integers."""
        head = [self.n_frames, self.n_atoms, self.n_fparam, self.n_aparam, int(self.is_ghost is not None)]
        ghosts = [] if self.is_ghost is None else [self.is_ghost]
        wholes = [] if self.wholes is None else self.wholes.encode()
        return np.concatenate([head, self.counts, self.pbc.ravel(), self.types, *ghosts, *wholes]).astype(np.int64)

    @classmethod
    def decode(cls, numbers: Ints) -> Form:
        """Read what `encode` wrote."""
        n_frames, n_atoms, n_fparam, n_aparam, has_ghosts = (int(n) for n in numbers[:_HEAD])
        ends = np.cumsum([_HEAD, n_frames, 3 * n_frames, n_atoms, n_atoms * has_ghosts])
        counts, pbc, types, ghosts, rest = np.split(numbers, ends)[1:]
        is_ghost = ghosts.astype(bool) if has_ghosts else None
        wholes = FormOfWholes.decode(rest, n_frames)
        return cls(types.copy(), is_ghost, pbc.astype(bool).reshape(-1, 3), counts.copy(), n_fparam, n_aparam, wholes)

    def cells(self, numbers: Floats) -> Floats:
        """Where a step has the cells, those of wholes for parts that have to know them, (n_frames, 3, 3): a view."""
        return numbers[: 9 * self.n_frames].reshape(-1, 3, 3)

    def frames(self, numbers: Floats, parts: Parts | None = None) -> Frames:
        """The batch of one step; its arrays are views of the numbers, but for cells where there are `wholes`.

        Args:
            numbers: of the step.
            parts: those that are evaluated together, where there are `wholes`.
        """
        n_frames, n_atoms = self.n_frames, self.n_atoms
        sizes = [9 * n_frames, 3 * n_atoms, n_frames * max(self.n_fparam, 0)]
        _, positions, fparam, aparam = np.split(numbers[: self.n_numbers], np.cumsum(sizes))
        cell, wholes = self.cells(numbers), None
        if self.wholes is not None and parts is not None:
            wholes = Wholes(cell, self.wholes.pbc, self.wholes.counts, parts)
            cell = np.where(wholes.is_part[:, None, None], 0.0, cell)
        return Frames(
            positions.reshape(n_atoms, 3),
            self.types,
            cell,
            self.pbc,
            np.repeat(np.arange(n_frames), self.counts),
            self.is_ghost,
            None if self.n_fparam < 0 else fparam.reshape(n_frames, self.n_fparam),
            None if self.n_aparam < 0 else aparam.reshape(n_atoms, self.n_aparam),
            wholes=wholes,
        )


@dataclass(frozen=True, eq=False)
class Share:
    """The pieces of one rank.

    Attributes:
        pieces: in the order of the batch.
        form: of all of them.
        atoms: first atom of each piece in the share, and the total, (n_pieces + 1,).
        frames: first frame of each piece in the share, and the total, (n_pieces + 1,).
    """

    pieces: tuple[Piece, ...]
    form: Form
    atoms: tuple[int, ...]
    frames: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Layout:
    """How a batch is shared out.

    Attributes:
        number: of the layout.
        shares: of each rank; those without pieces are None.
        cuts: how frames that are in parts are cut.
        offsets: first atom of each frame of the batch, and the total.
    """

    number: int
    shares: tuple[Share | None, ...]
    cuts: Mapping[int, Decomposition]
    offsets: Ints

    @classmethod
    def build(
        cls,
        number: int,
        batch: Frames,
        ranks: Sequence[Sequence[int]],
        cuts: Mapping[int, Decomposition],
        n_ranks: int,
        *,
        has_wholes: bool = False,
    ) -> Layout:
        """Share a batch out.

        Args:
            number: of the layout.
            batch: structures.
            ranks: of each frame: one that takes the whole, or one for each part of its cut.
            cuts: of the frames with several ranks.
            n_ranks: of the group.
            has_wholes: parts have to know what they are parts of; then no part is empty, and ranks have parts of all
                the structures that others have parts of together with them, or of none.
        """
        pieces: list[list[Piece]] = [[] for _ in range(n_ranks)]
        for frame, mine in enumerate(ranks):
            if len(mine) == 1:
                _add_whole(pieces[mine[0]], frame)
                continue
            for part, rank in enumerate(mine):
                if cuts[frame].parts[part].n_owned:
                    pieces[rank].append(Piece(frame, frame + 1, part))
        offsets = batch.offsets
        groups = {rank: tuple(mine) for mine in ranks if len(mine) > 1 for rank in mine} if has_wholes else {}
        shares = tuple(
            _share(mine, batch, cuts, offsets, groups.get(rank)) if mine else None for rank, mine in enumerate(pieces)
        )
        return cls(number, shares, dict(cuts), offsets)

    def write(self, batch: Frames, rank: int, numbers: Floats) -> None:
        """Write a step of a rank.

        Args:
            batch: of the layout's sizes and species.
            rank: whose share.
            numbers: `Form.n_numbers` of them.
        """
        share = self.shares[rank]
        if share is None:
            return
        local, cells = share.form.frames(numbers), share.form.cells(numbers)
        for k, piece in enumerate(share.pieces):
            frames = slice(share.frames[k], share.frames[k + 1])
            atoms = slice(share.atoms[k], share.atoms[k + 1])
            whole = slice(int(self.offsets[piece.start]), int(self.offsets[piece.stop]))
            index: slice | Ints = whole
            if piece.part is None:
                local.positions[atoms] = batch.positions[whole]
                cells[frames] = batch.cell[piece.start : piece.stop]
            else:
                cut = self.cuts[piece.start]
                cells[frames] = 0.0 if share.form.wholes is None else batch.cell[piece.start]
                cut.positions(batch[piece.start], piece.part, out=local.positions[atoms])
                index = cut.parts[piece.part].index + whole.start
            if local.fparam is not None and batch.fparam is not None:
                local.fparam[frames] = batch.fparam[piece.start : piece.stop]
            if local.aparam is not None and batch.aparam is not None:
                local.aparam[atoms] = batch.aparam[index]

    def collect(self, batch: Frames, results: Sequence[ForceResult | None]) -> ForceResult:
        """Put the answers of the ranks together.

        Args:
            batch: what was asked.
            results: of each rank for its share; None for those without.
        """
        found = _empty(batch, next(r for r in results if r is not None))
        parts: dict[int, list[ForceResult | None]] = {f: [None] * cut.n_parts for f, cut in self.cuts.items()}
        for share, result in zip(self.shares, results, strict=True):
            if share is None or result is None:
                continue
            for k, piece in enumerate(share.pieces):
                frames = slice(share.frames[k], share.frames[k + 1])
                one = result.part(frames, slice(share.atoms[k], share.atoms[k + 1]))
                if piece.part is None:
                    self._put(found, piece.start, piece.stop, one)
                else:
                    parts[piece.start][piece.part] = one
        for frame, pieces in parts.items():
            self._put(found, frame, frame + 1, self.cuts[frame].total(pieces))
        return found

    def _put(self, found: ForceResult, start: int, stop: int, result: ForceResult) -> None:
        """Write the answer to some frames where it belongs."""
        atoms = slice(int(self.offsets[start]), int(self.offsets[stop]))
        found.energy[start:stop] = result.energy
        found.virial[start:stop] = result.virial
        found.forces[atoms] = result.forces
        found.atom_energy[atoms] = result.atom_energy
        if found.committee is not None and result.committee is not None:
            found.committee.energy[:, start:stop] = result.committee.energy
            found.committee.virial[:, start:stop] = result.committee.virial
            found.committee.forces[:, atoms] = result.committee.forces
        if found.responses is not None and result.responses is not None:
            places = {"dipole": slice(start, stop), "polar": slice(start, stop), "born_charges": atoms}
            for name, place in places.items():
                if (room := getattr(found.responses, name)) is not None:
                    room[place] = getattr(result.responses, name)


def _add_whole(pieces: list[Piece], frame: int) -> None:
    """Append a frame, joined to the one before where they are neighbours."""
    if pieces and pieces[-1].part is None and pieces[-1].stop == frame:
        pieces[-1] = Piece(pieces[-1].start, frame + 1)
    else:
        pieces.append(Piece(frame, frame + 1))


def _share(
    pieces: Sequence[Piece],
    batch: Frames,
    cuts: Mapping[int, Decomposition],
    offsets: Ints,
    group: tuple[int, ...] | None,
) -> Share:
    """Describe the pieces of a rank; `group` has the other parts, where they have to be known."""
    types, pbc, counts, ghosts = [], [], [], []
    for piece in pieces:
        whole = slice(int(offsets[piece.start]), int(offsets[piece.stop]))
        if piece.part is None:
            types.append(batch.types[whole])
            pbc.append(batch.pbc[piece.start : piece.stop])
            counts.append(np.diff(offsets[piece.start : piece.stop + 1]))
            ghosts.append(np.zeros(whole.stop - whole.start, dtype=bool))
        else:
            part = cuts[piece.start].parts[piece.part]
            types.append(batch.types[whole][part.index])
            pbc.append(np.zeros((1, 3), dtype=bool))
            counts.append(np.array([part.n_atoms]))
            ghosts.append(np.arange(part.n_atoms) >= part.n_owned)
    is_ghost = np.concatenate(ghosts)
    form = Form(
        np.concatenate(types),
        is_ghost if is_ghost.any() else None,
        np.concatenate(pbc),
        np.concatenate(counts),
        -1 if batch.fparam is None else batch.fparam.shape[1],
        -1 if batch.aparam is None else batch.aparam.shape[1],
        None if group is None else _form_of_wholes(pieces, batch, group),
    )
    atoms = np.cumsum([0, *(len(t) for t in types)])
    frames = np.cumsum([0, *(piece.stop - piece.start for piece in pieces)])
    return Share(tuple(pieces), form, tuple(atoms.tolist()), tuple(frames.tolist()))


def _form_of_wholes(pieces: Sequence[Piece], batch: Frames, group: tuple[int, ...]) -> FormOfWholes:
    """Describe what the pieces of a rank are parts of."""
    frames = np.array([f for piece in pieces for f in range(piece.start, piece.stop)])
    is_part = np.array([piece.part is not None for piece in pieces for _ in range(piece.start, piece.stop)])
    return FormOfWholes(np.where(is_part, batch.counts[frames], 0), batch.pbc[frames], group)


def _empty(batch: Frames, like: ForceResult) -> ForceResult:
    """Room for the answer to a batch, with all that another has."""
    n_frames, n_atoms = batch.n_frames, batch.n_atoms
    committee = responses = None
    if like.committee is not None:
        n_members = like.committee.n_members
        shapes = (n_members, n_frames), (n_members, n_atoms, 3), (n_members, n_frames, 3, 3)
        committee = CommitteeResult(*(np.zeros(shape) for shape in shapes))
    if (other := like.responses) is not None:
        responses = Responses(
            None if other.dipole is None else np.zeros((n_frames, 3)),
            None if other.polar is None else np.zeros((n_frames, 3, 3)),
            None if other.born_charges is None else np.zeros((n_atoms, 3, 3)),
        )
    return ForceResult(
        np.zeros(n_frames),
        np.zeros((n_atoms, 3)),
        np.zeros((n_frames, 3, 3)),
        np.zeros(n_atoms),
        batch.frame_idx.copy(),
        committee,
        responses,
    )
