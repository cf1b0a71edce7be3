from __future__ import annotations

import itertools
import select
from collections.abc import Sequence

import numpy as np
import pytest

from dpserver.daemon.compute import ComputeThread, WakeUp
from dpserver.engine import Engine, Request
from dpserver.errors import DeviceError, StructureError
from dpserver.ipi import Forces
from tests.doubles import PairModel
from tests.patience import PATIENCE


class Scripted(Engine):
    """Answers with what a test has given it."""

    def __init__(self, outcome: object) -> None:
        super().__init__(PairModel(), max_atoms=123)
        self.outcome = outcome

    def answer(self, requests: Sequence[Request]) -> list:
        if isinstance(self.outcome, Exception):
            raise self.outcome
        return [self.outcome] * len(requests)


@pytest.fixture
def wake_up():
    made = WakeUp()
    yield made
    made.close()


def wait(wake_up: WakeUp) -> None:
    assert select.select([wake_up], [], [], PATIENCE)[0]
    wake_up.drain()


def test_a_batch_goes_and_comes_back(wake_up):
    forces = Forces(np.zeros(1), np.zeros((1, 1, 3)), np.zeros((1, 3, 3)))
    batch = [object(), object()]
    times = itertools.accumulate(itertools.repeat(0.25))
    with ComputeThread(Scripted(forces), wake_up, lambda: next(times)) as compute:
        assert not compute.is_busy
        assert compute.collect() is None
        compute.submit(batch)
        assert compute.is_busy
        wait(wake_up)
        done = compute.collect()
        assert done is not None
        assert done.batch is batch
        assert done.answers == [forces, forces]
        assert done.seconds == 0.25
        assert done.max_atoms == 123
        assert not compute.is_busy


def test_a_bug_refuses_the_batch_and_the_thread_lives(wake_up, caplog):
    with ComputeThread(Scripted(ZeroDivisionError("odd")), wake_up) as compute:
        for _ in range(2):
            compute.submit([object()])
            wait(wake_up)
            (answer,) = compute.collect().answers
            assert isinstance(answer, StructureError)
            assert "internal error: ZeroDivisionError('odd')" in str(answer)
    assert "Traceback" in caplog.text


def test_a_lost_device_is_raised_to_the_one_who_collects(wake_up):
    with ComputeThread(Scripted(DeviceError("gone")), wake_up) as compute:
        compute.submit([object()])
        wait(wake_up)
        with pytest.raises(DeviceError, match="gone"):
            compute.collect()


def test_wake_ups_add_up_to_one_and_never_block(wake_up):
    for _ in range(100_000):
        wake_up.wake()
    wait(wake_up)
    assert not select.select([wake_up], [], [], 0)[0]


def test_waking_the_dead_is_no_error():
    made = WakeUp()
    made.close()
    made.wake()


def test_a_brief_batch_is_answered_on_the_spot(wake_up):
    forces = Forces(np.zeros(1), np.zeros((1, 1, 3)), np.zeros((1, 3, 3)))
    compute = ComputeThread(Scripted(forces), wake_up)  # the thread has not been started
    batch = [object()]
    compute.submit(batch, is_brief=True)
    assert compute.is_busy  # until it is collected
    done = compute.collect()
    assert done is not None
    assert done.batch is batch
    assert done.answers == [forces]
    assert not compute.is_busy
    assert not select.select([wake_up], [], [], 0)[0]


def test_a_brief_batch_fails_as_any_other(wake_up, caplog):
    broken, lost = (
        ComputeThread(Scripted(error), wake_up) for error in (ZeroDivisionError("odd"), DeviceError("gone"))
    )
    broken.submit([object()], is_brief=True)
    (answer,) = broken.collect().answers
    assert isinstance(answer, StructureError)
    assert "Traceback" in caplog.text
    lost.submit([object()], is_brief=True)
    with pytest.raises(DeviceError, match="gone"):
        lost.collect()
