"""The CPU path: µs per atom over sizes, threads and precisions, where the time goes, and how near the limit that is.

    python benchmarks/cpu.py [w.pt] [--sizes 192,1536,5184,12288] [--threads 1,2] [--repeats 7]

Water, the structure of examples/water tiled; a model of DeePMD-kit will do as well. Atoms move by 0.02 Å between
evaluations, within the skin of their neighbour lists; making the lists anew is timed by itself. The ceiling is what a
product of the size of the first fitting layer reaches on one core in the same seconds, by our kernel and by torch's
library.

The descriptors `loc_frame`, with the network of the 2018 paper, and `se_e2_r`, with that of DeePMD-kit's example, are
timed with random weights, by the kernels and by torch, in one thread.

Appends a record to benchmarks/results/cpu.json. Let the machine be quiet.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import resource
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import records
import torch
from structures import ROOT, WATER, tiles_of, water

from dpserver.bench import Timing, ceiling, measure, stages
from dpserver.frames import Frames
from dpserver.models import checkpoint
from dpserver.models.accelerated import SKIN
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.neighbors.rows import build_rows

OTHERS: dict[str, dict[str, Any]] = {
    "loc_frame": {
        "descriptor": {
            "type": "loc_frame",
            "sel_a": [16, 32],
            "sel_r": [30, 60],
            "rcut": 6.0,
            "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
        },
        "fitting_net": {"neuron": [240, 120, 60, 30, 10]},
    },
    "se_e2_r": {
        "descriptor": {"type": "se_e2_r", "sel": [46, 92], "rcut": 6.0, "rcut_smth": 0.5, "neuron": [5, 10, 20]},
        "fitting_net": {"neuron": [120, 120, 120]},
    },
}
"""Networks of other descriptors."""


def others(n: int, repeats: int) -> dict[str, Any]:
    """µs per atom of other descriptors in one thread, by the kernels and by torch, and by stage."""
    found: dict[str, Any] = {}
    torch.set_num_threads(1)
    for name, sections in OTHERS.items():
        frame = water(n)
        for precision in ("double", "mixed"):
            model = parse(ModelConfig, {"type_map": ["O", "H"], **sections})
            potential = Potential(model, precision="double")
            potential.descriptor.fit_normalisation([potential.graph(WATER)], 0.01)
            potential.set_precision(precision)
            rows = {"torch": row(measure(potential, frame, 3))}
            potential.accelerate(1)
            rows["kernels"] = row(measure(potential, frame, repeats))
            parts = stages(potential, frame, max(5, repeats))
            rows["stages"] = {part: round(1e6 * t / frame.n_atoms, 3) for part, t in parts.seconds.items()}
            found[f"{name}, {precision}"] = {"atoms": frame.n_atoms, **rows}
    return found


def row(timing: Timing) -> dict[str, float]:
    """Median and least time per evaluation, in µs per atom."""
    return {name: round(1e6 * getattr(timing, name) / timing.n_atoms, 3) for name in ("median", "least")}


def list_seconds(frame: Frames) -> float:
    """Least time of some in which the neighbour lists of a structure are made."""
    found = []
    for _ in range(6):
        start = time.perf_counter()
        build_rows(frame, 6.0 + SKIN, 2)
        found.append(time.perf_counter() - start)
    return min(found[1:])


def main() -> None:
    """Measure, print and keep."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", type=Path, default=ROOT / "examples" / "water" / "w.pt")
    options.add_argument("--sizes", default="192,1536,5184,12288")
    options.add_argument("--threads", default="1,2")
    options.add_argument("--repeats", type=int, default=7)
    given = options.parse_args()
    tiles = [tiles_of(int(size)) for size in given.sizes.split(",")]
    record: dict[str, Any] = {"model": given.model.name, "ceiling_gflops": {}, "precisions": {}}
    for precision in ("double", "mixed", "single"):
        potential = checkpoint.load(given.model, device="cpu", precision=precision)
        start = time.perf_counter()
        potential.warm_up()
        found: dict[str, Any] = {"warm_up_s": round(time.perf_counter() - start, 2), "us_per_atom": {}}
        dtype = torch.float64 if precision == "double" else torch.float32
        beads = Frames.concatenate([WATER] * 32)
        for threads in map(int, given.threads.split(",")):
            potential.accelerate(threads)
            rows = {str(water(n).n_atoms): row(measure(potential, water(n), given.repeats)) for n in tiles}
            rows["32 x 192"] = row(measure(potential, beads, given.repeats))
            found["us_per_atom"][f"{threads} threads"] = rows
        frame, before = water(2), ceiling(dtype, potential.device)
        parts = stages(potential, frame, max(5, given.repeats))
        after = ceiling(dtype, potential.device)
        top = {name: round(max(before[name], after[name]), 1) for name in before}
        found["tables"] = asdict(potential.compiled()[0].error)
        found["stages_us_per_atom"] = {name: round(1e6 * t / frame.n_atoms, 3) for name, t in parts.seconds.items()}
        record["ceiling_gflops"][str(dtype).removeprefix("torch.")] = top
        found["fitting_mflop_per_atom"] = round(1e-6 * parts.products / frame.n_atoms, 3)
        found["fitting_gflops"] = round(1e-9 * parts.products / parts.seconds["fitting"], 1)
        found["fitting_of_ceiling"] = round(found["fitting_gflops"] / max(top.values()), 3)
        at_ceiling = 1e-9 * parts.products / max(top.values())
        found["products_of_all"] = round(at_ceiling / sum(parts.seconds.values()), 3)
        record["precisions"][precision] = found
    record["others_us_per_atom"] = [others(n, given.repeats) for n in tiles[:2]]
    record["list_ms"] = {str(water(n).n_atoms): round(1e3 * list_seconds(water(n)), 3) for n in tiles}
    record["peak_memory_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    records.append("cpu", record)


if __name__ == "__main__":
    main()
