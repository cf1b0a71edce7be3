"""What the daemon adds to a wave of beads.

A wave lasts from the first byte sent to the last one received; beside it stands the bare evaluation of the same
structures in one call, turn by turn in one run.

    python benchmarks/wave.py [MODEL] [--beads 32]

The peer is a small one that sends as i-PI does, positions and GETFORCE in one piece over every connection, or all
structures in one native batch. Every round moves the atoms a little. Written to `results/wave.json`.
"""

from __future__ import annotations

import argparse
import selectors
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

if __package__ in (None, ""):
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import ase.io
import numpy as np

import dpserver
from benchmarks import records
from dpserver.ase import species_types
from dpserver.frames import Frames
from tests.peer import EXIT, GETFORCE, Line, Peer, batched_posdata, posdata, reply_size

WATER = Path(__file__).resolve().parent.parent / "examples" / "water"
ROUNDS = 15


def receive(lines: Sequence[Line], size: int) -> None:
    """Read a reply of so many bytes from every line, in whatever order they come."""
    missing = dict.fromkeys(lines, size)
    with selectors.DefaultSelector() as selector:
        for line in lines:
            selector.register(line.sock, selectors.EVENT_READ, line)
        while missing:
            for key, _ in selector.select():
                chunk = key.data.sock.recv(min(1 << 20, missing[key.data]))
                if not chunk:
                    raise RuntimeError("the daemon has closed a connection; its log says why")
                missing[key.data] -= len(chunk)
                if not missing[key.data]:
                    del missing[key.data]
                    selector.unregister(key.data.sock)


def wave(lines: Sequence[Line], messages: Sequence[bytes], size: int) -> float:
    """Seconds from the first byte to the last."""
    start = time.perf_counter()
    for line, message in zip(lines, messages, strict=True):
        line.send(message)
    receive(lines, size)
    return time.perf_counter() - start


def measure(model: Path, beads: int, is_batch: bool) -> dict[str, float | str]:
    """Alternate waves and bare evaluations."""
    atoms = ase.io.read(WATER / "water.xyz")
    assert not isinstance(atoms, list)
    cell = atoms.cell.array
    potential = dpserver.load(model)
    types = species_types(atoms, potential.species)
    rng = np.random.default_rng(0)
    waves, bare = [], []
    with ExitStack() as stack:
        peer = stack.enter_context(Peer())
        n_lines = 1 if is_batch else beads
        command = [sys.executable, "-m", "dpserver", "--model", str(model), "--connect", peer.endpoint]
        command += [
            "--template",
            str(WATER / "water.xyz"),
            "--connections",
            str(n_lines),
            "--once",
            "--log-level",
            "warning",
        ]
        daemon = stack.enter_context(subprocess.Popen(command))
        lines = []
        for _ in range(n_lines):
            lines.append(peer.accept())
            lines[-1].handshake(b"batch_size:%d" % beads if is_batch else b" ")
        size = reply_size(len(atoms), beads if is_batch else 1)
        for _ in range(ROUNDS + 3):
            positions = atoms.positions + rng.normal(scale=0.02, size=(beads, len(atoms), 3))
            if is_batch:
                messages = [batched_posdata(positions, np.repeat(cell[None], beads, axis=0)) + GETFORCE]
            else:
                messages = [posdata(x, cell) + GETFORCE for x in positions]
            waves.append(wave(lines, messages, size))
            frames = Frames.concatenate(Frames.single(x, types, cell) for x in positions)
            start = time.perf_counter()
            potential.evaluate(frames)
            bare.append(time.perf_counter() - start)
        for line in lines:
            line.send(EXIT)
            line.close()
        daemon.wait(20)
    pairs = list(zip(waves, bare, strict=True))[3:]
    return {
        "mode": "native batch" if is_batch else f"{beads} connections",
        "wave_ms": 1e3 * statistics.median(waves[3:]),
        "evaluation_ms": 1e3 * statistics.median(bare[3:]),
        "added": statistics.median(w / b for w, b in pairs) - 1,
    }


def main() -> None:
    """Measure both ways to send a wave."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, nargs="?", default=WATER / "w.pt")
    parser.add_argument("--beads", type=int, default=32)
    args = parser.parse_args()
    rows = [measure(args.model, args.beads, is_batch) for is_batch in (False, True)]
    records.append(
        "wave", {"model": args.model.name, "beads": args.beads, "atoms": 192, "rounds": ROUNDS, "waves": rows}
    )


if __name__ == "__main__":
    main()
