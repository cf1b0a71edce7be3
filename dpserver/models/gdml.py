"""sGDML models (Chmiela et al., Nat. Commun. 9, 3887, 2018), evaluated by the `sgdml` package that trained them.

Such a model knows one molecule: its atoms in one order, described by the inverse of all their distances,

    D_ij = 1/|x_i - x_j|,    F = Σ_t Σ_q J(x)ᵀ k''(D(x), q D(x_t)) α_t,    E with F = -∂E/∂x and a constant,

a sum over the training structures t and the permutations q of like atoms. It is global: no sum over atoms, no cutoff,
and no periodic images. Its energy depends on distances alone, so that forces sum to zero, and the virial
Ξ = -dE/dε = Σ_i x_i ⊗ F_i is symmetric and does not depend on the origin.

The file `.npz` is read as data: of its arrays only those that a prediction needs, none of them pickled.
"""

from __future__ import annotations

import importlib
import logging
import sys
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dpserver import neighbors
from dpserver.errors import ConfigError, DeviceError, ModelFileError, StructureError
from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.models.gdml_file import GDMLFile
from dpserver.models.memory import check_room
from dpserver.models.parameters import Takes, check_parameters
from dpserver.neighbors.grid import completed, heights

_OVERLAP_RADIUS: Final = 1.0  # Å; within it atoms are looked at that may lie on top of each other
_CHUNK: Final = 32_768
"""Numbers of one array that the package works on at a time, so that they stay in a cache."""
_NEARER: Final = 0.7
_FARTHER: Final = 1.4
"""Times the smallest and the largest distance of two atoms in training: beyond, the structure is another one."""


class GDMLModel:
    """A model that the `sgdml` package evaluates.

    Structures are evaluated one after the other, by NumPy.

    Args:
        path: a `.npz` file that `sgdml train` or `sgdml all` has written.
        device: `auto` or `cpu`.

    Attributes:
        species: symbol of each type, in the order in which the molecule has them.
        rcut: largest distance of two atoms in training, Å; there is no cutoff.
        template: symbol of each atom of the molecule; there may be no others, and in no other order.
        min_distance: smallest distance of each pair of species in training, (n_species, n_species), Å; inf where the
            molecule has no such pair.
        crowd_distance: not known, inf: the order of the atoms is held against the distances of each pair.
        takes: parameters of frames and atoms: none.
        device: where it computes.
        version: of the package.

    Raises:
        ConfigError: the package is not installed, or broken.
        ModelFileError: the file cannot be used.
        DeviceError: the device is not the CPU.
    """

    can_cut = False
    whole_because = "the energy of an sGDML model is no sum over atoms"
    takes = Takes()

    def __init__(self, path: str | Path, device: str = "auto") -> None:
        if device not in ("auto", "cpu"):
            raise DeviceError(f"device {device!r}: an sGDML model is evaluated on the CPU; use --device cpu")
        self.device = torch.device("cpu")
        file = GDMLFile.read(path)
        self.version, package = _import()
        self.template: tuple[str, ...] | None = file.symbols
        self.species = tuple(dict.fromkeys(file.symbols))
        self._types = np.array([self.species.index(s) for s in file.symbols], dtype=np.int64)
        self._pairs = np.tril_indices(len(file.symbols), -1)
        self._nearest, self._farthest = file.distances()
        self.rcut = float(self._farthest.max())
        self.min_distance = _by_species(self._nearest, self._pairs, self._types)
        self.crowd_distance = np.full_like(self.min_distance, np.inf)
        self._lattice = file.lattice
        self._length, self._energy = file.length, file.energy
        try:
            check_room(file.expanded_bytes, "an sGDML model with all its permutations")
        except MemoryError as error:
            raise ModelFileError(f"{path} is too large: {error}") from None
        n_perms, dim = len(file.arrays["perms"]), len(file.arrays["R_desc"])
        self._predictor = _make(package, file.arrays, max(1, _CHUNK // (n_perms * dim)))
        self._lock = threading.Lock()

    def warm_up(self) -> None:
        """There is nothing to make before the first structure."""

    def evaluated_by(self) -> list[str]:
        """What evaluates, in words."""
        return [f"sgdml {self.version}"]

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch.

        Args:
            frames: structures of the molecule, open, or in cells so large that it does not see its images; not changed.

        Returns:
            Arrays that belong to the caller, in eV and eV/Å; the energies of atoms, which there are none of, NaN.

        Raises:
            StructureError: a structure of other atoms, in another order, too near its images, or far from training.
        """
        frames.check(len(self.species))
        check_parameters(frames, 0, 0)
        self.check_wholes(frames)
        n_frames, n_atoms = frames.n_frames, len(self._types)
        positions = np.reshape([self._whole(frames, k) for k in range(n_frames)], (n_frames, n_atoms, 3))
        self._check_distances(positions)
        with self._lock:
            energy, forces = self._predictor.predict(positions.reshape(n_frames, 3 * n_atoms) / self._length)
        energy = energy * self._energy
        forces = forces.reshape(n_frames, n_atoms, 3) * (self._energy / self._length)
        virial = np.einsum("kia,kib->kab", positions - positions.mean(axis=1, keepdims=True), forces)
        return ForceResult(
            energy,
            forces.reshape(-1, 3),
            (virial + virial.transpose(0, 2, 1)) / 2,
            np.full(frames.n_atoms, np.nan),
            frames.frame_idx.copy(),
        )

    def check_wholes(self, frames: Frames) -> None:
        """Refuse all but whole molecules of the model's own kind.

        Raises:
            StructureError: a part of a molecule, another number of atoms, or another order.
        """
        if frames.is_ghost is not None and frames.is_ghost.any():
            raise StructureError("an sGDML model knows whole molecules only, and a part of a structure was given")
        n_atoms, offsets = len(self._types), frames.offsets
        names = " ".join(self.template or ())
        for k, count in enumerate(frames.counts):
            if count != n_atoms:
                raise StructureError(
                    f"{count} atoms{frames.of_frame(k)}; this sGDML model knows one molecule of {n_atoms}, in the "
                    f"order {names}"
                )
            different = np.flatnonzero(frames.types[offsets[k] : offsets[k + 1]] != self._types)
            if len(different):
                atom = int(different[0])
                found = self.species[frames.types[offsets[k] + atom]]
                raise StructureError(
                    f"atom {atom}{frames.of_frame(k)} is {found}; this sGDML model knows the order {names} and no other"
                )

    def _whole(self, frames: Frames, k: int) -> Floats:
        """The molecule of one frame, (n_atoms, 3), Å, put together where a cell has cut it.

        Raises:
            StructureError: it may see its own images.
        """
        x = frames.positions[frames.offsets[k] : frames.offsets[k + 1]]
        cell, pbc = frames.cell[k], frames.pbc[k]
        if pbc.any():
            full = completed(cell, pbc)
            steps = np.round((x - x[0]) @ np.linalg.inv(full)) * pbc
            x = x - steps @ full
            self._check_extent(x, float(heights(full)[pbc].min()), f"the periodic cell{frames.of_frame(k)}")
        if self._lattice is not None:
            self._check_extent(x, float(heights(self._lattice).min()), "the cell of its training structures")
        return x

    def _check_extent(self, x: Floats, width: float, what: str) -> None:
        across = float(np.linalg.norm(x[:, None] - x[None], axis=-1).max())
        if across >= width / 2:
            raise StructureError(
                f"{what} is {width:.3f} Å wide, and the molecule {across:.3f} Å long: an sGDML model knows isolated "
                "molecules only, in open space or in a cell more than twice as wide"
            )

    def _check_distances(self, positions: Floats) -> None:
        """Refuse atoms on top of each other, and molecules that are put together otherwise than in training."""
        n_frames, n_atoms = len(positions), len(self._types)
        if not n_frames:
            return
        types, frame_idx = np.tile(self._types, n_frames), np.repeat(np.arange(n_frames), n_atoms)
        none = np.zeros((n_frames, 3))
        opened = Frames(positions.reshape(-1, 3), types, np.zeros((n_frames, 3, 3)), none.astype(bool), frame_idx)
        neighbors.build(opened, _OVERLAP_RADIUS)
        i, j = self._pairs
        distance = np.linalg.norm(positions[:, i] - positions[:, j], axis=-1)
        is_off = (distance < _NEARER * self._nearest) | (distance > _FARTHER * self._farthest)
        if is_off.any():
            k, pair = (int(index) for index in np.argwhere(is_off)[0])
            a, b = int(j[pair]), int(i[pair])
            raise StructureError(
                f"atoms {a} ({self.species[self._types[a]]}) and {b} ({self.species[self._types[b]]})"
                f"{opened.of_frame(k)} are {distance[k, pair]:.3f} Å apart, in the training of this sGDML model "
                f"{self._nearest[pair]:.3f} to {self._farthest[pair]:.3f}: the atoms are in another order than the "
                f"model's ({' '.join(self.template or ())}), or the molecule is another"
            )


def describe(path: str | Path) -> dict[str, Any]:
    """What a model file says, as plain values; the package is not needed.

    Raises:
        ModelFileError: the file cannot be used.
    """
    file = GDMLFile.read(path)
    species = tuple(dict.fromkeys(file.symbols))
    types = np.array([species.index(s) for s in file.symbols])
    nearest, farthest = file.distances()
    closest = _by_species(nearest, np.tril_indices(len(types), -1), types)
    return {
        "format": "sgdml",
        "species": list(species),
        "template": list(file.symbols),
        "min_distance": [[d if np.isfinite(d) else None for d in row] for row in closest.tolist()],
        "reach": float(farthest.max()),
        "n_train": file.n_train,
        "n_perms": file.n_perms,
        "cell": "" if file.lattice is None else f" in a cell {heights(file.lattice).min():.3f} Å wide",
        "about": dict(file.about),
    }


def _by_species(nearest: Floats, pairs: tuple[Ints, Ints], types: Ints) -> Floats:
    """Smallest distances of pairs of species, from those of pairs of atoms."""
    n_species = int(types.max()) + 1
    found: Floats = np.full((n_species, n_species), np.inf)
    for first, second in (pairs, pairs[::-1]):
        np.minimum.at(found, (types[first], types[second]), nearest)
    return found


def _import() -> tuple[str, Any]:
    """The package's version and its predictor.

    It makes the logger of its own terminal output that of the whole process; that is undone.
    """
    kind = logging.getLoggerClass()
    try:
        version = str(importlib.import_module("sgdml").__version__)
        logging.setLoggerClass(kind)
        return version, importlib.import_module("sgdml.predict")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "sgdml":
            raise ConfigError(f"the sgdml package lacks the package {error.name}: pip install {error.name}") from None
        raise ConfigError(
            f"an sGDML model needs the package sgdml, which is not installed for {sys.executable}: "
            "pip install 'dpserver[gdml]'"
        ) from None
    except Exception as error:  # whatever its libraries raise
        raise ConfigError(f"sgdml is installed, but cannot be loaded: {type(error).__name__}: {error}") from error
    finally:
        logging.setLoggerClass(kind)


def _make(package: Any, arrays: Mapping[str, Any], chunk: int) -> Any:
    """The package's predictor, with one process: itself."""
    try:
        return package.GDMLPredict(dict(arrays), batch_size=chunk, max_processes=1, log_level=logging.ERROR)
    except Exception as error:
        raise ModelFileError(f"sgdml refuses the model: {type(error).__name__}: {error}") from error
