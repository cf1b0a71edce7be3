"""What the pictures of a training share; matplotlib is an extra and is imported when a picture is asked for."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpserver import files
from dpserver.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis

BLUE: Final = "#1f5a92"
ORANGE: Final = "#d9822b"
GREY: Final = "#6b7280"

_STYLE: Final[dict[Any, Any]] = {
    "font.size": 9.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.edgecolor": GREY,
    "axes.linewidth": 0.8,
    "axes.titlesize": 10.0,
    "axes.titlelocation": "left",
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#e5e7eb",
    "grid.linewidth": 0.6,
    "xtick.color": GREY,
    "ytick.color": GREY,
    "xtick.labelcolor": "black",
    "ytick.labelcolor": "black",
    "legend.frameon": False,
}


def check_format(path: str | Path) -> None:
    """Refuse a picture that cannot be drawn, before the work of computing what it shows.

    Raises:
        ConfigError: matplotlib is not installed, or it does not know the format of the suffix.
    """
    path = Path(path)
    try:
        from matplotlib.backend_bases import FigureCanvasBase
    except ImportError:
        raise ConfigError("a picture needs matplotlib: pip install 'dpserver[plot]'") from None
    known = FigureCanvasBase.get_supported_filetypes()
    if path.suffix[1:] not in known:
        raise ConfigError(f"cannot draw {path}: expected a name that ends in one of .{', .'.join(sorted(known))}")


@contextlib.contextmanager
def panels(path: str | Path, heights: Sequence[float], widths: Sequence[float]) -> Iterator[list[list[Axes]]]:
    """Make a picture of a grid of panels and write it on leaving.

    Args:
        path: file to write; its suffix chooses the format.
        heights: of the rows, inch.
        widths: of the columns, inch.

    Yields:
        The panels by row and column.

    Raises:
        ConfigError: matplotlib is not installed, or the format is unknown.
        OutputError: the file cannot be written.
    """
    check_format(path)
    import matplotlib
    from matplotlib.figure import Figure

    path = Path(path)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(sum(widths), sum(heights)), layout="constrained")
        axes = figure.subplots(
            len(heights), len(widths), squeeze=False, height_ratios=list(heights), width_ratios=list(widths)
        )
        yield [list(row) for row in axes]
        picture = io.BytesIO()
        figure.savefig(picture, format=path.suffix[1:], dpi=150)
        files.write(path, picture.getvalue())


def tick_log(axis: Axis) -> None:
    """Put a few plain numbers on a logarithmic axis whose limits are final."""
    from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    exponents = range(math.floor(math.log10(low)), math.floor(math.log10(high)) + 1)
    every = math.ceil(len(exponents) / 7)
    for digits in ((1,), (1, 2, 5), (1, 2, 3, 5, 7)):
        ticks = [d * 10.0**e for e in exponents[::every] for d in digits if low <= d * 10.0**e <= high]
        if len(ticks) >= 3:
            break
    else:
        ticks = [t for t in MaxNLocator(4).tick_values(low, high) if low <= t <= high]
    is_plain = all(1e-3 <= t < 1e5 for t in ticks)
    axis.set_major_locator(FixedLocator(ticks))
    axis.set_minor_locator(NullLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}" if is_plain else power_of_ten(value)))


def power_of_ten(value: float) -> str:
    """A positive number as mathtext, 10⁻³ or 2·10⁻³."""
    digits, _, exponent = f"{value:.3e}".partition("e")
    factor = "" if float(digits) == 1.0 else rf"{float(digits):g}\cdot"
    return rf"${factor}10^{{{int(exponent)}}}$"
