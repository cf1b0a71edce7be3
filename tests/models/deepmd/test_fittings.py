"""Fitting nets of DeePMD-kit's files: parameters, vacuum, dipoles and polarizabilities with its own numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")
pytest.importorskip("yaml")
pytest.importorskip("google.protobuf")

from dpserver.errors import ModelFileError
from dpserver.frames import Floats, Frames
from dpserver.models import checkpoint, deepmd
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.deepmd.importer import model_of, potential_of
from dpserver.models.deepmd.tree import Tree
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel

FOLDER = Path(__file__).parents[2] / "data" / "fittings"
TORCH = (".dp", ".pt", ".pth")
FILES = [
    *(FOLDER / f"{name}{suffix}" for name in "ecdspm" for suffix in TORCH),
    *(FOLDER / f"{name}.pb" for name in "edq"),
]
TREES = [FOLDER / f"{name}.dp" for name in "ecdspm"]


def answers(name: str) -> tuple[Frames, dict[str, Floats]]:
    """Structures, and what DeePMD-kit says of them."""
    with np.load(FOLDER / f"{name}.npz") as z:
        values = {key: z[key] for key in z.files}
    cell = values.pop("cell")
    frames = Frames(
        values.pop("positions"),
        values.pop("types").astype(np.int64),
        cell,
        np.repeat(cell.any(axis=(1, 2))[:, None], 3, axis=1),
        values.pop("frame_idx").astype(np.int64),
        fparam=values.pop("fparam", None),
        aparam=values.pop("aparam", None),
    )
    return frames, values


def assert_agrees(model: Potential | TensorModel, name: str) -> None:
    frames, expected = answers(name)
    result: Any = model.reference(frames) if isinstance(model, Potential) else model.evaluate(frames)
    if "virial" in expected:
        expected["virial"] = (expected["virial"] + expected["virial"].transpose(0, 2, 1)) / 2
    for key, values in expected.items():
        np.testing.assert_allclose(getattr(result, key), values, rtol=1e-12, atol=1e-13, err_msg=key)
        assert np.abs(values).max() > 1e-3


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_same_numbers_as_deepmd_kit(file: Path) -> None:
    model, origin = deepmd.load_with_origin(file)
    assert origin.startswith("DeePMD-kit")
    assert_agrees(model, file.stem)


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.name)
def test_a_model_file_keeps_them(file: Path, tmp_path: Path) -> None:
    checkpoint.write(tmp_path / "w.pt", checkpoint.read(file))
    model = checkpoint.restore_model(checkpoint.read(tmp_path / "w.pt"))
    assert_agrees(model, file.stem)
    if isinstance(model, TensorModel):
        assert_agrees(checkpoint.load_tensor(tmp_path / "w.pt", device="cpu"), file.stem)
        with pytest.raises(ModelFileError, match=f"--model energies.pt --{model.kind} {tmp_path}/w.pt"):
            checkpoint.load(tmp_path / "w.pt")
    else:
        with pytest.raises(ModelFileError, match="is a model of energies, expected a model of dipoles or polar"):
            checkpoint.load_tensor(tmp_path / "w.pt")


@pytest.mark.parametrize("file", TREES, ids=lambda file: file.name)
def test_exported_and_read_again(file: Path, tmp_path: Path) -> None:
    model = deepmd.load_with_origin(file)[0]
    deepmd.save(tmp_path / "m.dp", model)
    again = deepmd.load_with_origin(tmp_path / "m.dp")[0]
    assert_agrees(again, file.stem)
    state = again.state_dict()
    for name, tensor in model.state_dict().items():
        np.testing.assert_allclose(state[name], tensor, rtol=1e-15, err_msg=name)


@pytest.mark.parametrize("file", TREES, ids=lambda file: file.name)
def test_the_tree_has_every_entry_of_deepmd_kits(file: Path) -> None:
    given = deepmd.read(file)["model"]
    written = tree_of(model_of(deepmd.read(file)))["model"]
    expected = set(given["fitting"])
    assert set(written["fitting"]) == expected
    assert set(written["fitting"]["@variables"]) == set(given["fitting"]["@variables"])
    for key in ("atom_exclude_types", "pair_exclude_types"):
        assert written[key] == given[key]
    assert written["@variables"]["out_bias"].shape == given["@variables"]["out_bias"].shape
    same = ["type", "neuron", "numb_fparam", "numb_aparam", "exclude_types", "@version", "dim_descrpt", "mixed_types"]
    for key in [*same, *expected.intersection({"fit_diag", "shift_diag", "embedding_width"})]:
        assert written["fitting"][key] == given["fitting"][key], key


def changed(name: str, path: str, value: object) -> Tree:
    """The tree of a file with another entry in the place of one."""
    tree = deepmd.read(FOLDER / f"{name}.dp")
    node: Any = tree["model"]
    *places, last = path.split(".")
    for place in places:
        node = node[int(place)] if isinstance(node, list) else node[place]
    node[last] = value
    return tree


@pytest.mark.parametrize(
    ("name", "path", "value", "message"),
    [
        ("e", "fitting.@variables.fparam_avg", np.zeros(3), "fparam_avg has the shape [3], expected [2]"),
        ("e", "fitting.@variables.aparam_inv_std", None, "aparam_inv_std is of type NoneType"),
        ("e", "fitting.default_fparam", [1.0], "default_fparam: needs numb_fparam = 2 numbers, got 1"),
        ("e", "fitting.numb_fparam", 10**9, "with it the model would take more than 2 GiB"),
        ("e", "fitting.numb_fparam", -1, "numb_fparam: input should be greater than or equal to 0"),
        ("d", "fitting.@variables.bias_atom_e", np.zeros((2, 3)), "bias_atom_e has the shape [2, 3], expected [2, 4]"),
        ("d", "atom_exclude_types", [0, 1], "sel_type: must name some types from 0 to 1, each once, got []"),
        (
            "d",
            "fitting.nets.networks.0.layers.2.@variables.w",
            np.zeros((5, 3)),
            "w has the shape [5, 3], expected [5,",
        ),
        ("p", "fitting.@variables.scale", np.ones(3), "scale has the shape [3], expected [2]"),
        ("p", "fitting.@variables.constant_matrix", "x", "constant_matrix is of type str"),
        ("p", "@variables.out_bias", np.zeros((1, 2, 1)), "out_bias has the shape [1, 2, 1], expected [2, 9]"),
        ("p", "fitting.fit_diag", "yes", "fit_diag is of type str, expected bool"),
        ("c", "fitting.dim_case_embd", 3, "case_embd has the shape [2], expected [3]"),
    ],
)
def test_refused_by_its_place(name: str, path: str, value: object, message: str) -> None:
    with pytest.raises(ModelFileError) as error:
        model_of(changed(name, path, value))
    assert message in str(error.value)


def test_a_case_embedding_around_which_there_is_a_skip_is_refused() -> None:
    tree = deepmd.read(FOLDER / "e.dp")  # 8 features, and 8 hidden neurons once 3 of its 11 inputs are such
    fitting = tree["model"]["fitting"]
    fitting.update(neuron=[8], dim_case_embd=3, numb_fparam=0, numb_aparam=0)
    fitting["@variables"]["case_embd"] = np.zeros(3)
    for net in fitting["nets"]["networks"]:
        net["layers"] = net["layers"][:2]
        net["layers"][0]["@variables"] = {"w": np.zeros((11, 8)), "b": np.zeros(8), "idt": None}
        net["layers"][1]["@variables"] = {"w": np.zeros((8, 1)), "b": np.zeros(1), "idt": None}
    with pytest.raises(ModelFileError, match="has a skip connection around a case embedding, which is not supported"):
        model_of(tree)


def test_polarizabilities_of_a_graph_that_was_converted_are_refused(tmp_path: Path) -> None:
    graph = (FOLDER / "q.pb").read_bytes()
    (tmp_path / "q.pb").write_bytes(graph.replace(b'"training"', b'"trainin_"'))
    with pytest.raises(ModelFileError, match="was converted from another backend, and its graph lacks the scale"):
        deepmd.load_with_origin(tmp_path / "q.pb")


def test_energies_are_asked_for() -> None:
    with pytest.raises(ModelFileError, match="it is a model of the kind dipole, expected one of energies"):
        potential_of(deepmd.read(FOLDER / "d.dp"))
    with pytest.raises(ModelFileError, match=r"d\.dp is a model of the kind dipole, expected one of energies"):
        deepmd.load(FOLDER / "d.dp")
