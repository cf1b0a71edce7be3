"""Structures on which a committee disagrees: told in the log, and kept for the next round of training."""

from __future__ import annotations

import io
import logging
import queue
import threading
import time
from collections import defaultdict, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final, Self

import numpy as np

from dpserver.errors import ConfigError
from dpserver.frames import Floats, ForceResult, Frames

logger = logging.getLogger(__name__)

LOG_SECONDS: Final = 1.0
"""At most one line in so long."""

NEAR: Final = 0.1
"""Root mean square displacement, Å, below which a structure is the same again: atoms of water at 300 K take some ten
femtoseconds for it."""

MEMORY: Final = 16
"""Structures kept last of each simulation that a new one is compared with."""

MOST_STRUCTURES: Final = 10_000
"""A daemon keeps no more than these; nobody labels so many of one run."""

_WAITING: Final = 64


@dataclass(frozen=True, eq=False)
class Deviant:
    """A structure on which the members disagree.

    Attributes:
        source: the simulation it comes from.
        frame: one structure.
        result: of the committee.
        deviation: largest deviation of a force, eV/Å.
    """

    source: str
    frame: Frames
    result: ForceResult
    deviation: float


class DeviationWatch:
    """Looks at what a committee has answered.

    Args:
        threshold: deviation of a force, eV/Å, beyond which a structure is told of and kept; see
            `ForceResult.max_force_deviation`.
        species: symbol of each type.
        kept: takes the structures to keep, if any are to be.
        clock: seconds, monotonic.

    Raises:
        ConfigError: the threshold is not positive.
    """

    def __init__(
        self,
        threshold: float,
        species: Sequence[str],
        kept: StructureFile | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not 0 < threshold < float("inf"):
            raise ConfigError(f"--warn-deviation must be a positive number of eV/Å, got {threshold:g}")
        self._threshold = threshold
        self._species = tuple(species)
        self._kept = kept
        self._clock = clock
        self._last_line = -float("inf")
        self._n_seen = 0
        self._n_beyond = 0
        self._worst: Deviant | None = None

    def __enter__(self) -> Self:
        if self._kept is not None:
            self._kept.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._tell()
        if self._kept is not None:
            self._kept.close()

    def see(self, answered: Sequence[tuple[str, Frames, ForceResult]]) -> None:
        """Look at the structures of one evaluation; never waits for the disk.

        Of each simulation the worst structure is offered to be kept.

        Args:
            answered: the simulation they come from, structures and results.
        """
        found: dict[str, Deviant] = {}
        for source, frames, result in answered:
            deviations = result.max_force_deviation()
            self._n_seen += len(deviations)
            beyond = np.flatnonzero(deviations > self._threshold)
            if not len(beyond):
                continue
            self._n_beyond += len(beyond)
            k = int(beyond[np.argmax(deviations[beyond])])
            if source not in found or deviations[k] > found[source].deviation:
                found[source] = Deviant(source, frames[k], result[k], float(deviations[k]))
        for deviant in found.values():
            if self._worst is None or deviant.deviation > self._worst.deviation:
                self._worst = deviant
            if self._kept is not None:
                self._kept.offer(deviant)
        if self._worst is not None and self._clock() - self._last_line >= LOG_SECONDS:
            self._tell()

    def _tell(self) -> None:
        """One line on all since the last one."""
        worst = self._worst
        if worst is None or worst.result.committee is None:
            return
        atom = int(worst.result.committee.force_deviation().argmax())
        logger.warning(
            "%d of %d structures deviate by more than %g eV/Å; most of all one of %s: %.3g eV/Å, atom %d (%s)",
            self._n_beyond,
            self._n_seen,
            self._threshold,
            worst.source,
            worst.deviation,
            atom,
            self._species[worst.frame.types[atom]],
        )
        self._last_line = self._clock()
        self._n_seen = self._n_beyond = 0
        self._worst = None


class StructureFile:
    """Appends structures to an extended XYZ file, from a thread of its own.

    The predictions are called `committee_energy` (eV) and `committee_forces` (eV/Å), and are no labels: training
    refuses the file until the structures have got an energy and forces from the reference method. Beside them stand
    `force_deviation` of each atom and `max_force_deviation`, eV/Å, and the `source`.

    Not kept are a structure within `NEAR` of one of the last that were kept of its simulation, what comes faster than
    the disk takes it, and all beyond `MOST_STRUCTURES`.

    Args:
        path: the file; one that exists is continued.
        species: symbol of each type.

    Raises:
        ConfigError: ase is not installed, a species is no chemical element, or the file cannot be continued.
    """

    def __init__(self, path: Path, species: Sequence[str]) -> None:
        _check_writable(path)
        _check_elements(species)
        self._path = path
        self._species = np.array(species)
        self._recent: dict[tuple[str, int], deque[Floats]] = defaultdict(lambda: deque(maxlen=MEMORY))
        self._queue: queue.Queue[Deviant | None] = queue.Queue(_WAITING)
        self._thread = threading.Thread(target=self._run, name="deviations", daemon=True)
        self._n_kept = 0

    def start(self) -> None:
        """Start to write."""
        self._thread.start()

    def offer(self, deviant: Deviant) -> None:
        """Keep a structure, unless it is much like another; returns at once, with a copy of what it keeps."""
        recent = self._recent[deviant.source, deviant.frame.n_atoms]
        frame = Frames.concatenate([deviant.frame])
        x = frame.positions
        if self._n_kept >= MOST_STRUCTURES or any(((x - y) ** 2).sum(axis=1).mean() < NEAR**2 for y in recent):
            return
        try:
            self._queue.put_nowait(replace(deviant, frame=frame))
        except queue.Full:
            return
        recent.append(x)
        self._n_kept += 1
        if self._n_kept == MOST_STRUCTURES:
            logger.warning("%s: %d structures are kept; no more will be", self._path, MOST_STRUCTURES)

    def close(self) -> None:
        """Write what is waiting, and end."""
        self._queue.put(None)
        self._thread.join()
        if self._n_kept:
            logger.info("%s: structures kept: %d", self._path, self._n_kept)

    def _run(self) -> None:
        has_failed = False
        while (deviant := self._queue.get()) is not None:
            if has_failed:
                continue
            try:
                # One write, unbuffered: a daemon that is killed leaves whole structures behind.
                with self._path.open("ab", buffering=0) as file:
                    file.write(self._encode(deviant))
            except OSError as error:
                logger.error("cannot write %s: %s; no more structures are kept", self._path, error.strerror)
                has_failed = True
            except Exception:  # a bug; a thread that is gone would let `close` wait for ever
                logger.exception("%s: internal error; no more structures are kept", self._path)
                has_failed = True

    def _encode(self, deviant: Deviant) -> bytes:
        """One structure as extended XYZ."""
        from ase import Atoms
        from ase.io import write

        frame, result = deviant.frame, deviant.result
        atoms = Atoms(self._species[frame.types], frame.positions, cell=frame.cell[0], pbc=frame.pbc[0])
        atoms.info["max_force_deviation"] = deviant.deviation
        atoms.info["committee_energy"] = float(result.energy[0])
        atoms.info["source"] = deviant.source
        atoms.arrays["committee_forces"] = result.forces
        if result.committee is not None:
            atoms.arrays["force_deviation"] = result.committee.force_deviation()
        text = io.StringIO()
        write(text, atoms, format="extxyz")
        return text.getvalue().encode()


def _check_writable(path: Path) -> None:
    """Find out before the first structure whether it can be appended, and that nothing else is appended to."""
    try:
        with path.open("a+b") as file:
            file.seek(0)
            first = file.readline(64).strip()
    except OSError as error:
        raise ConfigError(f"--save-deviating {path}: cannot be written: {error.strerror}") from None
    if first and not first.isdigit():
        raise ConfigError(f"--save-deviating {path}: exists and is no extended XYZ file; give another name")


def _check_elements(species: Sequence[str]) -> None:
    try:
        from ase.data import atomic_numbers
    except ImportError:
        raise ConfigError("--save-deviating needs ase: pip install 'dpserver[ase]'") from None
    if strange := [symbol for symbol in species if symbol not in atomic_numbers]:
        raise ConfigError(
            f"--save-deviating: the model's species {', '.join(strange)} is no chemical element, and an extended XYZ "
            "file could not be read again"
        )
