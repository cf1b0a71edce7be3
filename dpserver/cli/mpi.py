"""`dpserver serve --mpi-driver`: a driver rank of i-PI's `<ffmpi>`."""

from __future__ import annotations

import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Final

import typer

from dpserver import guard
from dpserver.cli import ranks
from dpserver.errors import ConfigError

_OPTION: Final = "--mpi-driver"
_VARIABLE: Final = "DPSERVER_MPI_DRIVER"
_BUG: Final = 1
_MEANINGLESS: Final = {
    "port": "--port",
    "host": "--host",
    "unix": "--unix",
    "is_unix": "-u",
    "is_shm": "--shm",
    "prefix": "--sockets-prefix",
    "connect": "--connect",
    "connections": "--connections",
    "is_once": "--once",
    "timeout": "--timeout",
}
"""Parameters of `serve` that tell how to reach a peer, and their options."""


def is_driver(arguments: Sequence[str]) -> bool:
    """Whether a command line is that of a driver rank, as far as can be told before it is read."""
    return _OPTION in arguments or os.environ.get(_VARIABLE, "0") not in {"", "0"}


def check_group_size(context: typer.Context) -> None:
    """Refuse a size of groups where there are none.

    Raises:
        ConfigError: it was given without the option that makes drivers of ranks.
    """
    if _is_given(context, "group_size"):
        raise ConfigError(
            f"--group-size is for drivers of i-PI's <ffmpi>, and needs {_OPTION}; elsewhere all ranks are one group"
        )


def check_options(context: typer.Context) -> None:
    """Refuse what would be ignored.

    Raises:
        ConfigError: an option is about sockets.
    """
    given = [option for name, option in _MEANINGLESS.items() if _is_given(context, name)]
    if given:
        verb = "has" if len(given) == 1 else "have"
        raise ConfigError(
            f"{', '.join(given)} {verb} no meaning with {_OPTION}: i-PI is reached through the MPI job both are part of"
        )


def _is_given(context: typer.Context, name: str) -> bool:
    """Whether a parameter stands on the command line; the environment may be there for other commands."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


@contextmanager
def whole_job(arguments: Sequence[str]) -> Iterator[None]:
    """End the whole MPI job when the command of a driver rank fails, be it that the option is misspelt.

    A rank that just leaves is waited for by all others: for ever, and at full load.

    Args:
        arguments: of the command line.
    """
    try:
        yield
    except BaseException as error:
        if (is_driver(arguments) or guard.job_size() > 1) and (code := _code(error)):
            from dpserver.transport.ffmpi import end_job

            if not isinstance(error, SystemExit):
                traceback.print_exception(error)
            sys.stderr.flush()
            ranks.leave(code)
            end_job(code)
        raise


def _code(error: BaseException) -> int:
    """The exit code of a command that ended so."""
    if not isinstance(error, SystemExit):
        return _BUG
    return error.code if isinstance(error.code, int) else int(error.code is not None)
