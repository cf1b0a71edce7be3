"""Tables of pair energies read from text files, and made into cubics as DeePMD-kit does.

The first column of such a file holds distances in even steps, the others the energies of the pairs of types 00, 01, …,
11, …, in Å and eV.
"""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from dpserver.errors import ConfigError
from dpserver.frames import Floats

_UNEVEN = 1e-3


def read_table(path: str | Path, n_types: int, rcut: float) -> Floats:
    """Read a table and continue it to the cutoff.

    Args:
        path: of the file.
        n_types: number of types.
        rcut: the cutoff, Å.

    Returns:
        Distances and energies, (n, 1 + n_types (n_types + 1)/2), Å and eV.

    Raises:
        ConfigError: the file cannot be read, or is no such table.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            table = np.loadtxt(path, dtype=np.float64, ndmin=2)
    except OSError as error:
        raise ConfigError(f"cannot read the table of pair energies {path}: {error.strerror or error}") from None
    except (ValueError, UserWarning) as error:
        raise ConfigError(f"{path} is no table of pair energies: {error}") from None
    expected = 1 + n_types * (n_types + 1) // 2
    if table.shape[1] != expected or len(table) < 2:
        raise ConfigError(
            f"the table of pair energies {path} has {table.shape[1]} columns and {len(table)} rows; expected "
            f"{expected} columns, the distance and one for each pair of the {n_types} types, and two rows or more"
        )
    steps = np.diff(table[:, 0])
    if not np.isfinite(table).all() or table[0, 0] < 0 or steps[0] <= 0 or np.ptp(steps) > _UNEVEN * steps[0]:
        raise ConfigError(
            f"the distances of the table of pair energies {path} must ascend in even steps from 0 or more"
        )
    return continued(table, rcut)


def continued(table: Floats, rcut: float) -> Floats:
    """Continue a table that ends before the cutoff: by zeros if it ends with zeros, else by one cubic that becomes 0.

    As in DeePMD-kit the cubic begins with the difference of the last two values as its slope, and ends with slope 0 at
    the last point before the cutoff, or the first one behind it where there is none.

    Args:
        table: distances and energies, (n, 1 + n_pairs), Å and eV.
        rcut: the cutoff, Å.
    """
    first, last, step = table[0, 0], table[-1, 0], table[1, 0] - table[0, 0]
    n_more = int(np.ceil(rcut / step - first / step)) - (len(table) - 1)
    if rcut <= last or n_more < 1:
        return table
    more = np.zeros((n_more, table.shape[1]))
    more[:, 0] = np.linspace(last + step, last + step * n_more, n_more)
    if table[-1, 1:].any():
        end = -2 if more[-1, 0] / step - last / step >= 2 else -1
        width = more[end, 0] - last
        u = ((more[:, 0] - last) / width)[:, None]
        slope = (table[-1, 1:] - table[-2, 1:]) * width
        more[:, 1:] = table[-1, 1:] * (1 + 2 * u) * (1 - u) ** 2 + slope * u * (1 - u) ** 2
        more = more if end == -1 else more[:-1]
    return np.concatenate([table, more])


def coefficients_of(table: Floats, n_types: int) -> Floats:
    """The cubics between the points of a table, by splines with slope 0 at both ends.

    Args:
        table: distances and energies, (n, 1 + n_pairs), Å and eV.
        n_types: number of types.

    Returns:
        a₃, a₂, a₁, a₀ of each piece, in units of the first step, (n_types, n_types, n - 1, 4), eV.
    """
    x, y = table[:, 0], table[:, 1:]
    slope = _slopes(x, y) * (x[1] - x[0])
    pieces = np.stack(
        [
            2 * y[:-1] - 2 * y[1:] + slope[:-1] + slope[1:],
            -3 * y[:-1] + 3 * y[1:] - 2 * slope[:-1] - slope[1:],
            slope[:-1],
            y[:-1],
        ],
        axis=-1,
    )
    found = np.zeros((n_types, n_types, len(x) - 1, 4))
    for column, (a, b) in enumerate(zip(*np.triu_indices(n_types), strict=True)):
        found[a, b] = found[b, a] = pieces[:, column]
    return found


def values_of(coefficients: Floats, rmin: float, step: float) -> Floats:
    """The table that cubics were made from; see `coefficients_of`."""
    ends = np.concatenate([coefficients[:, :, :, 3], coefficients[:, :, -1:].sum(axis=-1)], axis=2)
    a, b = np.triu_indices(len(coefficients))
    x = rmin + step * np.arange(ends.shape[2])
    return np.concatenate([x[:, None], ends[a, b].T], axis=1)


def _slopes(x: Floats, y: Floats) -> Floats:
    """Slopes at the points of a cubic spline, (n, n_columns), that are 0 at both ends."""
    h = np.diff(x)
    rise = np.diff(y, axis=0) / h[:, None]
    slope = np.zeros_like(y)
    upper = np.zeros(len(x))
    for k in range(1, len(x) - 1):  # elimination of the lower diagonal
        lower, diagonal = h[k], 2 * (h[k - 1] + h[k])
        right = 3 * (h[k] * rise[k - 1] + h[k - 1] * rise[k])
        pivot = diagonal - lower * upper[k - 1]
        upper[k] = h[k - 1] / pivot
        slope[k] = (right - lower * slope[k - 1]) / pivot
    for k in range(len(x) - 3, 0, -1):
        slope[k] -= upper[k] * slope[k + 1]
    return slope
