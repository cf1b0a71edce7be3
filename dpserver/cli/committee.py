"""`dpserver committee`: several models of the same species in one file, which serves their mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpserver.cli import console
from dpserver.errors import ConfigError
from dpserver.files import check_output


def committee(
    models: Annotated[
        list[Path],
        typer.Argument(help="Model files, at least two.", metavar="a.pt b.pt ...", show_default=False),
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Model file to write.", metavar="FILE", show_default=False)
    ],
) -> None:
    """Join models into a committee: their mean is served, and how far they lie apart tells where not to trust it.

    The models differ by the seed of their training, or by its data. A committee among them enters member by member.
    """
    check_output(output, "--output")
    if output.exists() and any(output.samefile(model) for model in models if model.exists()):
        raise ConfigError(f"--output {output} is one of the models to join; give the committee a name of its own")

    from dpserver.models import checkpoint, gdml_file

    for model in models:
        gdml_file.refuse(model, "a committee has members of dpserver and of DeePMD-kit only")
    values = checkpoint.join(models)
    checkpoint.write(output, values)
    console.err.print(
        f"committee of {len(values['members'])}: {output}   (dpserver info {output}; dpserver --model {output} "
        "--port 31415)",
        highlight=False,
        soft_wrap=True,
    )
