"""Decompositions that serve again: found by content, as neighbour lists are, for beads come in any order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Final

from dpserver.frames import Floats, Frames
from dpserver.neighbors.lists import check_density
from dpserver.parallel.domain import Decomposition

_SPARE: Final = 4
"""Decompositions that are kept beside those in use, and kinds of frames beside those of the batch."""

_Key = tuple[bytes, bytes, int]


@dataclass(eq=False)
class _Kind:
    """Frames of the same atoms, cut into as many parts.

    Attributes:
        known: decompositions, those of the last batch first and in its order.
        weights: of the atoms, once measured.
    """

    known: list[Decomposition] = field(default_factory=list)
    weights: Floats | None = None


class Cuts:
    """Decompositions for the frames of batches.

    Args:
        rcut: cutoff radius, Å.
        skin: how much further parts reach, Å.

    Attributes:
        n_built: decompositions made so far.
    """

    def __init__(self, rcut: float, skin: float) -> None:
        self._rcut, self._skin = rcut, skin
        self._kinds: dict[_Key, _Kind] = {}
        self.n_built = 0

    def find(self, frames: Sequence[Frames], n_parts: Sequence[int]) -> list[Decomposition]:
        """A decomposition for each of some frames: one that still holds, or a new one.

        Raises:
            StructureError: the density is absurd; parts are open, and would not notice.
        """
        found: list[Decomposition] = []
        used: dict[_Key, list[Decomposition]] = {}
        for frame, n in zip(frames, n_parts, strict=True):
            key = _key(frame, n)
            kind = self._kinds.setdefault(key, _Kind())
            mine = used.setdefault(key, [])
            mine.append(self._find(kind, frame, n, len(mine)))
            found.append(mine[-1])
        for key, mine in used.items():
            self._kinds[key].known = _first(mine, self._kinds[key].known)
        idle = [key for key in self._kinds if key not in used]
        for key in idle[: max(0, len(idle) - _SPARE)]:
            del self._kinds[key]
        return found

    def _find(self, kind: _Kind, frame: Frames, n_parts: int, place: int) -> Decomposition:
        """The one of the same place in the last batch, if it holds, or else any, or a new one."""
        in_turn = kind.known[place : place + 1] + kind.known
        cut = next((cut for cut in in_turn if cut.is_valid(frame)), None)
        if cut is None:
            check_density(frame, self._rcut)
            cut = Decomposition.build(frame, n_parts, self._rcut, self._skin, kind.weights)
            kind.known.append(cut)
            self.n_built += 1
        return cut

    def reweigh(self, cut: Decomposition, frame: Frames, seconds: Floats) -> None:
        """Cut such frames anew, by how long their parts have taken.

        Args:
            cut: that was used.
            frame: that it was used for.
            seconds: of each part, (n_parts,).
        """
        kind = self._kinds[_key(frame, cut.n_parts)]
        kind.weights, kind.known = cut.reweighted(seconds), []


def _key(frame: Frames, n_parts: int) -> _Key:
    return frame.types.tobytes(), frame.pbc.tobytes(), n_parts


def _first(mine: list[Decomposition], known: list[Decomposition]) -> list[Decomposition]:
    """Those in use, each once, and some of the others."""
    unique = list({id(cut): cut for cut in mine}.values())
    others = [cut for cut in reversed(known) if all(cut is not other for other in unique)]
    return unique + others[: len(unique) + _SPARE]
