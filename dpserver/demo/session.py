"""One run of i-PI and the daemon as two child processes, followed step by step."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Final

from dpserver.errors import ConfigError, DPServerError, ModelFileError, StructureError
from dpserver.files import check_folder, writing

PROPERTIES: Final = "simulation.out"
INPUT: Final = "input.xml"
LOGS: Final = ("dpserver.log", "i-pi.log")

_LONGEST: Final = 20_000  # steps, where only the time decides: 10 ps
_POLL: Final = 0.2  # s
_GRACE: Final = 15.0  # s that a child has for leaving on its own
_SOCKET_PREFIX: Final = "/tmp/ipi_"  # i-PI's own


@dataclass(frozen=True)
class Settings:
    """What to run.

    Attributes:
        model: the model file to serve.
        structure: initial positions and cell, xyz, either extended or with i-PI's CELL in its comment.
        output: directory for everything the run writes.
        beads: imaginary-time slices of the ring polymer.
        steps: time steps to make; None for as many as fit into `minutes`.
        minutes: time from the first step to the last, where `steps` is None.
        temperature: K.
        timestep: fs.
        stride: steps between two frames of the trajectory.
        seed: of i-PI's random numbers.
    """

    model: Path
    structure: Path
    output: Path
    beads: int = 8
    steps: int | None = None
    minutes: float = 4.0
    temperature: float = 300.0
    timestep: float = 0.5
    stride: int = 5
    seed: int = 31415


@dataclass(frozen=True)
class Progress:
    """How far the run is.

    Attributes:
        done: steps made.
        planned: steps there will be, as far as can be told.
        elapsed: seconds since the first step; 0 while the two sides are starting.
    """

    done: int
    planned: int | None
    elapsed: float


Report = Callable[[Progress], None]
EngineCommand = Callable[[Settings, str], list[str]]


def engine_command(settings: Settings, address: str) -> list[str]:
    """The daemon's command line for the unix socket `address`: one connection per bead."""
    return [
        *(sys.executable, "-m", "dpserver", "serve", "--once"),
        *("--model", str(settings.model.resolve())),
        *("--template", str(settings.structure.resolve())),
        *("--unix", address, "--connections", str(settings.beads)),
    ]


def run(settings: Settings, report: Report, engine: EngineCommand = engine_command) -> Progress:
    """Run the dynamics in `settings.output` and follow it to its end.

    Both children are gone when this returns or raises, KeyboardInterrupt included; what they wrote stays.

    Args:
        settings: what to run.
        report: called a few times per second.
        engine: makes the command line of the force engine.

    Returns:
        The last progress.

    Raises:
        ConfigError: i-PI is not installed, or a number makes no sense.
        ModelFileError: there is no model file.
        StructureError: the structure cannot be read.
        DPServerError: one side left before the run was complete; the message ends with its last words.
    """
    command = [_find_ipi(), INPUT]
    address = f"dpserver_demo_{os.getpid()}"
    prepare(settings, address)
    out = settings.output
    try:
        with (
            _child(engine(settings, address), out / LOGS[0]) as daemon,
            _child(command, out / LOGS[1], cwd=out, OMP_NUM_THREADS="1") as ipi,
        ):
            last = _follow(settings, report, daemon, ipi)
            if last.done < (settings.steps or _LONGEST):
                ipi.terminate()
            _wait(ipi)
            _wait(daemon)
    finally:
        Path(_SOCKET_PREFIX + address).unlink(missing_ok=True)
    return last


def prepare(settings: Settings, address: str) -> None:
    """Write i-PI's input into the output directory and clear away an earlier run's files.

    Raises:
        ConfigError: a number makes no sense, or nothing can be written there.
        ModelFileError: there is no model file.
        StructureError: the structure cannot be read.
    """
    for name in ("beads", "steps", "minutes", "temperature", "timestep", "stride"):
        value = getattr(settings, name)
        if value is not None and not value > 0:
            raise ConfigError(f"{name} must be greater than 0, got {value}")
    if not settings.model.is_file():
        raise ModelFileError(f"there is no model file {settings.model}; train one or name another with --model")
    species = dict.fromkeys(read_symbols(settings.structure))
    template = Template(files("dpserver.demo").joinpath("input.xml").read_text(encoding="utf-8"))
    comment = settings.structure.read_text(encoding="utf-8").splitlines()[1]
    text = template.substitute(
        address=address,
        beads=settings.beads,
        seed=settings.seed,
        species_columns="".join(f", kinetic_cv{{electronvolt}}({s})" for s in species),
        steps=settings.steps or _LONGEST,
        stride=settings.stride,
        structure=settings.structure.resolve(),
        structure_format="xyz" if "CELL" in comment else "ase",
        temperature=settings.temperature,
        timestep=settings.timestep,
    )
    check_folder(settings.output, f"--output {settings.output}")
    with writing(settings.output / INPUT):
        settings.output.mkdir(parents=True, exist_ok=True)
        for pattern in (PROPERTIES, "simulation.pos_*.xyz", "RESTART", "EXIT", *LOGS):
            for path in settings.output.glob(pattern):
                path.unlink()
        (settings.output / INPUT).write_text(text, encoding="utf-8")


def read_symbols(path: Path) -> list[str]:
    """Chemical symbols of an xyz file, one per atom.

    Raises:
        StructureError: there is no such file, or it is not xyz.
    """
    if not path.is_file():
        raise StructureError(f"there is no structure file {path}; name an xyz file with --structure")
    lines = path.read_text(encoding="utf-8").splitlines()
    try:
        symbols = [line.split()[0] for line in lines[2 : 2 + int(lines[0])]]
    except (ValueError, IndexError) as error:
        raise StructureError(f"{path} is not an xyz file: expected a count, a comment, one line per atom") from error
    if not symbols or len(symbols) < int(lines[0]):
        raise StructureError(f"{path} announces {lines[0].strip()} atoms and has lines for {len(symbols)}")
    return symbols


def steps_done(path: Path) -> int | None:
    """The last step i-PI has written to its property file; None before the first."""
    try:
        with path.open("rb") as stream:
            stream.seek(max(0, path.stat().st_size - 4096))
            complete = stream.read().rpartition(b"\n")[0]
    except FileNotFoundError:
        return None
    words = complete.rpartition(b"\n")[2].split()
    return int(float(words[0])) if words and not words[0].startswith(b"#") else None


def plan(settings: Settings, done: int, elapsed: float) -> int | None:
    """Steps the run will have at its end, from the time the first ones took; None as long as nothing can be told."""
    if settings.steps is not None:
        return settings.steps
    if not done:
        return None
    return min(_LONGEST, max(done, round(done * 60 * settings.minutes / elapsed)))


def _follow(
    settings: Settings, report: Report, daemon: subprocess.Popen[bytes], ipi: subprocess.Popen[bytes]
) -> Progress:
    """Report until all steps are made or the time is over."""
    began: float | None = None
    while True:
        has_left = ipi.poll() is not None  # asked before the file is read, so that no step is missed
        done = steps_done(settings.output / PROPERTIES)
        now = time.monotonic()
        if done is not None and began is None:
            began = now
        elapsed = now - began if began is not None else 0.0
        progress = Progress(done or 0, plan(settings, done or 0, max(elapsed, _POLL)), elapsed)
        report(progress)
        if progress.done >= (settings.steps or _LONGEST):
            return progress
        if settings.steps is None and elapsed >= 60 * settings.minutes:
            return progress
        for child, log in ((daemon, LOGS[0]), (ipi, LOGS[1])):
            if (child is ipi and has_left) or (child is daemon and daemon.poll() is not None):
                raise DPServerError(_last_words(settings.output / log, child, progress.done))
        time.sleep(_POLL)


def _last_words(log: Path, child: subprocess.Popen[bytes], done: int) -> str:
    lines = [line.strip() for line in log.read_text(encoding="utf-8", errors="replace").splitlines() if line.strip()]
    end = " | ".join(lines[-3:])
    return f"{log.stem} left with status {child.returncode} after {done} steps; the end of {log}: {end}"


def _find_ipi() -> str:
    """i-PI beside this interpreter or on the path."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)])
    found = shutil.which("i-pi", path=path)
    if found is None:
        raise ConfigError("i-PI is not installed; run: pip install 'dpserver[ipi,ase,plot]'")
    return found


@contextmanager
def _child(
    command: list[str], log: Path, cwd: Path | None = None, **environment: str
) -> Iterator[subprocess.Popen[bytes]]:
    """A process with its output in a log, in a session of its own so that Ctrl-C reaches us alone."""
    with log.open("wb") as stream:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env={**os.environ, **environment},
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        _stop(process)


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ask a child to leave; one that does not, or a second Ctrl-C, ends it."""
    process.terminate()
    _wait(process)


def _wait(process: subprocess.Popen[bytes]) -> None:
    try:
        with suppress(subprocess.TimeoutExpired):
            process.wait(_GRACE)
    finally:
        process.kill()
        process.wait()
