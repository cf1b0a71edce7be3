"""`dpserver tabulate`: keep the tables of the embedding nets in the model file."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dpserver.cli import console, options
from dpserver.defaults import TABLE_ERROR
from dpserver.files import check_output


def tabulate(
    model: Annotated[Path, typer.Argument(help="Model file.", metavar="w.pt", show_default=False)],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="Model file to write.", metavar="FILE", show_default=False)
    ],
    table_error: options.TableError = TABLE_ERROR,
) -> None:
    """Write a model file that holds the tables of the embedding nets, which are made at every start else.

    They are used as long as the weights are those they were made from, for the error they were made for.
    """
    check_output(output, "--output")

    from dpserver.models import checkpoint, kept_tables
    from dpserver.models.compilation import check_table_error

    check_table_error(table_error)
    values = checkpoint.read(model)
    members = []
    for k, member in enumerate(checkpoint.members_of(values)):
        potential = checkpoint.restore(member, str(model))
        potential.tables = kept_tables.make(potential, table_error)
        members.append({**member, "tables": potential.tables.values()})
        label = f"member {k + 1}: " if "members" in values else ""
        e = potential.tables.error
        console.err.print(
            f"{label}tables deviate by {e.value:.1e}, {e.first:.1e} (first) and {e.second:.1e} (second derivative)",
            highlight=False,
            soft_wrap=True,
        )
    checkpoint.write(output, checkpoint.committee_of(members) if "members" in values else members[0])
    console.err.print(f"model: {output}   (dpserver info {output})", highlight=False, soft_wrap=True)
