"""Evaluates recorded structures from Python, as told on its standard input: `evaluator.py KIND MODEL STRUCTURES.npz`.

KIND is `deepmd`, DeePMD-kit's `DeepPot.eval`, or `double`, `mixed`, `single`: `dpserver.load(MODEL).evaluate` in that
precision. Needs nothing but numpy and what it times, so that it runs in the environment of a peer. Each line that it
reads, `FIRST LAST`, names steps of the recording; for each it answers with a line of JSON, the seconds of each step.
The energy and forces of the first structure go to STRUCTURES.npz.forces.npz.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Evaluation = Callable[[Any], tuple[Any, Any]]
"""Of positions, (n_frames, n_atoms, 3), Å: energies, eV, and forces, eV/Å."""


def with_deepmd(model: str, cell: Any, types: Any) -> Evaluation:
    """DeePMD-kit, with all structures in one call."""
    os.environ.setdefault("DP_INFER_BATCH_SIZE", "1000000")
    from deepmd.infer import DeepPot

    potential = DeepPot(model)

    def evaluate(x: Any) -> tuple[Any, Any]:
        energy, forces, _ = potential.eval(x.reshape(len(x), -1), np.tile(cell.reshape(1, 9), (len(x), 1)), types)[:3]
        return np.ravel(energy), forces.reshape(x.shape)

    return evaluate


def with_dpserver(model: str, precision: str, cell: Any, types: Any) -> Evaluation:
    """This project, as many threads as OpenMP is told to use."""
    import dpserver
    from dpserver.frames import Frames

    potential = dpserver.load(model, device="cpu", precision=precision, threads=int(os.environ["OMP_NUM_THREADS"]))
    potential.warm_up()

    def evaluate(x: Any) -> tuple[Any, Any]:
        result = potential.evaluate(Frames.concatenate(Frames.single(frame, types, cell) for frame in x))
        return result.energy, result.forces.reshape(x.shape)

    return evaluate


def main(kind: str, model: str, structures: str) -> None:
    """Answer until the input ends."""
    given = np.load(structures)
    shifts = np.stack(np.meshgrid(*(np.arange(n) for n in given["tiles"]), indexing="ij"), axis=-1).reshape(-1, 3)
    types, cell = np.tile(given["types"], len(shifts)), given["cell"] * given["tiles"][:, None]
    translations = shifts @ given["cell"]
    make = with_deepmd if kind == "deepmd" else lambda *args: with_dpserver(args[0], kind, *args[1:])
    evaluate = make(model, cell, types)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever libraries print is no answer
    for line in sys.stdin:
        first, last = map(int, line.split())
        seconds = []
        for step in range(first, last):
            x = (given["positions"][step][:, None] + translations[None, :, None]).reshape(-1, len(types), 3)
            start = time.perf_counter()
            energy, forces = evaluate(x)
            seconds.append(time.perf_counter() - start)
            if step == 0:
                np.savez(structures + ".forces.npz", energy=energy, forces=forces)
        print(json.dumps(seconds), file=answers, flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
