"""How far a model is from reference data: MAE and RMSE of energies, forces and virials, and a parity plot."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np

from dpserver.errors import DataError, StructureError
from dpserver.frames import Bools, Floats, ForceResult, Frames, Ints, TensorValues
from dpserver.models.parameters import suited
from dpserver.train.data import LabelledFrames
from dpserver.train.figure import BLUE, GREY, panels
from dpserver.train.labels import LABELS, TENSORS

if TYPE_CHECKING:
    from matplotlib.axes import Axes


UNITS: Final = {
    "energy": "eV",
    "energy_per_atom": "eV/atom",
    "force": "eV/Å",
    "force_weighted": "eV/Å",
    "virial": "eV",
    "virial_per_atom": "eV/atom",
    "stress": "eV/Å³",
    "atom_energy": "eV",
    "dipole": "as in the data",
    "dipole_per_atom": "as in the data",
    "atom_dipole": "as in the data",
    "polar": "as in the data",
    "polar_per_atom": "as in the data",
    "atom_polar": "as in the data",
    "force_members": "eV/Å",
}
"""The quantities compared, and their units; vectors and tensors are compared component by component.

`force_weighted` counts the force on each atom with its weight `atom_pref`. Dipoles and polarizabilities are divided by
the number of atoms that carry one, and those of atoms are compared where they are carried. `force_members` is how far
the forces of a committee's members lie from their mean, to be held against the error of the mean."""

BATCH_ATOMS: Final = 1024
"""Atoms that one evaluation takes where no batch size is given."""


class Model(Protocol):
    """What a report needs of a potential, or of a model of dipoles or polarizabilities."""

    @property
    def species(self) -> tuple[str, ...]:
        """Names of the types."""

    def evaluate(self, frames: Frames) -> ForceResult | TensorValues:
        """Energies, forces and virials of a batch, or its tensors."""


@dataclass(frozen=True)
class ErrorMeasure:
    """Sums over the differences of predicted and reference numbers.

    Attributes:
        n: number of differences, or sum of their weights.
        sum_abs: sum of their magnitudes.
        sum_square: sum of their squares.
    """

    n: float
    sum_abs: float
    sum_square: float

    @classmethod
    def of(cls, difference: Floats, weight: Floats | None = None) -> ErrorMeasure:
        """Measure an array of differences, of any shape; weights must have the same, or one that fits it."""
        if weight is None:
            return cls(difference.size, float(np.abs(difference).sum()), float((difference**2).sum()))
        w = np.broadcast_to(weight, difference.shape)
        return cls(float(w.sum()), float((w * np.abs(difference)).sum()), float((w * difference**2).sum()))

    def __add__(self, other: ErrorMeasure) -> ErrorMeasure:
        return ErrorMeasure(self.n + other.n, self.sum_abs + other.sum_abs, self.sum_square + other.sum_square)

    @property
    def mae(self) -> float:
        """Mean absolute error; 0 where nothing has a weight."""
        return self.sum_abs / self.n if self.n else 0.0

    @property
    def rmse(self) -> float:
        """Root mean squared error; 0 where nothing has a weight."""
        return float(np.sqrt(self.sum_square / self.n)) if self.n else 0.0


@dataclass(frozen=True, eq=False)
class Comparison:
    """Reference and prediction of one system.

    Attributes:
        reference: structures and labels.
        predicted: what the model says, by the names and in the shapes of the labels.
        member_forces: predicted by each member of a committee, (n_members, n_atoms, 3), eV/Å; None without one.
        selected: species whose atoms carry a dipole or polarizability; None for all.
    """

    reference: LabelledFrames
    predicted: Mapping[str, Floats]
    member_forces: Floats | None = None
    selected: tuple[int, ...] | None = None

    @cached_property
    def is_selected(self) -> Bools:
        """Whether each atom carries a dipole or polarizability, (n_atoms,)."""
        types = self.reference.frames.types
        return np.ones(len(types), dtype=bool) if self.selected is None else np.isin(types, self.selected)

    @cached_property
    def pairs(self) -> dict[str, tuple[Floats, Floats]]:
        """Reference and predicted numbers by the names of `UNITS`, as far as there are labels."""
        frames, labels = self.reference.frames, self.reference.labels
        known = {name: (labels[name], self.predicted[name]) for name in labels if name in self.predicted}
        found = {"force" if name == "forces" else name: pair for name, pair in known.items()}
        for name in ("energy", "virial"):
            if name in known:
                found[f"{name}_per_atom"] = _divided(known[name], self.reference.counts)
        volume = np.abs(np.linalg.det(frames.cell))
        if "virial" in known and frames.pbc.all() and volume.all():
            found["stress"] = _divided(known["virial"], -volume)
        n_selected = np.bincount(frames.frame_idx, self.is_selected, frames.n_frames)
        for name in ("dipole", "polar"):
            if name in known and n_selected.all():
                found[f"{name}_per_atom"] = _divided(known[name], n_selected)
        for name in TENSORS & known.keys():
            found[name] = (known[name][0][self.is_selected], known[name][1][self.is_selected])
        return {name: found[name] for name in UNITS if name in found and found[name][0].size}

    @cached_property
    def errors(self) -> dict[str, ErrorMeasure]:
        """Errors by the names of `UNITS`."""
        found = {name: ErrorMeasure.of(predicted - ref) for name, (ref, predicted) in self.pairs.items()}
        weight = self.reference.atom_pref
        if "force" in self.pairs and weight is not None:
            ref, predicted = self.pairs["force"]
            found["force_weighted"] = ErrorMeasure.of(predicted - ref, weight[:, None])
        if self.member_forces is not None:
            found["force_members"] = ErrorMeasure.of(self.member_forces - self.predicted["forces"])
        return found


def _divided(pair: tuple[Floats, Floats], by: Floats | Ints) -> tuple[Floats, Floats]:
    """Both divided frame by frame."""
    divisor = by.reshape(-1, *[1] * (pair[0].ndim - 1))
    return pair[0] / divisor, pair[1] / divisor


def compare(
    model: Model,
    reference: LabelledFrames,
    batch: int | None = None,
    on_batch: Callable[[int], None] | None = None,
) -> Comparison:
    """Evaluate a model on labelled frames.

    Args:
        model: a potential, or a model of dipoles or polarizabilities.
        reference: structures and labels; their species are the model's.
        batch: frames per evaluation; by default as many as have `BATCH_ATOMS` atoms.
        on_batch: called with the number of frames after each evaluation.

    Raises:
        StructureError: the model refuses a frame; the message names the system and the frames.
        DataError: the data has no label of what the model predicts.
    """
    results = []
    for idx in _batches(reference, batch):
        try:
            results.append(model.evaluate(suited(reference.subset(idx).frames, model)))
        except StructureError as error:
            raise StructureError(f"{reference.name}, frames {idx[0]} to {idx[-1]}: {error}") from None
        if on_batch is not None:
            on_batch(len(idx))
    parts = [_named(model, result) for result in results]
    predicted = {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}
    members = [r.committee.forces for r in results if isinstance(r, ForceResult) and r.committee is not None]
    comparison = Comparison(
        reference, predicted, np.concatenate(members, axis=1) if members else None, getattr(model, "selected", None)
    )
    if not comparison.pairs:
        raise DataError(
            f"{reference.name} has {', '.join(reference.labels)}, but the model predicts {', '.join(predicted)}; "
            "there is nothing to compare"
        )
    return comparison


def _named(model: Model, result: ForceResult | TensorValues) -> dict[str, Floats]:
    """A result by the names of labels."""
    if isinstance(result, ForceResult):
        return {name: getattr(result, name) for name in ("energy", "forces", "virial", "atom_energy")}
    kind: str = getattr(model, "kind")  # noqa: B009 - only models of tensors have one
    return {kind: result.total, f"atom_{kind}": result.atoms}


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


def check_atomic(comparisons: Sequence[Comparison]) -> None:
    """Refuse systems without labels of single atoms.

    Raises:
        DataError: a system has none.
    """
    for c in comparisons:
        wanted = [name for name in c.predicted if name.startswith("atom_")]
        if not any(name in c.pairs for name in wanted):
            files = " or ".join(f"{stem}.npy" for name in wanted for stem in LABELS[name].files)
            raise DataError(f"{c.reference.name} has no labels of single atoms ({files}) to compare")


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
        ("dipole", "Dipole", "as in the data", 1.0),
        ("atom_dipole", "Atomic dipoles", "as in the data", 1.0),
        ("polar", "Polarizability", "as in the data", 1.0),
        ("atom_polar", "Atomic polarizabilities", "as in the data", 1.0),
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
