"""What the pictures of a training share; matplotlib is an extra and is imported when a picture is asked for."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from dpserver.errors import ConfigError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

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
    """
    try:
        import matplotlib
        from matplotlib.figure import Figure
    except ImportError:
        raise ConfigError("a picture needs matplotlib: pip install 'dpserver[plot]'") from None
    path = Path(path)
    with matplotlib.rc_context(_STYLE):
        figure = Figure(figsize=(sum(widths), sum(heights)), layout="constrained")
        known = figure.canvas.get_supported_filetypes()
        if path.suffix[1:] not in known:
            raise ConfigError(f"cannot draw {path}: expected a name that ends in one of .{', .'.join(sorted(known))}")
        axes = figure.subplots(
            len(heights), len(widths), squeeze=False, height_ratios=list(heights), width_ratios=list(widths)
        )
        yield [list(row) for row in axes]
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=150)
