"""Parts of a structure that are evaluated at the same time, and what each has to learn of the others.

A term of long range is no sum over atoms that see no further than a cutoff. Still each part can do its share of it,
once all have added up what they know: a total charge, structure factors, charges on a mesh. `Wholes` tells a part what
it is part of, and `Parts` is how it speaks with the others. All of them make the same calls in the same order.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

_FEW: Final = 4096
"""Numbers that are sent to every other part as they are; of more, each part adds up some and gives the sums away."""


class Parts(Protocol):
    """The parts that are evaluated together."""

    @property
    def number(self) -> int:
        """Of this one, from 0."""

    @property
    def count(self) -> int:
        """How many there are."""

    def exchange(self, outgoing: Sequence[NDArray[Any]], incoming: Sequence[NDArray[Any]]) -> None:
        """Give an array to each of the others, and take one from each.

        Args:
            outgoing: for each part, contiguous; a part's own is not looked at.
            incoming: of the sizes that the others send, contiguous; filled.

        Raises:
            AbandonedError: another part has failed and will not come; all the others learn so at the same call.
        """


@dataclass(frozen=True, eq=False)
class Wholes:
    """What the frames of a batch are parts of.

    Attributes:
        cell: lattice vectors of the whole as rows, (n_frames, 3, 3), Å.
        pbc: its periodic directions, (n_frames, 3), bool.
        counts: its atoms, (n_frames,); 0 for frames that are whole structures themselves.
        parts: those that are evaluated together; the same for all frames.
    """

    cell: NDArray[np.float64]
    pbc: NDArray[np.bool_]
    counts: NDArray[np.int64]
    parts: Parts

    @property
    def is_part(self) -> NDArray[np.bool_]:
        """Which frames are parts of structures, (n_frames,)."""
        return self.counts > 0

    def part(self, start: int, stop: int) -> Wholes:
        """Those of consecutive frames; the arrays are views."""
        return Wholes(self.cell[start:stop], self.pbc[start:stop], self.counts[start:stop], self.parts)

    @classmethod
    def joined(cls, given: Sequence[tuple[Wholes | None, int]]) -> Wholes | None:
        """Those of several batches, each with its number of frames; frames without are whole structures."""
        known = [wholes for wholes, _ in given if wholes is not None]
        if not known:
            return None
        every = [wholes or _no_parts(n, known[0].parts) for wholes, n in given]
        cell, pbc = np.concatenate([w.cell for w in every]), np.concatenate([w.pbc for w in every])
        return cls(cell, pbc, np.concatenate([w.counts for w in every]), known[0].parts)


def _no_parts(n_frames: int, parts: Parts) -> Wholes:
    cell, pbc = np.zeros((n_frames, 3, 3)), np.zeros((n_frames, 3), dtype=bool)
    return Wholes(cell, pbc, np.zeros(n_frames, dtype=np.int64), parts)


def add_up(parts: Parts, values: NDArray[np.float64]) -> None:
    """Add up an array over all parts, in place; each has the same bits afterwards.

    Args:
        parts: all of whom call this with an array of the same size.
        values: contiguous.
    """
    flat, count, me = values.reshape(-1), parts.count, parts.number
    if flat.size <= _FEW:
        each = np.empty((count, flat.size))
        each[me] = flat
        parts.exchange([flat] * count, list(each))
        flat[:] = each.sum(axis=0)
        return
    ends = [flat.size * k // count for k in range(count + 1)]
    pieces = [flat[low:high] for low, high in pairwise(ends)]
    each = np.empty((count, pieces[me].size))
    each[me] = pieces[me]
    parts.exchange(pieces, list(each))
    np.sum(each, axis=0, out=pieces[me])
    parts.exchange([pieces[me]] * count, pieces)


def gather(parts: Parts, rows: NDArray[np.float64]) -> tuple[NDArray[np.float64], int]:
    """Put the rows of all parts one after the other.

    Args:
        parts: all of whom call this, with any number of rows of the same length.
        rows: (n, m).

    Returns:
        (n_all, m), the same in each part; and the first that is its own.
    """
    sizes = np.zeros(parts.count)
    sizes[parts.number] = len(rows)
    add_up(parts, sizes)
    ends = np.append(0, np.cumsum(sizes.astype(np.int64)))
    found = np.empty((int(ends[-1]), rows.shape[1]))
    pieces = [found[low:high] for low, high in pairwise(ends)]
    mine = pieces[parts.number]
    mine[:] = rows
    parts.exchange([mine] * parts.count, pieces)
    return found, int(ends[parts.number])
