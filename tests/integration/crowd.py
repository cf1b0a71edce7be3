"""Four kinds of simulations that share a daemon, and what each of them gives when it has one for itself."""

from __future__ import annotations

import contextlib
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import ase
import numpy as np
from ase.calculators.socketio import SocketIOCalculator
from ase.optimize import BFGS

from dpserver.daemon import Target
from dpserver.engine import ForceModel
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import (
    finish,
    free_endpoint,
    ipi,
    last_positions,
    place,
    upright,
    write_exchange,
    write_input,
)
from tests.patience import JOB_PATIENCE

CUBIC = structures.cubic()
TRICLINIC = upright(structures.water((2, 2, 2), structures.SHEAR))
N_BEADS = 3
N_OPTIMISATION = 15


@dataclass
class Simulation:
    """One i-PI, its folder and its place.

    Attributes:
        folder: of its input.
        endpoint: where it listens.
        connections: that it is given; None for as many as it keeps busy.
    """

    folder: Path
    endpoint: str
    connections: int | None = None

    @property
    def target(self) -> Target:
        """For the daemon."""
        return target(self.endpoint, connections=self.connections)


def path_integral(folder: Path) -> Simulation:
    """Three beads on a unix socket."""
    made = Simulation(folder, free_endpoint())
    write_input(folder, CUBIC, made.endpoint, n_beads=N_BEADS)
    return made


def in_batches(folder: Path) -> Simulation:
    """Another cell, over one TCP connection, two structures in a message."""
    made = Simulation(folder, free_endpoint("inet"), 1)
    write_input(folder, TRICLINIC, made.endpoint, "<batch_size> 2 </batch_size>", n_beads=N_BEADS)
    return made


def exchange(folder: Path) -> Simulation:
    """Three replicas over two connections."""
    made = Simulation(folder, free_endpoint(), 2)
    write_exchange(folder, CUBIC, made.endpoint)
    return made


KINDS = {"path integral": path_integral, "in batches": in_batches, "exchange": exchange}


def optimise(endpoint: str) -> np.ndarray:
    """The path of an ASE optimisation, (n_steps + 1, n_atoms, 3), Å."""
    frames = structures.cluster()
    atoms = ase.Atoms("OHH" * (frames.n_atoms // 3), frames.positions)
    with SocketIOCalculator(
        unixsocket=str(place(endpoint)).removeprefix("/tmp/ipi_"), timeout=JOB_PATIENCE
    ) as calculator:
        atoms.calc = calculator
        steps = BFGS(atoms, logfile=None).irun(fmax=0, steps=N_OPTIMISATION)
        path = [atoms.positions.copy() for _ in steps]
    return np.array(path)


@dataclass
class Optimisation:
    """One in a thread of the test."""

    endpoint: str = field(default_factory=free_endpoint)
    path: np.ndarray | None = None

    def run(self) -> None:
        self.path = optimise(self.endpoint)

    @contextmanager
    def running(self) -> Iterator[threading.Thread]:
        thread = threading.Thread(target=self.run, name="ase")
        thread.start()
        try:
            yield thread
        finally:
            thread.join(JOB_PATIENCE)


@dataclass
class Results:
    """What they leave: last positions of the i-PI runs, the path of the optimisation."""

    last: dict[str, np.ndarray]
    path: np.ndarray

    def check(self, expected: Results) -> None:
        """Hold them against those of other runs."""
        assert self.last.keys() == expected.last.keys()
        for name, positions in self.last.items():
            np.testing.assert_allclose(positions, expected.last[name], rtol=0, atol=1e-10, err_msg=name)
        np.testing.assert_allclose(self.path, expected.path, rtol=0, atol=1e-10)


def alone(folder: Path) -> Results:
    """One after the other, each with a daemon of its own."""
    last = {}
    for name, make in KINDS.items():
        (folder / name).mkdir()
        simulation = make(folder / name)
        with serving(PairModel(), simulation.target), ipi(simulation.folder) as process:
            finish(process, simulation.folder)
        last[name] = last_positions(simulation.folder)
    optimisation = Optimisation()
    with serving(PairModel(), target(optimisation.endpoint)):
        optimisation.run()
    assert optimisation.path is not None
    return Results(last, optimisation.path)


class Crowd:
    """All of them at once.

    Args:
        folder: of their folders.
    """

    def __init__(self, folder: Path) -> None:
        self.simulations: dict[str, Simulation] = {}
        for name, make in KINDS.items():
            (folder / name).mkdir()
            self.simulations[name] = make(folder / name)
        self.optimisation = Optimisation()
        self.processes: dict[str, subprocess.Popen[str]] = {}

    @contextmanager
    def running(self, model: ForceModel, *others: Target) -> Iterator[threading.Thread]:
        """Start them on one daemon; the thread is that of the optimisation."""
        targets = [simulation.target for simulation in self.simulations.values()]
        with contextlib.ExitStack() as stack:
            stack.enter_context(serving(model, *targets, target(self.optimisation.endpoint), *others))
            for name, simulation in self.simulations.items():
                self.processes[name] = stack.enter_context(ipi(simulation.folder))
            yield stack.enter_context(self.optimisation.running())

    def finish(self, *names: str) -> None:
        """Wait for some of them."""
        for name in names:
            finish(self.processes[name], self.simulations[name].folder)

    def results(self) -> Results:
        """Of what has finished."""
        assert self.optimisation.path is not None
        return Results({n: last_positions(s.folder) for n, s in self.simulations.items()}, self.optimisation.path)
