"""What all formats hand over, and what they refuse in the same words."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from dpserver.errors import DataError, StructureError
from dpserver.frames import Floats, Frames, Ints
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
