"""Files that are written: found out before the work that they can be, written whole or not at all, one error if not."""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from dpserver.errors import ConfigError, OutputError

_FULL: Final = "make room on its disk, or name a file on another"
_DENIED: Final = "name a file in a folder that can be written to"
_ADVICE: Final = {
    errno.ENOSPC: _FULL,
    errno.EDQUOT: _FULL,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EACCES: _DENIED,
    errno.EPERM: _DENIED,
    errno.EROFS: _DENIED,
}


def check_output(path: str | Path, option: str = "") -> None:
    """Find out before the work whether a file can be written.

    Args:
        path: of the file; an existing one is to be replaced.
        option: that names it.

    Raises:
        ConfigError: it would lie in no folder, or in one that cannot be written to, or something else has its name.
    """
    name, folder = f"{option} {path}".lstrip(), Path(path).absolute().parent
    if os.path.isdir(path) or not os.path.isdir(folder):
        raise ConfigError(f"{name}: expected a file name in an existing folder")
    if os.path.exists(path) and not os.path.isfile(path):
        raise ConfigError(f"{name}: exists and is no file that could be replaced; give another name")
    check_folder(folder, name)


def check_folder(folder: str | Path, name: str) -> None:
    """Find out before the work whether files can be written in a folder, or it can be made.

    Args:
        folder: where files are to lie.
        name: of what is to lie there, as an error is to say it.

    Raises:
        ConfigError: they cannot.
    """
    nearest = Path(folder).absolute()
    while not os.path.exists(nearest):
        nearest = nearest.parent
    if not os.path.isdir(nearest):
        raise ConfigError(f"{name}: {nearest} is a file, expected a folder; give another name")
    if not os.access(nearest, os.W_OK | os.X_OK):
        raise ConfigError(
            f"{name}: the folder {nearest} cannot be written to; change its permissions, or name another folder"
        )


@contextlib.contextmanager
def writing(path: str | Path) -> Iterator[None]:
    """Say which file it was when the system cannot write it.

    Raises:
        OutputError: what is done inside failed; names the file, the cause, and what to do.
    """
    try:
        yield
    except OSError as error:
        advice = _ADVICE.get(error.errno or 0, "name another file")
        raise OutputError(f"cannot write {path}: {error.strerror or error}; {advice}") from None


@functools.cache
def _umask() -> int:
    """What the user takes from the permissions of new files; read once, since reading it sets it."""
    umask = os.umask(0)
    os.umask(umask)
    return umask


def write(path: str | Path, content: bytes) -> None:
    """Write a file atomically: it is the old one or the whole new one.

    Raises:
        OutputError: it cannot be written; nothing is left behind.
    """
    path = Path(path)
    with writing(path):
        descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(descriptor, "wb") as stream:
                stream.write(content)
                stream.flush()
                os.fsync(stream.fileno())
            Path(name).chmod(0o666 & ~_umask())
            Path(name).replace(path)
        except BaseException:
            Path(name).unlink(missing_ok=True)
            raise
