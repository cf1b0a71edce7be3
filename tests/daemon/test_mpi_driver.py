from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dpserver.daemon import ExitCode
from dpserver.daemon.mpi_driver import GRACE_SECONDS, INTERRUPTED, MPIDriver, Pauses
from dpserver.engine import Order
from dpserver.errors import DeviceError
from dpserver.ipi import Extras
from dpserver.transport.ffmpi import DriverGroup
from tests import structures
from tests.doubles import Faulty, PairModel
from tests.fake_mpi import FakeIpi

WATER = Order(("O", "H", "H"), "--species")
FRAME = structures.cubic()
X = FRAME.positions + np.random.default_rng(1).normal(scale=0.01, size=(3, *FRAME.positions.shape))
CELLS = np.repeat(FRAME.cell, 3, axis=0)


class Script:
    """What i-PI does, step by step: one each time the driver sleeps. It is also the clock.

    Args:
        steps: called in turn; after the last one time goes on.
    """

    def __init__(self, ipi: FakeIpi, *steps: Callable[[], object]) -> None:
        self.ipi = ipi
        self.steps = list(steps)
        self.now = 100.0
        self.pauses: list[float] = []

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.pauses.append(seconds)
        if self.steps:
            self.steps.pop(0)()


def driver(script: Script, model: PairModel, order: Order | None = WATER, **options: object) -> MPIDriver:
    channel = DriverGroup(script.ipi.modules[1])
    return MPIDriver(model, order, channel=channel, clock=script.clock, sleep=script.sleep, **options)  # type: ignore[arg-type]


def test_it_serves_until_ipi_leaves(caplog):
    caplog.set_level("INFO")
    ipi, results = FakeIpi(), []
    script = Script(
        ipi,
        lambda: (ipi.init(" batch_size:3"), ipi.work(X, CELLS)),
        lambda: (results.append(ipi.result(3)), ipi.work(X[:1], CELLS[:1])),
        lambda: (results.append(ipi.result(1)), ipi.exit()),
    )
    model = PairModel()
    assert driver(script, model).run() == 0
    assert model.batches == [3, 1]
    for k, (energy, forces, virial, extras) in enumerate(results):
        for j in range(len(energy)):
            expected = PairModel().evaluate(structures.moved(FRAME, X[j] - FRAME.positions))
            np.testing.assert_allclose(energy[j], expected.energy[0], rtol=1e-12)
            np.testing.assert_allclose(forces[j], expected.forces, atol=1e-12)
            np.testing.assert_allclose(virial[j], expected.virial[0], atol=1e-12)
        assert extras == [b" "] * (3, 1)[k]
    assert "mpi:i-pi rank 1: species of 24 atoms" in caplog.text
    assert "left: said EXIT; served 4 evaluations, mean" in caplog.text


def test_copies_are_computed_once():
    ipi, results = FakeIpi(), []
    script = Script(
        ipi,
        lambda: ipi.work(X[[0, 1, 1, 1]], CELLS[[0, 1, 1, 1]]),
        lambda: (results.append(ipi.result(4)), ipi.exit()),
    )
    model = PairModel()
    assert driver(script, model).run() == 0
    assert model.batches == [2]
    assert results[0][0][1] == results[0][0][2] == results[0][0][3]


def test_the_parameters_of_the_force_field_rule(caplog):
    ipi = FakeIpi()
    script = Script(
        ipi, lambda: (ipi.init(" species : O H H , tempalte : x , "), ipi.work(X, CELLS)), lambda: ipi.exit()
    )
    caplog.set_level("INFO")
    assert driver(script, PairModel(), None).run() == 0
    assert "from the peer's INIT species (O H H)" in caplog.text
    assert (
        "without a meaning here: 'tempalte'; known are aparam, batch_size, fparam, species, template; did you mean "
        "template?" in caplog.text
    )


@pytest.mark.parametrize(
    ("error", "code"), [(None, ExitCode.INPUT_REFUSED), (DeviceError("the device is lost: gone"), ExitCode.DEVICE_LOST)]
)
def test_what_cannot_be_answered_ends_the_job_with_its_reason(error, code, caplog):
    def fault(frames, result):
        if error is not None:
            raise error
        result.forces[3] = np.nan
        return result

    ipi = FakeIpi()
    script = Script(ipi, lambda: ipi.work(X, CELLS))
    assert driver(script, Faulty(fault)).run() == code
    (record,) = [r for r in caplog.records if r.levelname == "CRITICAL"]
    assert ("not finite" if error is None else "the device is lost: gone") in record.getMessage()
    assert "ending the whole job" in record.getMessage()
    ipi.hello()
    assert not ipi.world.boxes[0], "something was answered"


def test_a_broken_message_ends_the_job(caplog):
    ipi = FakeIpi()
    script = Script(ipi, lambda: ipi.send(9, [1]))
    assert driver(script, PairModel()).run() == ExitCode.INPUT_REFUSED
    assert "a message of tag 9" in caplog.text


def test_asked_to_stop_it_serves_on_until_ipi_ends_the_job(caplog):
    caplog.set_level("INFO")
    ipi, results = FakeIpi(), []
    script = Script(
        ipi,
        lambda: serving.stop(),
        lambda: ipi.work(X, CELLS),
        lambda: (results.append(ipi.result(3)), ipi.exit()),
    )
    serving = driver(script, PairModel())
    assert serving.run() == 0
    assert len(results) == 1
    assert "asked to stop; i-PI has to end this job, and has 20 s for it" in caplog.text


@pytest.mark.parametrize("is_busy", [False, True])
def test_asked_to_stop_it_does_not_wait_for_ever(is_busy, caplog):
    ipi = FakeIpi()

    def go_on() -> None:
        script.now += 1.0
        script.steps.append(go_on)
        if is_busy:
            if any(m.tag == 4 for m in ipi.world.boxes[0]):
                ipi.result(3)
            ipi.work(X, CELLS)

    script = Script(ipi, lambda: serving.stop(), go_on)
    serving = driver(script, PairModel())
    assert serving.run() == INTERRUPTED
    assert script.now - 100 == pytest.approx(GRACE_SECONDS, abs=2)
    assert "i-PI has not ended the job within 20 s: ending it" in caplog.text


def test_pauses_are_a_share_of_the_time_waited():
    pauses = Pauses()
    assert pauses.after(0.0) == 5e-5
    assert pauses.after(0.1) == pytest.approx(2e-3)
    assert pauses.after(1e6) == 0.02
    ipi = FakeIpi()
    script = Script(ipi, *[lambda: None] * 3000, ipi.exit)
    driver(script, PairModel()).run()
    assert script.pauses == sorted(script.pauses)
    assert len(script.pauses) / (script.now - 100) < 80


@pytest.mark.parametrize(("extras", "is_sent"), [(Extras.AUTO, True), (Extras.OFF, False)])
def test_ipi_is_sent_extras(extras, is_sent, monkeypatch):
    monkeypatch.setattr("dpserver.engine.engine.encode_extras", lambda result: [b'{"a": 1}'] * len(result.energy))
    ipi, results = FakeIpi(), []
    script = Script(ipi, lambda: ipi.work(X, CELLS), lambda: (results.append(ipi.result(3)), ipi.exit()))
    driver(script, PairModel(), extras=extras).run()
    assert results[0][3] == [b'{"a": 1}' if is_sent else b" "] * 3
