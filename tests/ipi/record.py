"""Record what real peers say, to be mutated by the fuzz tests: `python -m tests.ipi.record` writes tests/data/sessions.

Each file holds the bytes of one connection, in the peer's direction. The structures are synthetic and small, and
nothing else of the machine is in them; i-PI and ASE decide the rest.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

from ase import Atoms
from ase.calculators.socketio import SocketIOCalculator

from dpserver.frames import Frames
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import finish, free_endpoint, ipi, place, write_input
from tests.ipi.bouts import SESSIONS
from tests.patience import PATIENCE
from tests.proxy import Proxy


def record(talk: Callable[[str], None], kind: str = "unix") -> bytes:
    """Serve a peer that listens at the endpoint it is given; what it said on its longest connection."""
    endpoint = free_endpoint(kind)
    with (
        Proxy(place(endpoint)) as proxy,
        serving(PairModel(), target(proxy.endpoint.replace("unix:", f"{kind}:"))),
    ):
        talk(endpoint)
    return bytes(max((passed.peer for passed in proxy.passed), key=len))


def ipi_talks(frames: Frames, options: str = "", n_beads: int = 1) -> Callable[[str], None]:
    def talk(endpoint: str) -> None:
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            write_input(folder, frames, endpoint, options, n_beads, n_steps=3)
            with ipi(folder) as process:
                finish(process, folder)

    return talk


def ase_talks(frames: Frames) -> Callable[[str], None]:
    def talk(endpoint: str) -> None:
        atoms = Atoms("OHH" * (frames.n_atoms // 3), frames.positions, cell=frames.cell[0], pbc=frames.pbc[0])
        name = str(place(endpoint)).removeprefix("/tmp/ipi_")
        with SocketIOCalculator(unixsocket=name, timeout=PATIENCE) as calculator:
            atoms.calc = calculator
            for _ in range(3):
                atoms.positions += 0.01 * atoms.get_forces()

    return talk


def write(folder: Path) -> None:
    """Record every session anew."""
    import ipi as package
    from ase import __version__ as ase_version

    periodic, name = structures.water((1, 1, 1)), f"ipi-{package.__version__}"
    batch = ipi_talks(periodic, "<batch_size> 3 </batch_size>", n_beads=4)
    sessions = {
        f"{name}-classic": record(ipi_talks(periodic, "<consolidate_messages> False </consolidate_messages>")),
        f"{name}-consolidated": record(ipi_talks(periodic, "<parameters> { species: O H H } </parameters>")),
        f"{name}-batch": record(batch),
        f"{name}-shm": record(ipi_talks(periodic), "shm"),
        f"{name}-shm-batch": record(batch, "shm"),
        f"ase-{ase_version}-periodic": record(ase_talks(periodic)),
        f"ase-{ase_version}-open": record(ase_talks(structures.molecule())),
    }
    folder.mkdir(parents=True, exist_ok=True)
    for stem, raw in sessions.items():
        (folder / f"{stem}.bin").write_bytes(raw)


if __name__ == "__main__":
    write(SESSIONS)
