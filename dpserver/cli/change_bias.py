"""`dpserver change-bias`: the energies of a model's species, fitted to a data set or given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dpserver.cli import console, options
from dpserver.errors import ConfigError
from dpserver.files import check_output

if TYPE_CHECKING:
    from dpserver.models.potential import Potential
    from dpserver.train.bias import BiasChange
    from dpserver.train.data_config import DataConfig


def change_bias(
    model: Annotated[
        Path, typer.Argument(help="Model file, of dpserver or of DeePMD-kit.", metavar="w.pt", show_default=False)
    ],
    system: Annotated[
        Path | None,
        typer.Option(
            "--system", "-s", help="Data, or a directory of such at any depth.", metavar="DATA", show_default=False
        ),
    ] = None,
    datafile: Annotated[
        Path | None,
        typer.Option(
            "--datafile", "-f", help="File that names one system in each line.", metavar="FILE", show_default=False
        ),
    ] = None,
    bias: Annotated[
        str | None,
        typer.Option(
            "--bias-value",
            "-b",
            help="Energy of each species, eV, in the model's order: '-93.57 -187.1'.",
            metavar="NUMBERS",
            show_default=False,
        ),
    ] = None,
    mode: Annotated[
        str,
        typer.Option(
            "--mode",
            "-m",
            help="change: fit what the model's energies lack. set: fit the energies themselves.",
            metavar="change|set",
        ),
    ] = "change",
    n_frames: Annotated[
        int,
        typer.Option("--numb-batch", "-n", min=0, help="Frames of each system to use; 0 for all.", metavar="N"),
    ] = 0,
    output: Annotated[
        Path | None,
        typer.Option(
            "--output", "-o", help="Model file to write.", metavar="FILE", show_default="beside it, _updated.pt"
        ),
    ] = None,
    head: options.Head = None,
) -> None:
    """Fit the energies of a model's species to a data set, and leave forces and virials as they are.

    With it a model agrees with the reference energies of another method or code, up to what differs in its forces.
    """
    from dpserver.models import checkpoint

    output = model.with_name(f"{model.stem}_updated.pt") if output is None else output
    _check(output, mode, {"-s": system, "-f": datafile, "-b": bias})
    values = checkpoint.read(model, head)
    members = checkpoint.members_of(values)
    changed = []
    for k, member in enumerate(members):
        potential = checkpoint.restore(member, str(model))
        if bias is not None:
            change, how = _given(potential, bias), "given"
        else:
            change, how = (
                _fitted(potential, _systems(system, datafile), n_frames, is_set=mode == "set"),
                f"{mode} by data",
            )
        label = f"member {k + 1}: " if len(members) > 1 else ""
        console.err.print(label + describe(change, potential.species), highlight=False, soft_wrap=True)
        changed.append(checkpoint.contents(potential, _card(member["training"], how, change)))
    checkpoint.write(output, changed[0] if "members" not in values else checkpoint.committee_of(changed))
    console.err.print(f"model: {output}   (dpserver info {output})", highlight=False, soft_wrap=True)


def describe(change: BiasChange, species: Sequence[str]) -> str:
    """A change of the energies of the species in one line."""
    energies = ", ".join(
        f"{s} {before:.4f} → {after:.4f}" for s, before, after in zip(species, change.before, change.after, strict=True)
    )
    if not change.n_frames:
        return f"energies of the species, eV: {energies}"
    errors = f"{1e3 * change.error_before:.3g} → {1e3 * change.error_after:.3g} meV/atom"
    return f"energies of the species, eV: {energies}; RMSE of the energies of {change.n_frames} frames: {errors}"


def _card(training: Mapping[str, Any], how: str, change: BiasChange) -> dict[str, Any]:
    """Where the model comes from; its errors of energies on the validation set are no longer known."""
    kept = dict(training)
    if isinstance(errors := kept.get("validation"), Mapping):
        kept["validation"] = {name: value for name, value in errors.items() if name != "e"}
    frames = {"n_frames": change.n_frames} if change.n_frames else {}
    return {**kept, "bias": {"how": how, **frames}}


def _check(output: Path, mode: str, sources: dict[str, Path | str | None]) -> None:
    """Refuse options that do not fit together, and an output that cannot be written."""
    given = [option for option, value in sources.items() if value is not None]
    if len(given) != 1:
        raise ConfigError(
            f"{' and '.join(given)} exclude each other" if given else "give data by -s or -f, or the energies by -b"
        )
    if mode not in ("change", "set"):
        raise ConfigError(f"--mode {mode}: expected change or set")
    check_output(output, "--output")
    if output.suffix in (".pth", ".pb", ".dp", ".yaml"):
        raise ConfigError(f"--output {output}: a model file of dpserver is written; then dpserver export {output}")


def _systems(system: Path | None, datafile: Path | None) -> DataConfig:
    """The data that the options name."""
    from dpserver.models.section import parse
    from dpserver.train.data_config import DataConfig

    if datafile is None:
        return parse(DataConfig, {"systems": str(system)}, "--system")
    try:
        lines = [line.strip() for line in datafile.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"cannot read --datafile {datafile}: {error}") from None
    return parse(DataConfig, {"systems": [line for line in lines if line]}, "--datafile")


def _fitted(potential: Potential, data: DataConfig, n_frames: int, *, is_set: bool) -> BiasChange:
    """Fit the energies of the species to data."""
    from dpserver.train.bias import change_bias as refit
    from dpserver.train.systems import open_systems

    systems = open_systems(data, potential.config)
    return refit(potential, systems, [n_frames or s.data.n_frames for s in systems], is_set=is_set)


def _given(potential: Potential, text: str) -> BiasChange:
    """Set the energies of the species to given numbers."""
    import numpy as np
    import torch

    from dpserver.train.bias import BiasChange

    try:
        numbers = np.array([float(word) for word in text.replace(",", " ").split()])
    except ValueError:
        raise ConfigError(f"--bias-value {text!r}: expected numbers in eV, with blanks between them") from None
    if len(numbers) != len(potential.species) or not np.isfinite(numbers).all():
        raise ConfigError(
            f"--bias-value {text!r}: expected {len(potential.species)} numbers, for {' '.join(potential.species)}"
        )
    before = potential.energy_bias.numpy().copy()
    potential.energy_bias.copy_(torch.from_numpy(numbers))
    return BiasChange(before, numbers, 0, 0.0, 0.0)
