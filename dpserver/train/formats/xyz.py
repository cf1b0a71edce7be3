"""Extended XYZ files, read by ASE."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, Final

import numpy as np

from dpserver.errors import DataError
from dpserver.frames import Floats, Frames
from dpserver.train.formats.common import Contents, merge, species_idx
from dpserver.train.labels import FIELDS, LABELS, PARAMETERS

_COMPUTED: Final = {"energy": "energy", "forces": "forces", "energies": "atom_energy", "dipole": "dipole"}
"""What ASE takes for the result of a calculation, and what it is here."""
_NAMES: Final = {name: (name, *field.files) for name, field in {**LABELS, **PARAMETERS}.items()}
"""Under which names a file may have what."""


def read_xyz(path: Path, species: tuple[str, ...]) -> Contents:
    """Read an extended XYZ file; see `dpserver.train.data.read_system`.

    Energies, forces and dipoles are found where ASE finds them, other labels by their names here or in DeePMD-kit: in
    the comment line for a frame, in a column for atoms.

    Args:
        path: the file.
        species: names of the model's types.

    Raises:
        DataError: ase is not installed, the file cannot be read, or a label is not of its shape.
    """
    try:
        from ase.io import read
    except ImportError:
        raise DataError(f"reading {path} needs ase: pip install 'dpserver[ase]'") from None
    try:
        images = read(path, ":", format="extxyz")
    except Exception as error:  # ase raises whatever its parser happens to raise
        reason = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{path} is not an extended XYZ file: {reason}") from None
    if not images:
        raise DataError(f"{path} holds no frame")
    return merge([_contents(atoms, species, f"{path}, frame {k}") for k, atoms in enumerate(images)], path, "frames")


def _contents(atoms: Any, species: tuple[str, ...], name: str) -> Contents:
    """One frame, from an ase.Atoms."""
    found = _found(atoms)
    n_atoms = len(atoms)
    shapes = {name: ((n_atoms if FIELDS[name].is_atomic else 1), *FIELDS[name].shape) for name in _NAMES}
    arrays: dict[str, Floats] = {}
    for label, values in found.items():
        given = np.asarray(values)
        try:
            arrays[label] = given.astype(np.float64).reshape(shapes[label])
        except ValueError:
            wanted = " × ".join(str(n) for n in shapes[label] if n > 0)
            raise DataError(
                f"{name}: {label}: expected {wanted} numbers, got {given.dtype} of shape {given.shape}"
            ) from None
    frames = Frames.single(
        atoms.positions, species_idx(atoms.get_chemical_symbols(), species, name), atoms.cell.array, atoms.pbc
    )
    frames = replace(frames, fparam=arrays.pop("fparam", None), aparam=arrays.pop("aparam", None))
    return Contents(frames, arrays)


def _found(atoms: Any) -> dict[str, Any]:
    """Labels and parameters of an ase.Atoms as far as it has them; a virial is preferred to a stress."""
    results = dict(atoms.calc.results) if atoms.calc is not None else {}
    found = {_COMPUTED[name]: values for name, values in results.items() if name in _COMPUTED}
    for label, names in _NAMES.items():
        place = atoms.arrays if FIELDS[label].is_atomic else atoms.info
        present = [place[name] for name in names if name in place]
        if present:
            found[label] = present[0]
    if "virial" not in found and "stress" in results and atoms.cell.rank == 3:
        xx, yy, zz, yz, xz, xy = results["stress"]
        found["virial"] = -atoms.get_volume() * np.array([[xx, xy, xz], [xy, yy, yz], [xz, yz, zz]])
    return found
