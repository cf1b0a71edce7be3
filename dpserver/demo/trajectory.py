"""Read what i-PI writes: its table of properties and its xyz trajectories."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import DataError

Floats = NDArray[np.float64]

_COLUMN = re.compile(r"#\s*column\s+(\d+)\s*-->\s*(\S+)")
_CELL = re.compile(r"CELL\(abcABC\):((?:\s+[-+0-9.eE]+){6})")


@dataclass(frozen=True, eq=False)
class Trajectory:
    """Frames of one bead.

    Attributes:
        symbols: chemical symbol of each atom.
        positions: (n_frames, n_atoms, 3), Å.
        cells: lattice vectors as rows, (n_frames, 3, 3), Å.
    """

    symbols: tuple[str, ...]
    positions: Floats
    cells: Floats


def read_properties(path: Path) -> dict[str, Floats]:
    """Read a property file of scalar columns.

    Args:
        path: the file; a last line that i-PI has not finished yet is left out.

    Returns:
        One array per column, (n_rows,), by the name in the file's header without its unit, such as `kinetic_cv(O)`.

    Raises:
        DataError: the file has no header of i-PI's.
    """
    text = path.read_text(encoding="utf-8")
    complete = text[: text.rfind("\n") + 1].splitlines()
    names = [re.sub(r"\{[^}]*\}", "", m.group(2)) for line in complete if (m := _COLUMN.match(line))]
    if not names:
        raise DataError(f"{path} has no '# column' header; expected a property file of i-PI")
    rows = [line.split() for line in complete if not line.startswith("#")]
    table = np.array([row for row in rows if len(row) == len(names)], dtype=np.float64).reshape(-1, len(names))
    return dict(zip(names, table.T, strict=True))


def read_trajectory(path: Path, every: int = 1) -> Trajectory:
    """Read an xyz trajectory written with `positions{angstrom}` and `cell_units="angstrom"`.

    Args:
        path: the file; a last frame that i-PI has not finished yet is left out.
        every: keep one frame of so many, beginning with the first.

    Returns:
        The frames kept.

    Raises:
        DataError: there is no complete frame, or one has no CELL(abcABC) in its comment.
    """
    symbols: tuple[str, ...] = ()
    positions: list[Floats] = []
    cells: list[Floats] = []
    for comment, lines in islice(_frames(path), 0, None, every):
        fields = [line.split() for line in lines]
        symbols = tuple(f[0] for f in fields)
        positions.append(np.array([f[1:4] for f in fields], dtype=np.float64))
        cells.append(_cell(path, comment))
    if not positions:
        raise DataError(f"{path} holds no complete frame")
    return Trajectory(symbols, np.array(positions), np.array(cells))


def _frames(path: Path) -> Iterator[tuple[str, list[str]]]:
    """Comment and atom lines of each complete frame."""
    with path.open(encoding="utf-8") as stream:
        for count in stream:
            lines = list(islice(stream, int(count) + 1))
            if len(lines) <= int(count) or not lines[-1].endswith("\n"):
                return
            yield lines[0], lines[1:]


def _cell(path: Path, comment: str) -> Floats:
    """Lattice vectors as rows from lengths and angles: a along x, b in the xy plane, (3, 3), Å."""
    match = _CELL.search(comment)
    if match is None:
        raise DataError(f"{path}: expected CELL(abcABC) in the comment of every frame, got {comment.strip()!r}")
    a, b, c, alpha, beta, gamma = (float(word) for word in match.group(1).split())
    cos_a, cos_b, cos_g = np.cos(np.radians([alpha, beta, gamma]))
    sin_g = np.sin(np.radians(gamma))
    cy = (cos_a - cos_b * cos_g) / sin_g
    cz = np.sqrt(1.0 - cos_b**2 - cy**2)
    return np.array([[a, 0.0, 0.0], [b * cos_g, b * sin_g, 0.0], [c * cos_b, c * cy, c * cz]])
