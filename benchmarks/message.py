"""Where the time of one message goes: a structure over the socket to the daemon and its forces back, stage by stage.

    python benchmarks/message.py [MODEL] [--tiles 1] [--precision double] [--messages 400]

A probe asks for water, 192 atoms times tiles³, again and again, its atoms moving a little; the daemon is an ordinary
one in which the ends of stages are noted: those of evaluations of some milliseconds, which the thread that talks makes
itself. Beside it the bare kernels on one thread and on all. Medians over the messages but the first quarter, written
to `results/message.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Final

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks import records
from benchmarks.probe import Probe
from benchmarks.structures import water

ROOT: Final = Path(__file__).resolve().parent.parent
WATER_FILE: Final = ROOT / "examples" / "water" / "water.xyz"
STAGES: Final = {
    "daemon, on the way in": ("awake", "asked"),
    "engine, before and after the model": ("asked", "model", "modelled", "answered"),
    "evaluation, before and after the kernels": ("model", "kernels", "computed", "modelled"),
    "kernels on all threads": ("kernels", "computed"),
    "daemon, on the way out": ("answered", "sent"),
}
"""Pairs of ends between which a stage runs."""


def engine(model: str, address: str, precision: str, notes: str) -> None:
    """Be the daemon, and leave behind when each message had come through which stage."""
    from dpserver.cli.app import main
    from dpserver.daemon.compute import ComputeThread
    from dpserver.daemon.daemon import Daemon
    from dpserver.kernels.threads import Threads
    from dpserver.models.compilation import Compilation
    from dpserver.transport import Connection

    seen: list[tuple[str, float]] = []

    def note(owner: Any, method: str, before: str | None, after: str | None) -> None:
        original: Callable[..., Any] = getattr(owner, method)

        def noted(*arguments: Any, **options: Any) -> Any:
            if before is not None:
                seen.append((before, time.perf_counter()))
            found = original(*arguments, **options)
            if after is not None:
                seen.append((after, time.perf_counter()))
            return found

        setattr(owner, method, noted)

    note(Daemon, "_select", None, "awake")
    note(ComputeThread, "_answer", "asked", "answered")
    note(Compilation, "evaluate", "model", "modelled")
    note(Threads, "run", "kernels", "computed")
    note(Connection, "flush", None, "sent")
    sys.argv = [
        "dpserver", "--model", model, "--connect", f"unix:{address}", "--template", str(WATER_FILE), "--once",
        "--precision", precision, "--log-level", "warning",
    ]  # fmt: skip
    try:
        main()
    finally:
        Path(notes).write_text(json.dumps(seen), encoding="utf-8")


def stages(seen: list[tuple[str, float]]) -> dict[str, list[float]]:
    """Seconds of each stage of every message that the thread that talks has evaluated itself."""
    found: dict[str, list[float]] = {name: [] for name in STAGES}
    ends: dict[str, float] = {}
    for name, at in seen:
        if name == "awake":
            ends = {}
        ends[name] = at
        if name == "sent" and all(end in ends for pairs in STAGES.values() for end in pairs):
            for stage, pairs in STAGES.items():
                found[stage].append(sum(ends[b] - ends[a] for a, b in zip(pairs[::2], pairs[1::2], strict=True)))
            ends = {}
    return found


def kernels(model: Path, precision: str, threads: int, tiles: int, repeats: int) -> float:
    """Seconds that the kernels of a bare evaluation run on so many threads."""
    import dpserver
    from dpserver.kernels.threads import Threads

    potential, times = dpserver.load(model, device="cpu", precision=precision, threads=threads), []
    run = Threads.run

    def timed(self: Threads, job: Any) -> None:
        start = time.perf_counter()
        run(self, job)
        times.append(time.perf_counter() - start)

    Threads.run = timed  # type: ignore[method-assign]
    try:
        frames = water(tiles)
        for _ in range(repeats):
            potential.evaluate(frames)
    finally:
        Threads.run = run  # type: ignore[method-assign]
    return statistics.median(times[len(times) // 4 :])


def main() -> None:
    """Measure, and append the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=ROOT / "examples" / "water" / "w.pt")
    parser.add_argument("--tiles", type=int, default=1)
    parser.add_argument("--precision", default="double")
    parser.add_argument("--messages", type=int, default=400)
    given = parser.parse_args()
    frames, rng = water(given.tiles), np.random.default_rng(0)
    direction, times = rng.normal(0.0, 0.03, frames.positions.shape), []
    name = f"message_{os.getpid()}"
    with tempfile.TemporaryDirectory() as folder:
        notes = Path(folder) / "notes.json"
        call = f"engine({str(given.model.resolve())!r}, {name!r}, {given.precision!r}, {str(notes)!r})"
        code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); from benchmarks.message import engine; {call}"
        probe = Probe(name)
        with subprocess.Popen([sys.executable, "-c", code]) as daemon:
            try:
                probe.accept(1, lambda: daemon.poll() is not None)
                for k in range(given.messages):
                    x = frames.positions + direction * np.sin(0.05 * k)
                    times.append(probe.ask([x], frames.cell[0])[0])
            finally:
                probe.close()
        found = stages(json.loads(notes.read_text(encoding="utf-8")))
    left_out = given.messages // 4
    whole = statistics.median(times[left_out:])
    middle = {stage: statistics.median(values[left_out:]) for stage, values in found.items() if values[left_out:]}
    cores = len(os.sched_getaffinity(0))
    records.append(
        "message",
        {
            "what": f"ms of a message of {frames.n_atoms} atoms and its answer, {given.precision}, {cores} threads",
            "model": given.model.name,
            "n_atoms": frames.n_atoms,
            "whole": 1e3 * whole,
            "microseconds_per_atom": 1e6 * whole / frames.n_atoms,
            "stages": {**{stage: 1e3 * s for stage, s in middle.items()},
                       "waking up, of both processes": 1e3 * (whole - sum(middle.values()))} if middle else {},
            "kernels alone": {str(n): 1e3 * kernels(given.model, given.precision, n, given.tiles, given.messages)
                              for n in sorted({1, cores})} if middle else {},
        },
    )  # fmt: skip


if __name__ == "__main__":
    main()
