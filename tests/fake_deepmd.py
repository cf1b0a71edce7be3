"""A DeePMD-kit of a few lines: `deepmd.infer.DeepPot` as far as it is used, on a pair model."""

from __future__ import annotations

import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any, ClassVar

import numpy as np
import pytest

from dpserver.frames import Frames
from tests.doubles import SPECIES, PairModel


class DeepPot:
    """Evaluates frames of the same atoms, as DeePMD-kit's does.

    Attributes:
        calls: frames of each call.
        given: keyword arguments of the last one.
        traits: what the next model says of itself.
    """

    calls: ClassVar[list[int]] = []
    given: ClassVar[dict[str, Any]] = {}
    traits: ClassVar[dict[str, Any]] = {}

    def __init__(self, path: str) -> None:
        if Path(path).read_text() != "a model":
            raise RuntimeError("Unknown operator\n \x1b[31mdeepmd_op\x1b[0m")
        self.deep_eval = SimpleNamespace(model_type=self.traits.get("model_type", DeepPot))
        self.has_spin = self.traits.get("has_spin", False)
        self.has_efield = self.traits.get("has_efield", False)
        self._model = PairModel()

    def get_type_map(self) -> list[str]:
        return list(SPECIES)

    def get_rcut(self) -> float:
        return self._model.rcut

    def get_dim_fparam(self) -> int:
        return int(self.traits.get("n_fparam", 0))

    def get_dim_aparam(self) -> int:
        return int(self.traits.get("n_aparam", 0))

    def has_default_fparam(self) -> bool:
        return bool(self.traits.get("has_default_fparam", False))

    def get_ntypes_spin(self) -> int:
        return 0

    def eval(self, coords: Any, cells: Any, atom_types: Any, atomic: bool = False, **given: Any) -> tuple[Any, ...]:
        n_frames, n_atoms = len(coords), len(atom_types)
        assert coords.shape == (n_frames, 3 * n_atoms)
        assert cells is None or cells.shape == (n_frames, 9)
        self.calls.append(n_frames)
        self.given.update(given)
        boxes = [None] * n_frames if cells is None else list(cells.reshape(-1, 3, 3))
        frames = [Frames.single(x.reshape(-1, 3), atom_types, h) for x, h in zip(coords, boxes, strict=True)]
        result = self._model.evaluate(Frames.concatenate(frames))
        answer = (
            result.energy.reshape(n_frames, 1),
            result.forces.reshape(n_frames, n_atoms, 3),
            result.virial.reshape(n_frames, 9),
        )
        atoms = (result.atom_energy.reshape(n_frames, n_atoms, 1), np.zeros((n_frames, n_atoms, 9)))
        return answer + atoms if atomic else answer


class DeepDipole:
    """A kind of model that has no energy."""


def install(monkeypatch: pytest.MonkeyPatch, **traits: Any) -> type[DeepPot]:
    """Let `import deepmd` find this one.

    Args:
        monkeypatch: takes it away again.
        traits: of the models it reads.
    """
    package, infer = ModuleType("deepmd"), ModuleType("deepmd.infer")
    package.__version__ = "3.2.0"  # type: ignore[attr-defined]
    infer.DeepPot = DeepPot  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "deepmd", package)
    monkeypatch.setitem(sys.modules, "deepmd.infer", infer)
    monkeypatch.setattr(DeepPot, "calls", [])
    monkeypatch.setattr(DeepPot, "given", {})
    monkeypatch.setattr(DeepPot, "traits", traits)
    for name in ("DEVICE", "DP_INTRA_OP_PARALLELISM_THREADS", "DP_INTER_OP_PARALLELISM_THREADS"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    return DeepPot


def model_file(folder: Path, name: str = "graph.pb") -> Path:
    """A file that it reads."""
    path = folder / name
    path.write_text("a model")
    return path
