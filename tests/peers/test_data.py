"""Data sets and detail files beside DeePMD-kit itself: what it reads we read, what `dp test -d` writes we write."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")

from dpserver.frames import Frames
from dpserver.models import checkpoint, deepmd
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.train.data import LabelledFrames, read_system, read_systems
from tests import structures
from tests.cli.test_test import run
from tests.peers.conftest import DeePMDKit
from tests.train.datasets import WATER, to_hdf5, write_mixed, write_npy

pytestmark = pytest.mark.peer

MODEL = {
    "type_map": list(structures.SPECIES),
    "descriptor": {"type": "se_e2_a", "sel": [30, 60], "rcut": 4.0, "neuron": [2, 4], "axis_neuron": 2},
    "fitting_net": {"neuron": [4]},
}
LABELS = {
    "energy": (1, False),
    "force": (3, True),
    "virial": (9, False),
    "atom_ener": (1, True),
    "atom_pref": (1, True),
    "dipole": (3, False),
    "atom_dipole": (3, True),
    "polarizability": (9, False),
    "fparam": (2, False),
    "aparam": (2, True),
}


def read_there(deepmd_kit: DeePMDKit, path: object) -> dict[str, Any]:
    """What DeePMD-kit makes of a data set."""
    answer = deepmd_kit.folder / "read.npz"
    deepmd_kit.do("read_data", path=str(path), types=list(WATER), labels=LABELS, answer=str(answer))
    with np.load(answer, allow_pickle=False) as file:
        return dict(file)


def assert_same(found: LabelledFrames, there: dict[str, Any]) -> None:
    """All arrays agree number by number, those of atoms without the places that are empty."""
    types = there["type"]
    present = types >= 0
    np.testing.assert_array_equal(found.frames.types, types[present])
    np.testing.assert_array_equal(found.counts, present.sum(axis=1))
    np.testing.assert_array_equal(found.frames.pbc, np.full((len(types), 3), there["pbc"]))
    np.testing.assert_array_equal(found.frames.positions, there["coord"].reshape(*types.shape, 3)[present])
    if there["pbc"]:
        np.testing.assert_array_equal(found.frames.cell.reshape(-1, 9), there["box"])
    ours = {
        "energy": found.energy,
        "force": found.forces,
        "virial": found.virial,
        "atom_ener": found.atom_energy,
        "atom_pref": found.atom_pref,
        "dipole": found.dipole,
        "atom_dipole": found.atom_dipole,
        "polarizability": found.polar,
        "fparam": found.frames.fparam,
        "aparam": found.frames.aparam,
    }
    for name, (width, is_atomic) in LABELS.items():
        assert bool(there[f"find_{name}"]) == (ours[name] is not None), name
        if ours[name] is not None:
            rows = there[name].reshape(*types.shape, width)[present] if is_atomic else there[name]
            np.testing.assert_array_equal(ours[name].reshape(-1, width), rows.reshape(-1, width), err_msg=name)


def test_npy(deepmd_kit: DeePMDKit, tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    more = {"atom_ener": 3, "atom_pref": 3, "dipole": 3, "atomic_dipole": 9, "polarizability": 9, "aparam": 6}
    arrays = {name: rng.normal(size=(5, width)) for name, width in more.items()}
    write_npy(tmp_path / "a", 5, sets=2, names=("H", "O"), fparam=rng.normal(size=(5, 2)), **arrays)
    assert_same(read_system(tmp_path / "a", WATER), read_there(deepmd_kit, tmp_path / "a"))


def test_open_and_without_labels(deepmd_kit: DeePMDKit, tmp_path: Path) -> None:
    write_npy(tmp_path / "a", 2, is_open=True, virial=False)
    (tmp_path / "a/set.000/force.npy").unlink()
    assert_same(read_system(tmp_path / "a", WATER), read_there(deepmd_kit, tmp_path / "a"))


@pytest.mark.parametrize("is_hdf5", [False, True])
def test_mixed(deepmd_kit: DeePMDKit, tmp_path: Path, is_hdf5: bool) -> None:
    path: object = tmp_path / "a"
    layout = [([0, 1, 2, 3, 4], [0, 1, 1, 1, 0]), ([0, 2, 3], [1, 1, 0]), ([4], [1])]
    write_mixed(tmp_path / "a", 5, layout, names=("H", "O"))
    np.save(tmp_path / "a/set.000/fparam.npy", np.load(tmp_path / "a/set.000/fparam.npy")[:, :2])
    if is_hdf5:
        h5py = pytest.importorskip("h5py")
        path = f"{tmp_path}/all.hdf5#/deep/a"
        with h5py.File(tmp_path / "all.hdf5", "w") as file:
            to_hdf5(tmp_path / "a", file.create_group("deep/a"))
    assert_same(read_system(str(path), WATER), read_there(deepmd_kit, path))


def test_lmdb(deepmd_kit: DeePMDKit, tmp_path: Path) -> None:
    dpdata = pytest.importorskip("dpdata")
    pytest.importorskip("lmdb")
    write_npy(tmp_path / "a", 3)
    write_npy(tmp_path / "b", 2, types=[0, 1, 1, 0], names=("H", "O"), seed=1)
    systems = [dpdata.LabeledSystem(str(tmp_path / name), fmt="deepmd/npy") for name in ("a", "b")]
    dpdata.MultiSystems(*systems).to("deepmd/lmdb", str(tmp_path / "all.lmdb"))
    found = read_system(tmp_path / "all.lmdb", WATER)
    answer = tmp_path / "read.npz"
    deepmd_kit.do("read_lmdb", path=str(tmp_path / "all.lmdb"), types=list(WATER), answer=str(answer))
    with np.load(answer, allow_pickle=False) as there:
        for k in range(5):
            one = found.subset([k])
            np.testing.assert_array_equal(one.frames.positions, there[f"coord_{k}"])
            np.testing.assert_array_equal(one.frames.types, there[f"atype_{k}"])
            np.testing.assert_array_equal(one.energy, there[f"energy_{k}"])
            np.testing.assert_array_equal(one.forces, there[f"force_{k}"])


@pytest.mark.parametrize("patterns", [None, ["run_*"], ["y/*", "rest"]])
def test_whole_folders(deepmd_kit: DeePMDKit, tmp_path: Path, patterns: list[str] | None) -> None:
    for name in ("x/run_1", "x/run_2", "x/y/run_3", "x/rest"):
        write_npy(tmp_path / name, 1)
    answer = tmp_path / "systems.npz"
    deepmd_kit.do("find_systems", path=str(tmp_path / "x"), patterns=patterns, answer=str(answer))
    with np.load(answer, allow_pickle=False) as there:
        found = read_systems([tmp_path / "x"], WATER, patterns)
        assert sorted(s.name for s in found) == sorted(there["systems"].tolist())


# --- dp test -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(deepmd_kit: DeePMDKit, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small model, for us and for DeePMD-kit."""
    folder = tmp_path_factory.mktemp("model")
    potential = Potential(parse(ModelConfig, MODEL), seed=3)
    checkpoint.save(folder / "w.pt", potential, {})
    deepmd.save(folder / "w.dp", potential, "double")
    deepmd_kit.convert(folder / "w.dp", folder / "w.pth")
    return folder


def write_system(folder: Path, model: Path, *, has_virial: bool = True, is_open: bool = False, seed: int = 0) -> None:
    """Three frames with the labels of the model and noise."""
    rng = np.random.default_rng(seed)
    frames = [structures.cubic(seed=k) for k in range(3)]
    result = checkpoint.load(model / "w.pt").evaluate(Frames.concatenate(frames))
    labels = {"energy": result.energy, "force": result.forces, "virial": result.virial}
    labels |= {"atom_ener": result.atom_energy, "atom_pref": rng.random(result.atom_energy.shape)}
    (folder / "set.000").mkdir(parents=True)
    np.savetxt(folder / "type.raw", frames[0].types, fmt="%d")
    (folder / "type_map.raw").write_text(" ".join(structures.SPECIES))
    np.save(folder / "set.000/coord.npy", np.reshape([f.positions for f in frames], (3, -1)))
    if is_open:
        (folder / "nopbc").touch()
    else:
        np.save(folder / "set.000/box.npy", np.reshape([f.cell for f in frames], (3, 9)))
    for name, values in labels.items():
        if name != "virial" or has_virial:
            np.save(folder / f"set.000/{name}.npy", (values + 0.1 * rng.random(values.shape)).reshape(3, -1))


def contents(file: Path) -> tuple[str, np.ndarray]:
    """Header and numbers."""
    return file.read_text().splitlines()[0], np.loadtxt(file)


def assert_same_details(folder: Path, names: set[str]) -> None:
    """The files of both agree in headers and numbers."""
    theirs = {file.name.partition(".")[2]: contents(file) for file in folder.glob("there.*")}
    ours = {file.name.partition(".")[2]: contents(file) for file in folder.glob("here.*")}
    assert theirs.keys() == ours.keys() == names
    for name, (header, numbers) in theirs.items():
        assert ours[name][0] == header
        np.testing.assert_allclose(ours[name][1], numbers, rtol=0, atol=1e-10, err_msg=name)


@pytest.mark.parametrize("n_frames", [0, 2])
def test_detail_files(deepmd_kit: DeePMDKit, model: Path, tmp_path: Path, n_frames: int) -> None:
    write_system(tmp_path / "a", model, has_virial=False)
    write_system(tmp_path / "b", model, seed=1)
    write_system(tmp_path / "c", model, is_open=True, seed=2)
    systems = tmp_path / "systems.txt"
    systems.write_text("".join(f"{tmp_path / name}\n" for name in "abc"))
    options = {"system": None, "datafile": str(systems), "detail_file": str(tmp_path / "there"), "numb_test": n_frames}
    deepmd_kit.do("test", log=str(tmp_path / "log"), model=str(model / "w.pth"), **options)
    run("-m", model / "w.pt", "-f", systems, "-d", tmp_path / "here", "-n", n_frames)
    assert_same_details(tmp_path, {f"{name}.out" for name in ("e", "e_peratom", "f", "v", "v_peratom", "s")})


TITLES = {
    "Energy ": "energy",
    "Force ": "force",
    "Force weighted ": "force_weighted",
    "Virial ": "virial",
    "Stress ": "stress",
    "Atomic ener ": "atom_energy",
}


def test_errors(deepmd_kit: DeePMDKit, model: Path, tmp_path: Path) -> None:
    write_system(tmp_path / "a", model)
    log = tmp_path / "log"
    options = {"system": str(tmp_path / "a"), "detail_file": None, "atomic": True}
    deepmd_kit.do("test", log=str(log), model=str(model / "w.pth"), **options)
    ours = json.loads(run("-m", model / "w.pt", "-s", tmp_path / "a", "-a", "--json"))["overall"]
    said = re.findall(r"^ *([A-Z][a-z ]*?)(MAE|RMSE) *: (\S+) eV", log.read_text(), re.MULTILINE)
    found = {(re.sub(r" +", " ", title), kind): float(value) for title, kind, value in said}
    for title, name in TITLES.items():
        for kind in ("MAE", "RMSE"):
            assert found[title, kind] == pytest.approx(ours[name][kind.lower()], rel=2e-6), title


# --- dipoles and polarizabilities --------------------------------------------------------------------------------


@pytest.mark.parametrize("is_atomic", [False, True])
@pytest.mark.parametrize(("kind", "file", "width"), [("dipole", "dipole", 3), ("polar", "polarizability", 9)])
def test_detail_files_of_tensors(
    deepmd_kit: DeePMDKit, tmp_path: Path, kind: str, file: str, width: int, is_atomic: bool
) -> None:
    """With numbers for the atoms of the selected species only."""
    section = {**MODEL, "fitting_net": {"type": kind, "neuron": [4], "sel_type": [0]}}
    tensors = TensorModel(parse(ModelConfig, section), seed=3)
    checkpoint.save(tmp_path / "w.pt", tensors, {})
    deepmd.save(tmp_path / "w.dp", tensors, "double")
    deepmd_kit.convert(tmp_path / "w.dp", tmp_path / "w.pth")
    rng = np.random.default_rng(0)
    for name in ("a", "b"):
        frames = [structures.cubic(seed=k) for k in range(3)]
        n_selected = int((frames[0].types == 0).sum())
        sets = tmp_path / name / "set.000"
        sets.mkdir(parents=True)
        np.savetxt(sets.parent / "type.raw", frames[0].types, fmt="%d")
        (sets.parent / "type_map.raw").write_text(" ".join(structures.SPECIES))
        np.save(sets / "coord.npy", np.reshape([f.positions for f in frames], (3, -1)))
        np.save(sets / "box.npy", np.reshape([f.cell for f in frames], (3, 9)))
        np.save(sets / f"{file}.npy", rng.normal(size=(3, width)))
        np.save(sets / f"atomic_{file}.npy", rng.normal(size=(3, n_selected * width)))
    systems = tmp_path / "systems.txt"
    systems.write_text(f"{tmp_path / 'a'}\n{tmp_path / 'b'}\n")
    options = {"system": None, "datafile": str(systems), "detail_file": str(tmp_path / "there"), "atomic": is_atomic}
    deepmd_kit.do("test", log=str(tmp_path / "log"), model=str(tmp_path / "w.pth"), **options)
    run("-m", tmp_path / "w.pt", "-f", systems, "-d", tmp_path / "here", *["-a"] * is_atomic)
    assert_same_details(tmp_path, {"out", "out.1"})
