"""Where DeePMD's arrays lie: a directory of npy files, or a group of an HDF5 file with the same names in it.

Nothing that is read is executed: arrays of Python objects are refused, and so is what leads from an HDF5 file to
another file.
"""

from __future__ import annotations

import os
import tokenize
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import DataError

if TYPE_CHECKING:
    import h5py

_LARGE: Final = 1 << 30
_MAX_RATIO: Final = 1000
"""An array of more than `_LARGE` bytes that is kept in less than a thousandth of them is no data."""
_FILTERS: Final = frozenset({1, 2, 3, 4, 32000})
"""Deflate, shuffle, fletcher32, szip and lzf come with h5py; HDF5 would look for others among the plug-ins here."""
_DAMAGE: Final = (
    *(OSError, EOFError, ValueError, TypeError, LookupError, AttributeError, RuntimeError, OverflowError, MemoryError),
    *(SyntaxError, tokenize.TokenError),
)
"""What numpy and h5py are known to raise on damaged files."""
_MAX_TEXT: Final = 64 << 20


class Folder(Protocol):
    """A place with named arrays in it, and with further such places."""

    @property
    def name(self) -> str:
        """What a message calls it."""

    def at(self, name: str) -> str:
        """What a message calls something in it."""

    def has(self, name: str) -> bool:
        """Whether there is a file or data set of this name."""

    def array(self, name: str) -> NDArray[Any]:
        """Read an array.

        Raises:
            DataError: it cannot be read.
        """

    def words(self, name: str) -> list[str]:
        """Read a short list of words, such as a type map.

        Raises:
            DataError: it cannot be read.
        """

    def sets(self) -> Sequence[Folder]:
        """The folders `set.*`, sorted by name."""


class Directory:
    """A directory.

    Args:
        path: where it is.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.name = str(path)

    def at(self, name: str) -> str:
        """The path of a file in it."""
        return str(self.path / name)

    def has(self, name: str) -> bool:
        """Whether there is a file of this name."""
        return (self.path / name).is_file()

    def array(self, name: str) -> NDArray[Any]:
        """Read a npy file."""
        file = self.path / name
        with _reading(str(file)):
            _check_npy(file)
            values: NDArray[Any] = np.load(file, allow_pickle=False)
            return values

    def words(self, name: str) -> list[str]:
        """Read a text file word by word; what follows a # is a comment."""
        try:
            with (self.path / name).open(encoding="utf-8") as stream:
                text = stream.read(_MAX_TEXT)
        except (OSError, UnicodeDecodeError) as error:
            raise DataError(f"{self.name}: cannot read {name}: {error}") from None
        return [word for line in text.splitlines() for word in line.partition("#")[0].split()]

    def sets(self) -> list[Directory]:
        """The directories `set.*`, sorted by name."""
        return [Directory(p) for p in sorted(self.path.glob("set.*")) if p.is_dir()]


def _check_npy(file: Path) -> None:
    """Compare what the header of a npy file promises with what there is, before memory is taken for it."""
    with file.open("rb") as stream:
        version = np.lib.format.read_magic(stream)
        header = np.lib.format.read_array_header_1_0 if version[0] == 1 else np.lib.format.read_array_header_2_0
        shape, _, dtype = header(stream)
        start = stream.tell()
    if dtype.hasobject:
        raise ValueError("it holds Python objects, which are not loaded; expected numbers")
    expected, found = int(np.prod(shape, dtype=object)) * dtype.itemsize, file.stat().st_size - start
    if found < expected:
        raise ValueError(
            f"expected {expected} bytes of numbers for the shape {shape}, got {found}; copy the file again"
        )


def directories(path: Path) -> Iterator[Path]:
    """Every directory below a path that holds a `type.raw`, itself included; links to directories are followed."""
    seen = {os.path.realpath(path)}
    for folder, names, files in os.walk(path, followlinks=True):
        if "type.raw" in files:
            yield Path(folder)
        kept = []
        for name in names:
            real = os.path.realpath(os.path.join(folder, name))
            if not (name.startswith("set.") and "type.raw" in files) and real not in seen:
                seen.add(real)
                kept.append(name)
        names[:] = kept


class Group:
    """A group of an HDF5 file.

    Args:
        group: of the open file.
        file: where the file is.
    """

    def __init__(self, group: h5py.Group, file: Path) -> None:
        self.group = group
        self.file = file
        self.name = f"{file}#{group.name}"

    def at(self, name: str) -> str:
        """The path of something in it."""
        return f"{self.name.rstrip('/')}/{name}"

    def has(self, name: str) -> bool:
        """Whether there is a data set of this name."""
        import h5py

        return isinstance(_get(self, name), h5py.Dataset)

    def array(self, name: str) -> NDArray[Any]:
        """Read a data set."""
        found = _get(self, name)
        with _reading(self.at(name)):
            _check_dataset(found)
            return np.asarray(found[()])

    def words(self, name: str) -> list[str]:
        """Read a data set of words or whole numbers."""
        values = self.array(name).ravel().tolist()
        try:
            return [v.decode() if isinstance(v, bytes) else str(v) for v in values]
        except UnicodeDecodeError as error:
            raise DataError(f"cannot read {self.at(name)}: {error}") from None

    def sets(self) -> list[Group]:
        """The groups `set.*`, sorted by name."""
        found = (self.group_at(name) for name in self.names() if name.startswith("set."))
        return [group for group in found if group is not None]

    def names(self) -> list[str]:
        """What there is in it, sorted."""
        with _reading(self.name):
            return sorted(name for name in self.group if isinstance(name, str))

    def group_at(self, name: str) -> Group | None:
        """The group of a name, if it is one."""
        import h5py

        found = _get(self, name)
        return Group(found, self.file) if isinstance(found, h5py.Group) else None

    def group_below(self, path: str) -> Group | None:
        """The group of a path in it, such as `a/b`, if it is one."""
        here: Group | None = self
        for name in path.strip("/").split("/") if path.strip("/") else ():
            here = here.group_at(name) if here is not None else None
        return here

    @property
    def address(self) -> object:
        """Where in the file it lies, whatever leads to it."""
        import h5py

        with _reading(self.name):
            return h5py.h5o.get_info(self.group.id).addr


def subgroups(group: Group) -> Iterator[Group]:
    """A group of an HDF5 file and every group below it but sets, each once however it is linked.

    Raises:
        DataError: something in it leads to another file.
    """
    seen, waiting = set(), [group]
    while waiting:
        here = waiting.pop()
        if here.address in seen:
            continue
        seen.add(here.address)
        yield here
        names = (name for name in here.names() if not name.startswith("set."))
        waiting += [below for name in names if (below := here.group_at(name)) is not None]


def _get(folder: Group, name: str) -> Any:
    """What lies under a name of a group: a data set, a group or nothing; a link to another file is not followed."""
    import h5py

    with _reading(folder.at(name)):
        link = folder.group.get(name, getlink=True)
        if isinstance(link, h5py.ExternalLink):
            raise ValueError(f"it is a link to another file, {link.filename}, which is not followed")
        found = None if link is None else folder.group.get(name)
        if found is not None and found.file.filename != folder.group.file.filename:
            raise ValueError(f"it leads to another file, {found.file.filename}, which is not followed")
        return found


@contextmanager
def _reading(name: str) -> Iterator[None]:
    """Turn whatever numpy and h5py say of a damaged file into one line."""
    try:
        yield
    except _DAMAGE as error:
        raise DataError(f"cannot read {name}: {' '.join(str(error).split()) or type(error).__name__}") from None


def _check_dataset(found: Any) -> None:
    """Refuse a data set whose numbers lie elsewhere, or that would fill the memory.

    Raises:
        ValueError: it is such.
    """
    import h5py

    if not isinstance(found, h5py.Dataset):
        raise ValueError("expected a data set of numbers, there is none")
    if found.external or found.is_virtual:
        raise ValueError("its numbers lie in another file, which is not read")
    plan = found.id.get_create_plist()
    if not _FILTERS.issuperset(plan.get_filter(k)[0] for k in range(plan.get_nfilters())):
        raise ValueError("it is compressed in a way that needs a plug-in of HDF5; use gzip or lzf")
    if found.nbytes > _LARGE and found.nbytes > _MAX_RATIO * found.id.get_storage_size():
        raise ValueError(f"its shape {found.shape} promises more numbers than the file holds")
