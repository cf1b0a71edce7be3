"""`dpserver demo`: path-integral water with i-PI and the daemon, followed live and drawn at the end."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

import dpserver
from dpserver.cli import console
from dpserver.errors import ConfigError, DataError

if TYPE_CHECKING:
    from dpserver.demo.analysis import Results
    from dpserver.demo.session import Progress, Report, Settings

_WATER: Final = Path(dpserver.__file__).parent.parent / "examples" / "water"
_MODEL: Final = _WATER / "w.pt"
_STRUCTURE: Final = _WATER / "water.xyz"
_REFERENCE: Final = _WATER / "rdf_reference.csv"
_PICTURE: Final = "water.png"
_STARTING: Final = "starting i-PI and dpserver, the first time up to a minute"


def demo(
    model: Annotated[Path, typer.Option(help="Model file to serve.", show_default="examples/water/w.pt")] = _MODEL,
    structure: Annotated[
        Path, typer.Option(help="Initial positions and cell, xyz.", show_default="examples/water/water.xyz")
    ] = _STRUCTURE,
    reference: Annotated[
        Path, typer.Option(help="Table of g(r) to compare with.", show_default="examples/water/rdf_reference.csv")
    ] = _REFERENCE,
    output: Annotated[Path, typer.Option("--output", "-o", help="Directory for everything written.")] = Path("demo"),
    beads: Annotated[int, typer.Option(min=1, help="Slices of the ring polymer.")] = 8,
    steps: Annotated[
        int | None,
        typer.Option(min=1, help="Time steps of 0.5 fs.", show_default="as many as fit into --minutes"),
    ] = None,
    minutes: Annotated[float, typer.Option(min=0.01, help="Time for the dynamics.")] = 4.0,
) -> None:
    """Run path-integral dynamics of water with i-PI and draw what comes out.

    Starts i-PI and the daemon as two processes, shows how far they are, and leaves a picture: g(r) of the beads beside
    that of DFT-MD, the conserved quantity, and the quantum kinetic energy. Ctrl-C stops both and draws what is there.
    """
    from dpserver.demo import session

    _check_requirements(reference)
    settings = session.Settings(model, structure, output, beads=beads, steps=steps, minutes=minutes)
    # A plain `kill` is to end the two processes as Ctrl-C does.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    is_interrupted = False
    try:
        with _follow() as report:
            session.run(settings, report)
    except KeyboardInterrupt:
        is_interrupted = True
        console.out.print("interrupted: drawing what there is")
    _finish(settings, reference)
    if is_interrupted:
        raise typer.Exit(console.INTERRUPTED)


def _check_requirements(reference: Path) -> None:
    """Find out before minutes of dynamics what would be missing after them."""
    try:
        import matplotlib as mpl
    except ImportError:
        raise ConfigError("matplotlib is not installed; run: pip install 'dpserver[ipi,ase,plot]'") from None
    del mpl
    if not reference.is_file():
        raise DataError(f"there is no table {reference}; run from a checkout of dpserver or name one with --reference")


@contextmanager
def _follow() -> Iterator[Report]:
    """Show progress as a bar in a terminal and as a line now and then elsewhere."""
    if not console.out.is_terminal:
        console.out.print(_STARTING)
        yield _Lines()
        return
    from rich.progress import BarColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
    from rich.progress import Progress as Bar

    with Bar(
        TextColumn("{task.description}"),
        BarColumn(bar_width=None),
        TextColumn("{task.fields[state]}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console.out,
    ) as bar:
        task = bar.add_task(_STARTING, total=None, state="")

        def report(progress: Progress) -> None:
            if progress.planned is not None:
                bar.update(
                    task,
                    description="path integrals",
                    total=progress.planned,
                    completed=progress.done,
                    state=f"step {progress.done} of {progress.planned}",
                )

        yield report


class _Lines:
    """Prints one line per tenth of the run."""

    def __init__(self) -> None:
        self._tenth = -1

    def __call__(self, progress: Progress) -> None:
        if not progress.planned:
            return
        if (tenth := 10 * progress.done // progress.planned) > self._tenth:
            self._tenth = tenth
            console.out.print(f"step {progress.done} of {progress.planned}, {progress.elapsed:.0f} s", highlight=False)


def _finish(settings: Settings, reference: Path) -> None:
    """Draw the picture and print the numbers in it."""
    from dpserver.demo import analysis, figure

    results = analysis.analyse(settings.output, settings.temperature)
    n_molecules = results.counts.get("O", 0)
    picture = settings.output / _PICTURE
    figure.draw(
        results,
        analysis.read_distribution(reference),
        picture,
        f"Water at {settings.temperature:g} K: {n_molecules} molecules, {results.n_beads} beads, "
        f"{1e3 * results.time[-1]:.0f} fs of path-integral dynamics",
    )
    _print_summary(results)
    console.out.print(f"picture: [bold]{picture}[/bold]", soft_wrap=True, highlight=False)


def _print_summary(results: Results) -> None:
    from rich import box
    from rich.table import Table

    table = Table(box=box.SIMPLE, show_header=False, pad_edge=False)
    table.add_row("time steps", f"{len(results.time) - 1}, {1e3 * results.time[-1]:.1f} fs")
    table.add_row("temperature", f"{results.temperature} K")
    table.add_row("conserved quantity", f"within {abs(results.conserved).max():.3f} meV/atom of its start")
    for name, average in results.kinetic_average.items():
        table.add_row(f"kinetic energy, {'all atoms' if name == 'all' else name}", f"{average} meV/atom")
    table.add_row("classical, 3/2 kT", f"{results.classical:.1f} meV/atom")
    console.out.print(table)
