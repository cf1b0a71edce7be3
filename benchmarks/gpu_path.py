"""What `gpu.py` compares and measures, once it has seen that all is there."""

from __future__ import annotations

import argparse
import itertools
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import records
import torch
from structures import ROOT, SPECIES, WATER, tiles_of, water

from dpserver import neighbors
from dpserver.bench import moving
from dpserver.frames import Floats, Frames
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.neighbors import on_device
from dpserver.neighbors.rows import build_rows

STANDARD = {
    "type_map": list(SPECIES),
    "descriptor": {
        "type": "se_e2_a", "sel": [46, 92], "rcut": 6.0, "rcut_smth": 0.5, "neuron": [25, 50, 100], "axis_neuron": 16,
        "resnet_dt": False, "type_one_side": True,
    },
    "fitting_net": {"neuron": [240, 240, 240], "resnet_dt": True},
}  # fmt: skip
SWEEP = [(4, 1), (4, 2), (8, 1), (8, 2), (8, 4), (16, 2), (16, 4), (32, 4)]
"""Edges at a time and warps."""


def standard() -> Potential:
    """The usual network, with the statistics of examples/water and forces of a usual size."""
    potential = Potential(parse(ModelConfig, STANDARD), seed=1)
    known = checkpoint.restore(checkpoint.read(ROOT / "examples" / "water" / "w.pt"))
    potential.descriptor.davg.copy_(known.descriptor.davg)
    potential.descriptor.dstd.copy_(known.descriptor.dstd)
    potential.min_distance = known.min_distance
    size = float(np.sqrt(np.mean(potential.reference(WATER).forces ** 2)))
    with torch.no_grad():
        for net in potential.fitting:
            net[-1].weight /= size
    return potential


def place(model: Potential, device: str, precision: str) -> Potential:
    """A copy of a model, ready to evaluate."""
    copy = checkpoint.restore(checkpoint.contents(model))
    copy.set_precision(precision)
    for parameter in copy.parameters():
        parameter.requires_grad_(False)
    copy.to(device).eval()
    copy.accelerate()
    return copy


def awkward() -> dict[str, Frames]:
    """Structures that differ in what they ask of the lists."""
    rng = np.random.default_rng(2)
    shear = np.eye(3) + rng.uniform(-0.2, 0.2, (3, 3))
    double = water(2)
    order = rng.permutation(double.n_atoms)
    few = np.r_[0:4, 64:72]
    return {
        "liquid": WATER,
        "sheared": Frames.single(WATER.positions @ shear, WATER.types, WATER.cell[0] @ shear),
        "shuffled 2x2x2": Frames.single(double.positions[order], double.types[order], double.cell[0]),
        "cluster": Frames.single(WATER.positions[few], WATER.types[few]),
        "32 beads": Frames.concatenate(
            Frames.single(WATER.positions + rng.normal(0, 0.03, (192, 3)), WATER.types, WATER.cell[0])
            for _ in range(32)
        ),
    }


def relative(found: Floats, expected: Floats) -> float:
    """Largest deviation, relative to the largest number."""
    return float(np.abs(found - expected).max() / np.abs(expected).max())


def compare(model: Potential) -> dict[str, Any]:
    """Deviations from the reference in float64 on the CPU; the reference itself on the GPU beside them."""
    oracle = place(model, "cpu", "double")
    found: dict[str, Any] = {}
    for name, frames in awkward().items():
        exact, row = oracle.reference(frames), {}
        for precision in ("double", "mixed", "single"):
            on_gpu = place(model, "cuda", precision)
            result, again = on_gpu.evaluate(frames), on_gpu.evaluate(frames)
            row[precision] = {
                "energy": relative(result.energy, exact.energy),
                "forces": relative(result.forces, exact.forces),
                "virial": relative(result.virial, exact.virial),
                "is_same_again": bool((result.forces == again.forces).all() and (result.energy == again.energy).all()),
            }
        row["torch, double"] = {
            "forces": relative(place(model, "cuda", "double").reference(frames).forces, exact.forces)
        }
        found[name] = row
        forces = ", ".join(f"{kind} {numbers['forces']:.1e}" for kind, numbers in row.items())
        print(f"  {name:16s} forces: {forces}")
    return found


def seconds(run: Callable[[], object], repeats: int) -> list[float]:
    """Time some calls, after two that are not counted: one compiles, one is the first replay."""
    run(), run()
    found = []
    for _ in range(repeats):
        torch.cuda.synchronize()
        start = time.perf_counter()
        run()
        found.append(time.perf_counter() - start)
    return found


def measure(potential: Potential, frames: Frames, repeats: int) -> dict[str, Any]:
    """Median over whole evaluations, and the memory they take."""
    torch.cuda.reset_peak_memory_stats()
    step = moving(frames)
    times = seconds(lambda: potential.evaluate(step()), repeats)
    middle = statistics.median(times)
    return {
        "ms": round(1e3 * middle, 3),
        "least_ms": round(1e3 * min(times), 3),
        "us_per_atom": round(1e6 * middle / frames.n_atoms, 4),
        "million_atom_steps_per_s": round(1e-6 * frames.n_atoms / middle, 3),
        "memory_gb": round(torch.cuda.max_memory_allocated() / 2**30, 3),
    }


def profile(potential: Potential, frames: Frames) -> dict[str, float]:
    """µs on the device by kernel, of one evaluation; what the host adds is the rest."""
    from torch.profiler import ProfilerActivity
    from torch.profiler import profile as profiler

    step = moving(frames)
    potential.evaluate(step())
    with profiler(activities=[ProfilerActivity.CUDA]) as watched:
        for _ in range(5):
            potential.evaluate(step())
    times = {event.key[:60]: event.device_time_total / 5 for event in watched.key_averages()}
    return {key: round(t, 1) for key, t in sorted(times.items(), key=lambda item: -item[1])[:14]}


def list_times(frames: Frames) -> dict[str, float]:
    """Milliseconds that new lists take on the device, by what makes them; on one core of the host beside it."""
    device, found = torch.device("cuda"), {}
    chosen = on_device.uses_nvalchemi
    ways = {"torch": False, **({"nvalchemi": True} if chosen(frames, device) else {})}
    for name, is_used in ways.items():
        on_device.uses_nvalchemi = lambda *_, is_used=is_used: is_used
        times = seconds(lambda: (on_device.build_on_device(frames, 7.0, 2, device), torch.cuda.synchronize()), 5)
        found[name] = round(1e3 * statistics.median(times), 3)
    on_device.uses_nvalchemi = chosen
    times = seconds(lambda: [build_rows(frame, 7.0, 2) for frame in frames], 3)
    found["host"] = round(1e3 * statistics.median(times), 3)
    return found


def ceilings() -> dict[str, float]:
    """What the device reaches here: products of the size of a first layer, and copies."""
    found = {}
    for name, dtype in (("float64", torch.float64), ("float32", torch.float32)):
        a, b = (torch.randn(*shape, dtype=dtype, device="cuda") for shape in ((32768, 800), (800, 240)))
        least = min(seconds(lambda a=a, b=b: (a @ b, torch.cuda.synchronize()), 10))
        found[f"product_{name}_tflops"] = round(2e-12 * 32768 * 800 * 240 / least, 2)
    x = torch.empty(1 << 28, device="cuda")
    y = torch.empty_like(x)
    least = min(seconds(lambda: (y.copy_(x), torch.cuda.synchronize()), 10))
    found["copy_tb_per_s"] = round(2e-12 * 4 * x.numel() / least, 2)
    return found


def sweep(model: Potential, frames: Frames, precision: str) -> dict[str, float]:
    """Milliseconds of whole evaluations, for other sizes of what the two large kernels take at a time."""
    from dpserver.kernels import fused

    found = {}
    for name, launch in (("moments", fused.MOMENTS), ("gradients", fused.GRADIENTS)):
        before = dict(launch)
        for edges, warps in SWEEP:
            launch.update(EDGES=edges, num_warps=warps)
            try:
                found[f"{name} {edges} edges {warps} warps"] = measure(place(model, "cuda", precision), frames, 5)["ms"]
            except Exception as error:
                found[f"{name} {edges} edges {warps} warps"] = float("nan")
                print(f"  {name} {edges} {warps}: {type(error).__name__}")
        launch.update(before)
    return found


def run(given: argparse.Namespace) -> None:
    """Compare, measure, print and keep.

    Args:
        given: the options of `gpu.py`.
    """
    model = standard() if given.model is None else checkpoint.restore(checkpoint.read(given.model))
    record: dict[str, Any] = {"model": "standard, random weights" if given.model is None else given.model.name}
    record["lists_of_the_reference"] = neighbors.builder()
    print(f"against the reference on the CPU, float64, with neighbour lists by {neighbors.builder()}:")
    record["deviations"] = compare(model)
    record["ceilings"] = ceilings()
    print(record["ceilings"])
    record["precisions"] = {}
    for precision in ("double", "mixed", "single"):
        start = time.perf_counter()
        potential = place(model, "cuda", precision)
        potential.warm_up()
        rows = {"warm_up_s": round(time.perf_counter() - start, 2)}
        batches = {str(n): water(tiles_of(int(n))) for n in given.sizes.split(",")}
        batches |= {f"{n} x 192": Frames.concatenate([WATER] * int(n)) for n in given.beads.split(",")}
        for name, frames in batches.items():
            rows[name] = measure(potential, frames, given.repeats)
            print(f"{precision:7s} {name:>9s}  " + "  ".join(f"{k} {v}" for k, v in rows[name].items()))
        record["precisions"][precision] = rows
        largest = water(tiles_of(int(given.sizes.split(",")[-1])))
        for name, frames in ((str(largest.n_atoms), largest), ("32 x 192", Frames.concatenate([WATER] * 32))):
            rows[f"kernels_us {name}"] = profile(potential, frames)
            for kernel, t in itertools.islice(rows[f"kernels_us {name}"].items(), 10):
                print(f"    {t:10.1f} µs  {kernel}")
    record["list_ms"] = {str(n): list_times(water(tiles_of(int(n)))) for n in given.sizes.split(",")}
    record["list_ms"] |= {
        f"{n} x 192": list_times(Frames.concatenate([WATER] * int(n))) for n in given.beads.split(",")
    }
    print("lists, ms:", record["list_ms"])
    slow = place(model, "cuda", "double")
    times = seconds(lambda: slow.reference(WATER), 5)
    record["torch_reference_192_ms"] = round(1e3 * statistics.median(times), 2)
    if not given.no_sweep:
        record["sweep_ms"] = {p: sweep(model, water(6), p) for p in ("double", "mixed")}
        for precision, found in record["sweep_ms"].items():
            print(precision, found)
    records.append("gpu", record, f"{torch.cuda.get_device_name()}, CUDA {torch.version.cuda}")
