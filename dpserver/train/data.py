"""Labelled structures: what a potential is trained on and tested with."""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np

from dpserver.errors import DataError, StructureError
from dpserver.frames import Floats, Frames, Ints
from dpserver.train.formats.common import Contents, fault_of, merge
from dpserver.train.formats.sources import Source, find_systems
from dpserver.train.labels import LABELS

_FIRST = ("energy", "forces", "virial")
"""The labels that have no default; a system may still lack them."""
_HOW_OPEN = 'say so in the data, as pbc="F F F" does in extended XYZ'


@dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Structures of one system with what is to be learnt of them.

    The frames may differ in size and composition, not in the labels they have. A label the data does not have is
    None. See `dpserver.train.labels.LABELS` for the files they come from.

    Attributes:
        frames: the structures, with the parameters `fparam` and `aparam` where the data has them; types index
            `species`.
        energy: (n_frames,), float64, eV.
        forces: (n_atoms, 3), float64, eV/Å.
        virial: -dE/d(strain) = -volume times stress, (n_frames, 3, 3), float64, eV.
        species: names of the types.
        name: where the data came from.
        atom_energy: (n_atoms,), eV.
        atom_energy_coeff: (n_atoms,); with it the energy to learn is the sum of atomic energies times these numbers.
        atom_pref: weight of each atom's force in a term of the loss of its own, (n_atoms,).
        drdq: derivatives of the position of each atom by generalized coordinates, (n_atoms, 3 n_coordinates).
        dipole: (n_frames, 3), in the unit of the data.
        atom_dipole: (n_atoms, 3); 0 for atoms whose species has none.
        polar: polarizability, (n_frames, 3, 3).
        atom_polar: (n_atoms, 3, 3); 0 for atoms whose species has none.
        atom_weight: weight of each atom's dipole or polarizability in the loss, (n_atoms,).
        copies: how often a frame is drawn in each epoch, (n_frames,), whole numbers; once without.
    """

    frames: Frames
    energy: Floats | None
    forces: Floats | None
    virial: Floats | None
    species: tuple[str, ...]
    name: str
    atom_energy: Floats | None = None
    atom_energy_coeff: Floats | None = None
    atom_pref: Floats | None = None
    drdq: Floats | None = None
    dipole: Floats | None = None
    atom_dipole: Floats | None = None
    polar: Floats | None = None
    atom_polar: Floats | None = None
    atom_weight: Floats | None = None
    copies: Floats | None = None

    @classmethod
    def build(cls, frames: Frames, labels: Mapping[str, Floats], species: tuple[str, ...], name: str) -> LabelledFrames:
        """Labelled frames from the labels there are, by name.

        Args:
            frames: the structures.
            labels: by the names of `LABELS`.
            species: names of the types.
            name: where the data came from.
        """
        energy, forces, virial = (labels.get(label) for label in _FIRST)
        others = {label: values for label, values in labels.items() if label not in _FIRST}
        return cls(frames, energy, forces, virial, species, name, **others)

    @property
    def labels(self) -> dict[str, Floats]:
        """The labels there are, by the names of `LABELS`; (n_frames, …) or (n_atoms, …)."""
        found = {label: getattr(self, label) for label in LABELS}
        return {label: values for label, values in found.items() if values is not None}

    @property
    def parameters(self) -> dict[str, Floats]:
        """`fparam` (n_frames, n_fparam) and `aparam` (n_atoms, n_aparam), as far as the frames have them."""
        found = {"fparam": self.frames.fparam, "aparam": self.frames.aparam}
        return {name: values for name, values in found.items() if values is not None}

    @property
    def n_frames(self) -> int:
        """Number of structures."""
        return self.frames.n_frames

    @cached_property
    def counts(self) -> Ints:
        """Atoms per frame, (n_frames,), int64."""
        return self.frames.counts

    @cached_property
    def offsets(self) -> Ints:
        """First atom of each frame and the total, (n_frames + 1,), int64."""
        return self.frames.offsets

    def subset(self, frame_idx: Sequence[int] | Ints) -> LabelledFrames:
        """Some frames in the order asked for; the result owns its arrays.

        Args:
            frame_idx: frames to take, (n,); one may be taken more than once.

        Raises:
            IndexError: a frame does not exist.
        """
        idx = np.asarray(frame_idx, dtype=np.int64)
        if len(idx) and not (idx.min() >= 0 and idx.max() < self.n_frames):
            raise IndexError(f"frames {idx.min()} to {idx.max()} of {self.name}, which has {self.n_frames}")
        counts = self.counts[idx]
        ends = np.cumsum(counts)
        atoms = np.arange(counts.sum()) + np.repeat(self.offsets[idx] - (ends - counts), counts)
        f = self.frames
        frames = Frames(
            f.positions[atoms],
            f.types[atoms],
            f.cell[idx],
            f.pbc[idx],
            np.repeat(np.arange(len(idx)), counts),
            fparam=None if f.fparam is None else f.fparam[idx],
            aparam=None if f.aparam is None else f.aparam[atoms],
        )
        labels = {name: values[atoms if LABELS[name].is_atomic else idx] for name, values in self.labels.items()}
        return LabelledFrames.build(frames, labels, self.species, self.name)


def join(systems: Sequence[LabelledFrames], name: str = "") -> LabelledFrames:
    """One system with the frames of several, in order.

    Args:
        systems: at least one, of the same species.
        name: of the result; by default the names joined.

    Raises:
        DataError: only some of them have forces, or another label or parameter.
    """
    name = name or ", ".join(s.name for s in systems)
    frames, labels = merge([Contents(s.frames, s.labels) for s in systems], name)
    return LabelledFrames.build(frames, labels, systems[0].species, name)


def template(systems: Iterable[LabelledFrames]) -> tuple[str, ...] | None:
    """Symbol of each atom, if all frames of all systems list the same symbols in the same order; else None."""
    found: Ints | None = None
    species: tuple[str, ...] = ()
    for system in systems:
        types, n_frames = system.frames.types, system.n_frames
        if not n_frames:
            continue
        first = types[: system.counts[0]] if found is None else found
        if (system.counts != len(first)).any() or (types.reshape(n_frames, -1) != first).any():
            return None
        found, species = first, system.species
    return None if found is None else tuple(species[t] for t in found)


def fingerprint(systems: Iterable[LabelledFrames]) -> str:
    """SHA-256 of every number of the data in order, as hexadecimal digits; names do not enter."""
    digest = hashlib.sha256()
    for system in systems:
        f = system.frames
        digest.update(repr(system.species).encode())
        arrays = {
            "": (f.positions, f.types, f.cell, f.pbc, f.frame_idx, system.energy, system.forces, system.virial),
            **{
                name: (values,) for name, values in {**system.labels, **system.parameters}.items() if name not in _FIRST
            },
        }
        for name, group in arrays.items():
            digest.update(name.encode())
            for array in group:
                digest.update(b"none" if array is None else f"{array.dtype.str}{array.shape}".encode())
                digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --- reading -----------------------------------------------------------------------------------------------------


def read_systems(
    paths: Iterable[str | Path],
    species: Sequence[str],
    patterns: Sequence[str] | None = None,
    selected: Collection[str] | None = None,
) -> list[LabelledFrames]:
    """Read every system the paths stand for, see `find_systems` and `read_system`."""
    return [read_system(system, species, selected) for path in paths for system in find_systems(path, patterns)]


def read_system(
    path: str | Path | Source, species: Sequence[str], selected: Collection[str] | None = None
) -> LabelledFrames:
    """Read one system; the systems of a directory or file of several are joined into one.

    A DeePMD npy directory holds one row per frame in `set.*/{coord,box,energy,force,virial,…}.npy` and one integer per
    atom in `type.raw`, an index into `type_map.raw` or, without that, into `species`. Rows of `box` are the lattice
    vectors one after the other. The virial is -volume times stress. A file `nopbc` marks open boundaries. With
    `set.*/real_atom_types.npy`, which then holds the types of each frame, frames differ in composition; -1 is no atom.
    An HDF5 file holds the same under the same names.

    Args:
        path: see `dpserver.train.formats.sources`.
        species: names of the model's types, in order.
        selected: species whose atoms have a dipole or a polarizability, for data that lists only these atoms; by
            default they are found by their number.

    Returns:
        The frames in float64, whatever the precision of the files.

    Raises:
        DataError: a file is missing, has the wrong number of atoms or frames, holds numbers that are not finite, or
            an atom is of a species that is not in `species`.
    """
    found = find_systems(path)
    if len(found) > 1:
        return join([read_system(p, species, selected) for p in found], str(path))
    frames, labels = found[0].read(tuple(species), selected)
    system = LabelledFrames.build(frames, labels, tuple(species), str(found[0]))
    _check(system)
    return system


def _check(system: LabelledFrames) -> None:
    """Refuse frames and labels no training can use."""
    if not system.labels.keys() - {"copies"}:
        raise DataError(
            f"{system.name} has neither energy nor forces nor another label; expected energy.npy and force.npy in each "
            "set, energy=… and columns forces:R:3 in extended XYZ"
        )
    if (fault := fault_of(system.frames, _HOW_OPEN)) is not None:
        raise DataError(f"{system.name}: frame {fault.frame}: {fault.problem}; {fault.remedy}")
    try:
        system.frames.check(len(system.species))
    except StructureError as error:
        raise DataError(f"{system.name}: {error}") from None
    f = system.frames
    values = {label: (array, LABELS[label].is_atomic) for label, array in system.labels.items()}
    for label, (array, is_atomic) in values.items():
        if label == "copies" and not (((array >= 0) & (array == np.trunc(array))).all() and array.any()):
            raise DataError(f"{system.name}: copies (numb_copy.npy): expected whole numbers from 0, not all of them 0")
        bad = np.flatnonzero(~np.isfinite(array.reshape(len(array), -1)).all(axis=1))
        if len(bad):
            frame = f.frame_idx[bad[0]] if is_atomic else bad[0]
            raise DataError(f"{system.name}: {label} of frame {frame}: expected finite numbers; remove the frame")
