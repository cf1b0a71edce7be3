"""What the commands share: where they write, how an error looks, and which exit code it has."""

from __future__ import annotations

import contextlib
import errno
import os
import sys
from typing import Final

from rich.console import Console
from rich.text import Text

from dpserver.errors import ConfigError, DataError, DeviceError, DPServerError, ModelFileError, StructureError

out: Final = Console()
err: Final = Console(stderr=True)

_UNWRITABLE: Final = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF)

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


def is_of_stdout(error: OSError) -> bool:
    """Whether standard output could not be written; a file that could not is an `OutputError` by now."""
    return error.filename is None and error.errno in _UNWRITABLE


def give_up_stdout() -> None:
    """Let standard output lead nowhere: what waits in its buffer would fail again when the process ends."""
    with contextlib.suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)
