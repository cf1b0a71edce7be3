"""The picture of the demo: structure of the beads, conserved quantity, quantum kinetic energy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Final

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Annotation
from matplotlib.ticker import MaxNLocator, MultipleLocator

from dpserver.demo.analysis import Distribution, Results
from dpserver.demo.rdf import Floats, coarsen
from dpserver.files import writing

_BEADS: Final = "#0072b2"
_REFERENCE: Final = "0.55"
_SERIES: Final = {"all": "0.25", "H": "#d55e00", "O": "#009e73"}
_BONDS: Final = 2.0  # Å; peaks closer than this are bonds, higher than any panel
_SPARE: Final = "#cc79a7"  # for species that are not water's

_STYLE: Final[dict[Any, Any]] = {
    "font.size": 8.5,
    "axes.labelsize": 9,
    "axes.linewidth": 0.7,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "xtick.direction": "in",
    "ytick.direction": "in",
    "xtick.major.width": 0.7,
    "ytick.major.width": 0.7,
    "lines.linewidth": 1.4,
    "lines.solid_capstyle": "round",
    "legend.frameon": False,
    "mathtext.fontset": "dejavusans",
}


def draw(results: Results, reference: Distribution | None, path: Path, title: str) -> None:
    """Draw the run beside the reference and write it as an image.

    Args:
        results: the run; its first three pairs of species get a panel each.
        reference: g(r) to compare with; None leaves it out.
        path: the image, of the format its suffix names.
        title: one line above the panels.

    Raises:
        OutputError: the image cannot be written.
    """
    pairs = list(results.distribution.g)[:3]
    with mpl.rc_context(_STYLE):
        figure = Figure(figsize=(7.4, 4.9), dpi=200, layout="constrained")
        figure.suptitle(title, x=0.012, ha="left", fontsize=9.5)
        upper, lower = figure.subfigures(2, 1, squeeze=False, hspace=0.03)[:, 0]
        panels = upper.subplots(1, len(pairs), squeeze=False)[0]
        for axes, pair in zip(panels, pairs, strict=True):
            _draw_distribution(axes, results, reference, pair)
        panels[0].legend(loc="upper right", handlelength=1.6, borderaxespad=0.0)
        left, right = lower.subplots(1, 2)
        _draw_conserved(left, results)
        labels = _draw_kinetic(right, results)
        for letter, axes in zip("abcde", [*panels, left, right], strict=False):
            axes.set_title(f"({letter})", loc="left", fontsize=9, fontweight="bold", pad=4)
        figure.draw_without_rendering()  # settles the places of the labels
        _separate(labels, 72.0 / figure.dpi)
        with writing(path):
            figure.savefig(path)


def _draw_distribution(axes: Axes, results: Results, reference: Distribution | None, pair: str) -> None:
    curves = [results.distribution]
    if reference is not None and pair in reference.g:
        curves.append(reference)
        edges, g = coarsen(reference.edges, reference.g[pair], 2)
        axes.fill_between(_middle(edges), g, color=_REFERENCE, alpha=0.3, lw=0, label="DFT-MD frames")
        axes.plot(_middle(edges), g, color=_REFERENCE, lw=0.7)
    edges, g = coarsen(results.distribution.edges, results.distribution.g[pair], 2)
    axes.plot(_middle(edges), g, color=_BEADS, label=f"{results.n_beads} beads")
    axes.axhline(1.0, color="0.7", lw=0.6, ls=(0, (4, 3)), zorder=0)
    highest = max(float(c.g[pair][_middle(c.edges) > _BONDS].max(initial=1.0)) for c in curves)
    axes.set(xlim=(0.6, edges[-1]), ylim=(0.0, 1.5 * highest), xlabel="$r$ (Å)", ylabel=rf"$g_\mathrm{{{pair}}}(r)$")
    axes.xaxis.set_major_locator(MultipleLocator(1.0))
    if max(float(c.g[pair].max()) for c in curves) > 1.5 * highest:
        _draw_bond(axes, results, reference, pair)


def _draw_bond(axes: Axes, results: Results, reference: Distribution | None, pair: str) -> None:
    """The peak of the bonds, which leaves the panel."""
    inset = axes.inset_axes((0.62, 0.66, 0.38, 0.34))
    curves = results.distribution
    if reference is not None and pair in reference.g:
        inset.fill_between(_middle(reference.edges), reference.g[pair], color=_REFERENCE, alpha=0.3, lw=0)
        inset.plot(_middle(reference.edges), reference.g[pair], color=_REFERENCE, lw=0.7)
    inset.plot(_middle(curves.edges), curves.g[pair], color=_BEADS, lw=1.1)
    peak = float(_middle(curves.edges)[np.argmax(curves.g[pair])])
    inset.set(xlim=(peak - 0.25, peak + 0.3), ylim=(0.0, None))
    inset.xaxis.set_major_locator(MultipleLocator(0.2))
    inset.yaxis.set_major_locator(MaxNLocator(2, integer=True))
    inset.tick_params(labelsize=6.5, length=2)


def _draw_conserved(axes: Axes, results: Results) -> None:
    time, label = _time(results)
    axes.plot(time, results.conserved, color=_BEADS, lw=1.0)
    axes.axhline(0.0, color="0.7", lw=0.6, ls=(0, (4, 3)), zorder=0)
    # One meV per atom is the accuracy such a model is trained to: a smaller range would magnify noise.
    reach = max(1.0, 1.2 * float(np.abs(results.conserved).max()))
    axes.set(ylim=(-reach, reach), xlabel=label, ylabel="conserved quantity,\nchange (meV / atom)")
    _span(axes, time)


def _draw_kinetic(axes: Axes, results: Results) -> list[Annotation]:
    """Draw the series and their averages; return the names of the lines."""
    time, label = _time(results)
    settled = time[results.time >= results.settled]
    labels = []
    for name, series in results.kinetic.items():
        colour = _SERIES.get(name, _SPARE)
        average = results.kinetic_average[name].mean
        axes.plot(time, series, color=colour, lw=0.9, alpha=0.55)
        axes.hlines(average, settled[0], settled[-1], color=colour, lw=1.6)
        labels.append(_label(axes, f"{'all atoms' if name == 'all' else name}  {average:.0f}", average, colour))
    axes.axhline(results.classical, color="k", lw=0.9, ls=(0, (4, 3)))
    labels.append(_label(axes, rf"3/2 $k_\mathrm{{B}}T$  {results.classical:.0f}", results.classical, "k"))
    axes.set(ylim=(0.0, None), xlabel=label, ylabel="quantum kinetic energy\n(meV / atom)")
    _span(axes, time)
    return labels


def _label(axes: Axes, text: str, height: float, colour: str) -> Annotation:
    """Name a curve at its right end."""
    return axes.annotate(
        text,
        (1.01, height),
        xytext=(0.0, 0.0),
        xycoords=("axes fraction", "data"),
        textcoords="offset points",
        color=colour,
        va="center",
        annotation_clip=False,
    )


def _separate(labels: Sequence[Annotation], points: float) -> None:
    """Move labels up or down until there is some air between them; `points` is the size of a pixel."""
    boxes = [label.get_window_extent() for label in labels]
    centres = np.array([0.5 * (box.y0 + box.y1) for box in boxes])
    gap = 1.7 * max(box.height for box in boxes)
    for label, shift in zip(labels, apart(centres, gap) - centres, strict=True):
        label.set_position((0.0, points * shift))


def apart(heights: Floats, gap: float) -> Floats:
    """The heights closest to the given ones, in the least squares, that keep a distance and their order.

    Args:
        heights: (n,), in any order.
        gap: smallest distance of neighbours.
    """
    order = np.argsort(heights, kind="stable")
    steps = gap * np.arange(len(heights))
    groups: list[list[float]] = []
    for height in heights[order] - steps:
        groups.append([height])
        while len(groups) > 1 and np.mean(groups[-2]) > np.mean(groups[-1]):
            last = groups.pop()
            groups[-1] += last
    moved = np.empty(len(heights))
    moved[order] = steps + np.array([np.mean(group) for group in groups for _ in group])
    return moved


def _time(results: Results) -> tuple[Floats, str]:
    """Time and the label of its axis, in fs where all is shorter than 1 ps."""
    if results.time[-1] < 1.0:
        return 1e3 * results.time, "time (fs)"
    return results.time, "time (ps)"


def _span(axes: Axes, time: Floats) -> None:
    axes.set_xlim(time[0], max(time[-1], time[0] + 1.0))
    axes.xaxis.set_major_locator(MaxNLocator(5))


def _middle(edges: Floats) -> Floats:
    return 0.5 * (edges[1:] + edges[:-1])
