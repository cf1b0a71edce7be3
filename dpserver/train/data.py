"""Labelled structures: what a potential is trained on and tested with, and how batches are drawn from them."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from dpserver.errors import ConfigError, DataError, StructureError
from dpserver.frames import Floats, Frames, Ints
from dpserver.train.data_config import DataConfig, parse_auto_prob
from dpserver.train.formats import all_or_none, read_npy, read_xyz


@dataclass(frozen=True, eq=False)
class LabelledFrames:
    """Structures of one system with the energies, forces and virials to learn.

    The frames may differ in size and composition.

    Attributes:
        frames: the structures; types index `species`.
        energy: (n_frames,), float64, eV.
        forces: (n_atoms, 3), float64, eV/Å; None where the data has none.
        virial: -dE/d(strain) = -volume times stress, (n_frames, 3, 3), float64, eV; None where the data has none.
        species: names of the types.
        name: where the data came from.
    """

    frames: Frames
    energy: Floats
    forces: Floats | None
    virial: Floats | None
    species: tuple[str, ...]
    name: str

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
            f.positions[atoms], f.types[atoms], f.cell[idx], f.pbc[idx], np.repeat(np.arange(len(idx)), counts)
        )
        return LabelledFrames(
            frames,
            self.energy[idx],
            None if self.forces is None else self.forces[atoms],
            None if self.virial is None else self.virial[idx],
            self.species,
            self.name,
        )


def join(systems: Sequence[LabelledFrames], name: str = "") -> LabelledFrames:
    """One system with the frames of several, in order.

    Args:
        systems: at least one, of the same species.
        name: of the result; by default the names joined.

    Raises:
        DataError: only some of them have forces, or a virial.
    """
    name = name or ", ".join(s.name for s in systems)
    forces = [s.forces for s in systems if s.forces is not None]
    virial = [s.virial for s in systems if s.virial is not None]
    return LabelledFrames(
        Frames.concatenate(s.frames for s in systems),
        np.concatenate([s.energy for s in systems]),
        np.concatenate(forces) if all_or_none(name, "forces", len(forces), len(systems), "systems") else None,
        np.concatenate(virial) if all_or_none(name, "virial", len(virial), len(systems), "systems") else None,
        systems[0].species,
        name,
    )


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
        for array in (f.positions, f.types, f.cell, f.pbc, f.frame_idx, system.energy, system.forces, system.virial):
            digest.update(b"none" if array is None else f"{array.dtype.str}{array.shape}".encode())
            digest.update(b"" if array is None else np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()


# --- reading -----------------------------------------------------------------------------------------------------


def find_systems(path: str | Path) -> list[Path]:
    """The systems a path stands for.

    Args:
        path: a DeePMD npy directory (one with `type.raw`), a directory that contains such, at any depth, or a file
            in extended XYZ format.

    Returns:
        Directories and files to give to `read_system`, sorted.

    Raises:
        DataError: the path does not exist, or no system is found.
    """
    path = Path(path)
    if path.is_file():
        return [path]
    if not path.is_dir():
        raise DataError(f"the data set {path} does not exist")
    found = sorted(file.parent for file in path.rglob("type.raw"))
    if not found:
        raise DataError(
            f"no system in {path}: expected a DeePMD npy directory (type.raw and set.*), a directory of such, "
            "or the name of an extended XYZ file"
        )
    return found


def read_systems(paths: Iterable[str | Path], species: Sequence[str]) -> list[LabelledFrames]:
    """Read every system the paths stand for, see `find_systems` and `read_system`."""
    return [read_system(system, species) for path in paths for system in find_systems(path)]


def read_system(path: str | Path, species: Sequence[str]) -> LabelledFrames:
    """Read one system; the systems of a directory of several are joined into one.

    A DeePMD npy directory holds one row per frame in `set.*/{coord,box,energy,force,virial}.npy` and one integer per
    atom in `type.raw`, an index into `type_map.raw` or, without that, into `species`. Rows of `box` are the lattice
    vectors one after the other. The virial is -volume times stress. A file `nopbc` marks open boundaries.

    Args:
        path: see `find_systems`.
        species: names of the model's types, in order.

    Returns:
        The frames in float64, whatever the precision of the files.

    Raises:
        DataError: a file is missing, has the wrong number of atoms or frames, holds numbers that are not finite, or
            an atom is of a species that is not in `species`.
    """
    found = find_systems(path)
    if len(found) > 1:
        return join([read_system(p, species) for p in found], str(path))
    read = read_xyz if found[0].is_file() else read_npy
    system = LabelledFrames(*read(found[0], tuple(species)), tuple(species), str(found[0]))
    _check(system)
    return system


def _check(system: LabelledFrames) -> None:
    """Refuse frames and labels no training can use."""
    try:
        system.frames.check(len(system.species))
    except StructureError as error:
        raise DataError(f"{system.name}: {error}") from None
    owner = {"energy": None, "forces": system.frames.frame_idx, "virial": None}
    for label, frame_idx in owner.items():
        values = getattr(system, label)
        if values is None:
            continue
        bad = np.flatnonzero(~np.isfinite(values.reshape(len(values), -1)).all(axis=1))
        if len(bad):
            frame = bad[0] if frame_idx is None else frame_idx[bad[0]]
            raise DataError(f"{system.name}: {label} of frame {frame}: expected finite numbers; remove the frame")


# --- batches -----------------------------------------------------------------------------------------------------


class Batch(NamedTuple):
    """The frames of one training step.

    Attributes:
        system: index of the system.
        frames: its frames, (n,), int64.
    """

    system: int
    frames: Ints


class BatchSampler:
    """Draw batches: a system by its probability, then frames of it, each once per epoch of that system.

    The frames of every epoch are shuffled anew; the last batch of an epoch holds what is left. Everything drawn is a
    function of the seed and of the number of batches drawn before, so that a sampler whose state is restored
    continues with the same batches.

    Args:
        systems: what to draw from.
        config: batch sizes and probabilities; a batch is at most the whole system.
        seed: None for a new one.

    Raises:
        ConfigError: lists of the configuration do not fit the number of systems.
    """

    def __init__(self, systems: Sequence[LabelledFrames], config: DataConfig, seed: int | None = None) -> None:
        self.seed = int(np.random.SeedSequence().generate_state(1)[0]) if seed is None else seed
        self.n_frames = [s.n_frames for s in systems]
        self.batch_sizes = _batch_sizes(systems, config)
        self.n_batches = [math.ceil(n / size) for n, size in zip(self.n_frames, self.batch_sizes, strict=True)]
        self.probabilities = _probabilities(self.n_batches, config)
        self._drawn = [0] * len(self.n_frames)
        self._orders: dict[int, tuple[int, Ints]] = {}

    def __iter__(self) -> Iterator[Batch]:
        return self

    def __next__(self) -> Batch:
        """The next batch; there is always one."""
        rng = np.random.default_rng([self.seed, 0, sum(self._drawn)])
        system = int(rng.choice(len(self.n_frames), p=self.probabilities))
        epoch, position = divmod(self._drawn[system], self.n_batches[system])
        self._drawn[system] += 1
        size = self.batch_sizes[system]
        return Batch(system, self._order(system, epoch)[position * size : (position + 1) * size])

    def _order(self, system: int, epoch: int) -> Ints:
        """The shuffled frames of an epoch of a system."""
        if self._orders.get(system, (-1,))[0] != epoch:
            rng = np.random.default_rng([self.seed, 1, system, epoch])
            self._orders[system] = (epoch, rng.permutation(self.n_frames[system]))
        return self._orders[system][1]

    def state_dict(self) -> dict[str, Any]:
        """What `load_state_dict` needs to continue; plain integers."""
        return {
            "seed": self.seed,
            "drawn": list(self._drawn),
            "n_frames": list(self.n_frames),
            "batch_sizes": list(self.batch_sizes),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue where another sampler of the same systems stood.

        Raises:
            DataError: the systems or batch sizes are not those of the state.
        """
        for key, now in (("n_frames", self.n_frames), ("batch_sizes", self.batch_sizes)):
            if state[key] != now:
                raise DataError(
                    f"the training data has changed since the checkpoint: {key} was {state[key]}, now is {now}; "
                    "restart with the same systems and batch sizes"
                )
        self.seed, self._drawn, self._orders = state["seed"], list(state["drawn"]), {}


def _batch_sizes(systems: Sequence[LabelledFrames], config: DataConfig) -> list[int]:
    """Frames per batch of each system; "auto" by the mean number of atoms of its frames."""
    size = config.batch_size
    if isinstance(size, str):
        wanted = int(size.partition(":")[2] or 32)
        sizes = [math.ceil(wanted / s.counts.mean()) for s in systems]
    elif isinstance(size, int):
        sizes = [size] * len(systems)
    else:
        _check_length("batch_size", len(size), len(systems))
        sizes = list(size)
    return [min(n, s.n_frames) for n, s in zip(sizes, systems, strict=True)]


def _check_length(key: str, n_given: int, n_systems: int) -> None:
    if n_given != n_systems:
        raise ConfigError(f"{key}: needs one number for each of the {n_systems} systems found, got {n_given}")


def _probabilities(n_batches: list[int], config: DataConfig) -> Floats:
    """Probability of each system, (n_systems,), which sum to 1."""
    weights = np.array(n_batches, dtype=np.float64)
    if config.sys_probs is not None:
        _check_length("sys_probs", len(config.sys_probs), len(weights))
        weights = np.array(config.sys_probs)
    elif config.auto_prob == "prob_uniform":
        weights = np.ones(len(weights))
    elif blocks := parse_auto_prob(config.auto_prob):
        sizes, weights = weights, np.zeros(len(weights))
        for first, end, weight in blocks:
            if end > len(sizes):
                raise ConfigError(f"auto_prob: the block {first}:{end} ends beyond the {len(sizes)} systems found")
            weights[first:end] = weight * sizes[first:end] / sizes[first:end].sum()
    if not weights.sum() > 0:
        raise ConfigError("sys_probs: all probabilities are 0; at least one system must be drawn")
    probabilities: Floats = weights / weights.sum()
    return probabilities
