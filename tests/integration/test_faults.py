"""Faults with real i-PI as the peer: whatever breaks, the trajectory is the one of a run that nothing happens to."""

from __future__ import annotations

import random
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpserver.frames import ForceResult, Frames
from dpserver.models import checkpoint
from dpserver.monitor import Meter
from dpserver.transport import Backoff
from tests.daemon.serving import serving, target
from tests.doubles import Faulty, PairModel
from tests.integration.conftest import N_BEADS
from tests.integration.cutting import FRAME, MANNERS, cuts, run
from tests.integration.ipi_runs import (
    N_STEPS,
    finish,
    free_endpoint,
    ipi,
    last_positions,
    write_input,
)
from tests.integration.processes import daemon, save_model, serve
from tests.patience import JOB_PATIENCE

pytest.importorskip("ipi")


def same(folder: Path, expected: np.ndarray) -> None:
    np.testing.assert_allclose(last_positions(folder), expected, rtol=0, atol=1e-10)


# ---- the model fails


def spoilt(result: ForceResult, name: str, value: float) -> ForceResult:
    """One number of the last frame, or of its last atom, is no answer."""
    array = getattr(result, name).copy()
    array[(-1,) * array.ndim] = value
    return replace(result, **{name: array})


def without_last_atom(result: ForceResult) -> ForceResult:
    return replace(
        result, forces=result.forces[:-1], atom_energy=result.atom_energy[:-1], frame_idx=result.frame_idx[:-1]
    )


def fail(result: ForceResult) -> ForceResult:
    raise ZeroDivisionError("for the sake of the test")


NOT_FINITE: list[Callable[[ForceResult], ForceResult]] = [
    lambda result: spoilt(result, "forces", np.nan),
    lambda result: spoilt(result, "energy", np.inf),
    lambda result: spoilt(result, "virial", -np.inf),
    lambda result: spoilt(result, "forces", np.inf),
]
FAULTS = [
    *NOT_FINITE,
    without_last_atom,
    lambda result: result.part(slice(0, len(result.energy) - 1)),  # a frame and its atoms are missing
    fail,
]


class Unlucky(PairModel):
    """Fails at every fifth evaluation, each time in another way."""

    n_not_finite = 0

    def evaluate(self, frames: Frames) -> ForceResult:
        result = super().evaluate(frames)
        number, rest = divmod(len(self.batches), 5)
        if rest != 3:
            return result
        fault = FAULTS[number % len(FAULTS)]
        self.n_not_finite += fault in NOT_FINITE
        return fault(result)


@pytest.mark.parametrize(("manner", "n_frames"), [("consolidated", 1), ("batch", 2)])
def test_what_a_model_gets_wrong_is_never_sent_and_asked_for_again(tmp_path, manner, n_frames, undisturbed, caplog):
    endpoint, model, meter = free_endpoint(), Unlucky(), Meter()
    write_input(tmp_path, FRAME, endpoint, MANNERS[manner].options, N_BEADS)
    with serving(model, target(endpoint, connections=2), meter=meter), ipi(tmp_path) as process:
        finish(process, tmp_path)
    same(tmp_path, undisturbed)
    refused = [r.getMessage() for r in caplog.records if ": refused: " in r.getMessage()]
    assert len(refused) >= model.n_not_finite >= 4  # of the other faults a second try may know nothing
    assert any("the model's answer is not finite" in message for message in refused)
    assert sum(meter.snapshot()["refused"].values()) == n_frames * len(refused)


# ---- lines break


@pytest.mark.parametrize("manner", MANNERS)
def test_lines_cut_at_any_byte_between_ipi_and_the_daemon(tmp_path, manner, undisturbed):
    wanted = cuts(random.Random(manner), MANNERS[manner], 8)
    assert run(tmp_path, MANNERS[manner], wanted, N_STEPS, JOB_PATIENCE) >= 3  # the last ones may come too late
    same(tmp_path, undisturbed)


# ---- processes die


class Recorded(Backoff):
    """Tells which pauses it has made."""

    pauses: list[float]

    def after_nobody(self) -> float:
        return self._told(super().after_nobody())

    def after_success(self) -> float:
        return self._told(super().after_success())

    def after_failure(self, *, is_refusal: bool) -> float:
        return self._told(super().after_failure(is_refusal=is_refusal))

    def _told(self, pause: float) -> float:
        self.pauses.append(pause)
        return pause


def recorded(pauses: list[float]) -> Callable[[], Backoff]:
    """The pauses of a real daemon, written down."""

    def make() -> Backoff:
        made = Recorded()
        made.pauses = pauses
        return made

    return make


def test_ipi_that_is_killed_while_we_compute_is_served_again_at_once(tmp_path, undisturbed):
    """The daemon sits out no pause that is longer than 0.15 s: a new peer is found well within a second."""
    endpoint, pauses = free_endpoint("inet"), []
    victims: list[subprocess.Popen[str]] = []

    def kill(frames: Frames, result: ForceResult) -> ForceResult:
        if victims and len(model.batches) % 8 == 0:
            victims.pop().kill()
        return result

    model = Faulty(kill)
    write_input(tmp_path, FRAME, endpoint, n_beads=N_BEADS)
    with serving(model, target(endpoint), make_backoff=recorded(pauses)):
        with ipi(tmp_path) as process:
            victims.append(process)
            assert process.wait(JOB_PATIENCE) == -signal.SIGKILL
        with ipi(tmp_path) as process:
            finish(process, tmp_path)
            assert max(pauses) <= 0.15
    same(tmp_path, undisturbed)


STUCK = """
import sys, time
from dpserver.engine import Engine

answer, left = Engine.answer, [20]

def stuck(self, requests):
    left[0] -= 1
    if not left[0]:
        print("computing", flush=True)
        time.sleep(3600)
    return answer(self, requests)

Engine.answer = stuck
from dpserver.cli.app import main
from tests.patience import JOB_PATIENCE
sys.exit(main())
"""


def test_a_daemon_that_is_killed_while_it_computes_is_replaced_by_another(tmp_path):
    """i-PI waits; its trajectory is that of the model, which has been loaded twice."""
    save_model(tmp_path / "w.pt")
    endpoint, other = free_endpoint(), free_endpoint()
    arguments = serve(tmp_path / "w.pt", endpoint)
    write_input(tmp_path, FRAME, endpoint, n_steps=N_STEPS)
    with daemon("-c", STUCK, *arguments) as first, ipi(tmp_path) as process:
        assert first.stdout is not None
        assert first.stdout.readline() == "computing\n"
        first.kill()
        first.wait()
        with daemon("-m", "dpserver", *arguments):
            finish(process, tmp_path)
    (tmp_path / "again").mkdir()
    write_input(tmp_path / "again", FRAME, other, n_steps=N_STEPS)
    with serving(checkpoint.load(tmp_path / "w.pt"), target(other)), ipi(tmp_path / "again") as process:
        finish(process, tmp_path / "again")
    same(tmp_path, last_positions(tmp_path / "again"))
