"""Dynamics by i-PI through the daemon, two processes; goes on from i-PI's checkpoint after an interruption.

Also single evaluations through the daemon, so that every model passes it at least once.
"""

from __future__ import annotations

import importlib.util
import os
import re
import subprocess
import sys
import time
import uuid
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, Final, NamedTuple

import ase
import ase.io
import numpy as np

from benchmarks.science.common import ROOT, Refused, last_words, say
from dpserver.demo.trajectory import Trajectory, read_properties, read_trajectory
from dpserver.errors import ConfigError, DPServerError
from dpserver.frames import Floats

PREFIX: Final = "simulation"
_GRACE: Final = 20.0  # s that a child has for leaving on its own
_LEAVING: Final = 60.0  # s that i-PI has for its last words after the daemon has left as it should
_POLL: Final = 0.1  # s
_WRONG_WITH_ATOMS: Final = re.compile(r" Å apart|neighbours of type|not finite")
_SAYS: Final = 60.0  # s between two words about how far it is


@dataclass(frozen=True)
class Dynamics:
    """What i-PI is to do.

    Attributes:
        structure: initial positions and cell, extended XYZ.
        steps: time steps.
        timestep: fs.
        temperature: of initial velocities and thermostat, K.
        beads: imaginary-time slices.
        ensemble: `nvt` or `nve`.
        thermostat: of i-PI; by default `svr` for one bead and `pile_g` for several.
        tau: its time, fs.
        seed: of velocities and thermostat.
        stride: steps between two lines of properties.
        frames: steps between two frames of the trajectory; 0 for no trajectory.
        properties: columns besides step, time{picosecond}, conserved{electronvolt}, temperature{kelvin} and
            potential{electronvolt}.
        offset: energy that i-PI subtracts, eV, to have more digits of what is left.
        masses: of each atom, u; those of the elements by default.
        has_fixed_centre: whether the velocity of the centre of mass is kept at 0.
        transport: `sockets`, a connection for each bead; `batch`, all beads in one message; `shm`, the same in shared
            memory.
        latency: s, that i-PI waits between two looks at its sockets.
    """

    structure: Path
    steps: int
    timestep: float = 0.5
    temperature: float = 300.0
    beads: int = 1
    ensemble: str = "nvt"
    thermostat: str = ""
    tau: float = 100.0
    seed: int = 31415
    stride: int = 1
    frames: int = 20
    properties: tuple[str, ...] = ()
    offset: float = 0.0
    masses: tuple[float, ...] = ()
    has_fixed_centre: bool = True
    transport: str = "sockets"
    latency: float = 1e-3


def run(
    folder: Path, model: Path, dynamics: Dynamics, *, precision: str | None = None, threads: int | None = None
) -> dict[str, Floats]:
    """Run i-PI and the daemon to the last step, or on to it.

    Args:
        folder: for everything both write.
        model: to serve.
        dynamics: what to do; a folder with other dynamics in it is not to be given.
        precision: of the daemon; the model's own by default.
        threads: of the daemon.

    Returns:
        The columns of i-PI's properties, one row for each step written.

    Raises:
        ConfigError: i-PI is not installed.
        Refused: the dynamics ended in a structure without an answer.
        DPServerError: one side left too early; the message ends with its last words.
    """
    folder.mkdir(parents=True, exist_ok=True)
    done, last = read_table(folder), dynamics.steps - dynamics.steps % dynamics.stride
    if done is not None and done["step"][-1] >= last:
        return done
    address = f"dpserver_science_{uuid.uuid4().hex[:8]}"
    start = _start(folder, dynamics, address)
    kind = "shm" if dynamics.transport == "shm" else "unix"
    daemon = [
        *(sys.executable, "-m", "dpserver", "serve", "--once", "--timeout", "120", "--log-level", "warning"),
        *("--model", str(model.resolve()), "--template", str(dynamics.structure.resolve())),
        *("--connect", f"{kind}:{address}"),
        *(() if precision is None else ("--precision", precision)),
        *(() if threads is None else ("--threads", str(threads))),
    ]
    with (
        _child([_ipi(), start], folder, "i-pi.log", OMP_NUM_THREADS="1") as ipi,
        _child(daemon, folder, "dpserver.log") as engine,
    ):
        try:
            _follow(folder, dynamics, ipi, engine)
        finally:
            Path(f"/tmp/ipi_{address}").unlink(missing_ok=True)
    table = read_table(folder)
    if table is None or table["step"][-1] < last:
        words = last_words((folder / "i-pi.log").read_text(encoding="utf-8", errors="replace"))
        raise DPServerError(f"i-PI left early; the end of {folder / 'i-pi.log'}: {words}")
    return table


def read_table(folder: Path) -> dict[str, Floats] | None:
    """Properties written so far, each step once; None before the first."""
    path = folder / f"{PREFIX}.out"
    if not path.exists() or b"\n" not in path.read_bytes():
        return None
    columns = read_properties(path)
    if not len(columns["step"]):
        return None
    # What was done between the last checkpoint and an interruption has been done twice.
    _, last = np.unique(columns["step"][::-1], return_index=True)
    rows = len(columns["step"]) - 1 - last
    return {name: values[rows] for name, values in columns.items()}


def read_frames(folder: Path, settled: float = 0.0) -> list[Trajectory]:
    """The trajectory of each bead, each frame once.

    Args:
        folder: of the run.
        settled: share of the frames to leave out at the beginning.
    """
    found = []
    for path in sorted(folder.glob(f"{PREFIX}.pos_*.xyz")):
        whole = read_trajectory(path)
        steps = [int(m) for m in re.findall(r"Step:\s+(\d+)", path.read_text(encoding="utf-8"))]
        _, last = np.unique(steps[: len(whole.positions)][::-1], return_index=True)
        kept = (len(whole.positions) - 1 - last)[int(settled * len(last)) :]
        found.append(Trajectory(whole.symbols, whole.positions[kept], whole.cells[kept]))
    return found


def _start(folder: Path, dynamics: Dynamics, address: str) -> str:
    """Write i-PI's input, or point its last checkpoint to the new address; the name of the file to start from."""
    for checkpoint in sorted(
        (p for p in (folder / "RESTART", folder / f"{PREFIX}.chk") if p.exists()),
        key=lambda p: p.stat().st_mtime,
        reverse=True,
    ):
        text = checkpoint.read_text(encoding="utf-8")
        if text.rstrip().endswith("</simulation>"):
            text = re.sub(r"<address>[^<]*</address>", f"<address> {address} </address>", text)
            (folder / "continue.xml").write_text(text, encoding="utf-8")
            return "continue.xml"
    for left in folder.glob(f"{PREFIX}.*"):
        left.unlink()
    (folder / "input.xml").write_text(input_of(dynamics, address), encoding="utf-8")
    return "input.xml"


def input_of(dynamics: Dynamics, address: str) -> str:
    """i-PI's input, with a checkpoint twenty times on the way and at least every 10,000 steps."""
    d = dynamics
    thermostat = d.thermostat or ("svr" if d.beads == 1 else "pile_g")
    columns = [
        "step", "time{picosecond}", "conserved{electronvolt}", "temperature{kelvin}", "potential{electronvolt}",
        *d.properties,
    ]  # fmt: skip
    frames = (
        f'<trajectory filename="pos" stride="{d.frames}" cell_units="angstrom"> positions{{angstrom}} </trajectory>'
        if d.frames
        else ""
    )
    masses = (
        f'<masses mode="manual" units="dalton"> [ {", ".join(f"{m:.10g}" for m in d.masses)} ] </masses>'
        if d.masses
        else ""
    )
    batch = "" if d.transport == "sockets" else f"<batch_size> {d.beads} </batch_size>"
    bath = f"""
        <thermostat mode="{thermostat}"> <tau units="femtosecond"> {d.tau} </tau> </thermostat>"""
    return f"""<simulation verbosity="low">
  <output prefix="{PREFIX}">
    <properties filename="out" stride="{d.stride}"> [ {", ".join(columns)} ] </properties>
    {frames}
    <checkpoint filename="chk" stride="{min(10_000, max(1, d.steps // 20))}" overwrite="true"/>
  </output>
  <total_steps> {d.steps} </total_steps>
  <prng> <seed> {d.seed} </seed> </prng>
  <ffsocket name="dp" mode="{"shm" if d.transport == "shm" else "unix"}" pbc="false">
    <address> {address} </address>
    <latency> {d.latency} </latency>
    <offset units="electronvolt"> {d.offset} </offset>
    {batch}
  </ffsocket>
  <system>
    <initialize nbeads="{d.beads}">
      <file mode="ase"> {d.structure.resolve()} </file>
      {masses}
      <velocities mode="thermal" units="kelvin"> {d.temperature} </velocities>
    </initialize>
    <forces> <force forcefield="dp"/> </forces>
    <ensemble> <temperature units="kelvin"> {d.temperature} </temperature> </ensemble>
    <motion mode="dynamics">
      <fixcom> {d.has_fixed_centre} </fixcom>
      <dynamics mode="{d.ensemble}" splitting="{"obabo" if d.ensemble == "nve" else "baoab"}">
        <timestep units="femtosecond"> {d.timestep} </timestep>{"" if d.ensemble == "nve" else bath}
      </dynamics>
    </motion>
  </system>
</simulation>
"""


def _ipi() -> str:
    """i-PI beside this interpreter."""
    path = Path(sys.executable).with_name("i-pi")
    if not path.exists():
        raise ConfigError("this part needs i-PI; run: pip install 'dpserver[ipi,ase,plot]'")
    return str(path)


@contextmanager
def _child(command: Sequence[str], folder: Path, log: str, **environment: str) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a log; asked to leave at the end, and ended if it does not."""
    with (folder / log).open("wb") as stream:
        process = subprocess.Popen(
            command, cwd=folder, stdin=subprocess.DEVNULL, stdout=stream, stderr=subprocess.STDOUT,
            env={**os.environ, **environment}, start_new_session=True,
        )  # fmt: skip
    try:
        yield process
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
        process.kill()
        process.wait()


def _follow(folder: Path, dynamics: Dynamics, ipi: subprocess.Popen[bytes], engine: subprocess.Popen[bytes]) -> None:
    """Wait until i-PI has left, or the daemon has without having been told to."""
    heard, left = time.monotonic(), float("inf")
    while ipi.poll() is None:
        if engine.poll() is not None:
            left = min(left, time.monotonic())
        if engine.returncode or time.monotonic() - left > _LEAVING:
            log = (folder / "dpserver.log").read_text(encoding="utf-8", errors="replace")
            reason, table = _first_refusal(log), read_table(folder)
            if reason is not None and table is not None and table["step"][-1] > 0:
                raise Refused(float(table["time"][-1]), reason)
            words = last_words(log)
            raise DPServerError(f"the daemon left with status {engine.returncode}: {words}")
        time.sleep(_POLL)
        if time.monotonic() - heard > _SAYS:
            heard, table = time.monotonic(), read_table(folder)
            say(f"  step {0 if table is None else int(table['step'][-1])} of {dynamics.steps}")
    with suppress(subprocess.TimeoutExpired):
        engine.wait(_GRACE)


def _first_refusal(log: str) -> str | None:
    """What the daemon first found wrong with atoms, from its log; None where it left for another reason."""
    found = re.search(r"refused: (.*?)(; served |$)", log, re.MULTILINE)
    return found.group(1) if found and _WRONG_WITH_ATOMS.search(found.group(1)) else None


# Single structures.


@cache
def _driver() -> Any:
    """The calculator of drivers/ase, which starts a daemon and stops it."""
    spec = importlib.util.spec_from_file_location("dpserver_ase", ROOT / "drivers" / "ase" / "dpserver_ase.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Served(NamedTuple):
    """What a daemon has answered.

    Attributes:
        energies: (n,), eV.
        forces: of each structure, (n_atoms, 3), eV/Å.
        seconds: that each took over the socket, (n,).
    """

    energies: Floats
    forces: list[Floats]
    seconds: Floats


def served(model: Path, structures: Iterable[ase.Atoms], precision: str | None = None) -> Served:
    """Evaluate structures by a daemon, over a socket, one after the other.

    Args:
        model: what the daemon serves.
        structures: with the same species in the same order; their boundary conditions are sent along.
        precision: of the daemon; the model's own by default.

    Raises:
        CalculationFailed: the daemon has no answer; the message has its last words.
    """
    energies, forces, seconds = [], [], []
    with _driver().DPServer(model, device="cpu", precision=precision) as calculator:
        for atoms in structures:
            placed = atoms.copy()
            placed.calc = calculator
            began = time.perf_counter()
            forces.append(np.array(placed.get_forces()))
            seconds.append(time.perf_counter() - began)
            energies.append(placed.get_potential_energy())
    return Served(np.array(energies), forces, np.array(seconds))
