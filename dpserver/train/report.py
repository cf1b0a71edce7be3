"""How far a model is from reference data: MAE and RMSE of energies, forces and virials, and a parity plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from dpserver.errors import StructureError
from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.train.data import LabelledFrames
from dpserver.train.figure import BLUE, GREY, panels

if TYPE_CHECKING:
    from matplotlib.axes import Axes

UNITS: Final = {
    "energy": "eV",
    "energy_per_atom": "eV/atom",
    "force": "eV/Å",
    "virial": "eV",
    "virial_per_atom": "eV/atom",
    "force_members": "eV/Å",
}
"""The quantities compared, and their units; force and virial are compared component by component. `force_members` is
how far the forces of a committee's members lie from their mean, to be held against the error of the mean."""

BATCH_ATOMS: Final = 1024
"""Atoms that one evaluation takes where no batch size is given."""


class Model(Protocol):
    """What a report needs of a potential."""

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the types."""

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch."""


@dataclass(frozen=True)
class ErrorMeasure:
    """Sums over the differences of predicted and reference numbers.

    Attributes:
        n: number of differences.
        sum_abs: sum of their magnitudes.
        sum_square: sum of their squares.
    """

    n: int
    sum_abs: float
    sum_square: float

    @classmethod
    def of(cls, difference: Floats) -> ErrorMeasure:
        """Measure an array of differences, of any shape."""
        return cls(difference.size, float(np.abs(difference).sum()), float((difference**2).sum()))

    def __add__(self, other: ErrorMeasure) -> ErrorMeasure:
        return ErrorMeasure(self.n + other.n, self.sum_abs + other.sum_abs, self.sum_square + other.sum_square)

    @property
    def mae(self) -> float:
        """Mean absolute error."""
        return self.sum_abs / self.n

    @property
    def rmse(self) -> float:
        """Root mean squared error."""
        return float(np.sqrt(self.sum_square / self.n))


@dataclass(frozen=True, eq=False)
class Comparison:
    """Reference and prediction of one system.

    Attributes:
        reference: structures and labels.
        energy: predicted, (n_frames,), eV.
        forces: predicted, (n_atoms, 3), eV/Å.
        virial: predicted, (n_frames, 3, 3), eV.
        member_forces: predicted by each member of a committee, (n_members, n_atoms, 3), eV/Å; None without one.
    """

    reference: LabelledFrames
    energy: Floats
    forces: Floats
    virial: Floats
    member_forces: Floats | None = None

    @cached_property
    def pairs(self) -> dict[str, tuple[Floats, Floats]]:
        """Reference and predicted numbers by the names of `UNITS`, as far as there are labels."""
        ref, counts = self.reference, self.reference.counts
        found = {
            "energy": (ref.energy, self.energy),
            "energy_per_atom": (ref.energy / counts, self.energy / counts),
        }
        if ref.forces is not None:
            found["force"] = (ref.forces, self.forces)
        if ref.virial is not None:
            n = counts[:, None, None]
            found["virial"] = (ref.virial, self.virial)
            found["virial_per_atom"] = (ref.virial / n, self.virial / n)
        return found

    @cached_property
    def errors(self) -> dict[str, ErrorMeasure]:
        """Errors by the names of `UNITS`."""
        found = {name: ErrorMeasure.of(predicted - ref) for name, (ref, predicted) in self.pairs.items()}
        if self.member_forces is not None:
            found["force_members"] = ErrorMeasure.of(self.member_forces - self.forces)
        return found


def compare(
    model: Model,
    reference: LabelledFrames,
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Comparison:
    """Evaluate a model on labelled frames.

    Args:
        model: a potential.
        reference: structures and labels; their species are the model's.
        batch: frames per evaluation; by default as many as have `BATCH_ATOMS` atoms.
        on_batch: called with the number of frames after each evaluation.

    Raises:
        StructureError: the model refuses a frame; the message names the system and the frames.
    """
    results = []
    for idx in _batches(reference, batch):
        try:
            results.append(model.evaluate(reference.subset(idx).frames))
        except StructureError as error:
            raise StructureError(f"{reference.name}, frames {idx[0]} to {idx[-1]}: {error}") from None
        if on_batch is not None:
            on_batch(len(idx))
    members = [r.committee.forces for r in results if r.committee is not None]
    return Comparison(
        reference,
        np.concatenate([r.energy for r in results]),
        np.concatenate([r.forces for r in results]),
        np.concatenate([r.virial for r in results]),
        np.concatenate(members, axis=1) if members else None,
    )


def _batches(system: LabelledFrames, batch: int | None) -> Iterator[Ints]:
    """Consecutive frames, each once."""
    first = 0
    while first < system.n_frames:
        if batch is None:
            room = system.offsets[first] + BATCH_ATOMS
            end = max(first + 1, int(np.searchsorted(system.offsets, room, side="right")) - 1)
        else:
            end = min(first + batch, system.n_frames)
        yield np.arange(first, end)
        first = end


def overall(comparisons: Sequence[Comparison]) -> dict[str, ErrorMeasure]:
    """Errors of several systems together, every frame or component with the same weight."""
    total: dict[str, ErrorMeasure] = {}
    for name in UNITS:
        measures = [c.errors[name] for c in comparisons if name in c.errors]
        if measures:
            total[name] = sum(measures[1:], start=measures[0])
    return total


def as_dict(comparisons: Sequence[Comparison]) -> dict[str, Any]:
    """All errors as plain values for JSON: by system and overall, in the units of `UNITS`."""

    def plain(errors: dict[str, ErrorMeasure]) -> dict[str, Any]:
        return {k: {"mae": e.mae, "rmse": e.rmse, "n": e.n, "unit": UNITS[k]} for k, e in errors.items()}

    return {
        "systems": [
            {
                "name": c.reference.name,
                "n_frames": c.reference.n_frames,
                "n_atoms": c.reference.frames.n_atoms,
                "errors": plain(c.errors),
            }
            for c in comparisons
        ],
        "overall": plain(overall(comparisons)),
    }


# --- picture -----------------------------------------------------------------------------------------------------


def plot_parity(comparisons: Sequence[Comparison], path: str | Path) -> None:
    """Draw predicted against reference values: energy per atom, force components, and virial where there is one.

    Energies per atom are drawn less the mean of the reference of their system, and the axes say so.

    Args:
        comparisons: at least one.
        path: file to write; its suffix chooses the format.

    Raises:
        ConfigError: matplotlib is not installed, or the format is unknown.
    """
    errors = overall(comparisons)
    drawn = [
        ("energy_per_atom", "Energy", "meV/atom", 1e3),
        ("force", "Force components", "eV/Å", 1.0),
        ("virial_per_atom", "Virial components", "meV/atom", 1e3),
    ]
    drawn = [row for row in drawn if row[0] in errors]
    with panels(path, [3.6], [3.4] * len(drawn)) as grid:
        for axes, (name, title, unit, scale) in zip(grid[0], drawn, strict=True):
            pairs = [c.pairs[name] for c in comparisons if name in c.pairs]
            zeros = [ref.mean() if name == "energy_per_atom" else 0.0 for ref, _ in pairs]
            reference, predicted = (
                scale * np.concatenate([pair[k].ravel() - zero for pair, zero in zip(pairs, zeros, strict=True)])
                for k in (0, 1)
            )
            _draw_parity(axes, reference, predicted)
            less = " − mean" if name == "energy_per_atom" else ""
            e = errors[name]
            fine, fine_scale = ("meV/Å", 1e3) if name == "force" else (unit, scale)
            axes.set(title=title, xlabel=f"reference{less} ({unit})", ylabel=f"predicted{less} ({unit})")
            note = f"RMSE {fine_scale * e.rmse:.3g} {fine}\nMAE {fine_scale * e.mae:.3g} {fine}\nn = {e.n:,}"
            axes.text(0.04, 0.96, note, transform=axes.transAxes, va="top")
            if less:
                axes.text(0.97, 0.03, _describe_mean(zeros), transform=axes.transAxes, va="bottom", ha="right")


def _describe_mean(means: Sequence[float]) -> str:
    """What was taken off the energies per atom, eV/atom."""
    if len(means) == 1:
        return f"mean of the reference:\n{means[0]:.4f} eV/atom".replace("-", "−")
    return f"mean of the reference\nof each of {len(means)} systems"


def _draw_parity(axes: Axes, reference: Floats, predicted: Floats) -> None:
    """Points on equal axes with the diagonal; where they are many, their density."""
    from matplotlib.colors import LogNorm

    both = np.concatenate([reference, predicted])
    margin = 0.05 * (np.ptp(both) or 1.0)
    low, high = both.min() - margin, both.max() + margin
    if len(reference) > 2000:
        extent, norm = (low, high, low, high), LogNorm(vmin=0.2)
        axes.hexbin(reference, predicted, gridsize=90, extent=extent, norm=norm, cmap="Blues", mincnt=1, lw=0.1)
    else:
        axes.scatter(reference, predicted, s=9, color=BLUE, alpha=0.5, linewidths=0)
    axes.plot([low, high], [low, high], color=GREY, lw=0.8, zorder=0.5)
    axes.set(xlim=(low, high), ylim=(low, high), aspect="equal")
