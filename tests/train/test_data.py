"""Labelled frames: the formats, what is refused, and the order of batches."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.errors import ConfigError, DataError
from dpserver.frames import Frames
from dpserver.train.data import (
    BatchSampler,
    LabelledFrames,
    find_systems,
    fingerprint,
    join,
    read_system,
    read_systems,
    template,
)
from dpserver.train.data_config import DataConfig

WATER = ("O", "H")
TYPES = [0, 1, 1]
CELL = np.array([[9.0, 0.0, 0.0], [1.0, 8.0, 0.0], [0.5, -0.7, 7.0]])


def write_npy(
    folder: Path,
    n_frames: int = 4,
    *,
    seed: int = 0,
    sets: int = 1,
    types: list[int] = TYPES,
    names: tuple[str, ...] | None = WATER,
    virial: bool = True,
    is_open: bool = False,
    dtype: type[np.floating[Any]] = np.float64,
) -> dict[str, np.ndarray]:
    """Write a DeePMD npy directory and return its arrays, all sets together."""
    rng = np.random.default_rng(seed)
    folder.mkdir(parents=True)
    n = len(types)
    arrays = {
        "coord": rng.normal(size=(n_frames, 3 * n)),
        "energy": rng.normal(size=n_frames),
        "force": rng.normal(size=(n_frames, 3 * n)),
    }
    if virial:
        v = rng.normal(size=(n_frames, 3, 3))
        arrays["virial"] = (v + v.transpose(0, 2, 1)).reshape(n_frames, 9)
    if is_open:
        (folder / "nopbc").touch()
    else:
        arrays["box"] = np.tile(CELL.ravel(), (n_frames, 1))
    arrays = {name: values.astype(dtype) for name, values in arrays.items()}
    np.savetxt(folder / "type.raw", types, fmt="%d")
    if names is not None:
        (folder / "type_map.raw").write_text("\n".join(names) + "\n")
    for k, rows in enumerate(np.array_split(np.arange(n_frames), sets)):
        (folder / f"set.{k:03d}").mkdir()
        for name, values in arrays.items():
            np.save(folder / f"set.{k:03d}" / f"{name}.npy", values[rows])
    return arrays


def change(file: Path, value: float, *index: int) -> None:
    """Overwrite one number of a npy file."""
    values = np.load(file)
    values[index] = value
    np.save(file, values)


def system(n_frames: int, n_atoms: int = 3, seed: int = 0, name: str = "made") -> LabelledFrames:
    """Frames of equal size in memory."""
    rng = np.random.default_rng(seed)
    frames = Frames.concatenate(
        Frames.single(rng.normal(size=(n_atoms, 3)), np.arange(n_atoms) % 2) for _ in range(n_frames)
    )
    forces = rng.normal(size=(n_frames * n_atoms, 3))
    return LabelledFrames(frames, rng.normal(size=n_frames), forces, None, WATER, name)


def config(**options: Any) -> DataConfig:
    return DataConfig.model_validate({"systems": "data", **options})


# --- npy ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("sets", [1, 3])
def test_npy(tmp_path: Path, sets: int, dtype: type[np.floating[Any]]) -> None:
    arrays = write_npy(tmp_path / "a", sets=sets, dtype=dtype)
    found = read_system(tmp_path / "a", WATER)
    frames = found.frames
    assert (found.n_frames, frames.n_atoms, found.species) == (4, 12, WATER)
    assert found.name == str(tmp_path / "a")
    np.testing.assert_array_equal(frames.positions, arrays["coord"].reshape(-1, 3))
    np.testing.assert_array_equal(frames.types, TYPES * 4)
    np.testing.assert_array_equal(frames.cell, np.tile(CELL, (4, 1, 1)).astype(dtype))
    np.testing.assert_array_equal(frames.frame_idx, np.repeat(np.arange(4), 3))
    assert frames.pbc.all()
    assert found.forces is not None
    assert found.virial is not None
    np.testing.assert_array_equal(found.energy, arrays["energy"])
    np.testing.assert_array_equal(found.forces, arrays["force"].reshape(-1, 3))
    np.testing.assert_array_equal(found.virial, arrays["virial"].reshape(-1, 3, 3))
    for values in (frames.positions, frames.cell, found.energy, found.forces, found.virial):
        assert values.dtype == np.float64


def test_npy_types_follow_the_models_species(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    found = read_system(tmp_path / "a", ("C", "H", "O"))
    np.testing.assert_array_equal(found.frames.types, [2, 1, 1] * 4)


def test_npy_without_type_map_uses_the_models_species(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", names=None)
    np.testing.assert_array_equal(read_system(tmp_path / "a", ("C", "H")).frames.types, TYPES * 4)


def test_npy_type_map_may_name_species_that_do_not_occur(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", names=("O", "H", "Xe"))
    assert read_system(tmp_path / "a", WATER).n_frames == 4


def test_npy_open(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", is_open=True)
    found = read_system(tmp_path / "a", WATER)
    assert not found.frames.pbc.any()
    assert not found.frames.cell.any()


def test_npy_without_forces_and_virial(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", virial=False)
    (tmp_path / "a/set.000/force.npy").unlink()
    found = read_system(tmp_path / "a", WATER)
    assert found.forces is None
    assert found.virial is None


def test_npy_energy_may_be_a_column(tmp_path: Path) -> None:
    arrays = write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/energy.npy", arrays["energy"][:, None])
    np.testing.assert_array_equal(read_system(tmp_path / "a", WATER).energy, arrays["energy"])


@pytest.mark.parametrize("name", ["coord", "box", "energy"])
def test_npy_missing_file(tmp_path: Path, name: str) -> None:
    write_npy(tmp_path / "a")
    (tmp_path / f"a/set.000/{name}.npy").unlink()
    with pytest.raises(DataError, match=rf"{name}\.npy is missing"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize(("name", "width"), [("coord", 9), ("force", 9), ("box", 9), ("virial", 9)])
def test_npy_wrong_shape(tmp_path: Path, name: str, width: int) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / f"a/set.000/{name}.npy", np.zeros((4, width + 3)))
    with pytest.raises(DataError, match=rf"{name}\.npy: expected 9 numbers for each of 4 frames of 3 atoms, got shape"):
        read_system(tmp_path / "a", WATER)


def test_npy_wrong_number_of_frames(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/energy.npy", np.zeros(5))
    with pytest.raises(DataError, match=r"energy\.npy: expected 1 number for each of 4 frames"):
        read_system(tmp_path / "a", WATER)


def test_npy_unknown_species(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", names=("O", "D"))
    with pytest.raises(DataError, match="species D is not among the model's: O, H"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize("types", [[0, 1, 2], [0, -1, 1]])
def test_npy_type_out_of_range(tmp_path: Path, types: list[int]) -> None:
    write_npy(tmp_path / "a", types=types)
    with pytest.raises(DataError, match=r"type\.raw: expected at least one integer from 0 to 1 \(O, H\), got"):
        read_system(tmp_path / "a", WATER)


def test_npy_type_raw_that_is_no_list_of_integers(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    (tmp_path / "a/type.raw").write_text("O H H")
    with pytest.raises(DataError, match=r"cannot read type\.raw"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize(("name", "label"), [("energy", "energy"), ("force", "forces"), ("virial", "virial")])
def test_labels_that_are_not_finite(tmp_path: Path, name: str, label: str) -> None:
    write_npy(tmp_path / "a")
    change(tmp_path / f"a/set.000/{name}.npy", np.nan, 2)
    with pytest.raises(DataError, match=f"{label} of frame 2: expected finite numbers"):
        read_system(tmp_path / "a", WATER)


def test_positions_that_are_not_finite(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    change(tmp_path / "a/set.000/coord.npy", np.inf, 1, 0)
    with pytest.raises(DataError, match="a: the position of atom 3 is not finite"):
        read_system(tmp_path / "a", WATER)


def test_singular_cell(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/box.npy", np.zeros((4, 9)))
    with pytest.raises(DataError, match="the cell is singular"):
        read_system(tmp_path / "a", WATER)


def test_pickled_array_is_not_loaded(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/energy.npy", np.array([{}, {}, {}, {}], dtype=object), allow_pickle=True)
    with pytest.raises(DataError, match=r"cannot read .*energy\.npy"):
        read_system(tmp_path / "a", WATER)


def test_array_of_text(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/energy.npy", np.array(["1", "2", "3", "4"]))
    with pytest.raises(DataError, match="expected real numbers"):
        read_system(tmp_path / "a", WATER)


def test_mixed_type_format_is_refused(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/real_atom_types.npy", np.zeros((4, 3), dtype=int))
    with pytest.raises(DataError, match="mixed-type format"):
        read_system(tmp_path / "a", WATER)


def test_label_in_one_of_two_sets(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", sets=2)
    (tmp_path / "a/set.001/virial.npy").unlink()
    with pytest.raises(DataError, match="1 of 2 sets have virial"):
        read_system(tmp_path / "a", WATER)


def test_no_set(tmp_path: Path) -> None:
    (tmp_path / "type.raw").write_text("0 1 1")
    with pytest.raises(DataError, match=r"no set\.\* directory"):
        read_system(tmp_path, WATER)


# --- several systems ---------------------------------------------------------------------------------------------


def test_directory_of_systems(tmp_path: Path) -> None:
    write_npy(tmp_path / "x/b", 2, seed=1)
    write_npy(tmp_path / "x/a/deep", 3, seed=2, types=[0, 1, 1, 0, 1, 1])
    assert find_systems(tmp_path) == [tmp_path / "x/a/deep", tmp_path / "x/b"]
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


# --- extended XYZ ------------------------------------------------------------------------------------------------

XYZ = """3
Lattice="9 0 0 1 8 0 0.5 -0.7 7" Properties=species:S:1:pos:R:3:forces:R:3 energy=-3.5 pbc="T T F"
O 0.0 0.0 0.0  0.1 0.2 0.3
H 1.0 0.0 0.0  0.4 0.5 0.6
H 0.0 1.0 0.0  0.7 0.8 0.9
2
Properties=species:S:1:pos:R:3:forces:R:3 energy=-1.25 pbc="F F F"
H 0.0 0.0 0.0  1.0 0.0 0.0
H 0.0 0.0 0.7 -1.0 0.0 0.0
"""
STRESSED = """1
Lattice="2 0 0 0 3 0 0 0 4" Properties=species:S:1:pos:R:3 energy=1.0 {}
O 0.0 0.0 0.0
"""
STRESS = 'stress="1 6 5 6 2 4 5 4 3"'


def xyz(folder: Path, text: str) -> Path:
    pytest.importorskip("ase")
    path = folder / "data.xyz"
    path.write_text(text)
    return path


def test_xyz_of_different_sizes(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, XYZ), WATER)
    np.testing.assert_array_equal(found.counts, [3, 2])
    np.testing.assert_array_equal(found.frames.types, [0, 1, 1, 1, 1])
    np.testing.assert_array_equal(found.frames.pbc, [[True, True, False], [False, False, False]])
    np.testing.assert_array_equal(found.frames.cell, [CELL, np.zeros((3, 3))])
    np.testing.assert_array_equal(found.energy, [-3.5, -1.25])
    assert found.forces is not None
    np.testing.assert_array_equal(found.forces[[0, 4]], [[0.1, 0.2, 0.3], [-1.0, 0.0, 0.0]])
    assert found.virial is None
    assert template([found]) is None


def test_xyz_virial_of_stress(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, STRESSED.format(STRESS)), WATER)
    assert found.virial is not None
    np.testing.assert_allclose(found.virial, [[[-24.0, -144, -120], [-144, -48, -96], [-120, -96, -72]]], rtol=1e-14)


def test_xyz_virial_before_stress(tmp_path: Path) -> None:
    found = read_system(xyz(tmp_path, STRESSED.format(STRESS + ' virial="7 1 2 1 8 3 2 3 9"')), WATER)
    assert found.virial is not None
    np.testing.assert_array_equal(found.virial, [[[7.0, 1, 2], [1, 8, 3], [2, 3, 9]]])


def test_xyz_refusals(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="1 of 2 frames have energy"):
        read_system(xyz(tmp_path, XYZ.replace("energy=-1.25", "")), WATER)
    with pytest.raises(DataError, match="no frame has an energy"):
        read_system(xyz(tmp_path, "1\nProperties=species:S:1:pos:R:3\nO 0 0 0\n"), WATER)
    with pytest.raises(DataError, match="species O is not among the model's: H"):
        read_system(xyz(tmp_path, XYZ), ("H",))
    with pytest.raises(DataError, match="forces of frame 1: expected finite numbers"):
        read_system(xyz(tmp_path, XYZ.replace("-1.0 0.0 0.0", "nan 0.0 0.0")), WATER)


@pytest.mark.parametrize("text", ["", "hello\n", "3\nenergy=1\nO 0 0 0\n", "x\ny\nz\n"])
def test_what_is_no_xyz(tmp_path: Path, text: str) -> None:
    with pytest.raises(DataError, match=r"data\.xyz (is not an extended XYZ file|holds no frame)"):
        read_system(xyz(tmp_path, text), WATER)


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


# --- batches -----------------------------------------------------------------------------------------------------


def test_an_epoch_has_every_frame_once() -> None:
    sampler = BatchSampler([system(10)], config(batch_size=4), seed=1)
    epochs = [[next(sampler) for _ in range(3)] for _ in range(3)]
    for epoch in epochs:
        assert [len(b.frames) for b in epoch] == [4, 4, 2]
        assert sorted(np.concatenate([b.frames for b in epoch]).tolist()) == list(range(10))
    assert epochs[0][0].frames.tolist() != epochs[1][0].frames.tolist()


@pytest.mark.parametrize(
    ("batch_size", "expected"),
    [("auto", [11, 4]), ("auto:100", [20, 10]), (3, [3, 3]), ([5, 1], [5, 1]), ("auto:1", [1, 1]), (99, [20, 10])],
)
def test_batch_sizes(batch_size: object, expected: list[int]) -> None:
    systems = [system(20, 3), system(10, 8)]
    assert BatchSampler(systems, config(batch_size=batch_size), seed=1).batch_sizes == expected


def test_auto_batch_of_frames_of_different_size_goes_by_their_mean() -> None:
    ragged = join([system(10, 2), system(10, 6)])
    assert BatchSampler([ragged], config(), seed=1).batch_sizes == [8]


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({}, [0.5, 0.25, 0.25]),
        ({"auto_prob": "prob_uniform"}, [1 / 3, 1 / 3, 1 / 3]),
        ({"sys_probs": [1, 3, 0]}, [0.25, 0.75, 0.0]),
        ({"auto_prob": "prob_sys_size;0:1:3;1:3:1"}, [0.75, 0.125, 0.125]),
        ({"auto_prob": "prob_sys_size;1:3:1"}, [0.0, 0.5, 0.5]),
    ],
)
def test_probabilities(options: dict[str, Any], expected: list[float]) -> None:
    systems = [system(20), system(10), system(10)]
    sampler = BatchSampler(systems, config(batch_size=2, **options), seed=1)
    np.testing.assert_allclose(sampler.probabilities, expected, rtol=1e-15)
    drawn = Counter(next(sampler).system for _ in range(2000))
    np.testing.assert_allclose([drawn[k] / 2000 for k in range(3)], expected, atol=0.05)


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"batch_size": [1, 2, 3]}, "batch_size: needs one number for each of the 2 systems found, got 3"),
        ({"sys_probs": [1.0]}, "sys_probs: needs one number for each of the 2 systems found, got 1"),
        ({"sys_probs": [0.0, 0.0]}, "sys_probs: all probabilities are 0"),
        ({"auto_prob": "prob_sys_size;0:3:1"}, "auto_prob: the block 0:3 ends beyond the 2 systems found"),
    ],
)
def test_configuration_that_does_not_fit(options: dict[str, Any], expected: str) -> None:
    with pytest.raises(ConfigError, match=expected):
        BatchSampler([system(2), system(2)], config(**options), seed=1)


def draw(sampler: BatchSampler, n: int) -> list[tuple[int, list[int]]]:
    return [(b.system, b.frames.tolist()) for b, _ in zip(sampler, range(n), strict=False)]


def test_same_seed_same_batches() -> None:
    systems = [system(10), system(6)]
    first, same, other = (BatchSampler(systems, config(batch_size=4), seed=s) for s in (7, 7, 8))
    batches = draw(first, 30)
    assert draw(same, 30) == batches
    assert draw(other, 30) != batches


def test_without_a_seed_every_sampler_differs_but_can_be_repeated() -> None:
    systems = [system(50)]
    a, b = (BatchSampler(systems, config(batch_size=5)) for _ in range(2))
    assert a.seed != b.seed
    assert draw(BatchSampler(systems, config(batch_size=5), a.seed), 20) == draw(a, 20)


@pytest.mark.parametrize("n_before", [0, 1, 7, 40])
def test_restored_state_continues(n_before: int) -> None:
    systems = [system(10), system(7, 5)]
    whole = BatchSampler(systems, config(batch_size=3), seed=5)
    draw(whole, n_before)
    state = json.loads(json.dumps(whole.state_dict()))
    restored = BatchSampler(systems, config(batch_size=3), seed=99)
    draw(restored, 3)
    restored.load_state_dict(state)
    assert draw(restored, 30) == draw(whole, 30)


def test_state_of_other_data_is_refused() -> None:
    state = BatchSampler([system(10)], config(batch_size=3), seed=5).state_dict()
    with pytest.raises(DataError, match=r"n_frames was \[10\], now is \[11\]"):
        BatchSampler([system(11)], config(batch_size=3), seed=5).load_state_dict(state)
    with pytest.raises(DataError, match=r"batch_sizes was \[3\], now is \[2\]"):
        BatchSampler([system(10)], config(batch_size=2), seed=5).load_state_dict(state)


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
