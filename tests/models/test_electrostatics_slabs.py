"""Sums of charges by parts that are threads: whatever atom is whose, what one finds by itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpserver.frames import Frames
from dpserver.kernels.threads import Threads
from dpserver.models.config import ElectrostaticsConfig, parse
from dpserver.models.electrostatics_mesh import Mesh
from dpserver.models.electrostatics_slabs import touched_planes
from dpserver.models.electrostatics_sum import ChargeSum, Interaction
from dpserver.models.wholes import totals
from dpserver.parts import Wholes
from tests import structures
from tests.meetings import Seat, together

CHARGES = np.array([-0.8, 0.5])


def part_of(whole: Frames, mine: np.ndarray, seat: Seat) -> Frames:
    """Atoms of a structure, with all others as ghosts, as an open structure that knows what it is part of."""
    wholes = Wholes(whole.cell, whole.pbc, np.array([whole.n_atoms]), seat)
    return Frames(
        whole.positions,
        whole.types,
        np.zeros((1, 3, 3)),
        np.zeros((1, 3), dtype=bool),
        whole.frame_idx,
        ~mine,
        wholes=wholes,
    )


def config(method: str, accuracy: float = 1e-6) -> ElectrostaticsConfig:
    given = {"charges": {"O": 0.0}, "total_charge": None, "method": method, "accuracy": accuracy}
    return parse(ElectrostaticsConfig, given)


@pytest.mark.parametrize("method", ["ewald", "pme"])
@pytest.mark.parametrize("name", ["cubic", "triclinic", "cluster"])
@given(owners=st.lists(st.integers(0, 3), min_size=60, max_size=60), count=st.integers(1, 4))
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_parts_find_what_one_finds(method, name, owners, count):
    whole = getattr(structures, name)()
    charges, owner = CHARGES[whole.types], np.array(owners)[: whole.n_atoms] % count
    owner[:count] = np.arange(count)  # each has some
    expected = ChargeSum(config(method), 1).evaluate(whole, charges)

    def job(seat: Seat) -> Interaction:
        sums = ChargeSum(config(method), 1 + seat.number)  # as many threads as there happen to be
        part = part_of(whole, owner == seat.number, seat)
        sums.evaluate(part, charges)
        return sums.evaluate(part, charges)  # with the room of before

    found = together(count, job)
    for field in ("atom_energy", "potential", "gradient", "virial"):
        ours, theirs = sum(getattr(part, field) for part in found), getattr(expected, field)
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * max(1, np.abs(theirs).max()), err_msg=field)
    for number, part in enumerate(found):
        assert not part.potential[owner != number].any()
        assert not part.gradient[owner != number].any()


@pytest.mark.parametrize("count", [2, 11])
def test_more_parts_than_planes_and_parts_without_atoms(count):
    rng, cell = np.random.default_rng(0), np.diag([5.0, 6.0, 7.0]) + 0.4
    positions, charges = rng.uniform(-9, 9, (7, 3)), rng.normal(size=7)
    sizes = (10, 12, 8)
    expected = Mesh(sizes, 8, 1.0, Threads(1)).evaluate(positions, charges, cell)

    def job(seat: Seat):
        mesh = Mesh(sizes, 8, 1.0, Threads(1))
        mesh.evaluate(positions, charges, cell)  # alone, which knows all of the influence; and some of it afterwards
        mine = np.arange(7) % count == seat.number if seat.number < 5 else np.zeros(7, dtype=bool)
        mine |= (np.arange(7) >= 5) & (seat.number == 0) & (count > 5)
        return mine, mesh.evaluate(positions[mine], charges[mine], cell, seat), mesh.evaluate(positions, charges, cell)

    found = together(count, job)
    potential, gradient, virial = np.zeros(7), np.zeros((7, 3)), np.zeros((3, 3))
    for mine, (p, g, v), again in found:
        potential[mine], gradient[mine] = p, g
        virial += v
        for ours, theirs in zip(again, expected, strict=True):
            np.testing.assert_array_equal(ours, theirs)
    for ours, theirs in zip((potential, gradient, virial), expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=0, atol=1e-12 * np.abs(theirs).max())


def test_planes_that_charges_are_spread_over():
    starts = np.array([0, 1, 1, 1, 3, 3, 3])  # atoms on the planes 0 and 3 of 6
    assert np.flatnonzero(touched_planes(6, starts, 2)).tolist() == [0, 2, 3, 5]
    assert touched_planes(6, starts, 4).all()


def test_totals_are_those_of_all_parts_without_ghosts():
    whole = structures.cubic()
    values = np.random.default_rng(0).normal(size=(whole.n_atoms, 2))
    owner = np.arange(whole.n_atoms) % 3
    found = together(3, lambda seat: totals(part_of(whole, owner == seat.number, seat), values))
    for other in found:
        np.testing.assert_array_equal(other, found[0])
        np.testing.assert_allclose(other[0], values.sum(axis=0), rtol=1e-13)
    np.testing.assert_allclose(totals(whole, values)[0], values.sum(axis=0), rtol=1e-13)
