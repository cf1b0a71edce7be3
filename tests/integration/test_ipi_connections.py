"""As many connections as i-PI has work for, with every generation of it, and however it hands its beads out."""

from __future__ import annotations

import re
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from dpserver.transport import Backoff
from tests import structures
from tests.daemon.serving import serving, target
from tests.doubles import PairModel
from tests.integration.ipi_runs import energies, finish, free_endpoint, ipi, last_positions, verlet, write_input

pytest.importorskip("ipi")

FRAMES = structures.cubic()
N_BEADS = 8
N_STEPS = 12
PRESENT = "present"
OTHERS = re.findall(r"^ipi==(\S+)", Path(__file__).with_name("ipi-versions.txt").read_text(), re.MULTILINE)
VERSIONS = [PRESENT, *OTHERS]


@dataclass(frozen=True)
class Run:
    """One simulation, and the connections it is offered."""

    matching: str = "auto"
    latency: float = 1e-4
    kind: str = "unix"
    options: str = ""
    connections: int | None = None
    n_beads: int = N_BEADS


@dataclass(frozen=True)
class Done:
    """What came of it: where its files are, and the evaluations of each connection that had any."""

    folder: Path
    served: list[int]


def place_of(version: str) -> Path | None:
    """Where a version is installed; None for the one of this Python."""
    if version == PRESENT:
        return None
    place = Path(sys.prefix, "ipi", version)
    if not (place / "bin" / "i-pi").is_file():
        pytest.skip(f"i-PI {version} is not in {place}; `make .venv/ready-ipi` installs it")
    return place


def simulate(folder: Path, log: pytest.LogCaptureFixture, runs: Sequence[Run], version: str = PRESENT) -> list[Done]:
    """Run all at once on one daemon."""
    place, endpoints = place_of(version), [free_endpoint(run.kind) for run in runs]
    folders = [folder / str(k) for k in range(len(runs))]
    for run, endpoint, path in zip(runs, endpoints, folders, strict=True):
        path.mkdir(parents=True)
        write_input(path, FRAMES, endpoint, run.options, run.n_beads, N_STEPS, run.matching, run.latency)
    targets = [target(e, connections=r.connections) for e, r in zip(endpoints, runs, strict=True)]
    log.set_level("DEBUG", logger="dpserver.daemon.link")
    with serving(PairModel(), *targets, make_backoff=Backoff), ExitStack() as stack:
        processes = [stack.enter_context(ipi(path, place)) for path in folders]
        for process, path in zip(processes, folders, strict=True):
            finish(process, path)
    return [Done(path, served(log, endpoint)) for path, endpoint in zip(folders, endpoints, strict=True)]


def served(log: pytest.LogCaptureFixture, endpoint: str) -> list[int]:
    """Evaluations of each connection that had any."""
    pattern = re.compile(rf"{re.escape(endpoint)}( #\d+)?: \w+: .*; served ([1-9]\d*) evaluation")
    return [int(found[2]) for record in log.records if (found := pattern.match(record.getMessage()))]


@pytest.fixture(scope="module")
def expected(tmp_path_factory) -> np.ndarray:
    """Last positions when all beads are served over one connection, (n_beads n_atoms, 3), Bohr."""
    folder, endpoint = tmp_path_factory.mktemp("expected"), free_endpoint()
    write_input(folder, FRAMES, endpoint, n_beads=N_BEADS, n_steps=N_STEPS)
    with serving(PairModel(), target(endpoint, connections=1)), ipi(folder) as process:
        finish(process, folder)
    return last_positions(folder)


def check(done: Sequence[Done], expected: np.ndarray) -> None:
    for run in done:
        np.testing.assert_allclose(last_positions(run.folder), expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("version", VERSIONS)
def test_the_pool_grows_to_what_is_kept_busy(tmp_path, caplog, version, expected):
    done = simulate(tmp_path, caplog, [Run("auto", 1e-2), Run("any", 1e-4, "inet"), Run("lock", 1e-4)], version)
    check(done, expected)
    auto, any_, lock = (run.served for run in done)
    assert len(lock) == N_BEADS
    assert len(set(lock)) == 1
    for counts in (auto, any_):
        if version == "2.6.3":  # asks for one bead after the other
            assert len(counts) == 2
        else:  # before 3.2 a bead may have two, in turns
            assert N_BEADS <= len(counts) <= 2 * N_BEADS
        assert sum(counts) == sum(lock)


@pytest.mark.parametrize("version", VERSIONS)
def test_a_number_of_connections_is_a_number(tmp_path, caplog, version, expected):
    runs = [
        Run("auto", 1e-4, "inet", connections=3),
        Run("any", 1e-4, connections=16),
        Run("lock", 1e-2, connections=N_BEADS),
    ]
    done = simulate(tmp_path, caplog, runs, version)
    check(done, expected)
    few, many, lock = (len(run.served) for run in done)
    assert few == 3
    assert (2 if version == "2.6.3" else N_BEADS) <= many <= 2 * N_BEADS
    assert lock == N_BEADS


def test_native_batches_are_as_many_connections_as_there_are_batches(tmp_path, caplog, expected):
    runs = [Run(options=f"<batch_size> {size} </batch_size>") for size in (4, 8)]
    done = simulate(tmp_path, caplog, runs)
    check(done, expected)
    assert [len(run.served) for run in done] == [2, 1]


def test_one_bead_is_served_over_one_connection_and_again_when_it_starts_again(tmp_path, caplog):
    """On the port of an i-PI that was killed in the middle of a step."""
    caplog.set_level("INFO")
    endpoint, model = free_endpoint("inet"), PairModel()
    with serving(model, target(endpoint, connections=None), make_backoff=Backoff):
        for name, n_steps in (("killed", 100_000), ("again", N_STEPS)):
            folder = tmp_path / name
            folder.mkdir()
            write_input(folder, FRAMES, endpoint, n_steps=n_steps)
            with ipi(folder) as process:
                while name == "killed" and len(model.batches) < 5:
                    assert process.poll() is None
                    time.sleep(0.05)
                if name == "again":
                    finish(process, folder)
    np.testing.assert_allclose(energies(tmp_path / "again"), verlet(FRAMES, N_STEPS)[0], rtol=1e-8)
    assert len(served(caplog, endpoint)) == 2
    assert served(caplog, endpoint)[1] == N_STEPS + 1
