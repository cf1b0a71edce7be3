"""The learning curve: `lcurve.out` with DeePMD-kit's columns, and its picture."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from dpserver import files
from dpserver.errors import DataError
from dpserver.frames import Floats
from dpserver.train.figure import BLUE, GREY, ORANGE, panels, tick_log

if TYPE_CHECKING:
    from matplotlib.axes import Axes

TERMS: Final = (
    *("total", "e", "f", "v", "ae", "pf", "gf"),
    *("local_dipole", "global_dipole", "local_polar", "global_polar"),
)
"""Square root of the loss; RMSE of the energy per atom, the force components and the virial per atom; of atomic
energies, weighed and generalized forces; of the tensors of atoms, and of those of structures per atom."""


class LearningCurve:
    """Writes a line of `lcurve.out` at a time.

    The columns are those of DeePMD-kit: `step`, then for each term `rmse_*_val` (with a validation set) and
    `rmse_*_trn`, then `lr`. The term "total" is called `rmse`. Energies are in eV/atom, forces in eV/Å, virials in
    eV/atom; what is not known is nan.

    Args:
        path: file to write; an existing one is replaced, or continued on restart.
        terms: terms to write, of `TERMS`.
        has_validation: whether there is a validation set.
        restart_step: steps already taken; lines beyond them are removed from an existing file, and writing goes on.

    Raises:
        DataError: on restart, the existing file has other columns.
        OutputError: the file cannot be written.
    """

    def __init__(
        self,
        path: str | Path,
        terms: Sequence[str] = ("total", "e", "f"),
        *,
        has_validation: bool = True,
        restart_step: int | None = None,
    ) -> None:
        self.path = Path(path)
        self.terms = [t for t in TERMS if t in terms]
        self.has_validation = has_validation
        kept: list[str] = []
        if restart_step is not None and self.path.exists():
            kept = self._lines_until(restart_step)
        header = "# step " + "".join(f"   {name:>11s}" for name in self._names()) + "   lr\n"
        note = "# nan where there is no reference; energy and virial per atom, eV and eV/Å\n"
        with files.writing(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        files.write(self.path, (header + note + "".join(kept)).encode())

    def _names(self) -> list[str]:
        stems = ["rmse" if term == "total" else f"rmse_{term}" for term in self.terms]
        kinds = ("val", "trn") if self.has_validation else ("trn",)
        return [f"{stem}_{kind}" for stem in stems for kind in kinds]

    def _lines_until(self, step: int) -> list[str]:
        """Whole lines of the existing file up to a step."""
        curve = read(self.path)
        expected = ["step", *self._names(), "lr"]
        if list(curve) != expected:
            raise DataError(
                f"{self.path} has the columns {' '.join(curve)}, this training writes {' '.join(expected)}; "
                "move the file away or name another training.disp_file"
            )
        rows = zip(*curve.values(), strict=True)
        return [self._line(int(row[0]), row[1:-1], row[-1]) for row in rows if row[0] <= step]

    @staticmethod
    def _line(step: int, values: Sequence[float], lr: float) -> str:
        return f"{step:7d}" + "".join(f"   {v:11.4e}" for v in values) + f"   {lr:8.2e}\n"

    def write(
        self, step: int, lr: float, train: Mapping[str, float], validation: Mapping[str, float] | None = None
    ) -> None:
        """Append a line.

        Args:
            step: steps taken.
            lr: learning rate of the last one.
            train: root mean squared errors by term, on the training batch.
            validation: the same on the validation set.

        Raises:
            OutputError: the file cannot be written.
        """
        sources = (validation or {}, train) if self.has_validation else (train,)
        values = [source.get(term, math.nan) for term in self.terms for source in sources]
        with files.writing(self.path), self.path.open("a", encoding="utf-8") as stream:
            stream.write(self._line(step, values, lr))


def read(path: str | Path) -> dict[str, Floats]:
    """Read a learning curve, ours or DeePMD-kit's.

    Args:
        path: `lcurve.out`; a last line cut short is left out.

    Returns:
        The columns by name in their order, each (n_lines,).

    Raises:
        DataError: it cannot be read, or is no learning curve.
    """
    try:
        lines = Path(path).read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the learning curve {path}: {error}") from None
    names = lines[0].lstrip("#").split() if lines and lines[0].startswith("#") else []
    if not names or names[0] != "step" or names[-1] != "lr":
        raise DataError(f"{path} is not a learning curve: expected a first line '# step … lr'")
    body = [line for line in lines[1:] if not line.startswith("#")]
    if body and not body[-1].endswith("\n"):
        body.pop()
    try:
        rows = [[float(word) for word in line.split()] for line in body]
        columns = np.array(rows, dtype=np.float64).reshape(len(rows), len(names))
    except ValueError:
        raise DataError(f"{path} is not a learning curve: a line does not have {len(names)} numbers") from None
    return {name: columns[:, k] for k, name in enumerate(names)}


# --- picture -----------------------------------------------------------------------------------------------------

_PANELS: Final = (
    ("e", "Energy", "RMSE (meV/atom)"),
    ("f", "Force", "RMSE (meV/Å)"),
    ("v", "Virial", "RMSE (meV/atom)"),
)


def plot(path_lcurve: str | Path, path_picture: str | Path) -> None:
    """Draw a learning curve: the errors of energy, force and virial, and the learning rate.

    Args:
        path_lcurve: file that `read` understands.
        path_picture: file to write; its suffix chooses the format.

    Raises:
        DataError: the curve cannot be read, or has no line.
        ConfigError: matplotlib is not installed.
    """
    curve = read(path_lcurve)
    if not len(curve["step"]):
        raise DataError(f"the learning curve {path_lcurve} has no line yet")
    shown = [panel for panel in _PANELS if np.isfinite(curve.get(f"rmse_{panel[0]}_trn", np.array([np.nan]))).any()]
    with panels(path_picture, [2.8], [3.2] * (len(shown) + 1)) as grid:
        from matplotlib.ticker import EngFormatter, MaxNLocator

        *columns, last = grid[0]
        for axes, (term, title, label) in zip(columns, shown, strict=True):
            _draw_errors(axes, curve, term)
            axes.set(title=title, ylabel=label)
        last.step(curve["step"], curve["lr"], color=GREY, lw=1.2, where="post")
        last.set(title="Learning rate", yscale="log")
        for axes in grid[0]:
            tick_log(axes.yaxis)
            axes.set_xlabel("step")
            axes.xaxis.set_major_locator(MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
            axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        if columns and columns[0].get_lines():
            columns[0].legend(loc="upper right")


def _draw_errors(axes: Axes, curve: Mapping[str, Floats], term: str) -> None:
    """The errors of a term: each line of the file faintly, their running median on top."""
    for kind, colour, label in (("trn", BLUE, "training batch"), ("val", ORANGE, "validation")):
        values = 1e3 * curve.get(f"rmse_{term}_{kind}", np.array([]))
        good = np.isfinite(values) & (values > 0)
        if not good.any():
            continue
        step, values = curve["step"][good], values[good]
        axes.plot(step, values, color=colour, lw=0.7, alpha=0.3)
        axes.plot(step, running_median(values), color=colour, lw=1.6, label=label)
    axes.set_yscale("log")


def running_median(values: Floats, width: int | None = None) -> Floats:
    """Median over a window around each value, which shrinks towards the start and is cut at the end.

    Args:
        values: (n,).
        width: of the window, odd; by default about a twentieth of n.
    """
    half = (max(1, len(values) // 20) if width is None else width) // 2
    return np.array([np.median(values[k - min(half, k) : k + min(half, k) + 1]) for k in range(len(values))])
