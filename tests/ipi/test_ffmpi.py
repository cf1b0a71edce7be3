from __future__ import annotations

import numpy as np
import pytest

from dpserver.errors import RemoteProtocolError
from dpserver.ipi import Forces, Limits, ffmpi
from dpserver.units import BOHR, HARTREE

LIMITS = Limits(atoms=100, batch=8, init_bytes=64)
RNG = np.random.default_rng(3)


def ints(*values: int) -> np.ndarray:
    return np.array(values, dtype=np.int32)


def test_a_group_introduces_itself_with_its_root_first():
    assert ffmpi.encode_hello([4, 5, 6]).tolist() == [4, 3, 4, 5, 6]
    assert ffmpi.encode_hello([2]).dtype == np.int32


def test_work():
    x, cells = RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 3, 3))
    rows = [cells.transpose(0, 2, 1).reshape(2, 9) / BOHR, np.full((2, 9), np.nan), x.reshape(2, 15) / BOHR]
    body = np.concatenate(rows, axis=1).ravel()
    assert ffmpi.work_size(ints(5, 2), LIMITS) == body.size
    structures = ffmpi.decode_work(ints(5, 2), body)
    np.testing.assert_allclose(structures.positions, x, rtol=1e-15)
    np.testing.assert_allclose(structures.cell, cells, rtol=1e-15)
    body[:] = 0
    np.testing.assert_allclose(structures.positions, x, rtol=1e-15)


def test_result():
    energy, forces, virial = RNG.normal(size=2), RNG.normal(size=(2, 5, 3)), RNG.normal(size=(2, 3, 3))
    numbers, extras = ffmpi.encode_result(Forces(energy, forces, virial, [b"", b"{}"]))
    symmetric = (virial + virial.transpose(0, 2, 1)) / 2
    for k, row in enumerate(numbers):
        assert row.size == 1 + 15 + 9
        assert row[0] == pytest.approx(energy[k] / HARTREE)
        np.testing.assert_allclose(row[1:16], forces[k].ravel() * BOHR / HARTREE)
        np.testing.assert_allclose(row[16:], symmetric[k].ravel() / HARTREE)
    assert numbers.flags.c_contiguous
    assert extras == ints(1).tobytes() + b" " + ints(2).tobytes() + b"{}"


@pytest.mark.parametrize(
    ("header", "complaint"),
    [
        ((5, 0), "WORK announces 0 structures; expected 1 to 8"),
        ((5, 9), "WORK announces 9 structures; expected 1 to 8"),
        ((5, -1), "WORK announces -1 structures"),
        ((0, 2), "0 atoms in each of 2 structures; expected 1 to 50"),
        ((51, 2), "51 atoms in each of 2 structures; expected 1 to 50"),
        ((-1, 2), "-1 atoms in each of 2 structures"),
    ],
)
def test_numbers_of_work_are_bounded(header, complaint):
    with pytest.raises(RemoteProtocolError, match=complaint):
        ffmpi.work_size(ints(*header), LIMITS)


def test_init():
    raw = b" species : O H H , , batch_size:4"
    assert ffmpi.init_size(ints(7, len(raw)), LIMITS) == len(raw)
    event = ffmpi.decode_init(ints(7, len(raw)), raw, LIMITS)
    assert (event.bead, event.batch_size) == (7, 4)
    assert event.parameters["species"] == "O H H"


@pytest.mark.parametrize("length", [-1, 65])
def test_the_length_of_init_is_bounded(length):
    with pytest.raises(RemoteProtocolError, match=f"a string of {length} bytes; expected 0 to 64"):
        ffmpi.init_size(ints(0, length), LIMITS)
