"""Large structures: how long it takes to cut them into parts, and a million atoms evaluated by one process.

    python benchmarks/large.py [w.pt] [--tiles 18] [--threads 2] [--centres 100000]

Water, the structure of examples/water tiled. For each number of parts: atoms and ghosts of a part, CPU time to make the
parts, to gather the positions of all of them, and to sum their forces, on one thread. Then energies and forces of the
largest one, in parts of at most so many atoms one after the other, as where the memory does not hold more, and as it
is: seconds with the lists made anew and with those of before, and the most memory there was.

Appends a record to benchmarks/results/large.json. CPU seconds are those of all threads, and hardly depend on what else
the machine does.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import resource
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import records
from structures import ROOT, water

from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.parallel.domain import Decomposition
from dpserver.parallel.pieces import Pieces


def milliseconds(run: Callable[[], object]) -> float:
    """Least CPU time of three calls, after one that is not counted."""
    run()
    found = []
    for _ in range(3):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return round(1e3 * min(found), 3)


def cutting(frame: Frames, rcut: float, n_parts: int) -> dict[str, Any]:
    """Sizes of the parts, and milliseconds."""
    cut = Decomposition.build(frame, n_parts, rcut)
    local = cut.positions(frame)
    ghosts = [part.n_ghosts for part in cut.parts]
    times = {
        "build": lambda: Decomposition.build(frame, n_parts, rcut),
        "gather": lambda: cut.positions(frame, out=local),
        "sum": lambda: cut.sum(local),
        "is_valid": lambda: cut.is_valid(frame),
    }
    return {
        "centres": [int(cut.n_owned.min()), int(cut.n_owned.max())],
        "ghosts": [min(ghosts), max(ghosts)],
        "ms": {name: milliseconds(run) for name, run in times.items()},
    }


def evaluation(run: Callable[[], object], n_atoms: int) -> dict[str, float]:
    """Seconds and µs per atom of one call, and the most memory that this process has had."""
    wall, cpu = time.perf_counter(), time.process_time()
    run()
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {
        "seconds": round(wall, 2),
        "cpu_seconds": round(cpu, 2),
        "cpu_us_per_atom": round(1e6 * cpu / n_atoms, 2),
        "peak_memory_mb": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024,
    }


def main() -> None:
    """Measure, print and keep."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", type=Path, default=ROOT / "examples" / "water" / "w.pt")
    options.add_argument("--tiles", type=int, default=18, help="boxes of 192 atoms along each direction")
    options.add_argument("--threads", type=int, default=2)
    options.add_argument("--centres", type=int, default=100_000)
    given = options.parse_args()
    potential = checkpoint.load(given.model, device="cpu")
    potential.accelerate(given.threads)
    potential.warm_up()
    record: dict[str, Any] = {
        "model": given.model.name,
        "precision": potential.precision,
        "threads": given.threads,
        "load": round(os.getloadavg()[0], 2),
        "parts": {},
    }
    for tiles in (4, 8, given.tiles):
        frame = water(tiles)
        rows = {str(n): cutting(frame, potential.rcut, n) for n in (2, 8, 64, 512)}
        record["parts"][str(frame.n_atoms)] = rows
    moved = replace(
        frame, positions=frame.positions + np.random.default_rng(0).uniform(-0.02, 0.02, (frame.n_atoms, 3))
    )
    pieces = Pieces(potential)
    pieces.most_centres = given.centres
    models: dict[str, Any] = {f"in parts of {given.centres}": pieces, "whole": potential}
    record["evaluation"] = {"n_atoms": frame.n_atoms}
    energies = []
    for name, model in models.items():
        first = evaluation(lambda m=model: energies.append(m.evaluate(frame).energy[0]), frame.n_atoms)
        record["evaluation"][name] = {
            "first": first,
            "next": evaluation(lambda m=model: m.evaluate(moved), frame.n_atoms),
        }
    record["evaluation"]["relative_difference"] = abs(energies[0] / energies[1] - 1)
    records.append("large", record)


if __name__ == "__main__":
    main()
