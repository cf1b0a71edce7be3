"""Real i-PI on a small structure: its input, its process, and what it leaves.

The reference is an integrator of our own in atomic units, on the model in this process: i-PI's NVE is velocity Verlet,
and in atomic units the only numbers both share are those in its input.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np

from dpserver.frames import Frames
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR
from tests import structures
from tests.doubles import PairModel
from tests.patience import JOB_PATIENCE
from tests.peer import Peer

IPI = Path(sys.executable).with_name("i-pi")
MASSES = {"O": 29166.2, "H": 1837.36}  # electron masses
TIME_STEP = 20.0  # atomic units
N_STEPS = 25

INPUT = """
<simulation verbosity='low'>
  <output prefix='run'>
    <properties filename='out' stride='1'> [ step, potential, conserved ] </properties>
    <trajectory filename='frc' stride='1' format='xyz'> forces </trajectory>
  </output>
  <total_steps> {n_steps} </total_steps>
  <prng> <seed> 31415 </seed> </prng>
  <ffsocket mode='{mode}' name='dp' pbc='false' matching='{matching}'>
    {address}
    <latency> {latency} </latency>
    {options}
  </ffsocket>
  <system>
    <initialize nbeads='{n_beads}'>
      <file mode='xyz' units='atomic_unit'> start.xyz </file>
      <masses mode='manual'> [ {masses} ] </masses>
      {velocities}
    </initialize>
    <forces> <force forcefield='dp'/> </forces>
    <ensemble> <temperature units='kelvin'> 300 </temperature> </ensemble>
    <motion mode='dynamics'>
      <fixcom> False </fixcom>
      <dynamics mode='nve'> <timestep> {time_step} </timestep> </dynamics>
    </motion>
  </system>
</simulation>
"""

EXCHANGE = """
<simulation verbosity='low'>
  <output prefix='run'> <properties filename='out' stride='1'> [ step, potential ] </properties> </output>
  <total_steps> {n_steps} </total_steps>
  <prng> <seed> 31415 </seed> </prng>
  <ffsocket mode='{mode}' name='dp' pbc='false'>
    {address}
    <latency> 1e-4 </latency>
  </ffsocket>
  {systems}
  <smotion mode='remd'> <remd> <stride> 2 </stride> </remd> </smotion>
</simulation>
"""

REPLICA = """
  <system prefix='at_{kelvin:g}'>
    <initialize nbeads='1'>
      <file mode='xyz' units='atomic_unit'> start.xyz </file>
      <masses mode='manual'> [ {masses} ] </masses>
      <velocities mode='thermal' units='kelvin'> {kelvin} </velocities>
    </initialize>
    <forces> <force forcefield='dp'/> </forces>
    <ensemble> <temperature units='kelvin'> {kelvin} </temperature> </ensemble>
    <motion mode='dynamics'>
      <fixcom> False </fixcom>
      <dynamics mode='nve'> <timestep> {time_step} </timestep> </dynamics>
    </motion>
  </system>
"""


def start(frames: Frames) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[str]]:
    """Positions, velocities and masses in atomic units, and symbols."""
    symbols = [structures.SPECIES[t] for t in frames.types]
    masses = np.array([MASSES[s] for s in symbols])
    x_bohr = np.round(frames.positions / BOHR, 8)
    velocities = np.round(np.random.default_rng(8).normal(size=x_bohr.shape) * np.sqrt(1e-3 / masses)[:, None], 10)
    return x_bohr, velocities, masses, symbols


def upright(frames: Frames) -> Frames:
    """The same structure turned so that i-PI takes its cell: the first vector along x, the second in the xy plane."""
    q, r = np.linalg.qr(frames.cell[0].T)
    turn = q * np.sign(np.diag(r))
    return replace(frames, positions=frames.positions @ turn, cell=np.tril(frames.cell @ turn))


def verlet(frames: Frames, n_steps: int = N_STEPS) -> tuple[np.ndarray, np.ndarray]:
    """Potential energies of all steps, (n_steps + 1,), and last positions, (n_atoms, 3), in atomic units."""
    x, v, masses, _ = start(frames)
    model = PairModel()

    def evaluate(positions: np.ndarray) -> tuple[float, np.ndarray]:
        result = model.evaluate(Frames.single(positions * BOHR, frames.types, cell_bohr(frames) * BOHR))
        return float(result.energy[0]) / HARTREE, result.forces / HARTREE_PER_BOHR / masses[:, None]

    energy, a = evaluate(x)
    energies = [energy]
    for _ in range(n_steps):
        v = v + 0.5 * TIME_STEP * a
        x = x + TIME_STEP * v
        energy, a = evaluate(x)
        v = v + 0.5 * TIME_STEP * a
        energies.append(energy)
    return np.array(energies), x


def cell_bohr(frames: Frames) -> np.ndarray:
    return np.round(frames.cell[0] / BOHR, 8)


def write_structure(folder: Path, frames: Frames) -> None:
    """The file that the input names."""
    x, _, _, symbols = start(frames)
    h = cell_bohr(frames)  # i-PI writes the lattice vectors as columns
    lines = [f"{s} " + " ".join(f"{c:.8f}" for c in r) for s, r in zip(symbols, x, strict=True)]
    comment = "# CELL(H): " + " ".join(f"{c:.8f}" for c in h.T.ravel()) + " cell{atomic_unit} positions{atomic_unit}"
    (folder / "start.xyz").write_text("\n".join([str(len(x)), comment, *lines]) + "\n")


def address(endpoint: str) -> str:
    """Where a forcefield listens, as the input says it."""
    kind, _, where = endpoint.partition(":")
    if kind in {"unix", "shm"}:
        return f"<address> {where.removeprefix('/tmp/ipi_')} </address>"
    host, _, port = where.rpartition(":")
    return f"<address> {host} </address> <port> {port} </port>"


def write_input(
    folder: Path,
    frames: Frames,
    endpoint: str,
    options: str = "",
    n_beads: int = 1,
    n_steps: int = N_STEPS,
    matching: str = "auto",
    latency: float = 1e-4,
) -> None:
    _, v, masses, _ = start(frames)
    write_structure(folder, frames)
    velocities = f"<velocities mode='manual'> [ {', '.join(f'{c:.10f}' for c in v.ravel())} ] </velocities>"
    (folder / "input.xml").write_text(
        INPUT.format(
            mode=endpoint.partition(":")[0],
            address=address(endpoint),
            options=options,
            matching=matching,
            latency=latency,
            n_beads=n_beads,
            n_steps=n_steps,
            time_step=TIME_STEP,
            masses=", ".join(map(str, masses)),
            velocities=velocities if n_beads == 1 else "<velocities mode='thermal' units='kelvin'> 300 </velocities>",
        )
    )


def write_exchange(
    folder: Path, frames: Frames, endpoint: str, kelvins: Sequence[float] = (300, 320, 345), n_steps: int = N_STEPS
) -> None:
    """Replica exchange between temperatures, with nothing random but the exchanges."""
    _, _, masses, _ = start(frames)
    numbers = ", ".join(map(str, masses))
    write_structure(folder, frames)
    systems = [REPLICA.format(kelvin=kelvin, masses=numbers, time_step=TIME_STEP) for kelvin in kelvins]
    (folder / "input.xml").write_text(
        EXCHANGE.format(
            mode=endpoint.partition(":")[0], address=address(endpoint), n_steps=n_steps, systems="".join(systems)
        )
    )


@contextmanager
def ipi(folder: Path, place: Path | None = None) -> Iterator[subprocess.Popen[str]]:
    """i-PI as its user starts it; killed when the test gives up on it.

    Args:
        folder: with its input.
        place: where another i-PI than that of this Python is installed.
    """
    command, environment = [str(IPI), "input.xml"], dict(os.environ)
    if place is not None:
        command = [sys.executable, str(place / "bin" / "i-pi"), "input.xml"]
        environment["PYTHONPATH"] = str(place)
    with (folder / "i-pi.log").open("w") as log:
        process = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=log, stderr=subprocess.STDOUT, text=True
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[str], folder: Path, limit: float = JOB_PATIENCE) -> None:
    assert process.wait(limit) == 0, (folder / "i-pi.log").read_text()


def energies(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "run.out")[:, 1]


def last_positions(folder: Path) -> np.ndarray:
    """Of all beads of all systems, (n, 3), from the restart file, which alone has every digit."""
    beads = ElementTree.parse(folder / "RESTART").getroot().findall("system/beads/q")
    assert beads
    return np.concatenate([np.array((q.text or "").strip(" \n[]").split(","), dtype=float) for q in beads]).reshape(
        -1, 3
    )


def free_endpoint(kind: str = "unix") -> str:
    """A place where nobody listens yet."""
    with Peer(0 if kind == "inet" else "unix") as place:
        return place.endpoint.replace("unix:", f"{kind}:")


def place(endpoint: str) -> str | int:
    """The path of a unix socket or the port."""
    kind, _, where = endpoint.partition(":")
    return int(where.rpartition(":")[2]) if kind == "inet" else where


def first_forces(folder: Path, n_atoms: int, bead: int) -> np.ndarray:
    """To the seven digits that i-PI prints."""
    lines = (folder / f"run.frc_{bead}.xyz").read_text().splitlines()[2 : 2 + n_atoms]
    return np.array([line.split()[1:] for line in lines], dtype=float)
