"""The same water with dpserver and with everything one would use in its place, in one run.

    python benchmarks/peers.py MODEL.dp --peer VENV --peer-model MODEL_compressed.pb [--peer-plain MODEL.pth]
        [--sizes 192,1536,5184,12288,98304] [--rounds 5] [--only 'dpserver*,LAMMPS*'] [--quick] [--no-record]

MODEL.dp holds the weights for us, MODEL_compressed.pb the same for DeePMD-kit (`dp convert-backend`, `dp compress`);
VENV is a virtual environment with `dp_ipi`, `lmp`, `mpirun` and the Python package `deepmd`. DPSERVER_PEER,
DPSERVER_PEER_MODEL and DPSERVER_PEER_PLAIN may say so instead.

Liquid water, energies, forces and virials, on the cores that this process may use. The contestants:

- dpserver behind the i-PI socket: one daemon with all cores, one pinned to a single core, and one on MPI ranks;
- `dp_ipi`, DeePMD-kit's client, behind the same socket and asked by the same probe (`probe.py`), with one thread and
  with all; for beads as many of them as there are cores;
- LAMMPS with `pair_style deepmd`, one rank and as many as there are cores, a thread each;
- `DeepPot.eval`, of TensorFlow and PyTorch, and `dpserver.load().evaluate`, called from Python.

Everyone follows dynamics at constant energy, 300 K and 0.5 fs a step, so that neighbour lists go stale as in a run:
LAMMPS its own, with a skin of 2 Å; the others a trajectory that was recorded before (`trajectories.py`), from the
first step to the last, so that our lists, with a skin of 1 Å, are made anew every 20 steps or so, which counts. Each
turn of LAMMPS is a `run` that begins with a new list, which does not count, and hardly needs another one before it
ends: its figures are nearly without lists.

All contestants of a size are started and warmed up; then they take turns, A B C A B C. In each they evaluate as many
steps as fit in two seconds, 40 at most, ours at least 20 (10 of the largest structure) and LAMMPS at least 5; `dp_ipi`
and `DeepPot.eval` as many as fit in half a second, 10 at most. A sample is the mean over the steps of a turn, a figure
the median of the samples. The socket counts where there is one. Who has no turn sleeps, and the ranks of LAMMPS, which
would not, are stopped; those of our daemon are not, and take 3 to 5 % of a core from whoever is timed.

98,304 atoms are evaluated by dpserver alone. Appends a record to benchmarks/results/peers.json, draws
docs/images/peers.png and puts the tables into docs/performance.md and README.md (`peers_report.py` does these again).
Let the machine be quiet; it takes half an hour, and 20 GB, as everybody is there at once.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import json
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from fnmatch import fnmatch
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy as np
import peers_report
import records
import torch
from contestants import CORES, Contestant, Daemon, DpIpi, Evaluator, Lammps, Models
from peers_report import counted
from probe import Answer
from structures import tiles_of
from trajectories import KELVIN, TIME_STEP, Trajectory, record

import dpserver
from dpserver import neighbors
from dpserver.bench import ceiling
from dpserver.frames import Frames

HERE = Path(__file__).resolve().parent
BEADS = 32
SETTLING = 40
"""Steps after which simulations that began with the same structure are far enough apart to be beads."""
MOST_FOR_PEERS = 20_000
MOST_FOR_PYTORCH = 2_000
"""Atoms: beyond this its memory, or patience, ends."""
MOST_FOR_REFERENCE = 2_000
PRECISIONS = ("double", "mixed")

N_CORES = len(CORES)


@dataclass(frozen=True)
class Entry:
    """A contestant that is to be: what a table calls it, what it works on, and how it is made in a folder."""

    name: str
    trajectory: Trajectory
    make: Callable[[Path, Trajectory], Contestant]

    @property
    def n_atoms(self) -> int:
        """Atoms of a step."""
        return self.trajectory.n_atoms * self.trajectory.n_beads


def main() -> None:
    """Measure, keep, draw and print."""
    given = _arguments()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    models = Models(given.model.resolve(), given.peer_model.resolve(), given.peer_plain, given.peer.absolute())
    sizes = [int(size) for size in given.sizes.split(",")]
    if given.quick:
        Contestant.seconds_per_turn = 0.5
    found: dict[str, Any] = {
        "model": f"{models.own.parent.name}/{models.own.name}",
        "cores": N_CORES,
        "rounds": given.rounds,
        "is_quick": given.quick,
        "dynamics": f"{KELVIN:g} K, {TIME_STEP:g} fs a step",
        "peers": _versions_in(models.peer),
    }
    start = time.monotonic()
    potential = dpserver.load(models.own, device="cpu", precision="mixed", threads=N_CORES)
    found |= limits(models.own)
    found["atoms"], found["agreement"] = {}, {}
    with tempfile.TemporaryDirectory(prefix="dpserver-peers-") as name:
        folder = Path(name)
        n_steps = 6 + given.rounds * Contestant.most_steps
        for size in sizes:
            trajectory = recorded(potential, size, n_steps)
            entries = chosen(entries_of(trajectory, models), given.only)
            rows, answers = rotate(entries, given.rounds, folder / str(size))
            found["atoms"][str(trajectory.n_atoms)] = rows
            if trajectory.n_atoms <= MOST_FOR_REFERENCE:
                found["agreement"][str(trajectory.n_atoms)] = agreement(models.own, trajectory.frames(0), answers)
        if given.beads:
            entries = chosen(bead_entries(potential, models, given.beads, n_steps), given.only)
            found["beads"], _ = rotate(entries, given.rounds, folder / "beads")
            found["n_beads"] = given.beads
    if not given.no_training:
        found["training"] = training(models, given.quick)
    again = limits(models.own)["ceiling_gflops"]
    found["ceiling_gflops"] = {name: max(value, again[name]) for name, value in found["ceiling_gflops"].items()}
    found["minutes"] = round((time.monotonic() - start) / 60, 1)
    if given.no_record:
        print(json.dumps(found, indent=2))
    else:
        records.append("peers", found)
        if not given.quick:
            peers_report.publish({**found, **records.provenance()})
    print(peers_report.markdown(found))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)

    def path(name: str, variable: str, is_needed: bool, text: str) -> None:
        default = os.environ.get(variable)
        default_path = None if default is None else Path(default)
        parser.add_argument(
            name, type=Path, default=default_path, required=is_needed and default is None, help=f"{text} ({variable})"
        )

    parser.add_argument("model", type=Path, help="the weights for dpserver")
    path("--peer", "DPSERVER_PEER", True, "virtual environment with DeePMD-kit and LAMMPS")
    path("--peer-model", "DPSERVER_PEER_MODEL", True, "the weights compressed for TensorFlow, .pb")
    path("--peer-plain", "DPSERVER_PEER_PLAIN", False, "the weights for PyTorch, .pth")
    parser.add_argument("--sizes", default=None, help="atoms, comma separated")
    parser.add_argument("--beads", type=int, default=BEADS, help="structures of 192 atoms in a batch; 0 for none")
    parser.add_argument("--rounds", type=int, default=None, help="turns of each contestant")
    parser.add_argument("--only", default="*", help="names of contestants, comma separated, with * and ?")
    parser.add_argument("--quick", action="store_true", help="two sizes and short turns, to see whether all works")
    parser.add_argument("--no-training", action="store_true", help="without the time of a training step")
    parser.add_argument("--no-record", action="store_true", help="print only")
    given = parser.parse_args()
    given.sizes = given.sizes or ("192,1536" if given.quick else "192,1536,5184,12288,98304")
    given.rounds = given.rounds or (2 if given.quick else 5)
    return given


def recorded(potential: Any, size: int, n_steps: int) -> Trajectory:
    """A trajectory of about so many atoms; of large structures an eighth or less is integrated, and tiled."""
    tile = tiles_of(size)
    unit = 2 if tile > 3 and tile % 2 == 0 else tile
    trajectory = record(lambda frames: potential.evaluate(frames).forces, unit, 1, n_steps)
    n = tile // unit
    return replace(trajectory, tiles=(n, n, n))


def entries_of(trajectory: Trajectory, models: Models) -> list[Entry]:
    """All contestants of one structure."""
    own, n_atoms = models.own, trajectory.n_atoms
    python = Path(sys.executable)

    def daemon(precision: str, threads: int, **more: Any) -> Callable[[Path, Trajectory], Contestant]:
        return lambda folder, t: Daemon(folder, t, own, precision, threads, **more)

    kinds: dict[str, Callable[[Path, Trajectory], Contestant]] = {
        f"dpserver {precision}": daemon(precision, N_CORES) for precision in PRECISIONS
    }
    if n_atoms <= MOST_FOR_PEERS:
        for p in PRECISIONS if N_CORES > 1 else ():
            kinds[f"dpserver {p}, {counted(N_CORES, 'rank')}"] = daemon(p, 1, ranks=N_CORES)
        for n in sorted({1, N_CORES}):
            kinds[f"dp_ipi, {counted(n, 'thread')}"] = lambda folder, t, n=n: DpIpi(folder, t, models, n)
            kinds[f"LAMMPS, {counted(n, 'rank')}"] = lambda folder, t, n=n: Lammps(folder, t, models, n)
        for p in PRECISIONS:
            kinds[f"dpserver {p}, 1 core"] = daemon(p, 1, is_pinned=True)
        kinds["dpserver.load, double"] = lambda folder, t: Evaluator(folder, t, python, "double", own)
        peer = models.peer / "bin" / "python"
        kinds["DeepPot.eval, TensorFlow"] = lambda folder, t: Evaluator(folder, t, peer, "deepmd", models.compressed)
        plain = models.plain
        if plain is not None and n_atoms <= MOST_FOR_PYTORCH:
            kinds["DeepPot.eval, PyTorch"] = lambda folder, t: Evaluator(folder, t, peer, "deepmd", plain.resolve())
    return [Entry(name, trajectory, make) for name, make in kinds.items()]


def bead_entries(potential: Any, models: Models, n_beads: int, n_steps: int) -> list[Entry]:
    """Many structures of 192 atoms at a time, and a single one of as many atoms as 32 of them."""

    def forces(frames: Frames) -> Any:
        return potential.evaluate(frames).forces

    beads = record(forces, 1, n_beads, n_steps + SETTLING)
    beads = replace(beads, positions=beads.positions[SETTLING:])
    single = replace(record(forces, 2, 1, n_steps), tiles=(2, 2, 1))
    found = []
    for p in PRECISIONS:
        found += [
            Entry(
                f"dpserver {p}, {n_beads} connections",
                beads,
                lambda folder, t, p=p: Daemon(folder, t, models.own, p, N_CORES, n_lines=n_beads),
            ),
            Entry(
                f"dpserver {p}, native batch",
                beads,
                lambda folder, t, p=p: Daemon(folder, t, models.own, p, N_CORES, per_message=n_beads),
            ),
            Entry(
                f"dpserver {p}, one of {single.n_atoms} atoms",
                single,
                lambda folder, t, p=p: Daemon(folder, t, models.own, p, N_CORES),
            ),
        ]
    peers = Entry(f"{N_CORES} dp_ipi", beads, lambda folder, t: DpIpi(folder, t, models, 1, n_lines=N_CORES))
    return [*found, peers]


def chosen(entries: Sequence[Entry], only: str) -> list[Entry]:
    """Those whose names match."""
    return [entry for entry in entries if any(fnmatch(entry.name, pattern) for pattern in only.split(","))]


def rotate(entries: Sequence[Entry], rounds: int, folder: Path) -> tuple[dict[str, Any], dict[str, Answer]]:
    """Let contestants take turns.

    Returns:
        For each its samples and the rest, or how it has failed; and what those that answer said of the first structure.
    """
    rows: dict[str, Any] = {}
    answers: dict[str, Answer] = {}
    with ExitStack() as stack:
        ready: dict[str, tuple[Contestant, int]] = {}
        for number, entry in enumerate(entries):
            try:
                contestant = entry.make(folder / str(number), entry.trajectory)
                stack.callback(contestant.close)
                answer = contestant.start()
                seconds = contestant.turn(contestant.warm_up_steps)
            except (OSError, RuntimeError, ValueError) as error:
                rows[entry.name] = {"fails": str(error)}
                print(f"{entry.n_atoms:7d}  {entry.name}: {error}", flush=True)
                continue
            if answer is not None:
                answers[entry.name] = answer
            ready[entry.name] = contestant, contestant.steps_of(min(seconds))
            rows[entry.name] = {"samples": [], "slowest": 0.0, "steps_per_turn": ready[entry.name][1]}
        for _ in range(rounds):
            for entry in entries:
                if "samples" in rows.get(entry.name, {}):
                    contestant, n_steps = ready[entry.name]
                    _take_turn(contestant, n_steps, entry.n_atoms, rows[entry.name])
        for name, (contestant, _) in ready.items():
            rows[name]["peak_memory_mb"] = round(contestant.memory_mb())
    for entry in entries:
        row = rows[entry.name]
        if "samples" in row:
            row["us_per_atom"] = round(statistics.median(row["samples"]), 3)
            print(f"{entry.n_atoms:7d}  {entry.name:32s} {row['us_per_atom']:9.2f} µs/atom", flush=True)
    return rows, answers


def _take_turn(contestant: Contestant, n_steps: int, n_atoms: int, row: dict[str, Any]) -> None:
    """One more sample, µs per atom; a contestant that fails loses those it has."""
    try:
        seconds = [1e6 * s / n_atoms for s in contestant.turn(n_steps)]
    except (OSError, RuntimeError, ValueError) as error:
        row.pop("samples")
        row["fails"] = str(error)
        return
    row["samples"].append(round(statistics.fmean(seconds), 3))
    row["slowest"] = round(max(row["slowest"], *seconds), 3)


def agreement(model: Path, frames: Frames, answers: dict[str, Answer]) -> dict[str, dict[str, float]]:
    """Largest deviation from the reference path, relative to the largest force, and of the energy, relative."""
    exact = dpserver.load(model, device="cpu", precision="double").reference(frames)
    size, found = np.abs(exact.forces).max(), {}
    for name, answer in answers.items():
        row = {"energy": float(abs(answer.energy / exact.energy[0] - 1))}
        if len(answer.forces):
            row["forces"] = float(np.abs(answer.forces - exact.forces).max() / size)
        found[name] = row
    return found


def limits(model: Path) -> dict[str, Any]:
    """What one core reaches in matrix products, and what an atom needs.

    An edge and a channel take 18 operations on the way to the moments (the polynomial of the table and four sums) and
    36 on the way back (it, its derivative, and eight products).
    """
    cpu = torch.device("cpu")
    reached = {
        str(dtype).removeprefix("torch."): round(max(ceiling(dtype, cpu).values()), 1)
        for dtype in (torch.float64, torch.float32)
    }
    found: dict[str, Any] = {"ceiling_gflops": reached}
    potential = dpserver.load(model, device="cpu", precision="double", threads=1)
    compiled = potential.compiled()[0]
    if compiled is not None:
        from structures import WATER

        products = compiled.products(WATER) / WATER.n_atoms
        edges = len(neighbors.build(WATER, potential.rcut)) / WATER.n_atoms
        tables = 54.0 * edges * potential.config.descriptor.neuron[-1]
        found["mflop_per_atom"] = {"products": round(1e-6 * products, 3), "tables": round(1e-6 * tables, 3)}
    return found


def training(models: Models, is_quick: bool) -> Any:
    """The record of `training.py`, where there is one; its `speedup` is the time of TensorFlow over ours."""
    script = HERE / "training.py"
    if not script.exists():
        return None
    command = [sys.executable, str(script), "--peer", str(models.peer), *(["--quick"] if is_quick else [])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        return {"fails": done.stderr[-400:]}
    return json.loads((records.RESULTS / "training.json").read_text(encoding="utf-8"))[-1]


def _versions_in(venv: Path) -> dict[str, str]:
    """Versions of the peers."""
    folders = [str(folder) for folder in venv.glob("lib/python3*/site-packages")]
    names = ("deepmd-kit", "lammps", "tensorflow", "tensorflow-cpu", "torch", "mpich")
    found = {d.name.lower().replace("_", "-"): d.version for d in distributions(path=folders)}
    return {name: found[name] for name in names if name in found}


if __name__ == "__main__":
    main()
