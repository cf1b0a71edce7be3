"""Small data sets, in memory and in files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.frames import Frames
from dpserver.train.data import LabelledFrames

WATER = ("O", "H")
TYPES = [0, 1, 1]
CELL = np.array([[9.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.5, -0.7, 7.0]])
XYZ = """3
Lattice="9 0 0 1 8 0 0.5 -0.7 7" Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5 pbc="T T F"
O 0.0 0.0 0.0  0.1 0.2 0.3
H 1.0 0.0 0.0  0.4 0.5 0.6
H 0.0 1.0 0.0  0.7 0.8 0.9
2
Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.25 pbc="F F F"
H 0.0 0.0 0.0  1.0 0.0 0.0
H 0.0 0.0 0.7 -1.0 0.0 0.0
"""


def write_npy(
    folder: Path,
    n_frames: int = 4,
    *,
    seed: int = 0,
    sets: int = 1,
    types: list[int] = TYPES,
    names: tuple[str, ...] | None = WATER,
    virial: bool = True,
    is_open: bool = False,
    dtype: type[np.floating[Any]] = np.float64,
    **more: np.ndarray,
) -> dict[str, np.ndarray]:
    """Write a DeePMD npy directory and return its arrays, all sets together; more arrays have a row for each frame."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    n = len(types)
    arrays = {
        "coord": rng.normal(size=(n_frames, 3 * n)),
        "energy": rng.normal(size=n_frames),
        "force": rng.normal(size=(n_frames, 3 * n)),
    }
    arrays.update(more)
    if virial:
        v = rng.normal(size=(n_frames, 3, 3))
        arrays["virial"] = (v + v.transpose(0, 2, 1)).reshape(n_frames, 9)
    if is_open:
        (folder / "nopbc").touch()
    else:
        arrays["box"] = np.tile(CELL.ravel(), (n_frames, 1))
    arrays = {name: values.astype(dtype) for name, values in arrays.items()}
    np.savetxt(folder / "type.raw", types, fmt="%d")
    if names is not None:
        (folder / "type_map.raw").write_text("\n".join(names) + "\n")
    for k, rows in enumerate(np.array_split(np.arange(n_frames), sets)):
        (folder / f"set.{k:03d}").mkdir()
        for name, values in arrays.items():
            np.save(folder / f"set.{k:03d}" / f"{name}.npy", values[rows])
    return arrays


def change(file: Path, value: float, *index: int) -> None:
    """Overwrite one number of a npy file."""
    values = np.load(file)
    values[index] = value
    np.save(file, values)


def system(n_frames: int, n_atoms: int = 3, seed: int = 0, name: str = "made") -> LabelledFrames:
    """Frames of equal size in memory."""
    rng = np.random.default_rng(seed)
    frames = Frames.concatenate(
        Frames.single(rng.normal(size=(n_atoms, 3)), np.arange(n_atoms) % 2) for _ in range(n_frames)
    )
    forces = rng.normal(size=(n_frames * n_atoms, 3))
    return LabelledFrames(frames, rng.normal(size=n_frames), forces, None, WATER, name)


def xyz(folder: Path, text: str) -> Path:
    pytest.importorskip("ase")
    path = folder / "data.xyz"
    path.write_text(text)
    return path


def to_hdf5(folder: Path, group: Any) -> None:
    """Copy a DeePMD npy directory into a group of an HDF5 file, as dpdata and DeePMD-kit lay it out."""
    for file in sorted(folder.rglob("*")):
        name = str(file.relative_to(folder))
        if file.suffix == ".npy":
            group[name] = np.load(file)
        elif file.name == "type.raw":
            group[name] = np.loadtxt(file, dtype=np.int32, ndmin=1)
        elif file.name == "type_map.raw":
            group[name] = np.array(file.read_text().split(), dtype="S")
        elif file.is_file():
            group[name] = True


def write_mixed(
    folder: Path, n_places: int, frames: list[tuple[list[int], list[int]]], names: tuple[str, ...] = WATER
) -> list[dict[str, np.ndarray]]:
    """Write a mixed-type system.

    Args:
        folder: to make.
        n_places: places for atoms in every frame.
        frames: for each frame the places that are taken, and the types that sit there.
        names: of the types.

    Returns:
        For each frame what was written, without the empty places.
    """
    rng = np.random.default_rng(5)
    n = len(frames)
    arrays = {
        "coord": np.zeros((n, n_places, 3)),
        "force": np.zeros((n, n_places, 3)),
        "atom_ener": np.zeros((n, n_places)),
        "aparam": np.zeros((n, n_places, 2)),
        "energy": rng.normal(size=n),
        "virial": rng.normal(size=(n, 9)),
        "fparam": rng.normal(size=(n, 3)),
        "box": np.tile(CELL.ravel(), (n, 1)),
    }
    types = np.full((n, n_places), -1)
    for k, (places, inside) in enumerate(frames):
        types[k, places] = inside
        for name in ("coord", "force", "atom_ener", "aparam"):
            arrays[name][k, places] = rng.normal(size=arrays[name][k, places].shape)
    (folder / "set.000").mkdir(parents=True)
    for name, values in arrays.items():
        np.save(folder / "set.000" / f"{name}.npy", values.reshape(n, -1))
    np.save(folder / "set.000/real_atom_types.npy", types)
    np.savetxt(folder / "type.raw", np.zeros(n_places), fmt="%d")
    (folder / "type_map.raw").write_text(" ".join(names))
    of_atoms = ("coord", "force", "atom_ener", "aparam")
    return [
        {name: values[k, places] if name in of_atoms else values[k] for name, values in arrays.items()}
        | {"types": np.array(inside)}
        for k, (places, inside) in enumerate(frames)
    ]
