"""Models evaluated by an installed DeePMD-kit: any that it reads, among them those that have no counterpart here.

DeePMD-kit brings its own frameworks and runs what its files hold; everything else, the wire, the batches and the
species, stays as it is. It is loaded when the first model asks for it.
"""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Hashable, Sequence
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch

from dpserver import neighbors
from dpserver.errors import ConfigError, DeviceError, ModelFileError, StructureError
from dpserver.frames import Floats, ForceResult, Frames, Ints
from dpserver.kernels.threads import check_count
from dpserver.models.parameters import Takes, check_parameters

_OVERLAP_RADIUS: Final = 1.0  # Å; within it atoms are looked at that may lie on top of each other
_WITHOUT_FORCES: Final = (".dp", ".yaml", ".yml")
_MAX_MESSAGE: Final = 300


class DeepPotModel:
    """A model that DeePMD-kit's `DeepPot` evaluates.

    Frames with the same atoms in the same order go to it in one call; how many of them it takes at once is its own
    affair (`DP_INFER_BATCH_SIZE`).

    Args:
        path: a model file of any kind that DeePMD-kit reads.
        device: `auto`, which leaves the choice to DeePMD-kit, `cpu` or `cuda`.
        threads: that compute on the CPU; by default as many as DeePMD-kit takes.

    Attributes:
        species: symbol of each type.
        rcut: cutoff radius, Å.
        template: not known.
        min_distance: not known, inf for all pairs.
        crowd_distance: not known either.
        takes: the parameters of frames and atoms that the model takes.
        version: of DeePMD-kit.
        device: where it computes, as far as torch knows.
        has_atom_energy: whether `evaluate` tells the energies of atoms, for which DeePMD-kit takes up to half as long
            again; NaN where it does not.

    Raises:
        ConfigError: DeePMD-kit is not installed, or broken.
        ModelFileError: it does not read the file, or the file holds no potential that positions alone determine.
        DeviceError: the device does not exist.
    """

    template: tuple[str, ...] | None = None
    can_cut = False
    whole_because = "with --backend deepmd, DeePMD-kit evaluates whole structures"

    def __init__(self, path: str | Path, device: str = "auto", threads: int | None = None) -> None:
        path = Path(path)
        if not path.exists():  # some are folders
            raise ModelFileError(f"model file {path} does not exist (seen from {Path.cwd()})")
        self.device = _choose_device(device)
        _prepare(self.device, threads)
        self.version, infer = _import()
        self._model = _open(infer, path, self.version)
        _check_kind(infer, self._model, path)
        self.species = tuple(map(str, self._model.get_type_map()))
        self.rcut = float(self._model.get_rcut())
        self.min_distance: Floats = np.full((len(self.species), len(self.species)), np.inf)
        self.crowd_distance: Floats = np.full_like(self.min_distance, np.inf)
        n_fparam, n_aparam = int(self._model.get_dim_fparam()), int(self._model.get_dim_aparam())
        self.takes = Takes(n_fparam, n_aparam, _is(self._model, "has_default_fparam"))
        self.has_atom_energy = True

    def warm_up(self) -> None:
        """Nothing can be made before the first structure is known."""

    def evaluate(self, frames: Frames) -> ForceResult:
        """Energies, forces and virials of a batch.

        Args:
            frames: structures, of any sizes; not changed.

        Returns:
            Arrays that belong to the caller, in eV and eV/Å.

        Raises:
            StructureError: a structure that has no answer, or lacks the parameters that the model takes.
        """
        self._check(frames)
        result = ForceResult(
            np.zeros(frames.n_frames),
            np.zeros((frames.n_atoms, 3)),
            np.zeros((frames.n_frames, 3, 3)),
            np.full(frames.n_atoms, np.nan),
            frames.frame_idx.copy(),
        )
        for group in _alike(frames):
            self._evaluate_alike(frames, group, result)
        return result

    def _check(self, frames: Frames) -> None:
        """Refuse what DeePMD-kit has no answer for, or would answer a wrong number."""
        frames.check(len(self.species))
        is_mixed = frames.pbc.any(axis=1) & ~frames.pbc.all(axis=1)
        if is_mixed.any():
            raise StructureError(
                f"the cell{frames.of_frame(int(np.argmax(is_mixed)))} is open along some lattice vectors and periodic "
                "along others; DeePMD-kit knows only cells that are periodic or open altogether: give the open "
                "directions a long lattice vector"
            )
        if frames.is_ghost is not None and frames.is_ghost.any():
            raise StructureError("a part of a structure cannot be evaluated by DeePMD-kit; give whole structures")
        takes = self.takes
        check_parameters(frames, takes.n_fparam, takes.n_aparam, has_default_fparam=takes.has_default_fparam)
        neighbors.build(frames, _OVERLAP_RADIUS)

    def _evaluate_alike(self, frames: Frames, group: Sequence[int], result: ForceResult) -> None:
        """Evaluate frames with the same atoms in one call, and put the answers into their places."""
        offsets, n_frames = frames.offsets, len(group)
        atoms: Ints = np.stack([np.arange(offsets[k], offsets[k + 1]) for k in group])
        answer = self._model.eval(
            frames.positions[atoms].reshape(n_frames, -1),
            frames.cell[group].reshape(n_frames, 9) if frames.pbc[group[0]].all() else None,
            frames.types[atoms[0]],
            atomic=self.has_atom_energy,
            fparam=None if frames.fparam is None else frames.fparam[group],
            aparam=None if frames.aparam is None else frames.aparam[atoms].reshape(n_frames, -1),
        )
        virial = np.asarray(answer[2], dtype=np.float64).reshape(n_frames, 3, 3)
        result.energy[group] = np.reshape(answer[0], n_frames)
        result.forces[atoms] = np.reshape(answer[1], (n_frames, -1, 3))
        result.virial[group] = (virial + virial.transpose(0, 2, 1)) / 2
        if self.has_atom_energy:
            result.atom_energy[atoms] = np.reshape(answer[3], atoms.shape)


def _alike(frames: Frames) -> list[list[int]]:
    """Group frames that have the same atoms in the same order and the same boundaries."""
    offsets = frames.offsets
    groups: dict[Hashable, list[int]] = {}
    for k in range(frames.n_frames):
        kind = frames.types[offsets[k] : offsets[k + 1]].tobytes(), bool(frames.pbc[k].all())
        groups.setdefault(kind, []).append(k)
    return list(groups.values())


def _choose_device(name: str) -> torch.device:
    """The device DeePMD-kit will take, of those it can be told."""
    if name not in ("auto", "cpu", "cuda"):
        raise DeviceError(
            f"device {name!r} cannot be given to DeePMD-kit; expected auto, cpu or cuda, and CUDA_VISIBLE_DEVICES in "
            "the environment says which GPU it sees"
        )
    has_cuda = torch.cuda.is_available()
    if name == "cuda" and not has_cuda:
        raise DeviceError("device 'cuda' does not exist: torch sees no CUDA device; use --device cpu")
    is_cpu = name == "cpu" or not has_cuda or (name == "auto" and os.environ.get("DEVICE") == "cpu")
    return torch.device("cpu" if is_cpu else "cuda")


def _prepare(device: torch.device, threads: int | None) -> None:
    """Set what DeePMD-kit reads from the environment when it is first imported."""
    if device.type == "cpu":
        os.environ["DEVICE"] = "cpu"
    if threads is not None:
        check_count(threads)
        os.environ["DP_INTRA_OP_PARALLELISM_THREADS"] = str(threads)
        os.environ.setdefault("DP_INTER_OP_PARALLELISM_THREADS", "1")
        torch.set_num_threads(threads)


def _import() -> tuple[str, Any]:
    """DeePMD-kit's version and its module of evaluators."""
    try:
        return str(importlib.import_module("deepmd").__version__), importlib.import_module("deepmd.infer")
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "deepmd":
            raise ConfigError(f"DeePMD-kit lacks the package {error.name}: pip install {error.name}") from None
        raise ConfigError(
            f"the backend deepmd needs DeePMD-kit, which is not installed for {sys.executable}: pip install "
            "deepmd-kit, or install dpserver where it is"
        ) from None
    except Exception as error:  # whatever its libraries raise
        raise ConfigError(f"DeePMD-kit is installed, but cannot be loaded: {_line(error)}") from error


def _open(infer: Any, path: Path, version: str) -> Any:
    """DeePMD-kit's own evaluator of a model file."""
    if path.suffix.lower() in _WITHOUT_FORCES:
        raise ModelFileError(
            f"DeePMD-kit answers no forces for a {path.suffix} file; `dp convert-backend {path} "
            f"{path.with_suffix('.pth')}` makes one that it does"
        )
    try:
        return infer.DeepPot(str(path))
    except Exception as error:  # every backend of its raises its own
        raise ModelFileError(f"DeePMD-kit {version} refuses {path}: {_line(error)}") from error


def _check_kind(infer: Any, model: Any, path: Path) -> None:
    """Refuse a model that is no function of the positions alone."""
    kind = getattr(getattr(model, "deep_eval", None), "model_type", infer.DeepPot)
    if not issubclass(kind, infer.DeepPot):
        raise ModelFileError(f"{path} is a model of the kind {kind.__name__}, expected a potential energy")
    if _is(model, "has_spin") or (hasattr(model, "get_ntypes_spin") and model.get_ntypes_spin()):
        raise ModelFileError(
            f"{path} is a spin model: it needs the spin of every atom, which no message of the i-PI protocol carries"
        )
    if _is(model, "has_efield"):
        raise ModelFileError(f"{path} needs an electric field, which no message of the i-PI protocol carries")


def _is(model: Any, name: str) -> bool:
    """A yes or no of DeePMD-kit's, by property or method; versions that have none mean no."""
    value = getattr(model, name, False)
    return bool(value() if callable(value) else value)


def _line(error: Exception) -> str:
    """What an error says, in one line that a terminal can show."""
    text = " ".join("".join(c if c.isprintable() else " " for c in str(error)).split())
    text = text if len(text) <= _MAX_MESSAGE else f"{text[:_MAX_MESSAGE]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__
