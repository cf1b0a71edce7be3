"""Labelled frames: what is joined, picked and refused."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from dpserver.errors import DataError
from dpserver.train.data import LabelledFrames, fingerprint, join, read_system, read_systems, template
from dpserver.train.formats.sources import find_systems
from dpserver.train.labels import LABELS
from tests.train.datasets import WATER, XYZ, system, write_npy, xyz

# --- labelled frames ---------------------------------------------------------------------------------------------


def test_subset(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, XYZ), WATER)
    picked = found.subset([1, 0, 1])
    np.testing.assert_array_equal(picked.counts, [2, 3, 2])
    np.testing.assert_array_equal(picked.frames.frame_idx, [0, 0, 1, 1, 1, 2, 2])
    for k, frame in enumerate([1, 0, 1]):
        lo, hi = picked.offsets[k], picked.offsets[k + 1]
        one = found.frames[frame]
        np.testing.assert_array_equal(picked.frames.positions[lo:hi], one.positions)
        np.testing.assert_array_equal(picked.frames.types[lo:hi], one.types)
        np.testing.assert_array_equal(picked.frames.cell[k], one.cell[0])
        np.testing.assert_array_equal(picked.energy[k], found.energy[frame])
    assert picked.forces is not None
    picked.forces[:] = 0.0
    assert found.forces is not None
    assert found.forces.any()


def test_subset_of_nothing_and_beyond() -> None:
    made = system(3)
    assert made.subset([]).n_frames == 0
    for wrong in ([3], [-1]):
        with pytest.raises(IndexError, match="of made, which has 3"):
            made.subset(wrong)


def test_join_keeps_order() -> None:
    a, b = system(2, 3, 1, "a"), system(3, 5, 2, "b")
    both = join([a, b])
    assert both.name == "a, b"
    np.testing.assert_array_equal(both.counts, [3, 3, 5, 5, 5])
    assert fingerprint([both.subset([2, 3, 4])]) == fingerprint([b])


def test_template() -> None:
    assert template([system(3), system(2, seed=5)]) == ("O", "H", "O")
    assert template([system(3), system(2, 4)]) is None
    assert template([]) is None
    swapped = system(3)
    swapped.frames.types[3:6] = [1, 0, 0]
    assert template([swapped]) is None


def everything(n_frames: int, seed: int = 0) -> LabelledFrames:
    """Frames with every label and parameter there is."""
    made, rng = system(n_frames, seed=seed), np.random.default_rng(seed)
    n_atoms = made.frames.n_atoms
    labels = {}
    for name, field in LABELS.items():
        shape = tuple(2 if n < 0 else n for n in field.shape)
        labels[name] = rng.normal(size=(n_atoms if field.is_atomic else n_frames, *shape))
    frames = replace(made.frames, fparam=rng.normal(size=(n_frames, 2)), aparam=rng.normal(size=(n_atoms, 4)))
    return LabelledFrames.build(frames, labels, WATER, "made")


def test_every_label_goes_with_its_frame() -> None:
    whole = everything(5)
    picked = whole.subset([3, 1])
    assert picked.labels.keys() == whole.labels.keys() == LABELS.keys()
    for name, field in LABELS.items():
        rows = [9, 10, 11, 3, 4, 5] if field.is_atomic else [3, 1]
        np.testing.assert_array_equal(picked.labels[name], whole.labels[name][rows], err_msg=name)
    assert whole.frames.fparam is not None
    np.testing.assert_array_equal(picked.frames.fparam, whole.frames.fparam[[3, 1]])
    assert whole.frames.aparam is not None
    np.testing.assert_array_equal(picked.frames.aparam, whole.frames.aparam[[9, 10, 11, 3, 4, 5]])


def test_joining_keeps_every_label() -> None:
    a, b = everything(2), everything(3, seed=1)
    both = join([a, b])
    assert fingerprint([both.subset([0, 1])]) == fingerprint([a])
    assert fingerprint([both.subset([2, 3, 4])]) == fingerprint([b])
    with pytest.raises(DataError, match="1 of 2 systems have virial"):
        join([a, system(2)])
    bare = replace(b, frames=replace(b.frames, fparam=None))
    with pytest.raises(DataError, match="a, b: all structures of a batch must have the same number of param"):
        join([a, bare], "a, b")


@pytest.mark.parametrize("name", [*LABELS, "fparam", "aparam"])
def test_fingerprint_sees_every_label(name: str) -> None:
    first, made = everything(2), everything(2)
    values = {**made.labels, **made.parameters}[name]
    values.flat[-1] = np.nextafter(values.flat[-1], 9)
    assert fingerprint([made]) != fingerprint([first])


def test_fingerprint_of_older_checkpoints() -> None:
    """That of energies, forces and virials is as it was before there were other labels."""
    made = system(2)
    digest = hashlib.sha256(repr(WATER).encode())
    f = made.frames
    for array in (f.positions, f.types, f.cell, f.pbc, f.frame_idx, made.energy, made.forces):
        assert array is not None
        digest.update(f"{array.dtype.str}{array.shape}".encode() + array.tobytes())
    digest.update(b"none")
    assert fingerprint([made]) == digest.hexdigest()


def test_fingerprint_sees_every_number() -> None:
    first = fingerprint([system(3)])
    assert first == fingerprint([system(3, name="other")])
    assert len(first) == 64
    for label in ("energy", "forces"):
        made = system(3)
        values = getattr(made, label)
        values.flat[-1] = np.nextafter(values.flat[-1], 9)
        assert fingerprint([made]) != first
    made = system(3)
    made.frames.positions[0, 0] += 1e-12
    assert fingerprint([made]) != first
    assert fingerprint([system(3), system(3)]) != first


# --- several systems ---------------------------------------------------------------------------------------------


def test_directory_of_systems(tmp_path: Path) -> None:
    write_npy(tmp_path / "x/b", 2, seed=1)
    write_npy(tmp_path / "x/a/deep", 3, seed=2, types=[0, 1, 1, 0, 1, 1])
    assert [s.path for s in find_systems(tmp_path)] == [tmp_path / "x/a/deep", tmp_path / "x/b"]
    parts = read_systems([tmp_path], WATER)
    assert [p.n_frames for p in parts] == [3, 2]
    whole = read_system(tmp_path, WATER)
    assert (whole.n_frames, whole.name) == (5, str(tmp_path))
    np.testing.assert_array_equal(whole.counts, [6, 6, 6, 3, 3])
    assert fingerprint([whole.subset(range(3))]) == fingerprint(parts[:1])
    assert fingerprint([whole.subset([3, 4])]) == fingerprint(parts[1:])


def test_joining_needs_the_same_labels(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    write_npy(tmp_path / "b", virial=False)
    with pytest.raises(DataError, match="1 of 2 systems have virial"):
        read_system(tmp_path, WATER)


def test_nothing_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        read_system(tmp_path / "a", WATER)
    with pytest.raises(DataError, match="no system in"):
        read_system(tmp_path, WATER)


# --- real data ---------------------------------------------------------------------------------------------------


def test_water(shared_dir: Path) -> None:
    systems = read_systems([shared_dir / "data/water"], WATER)
    assert [s.n_frames for s in systems] == [80, 160, 80, 80]
    symbols = template(systems)
    assert symbols is not None
    assert Counter(symbols) == {"O": 64, "H": 128}
    np.testing.assert_allclose(systems[0].frames.cell[0], np.eye(3) * 12.444661, rtol=1e-7)
    assert systems[0].energy[0] == pytest.approx(-29944, abs=1.0)


def test_wannier_water_is_symmetric_and_in_a_cell(shared_dir: Path) -> None:
    found = read_system(shared_dir / "data/water_wannier", WATER)
    assert found.virial is not None
    np.testing.assert_array_equal(found.virial, found.virial.transpose(0, 2, 1))
    np.testing.assert_array_equal(found.counts, [384] * 30)


def test_metals_agree_with_their_stress(shared_dir: Path) -> None:
    ase_io = pytest.importorskip("ase.io")
    path = shared_dir / "data/metals/Li_test.xyz"
    found = read_system(path, ("Li",))
    assert found.virial is not None
    assert set(found.counts) > {2, 53}
    for virial, atoms in zip(found.virial, ase_io.read(path, ":"), strict=True):
        np.testing.assert_allclose(virial, -atoms.get_volume() * atoms.get_stress(voigt=False), rtol=1e-10, atol=1e-12)


def test_ethanol_is_open(shared_dir: Path) -> None:
    pytest.importorskip("ase")
    found = read_system(shared_dir / "data/ethanol/test_dimers.xyz", ("H", "C", "O", "N"))
    assert found.n_frames == 429
    assert not found.frames.pbc.any()
    assert found.forces is None


def test_dipoles_of_oxygen_alone(shared_dir: Path) -> None:
    """One vector for each of the 128 O, which are the first 128 of 384 atoms."""
    found = read_system(shared_dir / "data/water_wannier", WATER)
    file = next((shared_dir / "data/water_wannier").glob("**/atomic_dipole.npy"))
    stored = np.load(file).reshape(-1, 128, 3)
    assert found.atom_dipole is not None
    vectors = found.atom_dipole.reshape(30, 384, 3)
    np.testing.assert_array_equal(vectors[: len(stored), :128], stored)
    assert not vectors[:, 128:].any()


def test_data_of_dipoles_alone(shared_dir: Path) -> None:
    folder = shared_dir / "data/water_dipole/training_data_reformat"
    atomic, whole = (read_system(folder / name, WATER) for name in ("atomic_system", "global_system"))
    assert atomic.labels.keys() == {"atom_dipole"}
    assert whole.labels.keys() == {"dipole"}
    assert not atomic.frames.pbc.any()
    assert atomic.atom_dipole is not None
    assert not atomic.atom_dipole[atomic.frames.types == 1].any()
    assert np.linalg.norm(atomic.atom_dipole[atomic.frames.types == 0], axis=1).mean() == pytest.approx(0.29, abs=0.02)
