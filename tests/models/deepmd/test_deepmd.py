"""Every kind of file of DeePMD-kit's: the same numbers, and a clear word on what cannot be read."""

from __future__ import annotations

import contextlib
import shutil
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py")
pytest.importorskip("yaml")
pytest.importorskip("google.protobuf")

from dpserver.errors import ModelFileError
from dpserver.frames import ForceResult, Frames
from dpserver.models import checkpoint, deepmd
from dpserver.models.potential import Potential
from tests.models.deepmd import stored

FILES = [stored.FOLDER / f"{name}{suffix}" for name in stored.NAMES for suffix in stored.SUFFIXES]


def assert_agrees(result: ForceResult, expected: dict[str, np.ndarray]) -> None:
    np.testing.assert_allclose(result.energy, expected["energy"], rtol=1e-13, atol=0)
    np.testing.assert_allclose(result.atom_energy, expected["atom_energy"], rtol=1e-13, atol=0)
    np.testing.assert_allclose(result.forces, expected["forces"], rtol=0, atol=1e-13)
    virial = (expected["virial"] + expected["virial"].transpose(0, 2, 1)) / 2
    np.testing.assert_allclose(result.virial, virial, rtol=0, atol=1e-13)
    assert np.abs(expected["forces"]).max() > 1e-3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_same_numbers_as_deepmd_kit(file: Path) -> None:
    frames, expected = stored.answers(file.stem)
    potential = deepmd.load(file)
    assert potential.precision == "double"
    assert potential.template is None
    np.testing.assert_allclose(potential.min_distance, 0.8, rtol=1e-7)
    assert_agrees(potential.evaluate(frames), expected)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_all_kinds_of_file_hold_the_same_parameters(file: Path) -> None:
    expected, found = deepmd.load(file.with_suffix(".dp")).state_dict(), deepmd.load(file).state_dict()
    assert found.keys() == expected.keys()
    for name, tensor in expected.items():
        np.testing.assert_array_equal(found[name], tensor, err_msg=name)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_they_are_told_apart_by_what_they_hold(file: Path, tmp_path: Path) -> None:
    kind = file.suffix[1:]
    assert deepmd.recognises(file) == kind
    nameless = tmp_path / "model"
    shutil.copy(file, nameless)
    assert deepmd.recognises(nameless) == (None if kind in ("yaml", "pb") else kind)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_checkpoint_reads_them_like_a_model_file(file: Path, tmp_path: Path) -> None:
    frames, expected = stored.answers(file.stem)
    assert_agrees(reference(file, frames), expected)
    values = checkpoint.read(file)
    assert values["training"]["from"] == file.name
    assert values["training"]["imported"].startswith("DeePMD-kit")
    checkpoint.write(tmp_path / "w.pt", values)
    assert deepmd.recognises(tmp_path / "w.pt") is None
    assert_agrees(reference(tmp_path / "w.pt", frames), expected)


def reference(file: Path, frames: Frames) -> ForceResult:
    """What a loaded model answers without tables."""
    model = checkpoint.load(file, device="cpu")
    assert isinstance(model, Potential)
    return model.reference(frames)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_no_part_of_a_file_is_taken_for_the_whole(file: Path, tmp_path: Path) -> None:
    """Cut short anywhere a file is refused; only the end of a YAML file can be left out without harm."""
    data, part = file.read_bytes(), tmp_path / file.name
    for size in {1, 3, 8, 60, *np.linspace(100, len(data) - 40, 12).astype(int).tolist()}:
        part.write_bytes(data[:size])
        with pytest.raises(ModelFileError, match=file.name):
            checkpoint.load(part, device="cpu")


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_changed_byte_is_refused_or_does_no_harm(file: Path, tmp_path: Path) -> None:
    data, rng, part = bytearray(file.read_bytes()), np.random.default_rng(3), tmp_path / file.name
    for place in rng.integers(0, len(data), size=25):
        changed = data.copy()
        changed[place] ^= 1 << int(rng.integers(8))
        part.write_bytes(changed)
        with contextlib.suppress(ModelFileError):
            potential = deepmd.load(part)
            assert all(np.isfinite(t.numpy()).all() for t in potential.state_dict().values())


MULTI = stored.FOLDER / "m.pt"


@pytest.mark.parametrize(("head", "name"), [("first", "a"), ("second", "r"), ("radial", "r")])
def test_one_of_several_models(head: str, name: str) -> None:
    found, expected = deepmd.load(MULTI, head), deepmd.load(stored.FOLDER / f"{name}.dp")
    assert (found.species, found.config) == (expected.species, expected.config)
    for key, tensor in expected.state_dict().items():
        np.testing.assert_array_equal(found.state_dict()[key], tensor, err_msg=key)
    assert checkpoint.read(MULTI, head)["training"]["from"] == f"m.pt, head {head}"


def test_which_of_several_models_has_to_be_said() -> None:
    several = "it holds several models: first, second, radial; "
    with pytest.raises(ModelFileError, match=f"{several}take one with `dpserver import .*m.pt w.pt --head NAME`"):
        checkpoint.load(MULTI)
    with pytest.raises(ModelFileError, match=f"{several}there is no 'third' among them"):
        deepmd.load(MULTI, "third")
    with pytest.raises(ModelFileError, match="it holds a single model, and none of the name 'first'; leave out --head"):
        deepmd.load(stored.FOLDER / "a.pt", "first")
    with pytest.raises(ModelFileError, match="is an HDF5 model, which holds a single model; leave out --head first"):
        checkpoint.read(stored.FOLDER / "a.dp", "first")


def test_a_model_of_our_own_has_no_heads(tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "w.pt", checkpoint.read(stored.FOLDER / "a.dp"))
    with pytest.raises(ModelFileError, match=r"w\.pt is no checkpoint of several models of DeePMD-kit's; leave out"):
        checkpoint.read(tmp_path / "w.pt", "first")


def test_what_is_no_model(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="does not exist"):
        deepmd.read(tmp_path / "none.dp")
    with pytest.raises(ModelFileError, match="is not a file"):
        deepmd.read(tmp_path)
    (tmp_path / "notes.txt").write_text("water")
    with pytest.raises(
        ModelFileError, match=r"is no model of DeePMD-kit; expected a \.dp, \.yaml, \.pth, \.pt or \.pb"
    ):
        deepmd.read(tmp_path / "notes.txt")


# --- larger models, whose reference data are not part of the repository ----------------------------------------------

MODELS = ("water_tf", "water_pt", "two_sided", "resnet_dt", "davg_zero", "ethanol", "se_e2_r", "dpa1")


@pytest.mark.parametrize("model", MODELS)
def test_same_numbers_for_the_reference_models(shared_dir: Path, model: str) -> None:
    """Plain, jittered, sheared, wrapped and doubled cells, a cell below the cutoff, clusters and single atoms."""
    folder = shared_dir / "reference" / model
    potential = deepmd.load(folder / "model.dp")
    names, frames, expected = stored.reference(folder / "frames.npz")
    result = potential.evaluate(frames)
    n_atoms = frames.counts
    per_atom = np.abs(result.energy - expected["e"]) / n_atoms
    assert np.all(per_atom <= 1e-12 + 1e-15 * np.abs(expected["e"]) / n_atoms), dict(zip(names, per_atom, strict=True))
    np.testing.assert_allclose(result.atom_energy, expected["ae"], rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(result.forces, expected["f"], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(result.virial, expected["v"], rtol=1e-10, atol=1e-10)
    # The bias is nearly all of the energy; what the networks add must agree to 1e-10 by itself.
    bias = potential.energy_bias.numpy()[frames.types]
    np.testing.assert_allclose(result.atom_energy - bias, expected["ae"] - bias, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("model", MODELS)
def test_as_served_they_are_that_near_as_well(shared_dir: Path, model: str) -> None:
    """By the kernels and their tables, where these know the model, to 1e-10 of the largest number."""
    folder = shared_dir / "reference" / model
    _, frames, expected = stored.reference(folder / "frames.npz")
    result = checkpoint.load(folder / "model.dp", threads=1).evaluate(frames)
    found = {"e": result.energy, "ae": result.atom_energy, "f": result.forces, "v": result.virial}
    for name, numbers in found.items():
        assert np.abs(numbers - expected[name]).max() <= 1e-10 * np.abs(expected[name]).max(), name


@pytest.mark.parametrize("model", ["water_tf", "ethanol"])
def test_frame_by_frame_as_well(shared_dir: Path, model: str) -> None:
    folder = shared_dir / "reference" / model
    potential = deepmd.load(folder / "model.dp")
    names, frames, expected = stored.reference(folder / "frames.npz")
    for k, name in enumerate(names):
        forces = potential.evaluate(frames[k]).forces
        here = expected["f"][frames.frame_idx == k]
        np.testing.assert_allclose(forces, here, rtol=1e-10, atol=1e-11, err_msg=str(name))
