from __future__ import annotations

import sys

import numpy as np
import pytest

from dpserver.errors import ConfigError, LocalProtocolError, RemoteProtocolError
from dpserver.ipi import Forces, ForcesWanted, Initialised, Limits, PeerLeft
from dpserver.parallel.mpi import load_mpi
from dpserver.transport.ffmpi import DriverGroup, _members, end_job
from tests.fake_mpi import EXIT, INIT, WORK, FakeIpi

RNG = np.random.default_rng(5)
X = RNG.normal(size=(2, 4, 3))
CELLS = np.stack([np.diag([9.0, 10.0, 11.0]), np.array([[9.0, 0, 0], [1.0, 8.0, 0], [2.0, 3.0, 7.0]])])
LIMITS = Limits(atoms=100, batch=8, init_bytes=64)


def join(ipi: FakeIpi, rank: int = 1, name: str = "") -> DriverGroup:
    return DriverGroup(ipi.modules[rank], name, LIMITS)


def forces(n_frames: int = 2, n_atoms: int = 4) -> Forces:
    virial = RNG.normal(size=(n_frames, 3, 3))
    return Forces(
        RNG.normal(size=n_frames), RNG.normal(size=(n_frames, n_atoms, 3)), virial + virial.transpose(0, 2, 1)
    )


@pytest.mark.parametrize("name", ["", "water", "wässer"])
def test_a_rank_is_a_group_of_its_own(name):
    ipi = FakeIpi(3)
    for rank in (1, 2):
        group = join(ipi, rank, name)
        assert ipi.hello(rank) == ([rank, 1, rank], name)
        assert str(group) == f"mpi:{name or 'i-pi'} rank {rank}"
        # One collective split of the world, which leaves it out of every pool.
        assert ipi.modules[rank].COMM_WORLD.splits == [1]  # the color of the drivers


def test_a_conversation():
    ipi = FakeIpi()
    group = join(ipi)
    assert group.next_event() is None
    ipi.init(" species : O H H , , batch_size:2")
    event = group.next_event()
    assert isinstance(event, Initialised)
    assert event.parameters == {"species": "O H H", "batch_size": "2"}
    for n_frames in (2, 1):
        assert group.next_event() is None
        ipi.work(X[:n_frames], CELLS[:n_frames])
        event = group.next_event()
        assert isinstance(event, ForcesWanted)
        np.testing.assert_allclose(event.structures.positions, X[:n_frames], rtol=1e-15)
        np.testing.assert_allclose(event.structures.cell, CELLS[:n_frames], rtol=1e-15)
        answer = forces(n_frames)
        group.send(answer)
        energy, sent_forces, virial, extras = ipi.result(n_frames)
        np.testing.assert_allclose(energy, answer.energy, rtol=1e-14)
        np.testing.assert_allclose(sent_forces, answer.forces, rtol=1e-14)
        np.testing.assert_allclose(virial, answer.virial, rtol=1e-14)
        assert extras == [b" "] * n_frames
    ipi.exit()
    assert group.next_event() == PeerLeft(True, "said EXIT")


def test_the_bytes_of_both_ways_are_counted():
    ipi = FakeIpi()
    group = join(ipi)
    ipi.work(X, CELLS)
    group.next_event()
    group.send(forces())
    assert group.take_traffic() == (8 + 2 * (18 + 12) * 8, 2 * (1 + 12 + 9) * 8 + 2 * 5)
    assert group.take_traffic() == (0, 0)


def test_ipi_leaves_without_its_forces():
    ipi = FakeIpi()
    group = join(ipi)
    ipi.work(X, CELLS)
    group.next_event()
    group.send(forces())
    ipi.exit()
    assert group.next_event() == PeerLeft(False, "said EXIT")


@pytest.mark.parametrize(
    ("tag", "arrays", "complaint"),
    [
        (7, [([1], "int32")], "a message of tag 7; expected 1, 2, 3, 4, 5, 6"),
        (WORK, [([4, 2, 9], "int32")], "sent WORK with 3 numbers; expected 2"),
        (WORK, [([4, 2], "int32"), (np.zeros(59), "float64")], "sent WORK with 59 numbers; expected 60"),
        (WORK, [([4, 9], "int32")], "9 structures; expected 1 to 8"),
        (INIT, [([0], "int32")], "sent INIT with 1 numbers; expected 2"),
        (INIT, [([0, 4], "int32"), ([1, 2], "uint8")], "sent INIT with 2 numbers; expected 4"),
        (INIT, [([0, 65], "int32")], "a string of 65 bytes"),
        (EXIT, [([0, 0], "int32")], "sent EXIT with 2 numbers; expected 1"),
    ],
)
def test_what_is_not_of_the_protocol_is_refused(tag, arrays, complaint):
    ipi = FakeIpi()
    group = join(ipi)
    for array, kind in arrays:
        ipi.send(tag, array, kind)
    with pytest.raises(RemoteProtocolError, match=complaint):
        group.next_event()


def test_nothing_is_sent_that_is_not_finite_or_of_another_shape():
    ipi = FakeIpi()
    group = join(ipi)
    ipi.hello()
    ipi.work(X, CELLS)
    group.next_event()
    bad = forces()
    bad.forces[1, 2, 0] = np.nan
    for answer in (bad, forces(1), forces(2, 3)):
        with pytest.raises(LocalProtocolError):
            group.send(answer)
    assert not ipi.world.boxes[0]


def test_alone_in_the_job():
    with pytest.raises(ConfigError, match=r"alone in its MPI job; start it together with i-PI.*mpirun.*Fake MPI"):
        DriverGroup(FakeIpi(1).modules[0])


def test_in_the_place_of_ipi():
    with pytest.raises(ConfigError, match="rank 0 of an MPI job must be i-PI"):
        DriverGroup(FakeIpi(2).modules[0])


def test_without_mpi4py_it_is_said_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "mpi4py", None)
    with pytest.raises(ConfigError, match=r"ranks need mpi4py and an MPI: pip install 'dpserver\[mpi\]'"):
        load_mpi()
    end_job(3)  # there is no job, and nothing to end


def test_a_group_is_introduced_by_its_first_rank():
    ipi = FakeIpi(7)
    groups = {rank: DriverGroup(ipi.modules[rank], "a", size=3) for rank in range(1, 7)}
    for root in (1, 4):
        assert ipi.hello(root) == ([root, 3, root, root + 1, root + 2], "a")
    assert not any(ipi.world.boxes[0])
    assert len(groups) == 6


@pytest.mark.parametrize(
    ("drivers", "groups"),
    [
        ([(1, "", 1), (2, "", 1)], [[1], [2]]),
        ([(1, "", 2), (2, "", 2), (3, "", 2), (4, "", 2)], [[1, 2], [3, 4]]),
        ([(1, "a", 2), (2, "a", 2), (3, "b", 2), (4, "b", 2), (5, "b", 1)], [[1, 2], [3, 4], [5]]),
        ([(1, "a", 1), (2, "b", 3), (3, "b", 3), (4, "b", 3)], [[1], [2, 3, 4]]),
    ],
)
def test_consecutive_ranks_of_one_name_and_size_are_a_group(drivers, groups):
    for rank, _, _ in drivers:
        assert _members(drivers, rank) == next(group for group in groups if rank in group)


@pytest.mark.parametrize("sizes", [[2, 2, 2], [3, 3], [2, 1], [4]])
def test_ranks_that_are_left_over_are_refused(sizes):
    drivers = [(k + 1, "", size) for k, size in enumerate(sizes)]
    with pytest.raises(ConfigError, match=r"--group-size \d does not divide the ranks"):
        _members(drivers, 1)
