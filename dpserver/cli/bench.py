"""`dpserver bench`: what a model costs on this machine, as tables or JSON."""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpserver.cli import console, options
from dpserver.defaults import TABLE_ERROR
from dpserver.errors import ConfigError, ModelFileError

if TYPE_CHECKING:
    import torch

    from dpserver.frames import Frames
    from dpserver.models.committee import Committee
    from dpserver.models.potential import Potential


def bench(
    model: Annotated[Path, typer.Argument(help="Model file.", metavar="w.pt", show_default=False)],
    sizes: Annotated[str, typer.Option(help="Atoms of single structures.", metavar="N,N,…")] = "192,1536,5184,12288",
    beads: Annotated[
        str, typer.Option(help="Copies of the smallest structure in one batch.", metavar="N,N,…")
    ] = "1,8,32",
    structure: Annotated[
        Path | None,
        typer.Option(
            help="Periodic structure to tile, any file that ase reads; by default one is made up.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    repeats: Annotated[int, typer.Option(min=1, help="Evaluations of each kind; their median counts.")] = 7,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")] = False,
    device: options.Device = "auto",
    precision: options.Precision = None,
    threads: options.Threads = None,
    table_error: options.TableError = TABLE_ERROR,
) -> None:
    """Time a model on this machine: over sizes and beads, stage by stage, and against what matrix products reach here.

    Whole evaluations of energies, forces and virials are timed, with neighbour lists that are used again as in a run.
    """
    numbers = {"--sizes": _numbers("--sizes", sizes), "--beads": _numbers("--beads", beads)}
    import dpserver
    from dpserver.bench import ceiling, measure, stages
    from dpserver.frames import Frames
    from dpserver.models.gdml import GDMLModel

    potential = dpserver.load(model, device=device, precision=precision, threads=threads, table_error=table_error)
    if isinstance(potential, GDMLModel):
        raise ModelFileError(f"{model} is an sGDML model, of one molecule, and has no sizes to time; serve it instead")
    make = _maker(potential, structure)
    with console.err.status("getting ready"):
        potential.warm_up()
    batches = [make(n) for n in numbers["--sizes"]]
    smallest = min(batches, key=lambda frames: frames.n_atoms)
    batches += [Frames.concatenate([smallest] * n) for n in numbers["--beads"] if n > 1]
    timings = []
    for frames in batches:
        with console.err.status(f"{frames.n_frames} x {frames.n_atoms // frames.n_frames} atoms"):
            timings.append(measure(potential, frames, repeats))
    parts = stages(potential, smallest, repeats)
    dtype = (potential.members[0] if isinstance(potential, dpserver.Committee) else potential).network_dtype
    top = ceiling(dtype, potential.device)
    found: dict[str, Any] = {
        "model": str(model),
        "evaluated_by": potential.evaluated_by(),
        "ceiling_gflops": {name: round(value, 1) for name, value in top.items()},
        "evaluations": [
            {**vars(timing), "us_per_atom": timing.us_per_atom, "atom_steps_per_s": timing.n_atoms / timing.median}
            for timing in timings
        ],
        "peak_memory_mb": _peak_memory(potential.device),
    }
    if parts is not None:
        found["stages_us_per_atom"] = {name: 1e6 * t / smallest.n_atoms for name, t in parts.seconds.items()}
        found["of_ceiling"] = 1e-9 * parts.products / max(top.values()) / sum(parts.seconds.values())
    if as_json:
        typer.echo(json.dumps(found, indent=2, ensure_ascii=False))
    else:
        _print(found)


def _numbers(option: str, text: str) -> list[int]:
    try:
        found = [int(part) for part in text.split(",")]
    except ValueError:
        found = []
    if not found or min(found) < 1:
        raise ConfigError(f"{option} must be positive numbers with commas in between, such as 192,1536; got {text!r}")
    return found


def _maker(model: Potential | Committee, structure: Path | None) -> Callable[[int], Frames]:
    """What gives a structure of about so many atoms, with parameters of 0 where the model takes such."""
    import numpy as np

    from dpserver.bench import composition, imagined, tiled
    from dpserver.models.committee import Committee

    tile = None if structure is None else _read(structure, model.species)
    first = model.members[0] if isinstance(model, Committee) else model
    types, neighbours = composition(first)
    takes = first.takes

    def make(n_atoms: int) -> Frames:
        if tile is None:
            frame = imagined(types, n_atoms, model.rcut, neighbours)
        else:
            frame = tiled(tile, max(round((n_atoms / tile.n_atoms) ** (1 / 3)), 1))
        return replace(
            frame,
            fparam=np.zeros((1, takes.n_fparam)) if takes.n_fparam else None,
            aparam=np.zeros((frame.n_atoms, takes.n_aparam)) if takes.n_aparam else None,
        )

    return make


def _read(path: Path, species: tuple[str, ...]) -> Frames:
    """A periodic structure from a file.

    Raises:
        ConfigError: it cannot be read, is not periodic, or has other species.
    """
    from dpserver.frames import Frames

    try:
        import ase.io

        atoms: Any = ase.io.read(path, -1)
    except ImportError:
        raise ConfigError("--structure needs ase: pip install 'dpserver[ase]'") from None
    except Exception as error:  # ase's readers raise whatever they like
        raise ConfigError(f"--structure {path} cannot be read: {type(error).__name__}: {error}") from None
    if unknown := sorted(set(atoms.symbols) - set(species)):
        raise ConfigError(
            f"--structure {path} has the species {' '.join(unknown)}; the model knows {' '.join(species)}"
        )
    if not atoms.pbc.all():
        raise ConfigError(f"--structure {path} must be periodic along all three lattice vectors, to be tiled")
    return Frames.single(atoms.positions, [species.index(s) for s in atoms.symbols], atoms.cell.array)


def _peak_memory(device: torch.device) -> int:
    """Largest memory in use so far, MB: of the device, or of the process."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.max_memory_allocated(device) >> 20)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> (20 if sys.platform == "darwin" else 10)


def _print(found: dict[str, Any]) -> None:
    from rich import box
    from rich.table import Table

    for what in found["evaluated_by"]:
        console.out.print(what, highlight=False, soft_wrap=True)
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for title in ("structures", "atoms each", "ms", "µs per atom", "atoms · steps / s"):
        table.add_column(title, justify="right")
    for row in found["evaluations"]:
        table.add_row(
            str(row["n_frames"]),
            str(row["n_atoms"] // row["n_frames"]),
            f"{1e3 * row['median']:.3f}",
            f"{row['us_per_atom']:.3f}",
            f"{row['atom_steps_per_s']:.3g}",
        )
    console.out.print(table)
    if "of_ceiling" in found:
        total = sum(found["stages_us_per_atom"].values())
        parts = ", ".join(f"{name} {t / total:.0%}" for name, t in found["stages_us_per_atom"].items())
        console.out.print(f"stages: {parts}", highlight=False, soft_wrap=True)
        console.out.print(
            f"matrix products alone, at the {max(found['ceiling_gflops'].values()):.0f} GFLOP/s that such reach here, "
            f"would take {found['of_ceiling']:.0%} of that",
            highlight=False,
            soft_wrap=True,
        )
    console.out.print(f"peak memory: {found['peak_memory_mb']} MB", highlight=False)
