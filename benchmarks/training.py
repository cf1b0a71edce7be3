"""Training steps beside DeePMD-kit's: seconds for 100 steps of its own water example, in double precision.

    python benchmarks/training.py [DATA] [--peer VENV] [--blocks 5] [--threads 2] [--quick]

DATA is the folder of DeePMD-kit's examples/water with the systems data_0 to data_2, 192 atoms each; by default it is
`$DPSERVER_SHARED/data/water`, or `science/data/water` in the repository. The network is that example's too (25-50-100,
axis 16, 240x3), a batch one structure. Steps go in blocks of 100 on each side, in turns: ours in this process, theirs
as `dp train` (TensorFlow) of two blocks, of which the second counts, so that neither start-up nor compilation is in it.
We keep the neighbours of batches of one structure from epoch to epoch, as any training longer than one has them: 320
steps of ours, one epoch of the 320 frames, come before those that count. Also ours in mixed precision, and by automatic
differentiation throughout.

Appends a record to benchmarks/results/training.json. Let the machine be quiet.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as `dpserver train` does

import argparse
import json
import re
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import records
import torch

from dpserver.errors import ConfigError
from dpserver.train.config import load_input
from dpserver.train.loop import Trainer

BLOCK = 100
EPOCH = 320
"""Steps through all frames of the three systems."""
SYSTEMS = ("data_0", "data_1", "data_2")
MODEL = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_e2_a",
        "sel": [46, 92],
        "rcut_smth": 0.5,
        "rcut": 6.0,
        "neuron": [25, 50, 100],
        "axis_neuron": 16,
        "precision": "float64",
    },
    "fitting_net": {"neuron": [240, 240, 240], "resnet_dt": True, "precision": "float64"},
}


def write_input(data: Path, folder: Path, n_steps: int, **sections: Any) -> Path:
    """An input that both programs take."""
    values = {
        "model": MODEL,
        "learning_rate": {"type": "exp", "decay_steps": 5000, "start_lr": 0.001, "stop_lr": 3.51e-8},
        "loss": {
            "start_pref_e": 0.02,
            "limit_pref_e": 1,
            "start_pref_f": 1000,
            "limit_pref_f": 1,
            "start_pref_v": 0,
            "limit_pref_v": 0,
        },
        "training": {
            "training_data": {"systems": [str((data / name).resolve()) for name in SYSTEMS], "batch_size": 1},
            "numb_steps": n_steps,
            "seed": 10,
            "disp_freq": BLOCK,
            "save_freq": 1_000_000,
        },
        **sections,
    }
    path = folder / "input.json"
    path.write_text(json.dumps(values), encoding="utf-8")
    return path


def ours(
    data: Path, folder: Path, precision: str, *, is_differentiated: bool = False
) -> tuple[str, Callable[[], float]]:
    """How we take a step, and what takes a block of them and tells the seconds."""
    path = write_input(data, folder, 1_000_000_000, dpserver={"precision": precision})
    trainer = Trainer(load_input(path), folder)
    if is_differentiated:
        trainer.evaluator.load_state_dict({"count": None})

    def block(n_steps: int = BLOCK) -> float:
        stop_at = trainer.step + n_steps
        start = time.perf_counter()
        trainer.run(should_stop=lambda: trainer.step >= stop_at)
        return (time.perf_counter() - start) * BLOCK / n_steps

    trainer.save_checkpoint = lambda: folder  # type: ignore[method-assign]  # no files between blocks
    block(EPOCH)
    return trainer.evaluator.describe(), block


def theirs(data: Path, folder: Path, peer: Path, threads: int) -> float:
    """Seconds that DeePMD-kit gives for its second block of steps."""
    write_input(data, folder, 2 * BLOCK)
    environment = {
        **{name: value for name, value in os.environ.items() if name != "OMP_WAIT_POLICY"},
        "OMP_NUM_THREADS": str(threads),
        "DP_INTRA_OP_PARALLELISM_THREADS": str(threads),
        "DP_INTER_OP_PARALLELISM_THREADS": "1",
    }
    done = subprocess.run(
        [peer / "bin" / "dp", "--tf", "train", "input.json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    found = re.findall(r"Batch\s+(\d+): total wall time = ([\d.]+) s", done.stderr + done.stdout)
    return float(dict(found)[str(2 * BLOCK)])


def speedup(seconds: Mapping[str, Sequence[float]]) -> float | None:
    """How much faster we are in double precision: the median over turns, in each of which both saw one machine."""
    if "deepmd" not in seconds:
        return None
    return statistics.median(b / a for a, b in zip(seconds["double"], seconds["deepmd"], strict=True))


def main() -> None:
    """Measure in turns and append the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    shared = Path(os.environ.get("DPSERVER_SHARED") or Path(__file__).resolve().parents[1] / "science")
    parser.add_argument("data", type=Path, nargs="?", default=shared / "data" / "water")
    parser.add_argument("--peer", type=Path, default=os.environ.get("DPSERVER_PEER"))
    parser.add_argument("--blocks", type=int, default=5)
    parser.add_argument("--quick", action="store_true", help="one block of each")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    options = parser.parse_args()
    if missing := [name for name in SYSTEMS if not (options.data / name).is_dir()]:
        raise ConfigError(f"{options.data} has no {missing[0]}; give the folder of DeePMD-kit's examples/water/data")
    torch.set_num_threads(options.threads)
    with tempfile.TemporaryDirectory() as folder:
        places = {name: Path(folder) / name for name in ("double", "mixed", "differentiated", "deepmd")}
        for place in places.values():
            place.mkdir()
        how, double = ours(options.data, places["double"], "double")
        takers = {
            "double": double,
            "mixed": ours(options.data, places["mixed"], "mixed")[1],
            "differentiated": ours(options.data, places["differentiated"], "double", is_differentiated=True)[1],
        }
        if options.peer is not None:
            takers["deepmd"] = lambda: theirs(options.data, places["deepmd"], options.peer, options.threads)
        seconds: dict[str, list[float]] = {name: [] for name in takers}
        for _ in range(1 if options.quick else options.blocks):
            for name, take in takers.items():
                seconds[name].append(take())
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    records.append(
        "training",
        {
            "what": f"seconds for {BLOCK} steps of 192 atoms, {options.threads} threads",
            "step": how,
            "seconds": seconds,
            "medians": medians,
            "speedup": speedup(seconds),
        },
    )


if __name__ == "__main__":
    main()
