"""Totals since the start, and the figures that two of them make."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace


@dataclass
class Totals:
    """Sums since the daemon was started.

    Attributes:
        time: of the last change, s.
        turns: of the talking thread.
        requests: messages that asked for forces.
        replies: of them, answered.
        batches: evaluated.
        frames: structures of the batches.
        atoms: of these structures.
        evaluating: what the evaluations took, s.
        computing: time during which a batch was with the compute thread, s.
        wire: time during which none was and the talking thread was at work, s.
        waiting: the rest, s.
        received: bytes from peers.
        sent: bytes to peers.
    """

    time: float
    turns: int = 0
    requests: int = 0
    replies: int = 0
    batches: int = 0
    frames: int = 0
    atoms: int = 0
    evaluating: float = 0.0
    computing: float = 0.0
    wire: float = 0.0
    waiting: float = 0.0
    received: int = 0
    sent: int = 0

    def copy(self) -> Totals:
        """Give the sums of now, which change no more."""
        return replace(self)


@dataclass(frozen=True)
class Figures:
    """What went on between two times.

    Attributes:
        seconds: between them.
        batches_per_second: model evaluations.
        mean_batch: structures of a batch.
        largest_batch: structures of the largest.
        evaluations_per_second: structures.
        us_per_atom: of the evaluations.
        computing: share of the time during which a batch was computed.
        wire: share during which none was and bytes were read, understood and written.
        waiting: share during which all that was left to do was up to the peers.
    """

    seconds: float
    batches_per_second: float
    mean_batch: float
    largest_batch: int
    evaluations_per_second: float
    us_per_atom: float
    computing: float
    wire: float
    waiting: float

    @property
    def pace(self) -> str:
        """How much is done."""
        return (
            f"{short(self.batches_per_second)} batches/s of {short(self.mean_batch)} structures, "
            f"{self.largest_batch} at most; {short(self.evaluations_per_second)} evaluations/s, "
            f"{short(self.us_per_atom)} µs/atom"
        )

    @property
    def shares(self) -> str:
        """Where the time goes."""
        return f"{self.waiting:.0%} waiting for the peer, {self.computing:.0%} computing, {self.wire:.0%} on the wire"

    def __str__(self) -> str:
        return f"{self.pace}; time: {self.shares}"

    def as_dict(self) -> dict[str, float]:
        """Give the same by name."""
        return asdict(self)


def short(value: float) -> str:
    """Write a number with three digits, or all before the point."""
    return f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"


def compare(before: Totals, after: Totals, largest_batch: int) -> Figures:
    """Make figures of two totals.

    Args:
        before: the earlier.
        after: the later.
        largest_batch: structures of the largest batch between them.
    """
    seconds = max(after.time - before.time, 1e-9)
    batches, frames, atoms = after.batches - before.batches, after.frames - before.frames, after.atoms - before.atoms
    return Figures(
        seconds=seconds,
        batches_per_second=batches / seconds,
        mean_batch=frames / batches if batches else 0.0,
        largest_batch=largest_batch,
        evaluations_per_second=frames / seconds,
        us_per_atom=1e6 * (after.evaluating - before.evaluating) / atoms if atoms else 0.0,
        computing=(after.computing - before.computing) / seconds,
        wire=(after.wire - before.wire) / seconds,
        waiting=(after.waiting - before.waiting) / seconds,
    )
