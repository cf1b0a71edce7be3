"""The file formats of labelled structures: DeePMD's npy directories and extended XYZ."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpserver.errors import DataError
from dpserver.frames import Floats, Frames, Ints


class Contents(NamedTuple):
    """Structures and labels of one system, in float64.

    Attributes:
        frames: the structures.
        energy: (n_frames,), eV.
        forces: (n_atoms, 3), eV/Å, or None.
        virial: -volume times stress, (n_frames, 3, 3), eV, or None.
    """

    frames: Frames
    energy: Floats
    forces: Floats | None
    virial: Floats | None


def read_npy(path: Path, species: tuple[str, ...]) -> Contents:
    """Read a DeePMD npy directory; see `dpserver.train.data.read_system`.

    Args:
        path: the directory that holds type.raw and set.*.
        species: names of the model's types.

    Raises:
        DataError: a file is missing or does not fit.
    """
    types = _read_types(path, species)
    n_atoms = len(types)
    sets = sorted(p for p in path.glob("set.*") if p.is_dir())
    if not sets:
        raise DataError(f"{path}: no set.* directory; raw text files must be converted to npy first")
    mixed = [p for p in sets if (p / "real_atom_types.npy").exists()]
    if mixed:
        raise DataError(f"{mixed[0]}: DeePMD's mixed-type format (real_atom_types.npy) is not supported; use npy")
    is_open = (path / "nopbc").exists()
    widths = {"coord": 3 * n_atoms, "box": 9, "energy": 1, "force": 3 * n_atoms, "virial": 9}
    parts: dict[str, list[Floats]] = {name: [] for name in widths}
    for folder in sets:
        n_frames: int | None = None
        for name, width in widths.items():
            required = name in ("coord", "energy") or (name == "box" and not is_open)
            rows = _read_rows(folder / f"{name}.npy", width, n_frames, required, n_atoms)
            if rows is not None:
                n_frames = len(rows)
                parts[name].append(rows)
    n_frames = sum(len(rows) for rows in parts["coord"])
    cell = np.zeros((n_frames, 3, 3)) if is_open else np.concatenate(parts["box"]).reshape(-1, 3, 3)
    frames = Frames(
        np.concatenate(parts["coord"]).reshape(-1, 3),
        np.tile(types, n_frames),
        cell,
        np.full((n_frames, 3), not is_open),
        np.repeat(np.arange(n_frames), n_atoms),
    )
    labels = {
        name: np.concatenate(rows) if all_or_none(path, name, len(rows), len(sets), "sets") else None
        for name, rows in parts.items()
        if name in ("force", "virial")
    }
    forces, virial = labels["force"], labels["virial"]
    return Contents(
        frames,
        np.concatenate(parts["energy"]).reshape(-1),
        None if forces is None else forces.reshape(-1, 3),
        None if virial is None else virial.reshape(-1, 3, 3),
    )


def all_or_none(name: object, label: str, n_with: int, n_all: int, what: str) -> bool:
    """Whether a label is there.

    Args:
        name: of the system.
        label: of the label.
        n_with: how many parts have it.
        n_all: how many parts there are.
        what: the parts are.

    Raises:
        DataError: only some parts have it.
    """
    if n_with not in (0, n_all):
        raise DataError(
            f"{name}: {n_with} of {n_all} {what} have {label}; split the data into systems that have the same labels"
        )
    return n_with > 0


def _read_types(path: Path, species: tuple[str, ...]) -> Ints:
    """The types of a npy directory as indices into the model's species."""
    try:
        types = np.array((path / "type.raw").read_text().split(), dtype=np.int64)
        names = (path / "type_map.raw").read_text().split() if (path / "type_map.raw").exists() else list(species)
    except (OSError, ValueError) as error:
        raise DataError(f"{path}: cannot read type.raw or type_map.raw: {error}") from None
    if not len(types) or types.min() < 0 or types.max() >= len(names):
        raise DataError(
            f"{path / 'type.raw'}: expected at least one integer from 0 to {len(names) - 1} ({', '.join(names)}), "
            f"got {sorted(set(types.tolist()))}"
        )
    return _species_idx([names[t] for t in types], species, path)


def _species_idx(symbols: Sequence[str], species: tuple[str, ...], path: Path) -> Ints:
    index = {name: k for k, name in enumerate(species)}
    unknown = sorted(set(symbols) - set(species))
    if unknown:
        raise DataError(f"{path}: species {', '.join(unknown)} is not among the model's: {', '.join(species)}")
    return np.array([index[s] for s in symbols], dtype=np.int64)


def _read_rows(file: Path, width: int, n_frames: int | None, required: bool, n_atoms: int) -> Floats | None:
    """One row of `width` numbers per frame, in float64."""
    if not file.exists():
        if required:
            hint = "; an open system is marked by a file nopbc beside type.raw" if file.stem == "box" else ""
            raise DataError(f"{file} is missing{hint}")
        return None
    try:
        values: NDArray[Any] = np.load(file, allow_pickle=False)
    except (OSError, ValueError) as error:
        raise DataError(f"cannot read {file}: {error}") from None
    if values.dtype.kind not in "fiu":
        raise DataError(f"{file}: expected real numbers, got {values.dtype}")
    n_rows = n_frames if n_frames is not None else len(values) if values.ndim > 1 else values.size // width
    if values.size != n_rows * width or not n_rows:
        raise DataError(
            f"{file}: expected {width} number{'s' * (width > 1)} for each of {n_rows} frames of {n_atoms} atoms, "
            f"got shape {values.shape}"
        )
    return values.reshape(n_rows, width).astype(np.float64)


def read_xyz(path: Path, species: tuple[str, ...]) -> Contents:
    """Read an extended XYZ file; see `dpserver.train.data.read_system`.

    Args:
        path: the file.
        species: names of the model's types.

    Raises:
        DataError: ase is not installed, or the file cannot be read or lacks an energy.
    """
    try:
        from ase.io import read
    except ImportError:
        raise DataError(f"reading {path} needs ase: pip install 'dpserver[ase]'") from None
    try:
        images = read(path, ":", format="extxyz")
    except (OSError, ValueError, KeyError, IndexError) as error:
        raise DataError(f"{path} is not an extended XYZ file: {error}") from None
    if not images:
        raise DataError(f"{path} holds no frame")
    results = [_xyz_labels(atoms) for atoms in images]
    n_with = {label: sum(label in r for r in results) for label in ("energy", "forces", "virial")}
    has = {label: all_or_none(path, label, n, len(images), "frames") for label, n in n_with.items()}
    if not has["energy"]:
        raise DataError(f"{path}: no frame has an energy; expected energy=… in the comment line")
    frames = Frames.concatenate(
        Frames.single(
            atoms.positions,
            _species_idx(atoms.get_chemical_symbols(), species, path),
            atoms.cell.array,
            atoms.pbc,
        )
        for atoms in images
    )
    return Contents(
        frames,
        np.array([r["energy"] for r in results], dtype=np.float64).reshape(-1),
        np.concatenate([r["forces"] for r in results]).astype(np.float64) if has["forces"] else None,
        np.stack([r["virial"] for r in results]).astype(np.float64) if has["virial"] else None,
    )


def _xyz_labels(atoms: Any) -> dict[str, Any]:
    """Energy, forces and virial of an ase.Atoms as far as it has them; a virial is preferred to a stress."""
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    labels = {label: results[label] for label in ("energy", "forces") if label in results}
    if "virial" in atoms.info:
        labels["virial"] = np.reshape(atoms.info["virial"], (3, 3))
    elif "stress" in results and atoms.cell.rank == 3:
        xx, yy, zz, yz, xz, xy = results["stress"]
        labels["virial"] = -atoms.get_volume() * np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return labels
