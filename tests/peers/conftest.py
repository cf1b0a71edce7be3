"""DeePMD-kit, started once for all tests of this folder."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.frames import Floats, Frames


@dataclass(frozen=True)
class DeePMDKit:
    """The worker, see `worker.py`.

    Attributes:
        process: of the worker.
        folder: for the arrays that go between.
    """

    process: subprocess.Popen[str]
    folder: Path

    def do(self, task: str, **arguments: Any) -> None:
        """Have something done, and fail with the traceback of what went wrong."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps({"do": task, **arguments}) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        assert answer, f"the worker ended with {self.process.wait()}: {(self.folder / 'log').read_text()[-2000:]}"
        if (error := json.loads(answer)["error"]) is not None:
            pytest.fail(error, pytrace=False)

    def convert(self, source: Path, target: Path) -> Path:
        """`dp convert-backend`."""
        self.do("convert", source=str(source), target=str(target))
        return target

    def make(self, parameters: dict[str, Any], path: Path) -> Path:
        """A model file with random weights."""
        self.do("make", parameters=parameters, path=str(path))
        return path

    def evaluate_tensors(self, model: Path, frames: Frames, kind: str) -> Floats:
        """What each atom adds to a `dipole` or `polar`, (n_atoms, 3 or 9)."""
        given, answer = self.folder / "frames.npz", self.folder / "answer.npz"
        arrays = {name: getattr(frames, name) for name in ("positions", "types", "cell", "pbc", "frame_idx")}
        np.savez(given, **arrays)
        self.do("evaluate_tensors", model=str(model), frames=str(given), answer=str(answer), kind=kind)
        with np.load(answer) as z:
            return np.asarray(z["atoms"], dtype=np.float64)

    def evaluate(self, model: Path, frames: Frames) -> dict[str, Floats]:
        """Energy, forces, virial (symmetric) and atom_energy, by `DeepPot.eval`."""
        given, answer = self.folder / "frames.npz", self.folder / "answer.npz"
        parameters = {name: getattr(frames, name) for name in ("fparam", "aparam") if getattr(frames, name) is not None}
        arrays = {name: getattr(frames, name) for name in ("positions", "types", "cell", "pbc", "frame_idx")}
        np.savez(given, **arrays, **parameters)
        self.do("evaluate", model=str(model), frames=str(given), answer=str(answer))
        with np.load(answer) as z:
            found = {name: z[name] for name in z.files}
        found["virial"] = (found["virial"] + found["virial"].transpose(0, 2, 1)) / 2
        return found


@pytest.fixture(scope="session")
def deepmd_kit(peer_python: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[DeePMDKit]:
    folder = tmp_path_factory.mktemp("deepmd_kit")
    command = [str(peer_python), str(Path(__file__).with_name("worker.py"))]
    with (
        (folder / "log").open("w") as log,
        subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=log, text=True, cwd=folder
        ) as process,
    ):
        try:
            yield DeePMDKit(process, folder)
        finally:
            process.kill()
