"""DeePMD-kit's npy directories, mixed-type or not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.errors import DataError
from dpserver.train.data import read_system
from dpserver.train.labels import LABELS
from tests.train.datasets import CELL, TYPES, WATER, change, write_mixed, write_npy


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


@pytest.mark.parametrize("name", ["coord", "box"])
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
    with pytest.raises(DataError, match=r"type\.raw: expected integers from 0 to 1 \(O, H\), got"):
        read_system(tmp_path / "a", WATER)


def test_npy_type_raw_that_is_no_list_of_integers(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    (tmp_path / "a/type.raw").write_text("O H H")
    with pytest.raises(DataError, match=r"type\.raw: expected one integer for each atom, got \['O', 'H', 'H'\]"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize(("name", "label"), [("energy", "energy"), ("force", "forces"), ("virial", "virial")])
def test_labels_that_are_not_finite(tmp_path: Path, name: str, label: str) -> None:
    write_npy(tmp_path / "a")
    change(tmp_path / f"a/set.000/{name}.npy", np.nan, 2)
    with pytest.raises(DataError, match=f"{label} of frame 2: expected finite numbers"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize("is_mixed", [False, True])
def test_positions_that_are_not_finite(tmp_path: Path, is_mixed: bool) -> None:
    if is_mixed:
        write_mixed(tmp_path / "a", 3, [([0, 1, 2], [0, 1, 1])] * 4)
    else:
        write_npy(tmp_path / "a")
    change(tmp_path / "a/set.000/coord.npy", np.inf, 2, 4)
    with pytest.raises(
        DataError,
        match=r"a/set\.000/coord\.npy: frame 2: the position of atom 1 must be finite .* inf, .*; remove the frame$",
    ):
        read_system(tmp_path / "a", WATER)


def test_frames_are_counted_in_their_file(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", 6, sets=3)
    change(tmp_path / "a/set.001/box.npy", np.nan, 1, 0)
    with pytest.raises(DataError, match=r"a/set\.001/box\.npy: frame 1: lattice vectors must be finite numbers, got"):
        read_system(tmp_path / "a", WATER)
    change(tmp_path / "a/set.001/coord.npy", np.nan, 0, 8)
    with pytest.raises(DataError, match=r"a/set\.001/coord\.npy: frame 0: the position of atom 2 must"):
        read_system(tmp_path / "a", WATER)


def test_singular_cell(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", sets=2)
    np.save(tmp_path / "a/set.001/box.npy", np.zeros((2, 9)))
    with pytest.raises(
        DataError,
        match=r"a/set\.001/box\.npy: frame 0: the cell is singular: .*; if the system is open, write an empty file "
        r".*a/nopbc$",
    ):
        read_system(tmp_path / "a", WATER)
    (tmp_path / "a/nopbc").touch()
    assert not read_system(tmp_path / "a", WATER).frames.pbc.any()


@pytest.mark.parametrize("shape", [(0, 9), (0,)])
def test_set_without_frames(tmp_path: Path, shape: tuple[int, ...]) -> None:
    write_npy(tmp_path / "a", sets=2)
    np.save(tmp_path / "a/set.001/coord.npy", np.zeros(shape))
    with pytest.raises(DataError, match=r"a/set\.001/coord\.npy: holds no frames .*; remove .*a/set\.001$"):
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


def test_label_in_one_of_two_sets(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", sets=2)
    (tmp_path / "a/set.001/virial.npy").unlink()
    with pytest.raises(DataError, match="1 of 2 sets have virial"):
        read_system(tmp_path / "a", WATER)


def test_no_set(tmp_path: Path) -> None:
    (tmp_path / "type.raw").write_text("0 1 1")
    with pytest.raises(DataError, match=r"no set\.\* directory"):
        read_system(tmp_path, WATER)


# --- optional labels and parameters ------------------------------------------------------------------------------


def test_every_label_and_parameter(tmp_path: Path) -> None:
    rng = np.random.default_rng(1)
    files = {
        "atom_ener": (4, 3),
        "atom_ener_coeff": (4, 3),
        "atom_pref": (4, 3),
        "drdq": (4, 3 * 6),
        "dipole": (4, 3),
        "atomic_dipole": (4, 9),
        "polarizability": (4, 9),
        "atomic_polarizability": (4, 27),
        "atom_weight": (4, 3),
        "fparam": (4, 2),
        "aparam": (4, 3 * 5),
    }
    arrays = {name: rng.normal(size=shape) for name, shape in files.items()}
    write_npy(tmp_path / "a", sets=2, **arrays, numb_copy=np.array([1.0, 2.0, 1.0, 0.0]))
    found = read_system(tmp_path / "a", WATER)
    assert found.labels.keys() == LABELS.keys()
    np.testing.assert_array_equal(found.atom_energy, arrays["atom_ener"].ravel())
    np.testing.assert_array_equal(found.atom_energy_coeff, arrays["atom_ener_coeff"].ravel())
    np.testing.assert_array_equal(found.atom_pref, arrays["atom_pref"].ravel())
    np.testing.assert_array_equal(found.drdq, arrays["drdq"].reshape(12, 6))
    np.testing.assert_array_equal(found.dipole, arrays["dipole"])
    np.testing.assert_array_equal(found.atom_dipole, arrays["atomic_dipole"].reshape(12, 3))
    np.testing.assert_array_equal(found.polar, arrays["polarizability"].reshape(4, 3, 3))
    np.testing.assert_array_equal(found.atom_polar, arrays["atomic_polarizability"].reshape(12, 3, 3))
    np.testing.assert_array_equal(found.atom_weight, arrays["atom_weight"].ravel())
    np.testing.assert_array_equal(found.copies, [1, 2, 1, 0])
    np.testing.assert_array_equal(found.frames.fparam, arrays["fparam"])
    np.testing.assert_array_equal(found.frames.aparam, arrays["aparam"].reshape(12, 5))


def test_a_dipole_alone_is_a_data_set(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", virial=False, dipole=np.ones((4, 3)))
    for name in ("energy", "force"):
        (tmp_path / f"a/set.000/{name}.npy").unlink()
    found = read_system(tmp_path / "a", WATER)
    assert found.labels.keys() == {"dipole"}
    assert found.energy is None


def test_no_label_at_all(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", virial=False, numb_copy=np.ones(4))
    for name in ("energy", "force"):
        (tmp_path / f"a/set.000/{name}.npy").unlink()
    with pytest.raises(DataError, match="a has neither energy nor forces nor another label"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize("copies", [[1, 1, -1, 1], [1, 1.5, 1, 1], [0, 0, 0, 0]])
def test_copies_are_whole_numbers(tmp_path: Path, copies: list[float]) -> None:
    write_npy(tmp_path / "a", numb_copy=np.array(copies))
    with pytest.raises(DataError, match=r"copies \(numb_copy\.npy\): expected whole numbers from 0, not all of them 0"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize(
    ("types", "selected", "carriers"),
    [([0, 1, 1], None, [0]), ([1, 0, 1], None, [1]), ([0, 1], ("H",), [1]), ([0, 1, 2, 2], ("O", "Xe"), [0, 2, 3])],
)
def test_vectors_of_some_species(
    tmp_path: Path, types: list[int], selected: tuple[str, ...] | None, carriers: list[int]
) -> None:
    vectors = np.random.default_rng(2).normal(size=(4, len(carriers), 3))
    write_npy(tmp_path / "a", types=types, names=("O", "H", "Xe"), atomic_dipole=vectors.reshape(4, -1))
    found = read_system(tmp_path / "a", ("Xe", "O", "H"), selected).atom_dipole
    assert found is not None
    whole = found.reshape(4, len(types), 3)
    np.testing.assert_array_equal(whole[:, carriers], vectors)
    np.testing.assert_array_equal(np.delete(whole, carriers, axis=1), 0.0)


def test_vectors_that_may_be_those_of_either_species(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", types=[0, 1], atomic_dipole=np.ones((4, 3)))
    with pytest.raises(DataError, match=r"atomic_dipole\.npy: has numbers for 1 of 2 atoms, .* of O or H; write one"):
        read_system(tmp_path / "a", WATER)


def test_which_of_very_many_species_have_vectors_is_not_guessed(tmp_path: Path) -> None:
    names = tuple(f"X{k}" for k in range(40))
    write_npy(tmp_path / "a", types=list(range(40)), names=names, atomic_dipole=np.ones((4, 60)))
    with pytest.raises(DataError, match=r"has numbers for 20 of 40 atoms, and of 40 types .*; write one for each atom"):
        read_system(tmp_path / "a", names)


@pytest.mark.parametrize("selected", [None, ("H",)])
def test_vectors_of_no_species(tmp_path: Path, selected: tuple[str, ...] | None) -> None:
    write_npy(tmp_path / "a", types=[0, 0, 1, 1, 1], atomic_dipole=np.ones((4, 12)))
    with pytest.raises(DataError, match=r"atomic_dipole\.npy: expected 15 numbers for each of 4 frames of 5 atoms"):
        read_system(tmp_path / "a", WATER, selected)


def test_parameters_that_do_not_divide_by_atoms(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", aparam=np.ones((4, 4)))
    with pytest.raises(DataError, match=r"aparam\.npy: expected a multiple of 3 numbers for each of 4 frames"):
        read_system(tmp_path / "a", WATER)


def test_parameters_that_are_not_finite(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", fparam=np.array([[1.0], [2.0], [np.inf], [3.0]]))
    with pytest.raises(DataError, match="fparam of frame 2: expected finite numbers"):
        read_system(tmp_path / "a", WATER)


def test_one_frame_without_an_axis_for_it(tmp_path: Path) -> None:
    arrays = write_npy(tmp_path / "a", 1)
    for name, values in arrays.items():
        np.save(tmp_path / f"a/set.000/{name}.npy", values[0])
    found = read_system(tmp_path / "a", WATER)
    np.testing.assert_array_equal(found.forces, arrays["force"].reshape(3, 3))


def test_types_as_numpy_writes_them(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.savetxt(tmp_path / "a/type.raw", TYPES, header="types")
    np.testing.assert_array_equal(read_system(tmp_path / "a", WATER).frames.types, TYPES * 4)


# --- mixed-type --------------------------------------------------------------------------------------------------

ENDS = [([0, 1, 2, 3, 4], [0, 1, 1, 1, 0]), ([0, 1, 2], [1, 1, 0]), ([0], [1])]
HOLES = [([0, 2, 3], [1, 0, 0]), ([1, 2, 3, 4], [0, 0, 0, 0]), ([4], [1])]


@pytest.mark.parametrize("layout", [ENDS, HOLES])
def test_mixed(tmp_path: Path, layout: list[tuple[list[int], list[int]]]) -> None:
    written = write_mixed(tmp_path / "a", 5, layout)
    found = read_system(tmp_path / "a", ("H", "Xe", "O"))
    np.testing.assert_array_equal(found.counts, [len(places) for places, _ in layout])
    for k, frame in enumerate(written):
        one = found.subset([k])
        np.testing.assert_array_equal(one.frames.positions, frame["coord"])
        np.testing.assert_array_equal(one.frames.types, np.array([2, 0])[frame["types"]])
        np.testing.assert_array_equal(one.frames.cell[0], CELL)
        np.testing.assert_array_equal(one.forces, frame["force"])
        np.testing.assert_array_equal(one.energy, [frame["energy"]])
        np.testing.assert_array_equal(one.virial, frame["virial"].reshape(1, 3, 3))
        np.testing.assert_array_equal(one.atom_energy, frame["atom_ener"])
        np.testing.assert_array_equal(one.frames.fparam, [frame["fparam"]])
        np.testing.assert_array_equal(one.frames.aparam, frame["aparam"])


def test_mixed_needs_names(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a", 5, ENDS)
    (tmp_path / "a/type_map.raw").unlink()
    with pytest.raises(DataError, match=r"type_map\.raw is missing; the mixed-type format needs it"):
        read_system(tmp_path / "a", WATER)


@pytest.mark.parametrize("wrong", [2, -2])
def test_mixed_type_out_of_range(tmp_path: Path, wrong: int) -> None:
    write_mixed(tmp_path / "a", 5, ENDS)
    change(tmp_path / "a/set.000/real_atom_types.npy", wrong, 1, 0)
    with pytest.raises(DataError, match=rf"real_atom_types\.npy: expected integers from -1 to 1 .*, got .*{wrong}"):
        read_system(tmp_path / "a", WATER)


def test_mixed_types_of_another_shape(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a", 5, ENDS)
    np.save(tmp_path / "a/set.000/real_atom_types.npy", np.zeros((3, 4), dtype=int))
    with pytest.raises(DataError, match="one integer for each of 5 places in each of 3 frames, got int64 of shape"):
        read_system(tmp_path / "a", WATER)


def test_a_frame_of_nobody(tmp_path: Path) -> None:
    write_mixed(tmp_path / "a", 5, [*ENDS, ([], [])])
    with pytest.raises(DataError, match=r"real_atom_types\.npy: frame 3 has no atom"):
        read_system(tmp_path / "a", WATER)


def test_all_sets_are_mixed_or_none(tmp_path: Path) -> None:
    write_npy(tmp_path / "a", sets=2)
    np.save(tmp_path / "a/set.000/real_atom_types.npy", np.zeros((2, 3), dtype=int))
    with pytest.raises(DataError, match=r"1 of 2 sets have real_atom_types\.npy"):
        read_system(tmp_path / "a", WATER)


# --- damaged files -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_bytes", [0, 5, 30, 200])
def test_a_file_cut_short(tmp_path: Path, n_bytes: int) -> None:
    write_npy(tmp_path / "a")
    file = tmp_path / "a/set.000/force.npy"
    file.write_bytes(file.read_bytes()[:n_bytes])
    with pytest.raises(DataError, match=r"cannot read .*force\.npy: ") as caught:
        read_system(tmp_path / "a", WATER)
    assert "\n" not in str(caught.value)


def test_a_header_that_promises_the_moon(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    header = {"descr": "<f8", "fortran_order": False, "shape": (10**12, 9)}
    with (tmp_path / "a/set.000/force.npy").open("wb") as stream:
        np.lib.format.write_array_header_1_0(stream, header)
    with pytest.raises(DataError, match=r"force\.npy: expected 72000000000000 bytes of numbers .*, got 0; copy"):
        read_system(tmp_path / "a", WATER)


def test_complex_numbers(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    np.save(tmp_path / "a/set.000/energy.npy", np.ones(4, dtype=complex))
    with pytest.raises(DataError, match=r"energy\.npy: expected real numbers, got complex128"):
        read_system(tmp_path / "a", WATER)


def test_type_raw_of_something_else(tmp_path: Path) -> None:
    write_npy(tmp_path / "a")
    for content in (b"\xff\xfe\x00", b"", b"0 1.5 1", b"nan 0 1", b"1e300 0 0"):
        (tmp_path / "a/type.raw").write_bytes(content)
        with pytest.raises(DataError, match=r"type\.raw"):
            read_system(tmp_path / "a", WATER)
