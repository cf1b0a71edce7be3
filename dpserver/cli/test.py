"""`dpserver test`: errors of a model on reference data, as a table or JSON, and a parity plot."""

# ruff: noqa: PT028 - the function `test` is a command, not a test

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dpserver.cli import console, options

if TYPE_CHECKING:
    from dpserver.train.report import Comparison, ErrorMeasure

_ROWS: Final = (
    ("energy", "energy", "meV", 1e3),
    ("energy_per_atom", "energy per atom", "meV/atom", 1e3),
    ("force", "force", "meV/Å", 1e3),
    ("force_members", "  members", "meV/Å", 1e3),
    ("virial", "virial", "meV", 1e3),
    ("virial_per_atom", "virial per atom", "meV/atom", 1e3),
)


def test(
    model: Annotated[Path, typer.Argument(help="Model file.", metavar="w.pt", show_default=False)],
    data: Annotated[
        list[Path],
        typer.Argument(
            help="DeePMD npy directories, directories of such, or extended XYZ files.",
            metavar="DATA...",
            show_default=False,
        ),
    ],
    batch: Annotated[
        int | None, typer.Option(min=1, help="Frames per evaluation.", show_default="about 1000 atoms")
    ] = None,
    plot: Annotated[
        Path | None, typer.Option(help="Write a parity plot to this file (.png, .pdf, .svg).", metavar="FILE")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
) -> None:
    """Print the errors of a model on reference data: energy, force and virial, MAE and RMSE.

    For a committee they are those of its mean; below the force, how far the members' forces lie from their mean.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dpserver.models import checkpoint
    from dpserver.train import data as datasets
    from dpserver.train import figure, report

    if plot is not None:
        figure.check_format(plot)
    potential = checkpoint.load(model, device=device, precision=precision, threads=threads)
    systems = datasets.read_systems(data, potential.species)
    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    with Progress(*columns, console=console.err, transient=True) as progress:
        task = progress.add_task("", total=sum(s.n_frames for s in systems))
        found = [report.compare(potential, s, batch, lambda n: progress.advance(task, n)) for s in systems]
    if as_json:
        typer.echo(json.dumps({"model": str(model), **report.as_dict(found)}, indent=2, ensure_ascii=False))
    else:
        _print_tables(found, report.overall(found))
    if plot is not None:
        report.plot_parity(found, plot)
        console.err.print(f"parity plot: {plot}", highlight=False, soft_wrap=True)


def _print_tables(found: Sequence[Comparison], total: Mapping[str, ErrorMeasure]) -> None:
    for c in found:
        _print_table(c.reference.name, f"{c.reference.n_frames} frames, {c.reference.frames.n_atoms} atoms", c.errors)
    if len(found) > 1:
        n_frames = sum(c.reference.n_frames for c in found)
        _print_table(f"all {len(found)} systems", f"{n_frames} frames", total)


def _print_table(name: str, size: str, errors: Mapping[str, ErrorMeasure]) -> None:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    table.add_column("", min_width=15, no_wrap=True)
    for title in ("MAE", "RMSE"):
        table.add_column(title, min_width=9, justify="right", no_wrap=True)
    table.add_column("", no_wrap=True)
    for key, quantity, unit, scale in _ROWS:
        if key in errors:
            table.add_row(quantity, *(_number(scale * value) for value in (errors[key].mae, errors[key].rmse)), unit)
    console.out.print(Text.assemble((name, "bold cyan"), f"  {size}"), soft_wrap=True, highlight=False)
    console.out.print(table)
    console.out.print()


def _number(value: float) -> str:
    """Four significant digits, without an exponent where that is readable."""
    return f"{value:.4g}" if 1e-3 <= abs(value) < 1e6 or not value else f"{value:.3e}"
