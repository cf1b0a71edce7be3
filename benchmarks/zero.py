"""The daemon with a model that costs nothing, so that only the daemon is timed.

`zero.py ENDPOINT CONNECTIONS|auto` serves a socket, `zero.py mpi` a rank of i-PI's <ffmpi>. As a PES file of i-PI's
<ffdirect> it is `drivers/ipi/dp_pes.py` with that model.
"""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from typing import Any

import numpy as np

import dpserver
from dpserver.daemon import Daemon, Target
from dpserver.daemon.signals import stop_on_signals
from dpserver.engine import Order
from dpserver.frames import ForceResult, Frames
from dpserver.transport import parse_endpoint

__DRIVER_NAME__ = "zero"
__DRIVER_CLASS__ = "DeepPotential"

WATER = Order(("O", "H", "H"), "the benchmark")


class Zero:
    """No energy, no forces."""

    species = ("O", "H")
    rcut = 6.0
    template = ("O", "H", "H")
    min_distance = np.full((2, 2), np.inf)

    def evaluate(self, frames: Frames) -> ForceResult:
        """Zeros of the right shapes."""
        return ForceResult(
            np.zeros(frames.n_frames),
            np.zeros((frames.n_atoms, 3)),
            np.zeros((frames.n_frames, 3, 3)),
            np.zeros(frames.n_atoms),
            frames.frame_idx,
        )


def _pes() -> Any:
    """The class of our PES file, given this model in place of one from a file."""
    path = Path(__file__).resolve().parent.parent / "drivers" / "ipi" / "dp_pes.py"
    spec = importlib.util.spec_from_file_location("dp_pes", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    dpserver.load = lambda *_: Zero()  # type: ignore[assignment, return-value]
    return module.DeepPotential


def main(endpoint: str, connections: str) -> None:
    """Serve until the peer has left."""
    if endpoint == "mpi":
        from dpserver.daemon.mpi_driver import MPIDriver

        MPIDriver(Zero(), WATER).run()
        return
    parsed, _ = parse_endpoint(endpoint)
    number = None if connections == "auto" else int(connections)
    daemon = Daemon(Zero(), [Target(parsed, parsed.resolve(), WATER, number)], is_once=True, timeout=60.0)
    with stop_on_signals(daemon.stop):
        daemon.run()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2] if len(sys.argv) > 2 else "auto")
else:
    DeepPotential = _pes()
