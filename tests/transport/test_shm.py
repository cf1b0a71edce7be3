from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import RemoteProtocolError
from dpserver.ipi import Forces, Segment, SharedStructures
from dpserver.transport.shm import SEGMENTS, SharedArrays
from tests.segments import Segments, segments

pytestmark = pytest.mark.skipif(not SEGMENTS.is_dir(), reason="no /dev/shm")

N_FRAMES, N_ATOMS = 3, 5
RNG = np.random.default_rng(7)
X = RNG.normal(scale=9.0, size=(N_FRAMES, N_ATOMS, 3))
CELLS = RNG.normal(scale=9.0, size=(N_FRAMES, 3, 3))
VIRIAL = RNG.normal(size=(N_FRAMES, 3, 3))
ANSWER = Forces(RNG.normal(size=N_FRAMES), RNG.normal(size=(N_FRAMES, N_ATOMS, 3)), VIRIAL + VIRIAL.transpose(0, 2, 1))


def announce(made: Segments, **other: str) -> SharedStructures:
    names = {Segment(kind): name for kind, name in {**made.names, **other}.items()}
    return SharedStructures(N_FRAMES, N_ATOMS, names)


def n_files() -> int:
    return len(os.listdir("/proc/self/fd"))


@pytest.fixture
def made() -> Iterator[Segments]:
    with segments(N_FRAMES, N_ATOMS) as made:
        yield made


def test_structures_are_read_and_forces_written(made):
    made.fill(X, CELLS)
    arrays = SharedArrays(announce(made))
    structures = arrays.read()
    np.testing.assert_allclose(structures.positions, X, rtol=1e-15)
    np.testing.assert_allclose(structures.cell, CELLS, rtol=1e-15)
    arrays.write(ANSWER)
    energy, forces, virial = made.answer()
    np.testing.assert_allclose(energy, ANSWER.energy, rtol=1e-14)
    np.testing.assert_allclose(forces, ANSWER.forces, rtol=1e-14)
    np.testing.assert_allclose(virial, ANSWER.virial, rtol=1e-14)
    arrays.close()


def test_what_was_read_is_ours(made):
    made.fill(X, CELLS)
    arrays = SharedArrays(announce(made))
    structures = arrays.read()
    made.fill(X + 1, CELLS)
    np.testing.assert_allclose(structures.positions, X, rtol=1e-15)
    np.testing.assert_allclose(arrays.read().positions, X + 1, rtol=1e-15)
    arrays.close()


def test_only_the_answer_is_written(made):
    made.fill(X, CELLS)
    before = {kind: made.arrays[kind].copy() for kind in ("pos", "h", "ih")}
    arrays = SharedArrays(announce(made))
    arrays.write(ANSWER)
    arrays.close()
    for kind, array in before.items():
        np.testing.assert_array_equal(made.arrays[kind], array)


def test_the_segments_stay_the_peers(made):
    before = n_files()
    arrays = SharedArrays(announce(made))
    assert n_files() == before + 5
    arrays.close()
    arrays.close()
    assert n_files() == before
    assert all((SEGMENTS / name).exists() for name in made.names.values())


def test_the_inverse_cell_is_nobodys_business(made):
    made.fill(X, CELLS)
    arrays = SharedArrays(announce(made, ih="dpserver_test_nowhere"))
    assert np.isfinite(arrays.read().cell).all()
    arrays.close()


@pytest.mark.parametrize("kind", ["pos", "h", "pot", "force", "vir"])
def test_a_segment_that_is_missing(made, kind):
    before = n_files()
    with pytest.raises(
        RemoteProtocolError, match=rf"'dpserver_test_nowhere' \({kind}\) cannot be opened in /dev/shm: No such file"
    ):
        SharedArrays(announce(made, **{kind: "dpserver_test_nowhere"}))
    assert n_files() == before


@pytest.mark.parametrize("kind", ["pos", "h", "pot", "force", "vir"])
def test_a_segment_that_is_too_small(made, kind):
    size = made.memory[kind].size
    os.truncate(SEGMENTS / made.names[kind], size - 1)
    before = n_files()
    with pytest.raises(RemoteProtocolError, match=rf"\({kind}\) has {size - 1} bytes; expected {size} for float64 of"):
        SharedArrays(announce(made))
    assert n_files() == before


def test_a_segment_may_be_larger(made):
    """As where a system gives whole pages."""
    made.fill(X, CELLS)
    for kind in made.names:
        os.truncate(SEGMENTS / made.names[kind], made.memory[kind].size + 4096)
    arrays = SharedArrays(announce(made))
    np.testing.assert_allclose(arrays.read().positions, X, rtol=1e-15)
    arrays.write(ANSWER)
    arrays.close()
    np.testing.assert_allclose(made.answer()[1], ANSWER.forces, rtol=1e-14)


@pytest.mark.parametrize("kind", ["pos", "h"])
def test_structures_that_are_cut_short_on_the_way(made, kind):
    """A process that had mapped them would be killed by SIGBUS."""
    arrays = SharedArrays(announce(made))
    size = made.memory[kind].size
    os.truncate(SEGMENTS / made.names[kind], 0)
    with pytest.raises(RemoteProtocolError, match=rf"\({kind}\) has 0 bytes; expected {size}"):
        arrays.read()
    arrays.close()


@pytest.mark.parametrize("kind", ["pot", "force", "vir"])
def test_a_segment_that_was_cut_short_is_not_made_longer(made, kind):
    arrays = SharedArrays(announce(made))
    os.truncate(SEGMENTS / made.names[kind], 8)
    with pytest.raises(RemoteProtocolError, match=rf"\({kind}\) has 8 bytes"):
        arrays.write(ANSWER)
    arrays.close()
    assert (SEGMENTS / made.names[kind]).stat().st_size == 8


@pytest.mark.parametrize("kind", ["pos", "force"])
def test_links_and_folders_are_no_segments(made, kind, tmp_path):
    folder = tmp_path / "shm"
    folder.mkdir()
    for name in made.names.values():
        (folder / name).write_bytes(bytes(4096))
    SharedArrays(announce(made), folder).close()
    place: Path = folder / made.names[kind]
    place.rename(tmp_path / "secret")
    place.symlink_to(tmp_path / "secret")
    with pytest.raises(RemoteProtocolError, match=rf"\({kind}\) cannot be opened"):
        SharedArrays(announce(made), folder)
    place.unlink()
    os.mkfifo(place)
    with pytest.raises(RemoteProtocolError, match=rf"\({kind}\) (is no segment|cannot be opened)"):
        SharedArrays(announce(made), folder)
    assert (tmp_path / "secret").read_bytes() == bytes(4096)
