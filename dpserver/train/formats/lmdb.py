"""DeePMD-kit's LMDB data sets: one record for each frame, packed with msgpack; needs the extra `dpdata`."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpserver.errors import DataError
from dpserver.frames import Floats, Frames, Ints
from dpserver.train.formats.common import Contents, merge, species_idx
from dpserver.train.labels import FIELDS, Label

_METADATA: Final = b"__metadata__"
_PLURALS: Final = {
    "coords": "coord",
    "cells": "box",
    "energies": "energy",
    "forces": "force",
    "virials": "virial",
    "atom_types": "atype",
}
"""Names that records may have for what a file of a set is called otherwise."""


def is_lmdb(path: Path) -> bool:
    """Whether a directory or file is an LMDB data set."""
    return (path / "data.mdb").is_file() or (path.is_file() and path.suffix == ".lmdb")


def read_lmdb(path: Path, species: tuple[str, ...]) -> Contents:
    """Read an LMDB data set; its frames may differ in size and composition.

    Args:
        path: the directory with data.mdb, or a file that ends in .lmdb.
        species: names of the model's types.

    Raises:
        DataError: lmdb or msgpack is not installed, or the data set is damaged or does not fit.
    """
    try:
        import lmdb
        import msgpack
    except ImportError:
        raise DataError(f"reading {path} needs lmdb and msgpack: pip install 'dpserver[dpdata]'") from None
    try:
        with (
            lmdb.open(str(path), readonly=True, lock=False, readahead=True, subdir=path.is_dir()) as environment,
            environment.begin() as transaction,
        ):
            _check_size(environment, path)
            metadata = _unpacked(msgpack, transaction.get(_METADATA), f"{path}: __metadata__")
            names = metadata.get("type_map") or list(species)
            if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
                raise DataError(f"{path}: __metadata__: expected a list of names as type_map, got {str(names)[:80]}")
            records = _records(msgpack, transaction, metadata, path)
            frames = [_contents(record, names, species, name) for name, record in records]
    except lmdb.Error as error:
        raise DataError(f"{path} cannot be read as an LMDB data set: {error}") from None
    if not frames:
        raise DataError(f"{path} holds no frame")
    return merge(frames, path, "frames")


def _check_size(environment: Any, path: Path) -> None:
    """Refuse a data set cut short: it is mapped into memory, and touching what is not there ends the process."""
    file = path / "data.mdb" if path.is_dir() else path
    expected = (environment.info()["last_pgno"] + 1) * environment.stat()["psize"]
    if file.stat().st_size < expected:
        raise DataError(f"{file}: expected {expected} bytes, got {file.stat().st_size}; copy it again")


def _unpacked(msgpack: Any, raw: bytes | None, name: str) -> dict[str, Any]:
    """A record, its keys as text."""
    if raw is None:
        raise DataError(f"{name} is missing")
    try:
        found = msgpack.unpackb(raw, raw=False, strict_map_key=False)
    except (ValueError, TypeError, UnicodeDecodeError, msgpack.UnpackException) as error:
        raise DataError(f"{name} cannot be unpacked: {error or type(error).__name__}") from None
    if not isinstance(found, dict):
        raise DataError(f"{name}: expected named values, got {type(found).__name__}")
    return {key.decode(errors="replace") if isinstance(key, bytes) else str(key): v for key, v in found.items()}


def _records(
    msgpack: Any, transaction: Any, metadata: Mapping[str, Any], path: Path
) -> Iterator[tuple[str, dict[str, Any]]]:
    """Every frame, with what a message calls it."""
    n_frames, form = metadata.get("nframes"), metadata.get("frame_idx_fmt", "012d")
    if type(n_frames) is not int or n_frames < 0 or not isinstance(form, str):
        raise DataError(f"{path}: __metadata__: expected the number nframes, got {n_frames!r}")
    if not re.fullmatch("0?[0-9]{0,3}d", form):
        raise DataError(f"{path}: __metadata__: {form[:80]!r} is no format of a number, such as '012d' is")
    for k in range(n_frames):
        name = f"{path}, frame {k}"
        yield name, _unpacked(msgpack, transaction.get(format(k, form).encode()), name)


def _contents(record: Mapping[str, Any], names: Sequence[str], species: tuple[str, ...], name: str) -> Contents:
    """One frame."""
    absent = {key.removeprefix("find_") for key, found in record.items() if key.startswith("find_") and not found}
    given = {_PLURALS.get(key, key): value for key, value in record.items()}
    types = _types(given.get("atype"), names, name)
    arrays: dict[str, Floats] = {}
    for label, field in FIELDS.items():
        for stem in field.files:
            if stem in given and stem not in absent and label not in arrays:
                arrays[label] = _array(given[stem], field, len(types), f"{name}, {stem}")
    if "positions" not in arrays:
        raise DataError(f"{name} has no coords")
    present = types >= 0
    arrays = {label: values[present] if FIELDS[label].is_atomic else values for label, values in arrays.items()}
    cell = arrays.pop("cell", np.zeros((1, 3, 3)))
    is_open = bool(given.get("nopbc", False)) or not cell.any()
    symbols = [str(names[t]) for t in types[present]]
    frames = Frames(
        arrays.pop("positions"),
        species_idx(symbols, species, name),
        np.zeros((1, 3, 3)) if is_open else cell,
        np.full((1, 3), not is_open),
        np.zeros(len(symbols), dtype=np.int64),
        fparam=arrays.pop("fparam", None),
        aparam=arrays.pop("aparam", None),
    )
    return Contents(frames, arrays)


def _decoded(value: Any, name: str) -> Any:
    """An array of a record, from its bytes."""
    if not isinstance(value, Mapping):
        return np.asarray(value)
    parts = {key.decode(errors="replace") if isinstance(key, bytes) else key: v for key, v in value.items()}
    try:
        dtype = np.dtype(parts["type"])
        if dtype.kind not in "fiub":
            raise ValueError(f"expected numbers, got {dtype}")
        flat = np.frombuffer(parts["data"], dtype)
        return flat.reshape(parts.get("shape", -1))
    except (ValueError, TypeError, KeyError) as error:
        raise DataError(f"{name}: no array: {error}") from None


def _array(value: Any, field: Label, n_atoms: int, name: str) -> Floats:
    """The numbers of a label, (1, …) or (n_atoms, …)."""
    found = _decoded(value, name)
    shape = (n_atoms if field.is_atomic else 1, *field.shape)
    if found.dtype.kind not in "fiub":
        raise DataError(f"{name}: expected real numbers, got {found.dtype}")
    try:
        return np.asarray(found, dtype=np.float64).reshape(shape)
    except ValueError:
        wanted = " × ".join(str(n) for n in shape if n > 0)
        raise DataError(f"{name}: expected {wanted} numbers, got shape {found.shape}") from None


def _types(value: Any, names: Sequence[str], name: str) -> Ints:
    """The type of each atom, -1 for places without one."""
    types = np.zeros(0) if value is None else _decoded(value, f"{name}, atom_types").ravel()
    if not types.size or types.dtype.kind not in "iu" or types.min() < -1 or types.max() >= len(names):
        raise DataError(f"{name}, atom_types: expected one integer from 0 to {len(names) - 1} for each atom")
    return types.astype(np.int64)
