"""What all formats hand over, and what they refuse in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpserver.errors import DataError, StructureError
from dpserver.frames import Floats, Frames, Ints, singular_cell
from dpserver.train.labels import LABELS


class Contents(NamedTuple):
    """Structures and labels of one system, in float64.

    Attributes:
        frames: the structures, with their parameters.
        labels: by the names of `dpserver.train.labels.LABELS`, (n_frames, …) or (n_atoms, …).
    """

    frames: Frames
    labels: dict[str, Floats]


def all_or_none(name: object, label: str, n_with: int, n_all: int, what: str) -> bool:
    """Whether a label is there.

    Args:
        name: of the system.
        label: of the label.
        n_with: how many parts have it.
        n_all: how many parts there are.
        what: the parts are.

    Raises:
        DataError: only some parts have it.
    """
    if n_with not in (0, n_all):
        raise DataError(
            f"{name}: {n_with} of {n_all} {what} have {label}; split the data into systems that have the same labels"
        )
    return n_with > 0


def merge(parts: Sequence[Contents], name: object, what: str = "systems") -> Contents:
    """Several contents as one, in order.

    Args:
        parts: at least one.
        name: of the result.
        what: the parts are, in a message.

    Raises:
        DataError: only some of them have forces, or another label or parameter.
    """
    labels = {
        label: np.concatenate([p.labels[label] for p in parts if label in p.labels])
        for label in LABELS
        if all_or_none(name, label, sum(label in p.labels for p in parts), len(parts), what)
    }
    try:
        return Contents(Frames.concatenate(p.frames for p in parts), labels)
    except StructureError as error:
        raise DataError(f"{name}: {error}") from None


def species_idx(symbols: Sequence[str], species: tuple[str, ...], name: object) -> Ints:
    """Indices of symbols into the model's species, (n,), int64.

    Args:
        symbols: of the atoms.
        species: names of the model's types.
        name: of the system.

    Raises:
        DataError: a symbol is not among the species.
    """
    index = {symbol: k for k, symbol in enumerate(species)}
    unknown = sorted(set(symbols) - set(species))
    if unknown:
        raise DataError(f"{name}: species {', '.join(unknown)} is not among the model's: {', '.join(species)}")
    return np.array([index[s] for s in symbols], dtype=np.int64)


class Fault(NamedTuple):
    """What is wrong with a structure of a data set.

    Attributes:
        field: `positions` or `cell`.
        frame: whose they are.
        problem: what was expected, and what came.
        remedy: what to do, where removing the frame is not all.
    """

    field: str
    frame: int
    problem: str
    remedy: str = "remove the frame"


def fault_of(frames: Frames, how_open: str) -> Fault | None:
    """The first structure without finite positions, or without a cell that spans a volume.

    Args:
        frames: the structures.
        how_open: how the data say that a system is open, in words.
    """
    is_sound = np.isfinite(frames.positions).all(axis=1)
    if not is_sound.all():
        row = int(np.argmin(is_sound))
        frame = int(frames.frame_idx[row])
        atom, given = row - int(frames.offsets[frame]), frames.positions[row].tolist()
        return Fault("positions", frame, f"the position of atom {atom} must be finite numbers, got {given} Å")
    is_sound = np.isfinite(frames.cell).all(axis=(1, 2))
    if not is_sound.all():
        frame = int(np.argmin(is_sound))
        return Fault("cell", frame, f"lattice vectors must be finite numbers, got {frames.cell[frame].tolist()} Å")
    if (singular := singular_cell(frames.cell, frames.pbc)) is not None:
        vectors = frames.cell[singular][frames.pbc[singular]].tolist()
        return Fault(
            "cell",
            singular,
            f"the cell is singular: lattice vectors {vectors} Å do not span a volume",
            f"remove the frame; if the system is open, {how_open}",
        )
    return None
