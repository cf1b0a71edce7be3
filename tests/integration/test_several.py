"""Several simulations at once on one daemon: nobody's result, and nobody's progress, depends on the others."""

from __future__ import annotations

import random
import signal
import threading

import numpy as np
import pytest

pytest.importorskip("ipi")
pytest.importorskip("ase")

from dpserver.frames import ForceResult, Frames
from tests import structures
from tests.daemon.broken import break_line
from tests.daemon.serving import target
from tests.doubles import Faulty, PairModel
from tests.integration.crowd import KINDS, Crowd, Results, alone
from tests.integration.ipi_runs import free_endpoint, ipi, write_input
from tests.patience import PATIENCE
from tests.peer import GETFORCE, Peer, posdata


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> Results:
    return alone(tmp_path_factory.mktemp("alone"))


def test_each_result_is_that_of_the_simulation_alone(tmp_path, expected):
    crowd = Crowd(tmp_path)
    with crowd.running(PairModel()) as optimisation:
        crowd.finish(*KINDS)
        optimisation.join()
    crowd.results().check(expected)


def test_one_that_is_stopped_one_that_dies_and_one_that_talks_nonsense(tmp_path, expected):
    """While the first is stopped the others reach their ends; then it reaches its own."""
    crowd = Crowd(tmp_path)
    doomed, is_stopped = free_endpoint(), threading.Event()

    def stop(frames: Frames, result: ForceResult) -> ForceResult:
        if len(model.batches) == 10:  # no run is over by then
            crowd.processes["path integral"].send_signal(signal.SIGSTOP)
            is_stopped.set()
        return result

    model = Faulty(stop)
    (tmp_path / "doomed").mkdir()
    write_input(tmp_path / "doomed", structures.cubic(), doomed, n_beads=2, n_steps=100_000)
    with Peer(0) as bad, crowd.running(model, target(doomed), target(bad.endpoint)) as optimisation:
        with ipi(tmp_path / "doomed"):
            assert is_stopped.wait(PATIENCE)
            for seed in range(8):
                break_line(random.Random(seed), bad)
            with bad.accept() as line:
                line.send(posdata(np.full((3, 3), np.nan), np.eye(3)), GETFORCE)
                assert line.is_closed()
        crowd.finish("in batches", "exchange")
        optimisation.join()
        assert crowd.processes["path integral"].poll() is None
        crowd.processes["path integral"].send_signal(signal.SIGCONT)
        crowd.finish("path integral")
    crowd.results().check(expected)
