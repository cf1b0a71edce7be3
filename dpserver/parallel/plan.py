"""How many ranks a structure gets: whole structures over ranks, parts of each over all of them, or groups of both.

The time of a batch is that of the rank that takes longest, and what rank 0 does by itself. A rank takes for its share

    t = fixed + atom · (centres + GHOST · ghosts)

Whole structures have no ghosts, but there must be enough of them to go round; parts have the more ghosts the smaller
they are: a cube with an edge l among atoms of the density ρ has ρ ((l + 2R)³ - l³), R the cutoff and the skin. Rank 0
handles every number that goes out and comes back, and every message. Where parts meet, see `meeting`, they exchange
about as much for each atom of the structure, however many they are, and have a few exchanges for each structure.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

GHOST: Final = 0.05
"""What a ghost costs beside a centre: it is looked at in neighbour lists, and its forces are summed."""

NUMBERS: Final = 7
"""Float64 that an atom or a ghost is on the wire, both ways."""

_EVEN: Final = 1.02
"""Consecutive structures are preferred for each rank, unless that makes the slowest one so much slower."""


class Decompose(StrEnum):
    """What the user asks for."""

    AUTO = "auto"
    BEADS = "beads"
    SPACE = "space"


@dataclass
class Speeds:
    """What evaluating and exchanging takes.

    Attributes:
        fixed: s, of an evaluation, whatever its size.
        atom: s, of a centre.
        number: s, of a float64 that goes through rank 0.
        message: s, of a message to a rank and its answer.
        meeting: s, of what parts tell each other, for each atom of the structure; 0 where they need not.
        greeting: s, of the same for each structure, whatever its size.
    """

    fixed: float = 5e-4
    atom: float = 5e-5
    number: float = 2e-9
    message: float = 5e-5
    meeting: float = 0.0
    greeting: float = 0.0

    def share(self, centres: float, ghosts: float) -> float:
        """Seconds of one evaluation."""
        return self.fixed + self.atom * (centres + GHOST * ghosts)


@dataclass(frozen=True)
class Sizes:
    """Structures to plan for.

    Attributes:
        counts: atoms of each.
        volumes: that they fill, Å³.
        reach: cutoff and skin, Å.
    """

    counts: tuple[int, ...]
    volumes: tuple[float, ...]
    reach: float

    def ghosts(self, frame: int, n_parts: int) -> float:
        """Estimate the ghosts of a part of a structure."""
        if n_parts == 1:
            return 0.0
        volume = max(self.volumes[frame], 1.0)
        edge = float((volume / n_parts) ** (1 / 3))
        return self.counts[frame] / volume * ((edge + 2 * self.reach) ** 3 - edge**3)


@dataclass(frozen=True)
class Plan:
    """Which ranks evaluate each structure.

    Attributes:
        ranks: of each structure; the first of several has the first part.
        seconds: what it is expected to take.
    """

    ranks: tuple[tuple[int, ...], ...]
    seconds: float

    @property
    def n_parts(self) -> int:
        """Parts of the structure that has most."""
        return max((len(mine) for mine in self.ranks), default=1)

    @property
    def n_ranks(self) -> int:
        """Ranks that have something to do."""
        return len({rank for mine in self.ranks for rank in mine})

    def __str__(self) -> str:
        ranks = f"{self.n_ranks} rank{'s' * (self.n_ranks != 1)}"
        if self.n_parts == 1:
            return f"whole structures over {ranks}"
        sizes = sorted({len(mine) for mine in self.ranks})
        parts = f"{sizes[0]} to {sizes[-1]}" if len(sizes) > 1 else str(sizes[0])
        if len(set(self.ranks)) == 1:
            return f"each structure in {parts} parts over {ranks}"
        return f"groups of {parts} ranks for each structure, {ranks} in all"


def choose(sizes: Sizes, n_ranks: int, speeds: Speeds, decompose: Decompose = Decompose.AUTO) -> Plan:
    """Find the way to use ranks that takes the shortest time.

    Args:
        sizes: of the structures, at least one.
        n_ranks: that there are.
        speeds: as far as they are known.
        decompose: `beads` takes whole structures only, `space` cuts each into as many parts as there are ranks.
    """
    n_frames = len(sizes.counts)
    if decompose is Decompose.BEADS:
        return _plan(sizes, [1] * min(n_ranks, n_frames), speeds)
    if decompose is Decompose.SPACE:
        return _plan(sizes, [n_ranks], speeds)
    return min(
        (_plan(sizes, groups, speeds) for groups in _groupings(n_frames, n_ranks)), key=lambda plan: plan.seconds
    )


def compare(sizes: Sizes, n_ranks: int, speeds: Speeds) -> dict[Decompose, float]:
    """Seconds that the two pure ways are expected to take."""
    return {way: choose(sizes, n_ranks, speeds, way).seconds for way in (Decompose.BEADS, Decompose.SPACE)}


def _groupings(n_frames: int, n_ranks: int) -> list[list[int]]:
    """Sizes of the groups to try: few large ones to many small ones, of all ranks or of some."""
    most = min(n_frames, n_ranks)
    numbers = sorted({*_powers(most), most, *(n for n in range(1, min(most, 64) + 1) if n_ranks % n == 0)})
    found = []
    for n_groups in numbers:
        size, rest = divmod(n_ranks, n_groups)
        found.append([size + 1] * rest + [size] * (n_groups - rest))
        found += [[fewer] * n_groups for fewer in _powers(size) if fewer < size]
    return found


def _powers(most: int) -> list[int]:
    """Powers of two up to a number."""
    return [1 << k for k in range(most.bit_length()) if 1 << k <= most]


def _plan(sizes: Sizes, groups: Sequence[int], speeds: Speeds) -> Plan:
    """Give each structure to a group, and estimate how long that takes."""
    group_of = _spread(sizes.counts, groups)
    first = [sum(groups[:k]) for k in range(len(groups))]
    ranks = tuple(tuple(range(first[g], first[g] + groups[g])) for g in group_of)
    centres, ghosts, met = [0.0] * len(groups), [0.0] * len(groups), [0.0] * len(groups)
    for frame, g in enumerate(group_of):
        centres[g] += sizes.counts[frame] / groups[g]
        ghosts[g] += sizes.ghosts(frame, groups[g])
        met[g] += speeds.greeting + speeds.meeting * sizes.counts[frame] if groups[g] > 1 else 0.0
    slowest = max(speeds.share(c, h) + m for c, h, m in zip(centres, ghosts, met, strict=True))
    others = sum(groups) - 1
    sent = sum((c + h) * n for c, h, n in zip(centres, ghosts, groups, strict=True)) * (others / sum(groups))
    return Plan(ranks, slowest + speeds.number * NUMBERS * sent + speeds.message * others)


def _spread(counts: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Group of each structure, so that all have about as many atoms for each rank."""
    loads = [(0.0, g) for g in range(len(groups))]
    spread = [0] * len(counts)
    for frame in sorted(range(len(counts)), key=lambda k: -counts[k]):
        load, g = heapq.heappop(loads)
        spread[frame] = g
        heapq.heappush(loads, (load + counts[frame] / groups[g], g))
    row = _in_a_row(counts, groups)
    return row if _slowest(row, counts, groups) <= _EVEN * _slowest(spread, counts, groups) else spread


def _in_a_row(counts: Sequence[int], groups: Sequence[int]) -> list[int]:
    """Group of each structure, consecutive ones together."""
    share = sum(counts) / sum(groups)
    found, g, done, due = [], 0, 0.0, share * groups[0]
    for count in counts:
        if done + count / 2 > due and g < len(groups) - 1:
            g += 1
            due += share * groups[g]
        found.append(g)
        done += count
    return found


def _slowest(group_of: Sequence[int], counts: Sequence[int], groups: Sequence[int]) -> float:
    """Atoms for each rank of the group that has most."""
    loads = [0.0] * len(groups)
    for g, count in zip(group_of, counts, strict=True):
        loads[g] += count / groups[g]
    return max(loads)
