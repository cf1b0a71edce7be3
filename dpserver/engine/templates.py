"""Symbols of the atoms of a structure file, in its order: XYZ by ourselves, all else by ASE."""

from __future__ import annotations

import re
from pathlib import Path

from dpserver.errors import ConfigError

_PROPERTIES = re.compile(r'Properties="?([^"\s]+)"?', re.IGNORECASE)
_LARGEST_FILE = 1 << 28


def read_symbols(path: Path, *, is_xyz: bool | None = None) -> tuple[str, ...]:
    """Read the symbol of every atom of the first structure of a file.

    Args:
        path: XYZ or extended XYZ, or any format of ASE where that is installed.
        is_xyz: whether it is XYZ, with any names in the place of symbols; by default its own name tells.

    Raises:
        ConfigError: the file is missing or cannot be read.
    """
    try:
        _check_file(path)
        is_xyz = path.suffix.lower() in {".xyz", ".extxyz"} if is_xyz is None else is_xyz
        symbols = _read_xyz(path) if is_xyz else _read_by_ase(path)
    except OSError as error:  # no permission, a name that is too long, a disk that fails
        raise ConfigError(f"template {str(path)!r} cannot be read: {error.strerror}") from None
    if not symbols:
        raise ConfigError(f"template {str(path)!r} holds no atoms")
    return symbols


def _check_file(path: Path) -> None:
    if not path.is_file():
        raise ConfigError(f"template {str(path)!r} is no file (seen from {Path.cwd()}); give the path of a structure")
    if not path.stat().st_size:
        raise ConfigError(f"template {str(path)!r} is empty; give a file of one structure")
    if path.stat().st_size > _LARGEST_FILE:
        raise ConfigError(f"template {str(path)!r} is larger than {_LARGEST_FILE} bytes; give a file of one structure")


def _read_xyz(path: Path) -> tuple[str, ...]:
    """The species column of the first frame; it is the first one unless the comment says otherwise."""
    try:
        with path.open(encoding="utf-8") as lines:
            n_atoms = int(next(lines))
            column = _species_column(next(lines))
            return tuple([next(lines).split()[column] for _ in range(n_atoms)])
    except (ValueError, IndexError, StopIteration) as error:
        why = "it ends too early" if isinstance(error, StopIteration) else str(error)
        raise ConfigError(
            f"template {str(path)!r} is no XYZ file: {why}; expected the number of atoms, a "
            "comment, and one line for each atom that starts with its symbol"
        ) from None


def _species_column(comment: str) -> int:
    """Column of the symbols; extended XYZ says it as Properties=name:kind:columns and so on."""
    found = _PROPERTIES.search(comment)
    fields = found.group(1).split(":") if found else []
    column = 0
    for name, width in zip(fields[::3], fields[2::3], strict=False):
        if name.lower() == "species":
            return column
        column += int(width)
    return 0


def _read_by_ase(path: Path) -> tuple[str, ...]:
    """Any other format."""
    try:
        import ase.io
    except ImportError:
        raise ConfigError(
            f"template {str(path)!r} is no .xyz file; other formats need ASE: pip install 'dpserver[ase]'"
        ) from None
    try:
        found = ase.io.read(path, index=0)
    except Exception as error:  # every format of ASE raises its own
        raise ConfigError(f"template {str(path)!r} cannot be read: {type(error).__name__}: {error}") from error
    atoms = found[0] if isinstance(found, list) else found
    return tuple(atoms.symbols)
