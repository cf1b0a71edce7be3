"""What all pages share: claims and whether they hold, tables, numbers, figures."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks.science.common import ROOT, Record, is_refused, optional

PAGES: Final = ROOT / "docs" / "science"
IMAGES: Final = ROOT / "docs" / "images" / "science"


@dataclass(frozen=True)
class Claim:
    """One line of the index: what is claimed, what came out, and how its data differ from the paper's.

    Attributes:
        text: the claim, Markdown.
        result: what came out; `NOT_MEASURED` where nothing has.
        difference: what differs from the paper in data, sample size or length.
        is_reached: whether the claim holds by what came out; None where there is nothing to tell by.
    """

    text: str
    result: str
    difference: str = ""
    is_reached: bool | None = None


NOT_MEASURED: Final = "not measured yet"
QUICK: Final = "; from a quick run"


def holds(condition: bool, *records: Record) -> bool | None:
    """Whether a claim holds by records; None where one of them is from a quick run, by which nothing is judged."""
    return None if any(r["is_quick"] for r in records) else bool(condition)


def quick_note(*records: Record) -> str:
    """A word for the index where records are from a quick run."""
    return QUICK if any(r["is_quick"] for r in records) else ""


def refusals(found: Mapping[str, Record]) -> str:
    """A paragraph of the dynamics that ended in atoms which the daemon refused; empty where none did."""
    ended = {name: r for name, r in found.items() if is_refused(r)}
    if not ended:
        return ""
    told = (f"`{name}` after {number(r['refused_after_ps'])} ps ({r['reason']})" for name, r in ended.items())
    return f"\nDynamics that ended in atoms which the daemon refused, and are left out: {'; '.join(told)}.\n"


def table(header: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A table in Markdown; empty without rows."""
    if not rows:
        return ""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", r"\|") for cell in line) + " |" for line in lines) + "\n"


def number(value: float | None, digits: int = 3, error: float | None = None) -> str:
    """A number for a page, with its standard error where there is one: `3.6 ± 1.2`, `1.2·10⁻⁷`, `–` for none."""
    if value is None or not np.isfinite(value):
        return "–"
    if value == 0:
        return "0"
    if error is not None and np.isfinite(error) and error > 1e-6 * abs(value):
        places = max(0, 1 - int(np.floor(np.log10(error))))
        return f"{value:.{places}f} ± {error:.{places}f}"
    if not 1e-3 <= abs(value) < 1e5:
        mantissa, exponent = f"{value:.{max(digits - 1, 0)}e}".split("e")
        return f"{mantissa}·10{str(int(exponent)).translate(str.maketrans('-0123456789', '⁻⁰¹²³⁴⁵⁶⁷⁸⁹'))}"
    places = max(0, digits - 1 - int(np.floor(np.log10(abs(value)))))
    return f"{value:.{places}f}"


def origin(*found: Record | None) -> str:
    """A paragraph that says how, when and where records were made."""
    those = [r for r in found if r is not None]
    if not those:
        return f"*{NOT_MEASURED.capitalize()}.*\n"
    dates = sorted({r["date"] for r in those})
    seeds = sorted({str(r["settings"]["seed"]) for r in those if "seed" in r["settings"]})
    versions = dict(item for r in those for item in r["versions"].items())
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    parts = [
        f"{when}, {' / '.join(sorted({r['machine'] for r in those}))}",
        f"{sum(r['seconds'] for r in those) / 60:.0f} min in all",
        *([f"seed {', '.join(seeds)}"] if seeds else []),
        ", ".join(f"{k} {v}" for k, v in versions.items()),
    ]
    note = " **Some are from a quick run, to see that it works: too short to judge by.**"
    return f"*{'; '.join(parts)}.*{note if any(r['is_quick'] for r in those) else ''}\n"


def new_figure(*, columns: int = 1, rows: int = 1, size: tuple[float, float] = (7.4, 3.0)) -> tuple[Any, Any]:
    """A figure in the style of this house, and its panels, (rows, columns)."""
    matplotlib = optional("matplotlib", "dpserver[plot]")
    figure_module = optional("matplotlib.figure", "dpserver[plot]")
    style = {
        "font.size": 8.5,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.7,
        "lines.linewidth": 1.3,
        "legend.frameon": False,
        "mathtext.fontset": "dejavusans",
    }
    with matplotlib.rc_context(style):
        figure = figure_module.Figure(figsize=size, dpi=160, layout="constrained")
        return figure, figure.subplots(rows, columns, squeeze=False)


_images: ContextVar[Path] = ContextVar("images", default=IMAGES)


@contextmanager
def images_in(folder: Path) -> Iterator[None]:
    """Let figures go to a folder, `../images/science` of the pages that show them."""
    before = _images.set(folder)
    try:
        yield
    finally:
        _images.reset(before)


def save_figure(figure: Any, name: str) -> str:
    """Write a figure beside the pages that are being written, and return the Markdown path that they use."""
    for axes in figure.axes:
        axes.title.set_fontsize(9)
        if (legend := axes.get_legend()) is not None:
            legend.set_frame_on(False)
            for text in legend.get_texts():
                text.set_fontsize(min(text.get_fontsize(), 7.5))
    folder = _images.get()
    folder.mkdir(parents=True, exist_ok=True)
    figure.savefig(folder / f"{name}.png", metadata={"Software": None})
    return f"../images/science/{name}.png"
