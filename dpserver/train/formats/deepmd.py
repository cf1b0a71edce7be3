"""DeePMD-kit's systems: one row of numbers per frame and quantity, in npy files or in an HDF5 file.

In the mixed-type layout all frames have the same number of places for atoms, `real_atom_types.npy` says frame by frame
who sits there, and a place of type -1 is empty.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import DataError
from dpserver.frames import Bools, Floats, Frames, Ints
from dpserver.train.formats.common import Contents, all_or_none, fault_of, species_idx
from dpserver.train.formats.folders import Folder
from dpserver.train.labels import FIELDS, TENSORS

_MIXED: Final = "real_atom_types.npy"
_MOST_GUESSED: Final = 12
"""Types of which all choices are tried; there are 2ⁿ of n."""


def read_deepmd(folder: Folder, species: tuple[str, ...], selected: Collection[str] | None = None) -> Contents:
    """Read a system of DeePMD-kit, mixed-type or not; see `dpserver.train.data.read_system`.

    Args:
        folder: what holds type.raw and set.*.
        species: names of the model's types.
        selected: species whose atoms have a dipole or a polarizability, for data that lists only these atoms; by
            default they are found by their number.

    Raises:
        DataError: a file is missing or does not fit.
    """
    sets = folder.sets()
    if not sets:
        raise DataError(f"{folder.name}: no set.* directory; raw text files are read by dpdata, as deepmd/raw:PATH")
    layout = _Layout.read(folder, species, selected)
    layout.is_mixed = all_or_none(folder.name, _MIXED, sum(s.has(_MIXED) for s in sets), len(sets), "sets")
    layout.check(folder)
    parts = [_read_set(s, layout) for s in sets]
    arrays = {
        name: np.concatenate([part[name] for part in parts if name in part])
        for name in ("types", *FIELDS)
        if all_or_none(folder.name, name, sum(name in part for part in parts), len(parts), "sets")
    }
    types = arrays.pop("types")
    present = types >= 0
    n_frames, counts = len(types), present.sum(axis=1)
    flat = {name: _flat(values, present) if FIELDS[name].is_atomic else values for name, values in arrays.items()}
    frames = Frames(
        flat.pop("positions"),
        layout.translate(_flat(types, present), folder),
        flat.pop("cell", np.zeros((n_frames, 3, 3))),
        np.full((n_frames, 3), not layout.is_open),
        np.repeat(np.arange(n_frames), counts),
        fparam=flat.pop("fparam", None),
        aparam=flat.pop("aparam", None),
    )
    _check_structures(frames, folder, sets, [len(part["types"]) for part in parts])
    return Contents(frames, flat)


def _check_structures(frames: Frames, folder: Folder, sets: Sequence[Folder], sizes: Sequence[int]) -> None:
    """Refuse what no model can answer, by the file it stands in and the frame of that file."""
    fault = fault_of(frames, f"write an empty file {folder.at('nopbc')}")
    if fault is None:
        return
    ends = np.cumsum(sizes)
    k = int(np.searchsorted(ends, fault.frame, side="right"))
    file, frame = _file_of(sets[k], fault.field), fault.frame - int(ends[k]) + sizes[k]
    raise DataError(f"{sets[k].at(str(file))}: frame {frame}: {fault.problem}; {fault.remedy}")


def _file_of(folder: Folder, field: str) -> str | None:
    """Name of the file of a set that holds a quantity."""
    return next((f"{stem}.npy" for stem in FIELDS[field].files if folder.has(f"{stem}.npy")), None)


def _flat(values: NDArray[Any], present: Bools) -> NDArray[Any]:
    """The numbers of all atoms, (n_atoms, …), from (n_frames, n_places, …)."""
    flat = values.reshape(-1, *values.shape[2:])
    return flat if present.all() else flat[present.ravel()]


@dataclass
class _Layout:
    """What holds for all sets of a system.

    Attributes:
        listed: the types of type.raw, (n_places,).
        names: of these types.
        species: names of the model's types.
        is_open: whether the frames have no cell.
        selected: species whose atoms have tensors, if known.
        is_mixed: whether the frames differ in composition.
    """

    listed: Ints
    names: list[str]
    species: tuple[str, ...]
    is_open: bool
    selected: Collection[str] | None
    is_mixed: bool = False

    @classmethod
    def read(cls, folder: Folder, species: tuple[str, ...], selected: Collection[str] | None) -> _Layout:
        words = folder.words("type.raw")
        try:
            numbers = np.array(words, dtype=np.float64)
        except ValueError:
            raise DataError(f"{folder.at('type.raw')}: expected one integer for each atom, got {words[:9]}") from None
        if not ((numbers == np.trunc(numbers)) & (np.abs(numbers) < 2**31)).all():
            raise DataError(f"{folder.at('type.raw')}: expected one integer for each atom, got {words[:9]}")
        names = folder.words("type_map.raw") if folder.has("type_map.raw") else list(species)
        return cls(numbers.astype(np.int64), names, species, folder.has("nopbc"), selected)

    def check(self, folder: Folder) -> None:
        """Refuse types without a name."""
        file = folder.at("type.raw")
        if not len(self.listed):
            raise DataError(f"{file}: expected at least one integer, it is empty")
        if self.is_mixed and not folder.has("type_map.raw"):
            raise DataError(f"{folder.at('type_map.raw')} is missing; the mixed-type format needs it")
        if not self.is_mixed:
            self.check_types(self.listed, 0, file)

    def check_types(self, types: NDArray[Any], lowest: int, file: str) -> None:
        """Refuse types that have no name, of a file."""
        if types.min() < lowest or types.max() >= len(self.names):
            found = sorted(set(types.ravel().tolist()))
            raise DataError(
                f"{file}: expected integers from {lowest} to {len(self.names) - 1} ({', '.join(self.names)}), "
                f"got {', '.join(str(t) for t in found[:9])}{', …' * (len(found) > 9)}"
            )

    def translate(self, types: Ints, folder: Folder) -> Ints:
        """Types of the data as indices into the model's species."""
        used, where = np.unique(types, return_inverse=True)
        return species_idx([self.names[t] for t in used], self.species, folder.name)[where]

    def is_selected(self, n_wanted: int, file: str) -> Bools | None:
        """The atoms of the species that have tensors, (n_places,); None if there are not as many as wanted."""
        if self.is_mixed:
            return None
        if self.selected is not None:
            mask = np.isin(self.listed, [k for k, name in enumerate(self.names) if name in self.selected])
            return mask if mask.sum() == n_wanted else None
        used, counts = np.unique(self.listed, return_counts=True)
        advice = "write one for each atom, with zeros where there is none"
        if len(used) > _MOST_GUESSED:
            raise DataError(
                f"{file}: has numbers for {n_wanted} of {len(self.listed)} atoms, and of {len(used)} types it is not "
                f"tried which they may be; {advice}"
            )
        choices = [
            subset
            for size in range(1, len(used))
            for subset in combinations(range(len(used)), size)
            if counts[list(subset)].sum() == n_wanted
        ]
        if len(choices) > 1:
            options = " or ".join("+".join(self.names[used[k]] for k in subset) for subset in choices[:3])
            raise DataError(
                f"{file}: has numbers for {n_wanted} of {len(self.listed)} atoms, which may be those of {options}; "
                f"{advice}"
            )
        return np.isin(self.listed, used[list(choices[0])]) if choices else None


def _read_set(folder: Folder, layout: _Layout) -> dict[str, Any]:
    """The arrays of one set: types (n_frames, n_places), others (n_frames, …) or (n_frames, n_places, …)."""
    found: dict[str, Any] = {}
    n_frames: int | None = None
    for name, field in FIELDS.items():
        if name == "cell" and layout.is_open:
            continue
        file = _file_of(folder, name)
        if file is None:
            if name in ("positions", "cell"):
                hint = "; an open system is marked by a file nopbc beside type.raw" if name == "cell" else ""
                raise DataError(f"{folder.at(field.files[0])}.npy is missing{hint}")
            continue
        found[name] = _read_field(folder, file, name, n_frames, layout)
        n_frames = len(found[name])
    found["types"] = np.tile(layout.listed, (n_frames or 0, 1))
    if layout.is_mixed:
        found["types"] = _read_mixed(folder, found["types"].shape, layout)
    return found


def _read_mixed(folder: Folder, shape: tuple[int, ...], layout: _Layout) -> Ints:
    """Who sits where in each frame, -1 for nobody."""
    file, values = folder.at(_MIXED), folder.array(_MIXED)
    if values.dtype.kind not in "iuf" or values.size != np.prod(shape) or (values != np.trunc(values)).any():
        raise DataError(
            f"{file}: expected one integer for each of {shape[1]} places in each of {shape[0]} frames, "
            f"got {values.dtype} of shape {values.shape}"
        )
    types = values.reshape(shape).astype(np.int64)
    layout.check_types(types, -1, file)
    if not (types >= 0).any(axis=1).all():
        raise DataError(f"{file}: frame {int(np.argmin((types >= 0).any(axis=1)))} has no atom: all its types are -1")
    return types


def _read_field(folder: Folder, file: str, name: str, n_frames: int | None, layout: _Layout) -> Floats:
    """One quantity of a set, (n_frames, …) or (n_frames, n_places, …), in float64."""
    field, values, n_places = FIELDS[name], folder.array(file), len(layout.listed)
    if values.dtype.kind not in "fiu":
        raise DataError(f"{folder.at(file)}: expected real numbers, got {values.dtype}")
    if n_frames is None and not values.size:
        raise DataError(f"{folder.at(file)}: holds no frames (its shape is {values.shape}); remove {folder.name}")
    inner = (n_places,) if field.is_atomic else ()
    n_rows = n_frames if n_frames is not None else len(values) if values.ndim > 1 else 1
    if n_rows and field.shape == (-1,) and values.size % (n_rows * int(np.prod(inner))) == 0 and values.size:
        return values.reshape(n_rows, *inner, -1).astype(np.float64)
    width = int(np.prod((*inner, *field.shape)))
    if n_rows and values.size == n_rows * width:
        return values.reshape(n_rows, *inner, *field.shape).astype(np.float64)
    n_given, rest = divmod(values.size, n_rows * int(np.prod(field.shape))) if n_rows else (0, 0)
    if name in TENSORS and not rest and (mask := layout.is_selected(n_given, folder.at(file))) is not None:
        whole = np.zeros((n_rows, n_places, *field.shape))
        whole[:, mask] = values.reshape(n_rows, n_given, *field.shape)
        return whole
    wanted = "a multiple of " * (field.shape == (-1,)) + f"{abs(width)} number{'s' * (abs(width) > 1)}"
    raise DataError(
        f"{folder.at(file)}: expected {wanted} for each of {n_rows} frame{'s' * (n_rows != 1)} of {n_places} atoms, "
        f"got shape {values.shape}"
    )
