"""`dpserver import` and `dpserver export`: models from DeePMD-kit, and for it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpserver.cli import beside, console, options
from dpserver.errors import ConfigError, ModelFileError
from dpserver.files import check_output


def import_model(
    source: Annotated[
        Path,
        typer.Argument(
            help="Model of DeePMD-kit: .pth, .pt, .pb, .dp or .yaml.", metavar="frozen_model.pth", show_default=False
        ),
    ],
    output: Annotated[Path, typer.Argument(help="Model file to write.", metavar="w.pt", show_default=False)],
    template: Annotated[
        Path | None,
        typer.Option(
            help="Structure whose order of atoms the model is to be served with, kept in the model file.",
            metavar="FILE",
            show_default=False,
        ),
    ] = None,
    head: options.Head = None,
) -> None:
    """Turn a model of DeePMD-kit into a model file with the same numbers.

    DeePMD-kit is not needed, and nothing in the file is executed.
    """
    _check_output(output, source)
    from dpserver.engine.templates import read_symbols
    from dpserver.models import checkpoint, deepmd, gdml_file

    gdml_file.refuse(source, "there is nothing to import, serve it as it is")
    if source.is_file() and not deepmd.recognises(source):
        raise ModelFileError(f"{source} is no model of DeePMD-kit; expected a .pth, .pt, .pb, .dp or .yaml file of it")
    symbols = None if template is None else read_symbols(template)
    values = checkpoint.read(source, head)
    if symbols is not None:
        if unknown := sorted({symbol for symbol in symbols if symbol not in values["species"]}):
            raise ConfigError(
                f"--template {template} has the species {' '.join(unknown)}, which {source} does not know; it knows "
                f"{' '.join(values['species'])}"
            )
        values["template"] = list(symbols)
    model = checkpoint.restore_model(values, str(source))
    checkpoint.write(output, values)
    hint = "" if symbols is not None else " --template FILE"
    console.err.print(
        f"imported: {output}   (dpserver info {output}; {beside.how_to_serve(model, output, hint)})",
        highlight=False,
        soft_wrap=True,
    )


def export_model(
    source: Annotated[Path, typer.Argument(help="Model file.", metavar="w.pt", show_default=False)],
    output: Annotated[Path, typer.Argument(help="File to write.", metavar="model.dp", show_default=False)],
    precision: Annotated[
        str, typer.Option(help="In which DeePMD-kit is to evaluate it: double or single.", metavar="NAME")
    ] = "double",
) -> None:
    """Write a model for DeePMD-kit, and so for LAMMPS and the other codes it reaches.

    `dp convert-backend model.dp model.pth` (or model.pb) of DeePMD-kit makes what these codes load.
    """
    if output.suffix != ".dp":
        raise ConfigError(
            f"{output}: expected a name that ends in .dp; DeePMD-kit's `dp convert-backend` makes the rest"
        )
    _check_output(output, source)
    from dpserver.models import checkpoint, deepmd

    values = checkpoint.read(source)
    if "members" in values:
        raise ConfigError(f"{source} is a committee, and a .dp file holds one model; export the files it was made of")
    deepmd.save(output, checkpoint.restore_model(values, str(source)), precision)
    console.err.print(
        f"exported: {output}   (dp convert-backend {output} {output.with_suffix('.pth')})",
        highlight=False,
        soft_wrap=True,
    )


def _check_output(output: Path, source: Path) -> None:
    """Refuse a place where no file can be written, or the one that is to be read."""
    check_output(output)
    if output.exists() and source.exists() and output.samefile(source):
        raise ConfigError(f"{output} is the file to read; give the new one a name of its own")
