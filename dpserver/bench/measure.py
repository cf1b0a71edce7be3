"""How long evaluations take, and which stages the time goes to."""

from __future__ import annotations

import statistics
import time
from dataclasses import dataclass
from typing import Final

from dpserver.bench.structures import moving
from dpserver.engine.runner import is_out_of_memory, no_memory_for
from dpserver.frames import Frames
from dpserver.models.committee import Committee
from dpserver.models.potential import Potential

_UNCOUNTED: Final = 2
"""Evaluations before those that count: kernels for parameters of frames are made in the second, see `folding`."""


@dataclass(frozen=True)
class Timing:
    """Whole evaluations of one kind of batch.

    Attributes:
        n_atoms: of all frames together; n_frames: how many.
        median: s; least: s.
    """

    n_atoms: int
    n_frames: int
    median: float
    least: float

    @property
    def us_per_atom(self) -> float:
        """Median time per atom, µs."""
        return 1e6 * self.median / self.n_atoms


@dataclass(frozen=True)
class Stages:
    """One evaluation taken apart.

    Attributes:
        seconds: by stage, of one thread or on the device.
        products: multiplications and additions of the matrix products in it.
    """

    seconds: dict[str, float]
    products: float


def measure(model: Potential | Committee, frames: Frames, repeats: int) -> Timing:
    """Time evaluations of structures whose atoms move a little from one to the next.

    Args:
        model: accelerated; the first evaluations, in which kernels may be compiled, are not counted.
        frames: the batch.
        repeats: evaluations that count.

    Raises:
        StructureError: the model refuses the structures.
        DeviceError: there is no memory for them.
    """
    step = moving(frames)
    try:
        times = [_seconds(model, step()) for _ in range(_UNCOUNTED + repeats)][_UNCOUNTED:]
    except Exception as error:
        if not is_out_of_memory(error):
            raise
        raise no_memory_for(frames.n_atoms, error) from None
    return Timing(frames.n_atoms, frames.n_frames, statistics.median(times), min(times))


def _seconds(model: Potential | Committee, frames: Frames) -> float:
    """How long one evaluation takes."""
    start = time.perf_counter()
    model.evaluate(frames)
    return time.perf_counter() - start


def stages(model: Potential | Committee, frames: Frames, repeats: int) -> Stages | None:
    """Take an evaluation apart, the fastest of several for each stage.

    Args:
        model: accelerated; the first time, when kernels may be compiled, is not counted.
        frames: the batch.
        repeats: how often.

    Returns:
        None where no kernels evaluate all of the model.
    """
    compiled = model.compiled()
    if len(compiled) != 1 or compiled[0] is None:
        return None
    compiled[0].profile(frames)
    parts = [compiled[0].profile(frames) for _ in range(repeats)]
    seconds = {name: min(part[name] for part in parts) for name in parts[0]}
    return Stages(seconds, compiled[0].products(frames))
