"""Linear cost: time and memory of an evaluation against the number of atoms, over three decades.

Liquid water, 192 to 192,000 atoms, each size in a process of its own: the time of an evaluation with the neighbour
lists of before and with new ones, and the most memory the process had. Two lines through the logarithms give the
exponents; the memory of a process without atoms is fitted and taken away. One size goes through the daemon too.

About ten minutes on two cores, and 2 GB of memory; --largest 13 goes to 421,824 atoms.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np

from benchmarks.processes import peak_memory
from benchmarks.science import dynamics
from benchmarks.science.analysis import line_with_offset, power_law
from benchmarks.science.common import WATER, Experiment, Record, identity, last_words, optional
from benchmarks.science.presentation import (
    NOT_MEASURED,
    Claim,
    holds,
    new_figure,
    number,
    origin,
    quick_note,
    save_figure,
    table,
)
from benchmarks.structures import SPECIES, water
from dpserver.errors import DPServerError

TITLE: Final = "Linear cost"
TILES: Final = (1, 2, 3, 4, 5, 6, 8, 10, 13)
PRECISIONS: Final = ("double", "mixed")
_SECONDS: Final = 6.0  # of repetitions for each size
_MOVE: Final = 0.5  # Å along each axis: more than the skin of the lists allows
_SERVED: Final = 2  # tiles that go through the daemon


def add_options(parser: argparse.ArgumentParser) -> None:
    """Sizes."""
    parser.add_argument("--largest", type=int, default=10, help="tiles of 192 atoms along each direction [10]")
    parser.add_argument("--threads", type=int, default=1, help="[1]")
    parser.add_argument("--model", type=Path, default=WATER / "w.pt", help="[examples/water/w.pt]")


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Measure every size."""
    model = options.model.resolve()
    for precision in PRECISIONS:
        for tiles in (n for n in TILES if n <= experiment.pick(options.largest, 3)):
            settings = {
                "tiles": tiles, "n_atoms": 192 * tiles**3, "precision": precision, "threads": options.threads,
                **identity(model), "seconds": experiment.pick(_SECONDS, 1.0), "seed": 0,
            }  # fmt: skip
            experiment.measure(f"{precision}_{tiles:02}", settings, partial(in_process, model=model, settings=settings))
    settings = {"tiles": _SERVED, "n_atoms": 192 * _SERVED**3, **identity(model), "seed": 0}
    experiment.measure("served", settings, partial(served, model=model))


def in_process(_: Path, model: Path, settings: Record) -> dict[str, Any]:
    """Measure one size in a new process, whose memory nothing else has used."""
    values = {**settings, "path": str(model)}
    done = subprocess.run(
        [sys.executable, "-m", "benchmarks.science.linear_cost", json.dumps(values)],
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    if done.returncode:
        raise DPServerError(f"{settings['n_atoms']} atoms: {last_words(done.stderr)}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


def measure(settings: Record) -> dict[str, Any]:
    """Times of evaluations in this process, s, and the most memory it had, MB."""
    import dpserver

    potential = dpserver.load(settings["path"], precision=settings["precision"], threads=settings["threads"])
    frame = water(settings["tiles"])
    generator = np.random.default_rng(settings["seed"])
    potential.evaluate(frame)  # compiles kernels, makes tables and lists
    reused: list[float] = []
    renewed: list[float] = []
    base, began = frame.positions, time.perf_counter()
    while len(renewed) < 3 or time.perf_counter() - began < settings["seconds"]:
        base = base + _MOVE * np.array([1.0, 1.0, 1.0])  # the liquid is the same, its lists do not hold
        for times in (renewed, reused, reused):
            moved = replace(frame, positions=base + generator.normal(scale=0.005, size=base.shape))
            start = time.perf_counter()
            potential.evaluate(moved)
            times.append(time.perf_counter() - start)
    return {
        "seconds_reused": float(np.median(reused)),
        "seconds_renewed": float(np.median(renewed)),
        "evaluations": len(reused) + len(renewed),
        "most_memory_mb": peak_memory(os.getpid()) / 1024,
    }


def served(_: Path, model: Path) -> dict[str, Any]:
    """The same structure by a daemon over a socket, and here: how far forces differ."""
    import dpserver

    frame = water(_SERVED)
    atoms = ase.Atoms([SPECIES[t] for t in frame.types], frame.positions, cell=frame.cell[0], pbc=True)
    energy, forces, _ = dynamics.served(model, [atoms], precision="double")
    here = dpserver.load(model, precision="double").evaluate(frame)
    return {
        "energy_difference_ev_per_atom": float(abs(energy[0] - here.energy[0]) / frame.n_atoms),
        "largest_force_difference": float(np.abs(forces[0] - here.forces).max()),
    }


# The page.


def _sizes(found: dict[str, Record], precision: str) -> list[Record]:
    return [found[name] for name in sorted(found) if name.startswith(f"{precision}_")]


def _atoms(records: list[Record]) -> np.ndarray:
    return np.array([r["settings"]["n_atoms"] for r in records], dtype=float)


def _column(records: list[Record], name: str) -> np.ndarray:
    return np.array([r[name] for r in records])


def page(found: dict[str, Record]) -> str:
    """The page."""
    known = {p: _sizes(found, p) for p in PRECISIONS if _sizes(found, p)}
    text = [
        """Liquid water, `examples/water/w.pt`, one evaluation of energies, forces and virial; each size in a process of
its own. "Lists of before" is a step in which the neighbour lists still hold, "new lists" one in which all atoms have
moved too far for them. The memory is the most that the process had, Python and libraries included. The paper shows the
cost of its model to be linear on another machine; here it is the exponent that is compared.
"""
    ]
    if known:
        text.append(f"![Time and memory against atoms]({_picture(known)})\n")
        header = ("precision", "atoms", "lists of before, ms", "µs/atom", "new lists, ms", "µs/atom", "memory, MB")
        rows = [
            (
                precision,
                f"{r['settings']['n_atoms']:,}",
                number(1e3 * r["seconds_reused"]),
                number(1e6 * r["seconds_reused"] / r["settings"]["n_atoms"]),
                number(1e3 * r["seconds_renewed"]),
                number(1e6 * r["seconds_renewed"] / r["settings"]["n_atoms"]),
                f"{r['most_memory_mb']:.0f}",
            )
            for precision, records in known.items()
            for r in records
        ]
        text += [table(header, rows), _fits(known)]
    if (r := found.get("served")) is not None:
        text.append(
            f"\nThrough the daemon, {r['settings']['n_atoms']:,} atoms in double precision: forces differ from those "
            f"in this process by at most {number(r['largest_force_difference'])} eV/Å.\n"
        )
    return "\n".join([*text, origin(*found.values())])


def _fits(known: dict[str, list[Record]]) -> str:
    rows = []
    for precision, records in known.items():
        if len(records) < 3:
            continue
        n = _atoms(records)
        base, each = line_with_offset(n, _column(records, "most_memory_mb"))
        reused, renewed = (power_law(n, _column(records, c)) for c in ("seconds_reused", "seconds_renewed"))
        rows.append((precision, number(reused.value, 3, reused.error), number(renewed.value, 3, renewed.error),
                     f"{base:.0f} MB and {1e3 * each:.2f} kB for each atom"))  # fmt: skip
    header = ("precision", "exponent, lists of before", "exponent, new lists", "memory: straight line")
    return "\n" + table(header, rows) if rows else ""


def _picture(known: dict[str, list[Record]]) -> str:
    figure, panels = new_figure(columns=2)
    left, right = panels[0]
    for (precision, records), colour in zip(known.items(), ("#0072b2", "#009e73"), strict=False):
        n = _atoms(records)
        left.plot(
            n, _column(records, "seconds_reused"), "o-", ms=3, color=colour, label=f"{precision}, lists of before"
        )
        left.plot(n, _column(records, "seconds_renewed"), "s--", ms=3, color=colour, label=f"{precision}, new lists")
        right.plot(n, _column(records, "most_memory_mb"), "o-", ms=3, color=colour, label=precision)
    records = next(iter(known.values()))
    n = _atoms(records)
    left.plot(n, records[-1]["seconds_reused"] * n / n[-1], color="0.6", lw=0.7, label="∝ atoms")
    left.set(xscale="log", yscale="log", xlabel="atoms", ylabel="seconds")
    right.set(xscale="log", yscale="log", xlabel="atoms", ylabel="most memory of the process (MB)")
    ticker = optional("matplotlib.ticker", "dpserver[plot]")
    for axis in (left.xaxis, right.xaxis):
        axis.set_minor_formatter(ticker.NullFormatter())
    left.legend(fontsize=6.5)
    right.legend(fontsize=6.5)
    return save_figure(figure, "linear_cost")


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model; empty where it has not."""
    record = found.get("served")
    return {"`w.pt`": "" if record is None else f"a structure of {record['settings']['n_atoms']:,} atoms"}


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    text = "The cost is linear in the number of atoms"
    records = _sizes(found, "double")
    if len(records) < 3:
        return [Claim(text, NOT_MEASURED)]
    n = _atoms(records)
    exponents = {
        name: power_law(n, _column(records, column))
        for name, column in (("lists of before", "seconds_reused"), ("new lists", "seconds_renewed"))
    }
    return [
        Claim(
            text,
            "time ∝ N to the power of "
            + ", ".join(f"{number(e.value, 3, e.error)} ({name})" for name, e in exponents.items()),
            f"{n[0]:,.0f} to {n[-1]:,.0f} atoms on {records[0]['settings']['threads']} thread(s) of a CPU"
            + quick_note(*records),
            holds(all(abs(e.value - 1) < 0.1 for e in exponents.values()), *records) if n[-1] / n[0] > 900 else None,
        )
    ]


if __name__ == "__main__":
    print(json.dumps(measure(json.loads(sys.argv[1]))))
