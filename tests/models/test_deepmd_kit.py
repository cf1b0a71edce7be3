"""Models evaluated by DeePMD-kit, here by one of a few lines; with the real one in tests/peers."""

from __future__ import annotations

import os
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch

import dpserver
from dpserver.errors import ConfigError, DeviceError, ModelFileError, StructureError
from dpserver.frames import Frames
from dpserver.models.deepmd_kit import DeepPotModel
from dpserver.models.parameters import Takes
from tests import fake_deepmd, structures
from tests.contract import EvaluationContract
from tests.doubles import PairModel


@pytest.fixture(autouse=True)
def _installed(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_deepmd.install(monkeypatch)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return fake_deepmd.model_file(tmp_path)


def every_cell() -> Frames:
    return Frames.concatenate(
        [structures.cubic(), structures.triclinic(), structures.cluster(), structures.cubic(), structures.molecule()]
    )


class TestContract(EvaluationContract):
    @pytest.fixture(autouse=True)
    def _file(self, file: Path) -> None:
        self.file = file

    def potential(self) -> DeepPotModel:
        return DeepPotModel(self.file)

    def frames(self) -> Frames:
        return every_cell()

    def test_parts_with_ghosts_sum_to_the_whole(self) -> None:
        """It gives no forces of some atoms' energies alone, and says so."""
        ghosts = np.arange(every_cell().n_atoms) % 2 == 0
        with pytest.raises(StructureError, match="a part of a structure cannot be evaluated by DeePMD-kit"):
            self.potential().evaluate(replace(every_cell(), is_ghost=ghosts))


def test_the_numbers_of_the_model(file: Path) -> None:
    model, frames = dpserver.load(file, backend="deepmd"), every_cell()
    assert isinstance(model, DeepPotModel)
    assert (model.species, model.rcut, model.version) == (("O", "H"), 3.0, "3.2.0")
    assert (model.template, model.takes) == (None, Takes())
    assert np.isinf(model.min_distance).all()
    model.warm_up()
    result, expected = model.evaluate(frames), PairModel().evaluate(frames)
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_allclose(getattr(result, name), getattr(expected, name), rtol=1e-13, atol=1e-13)


def test_frames_with_the_same_atoms_go_in_one_call(file: Path) -> None:
    water, cluster = structures.cubic(), structures.cluster()
    turned = replace(water, types=water.types[::-1].copy())
    opened = replace(water, cell=np.zeros((1, 3, 3)), pbc=np.zeros((1, 3), dtype=bool))
    model = DeepPotModel(file)
    model.evaluate(Frames.concatenate([water, cluster, water, turned, water, opened]))
    assert fake_deepmd.DeepPot.calls == [3, 1, 1, 1]


def test_without_energies_of_atoms(file: Path) -> None:
    model = DeepPotModel(file)
    model.has_atom_energy = False
    result = model.evaluate(structures.cubic())
    assert np.isnan(result.atom_energy).all()
    np.testing.assert_allclose(result.energy, PairModel().evaluate(structures.cubic()).energy)


def test_parameters_reach_it(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = fake_deepmd.install(monkeypatch, n_fparam=2, n_aparam=1).given
    model, n_atoms = DeepPotModel(file), structures.cubic().n_atoms
    bare = Frames.concatenate([structures.cubic()] * 2)
    frames = replace(bare, fparam=np.arange(4.0).reshape(2, 2), aparam=np.arange(2.0 * n_atoms)[:, None])
    model.evaluate(frames)
    np.testing.assert_array_equal(given["fparam"], [[0, 1], [2, 3]])
    np.testing.assert_array_equal(given["aparam"], np.arange(2.0 * n_atoms).reshape(2, n_atoms))
    with pytest.raises(StructureError, match="the model takes 2 parameters fparam of each frame, and none are given"):
        model.evaluate(bare)
    with pytest.raises(StructureError, match="the model takes 1 parameters aparam of each atom: expected the shape"):
        model.evaluate(replace(frames, aparam=np.zeros((2 * n_atoms, 2))))


def test_parameters_it_knows_by_itself_can_be_left_out(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given = fake_deepmd.install(monkeypatch, n_fparam=2, has_default_fparam=True).given
    DeepPotModel(file).evaluate(structures.cubic())
    assert given["fparam"] is None


@pytest.mark.parametrize(
    ("frames", "expected"),
    [
        (structures.slab(), "the cell is open along some lattice vectors and periodic along others"),
        (replace(structures.cubic(), fparam=np.zeros((1, 1))), "takes no parameters fparam, but 1 are given"),
        (replace(structures.cubic(), types=np.full(24, 2)), "atom 0 has type 2"),
    ],
)
def test_what_it_has_no_answer_for(file: Path, frames: Frames, expected: str) -> None:
    with pytest.raises(StructureError, match=expected):
        DeepPotModel(file).evaluate(frames)


@pytest.mark.parametrize(
    ("traits", "expected"),
    [
        ({"model_type": fake_deepmd.DeepDipole}, "is a model of the kind DeepDipole, expected a potential energy"),
        ({"has_spin": True}, "is a spin model: it needs the spin of every atom"),
        ({"has_efield": True}, "needs an electric field"),
    ],
)
def test_models_of_more_than_positions(
    file: Path, monkeypatch: pytest.MonkeyPatch, traits: dict[str, object], expected: str
) -> None:
    fake_deepmd.install(monkeypatch, **traits)
    with pytest.raises(ModelFileError, match=expected):
        DeepPotModel(file)


def test_files_it_refuses(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match=r"none\.pb does not exist"):
        DeepPotModel(tmp_path / "none.pb")
    (tmp_path / "other.pb").write_text("no model")
    with pytest.raises(ModelFileError) as error:
        DeepPotModel(tmp_path / "other.pb")
    assert str(error.value).endswith("other.pb: RuntimeError: Unknown operator [31mdeepmd_op [0m")
    with pytest.raises(ModelFileError, match=r"answers no forces for a \.dp file; `dp convert-backend .*m\.pth` makes"):
        DeepPotModel(fake_deepmd.model_file(tmp_path, "m.dp"))


def test_it_is_not_installed(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepmd")
    monkeypatch.setattr(sys, "meta_path", [_Absent("deepmd"), *sys.meta_path])
    with pytest.raises(ConfigError, match=r"needs DeePMD-kit, which is not installed for .*: pip install deepmd-kit"):
        DeepPotModel(file)


def test_it_is_broken(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "deepmd.infer")
    monkeypatch.setattr(sys.modules["deepmd"], "__path__", [], raising=False)
    monkeypatch.setattr(sys, "meta_path", [_Absent("deepmd.infer", ImportError("built for\nanother torch"))])
    with pytest.raises(ConfigError, match="installed, but cannot be loaded: ImportError: built for another torch"):
        DeepPotModel(file)
    monkeypatch.setattr(sys, "meta_path", [_Absent("deepmd.infer", ModuleNotFoundError("no e3nn", name="e3nn"))])
    with pytest.raises(ConfigError, match="DeePMD-kit lacks the package e3nn: pip install e3nn"):
        DeepPotModel(file)


class _Absent:
    """Fails to import a module."""

    def __init__(self, name: str, error: Exception | None = None) -> None:
        self._name = name
        self._error = error or ModuleNotFoundError(f"No module named {name!r}", name=name)

    def find_spec(self, name: str, path: object, target: ModuleType | None = None) -> None:
        if name == self._name:
            raise self._error


def test_options(file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    threads = torch.get_num_threads()
    try:
        assert DeepPotModel(file, "cpu", threads=2).device == torch.device("cpu")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    names = ("DEVICE", "DP_INTRA_OP_PARALLELISM_THREADS", "DP_INTER_OP_PARALLELISM_THREADS")
    assert [os.environ[name] for name in names] == ["cpu", "2", "1"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.delenv("DEVICE")
    assert DeepPotModel(file).device == torch.device("cuda")
    assert "DEVICE" not in os.environ
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    for arguments, error, expected in (
        (("cuda:1",), DeviceError, "CUDA_VISIBLE_DEVICES in the environment says which"),
        (("cuda",), DeviceError, "torch sees no CUDA device"),
        (("cpu", 0), ConfigError, "threads must be at least 1, got 0"),
        (("cpu", 10**6), ConfigError, r"threads must be at most \d+, got 1000000"),
    ):
        with pytest.raises(error, match=expected):
            DeepPotModel(file, *arguments)


def test_backends_are_named(file: Path) -> None:
    with pytest.raises(ConfigError, match="backend 'jax' is unknown; expected one of native, deepmd"):
        dpserver.load(file, backend="jax")
    with pytest.raises(ConfigError, match="precision 'single' has no meaning with the backend deepmd"):
        dpserver.load(file, precision="single", backend="deepmd")
