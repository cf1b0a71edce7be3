"""What the past says of the next moments: how long an evaluation takes, and how soon the next request comes."""

from __future__ import annotations

REMEMBERED = 0.9
"""Weight of the past in the cost of an evaluation: after 22 batches a tenth of it is left."""

ALIKE = 0.05
"""Batches whose sizes differ by less, relative to their mean, say nothing of what a smaller one would take."""

GAPS = 32
"""How many gaps back the mean of them reaches, about a wave."""


class Cost:
    """Seconds that an evaluation takes: fixed + slope · n_atoms.

    Fitted to the batches so far by least squares, each batch counting less than the one after it. The slope shows only
    while batches of different sizes come, and is kept when they do not; before that, the time is all slope.
    """

    def __init__(self) -> None:
        self._weight = self._x = self._y = self._xx = self._xy = 0.0
        self._slope = float("inf")

    def add(self, n_atoms: int, seconds: float) -> None:
        """Learn from a batch."""
        new = (1.0, n_atoms, seconds, n_atoms * n_atoms, n_atoms * seconds)
        old = (self._weight, self._x, self._y, self._xx, self._xy)
        self._weight, self._x, self._y, self._xx, self._xy = (REMEMBERED * a + b for a, b in zip(old, new, strict=True))
        x, y = self._x / self._weight, self._y / self._weight
        spread = self._xx / self._weight - x * x
        if spread > (ALIKE * x) ** 2:
            self._slope = max(0.0, (self._xy / self._weight - x * y) / spread)

    def seconds(self, n_atoms: int) -> float | None:
        """What a batch of so many atoms will take; None before the first was seen."""
        if not self._weight:
            return None
        x, y = self._x / self._weight, self._y / self._weight
        return y + min(self._slope, y / x) * (n_atoms - x)

    def at_most(self, n_atoms: int) -> float | None:
        """The same with caution: what is larger than usual takes as much longer as it is larger, whatever the slope.

        Batches of 20 and 24 atoms that take the same time say nothing of one of 300,000.
        """
        if not self._weight:
            return None
        x, y = self._x / self._weight, self._y / self._weight
        return self.seconds(n_atoms) if n_atoms <= x else y / x * n_atoms


class Gaps:
    """Seconds between one request and the next of the same wave.

    Attributes:
        mean: over the last wave or so; None before the first gap was seen.
    """

    def __init__(self) -> None:
        self.mean: float | None = None
        self._count = 0

    def add(self, seconds: float) -> None:
        """Learn from a gap."""
        self._count = min(self._count + 1, GAPS)
        mean = self.mean or 0.0
        self.mean = mean + (seconds - mean) / self._count
