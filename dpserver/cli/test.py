"""`dpserver test`: errors of a model on reference data, as a table or JSON, and a parity plot."""

# ruff: noqa: PT028 - the function `test` is a command, not a test

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Final

import typer

from dpserver.cli import console, options
from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError
from dpserver.files import check_output

if TYPE_CHECKING:
    from dpserver.train.data import LabelledFrames
    from dpserver.train.report import Comparison, ErrorMeasure, Model

_ROWS: Final = (
    ("energy", "energy", "meV", 1e3),
    ("energy_per_atom", "energy per atom", "meV/atom", 1e3),
    ("force", "force", "meV/Å", 1e3),
    ("force_weighted", "  weighted", "meV/Å", 1e3),
    ("force_members", "  members", "meV/Å", 1e3),
    ("virial", "virial", "meV", 1e3),
    ("virial_per_atom", "virial per atom", "meV/atom", 1e3),
    ("stress", "stress", "meV/Å³", 1e3),
    ("atom_energy", "atomic energy", "meV", 1e3),
    ("dipole", "dipole", "", 1.0),
    ("dipole_per_atom", "  per atom", "", 1.0),
    ("atom_dipole", "atomic dipole", "", 1.0),
    ("polar", "polarizability", "", 1.0),
    ("polar_per_atom", "  per atom", "", 1.0),
    ("atom_polar", "  of atoms", "", 1.0),
)


def test(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Model file, unless --model names it, then the data: DeePMD npy directories, directories of such, "
            "HDF5 files (file.hdf5, file.hdf5#/system), LMDB data sets, extended XYZ files, or FORMAT:PATH for what "
            "dpdata reads.",
            metavar="[w.pt] DATA...",
            show_default=False,
        ),
    ] = None,
    model: Annotated[
        Path | None, typer.Option("--model", "-m", help="Model file.", metavar="FILE", show_default=False)
    ] = None,
    system: Annotated[
        list[str] | None, typer.Option("--system", "-s", help="Data, beside DATA.", metavar="DATA", show_default=False)
    ] = None,
    datafile: Annotated[
        Path | None,
        typer.Option("--datafile", "-f", help="File with a system on each line.", metavar="FILE", show_default=False),
    ] = None,
    train_data: Annotated[
        Path | None,
        typer.Option(help="Test on the training data of this input.", metavar="input.json", show_default=False),
    ] = None,
    valid_data: Annotated[
        Path | None,
        typer.Option(help="Test on the validation data of this input.", metavar="input.json", show_default=False),
    ] = None,
    numb_test: Annotated[
        int, typer.Option("--numb-test", "-n", min=0, help="Frames of each system at most; 0 for all.", metavar="N")
    ] = 0,
    shuffle: Annotated[
        bool, typer.Option("--shuffle-test", help="Take them at random instead of from the start.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--rand-seed", "-r", min=0, help="Seed of that.", show_default="a new one")
    ] = None,
    detail: Annotated[
        Path | None,
        typer.Option(
            "--detail",
            "--detail-file",
            "-d",
            help="Write PREFIX.e.out, .f.out, .v.out …: reference and prediction, as dp test -d does.",
            metavar="PREFIX",
            show_default=False,
        ),
    ] = None,
    atomic: Annotated[
        bool, typer.Option("--atomic", "-a", help="Insist on labels of single atoms, such as atom_ener.npy.")
    ] = False,
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
    table_error: options.TableError = TABLE_ERROR,
) -> None:
    """Print the errors of a model on reference data: energy, force and virial, MAE and RMSE.

    For a committee they are those of its mean; below the force, how far the members' forces lie from their mean.
    """
    from dpserver.train import figure, report
    from dpserver.train.details import DetailFiles

    if plot is not None:
        figure.check_format(plot)
        check_output(plot, "--plot")
    files = None if detail is None else DetailFiles(detail, atomic=atomic)
    given = list(paths or ())
    if model is None:
        if not given:
            raise ConfigError("expected a model file and data: dpserver test w.pt DATA, or -m w.pt -s DATA")
        model = Path(given.pop(0))
    potential = _load(model, device, precision, threads, table_error)
    systems = _read(potential, [*given, *(system or ())], datafile, train_data, valid_data)
    systems = [_pick(s, numb_test, shuffle, seed) for s in systems]
    found = _compare(potential, systems, batch)
    if atomic:
        report.check_atomic(found)
    if as_json:
        typer.echo(json.dumps({"model": str(model), **report.as_dict(found)}, indent=2, ensure_ascii=False))
    else:
        _print_tables(found, report.overall(found))
    if files is not None:
        for comparison in found:
            files.write(comparison)
        _tell(f"details: {', '.join(str(path) for path in files.written)}")
    if plot is not None:
        report.plot_parity(found, plot)
        _tell(f"parity plot: {plot}")


def _load(path: Path, device: str, precision: str | None, threads: int | None, table_error: float) -> Model:
    """A model of energies, a committee, or a model of dipoles or polarizabilities."""
    from dpserver.models import checkpoint, gdml_file
    from dpserver.models.tensors import TensorModel

    gdml_file.refuse(path, f"`sgdml test {path} DATASET.npz` tells its errors")
    values = checkpoint.read(path)
    if "members" not in values and isinstance(checkpoint.restore_model(values, str(path)), TensorModel):
        return checkpoint.load_tensor(path, device, precision)
    return checkpoint.prepare(values, str(path), device, precision, threads, table_error)


def _read(
    model: Model,
    paths: list[str],
    datafile: Path | None,
    train_data: Path | None,
    valid_data: Path | None,
) -> list[LabelledFrames]:
    """The systems that the command line names, in whichever way."""
    from dpserver.train import data as datasets
    from dpserver.train.config import load_data

    if datafile is not None:
        try:
            lines = datafile.read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigError(f"--datafile {datafile}: cannot be read: {error}") from None
        paths = [*paths, *(line.strip() for line in lines if line.strip())]
    species, carriers = model.species, getattr(model, "selected", None)
    selected = None if carriers is None else [species[k] for k in carriers]
    systems = datasets.read_systems(paths, species, selected=selected)
    for source, section in ((train_data, "training_data"), (valid_data, "validation_data")):
        if source is not None:
            config = load_data(source, section)
            systems += datasets.read_systems(config.systems, species, config.rglob_patterns, selected)
    if not systems:
        raise ConfigError("expected data to test on: dpserver test w.pt DATA, or -m w.pt -s DATA")
    return systems


def _pick(system: LabelledFrames, n_frames: int, shuffle: bool, seed: int | None) -> LabelledFrames:
    """So many frames of a system, from its start or at random."""
    import numpy as np

    order = np.random.default_rng(seed).permutation(system.n_frames) if shuffle else np.arange(system.n_frames)
    return system.subset(order[:n_frames]) if n_frames else system.subset(order) if shuffle else system


def _compare(potential: Model, systems: Sequence[LabelledFrames], batch: int | None) -> list[Comparison]:
    """Evaluate all systems behind a progress bar."""
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from dpserver.train import report

    columns = (TextColumn("evaluating"), BarColumn(), MofNCompleteColumn(), TextColumn("frames"), TimeRemainingColumn())
    with Progress(*columns, console=console.err, transient=True) as progress:
        task = progress.add_task("", total=sum(s.n_frames for s in systems))
        return [report.compare(potential, s, batch, lambda n: progress.advance(task, n)) for s in systems]


def _tell(text: str) -> None:
    console.err.print(text, highlight=False, soft_wrap=True)


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
