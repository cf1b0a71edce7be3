"""Waves: how the structures of one step arrive, and whether they could have come together.

i-PI hands the beads of a step to its clients from a thread that looks for new ones every `<latency>`. It may look when
only some are queued: those are sent, and the others not before all of the first have been answered. The structures of a
step then come as `a` and `N − a`, which costs a second evaluation that waiting on our side cannot save.

Seen from here: parts of different sizes whose sums come back to the same N again and again, the second shortly after
the first was answered, the next step later. A peer that sends what it has in a fixed order (two systems that take
turns, one force with fewer beads than the other) has parts that never change; one with more beads than connections has
an N that no wave could have; simulations that know nothing of each other have no N.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from statistics import linear_regression, median

N_PARTS = 160
"""Parts that are remembered of a simulation."""

FEWEST_WAVES = 30
"""What is said of a simulation rests on as many."""

MOST_PARTS = 4
"""Of one wave."""

SMALLEST_WAVE = 4
"""Below it, sums come back by chance."""

FEWEST_WAYS = 3
"""To cut a wave: a peer that means its parts has one."""

EXPLAINED = 0.8
"""Share of the structures that have to belong to waves of one size."""

WORTH_SHARE, WORTH_SECONDS, SPLIT_SHARE = 0.05, 1e-3, 0.3
"""What splitting has to cost of a step, and how often it has to happen, to be worth a word."""


@dataclass
class Part:
    """Structures of one simulation that arrived before any of them was answered.

    Attributes:
        n_frames: how many.
        arrived: the first of them, s.
        ended: when the last of them was evaluated, s.
    """

    n_frames: int
    arrived: float
    ended: float


@dataclass(frozen=True)
class Waves:
    """How a simulation's steps have arrived lately.

    Attributes:
        n_frames: structures of one step.
        split: share of the steps that came in more than one part.
        extra: evaluations per step beyond the first.
        period: from step to step, s.
    """

    n_frames: int
    split: float
    extra: float
    period: float


class WaveWatch:
    """Remembers the parts of one simulation."""

    def __init__(self) -> None:
        self._parts: deque[Part] = deque(maxlen=N_PARTS)

    def add(self, n_frames: int, arrived: float, ended: float) -> None:
        """Take note of the structures of this simulation in a batch.

        Args:
            n_frames: how many.
            arrived: when the first came, s; before the end of the batch before, they are of the same part, and that
                they were evaluated apart is our own doing.
            ended: when the batch was done, s.
        """
        last = self._parts[-1] if self._parts else None
        if last is not None and arrived < last.ended:
            last.n_frames += n_frames
            last.ended = ended
        else:
            self._parts.append(Part(n_frames, arrived, ended))

    def parts(self) -> list[Part]:
        """Give a copy of what is remembered, oldest first; the last may not be complete."""
        return [Part(p.n_frames, p.arrived, p.ended) for p in self._parts]


def find_waves(parts: Sequence[Part], n_connections: int) -> Waves | None:
    """Find out how many structures a step has, and how they have come.

    Args:
        parts: in order.
        n_connections: that the peer has; a wave cannot be larger.

    Returns:
        None where there is no such number, or not enough to go by.
    """
    sizes = [p.n_frames for p in parts]
    candidates = Counter(sum(sizes[k : k + n]) for k in range(len(sizes)) for n in range(1, MOST_PARTS + 1))
    cuts = [(n, _cut(parts, n)) for n, _ in candidates.most_common(12) if n <= n_connections]
    if not cuts:
        return None
    n_frames, waves = max(cuts, key=lambda cut: (cut[0] * len(cut[1]), -cut[0]))
    if len(waves) < FEWEST_WAVES or n_frames * len(waves) < EXPLAINED * sum(sizes):
        return None
    return _describe(waves, n_frames)


def cost_of_a_batch(batches: Iterable[tuple[int, float]]) -> float:
    """Estimate what an evaluation takes beside what its atoms take, the intercept of time over size, s.

    Args:
        batches: atoms and seconds of each.

    Returns:
        0 where sizes do not differ.
    """
    seconds: dict[int, list[float]] = {}
    for n_atoms, took in batches:
        seconds.setdefault(n_atoms, []).append(took)
    typical = {n_atoms: median(times) for n_atoms, times in seconds.items()}
    if len(typical) < 2:
        return 0.0
    intercept = linear_regression(list(typical), list(typical.values())).intercept
    return min(max(intercept, 0.0), *typical.values())


def is_worth_a_word(waves: Waves, batch_cost: float) -> bool:
    """Decide whether its user should hear that waves are split: often, and at a price.

    Args:
        waves: of one simulation.
        batch_cost: what one more evaluation takes beside its atoms, s.
    """
    seconds = waves.extra * batch_cost
    return waves.split > SPLIT_SHARE and seconds >= max(WORTH_SECONDS, WORTH_SHARE * waves.period)


def _cut(parts: Sequence[Part], n_frames: int) -> list[list[Part]]:
    """Find the runs of parts that add up to one size; parts that fit into none are left out."""
    waves: list[list[Part]] = []
    run: deque[Part] = deque()
    total = 0
    for part in parts:
        run.append(part)
        total += part.n_frames
        while total > n_frames or len(run) > MOST_PARTS:
            total -= run.popleft().n_frames
        if total == n_frames:
            waves.append(list(run))
            run.clear()
            total = 0
    return waves


def _describe(waves: Sequence[Sequence[Part]], n_frames: int) -> Waves:
    """Count how waves came; parts that look meant, or not like one step, are waves of their own to their peer."""
    split = [wave for wave in waves if len(wave) > 1]
    within = [b.arrived - a.ended for wave in split for a, b in pairwise(wave)]
    between = [b[0].arrived - a[-1].ended for a, b in pairwise(waves)]
    is_accident = (
        n_frames >= SMALLEST_WAVE
        and len({tuple(part.n_frames for part in wave) for wave in waves}) >= FEWEST_WAYS
        and bool(within)
        and median(within) < 0.5 * median(between)
    )
    period = median(b[0].arrived - a[0].arrived for a, b in pairwise(waves))
    if not is_accident:
        return Waves(n_frames, 0.0, 0.0, period)
    extra = sum(len(wave) - 1 for wave in split) / len(waves)
    return Waves(n_frames, len(split) / len(waves), extra, period)
