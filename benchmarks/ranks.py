"""Ranks of one thread against one rank of one thread, side by side: µs per atom, efficiency, and where a step goes.

    mpiexec -n 2 python benchmarks/ranks.py [w.pt] [--cases 1536,5184,12288,32x192] [--repeats 7] [--precision double]

Water, the structure of examples/water tiled; `32x192` are 32 structures of 192 atoms. Atoms move by 0.02 Å between
evaluations, within the skin of neighbour lists and parts. Rank 0 evaluates each case alone and over all ranks in
turns, so that both see the same machine, each time twice with 2 ms in between, of which the second counts, as a step of
a run follows another; efficiency is the median of the ratios, divided by the number of ranks. While it is alone the
others wait as they do in a daemon. Also how long an idle rank takes to notice a message, and what of a
core it uses meanwhile.

Appends a record to benchmarks/results/ranks.json. Let the machine be quiet, and give it a core for each rank.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import statistics
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
from dpserver.parallel.crew import SPIN, Crew
from dpserver.parallel.mpi import join_all, load_mpi
from dpserver.parallel.ranked import RankedModel, Timings
from dpserver.parallel.waiting import Patience
from dpserver.parallel.worker import Worker

TILES = {192: 1, 1536: 2, 5184: 3, 12288: 4, 24000: 5, 41472: 6, 98304: 8}
IDLE_SECONDS = 5.0
BETWEEN = 0.002
PAUSES = (0.0, 0.001, 0.01, 0.1)


def structure(case: str) -> Frames:
    """The structures of a case: a number of atoms, or beads times atoms."""
    n_beads, _, n_atoms = case.rpartition("x")
    rng = np.random.default_rng(5)
    frame = water(TILES[int(n_atoms)])
    beads = [
        replace(frame, positions=frame.positions + rng.normal(scale=0.05, size=frame.positions.shape))
        for _ in range(int(n_beads or 1))
    ]
    return Frames.concatenate(beads)


def shaken(frames: Frames, seed: int) -> Frames:
    """The same structures an instant later."""
    moves = np.random.default_rng(seed).normal(scale=0.02 / np.sqrt(3), size=frames.positions.shape)
    return replace(frames, positions=frames.positions + moves)


def seconds(run: Callable[[], object]) -> float:
    """Time a call."""
    start = time.perf_counter()
    run()
    return time.perf_counter() - start


def second(model: Any, steps: list[Frames]) -> float:
    """Time the second of two evaluations, an instant after the first, as in a run."""
    model.evaluate(steps[0])
    time.sleep(BETWEEN)
    return seconds(lambda: model.evaluate(steps[1]))


def measure(case: str, alone: Any, ranked: RankedModel, repeats: int) -> dict[str, Any]:
    """Both ways in turns, after three evaluations of each that are not counted."""
    frames = structure(case)
    for seed in range(3):
        alone.evaluate(shaken(frames, seed))
        ranked.evaluate(shaken(frames, seed))
    n_ranks = len(ranked.timings.each)
    ranked.timings = Timings(each=np.zeros(n_ranks))
    one, all_ = [], []
    for seed in range(repeats):
        steps = [shaken(frames, 10 + 2 * seed + k) for k in range(2)]
        one.append(second(alone, steps))
        all_.append(second(ranked, steps))
    ratios = [a / b / n_ranks for a, b in zip(one, all_, strict=True)]
    t = ranked.timings
    split = {name: round(1e3 * getattr(t, name) / t.n, 3) for name in ("plan", "scatter", "compute", "wait", "gather")}
    return {
        "atoms": frames.n_atoms,
        "spread": ranked.choice,
        "one_us_per_atom": round(1e6 * statistics.median(one) / frames.n_atoms, 2),
        "ranks_us_per_atom": round(1e6 * statistics.median(all_) / frames.n_atoms, 2),
        "efficiency": round(statistics.median(ratios), 3),
        "efficiency_range": [round(min(ratios), 3), round(max(ratios), 3)],
        "ms": split,
        "ms_of_each_rank": [round(1e3 * s / t.n, 2) for s in t.each],
    }


def latencies(ranked: RankedModel) -> dict[str, float]:
    """Milliseconds that an evaluation of two atoms over all ranks takes after a pause, by the length of the pause."""
    atoms = Frames.single([[0.0, 0.0, 0.0], [0.0, 0.0, 4.0]], [0, 1])
    both = Frames.concatenate([atoms] * len(ranked.timings.each))
    found = {}
    for pause in PAUSES:
        times = []
        for _ in range(20):
            time.sleep(pause)
            times.append(seconds(lambda: ranked.evaluate(both)))
        found[f"{1e3 * pause:g} ms"] = round(1e3 * statistics.median(times), 3)
    return found


def main() -> None:
    """Measure, or compute for rank 0."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", default=str(ROOT / "examples" / "water" / "w.pt"))
    parser.add_argument("--cases", default="1536,5184,12288,32x192")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--precision", default="double")
    arguments = parser.parse_args()

    def load(file: bytes = b"") -> Any:
        model = checkpoint.load(arguments.model, "cpu", arguments.precision, 1)
        model.warm_up()
        return model

    group = join_all(load_mpi())
    places = group.places()
    idle = 0.0
    if group.rank:
        group.share(None)
        before = time.process_time()
        Worker(_Noting(group), load, Patience()).run()
        idle = time.process_time() - before
        group.collect(_Noting.idle)
        return
    crew = Crew(group, places, Patience(spin=SPIN))
    group.share(None)
    crew.send_model(b"")
    alone = load()
    crew.await_model()
    ranked = RankedModel(load(), crew)
    ranked.warm_up()
    record: dict[str, Any] = {"ranks": group.size, "model": Path(arguments.model).name, "cases": {}}
    record["precision"] = arguments.precision
    for case in arguments.cases.split(","):
        record["cases"][case] = measure(case, alone, ranked, arguments.repeats)
    record["latency_ms"] = latencies(ranked)
    time.sleep(IDLE_SECONDS)
    crew.dismiss()
    record["idle_share_of_a_core"] = [round(share, 4) for share in group.collect(idle)[1:]]
    records.append("ranks", record)


class _Noting:
    """A group that notes what of a core its rank uses in the longest wait for a message."""

    idle = 0.0
    longest = 0.0

    def __init__(self, group: Any) -> None:
        self.rank, self.size = group.rank, group.size
        self.isend, self.irecv = group.isend, group.irecv
        self._has_message = group.has_message
        self._since: tuple[float, float] | None = None

    def has_message(self, source: int, tag: int) -> bool:
        """See `Communicator`."""
        now = time.perf_counter(), time.process_time()
        found = bool(self._has_message(source, tag))
        if self._since is None:
            self._since = now
        elif found:
            waited = now[0] - self._since[0]
            if waited > _Noting.longest:
                _Noting.longest, _Noting.idle = waited, (now[1] - self._since[1]) / waited
            self._since = None
        return found


if __name__ == "__main__":
    main()
