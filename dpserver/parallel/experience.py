"""What evaluations have taken, which the plans of the next ones are made by."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from statistics import median
from typing import Final

from dpserver.frames import Floats
from dpserver.parallel.plan import GHOST, Speeds
from dpserver.parallel.shares import FormOfWholes, Share

_MEETING: Final = 1e-6
_GREETING: Final = 1e-4
"""s, for each atom of a structure in parts that meet, and for each such structure, before any was measured."""

_MANY_NUMBERS: Final = 100_000
"""What goes over the wire tells how long a number takes where there are more, and how long a message where fewer."""

_MANY_ATOMS: Final = 2000
"""Likewise what parts tell each other: of structures of more atoms how long an atom takes, of others a structure."""

_NEW: Final = 0.2
"""Weight of the last measurement among those before."""

_FEW: Final = 5


class Usual:
    """What something usually takes: the median of the last few times, so that one that took long changes nothing.

    Args:
        guess: s, before it was measured; some measurements are needed to change it.
    """

    def __init__(self, guess: float) -> None:
        self._guess = guess
        self._last: deque[float] = deque(maxlen=_FEW)
        self.forget()

    def forget(self) -> float:
        """Begin anew; returns the guess."""
        self._last.extend([self._guess] * _FEW)
        return self._guess

    def note(self, seconds: float) -> float:
        """Take note of one more time; returns what is usual now."""
        self._last.append(seconds)
        return median(self._last)


class Experience:
    """What evaluations have taken.

    Args:
        parts_meet: those of a structure have to be evaluated at the same time.

    Attributes:
        speeds: as far as they are known.
    """

    def __init__(self, *, parts_meet: bool) -> None:
        self._meeting, self._greeting = Usual(_MEETING), Usual(_GREETING)
        self._parts_meet = parts_meet
        self._is_measured = False
        self.speeds = Speeds()
        self.forget_meetings()

    def forget_meetings(self) -> None:
        """Expect of parts that meet what was expected at first; they are only measured where there are some."""
        if self._parts_meet:
            self.speeds.meeting, self.speeds.greeting = self._meeting.forget(), self._greeting.forget()

    def note(self, shares: Sequence[Share | None], seconds: Floats, waits: Floats, wire: float) -> None:
        """Learn from an evaluation.

        Args:
            shares: of each rank.
            seconds: that each took for its own, (n_ranks,).
            waits: that each waited for other parts, (n_ranks,).
            wire: s, that rank 0 took to send and to take in.
        """
        slowest = int(seconds.argmax())
        share = shares[slowest]
        if share is None:
            return
        form, s = share.form, self.speeds
        work = form.n_centres + GHOST * (form.n_atoms - form.n_centres)
        given = [share for share in shares if share is not None]
        numbers = 2 * sum(share.form.n_numbers for share in given)
        new = _NEW if self._is_measured else 1.0
        self._is_measured = True
        s.atom += new * (max(seconds[slowest] - s.fixed, 0.5 * seconds[slowest]) / work - s.atom)
        if numbers > _MANY_NUMBERS:
            s.number += new * (wire / numbers - s.number)
        elif len(given) > 1:
            s.message += new * (wire / (len(given) - 1) - s.message)
        each = zip(waits.tolist(), shares, strict=True)
        met = [(wait, share.form.wholes) for wait, share in each if share is not None and share.form.wholes is not None]
        if met:  # who has waited least, has waited for what was on its way, and for nobody
            self._note_meeting(*min(met, key=lambda one: one[0] / one[1].counts.sum()))

    def _note_meeting(self, seconds: float, wholes: FormOfWholes) -> None:
        """Learn from what parts took to tell each other of their structures."""
        n_structures, n_atoms, s = int(wholes.is_part.sum()), int(wholes.counts.sum()), self.speeds
        if n_atoms > _MANY_ATOMS * n_structures:
            s.meeting = self._meeting.note(max(seconds - s.greeting * n_structures, 0.5 * seconds) / n_atoms)
        else:
            s.greeting = self._greeting.note(max(seconds - s.meeting * n_atoms, 0.5 * seconds) / n_structures)
