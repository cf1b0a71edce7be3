"""Which systems a path stands for, and reading them.

- `folder`: a DeePMD npy directory, mixed-type or not, or one that holds such at any depth
- `file.hdf5`, `file.hdf5#/a/b`: all systems of an HDF5 file, or those in one of its groups
- `folder.lmdb`: an LMDB data set
- `file.xyz`: extended XYZ
- `vasp/outcar:OUTCAR`: whatever dpdata reads; its name of the format, a colon, the path, in which * and ** may stand
  for any names
"""

from __future__ import annotations

import glob
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Final, Literal

from dpserver.errors import DataError
from dpserver.train.formats.common import Contents
from dpserver.train.formats.deepmd import read_deepmd
from dpserver.train.formats.folders import Directory, Group, directories, subgroups
from dpserver.train.formats.foreign import read_foreign
from dpserver.train.formats.lmdb import is_lmdb, read_lmdb
from dpserver.train.formats.xyz import read_xyz

if TYPE_CHECKING:
    import h5py

_HDF5: Final = b"\x89HDF\r\n\x1a\n"
_OWN: Final = frozenset(
    ("deepmd/npy", "deepmd/comp", "deepmd/npy/mixed", "deepmd/hdf5", "deepmd/hdf5/mixed", "deepmd/lmdb", "lmdb")
)
"""dpdata's names of formats that are read here."""
_EXPECTED: Final = (
    "a DeePMD npy directory (type.raw and set.*), a directory of such, an HDF5 file of such (file.hdf5 or "
    "file.hdf5#/system), an LMDB data set, an extended XYZ file, or FORMAT:PATH for what dpdata reads"
)


@dataclass(frozen=True)
class Source:
    """One system, not read yet.

    Attributes:
        path: of the directory or file.
        kind: of format.
        inside: the group of an HDF5 file, or dpdata's name of the format.
    """

    path: Path
    kind: Literal["npy", "hdf5", "xyz", "lmdb", "dpdata"]
    inside: str = ""

    def __str__(self) -> str:
        if self.kind == "hdf5":
            return f"{self.path}#{self.inside}"
        return f"{self.inside}:{self.path}" if self.kind == "dpdata" else str(self.path)

    def read(self, species: tuple[str, ...], selected: Collection[str] | None = None) -> Contents:
        """Read it; see `dpserver.train.data.read_system`."""
        if self.kind == "npy":
            return read_deepmd(Directory(self.path), species, selected)
        if self.kind == "xyz":
            return read_xyz(self.path, species)
        if self.kind == "lmdb":
            return read_lmdb(self.path, species)
        if self.kind == "dpdata":
            return read_foreign(self.inside, self.path, species)
        with _open_hdf5(self.path) as file:
            group = Group(file, self.path).group_below(self.inside)
            if group is None:
                raise DataError(f"{self} is not there any more")
            return read_deepmd(group, species, selected)


def find_systems(path: str | Path | Source, patterns: Sequence[str] | None = None) -> list[Source]:
    """The systems a path stands for.

    Args:
        path: see above.
        patterns: only directories that match one of these, `*` and `**` as in `pathlib.Path.rglob`; DeePMD-kit's
            `rglob_patterns`.

    Returns:
        The systems, sorted.

    Raises:
        DataError: the path does not exist, or no system is found.
    """
    if isinstance(path, Source):
        return [path]
    place = Path(path)
    if is_lmdb(place):
        return [Source(place, "lmdb")]
    if place.is_dir():
        return _in_directory(place, patterns)
    if patterns is not None:
        raise DataError(f"{path}: rglob_patterns choose among directories, and this is none")
    if place.is_file():
        return _in_hdf5(place, "/") if _is_hdf5(place) else [Source(place, "xyz")]
    file, mark, inside = str(path).partition("#")
    if mark and Path(file).is_file():
        return _in_hdf5(Path(file), "/" + inside.strip("/"))
    kind, mark, rest = str(path).partition(":")
    if mark and rest and kind in _OWN:
        return [system for file in _matching(rest) for system in find_systems(file, patterns)]
    if mark and rest:
        return [Source(file, "dpdata", kind) for file in _matching(rest)]
    raise DataError(f"the data set {path} does not exist; expected {_EXPECTED}")


def resolve(path: str, folder: Path) -> str:
    """A path of an input file: from the current directory if it exists there, else from the folder of that file."""
    kind, mark, rest = path.partition(":")
    if Path(path.partition("#")[0]).exists() or Path(path).is_absolute():
        return path
    if mark and not (folder / path.partition("#")[0]).exists():
        return path if Path(rest).exists() else f"{kind}:{folder / rest}"
    return str(folder / path)


def _matching(path: str) -> list[Path]:
    """A path, or what matches it if there are wild cards in it."""
    if Path(path).exists() or not glob.has_magic(path):
        return [Path(path)]
    found = sorted(Path(p) for p in glob.glob(path, recursive=True))
    if not found:
        raise DataError(f"no file matches {path}")
    return found


def _in_directory(path: Path, patterns: Sequence[str] | None) -> list[Source]:
    """The npy directories in one."""
    found = set(directories(path))
    if patterns is not None:
        found &= {match for pattern in patterns for match in path.rglob(pattern)}
    if not found:
        which = "" if patterns is None else f" that matches {' or '.join(patterns)}"
        raise DataError(f"no system in {path}{which}: expected {_EXPECTED}")
    return [Source(p, "npy") for p in sorted(found)]


def _is_hdf5(path: Path) -> bool:
    with path.open("rb") as stream:
        return stream.read(len(_HDF5)) == _HDF5


def _open_hdf5(path: Path) -> h5py.File:
    try:
        import h5py
    except ImportError:
        raise DataError(f"reading {path} needs h5py: pip install 'dpserver[deepmd]'") from None
    try:
        return h5py.File(path, "r")
    except OSError as error:
        raise DataError(f"{path} cannot be read as an HDF5 file: {error}") from None


def _in_hdf5(path: Path, inside: str) -> list[Source]:
    """The systems in a group of an HDF5 file."""
    if not _is_hdf5(path):
        raise DataError(f"{path} is not an HDF5 file, so it has no {inside}")
    with _open_hdf5(path) as file:
        top = Group(file, path)
        group = top.group_below(inside)
        if group is None:
            raise DataError(f"{path} has no group {inside}; it holds {', '.join(top.names()[:9]) or 'nothing'}")
        found = sorted(g.group.name for g in subgroups(group) if g.has("type.raw"))
    if not found:
        raise DataError(f"no system in {path}#{inside}: expected groups that hold type.raw and set.*")
    return [Source(path, "hdf5", name) for name in found]
