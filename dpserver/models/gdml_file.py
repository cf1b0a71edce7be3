"""Files of the `sgdml` package (`.npz`), read as data: nothing in them is executed, no array is longer than it says.

The package writes some entries as pickled objects, its own error estimates among them; these are left alone.
"""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpserver.errors import ModelFileError
from dpserver.frames import Floats, Ints
from dpserver.models.electrons import SYMBOLS
from dpserver.models.memory import check_room
from dpserver.units import BOHR, HARTREE, KCAL_PER_MOL

LENGTHS: Final = {
    **dict.fromkeys(("ang", "angstrom", "å", "a"), 1.0),
    **dict.fromkeys(("bohr", "au", "a.u.", "a0"), BOHR),
    "nm": 10.0,
}
"""Å."""
ENERGIES: Final = {
    "ev": 1.0,
    "mev": 1e-3,
    "kcal/mol": KCAL_PER_MOL,
    "kj/mol": KCAL_PER_MOL / 4.184,
    **dict.fromkeys(("hartree", "ha", "eh", "au", "a.u."), HARTREE),
    **dict.fromkeys(("rydberg", "ry"), HARTREE / 2),
}
"""eV."""

_KINDS: Final = {"d": "a data set, which `sgdml train` makes a model of", "t": "a training task, not a model"}
_NEEDED: Final = ("z", "R_desc", "R_d_desc_alpha", "c", "std", "sig", "perms", "tril_perms_lin")
_OPTIONAL: Final = ("alphas_E", "lattice")
_TEXTS: Final = ("r_unit", "e_unit", "code_version", "dataset_name", "dataset_theory", "solver_name")
_WHOLE: Final = ("z", "perms", "tril_perms_lin")
_LARGE: Final = ("R_desc", "R_d_desc_alpha", "alphas_E", "tril_perms_lin")
"""What fills a file: numbers of four bytes or more."""
_MARKS: Final = ("R_desc.npy", "R_d_desc_alpha.npy")
_MAX_ENTRIES: Final = 200
_MAX_BYTES: Final = 4 << 30
_MAX_ATOMS: Final = 1000
_MAX_TEXT: Final = 300
_MAX_TEXT_BYTES: Final = 1 << 16
_ZIP: Final = b"PK"


@dataclass(frozen=True, eq=False)
class GDMLFile:
    """What a model file of the package holds, checked.

    Attributes:
        arrays: what the package's predictor takes, in the units of the file; the lattice left out.
        symbols: of the atoms.
        lattice: rows are the lattice vectors of the training structures, (3, 3), Å; None where these were open.
        length: its unit of length, Å.
        energy: its unit of energy, eV.
        about: what it says of itself, by the package's names.
    """

    arrays: Mapping[str, Any]
    symbols: tuple[str, ...]
    lattice: Floats | None
    length: float
    energy: float
    about: Mapping[str, str] = field(default_factory=dict)

    @classmethod
    def read(cls, path: str | Path) -> GDMLFile:
        """Read a file.

        Raises:
            ModelFileError: it is missing, damaged, hostile, of another kind, larger than the memory, or says nothing of
                its units.
        """
        path = Path(path)
        if not path.is_file():
            raise ModelFileError(f"model file {path} does not exist (seen from {Path.cwd()})")
        try:
            with zipfile.ZipFile(path) as archive:
                return cls._of(archive)
        except ModelFileError as error:
            raise ModelFileError(f"{path} is no sGDML model that can be used: {error}") from None
        except MemoryError as error:
            raise ModelFileError(f"{path} is too large: {error}") from None
        except (zipfile.BadZipFile, zlib.error, RuntimeError, EOFError, OSError, ValueError, NotImplementedError):
            raise ModelFileError(f"{path} is cut short or damaged; copy it again") from None

    @classmethod
    def _of(cls, archive: zipfile.ZipFile) -> GDMLFile:
        entries = {info.filename: info for info in archive.infolist()}
        if len(entries) > _MAX_ENTRIES or sum(info.file_size for info in entries.values()) > _MAX_BYTES:
            raise ModelFileError(f"it holds more than {_MAX_ENTRIES} arrays or {_MAX_BYTES >> 30} GB")
        kind = _text(archive, "type")
        if kind != "m":
            raise ModelFileError(f"it is {_KINDS.get(kind, f'of the type {kind!r}')}")
        if missing := [name for name in _NEEDED if f"{name}.npy" not in entries]:
            raise ModelFileError(f"it lacks {', '.join(missing)}")
        headers = {n: _Header.read(archive, n) for n in (*_NEEDED, *_OPTIONAL) if f"{n}.npy" in entries}
        _check_headers(headers)
        about = {n: _text(archive, n) for n in _TEXTS if f"{n}.npy" in entries}
        needed = sum(header.room for header in headers.values())
        check_room(needed, "reading this sGDML model")
        checked = _checked({name: header.array(archive) for name, header in headers.items()})
        length, energy = _unit("r_unit", about, LENGTHS), _unit("e_unit", about, ENERGIES)
        lattice = checked.pop("lattice", None)
        symbols = tuple(SYMBOLS[z - 1] for z in checked["z"])
        rows = None if lattice is None else np.ascontiguousarray(lattice.T) * length
        return cls({"type": "m", **checked}, symbols, rows, length, energy, about)

    @property
    def n_train(self) -> int:
        """Number of training structures."""
        return int(self.arrays["R_desc"].shape[1])

    @property
    def n_perms(self) -> int:
        """Number of permutations of like atoms."""
        return len(self.arrays["perms"])

    @property
    def expanded_bytes(self) -> float:
        """Memory that the predictor takes: both arrays of descriptors with all permutations, and a copy while made."""
        return 4.0 * float(self.arrays["R_desc"].nbytes) * self.n_perms

    def distances(self) -> tuple[Floats, Floats]:
        """Smallest and largest distance of each pair of atoms in training, or of a pair it is like, (n_pairs,), Å.

        Pairs are (i, j) with i > j, in the order of `numpy.tril_indices`.
        """
        found: Floats = self.length / self.arrays["R_desc"]
        n = len(self.symbols)
        i, j = np.tril_indices(n, -1)
        extremes = []
        for best, choose in ((found.min(axis=1), np.minimum), (found.max(axis=1), np.maximum)):
            table = np.zeros((n, n))
            table[i, j] = table[j, i] = best
            extreme = table
            for perm in self.arrays["perms"]:
                extreme = choose(extreme, table[np.ix_(perm, perm)])
            extremes.append(extreme[i, j])
        return extremes[0], extremes[1]


def recognises(path: str | Path) -> bool:
    """Whether a file is the package's: a model by what it holds, anything else of NumPy's archives by its name."""
    path = Path(path)
    try:
        with path.open("rb") as stream:
            if stream.read(2) != _ZIP:
                return False
        with zipfile.ZipFile(path) as archive:
            names = set(archive.namelist())
    except (zipfile.BadZipFile, OSError, ValueError):
        return path.suffix.lower() == ".npz" and path.is_file()
    return path.suffix.lower() == ".npz" or names.issuperset(_MARKS)


def refuse(path: str | Path, instead: str = "its package `sgdml` trains and tests such models") -> None:
    """Say what can be done with an sGDML model where it cannot be used.

    Args:
        path: of a file, whatever it is.
        instead: what to do.

    Raises:
        ModelFileError: the file is one.
    """
    if recognises(path):
        raise ModelFileError(
            f"{path} is an sGDML model, which dpserver serves (dpserver --model {path}) and shows (dpserver info), and "
            f"has no other use for; {instead}"
        )


@dataclass(frozen=True)
class _Header:
    """What an entry says of its array, once that is as long as it says.

    Attributes:
        name: of the array.
        shape: of the array.
        dtype: of its numbers or texts.
        is_fortran: whether columns follow each other, not rows.
        start: where the numbers begin.
    """

    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    is_fortran: bool
    start: int

    @classmethod
    def read(cls, archive: zipfile.ZipFile, name: str) -> _Header:
        """Read it, and nothing of the array.

        Raises:
            ModelFileError: the entry is missing, no array, one of objects, or of another length.
        """
        try:
            info = archive.getinfo(f"{name}.npy")
        except KeyError:
            raise ModelFileError(f"it lacks {name}") from None
        with archive.open(info) as stream:
            try:
                version = np.lib.format.read_magic(stream)
                read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
                shape, is_fortran, dtype = read(stream)
            except (ValueError, SyntaxError, TypeError, tokenize.TokenError, RecursionError, MemoryError):
                raise ModelFileError(f"its {name} is no array") from None
            start = stream.tell()
        if dtype.hasobject or dtype.fields is not None or dtype.kind not in "biufUS":
            raise ModelFileError(
                f"its {name} holds objects, not numbers, and is refused because loading it could run code"
            )
        found = cls(name, shape, dtype, is_fortran, start)
        if any(n < 0 for n in shape) or found.n_bytes != info.file_size - start:
            raise ModelFileError(f"its {name} is not as long as it says")
        return found

    @property
    def n_bytes(self) -> int:
        """Of the array in the file."""
        return self.dtype.itemsize * math.prod(self.shape)

    @property
    def room(self) -> int:
        """Bytes that it takes to read it: as it is, as float64 or int64, and a copy of that while it is checked."""
        return self.n_bytes + 16 * math.prod(self.shape)

    def array(self, archive: zipfile.ZipFile) -> Any:
        """Read the array.

        Raises:
            ModelFileError: it is cut short.
        """
        with archive.open(f"{self.name}.npy") as stream:
            stream.read(self.start)
            data = stream.read(self.n_bytes)
        if len(data) != self.n_bytes:
            raise ModelFileError(f"its {self.name} is cut short")
        return np.frombuffer(data, self.dtype).reshape(self.shape, order="F" if self.is_fortran else "C")


def _text(archive: zipfile.ZipFile, name: str) -> str:
    """A short text that a terminal can show."""
    header = _Header.read(archive, name)
    if header.shape != () or header.dtype.kind not in "US":
        raise ModelFileError(f"its {name} is no text")
    if header.n_bytes > _MAX_TEXT_BYTES:
        raise ModelFileError(f"its {name} is a text of {header.n_bytes} bytes")
    text = header.array(archive).item()
    text = text.decode("utf-8", "replace") if isinstance(text, bytes) else text
    if len(text) > _MAX_TEXT:
        raise ModelFileError(f"its {name} is a text of {len(text)} characters")
    return "".join(c if c.isprintable() else " " for c in text).strip()


def _unit(name: str, about: Mapping[str, str], known: Mapping[str, float]) -> float:
    """The value of a unit.

    Raises:
        ModelFileError: it is not stated, or unknown.
    """
    if not (text := about.get(name, "")):
        raise ModelFileError(
            f"it does not say its unit, {name}; if you know it, add it with Python: numpy.savez(new, **numpy.load(old, "
            f"allow_pickle=True), {name}='{'Ang' if name == 'r_unit' else 'kcal/mol'}')"
        )
    if (value := known.get(text.lower().replace(" ", ""))) is None:
        raise ModelFileError(f"its unit {name} is {text!r}; expected one of {', '.join(known)}")
    return value


def _check_headers(headers: Mapping[str, _Header]) -> None:
    """Refuse arrays of kinds and shapes that do not fit together, before any is read."""
    for name, header in headers.items():
        is_whole = name in _WHOLE
        if header.dtype.kind not in ("iu" if is_whole else "iuf"):
            raise ModelFileError(f"its {name} holds no {'whole ' if is_whole else ''}numbers")
        if name in _LARGE and (header.dtype.itemsize < 4 or (header.dtype.kind != "f" and not is_whole)):
            raise ModelFileError(
                f"its {name} holds numbers of the type {header.dtype.name}, too coarse for what they are"
            )
    (n_atoms,) = headers["z"].shape if len(headers["z"].shape) == 1 else (0,)
    if not 2 <= n_atoms <= _MAX_ATOMS:
        raise ModelFileError(f"its z is no list of 2 to {_MAX_ATOMS} elements")
    dim = n_atoms * (n_atoms - 1) // 2
    n_train = headers["R_desc"].shape[-1] if len(headers["R_desc"].shape) == 2 else 0
    n_perms = headers["perms"].shape[0] if len(headers["perms"].shape) == 2 else 0
    shapes = {
        "z": (n_atoms,),
        "R_desc": (dim, n_train),
        "R_d_desc_alpha": (n_train, dim),
        "perms": (n_perms, n_atoms),
        "tril_perms_lin": (n_perms * dim,),
        "alphas_E": (n_train,),
        "lattice": (3, 3),
        **dict.fromkeys(("c", "std", "sig"), ()),
    }
    for name, header in headers.items():
        if header.shape != shapes[name] or 0 in header.shape:
            raise ModelFileError(f"its {name} has the shape {header.shape}, expected {shapes[name]}")


def _checked(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays, of the ranges that fit together, as float64 and int64."""
    found: dict[str, Any] = {}
    for name, value in arrays.items():
        found[name] = np.array(value, dtype=np.int64 if name in _WHOLE else np.float64)
        if not np.isfinite(found[name]).all():
            raise ModelFileError(f"its {name} holds numbers that are not finite")
    _check_ranges(found)
    return {**found, **{name: found[name].item() for name in ("c", "std", "sig")}}


def _check_ranges(found: Mapping[str, Any]) -> None:
    """Refuse indices that lead out of the arrays or contradict each other, and numbers of the wrong sign."""
    z, perms = found["z"], found["perms"]
    if z.min() < 1 or z.max() > len(SYMBOLS):
        raise ModelFileError(f"its z is no list of 2 to {_MAX_ATOMS} elements")
    if not (np.sort(perms, axis=1) == np.arange(len(z))).all():
        raise ModelFileError("its perms are no permutations of its atoms")
    if not (z[perms] == z).all():
        raise ModelFileError("its perms exchange different elements")
    lines = found["tril_perms_lin"].reshape(-1, len(perms)).T
    if any((line != expected).any() for line, expected in zip(lines, _lines(perms), strict=True)):
        raise ModelFileError("its tril_perms_lin are not those of its perms")
    if not (found["R_desc"].min() > 0 and found["sig"] > 0 and found["std"] > 0):
        raise ModelFileError("its R_desc, sig or std is not above 0")
    if "lattice" in found and not abs(np.linalg.det(found["lattice"])) > 0:
        raise ModelFileError("its lattice spans no volume")


def _lines(perms: Ints) -> Iterator[Ints]:
    """Where each permutation of atoms takes the pairs of atoms from, (n_pairs,), in as many copies of all pairs."""
    i, j = np.tril_indices(perms.shape[1], -1)
    pair: Ints = np.zeros((perms.shape[1],) * 2, dtype=np.int64)
    pair[i, j] = pair[j, i] = np.arange(len(i))
    for k, perm in enumerate(perms):
        yield pair[perm[i], perm[j]] + k * len(i)
