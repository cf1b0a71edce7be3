"""The CPU path: µs per atom over sizes, threads and precisions, where the time goes, and how near the limit that is.

    python benchmarks/cpu.py [w.pt] [--sizes 192,1536,5184,12288] [--threads 1,2] [--repeats 7]

Water, the structure of examples/water tiled; a model of DeePMD-kit will do as well. Atoms move by 0.02 Å between
evaluations, within the skin of their neighbour lists; making the lists anew is timed by itself. The ceiling is what a
product of the size of the first fitting layer reaches on one core in the same seconds, by our kernel and by torch's
library.

Appends a record to benchmarks/results/cpu.json. Let the machine be quiet.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import resource
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import ase.io
import numpy as np
import records
import torch

from dpserver.frames import Frames
from dpserver.kernels.fitting import Matrix, multiply, pack, padded
from dpserver.models import checkpoint
from dpserver.models.assembly import aligned
from dpserver.models.compiled import SKIN, Compiled
from dpserver.neighbors.rows import build_rows

ROOT = Path(__file__).resolve().parents[1]
SHAPE = (256, 1600, 240)
_ATOMS = ase.io.read(ROOT / "examples" / "water" / "water.xyz")
WATER = Frames.single(_ATOMS.positions, [("O", "H").index(s) for s in _ATOMS.symbols], _ATOMS.cell.array)


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Time some calls, after one that is not counted."""
    run()
    found = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def ceiling(dtype: Any) -> dict[str, float]:
    """GFLOP/s of one core in a product of the size of the first fitting layer."""
    rows, depth, columns = SHAPE
    rng = np.random.default_rng(0)
    a, w = (aligned(m * n, dtype).reshape(m, n) for m, n in ((rows, depth), (depth, columns)))
    a[:], w[:] = rng.normal(size=a.shape), rng.normal(size=w.shape)
    width = padded(columns, dtype)
    packed = aligned(depth * width, dtype)
    packed[:] = pack(w, width)
    c = Matrix(aligned(rows * width, dtype), 0, width)
    factors = Matrix(a.ravel(), 0, depth), Matrix(packed, 0, 0)
    ours = seconds(lambda: multiply(*factors, c, c, (rows, depth, width)), 20)
    torch.set_num_threads(1)
    tensors = torch.from_numpy(a), torch.from_numpy(w)
    out = torch.empty(rows, columns, dtype=tensors[0].dtype)
    theirs = seconds(lambda: torch.mm(*tensors, out=out), 20)
    work = 2e-9 * rows * depth * columns
    return {"ours": work / min(ours), "torch": work / min(theirs)}


def tiled(n: int) -> Frames:
    """Water, n times along each direction."""
    frame = WATER
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = (frame.positions + (grid @ frame.cell[0])[:, None]).reshape(-1, 3)
    return Frames.single(positions, np.tile(frame.types, n**3), n * frame.cell[0])


def moving(frame: Frames) -> Callable[[], Frames]:
    """A function that gives the structure with every atom a little elsewhere each time."""
    rng = np.random.default_rng(1)
    near = [frame.positions + rng.uniform(-0.02, 0.02, frame.positions.shape) for _ in range(4)]
    others = [Frames(x, frame.types, frame.cell, frame.pbc, frame.frame_idx) for x in near]
    count = iter(range(10**9))
    return lambda: others[next(count) % 4]


def fitting_operations(compiled: Compiled, frame: Frames) -> float:
    """Multiplications and additions of the products in the fitting nets, forward and backward, per atom."""
    model, found = compiled._model, 0.0
    share = np.bincount(frame.types, minlength=len(model.sel)) / frame.n_atoms
    for centre, weight in zip(model.centres[0], share, strict=True):
        layers = model.layers[centre["layer_at"] : centre["layer_at"] + centre["n_layers"]]
        found += weight * 4.0 * float((layers["n_in"] * layers["n_out"]).sum())
    return found


def measure(potential: Any, frames: Frames, repeats: int) -> dict[str, Any]:
    """Median and least time per evaluation, in µs per atom."""
    step = moving(frames)
    times = [1e6 * t / frames.n_atoms for t in seconds(lambda: potential.evaluate(step()), repeats)]
    return {"median": round(statistics.median(times), 3), "least": round(min(times), 3)}


def main() -> None:
    """Measure, print and keep."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", type=Path, default=ROOT / "examples" / "water" / "w.pt")
    options.add_argument("--sizes", default="192,1536,5184,12288")
    options.add_argument("--threads", default="1,2")
    options.add_argument("--repeats", type=int, default=7)
    given = options.parse_args()
    tiles = [round((int(size) / WATER.n_atoms) ** (1 / 3)) for size in given.sizes.split(",")]
    record: dict[str, Any] = {"model": given.model.name, "ceiling_gflops": {}, "precisions": {}}
    for precision in ("double", "mixed", "single"):
        potential = checkpoint.load(given.model, device="cpu", precision=precision)
        start = time.perf_counter()
        potential.warm_up()
        found: dict[str, Any] = {"warm_up_s": round(time.perf_counter() - start, 2), "us_per_atom": {}}
        dtype = np.float64 if precision == "double" else np.float32
        for threads in map(int, given.threads.split(",")):
            potential.accelerate(threads)
            rows = {str(tiled(n).n_atoms): measure(potential, tiled(n), given.repeats) for n in tiles}
            beads = Frames.concatenate([WATER] * 32)
            rows["32 x 192"] = measure(potential, beads, given.repeats)
            found["us_per_atom"][f"{threads} threads"] = rows
        before, frame = ceiling(dtype), tiled(2)
        compiled = potential._compilation.groups()[0][1]
        found["tables"] = vars(compiled.error)
        parts = [compiled.profile(frame) for _ in range(max(5, given.repeats))]
        stages = {name: 1e6 * min(p[name] for p in parts) / frame.n_atoms for name in parts[0]}
        found["stages_us_per_atom"] = {name: round(value, 3) for name, value in stages.items()}
        after = ceiling(dtype)
        top = {name: round(max(before[name], after[name]), 1) for name in before}
        record["ceiling_gflops"][np.dtype(dtype).name] = top
        operations = fitting_operations(compiled, frame)
        found["fitting_mflop_per_atom"] = round(1e-6 * operations, 3)
        found["fitting_gflops"] = round(1e-3 * operations / stages["fitting"], 1)
        found["fitting_of_ceiling"] = round(1e-3 * operations / stages["fitting"] / max(top.values()), 3)
        found["products_of_all"] = round(1e-3 * operations / max(top.values()) / sum(stages.values()), 3)
        record["precisions"][precision] = found
    lists = {}
    for n in tiles:
        frame = tiled(n)
        lists[str(frame.n_atoms)] = round(1e3 * min(seconds(lambda f=frame: build_rows(f, 6.0 + SKIN, 2), 5)), 3)
    record["list_ms"] = lists
    record["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    records.append("cpu", record)


if __name__ == "__main__":
    main()
