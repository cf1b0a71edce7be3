"""What the commands share: where they write, how an error looks, and which exit code it has."""

from __future__ import annotations

from typing import Final

from rich.console import Console
from rich.text import Text

from dpserver.errors import ConfigError, DataError, DeviceError, DPServerError, ModelFileError, StructureError

out: Final = Console()
err: Final = Console(stderr=True)

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
    err.print(line, soft_wrap=True, highlight=False)
