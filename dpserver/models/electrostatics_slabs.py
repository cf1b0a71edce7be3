"""A mesh of charges shared out among the parts of a structure: each transforms some planes and some sheets of waves.

Every part has room for the whole mesh, and puts its own charges there. Of each plane one part adds up what all have put
there and transforms it, of each sheet one does the rest, and back; at the end each part takes the planes that its atoms
lie on. What a part sends is what another needs, whatever its atoms and the number of parts:

    add_planes   charges, to the part of a plane, from all whose atoms touch it
    to_sheets    waves, from the parts of planes to those of sheets       to_planes   and back
    take_planes  potentials, the way back of the first
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from dpserver.frames import Bools, Floats, Ints
from dpserver.parts import Parts, add_up

Bounds = tuple[int, int]
"""The first of some pieces of work, and the end of them."""


class Room:
    """Two buffers that grow as needed and stay: what is sent, and what comes."""

    def __init__(self) -> None:
        self._buffers = [np.empty(0), np.empty(0)]

    def take(self, number: int, sizes: Sequence[int]) -> list[Floats]:
        """Arrays of certain sizes, one after the other in a buffer."""
        ends = [0, *np.cumsum(sizes).tolist()]
        if len(self._buffers[number]) < ends[-1]:
            self._buffers[number] = np.empty(ends[-1])
        return [self._buffers[number][low:high] for low, high in pairwise(ends)]


class Undivided:
    """A mesh that one part has alone.

    Args:
        n_planes: of it.
        n_sheets: of waves.
    """

    def __init__(self, n_planes: int, n_sheets: int) -> None:
        self.planes: Bounds = (0, n_planes)
        self.sheets: Bounds = (0, n_sheets)

    def add_planes(self) -> None:
        """See the module."""

    def to_sheets(self) -> None:
        """See the module."""

    def to_planes(self) -> None:
        """See the module."""

    def take_planes(self) -> None:
        """See the module."""


class Slabs(Undivided):
    """A mesh that several parts share, for one evaluation.

    Args:
        parts: all of whom make one like this.
        points: of the mesh, (nx, ny, nz or more).
        sheets: of waves, (n_sheets, 2, nx, nz or more).
        touched: planes that atoms of this part lie on, (nx,).
        room: buffers.

    Attributes:
        planes: that this part transforms, from the first to the end.
        sheets: likewise.
    """

    def __init__(self, parts: Parts, points: Floats, sheets: Floats, touched: Bools, room: Room) -> None:
        super().__init__(len(points), len(sheets))
        self._parts, self._points, self._waves, self._room = parts, points, sheets, room
        count, me = parts.count, parts.number
        self._planes, self._sheets = _shares(len(points), count), _shares(len(sheets), count)
        self.planes, self.sheets = self._planes[me], self._sheets[me]
        self._others = [k for k in range(count) if k != me]
        touches = np.zeros((count, len(points)))
        touches[me] = touched
        add_up(parts, touches)
        self._given = [_within(touches[me], *share) for share in self._planes]
        self._taken = [_within(touches[k], *self.planes) for k in range(count)]

    def add_planes(self) -> None:
        """Add up the charges on the planes of this part."""
        for k, found in self._swap(self._given, self._taken):
            self._points[self._taken[k]] += found

    def take_planes(self) -> None:
        """Take the potential on the planes that atoms of this part lie on."""
        for k, found in self._swap(self._taken, self._given):
            self._points[self._given[k]] = found

    def to_sheets(self) -> None:
        """Bring waves to those who have their sheets."""
        me = self._parts.number
        self._turn([(share, self.planes) for share in self._sheets], [(self._sheets[me], p) for p in self._planes])

    def to_planes(self) -> None:
        """Bring waves back to those who have their planes."""
        me = self._parts.number
        self._turn([(self._sheets[me], p) for p in self._planes], [(share, self.planes) for share in self._sheets])

    def _swap(self, outgoing: Sequence[Ints], incoming: Sequence[Ints]) -> list[tuple[int, Floats]]:
        """Send planes to each other part; what has come from each.

        Args:
            outgoing: numbers of planes, for each part.
            incoming: likewise, from each.
        """
        plane, me = self._points[0].size, self._parts.number
        sent = self._room.take(0, [len(planes) * plane * (k != me) for k, planes in enumerate(outgoing)])
        come = self._room.take(1, [len(planes) * plane * (k != me) for k, planes in enumerate(incoming)])
        shape = (-1, *self._points.shape[1:])
        for k in self._others:
            np.take(self._points, outgoing[k], axis=0, out=sent[k].reshape(shape), mode="clip")
        self._parts.exchange(sent, come)
        return [(k, come[k].reshape(shape)) for k in self._others]

    def _turn(self, outgoing: Sequence[tuple[Bounds, Bounds]], incoming: Sequence[tuple[Bounds, Bounds]]) -> None:
        """Send blocks of waves, of certain sheets and planes, to each other part, and put those that come in place."""
        there = [self._block(*bounds) for bounds in outgoing]
        here = [self._block(*bounds) for bounds in incoming]
        me = self._parts.number
        sent, come = (
            self._room.take(n, [block.size * (k != me) for k, block in enumerate(blocks)])
            for n, blocks in enumerate((there, here))
        )
        for k in self._others:
            sent[k].reshape(there[k].shape)[:] = there[k]
        self._parts.exchange(sent, come)
        for k in self._others:
            here[k][:] = come[k].reshape(here[k].shape)

    def _block(self, sheets: Bounds, planes: Bounds) -> Floats:
        return self._waves[slice(*sheets), :, slice(*planes)]


def touched_planes(n_planes: int, starts: Ints, order: int) -> Bools:
    """The planes of a mesh that charges are spread over.

    Args:
        n_planes: of the mesh.
        starts: where the atoms of each plane begin, see `kernels.mesh.sort_planes`.
        order: of the splines: an atom is on its own plane and those before it.
    """
    has_atoms = np.diff(starts) > 0
    found: Bools = np.zeros(n_planes, dtype=bool)
    for step in range(order):
        found |= np.roll(has_atoms, -step)
    return found


def _shares(n: int, count: int) -> list[Bounds]:
    """Pieces of work in a row, about as many for each part."""
    return list(pairwise([n * k // count for k in range(count + 1)]))


def _within(touches: Floats, low: int, high: int) -> Ints:
    """Numbers of the planes that are touched between two bounds."""
    found: Ints = low + np.flatnonzero(touches[low:high])
    return found
