"""What all experiments share: records with resume, the data, training and testing by the command line, tables.

An experiment measures under names. What was measured under a name with the same settings is not measured again, and
what was interrupted finds in its folder what it had left there.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any, Final

import numpy as np

from benchmarks import records
from dpserver.errors import ConfigError, DPServerError
from dpserver.frames import Floats, Ints

ROOT: Final = Path(__file__).resolve().parents[2]
WATER: Final = ROOT / "examples" / "water"
RESULTS: Final = records.RESULTS / "science"
QUICK_RUNS: Final = ROOT / "science" / "quick"
"""Work, results and pages of quick runs, which leave those of long ones alone."""

Record = dict[str, Any]

_GRACE: Final = 60.0  # s that a training has to save a checkpoint
_SETTINGS: Final = "settings.json"
_AGAIN: Final = "again"  # a file in the folder of what an unfinished `--again` has begun or done
_BEGUN: Final = "begun"
_DONE: Final = "done"


class Refused(DPServerError):
    """A dynamics came to atoms that the daemon has no answer to, which is a result.

    Attributes:
        time_ps: of the last line of properties before it.
        reason: what the daemon said.
    """

    def __init__(self, time_ps: float, reason: str) -> None:
        super().__init__(f"after {time_ps:.4g} ps: {reason}")
        self.time_ps, self.reason = time_ps, reason

    def to_record(self) -> dict[str, Any]:
        """What results say of the run; `is_refused` tells such a record."""
        return {"refused_after_ps": self.time_ps, "reason": self.reason}


@dataclass(frozen=True)
class Experiment:
    """One part of the science: where it works, and what it has found so far.

    Attributes:
        part: its name, and that of its file of results.
        is_quick: short runs, to see that everything works.
        is_again: measure also what is there already; an interrupted one goes on where it was.
        place: for everything, the results in `results` of it; by default long runs and quick ones have one each.
    """

    part: str
    is_quick: bool = False
    is_again: bool = False
    place: Path | None = None

    @property
    def folder(self) -> Path:
        """Where everything big goes; ignored by git."""
        return self.place or (QUICK_RUNS if self.is_quick else ROOT / "science")

    @property
    def results(self) -> Path:
        """Where the files of results lie."""
        return RESULTS if self.place is None and not self.is_quick else self.folder / "results"

    def pick(self, whole: Any, quick: Any) -> Any:
        """A length or number, as long or short runs want it."""
        return quick if self.is_quick else whole

    def folder_of(self, name: str) -> Path:
        """Where the measurement of this name works."""
        return self.folder / self.part / name

    def measure(self, name: str, settings: Mapping[str, Any], compute: Callable[[Path], Mapping[str, Any]]) -> Record:
        """Measure something once, and write down what came out.

        Args:
            name: of the record; another record of that name is replaced.
            settings: all that the result depends on, the seed among it; JSON-able. The folder is emptied where it was
                left by other settings.
            compute: gets the folder, in which it finds what an interrupted call had left, and returns the values,
                JSON-able.

        Returns:
            The record; of a dynamics that was `Refused` only after how long, and why.
        """
        known = load_records(self.part, self.results).get(name)
        settings = json.loads(json.dumps(settings))
        is_same = known is not None and known["settings"] == settings
        if known is not None and is_same and (not self.is_again or self._again(name) == _DONE):
            say(f"{self.part}: {name} is there already")
            return known
        say(f"{self.part}: {name} …")
        if self.is_again and self._again(name) != _BEGUN:
            shutil.rmtree(self.folder_of(name), ignore_errors=True)
        folder = self.ready(name, settings)
        if self.is_again:
            (folder / _AGAIN).write_text(_BEGUN, encoding="utf-8")
        with _stopwatch(folder / "seconds.json"):
            try:
                values = compute(folder)
            except Refused as end:
                say(f"{self.part}: {name} ended {end}")
                values = end.to_record()
        seconds = json.loads((folder / "seconds.json").read_text(encoding="utf-8"))
        record = {
            "settings": settings,
            **json.loads(json.dumps(values, default=_plain)),
            "seconds": round(seconds, 1),
            "is_quick": self.is_quick,
            **records.provenance(),
        }
        self._write(name, record)
        if self.is_again:
            (folder / _AGAIN).write_text(_DONE, encoding="utf-8")
        return record

    def ready(self, name: str, settings: Mapping[str, Any]) -> Path:
        """The folder of a measurement, made where there is none, emptied where other settings had left something."""
        folder, settings = self.folder_of(name), json.loads(json.dumps(settings))
        if folder.exists() and _settings_of(folder) != settings:
            shutil.rmtree(folder)
        folder.mkdir(parents=True, exist_ok=True)
        (folder / _SETTINGS).write_text(json.dumps(settings, indent=2), encoding="utf-8")
        return folder

    def is_taken(self, name: str, settings: Mapping[str, Any]) -> bool:
        """Whether the record or the folder of this name is of other settings."""
        known, folder = load_records(self.part, self.results).get(name), self.folder_of(name)
        settings = json.loads(json.dumps(settings))
        return (known is not None and known["settings"] != settings) or (
            folder.exists() and _settings_of(folder) != settings
        )

    def finish(self) -> None:
        """Forget what was measured again: the next `--again` begins anew."""
        for mark in self.folder_of("").glob(f"*/{_AGAIN}"):
            mark.unlink()

    def _again(self, name: str) -> str:
        """How far an unfinished `--again` has come with this name; empty where it has not come to it."""
        mark = self.folder_of(name) / _AGAIN
        return mark.read_text(encoding="utf-8") if mark.exists() else ""

    def _write(self, name: str, record: Record) -> None:
        """Put a record into the file of results, in place of another of its name."""
        found = {**load_records(self.part, self.results), name: record}
        self.results.mkdir(parents=True, exist_ok=True)
        path, new = self.results / f"{self.part}.json", self.results / f"{self.part}.json.new"
        new.write_text(_readable({k: found[k] for k in sorted(found)}) + "\n", encoding="utf-8")
        new.replace(path)


def load_records(part: str, results: Path = RESULTS) -> dict[str, Record]:
    """What was measured for a part, by name; empty before the first measurement."""
    path = results / f"{part}.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def is_refused(record: Record) -> bool:
    """Whether a record is of a dynamics that ended in atoms which the daemon refused."""
    return "refused_after_ps" in record


def _readable(value: Any, indent: int = 0) -> str:
    """JSON with a line for each entry, and lists of numbers on one line."""
    space = " " * (indent + 2)
    if isinstance(value, dict) and value:
        rows = (f"{space}{json.dumps(k)}: {_readable(v, indent + 2)}" for k, v in value.items())
        return "{\n" + ",\n".join(rows) + "\n" + " " * indent + "}"
    if isinstance(value, list) and any(isinstance(v, dict | list) for v in value):
        return "[\n" + ",\n".join(space + _readable(v, indent + 2) for v in value) + "\n" + " " * indent + "]"
    return json.dumps(value, ensure_ascii=False)


def _plain(value: Any) -> Any:
    """Numbers and arrays of numpy as JSON has them; curves with seven digits."""
    if isinstance(value, np.ndarray):
        return [float(f"{x:.7g}") for x in value] if value.ndim == 1 and value.dtype.kind == "f" else value.tolist()
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Path):
        return str(value)
    raise TypeError(f"{value!r} does not go into JSON")


def _settings_of(folder: Path) -> Any:
    """Of what is in the folder of a measurement; None where nobody says."""
    path = folder / _SETTINGS
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else None


@contextmanager
def _stopwatch(path: Path) -> Iterator[None]:
    """Add the time spent to the number in a file, also when it ends by an error or Ctrl-C."""
    before = json.loads(path.read_text(encoding="utf-8")) if path.exists() else 0.0
    began = time.monotonic()
    try:
        yield
    finally:
        path.write_text(json.dumps(before + time.monotonic() - began), encoding="utf-8")


def identity(model: Path) -> dict[str, str]:
    """What settings say of a model file: its name, and by its bytes which one it is.

    Raises:
        ConfigError: there is no such file.
    """
    path = model.resolve()
    if not path.is_file():
        raise ConfigError(f"{model}: there is no such model file")
    name = str(path.relative_to(ROOT)) if path.is_relative_to(ROOT) else path.name
    return {"model": name, "model_sha256": hashlib.sha256(path.read_bytes()).hexdigest()[:16]}


def say(text: str) -> None:
    """Tell the user what is going on."""
    print(time.strftime("%H:%M:%S"), text, flush=True)


def optional(package: str, extra: str) -> Any:
    """Import a package that not every installation has.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(package)
    except ImportError as error:
        raise ConfigError(f"this part needs {package}; run: pip install '{extra}'") from error


# Data that are not ours and not in the repository.

_ORIGINS: Final = {
    "water": "DeePMD-kit's repository (deepmodeling/deepmd-kit), examples/water/data: data_0 … data_3",
    "ethanol": "davkovacs/BOTNet-datasets on GitHub, dataset_ethanol: train.xyz, test_MD.xyz",
    "3bpa": "davkovacs/BOTNet-datasets on GitHub, dataset_3BPA: train_300K.xyz, train_mixedT.xyz",
}


class MissingData(ConfigError):
    """A public data set is not there."""


def data(name: str) -> Path:
    """The folder of a public data set, `$DPSERVER_SHARED/data/NAME`, or `science/data/NAME` in the repository.

    Raises:
        MissingData: there is none; the message says where to get it.
    """
    base = Path(os.environ.get("DPSERVER_SHARED") or ROOT / "science").resolve()
    folder = base / "data" / name
    if not folder.is_dir():
        raise MissingData(
            f"this part needs the public data set {name} in {folder}: {_ORIGINS[name]}. Put it there, or name another "
            "folder with DPSERVER_SHARED=FOLDER, which holds data/"
        )
    return folder


@dataclass(frozen=True, eq=False)
class System:
    """Labelled frames of one composition, from a folder in DeePMD's npy format.

    Attributes:
        symbols: of each atom.
        types: (n_atoms,).
        positions: (n_frames, n_atoms, 3), Å.
        cells: lattice vectors as rows, (n_frames, 3, 3), Å.
        energy: (n_frames,), eV.
        forces: (n_frames, n_atoms, 3), eV/Å.
    """

    symbols: tuple[str, ...]
    types: Ints
    positions: Floats
    cells: Floats
    energy: Floats
    forces: Floats


def read_system(folder: Path) -> System:
    """Read all sets of a system."""
    types = np.loadtxt(folder / "type.raw", dtype=np.int64)
    names = (folder / "type_map.raw").read_text(encoding="utf-8").split()
    sets = sorted(folder.glob("set.*"))

    def column(name: str) -> Floats:
        return np.concatenate([np.load(s / f"{name}.npy") for s in sets]).astype(np.float64)

    energy = column("energy").reshape(-1)
    n = len(energy)
    return System(
        tuple(names[t] for t in types),
        types,
        column("coord").reshape(n, -1, 3),
        column("box").reshape(n, 3, 3),
        energy,
        column("force").reshape(n, -1, 3),
    )


# Training and testing, by the same commands that users have.


def dpserver(*arguments: str | Path, cwd: Path | None = None, log: Path | None = None) -> str:
    """Run a command of dpserver and return what it prints.

    Args:
        arguments: of the command line.
        cwd: where to run.
        log: file that is given the output instead; then the answer is empty.

    Raises:
        DPServerError: it failed; the message ends with its last words.
    """
    command = [sys.executable, "-m", "dpserver", *map(str, arguments)]
    if log is None:
        asked = subprocess.run(command, cwd=cwd, capture_output=True, text=True, check=False)
        status, output, words = asked.returncode, asked.stdout, asked.stderr
    else:
        with log.open("ab") as stream:
            process = subprocess.Popen(
                command, cwd=cwd, stdout=stream, stderr=subprocess.STDOUT, start_new_session=True
            )
            status = _wait(process)
        output, words = "", log.read_text(encoding="utf-8", errors="replace")
    if status:
        raise DPServerError(f"dpserver {arguments[0]} left with status {status}: {last_words(words)}")
    return output


def _wait(process: subprocess.Popen[bytes]) -> int:
    """The status of a process; an interruption is passed on, so that it can save what it has."""
    try:
        return process.wait()
    except KeyboardInterrupt:
        process.send_signal(signal.SIGINT)
        try:
            with suppress(subprocess.TimeoutExpired):
                process.wait(_GRACE)
        finally:
            process.kill()
            process.wait()
        raise


def last_words(text: str, n: int = 3) -> str:
    """The last lines of a log, in one line."""
    return " | ".join([line.strip() for line in text.splitlines() if line.strip()][-n:]) or "not a word"


def train(folder: Path, config: Mapping[str, Any], threads: int | None = None) -> Path:
    """Train by `dpserver train`, on from the newest checkpoint where an earlier call was interrupted.

    Args:
        folder: where checkpoints, learning curve and model go.
        config: the training input, its paths absolute.
        threads: CPU threads.

    Returns:
        The model file; `lcurve.out` lies beside it.

    Raises:
        DPServerError: training failed.
    """
    model = folder / "w.pt"
    if model.exists():
        return model
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "input.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
    restart = ("--restart", "model.ckpt") if any(folder.glob("model.ckpt*")) else ()
    count = () if threads is None else ("--threads", str(threads))
    dpserver("train", "input.json", "-o", "w.pt", *restart, *count, cwd=folder, log=folder / "train.log")
    if not model.exists():
        raise DPServerError(f"the training in {folder} was interrupted; run the same command again to go on")
    return model


def errors(model: Path, *systems: Path) -> dict[str, float]:
    """Errors of a model on labelled data, by `dpserver test`.

    Returns:
        `energy_mae`, `energy_rmse` in meV/atom, `force_mae`, `force_rmse` in meV/Å.
    """
    found = json.loads(dpserver("test", model, *systems, "--json"))["overall"]
    return {
        f"{ours}_{measure}": 1e3 * found[theirs][measure]
        for ours, theirs in (("energy", "energy_per_atom"), ("force", "force"))
        for measure in ("mae", "rmse")
    }


def read_lcurve(path: Path) -> dict[str, Floats]:
    """A learning curve as columns by name, such as `step`, `rmse_f_val`; meV are not used there, but eV and Å."""
    lines = path.read_text(encoding="utf-8").splitlines()
    names = next(line for line in lines if line.startswith("#")).strip("# ").split()
    rows = [line.split() for line in lines if line and not line.startswith("#")]
    table = np.array([row for row in rows if len(row) == len(names)], dtype=np.float64).reshape(-1, len(names))
    return dict(zip(names, table.T, strict=True))
