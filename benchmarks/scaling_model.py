"""How far spatial decomposition carries: strong and weak scaling by a model of what every rank owns, sees and sends.

    python benchmarks/scaling_model.py [w.pt] [--atom-us 0.6 --per-node 8] [--link 12.5] [--ipi-us 0.3] …

Liquid water, 10⁵ to 10⁸ atoms, 2 to 4,096 ranks. A step takes

    t = max over ranks (centres · atom + ghosts · ghost) + lists/steps      computing, in all ranks at once
      + numbers · copy + bytes/link + 2 · messages · latency                rank 0: gathers, sends, receives, adds up
      + atoms · peer                                                        the MD code, and the way to it

The times of an atom, a ghost, a list and a copied number are measured here, on one thread (CPU seconds); with --atom-us
those of another machine take their place, such as a GPU's. The network is stated. Peers are i-PI, with the time that a
step of it takes with a model that costs nothing (--ipi-us, measured with benchmarks/zero.py and ipi_steps.py), and a
compiled code whose own time is nothing, behind a socket (its speed is measured here) or memory that both share.

Centres and ghosts come from the bisection of a cube. A domain of the edges a, b, c among atoms of the density ρ sees

    ghosts = ρ [2R (ab + bc + ca) + π R² (a + b + c) + 4π/3 R³],   R = cutoff + skin - gap

the gap because there are atoms behind a face and not on it; it is fitted to real decompositions, as far as they fit
into this machine, and what is left between them and the formula is printed. Three ways to share out:

    flat        rank 0 sends every rank its owned and ghost positions: what is built
    tree        rank 0 sends to nodes, each of them to its ranks: the link carries the ghosts of nodes only
    exchange    rank 0 sends owned positions, neighbours exchange ghosts: the link of rank 0 carries each atom once

Appends a record to benchmarks/results/scaling_model.json and draws docs/images/scaling_model.png.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")

import argparse
import socket
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
import records
from structures import ROOT, WATER, water

from dpserver.frames import Floats
from dpserver.models import checkpoint
from dpserver.models.compiled import SKIN
from dpserver.neighbors.rows import build_rows
from dpserver.parallel.domain import Decomposition

FIGURE: Final = ROOT / "docs" / "images" / "scaling_model.png"
DENSITY: Final = WATER.n_atoms / float(np.linalg.det(WATER.cell[0]))
RANKS: Final = tuple(2**k for k in range(1, 13))
SIZES: Final = (10**5, 10**6, 10**7, 10**8)
PER_RANK: Final = (10**4, 10**5)
WAYS: Final = ("flat", "tree", "exchange")
_OUT, _BACK = 24, 32  # bytes: a position; a force and an atomic energy
_KEPT = ("compute", "exchange", "ghosts", "bytes_rank_0")
_ON_THE_WIRE = 48  # bytes: a position and a force


@dataclass(frozen=True)
class Machine:
    """Seconds and bytes per second.

    Attributes:
        atom: s, of a centre; ghost: s, of a ghost; rebuild: s, of a centre in a new list; steps: that a list lasts.
        copy: s, of an atom or ghost that rank 0 gathers, and whose forces it adds up.
        link: bytes/s out of a node and into it; latency: s, of a message; per_node: ranks of a node.
        peers: s, of an atom, for each MD code and way to it.
        reach: as far as ghosts count in the formula, Å.
    """

    atom: float
    ghost: float
    rebuild: float
    steps: float
    copy: float
    link: float
    latency: float
    per_node: int
    peers: dict[str, float]
    reach: float


def domains(n_parts: int, edge: float) -> Floats:
    """Edges of the domains of a cube after bisection across the longest side, (n_parts, 3), Å."""
    groups, found = [(np.full(3, edge), n_parts)], []
    while groups:
        sides, n = groups.pop()
        if n == 1:
            found.append(sides)
            continue
        longest, half = int(sides.argmax()), n // 2
        for part in (half, n - half):
            cut = sides.copy()
            cut[longest] *= part / n
            groups.append((cut, part))
    return np.array(found)


def ghosts_of(sides: Floats, reach: float) -> Floats:
    """Ghosts of domains, (n_parts,)."""
    a, b, c = sides.T
    faces = 2 * reach * (a * b + b * c + c * a) + np.pi * reach**2 * (a + b + c)
    return np.asarray(DENSITY * (faces + 4 / 3 * np.pi * reach**3))


def check(reach: float, tiles: tuple[int, ...]) -> tuple[float, list[dict[str, float]]]:
    """Fit the gap, and put the ghosts of real decompositions beside those of the formula."""
    real: dict[tuple[int, int], tuple[Decomposition, float]] = {}
    for n in tiles:
        frame = water(n)
        for n_parts in (2, 3, 8, 64, 512):
            real[n, n_parts] = Decomposition.build(frame, n_parts, reach - SKIN, SKIN), float(frame.cell[0, 0, 0])

    def deviations(gap: float) -> Floats:
        pairs = [
            (ghosts_of(domains(n_parts, edge), reach - gap).mean(), np.mean([part.n_ghosts for part in cut.parts]))
            for (_, n_parts), (cut, edge) in real.items()
        ]
        return np.array([model / found - 1 for model, found in pairs])

    gap = min(np.linspace(0, 2, 201), key=lambda g: float((deviations(g) ** 2).sum()))
    rows = [
        {
            "n_atoms": cut.n_atoms,
            "n_parts": cut.n_parts,
            "centres": [int(cut.n_owned.min()), int(cut.n_owned.max())],
            "ghosts": round(float(np.mean([part.n_ghosts for part in cut.parts])), 1),
            "most_ghosts": max(part.n_ghosts for part in cut.parts),
            "deviation": round(float(deviation), 4),
        }
        for (cut, _), deviation in zip(real.values(), deviations(gap), strict=True)
    ]
    return float(gap), rows


def step(n_atoms: float, n_ranks: int, machine: Machine, way: str) -> dict[str, float]:
    """Seconds of a step without those of the peer, and what goes through rank 0."""
    m, edge = machine, (n_atoms / DENSITY) ** (1 / 3)
    sides = domains(n_ranks, edge)
    owned = DENSITY * sides.prod(axis=1)
    ghosts = ghosts_of(sides, m.reach) if n_ranks > 1 else np.zeros(1)
    compute = float((owned * (m.atom + m.rebuild / m.steps) + ghosts * m.ghost).max())
    found = {
        "compute": compute,
        "centres": float(owned.max()),
        "ghosts": float(ghosts.max()),
        "bytes_rank": float((owned + ghosts).max()) * (_OUT + _BACK),
    }
    if n_ranks == 1:
        return {**found, "exchange": 0.0, "bytes_rank_0": 0.0, "step": compute}
    n_nodes, others = -(-n_ranks // m.per_node), n_ranks - 1
    messages, beside = max(n_nodes - 1, 0) + min(others, m.per_node), 0.0
    if way == "flat":
        numbers, messages = float(owned.sum() + ghosts.sum()), others
        sent = (numbers - owned[0] - ghosts[0]) * (_OUT + _BACK)
    elif way == "tree":
        numbers = n_atoms + (float(ghosts_of(domains(n_nodes, edge), m.reach).sum()) if n_nodes > 1 else 0.0)
        sent = numbers * (1 - 1 / n_nodes) * (_OUT + _BACK)
        beside = float((owned + ghosts).max()) * m.copy * min(n_ranks, m.per_node)
    else:
        numbers, sent = n_atoms, n_atoms * (1 - 1 / n_nodes) * (_OUT + _BACK)
        beside = float(ghosts.max()) * (2 * _OUT / m.link * min(n_ranks, m.per_node) + 2 * m.copy) + 26 * m.latency
    exchange = numbers * m.copy + sent / m.link + 2 * messages * m.latency + beside
    return {**found, "exchange": exchange, "bytes_rank_0": sent, "step": compute + exchange}


def scaling(machine: Machine) -> dict[str, Any]:
    """Strong and weak scaling, and where what is not computing becomes the larger part."""
    found: dict[str, Any] = {"strong": {}, "weak": {}, "bounds": []}
    for way in WAYS:
        for n in SIZES:
            rows = {p: step(n, p, machine, way) for p in (1, *RANKS)}
            strong = {p: {k: float(f"{row[k]:.4g}") for k in _KEPT} for p, row in rows.items()}
            found["strong"].setdefault(way, {})[n] = strong
            found["bounds"] += [_bound(rows, n, way, peer, machine) for peer in machine.peers]
        for each in PER_RANK:
            first = step(each, 1, machine, way)["step"]
            weak = {p: round(first / step(each * p, p, machine, way)["step"], 4) for p in RANKS}
            found["weak"].setdefault(way, {})[each] = weak
    return found


def _bound(rows: dict[int, dict[str, float]], n: int, way: str, peer: str, machine: Machine) -> dict[str, Any]:
    """How far more ranks help."""
    own = n * machine.peers[peer]
    steps = {p: row["step"] + own for p, row in rows.items()}
    best = min(steps, key=lambda p: steps[p])
    return {
        "way": way,
        "n_atoms": n,
        "peer": peer,
        "rest_is_larger_from": next((p for p, r in rows.items() if r["compute"] < r["exchange"] + own), None),
        "half_efficient_until": max(p for p in steps if steps[1] / steps[p] / p >= 0.5),
        "fastest_with": best,
        "fastest_s": float(f"{steps[best]:.4g}"),
        "speed_up": round(steps[1] / steps[best], 1),
    }


def cpu_seconds(run: Callable[[], object], repeats: int = 5) -> float:
    """Least CPU time of some calls, after one that is not counted."""
    run()
    found = []
    for _ in range(repeats):
        start = time.process_time()
        run()
        found.append(time.process_time() - start)
    return min(found)


def socket_speed(n_bytes: int = 1 << 26) -> float:
    """Bytes per second through a socket of this machine."""
    here, there = socket.socketpair()
    body = memoryview(bytearray(n_bytes))
    sender = threading.Thread(target=lambda: there.sendall(body))
    start = time.perf_counter()
    sender.start()
    room, left = memoryview(bytearray(1 << 20)), n_bytes
    while left:
        left -= here.recv_into(room, min(left, len(room)))
    took = time.perf_counter() - start
    sender.join()
    here.close()
    there.close()
    return n_bytes / took


def measured(path: Path, precision: str, reach: float, tiles: int = 3) -> dict[str, float]:
    """Measure one thread: s of a centre, a ghost, a centre in a new list, an atom that rank 0 handles; socket, bytes/s.

    What a ghost costs is the difference between a part and a smaller structure of as many centres.
    """
    potential = checkpoint.load(path, device="cpu", precision=precision)
    potential.accelerate(1)
    frame = water(tiles)
    whole = cpu_seconds(lambda: potential.evaluate(frame)) / frame.n_atoms
    cut = Decomposition.build(frame, 8, reach - SKIN, SKIN)
    local = cut.local(frame, 0)
    part = cpu_seconds(lambda: potential.evaluate(local))
    positions = cut.positions(frame)

    def handle() -> None:
        cut.positions(frame, out=positions)
        cut.sum(positions)

    return {
        "atom": whole,
        "ghost": max(part - cut.parts[0].n_owned * whole, 0.0) / cut.parts[0].n_ghosts,
        "rebuild": cpu_seconds(lambda: build_rows(frame, reach, len(potential.species))) / frame.n_atoms,
        "copy": cpu_seconds(handle, 20) / len(cut.index),
        "socket": max(socket_speed() for _ in range(10)),
    }


def draw(result: dict[str, Any], machine: Machine) -> None:
    """Strong scaling as seconds of a step, weak scaling as efficiency."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    figure, (left, right) = plt.subplots(1, 2, figsize=(12, 5), layout="constrained")
    styles, marks = dict(zip(WAYS, ("-", "--", ":"), strict=True)), ("o", "s", "^")
    for k, n in enumerate(SIZES):
        for way in WAYS:
            rows = result["strong"][way][n]
            label = f"$10^{{{round(np.log10(n))}}}$ atoms" if way == "flat" else None
            seconds = {p: r["compute"] + r["exchange"] for p, r in rows.items()}
            left.loglog(list(seconds), list(seconds.values()), styles[way], color=f"C{k}", label=label)
            if way != "flat":
                continue
            for mark, (name, each) in zip(marks, machine.peers.items(), strict=True):
                bound = [p for p, r in rows.items() if r["compute"] < r["exchange"] + n * each][:1]
                label = f"computing is the smaller part: {name}" if k == 0 else None
                left.plot(bound, [seconds[p] for p in bound], mark, color="k", fillstyle="none", label=label)
    title = f"a step of water, {1e6 * machine.atom:.3g} µs per atom and rank, without the MD code"
    left.set(xlabel="ranks", ylabel="seconds", title=title)
    left.set_ylim(bottom=1e-4)
    left.title.set_fontsize(9)
    left.legend(fontsize=8, loc="lower left")
    for k, each in enumerate(PER_RANK):
        for way in WAYS:
            rows = result["weak"][way][each]
            label = f"{each:,} atoms per rank, {way}"
            right.semilogx(list(rows), list(rows.values()), styles[way], color=f"C{k}", label=label)
    right.set(xlabel="ranks", ylabel="efficiency", ylim=(0, 1.05), title="weak scaling, without the MD code")
    right.title.set_fontsize(9)
    right.legend(fontsize=8)
    FIGURE.parent.mkdir(exist_ok=True)
    figure.savefig(FIGURE, dpi=120)


def meaning(result: dict[str, Any], machine: Machine) -> list[str]:
    """What follows from it, in words."""
    said = []
    for row in result["bounds"]:
        limit = row["rest_is_larger_from"]
        until = f"what is not computing is the larger part from {limit} ranks on" if limit else "mostly computing"
        said.append(
            f"{row['way']}, {row['n_atoms']:.0e} atoms, {row['peer']}: {until}; efficiency of a half up to "
            f"{row['half_efficient_until']} ranks; fastest with {row['fastest_with']}: {row['fastest_s']:.3g} s, "
            f"{row['speed_up']:g} times one rank"
        )
    n, ranks = SIZES[-1], RANKS[-1]
    rows = {way: step(n, ranks, machine, way) for way in WAYS}
    flat, exchange = rows["flat"], rows["exchange"]
    ways = ", ".join(f"{row['exchange']:.3g} s {way}" for way, row in rows.items())
    peers = ", ".join(f"{n * each:.3g} s {name}" for name, each in machine.peers.items())
    said += [
        f"{n:.0e} atoms on {ranks} ranks: computing {flat['compute']:.3g} s; rank 0 {ways}; MD code {peers}",
        f"  each rank: {flat['centres']:.3g} centres, {flat['ghosts']:.3g} ghosts, {flat['bytes_rank'] / 1e6:.3g} MB",
        f"  rank 0: {flat['bytes_rank_0'] / 1e9:.3g} GB flat, {exchange['bytes_rank_0'] / 1e9:.3g} GB with an exchange",
    ]
    return said


def main() -> None:
    """Measure, model, print, draw and keep."""
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("model", nargs="?", type=Path, default=ROOT / "examples" / "water" / "w.pt")
    options.add_argument("--precision", default="double")
    options.add_argument("--atom-us", type=float, help="of a rank on another machine; ghosts and lists in proportion")
    options.add_argument("--link", type=float, default=12.5, help="GB/s of a node's network")
    options.add_argument("--latency-us", type=float, default=5.0, help="of a message")
    options.add_argument("--per-node", type=int, default=64, help="ranks of a node")
    options.add_argument("--ipi-us", type=float, default=0.3, help="of i-PI for an atom, the socket included")
    options.add_argument("--memory", type=float, default=10.0, help="GB/s of memory that rank 0 shares with a peer")
    options.add_argument("--steps", type=float, default=20, help="that a neighbour list lasts")
    options.add_argument("--tiles", default="4,8", help="of the real decompositions, 192 tiles³ atoms")
    options.add_argument("--no-figure", action="store_true")
    given = options.parse_args()
    reach = checkpoint.load(given.model, device="cpu").rcut + SKIN
    times = measured(given.model, given.precision, reach)
    gap, checks = check(reach, tuple(int(n) for n in given.tiles.split(",")))
    factor = 1.0 if given.atom_us is None else 1e-6 * given.atom_us / times["atom"]
    peers = {
        "i-PI": 1e-6 * given.ipi_us,
        "compiled, by socket": _ON_THE_WIRE / times["socket"],
        "compiled, by shared memory": _ON_THE_WIRE / (1e9 * given.memory),
    }
    scaled = {name: factor * times[name] for name in ("atom", "ghost", "rebuild")}
    machine = Machine(
        **scaled,
        steps=given.steps,
        copy=times["copy"],
        link=1e9 * given.link,
        latency=1e-6 * given.latency_us,
        per_node=given.per_node,
        peers=peers,
        reach=reach - gap,
    )
    result = scaling(machine)
    if not given.no_figure:
        draw(result, machine)
    strong = result["strong"].items()
    two = {n: [step(n, p, machine, "flat")["step"] for p in (1, 2)] for n in (1536, 5184, 12288)}
    record = {
        "model": given.model.name,
        "precision": given.precision,
        "machine_model": asdict(machine),
        "measured": times,
        "gap": gap,
        "checks": checks,
        "efficiency_of_two_ranks": {n: round(one / both / 2, 3) for n, (one, both) in two.items()},
    }
    some = {way: {n: {p: rows[p] for p in (1, *RANKS[1::2])} for n, rows in sizes.items()} for way, sizes in strong}
    records.append("scaling_model", {**record, **result, "strong": some})
    print("\n".join(meaning(result, machine)))


if __name__ == "__main__":
    main()
