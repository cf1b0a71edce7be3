"""What the commands share: where they write, how an error looks, and which exit code it has."""

from __future__ import annotations

import contextlib
import os
import sys
from typing import Final

from rich.console import Console
from rich.text import Text

from dpserver.errors import ConfigError, DataError, DeviceError, DPServerError, ModelFileError, StructureError

out: Final = Console()
err: Final = Console(stderr=True)

_WRITERS: Final = ("rich.", "typer.", "click.", "dpserver.cli.")

INTERRUPTED: Final = 130

_EXIT_CODES: Final[dict[type[DPServerError], int]] = {
    ConfigError: 2,
    ModelFileError: 3,
    DataError: 4,
    StructureError: 4,
    DeviceError: 5,
}


def exit_code(error: DPServerError) -> int:
    """The status the process ends with: 1 where the class of the error has no number of its own."""
    return next((code for kind, code in _EXIT_CODES.items() if isinstance(error, kind)), 1)


def show_error(error: DPServerError) -> None:
    """Write `error: …` to stderr as one line, however narrow the terminal."""
    line = Text.assemble(("error:", "bold red"), " ", " ".join(str(error).split()))
    with contextlib.suppress(OSError):  # nobody can be told; the exit code still says it
        err.print(line, soft_wrap=True, highlight=False)


def is_of_stdout(error: OSError) -> bool:
    """Whether it was raised by what writes to the terminal, by the module that it comes from."""
    trace = error.__traceback__
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    module = "" if trace is None else str(trace.tb_frame.f_globals.get("__name__"))
    return error.filename is None and module.startswith(_WRITERS)


def give_up_stdout() -> None:
    """Let standard output lead nowhere: what waits in its buffer would fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
