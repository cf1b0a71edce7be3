"""Real ASE dynamics through the daemon against the same model in the process of ASE."""

from __future__ import annotations

import numpy as np
import pytest

from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.peer import Peer

ase = pytest.importorskip("ase")
socketio = pytest.importorskip("ase.calculators.socketio")

from ase import units  # noqa: E402
from ase.calculators.calculator import Calculator, all_changes  # noqa: E402
from ase.md.verlet import VelocityVerlet  # noqa: E402
from ase.optimize import BFGS  # noqa: E402
from ase.stress import full_3x3_to_voigt_6_stress  # noqa: E402

from dpserver.frames import Frames  # noqa: E402
from dpserver.transport import Backoff  # noqa: E402
from tests.patience import PATIENCE  # noqa: E402


class InProcess(Calculator):
    """The model without a daemon."""

    implemented_properties = ["energy", "forces", "stress"]  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.model = PairModel()

    def calculate(self, atoms=None, properties=("energy",), system_changes=all_changes):
        super().calculate(atoms, properties, system_changes)
        types = [PairModel.species.index(s) for s in self.atoms.symbols]
        result = self.model.evaluate(Frames.single(self.atoms.positions, types, self.atoms.cell.array))
        self.results = {"energy": float(result.energy[0]), "forces": result.forces}
        if self.atoms.cell.rank == 3:
            self.results["stress"] = full_3x3_to_voigt_6_stress(-result.virial[0]) / self.atoms.get_volume()


def atoms(frames: Frames):
    made = ase.Atoms("OHH" * (frames.n_atoms // 3), frames.positions, cell=frames.cell[0], pbc=frames.pbc[0])
    thermal = np.sqrt(units.kB * 300 / made.get_masses())[:, None]
    made.set_velocities(thermal * np.random.default_rng(3).normal(size=(len(made), 3)))
    return made


def run(made, calculator, n_steps: int = 40):
    """Velocities, positions, energies and, with a cell, stresses of a short trajectory."""
    made.calc = calculator
    rows = []
    dynamics = VelocityVerlet(made, 0.5 * units.fs)
    for _ in dynamics.irun(n_steps):
        stress = made.get_stress() if made.cell.rank == 3 else []
        rows.append(
            np.concatenate([made.positions.ravel(), made.get_velocities().ravel(), [made.get_potential_energy()]])
        )
        rows.append(np.asarray(stress))
    return np.concatenate(rows)


@pytest.fixture(params=["unix", "inet"])
def listening(request):
    """How ASE is to listen, and where we dial then."""
    with Peer("unix" if request.param == "unix" else 0) as place:
        address = place.address
    if request.param == "unix":
        return {"unixsocket": address.removeprefix("/tmp/ipi_")}, f"unix:{address}"
    return {"port": address}, f"inet:localhost:{address}"


@pytest.mark.parametrize(
    "frames", [structures.cubic(), structures.water((2, 2, 2), structures.SHEAR), structures.cluster()]
)
def test_a_trajectory_is_that_of_the_model_in_process(listening, frames):
    options, endpoint = listening
    with serving(PairModel(), target(endpoint)), socketio.SocketIOCalculator(timeout=PATIENCE, **options) as calculator:
        served = run(atoms(frames), calculator)
    np.testing.assert_allclose(served, run(atoms(frames), InProcess()), rtol=0, atol=1e-8)


def test_one_daemon_serves_one_calculator_after_the_other(listening):
    options, endpoint = listening
    expected = run(atoms(structures.cubic()), InProcess(), 3)
    with serving(PairModel(), target(endpoint)):
        for _ in range(3):
            with socketio.SocketIOCalculator(timeout=PATIENCE, **options) as calculator:
                served = run(atoms(structures.cubic()), calculator, 3)
            np.testing.assert_allclose(served, expected, rtol=0, atol=1e-8)


def relax(made, calculator) -> list[float]:
    """Energies on the way to a minimum."""
    made.calc = calculator
    optimiser = BFGS(made, logfile=None)
    return [made.get_potential_energy() for _ in optimiser.irun(fmax=0.02, steps=40)]


def test_the_connection_that_ase_never_accepts_disturbs_neither_this_optimisation_nor_the_next(listening, caplog):
    caplog.set_level("DEBUG")
    options, endpoint = listening
    with serving(PairModel(), target(endpoint, connections=None), make_backoff=Backoff):
        for seed in range(3):
            with socketio.SocketIOCalculator(timeout=PATIENCE, **options) as calculator:
                served = relax(atoms(structures.cubic(seed)), calculator)
            np.testing.assert_allclose(served, relax(atoms(structures.cubic(seed)), InProcess()), rtol=0, atol=1e-8)
    messages = [r.getMessage() for r in caplog.records]
    assert messages.count(f"{endpoint} #2: connected") == 3
    assert not any("#3" in message for message in messages)
    assert [r for r in caplog.records if r.levelname in {"WARNING", "ERROR"}] == []


def test_ase_is_told_when_its_structure_is_refused(listening):
    options, endpoint = listening
    with serving(PairModel(), target(endpoint)), socketio.SocketIOCalculator(timeout=PATIENCE, **options) as calculator:
        made = atoms(structures.cubic())[:10]
        made.calc = calculator
        with pytest.raises((socketio.SocketClosed, ConnectionError)):
            made.get_forces()
