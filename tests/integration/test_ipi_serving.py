"""Real i-PI dynamics through the daemon.

The reference is an integrator of our own in atomic units, on the model in this process: i-PI's NVE is velocity Verlet,
and in atomic units the only numbers both share are those in its input.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest

from dpserver.daemon import ExitCode
from dpserver.frames import Frames
from dpserver.ipi import Structures
from dpserver.units import BOHR, HARTREE, HARTREE_PER_BOHR
from tests import structures
from tests.daemon.serving import WATER, serving, target
from tests.doubles import PairModel
from tests.peer import Peer

pytest.importorskip("ipi")

IPI = Path(sys.executable).with_name("i-pi")
MASSES = {"O": 29166.2, "H": 1837.36}  # electron masses
TIME_STEP = 20.0  # atomic units
N_STEPS = 25
LIMIT = 120  # s, for one i-PI

INPUT = """
<simulation verbosity='low'>
  <output prefix='run'>
    <properties filename='out' stride='1'> [ step, potential, conserved ] </properties>
    <trajectory filename='frc' stride='1' format='xyz'> forces </trajectory>
  </output>
  <total_steps> {n_steps} </total_steps>
  <ffsocket mode='{mode}' name='dp' pbc='false'>
    {address}
    <latency> 1e-4 </latency>
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


def write_input(
    folder: Path, frames: Frames, endpoint: str, options: str = "", n_beads: int = 1, n_steps: int = N_STEPS
) -> None:
    x, v, masses, symbols = start(frames)
    kind, _, where = endpoint.partition(":")
    host, _, port = where.rpartition(":")
    address = (
        f"<address> {where.removeprefix('/tmp/ipi_')} </address>"
        if kind == "unix"
        else f"<address> {host} </address> <port> {port} </port>"
    )
    h = cell_bohr(frames)  # i-PI writes the lattice vectors as columns
    lines = [f"{s} " + " ".join(f"{c:.8f}" for c in r) for s, r in zip(symbols, x, strict=True)]
    comment = "# CELL(H): " + " ".join(f"{c:.8f}" for c in h.T.ravel()) + " cell{atomic_unit} positions{atomic_unit}"
    (folder / "start.xyz").write_text("\n".join([str(len(x)), comment, *lines]) + "\n")
    velocities = f"<velocities mode='manual'> [ {', '.join(f'{c:.10f}' for c in v.ravel())} ] </velocities>"
    (folder / "input.xml").write_text(
        INPUT.format(
            mode=kind,
            address=address,
            options=options,
            n_beads=n_beads,
            n_steps=n_steps,
            time_step=TIME_STEP,
            masses=", ".join(map(str, masses)),
            velocities=velocities if n_beads == 1 else "<velocities mode='thermal' units='kelvin'> 300 </velocities>",
        )
    )


@contextmanager
def ipi(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """i-PI as its user starts it; killed when the test gives up on it."""
    with (folder / "i-pi.log").open("w") as log:
        process = subprocess.Popen([str(IPI), "input.xml"], cwd=folder, stdout=log, stderr=subprocess.STDOUT, text=True)
        try:
            yield process
        finally:
            process.kill()
            process.wait()


def finish(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.wait(LIMIT) == 0, (folder / "i-pi.log").read_text()


def energies(folder: Path) -> np.ndarray:
    return np.loadtxt(folder / "run.out")[:, 1]


def last_positions(folder: Path) -> np.ndarray:
    """From the restart file, which alone has every digit."""
    beads = ElementTree.parse(folder / "RESTART").getroot().find("system/beads/q")
    assert beads is not None
    assert beads.text is not None
    return np.array(beads.text.strip(" \n[]").split(","), dtype=float).reshape(-1, 3)


def first_forces(folder: Path, n_atoms: int, bead: int) -> np.ndarray:
    """To the seven digits that i-PI prints."""
    lines = (folder / f"run.frc_{bead}.xyz").read_text().splitlines()[2 : 2 + n_atoms]
    return np.array([line.split()[1:] for line in lines], dtype=float)


@pytest.fixture
def endpoint(request) -> str:
    """A place where nobody listens yet; unix unless a test asks for inet."""
    with Peer(0 if getattr(request, "param", "unix") == "inet" else "unix") as place:
        return place.endpoint


# i-PI leaves consolidated messages out when told so: then it is the i-PI of before 3.2.
MESSAGES = {"consolidated": "", "classic": "<consolidate_messages> False </consolidate_messages>"}
BATCHED = "<batch_size> 4 </batch_size>"
FRAMES = {"cubic": structures.cubic(), "triclinic": upright(structures.water((2, 2, 2), structures.SHEAR))}


@pytest.mark.parametrize(
    ("endpoint", "messages", "name"),
    [
        ("unix", "consolidated", "triclinic"),
        ("inet", "consolidated", "cubic"),
        ("unix", "classic", "cubic"),
        ("inet", "classic", "triclinic"),
    ],
    indirect=["endpoint"],
)
def test_nve_is_velocity_verlet_on_the_model(tmp_path, endpoint, messages, name):
    frames = FRAMES[name]
    write_input(tmp_path, frames, endpoint, MESSAGES[messages])
    with serving(PairModel(), target(endpoint), is_once=True) as served, ipi(tmp_path) as process:
        finish(process, tmp_path)
        assert served.result() is ExitCode.STOPPED
    expected_energies, expected_positions = verlet(frames)
    np.testing.assert_allclose(energies(tmp_path), expected_energies, rtol=1e-8)
    np.testing.assert_allclose(last_positions(tmp_path), expected_positions, rtol=0, atol=1e-8)


@pytest.mark.parametrize(
    ("endpoint", "options", "connections"),
    [("unix", "", 1), ("inet", "", 3), ("unix", BATCHED, 3), ("inet", BATCHED, 1)],
    indirect=["endpoint"],
)
def test_beads_are_all_served(tmp_path, endpoint, options, connections):
    """Each of six beads at one point gets the forces of that point."""
    frames = FRAMES["cubic"]
    x, _, _, _ = start(frames)
    write_input(tmp_path, frames, endpoint, options, n_beads=6, n_steps=4)
    model = PairModel()
    with serving(model, target(endpoint, connections=connections)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    np.testing.assert_allclose(energies(tmp_path)[0], verlet(frames, 0)[0][0], rtol=1e-8)
    result = model.evaluate(Frames.single(x * BOHR, frames.types, cell_bohr(frames) * BOHR))
    for bead in range(6):
        served_forces = first_forces(tmp_path, frames.n_atoms, bead)
        np.testing.assert_allclose(served_forces, result.forces / HARTREE_PER_BOHR, rtol=1e-5)


def test_the_parameters_of_the_forcefield_name_the_template(tmp_path, endpoint, caplog):
    caplog.set_level("INFO")
    frames = FRAMES["cubic"]
    template = tmp_path / "w.xyz"
    template.write_text("3\n\nO 0 0 0\nH 0 0 1\nH 0 1 0\n")
    options = f"<parameters> {{ template: {template} }} </parameters>"
    write_input(tmp_path, frames, endpoint, options, n_steps=2)
    with serving(PairModel(), target(endpoint, None)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    np.testing.assert_allclose(energies(tmp_path), verlet(frames, 2)[0], rtol=1e-8)
    assert f"from the peer's INIT template ({template})" in caplog.text


def test_a_refused_frame_is_queued_again_and_the_trajectory_is_the_same(tmp_path, endpoint, monkeypatch):
    """The daemon drops its peer in the middle of a run, and dials again."""
    from dpserver.engine import Assigner
    from dpserver.errors import StructureError

    frames, calls = FRAMES["cubic"], []
    make = Assigner.frames

    def refuse_some(self: Assigner, sent: Structures) -> Frames:
        calls.append(len(calls))
        if calls[-1] in {0, 5, 6, 11}:
            raise StructureError("refused for the sake of the test")
        return make(self, sent)

    monkeypatch.setattr(Assigner, "frames", refuse_some)
    write_input(tmp_path, frames, endpoint)
    with serving(PairModel(), target(endpoint)), ipi(tmp_path) as process:
        finish(process, tmp_path)
    expected_energies, expected_positions = verlet(frames)
    np.testing.assert_allclose(energies(tmp_path), expected_energies, rtol=1e-8)
    np.testing.assert_allclose(last_positions(tmp_path), expected_positions, rtol=0, atol=1e-8)
    assert len(calls) == N_STEPS + 1 + 4


def test_two_simulations_and_one_that_is_killed(tmp_path):
    frames = FRAMES["cubic"]
    endpoints = []
    for name in ("a", "b", "killed"):
        with Peer() as place:
            endpoints.append(place.endpoint)
        (tmp_path / name).mkdir()
        write_input(tmp_path / name, frames, endpoints[-1], n_steps=N_STEPS if name != "killed" else 100_000)
    with (
        serving(PairModel(), *(target(e, WATER) for e in endpoints)),
        ipi(tmp_path / "a") as a,
        ipi(tmp_path / "b") as b,
    ):
        with ipi(tmp_path / "killed"):
            finish(a, tmp_path / "a")
        finish(b, tmp_path / "b")
    Path(endpoints[-1].removeprefix("unix:")).unlink()  # the killed one could not tidy up
    expected, _ = verlet(frames)
    for name in ("a", "b"):
        np.testing.assert_allclose(energies(tmp_path / name), expected, rtol=1e-8)
