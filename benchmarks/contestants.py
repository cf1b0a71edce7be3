"""Engines that `peers.py` times beside each other: each a process, or several, that evaluates steps when it is told to.

All of them keep running while the others have their turns, asleep in a `recv` or a `read`. The ranks of LAMMPS would
look for messages meanwhile and take a core each; they are stopped between their turns. Ranks of our daemon look now and
then, for 2 to 4 % of a core, and are not stopped.
"""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from probe import Answer, Probe
from processes import family, is_alive, peak_memory, send_signal
from structures import ROOT, SPECIES
from trajectories import KELVIN, MASSES, TIME_STEP, Trajectory

CORES = sorted(os.sched_getaffinity(0))
BIN = Path(sys.executable).parent
_HUGE = 20_000
"""Atoms: beyond that a turn is shorter than a list lasts."""


@dataclass(frozen=True)
class Models:
    """One set of weights, in the files that the engines read, and where the peers are installed.

    Attributes:
        own: for dpserver; compressed: for DeePMD-kit with TensorFlow; plain: for DeePMD-kit with PyTorch, if any.
        peer: virtual environment of DeePMD-kit and LAMMPS.
    """

    own: Path
    compressed: Path
    plain: Path | None
    peer: Path


class Contestant(ABC):
    """An engine at work on one trajectory.

    Args:
        folder: for its files and its log.
        trajectory: what it is to evaluate.
    """

    seconds_per_turn = 2.0
    least_steps = 1
    most_steps = 40
    warm_up_steps = 2

    def __init__(self, folder: Path, trajectory: Trajectory) -> None:
        folder.mkdir(parents=True)
        self.folder = folder
        self.trajectory = trajectory
        self._processes: list[subprocess.Popen[str]] = []
        self._next = 0

    def steps_of(self, seconds: float) -> int:
        """Steps of a turn, if one takes so many seconds."""
        return int(np.clip(np.ceil(self.seconds_per_turn / seconds), self.least_steps, self.most_steps))

    @abstractmethod
    def start(self) -> Answer | None:
        """Start, and evaluate the first structure; its answer, where it says one."""

    @abstractmethod
    def run(self, first: int, last: int) -> list[float]:
        """Evaluate steps of the trajectory; seconds of each, or of all in the mean."""

    def turn(self, n_steps: int) -> list[float]:
        """Go on along the trajectory; seconds of each step."""
        if self._next + n_steps > self.trajectory.n_steps:
            self._next = 0
        first, self._next = self._next, self._next + n_steps
        return self.run(first, self._next)

    def memory_mb(self) -> float:
        """Most memory of all its processes together, each at its own worst moment."""
        return sum(map(peak_memory, self._pids())) / 1024

    def close(self) -> None:
        """End all its processes, whatever state they are in."""
        pids = self._pids()
        for process in self._processes:
            for stream in (process.stdin, process.stdout):
                if stream is not None:
                    with suppress(OSError):
                        stream.close()
        for number, patience in ((signal.SIGCONT, 5.0), (signal.SIGTERM, 3.0), (signal.SIGKILL, 3.0)):
            send_signal(pids, number)
            end = time.monotonic() + patience
            while any(is_alive(pid) for pid in pids) and time.monotonic() < end:
                for process in self._processes:
                    process.poll()
                time.sleep(0.05)
        for process in self._processes:
            process.wait()

    def _pids(self) -> list[int]:
        """All its processes that there are at the moment."""
        return [pid for process in self._processes for pid in family(process.pid)]

    def _spawn(self, command: Sequence[str | Path], threads: int, has_pipes: bool = False) -> subprocess.Popen[str]:
        """Start a process with so many threads of OpenMP and of TensorFlow."""
        count = str(threads)
        environment = {
            **os.environ,
            "OMP_NUM_THREADS": count,
            "DP_INTRA_OP_PARALLELISM_THREADS": count,
            "DP_INTER_OP_PARALLELISM_THREADS": "1",
            "TF_CPP_MIN_LOG_LEVEL": "3",
        }
        pipe = subprocess.PIPE if has_pipes else None
        with (self.folder / "log").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [os.fspath(part) for part in command],
                cwd=self.folder,
                env=environment,
                stdin=pipe or subprocess.DEVNULL,
                stdout=pipe or log,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._processes.append(process)
        return process

    def has_ended(self) -> bool:
        """Whether a process has ended, which none should by itself."""
        return any(process.poll() is not None for process in self._processes)

    def _failure(self) -> str:
        """What the log says at the end."""
        lines = (self.folder / "log").read_text(encoding="utf-8", errors="replace").splitlines()
        return " | ".join(line.strip() for line in lines[-3:] if line.strip())[:400]


class Dialling(Contestant):
    """An engine behind the i-PI socket.

    Args:
        folder: see `Contestant`.
        trajectory: see `Contestant`.
        n_lines: connections.
        per_message: structures in one message.
    """

    def __init__(self, folder: Path, trajectory: Trajectory, n_lines: int = 1, per_message: int = 1) -> None:
        super().__init__(folder, trajectory)
        self._n_lines = n_lines
        self._name = f"bench_{os.getpid()}_{time.monotonic_ns()}"
        self._probe = Probe(self._name, per_message)

    @abstractmethod
    def _dial(self) -> None:
        """Start the processes."""

    def start(self) -> Answer:
        """See `Contestant.start`."""
        self._dial()
        try:
            self._probe.accept(self._n_lines, self.has_ended)
            return self._ask(0)[1][0]
        except (OSError, ConnectionError) as error:
            raise RuntimeError(f"{error}: {self._failure()}") from error

    def run(self, first: int, last: int) -> list[float]:
        """See `Contestant.run`."""
        return [self._ask(step)[0] for step in range(first, last)]

    def _ask(self, step: int) -> tuple[float, list[Answer]]:
        return self._probe.ask(self.trajectory.at(step), self.trajectory.box())

    def close(self) -> None:
        """See `Contestant.close`."""
        self._probe.close()
        super().close()


class Daemon(Dialling):
    """`dpserver serve`, alone or on MPI ranks.

    Args:
        folder: see `Contestant`.
        trajectory: see `Contestant`.
        model: file.
        precision: double, mixed or single.
        threads: that compute, in each rank.
        ranks: of an MPI job.
        is_pinned: to one core, all of it.
        n_lines: see `Dialling`.
        per_message: see `Dialling`.
    """

    least_steps = 20
    """About as many as a list lasts."""
    warm_up_steps = 5

    def __init__(
        self,
        folder: Path,
        trajectory: Trajectory,
        model: Path,
        precision: str,
        threads: int,
        *,
        ranks: int = 1,
        is_pinned: bool = False,
        n_lines: int = 1,
        per_message: int = 1,
    ) -> None:
        super().__init__(folder, trajectory, n_lines, per_message)
        self._model, self._precision, self._threads, self._ranks = model, precision, threads, ranks
        self._is_pinned = is_pinned
        if trajectory.n_atoms > _HUGE:
            self.least_steps = 10

    def _dial(self) -> None:
        # fmt: off
        command = [
            sys.executable, "-m", "dpserver", "serve", "--model", self._model, "--connect", f"unix:{self._probe.path}",
            "--connections", str(self._n_lines), "--template", ROOT / "examples" / "water" / "water.xyz",
            "--precision", self._precision, "--threads", str(self._threads), "--device", "cpu", "--once",
            "--control", "off", "--log-level", "warning",
        ]
        # fmt: on
        if self._ranks > 1:
            command = [BIN / "mpiexec", "-n", str(self._ranks), *command]
        process = self._spawn(command, self._threads)
        if self._is_pinned:
            os.sched_setaffinity(process.pid, CORES[-1:])


class DpIpi(Dialling):
    """DeePMD-kit's own client of i-PI, a process for each connection.

    Args:
        folder: see `Contestant`.
        trajectory: see `Contestant`.
        models: where it is, and its model.
        threads: of TensorFlow.
        n_lines: processes.
    """

    seconds_per_turn = 0.5
    most_steps = 10

    def __init__(self, folder: Path, trajectory: Trajectory, models: Models, threads: int, n_lines: int = 1) -> None:
        super().__init__(folder, trajectory, n_lines)
        self._models, self._threads = models, threads

    def _dial(self) -> None:
        frame = self.trajectory.frames(0)[0]
        lattice = " ".join(f"{number:.9f}" for number in frame.cell.ravel())
        rows = [
            f"{SPECIES[t]} {x:.8f} {y:.8f} {z:.8f}" for t, (x, y, z) in zip(frame.types, frame.positions, strict=True)
        ]
        head = [str(frame.n_atoms), f'Lattice="{lattice}" Properties=species:S:1:pos:R:3 pbc="T T T"']
        (self.folder / "conf.xyz").write_text("\n".join([*head, *rows]) + "\n", encoding="utf-8")
        settings = {
            "verbose": False,
            "use_unix": True,
            "port": 31415,
            "host": self._name,
            "graph_file": str(self._models.compressed),
            "coord_file": "conf.xyz",
            "atom_type": {name: index for index, name in enumerate(SPECIES)},
        }
        (self.folder / "in.json").write_text(json.dumps(settings), encoding="utf-8")
        for _ in range(self._n_lines):
            self._spawn([self._models.peer / "bin" / "dp_ipi", "in.json"], self._threads)


class Lammps(Contestant):
    """LAMMPS with `pair_style deepmd`, in dynamics of its own from the same structure: a figure for each turn.

    The settings are those of DeePMD-kit's example of water, but lists are made anew only when an atom has moved by half
    of their skin of 2 Å, which costs it least. What it does before its loop, a list and an evaluation, is not counted;
    each turn is a loop of its own, of 20 fs at most, and that list lasts for nearly all of it.

    Args:
        folder: see `Contestant`.
        trajectory: its structure is the start.
        models: where it is, and its model.
        ranks: of MPI, a thread each.
    """

    least_steps = 5

    def __init__(self, folder: Path, trajectory: Trajectory, models: Models, ranks: int) -> None:
        super().__init__(folder, trajectory)
        self._models, self._ranks = models, ranks

    def start(self) -> Answer | None:
        """See `Contestant.start`; only the energy is told."""
        binaries = self._models.peer / "bin"
        ranks = [binaries / "mpirun", "-np", str(self._ranks)] if self._ranks > 1 else []
        self._spawn([*ranks, "stdbuf", "-oL", binaries / "lmp", "-log", "none"], 1, has_pipes=True)
        self._write_data()
        masses = [f"mass {k + 1} {mass}" for k, mass in enumerate(MASSES)]
        lines = [
            "units metal",
            "boundary p p p",
            "atom_style atomic",
            "neighbor 2.0 bin",
            "neigh_modify every 10 delay 0 check yes",
            "read_data water.data",
            *masses,
            f"pair_style deepmd {self._models.compressed}",
            f"pair_coeff * * {' '.join(SPECIES)}",
            f"velocity all create {KELVIN} 23456789",
            "fix 1 all nve",
            f"timestep {TIME_STEP / 1000}",
            "thermo_style custom step pe",
            "thermo_modify format float %.10f",
            "thermo 1000",
            "run 2 post no",
        ]
        text = self._say(lines)
        found = re.search(r"Step\s+PotEng\s*\n\s*0\s+(\S+)", text)
        self._stop(signal.SIGSTOP)
        return None if found is None else Answer(float(found[1]), np.zeros((0, 3)))

    def run(self, first: int, last: int) -> list[float]:
        """See `Contestant.run`."""
        self._stop(signal.SIGCONT)
        text = self._say([f"run {last - first} post no"])
        self._stop(signal.SIGSTOP)
        found = re.search(r"Loop time of (\S+) on \d+ procs for (\d+) steps", text)
        if found is None:
            raise RuntimeError(f"LAMMPS says nothing of its loop: {text[-400:]}")
        return [float(found[1]) / int(found[2])]

    def _say(self, lines: Sequence[str]) -> str:
        """Have commands obeyed, and return what it prints meanwhile."""
        (process,) = self._processes
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write("\n".join([*lines, 'print "all done"', ""]))
        process.stdin.flush()
        text = ""
        while not text.endswith("\nall done\n"):
            line = process.stdout.readline()
            if not line or line.startswith("ERROR"):
                raise RuntimeError(f"LAMMPS has ended: {line.strip()} {self._failure()} {text[-300:]}")
            text += line
        return text

    def _stop(self, number: signal.Signals) -> None:
        """Stop or continue the ranks."""
        send_signal(self._pids(), number)

    def _write_data(self) -> None:
        """The structure as LAMMPS reads it."""
        frame = self.trajectory.frames(0)[0]
        edges = np.diag(frame.cell[0])
        head = ["water", "", f"{frame.n_atoms} atoms", "2 atom types", ""]
        head += [f"0.0 {edge:.12f} {name}lo {name}hi" for name, edge in zip("xyz", edges, strict=True)]
        atoms = zip(frame.types, frame.positions % edges, strict=True)
        rows = [f"{k} {t + 1} {x:.12f} {y:.12f} {z:.12f}" for k, (t, (x, y, z)) in enumerate(atoms, 1)]
        text = "\n".join([*head, "", "Atoms # atomic", "", *rows])
        (self.folder / "water.data").write_text(text + "\n", encoding="utf-8")


class Evaluator(Contestant):
    """A library called from Python; see `evaluator.py`.

    Args:
        folder: see `Contestant`.
        trajectory: see `Contestant`.
        python: that runs it.
        kind: see `evaluator.py`.
        model: its file.
    """

    def __init__(self, folder: Path, trajectory: Trajectory, python: Path, kind: str, model: Path) -> None:
        super().__init__(folder, trajectory)
        self._command = [python, Path(__file__).with_name("evaluator.py"), kind, model, "structures.npz"]
        if kind != "deepmd":
            self.least_steps, self.warm_up_steps = Daemon.least_steps, Daemon.warm_up_steps
        else:
            self.seconds_per_turn, self.most_steps = DpIpi.seconds_per_turn, DpIpi.most_steps

    def start(self) -> Answer:
        """See `Contestant.start`."""
        t = self.trajectory
        path = self.folder / "structures.npz"
        np.savez(path, positions=t.positions, cell=t.cell, types=t.types, tiles=np.array(t.tiles))
        self._spawn(self._command, len(CORES), has_pipes=True)
        self.run(0, 1)
        found = np.load(path.with_name(path.name + ".forces.npz"))
        return Answer(float(found["energy"][0]), found["forces"][0])

    def run(self, first: int, last: int) -> list[float]:
        """See `Contestant.run`."""
        (process,) = self._processes
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdin.write(f"{first} {last}\n")
        process.stdin.flush()
        line = process.stdout.readline()
        if not line:
            raise RuntimeError(f"the evaluation has ended: {self._failure()}")
        return list(map(float, json.loads(line)))
