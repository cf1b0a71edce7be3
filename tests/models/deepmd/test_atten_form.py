"""The descriptors of DPA-1 in DeePMD-kit's files: its own numbers, the way back, and what is refused."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")

from dpserver.errors import ConfigError, ModelFileError
from dpserver.models import deepmd
from dpserver.models.deepmd import graphdef, tensorflow
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.deepmd.importer import potential_of
from dpserver.models.potential import Potential
from tests import structures
from tests.models import test_se_atten
from tests.models.deepmd import stored
from tests.models.deepmd.test_deepmd import assert_agrees, reference


@pytest.mark.parametrize("name", stored.EMBEDDED)
def test_same_numbers_as_deepmd_kit(name: str) -> None:
    frames, expected = stored.answers(Path(name).stem)
    assert_agrees(reference(stored.FOLDER / name, frames), expected)


@pytest.mark.parametrize("name", stored.EMBEDDED)
def test_all_kinds_of_file_hold_the_same_parameters(name: str) -> None:
    file = stored.FOLDER / name
    expected, found = deepmd.load(file.with_suffix(".dp")).state_dict(), deepmd.load(file).state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)


@pytest.mark.parametrize("name", ["t.dp", "v.dp"])
def test_what_is_written_is_what_was_read(name: str) -> None:
    """Every entry of DeePMD-kit's own tree, numbers to the last bit."""
    read = deepmd.read(stored.FOLDER / name)["model"]
    written = tree_of(potential_of({"model": deepcopy(read)}))["model"]
    assert_same(written["descriptor"], read["descriptor"], "descriptor")
    assert_same(written["fitting"]["nets"], read["fitting"]["nets"], "nets")
    assert written["fitting"]["mixed_types"] is True


def assert_same(ours: Any, theirs: Any, where: str) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), where
        for key, value in theirs.items():
            assert_same(ours[key], value, f"{where}.{key}")
    elif isinstance(theirs, list):
        assert len(ours) == len(theirs), where
        for k, value in enumerate(theirs):
            assert_same(ours[k], value, f"{where}[{k}]")
    elif isinstance(theirs, np.ndarray):
        np.testing.assert_array_equal(ours, theirs, err_msg=where)
    else:
        assert ours == theirs, where


OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"attn_layer": 0},
    "stripped": {"tebd_input_mode": "strip", "use_tebd_bias": True, "type_one_side": True, "davg": (0.06, 0.05)},
    "version 2": {"type": "se_atten_v2", "use_econf_tebd": True, "trainable_ln": False, "ln_eps": 1e-3},
    "options": {
        "exclude_types": [[0, 1]],
        "attn_dotr": False,
        "temperature": 0.4,
        "normalize": False,
        "resnet_dt": True,
    },
    "harmonics": {"type": "se_atten_v2", "attn_layer": 1, "lmax": 3},
    "unseen": {"pairs": [[1, 1]], "sel": [30, 45], "concat_output_tebd": False, "env_protection": 0.1},
}


@pytest.mark.parametrize("name", OPTIONS)
def test_there_and_back(tmp_path: Path, name: str) -> None:
    potential = test_se_atten.make(**OPTIONS[name])
    deepmd.save(tmp_path / "m.dp", potential)
    again = deepmd.load(tmp_path / "m.dp")
    assert isinstance(again, Potential)
    frames = test_se_atten.every_cell()
    result, expected = again.evaluate(frames), potential.evaluate(frames)
    for key in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_array_equal(getattr(result, key), getattr(expected, key))
    assert again.config.descriptor.type == potential.config.descriptor.type


def test_files_from_before_the_bias_could_be_left_out() -> None:
    tree = tree_of(test_se_atten.make(use_tebd_bias=True, attn_layer=0))
    del tree["model"]["descriptor"]["use_tebd_bias"]
    assert potential_of(tree).config.descriptor.use_tebd_bias


def test_inputs_that_do_not_say_everything() -> None:
    """A frozen model whose input was never completed has the defaults of DeePMD-kit's classes."""
    given = {"type": "se_atten", "sel": 40, "rcut": 4.0, "rcut_smth": 0.75}
    form = deepmd.kinds.form_of(given)
    section = form.of_tensors(given, {}, "", 2)
    config = form.config(section, ["O", "H"])
    assert (config["neuron"], config["axis_neuron"], config["smooth_type_embedding"]) == ([25, 50, 100], 16, True)
    assert config["use_tebd_bias"] is False
    stripped = form.of_tensors({**given, "stripped_type_embedding": True}, {}, "", 2)
    assert form.config(stripped, ["O", "H"])["tebd_input_mode"] == "strip"


D = "model.descriptor"
LAYER = f"{D}.attention_layers.attention_layers.1"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        (f"{D}.lmax", 2, "its model.descriptor.@variables lacks the entry 'degree_gain_raw'"),
        (f"{D}.lmax", 5, "model.descriptor.lmax: input should be less than or equal to 4"),
        (f"{D}.attn_mask", True, "its model.descriptor has attn_mask = True"),
        (f"{D}.sel", [41], "its model.descriptor.@variables.davg has the shape [2, 40, 4], expected [2, 41, 4]"),
        (f"{D}.attn_layer", 1, "its model.descriptor.attention_layers holds 2 layers, expected 1"),
        (f"{D}.attn_layer", 10**9, "model.descriptor.attn_layer: input should be less than or equal to 100"),
        (f"{D}.attn", 10**10, "with it the model would take more than 2 GiB"),
        (f"{D}.tebd_dim", 10**9, "model.descriptor.tebd_dim has the shape"),
        (f"{D}.tebd_dim", 4, "its model.descriptor.embeddings.networks[0].layers[0].@variables.w has the shape"),
        (f"{D}.tebd_input_mode", "strip", "networks[0].layers[0].@variables.w has the shape [7, 3]"),
        (f"{D}.tebd_input_mode", "dot", "its configuration is not supported: model.descriptor.tebd_input_mode"),
        (f"{D}.smooth_type_embedding", False, "does not agree with smooth_type_embedding of the descriptor"),
        (f"{D}.temperature", -1.0, "model.descriptor.temperature: input should be greater than 0"),
        (f"{D}.use_econf_tebd", True, "model.descriptor.type_embedding.embedding.layers[0].@variables.w has the shape"),
        (f"{D}.use_tebd_bias", True, "its model.descriptor.type_embedding.embedding.layers[0].@variables.b is of type"),
        (f"{D}.type_embedding", None, "its model.descriptor.type_embedding is of type NoneType, expected dict"),
        (f"{D}.type_embedding.embedding.layers", [], "type_embedding.embedding has 0 layers, expected 1"),
        (f"{D}.type_embedding.embedding.layers.0.activation_function", "tanh", "has the activation function tanh"),
        (f"{D}.type_embedding.embedding.layers.0.@variables.b", np.ones(3), "has a bias, where its use_tebd_bias"),
        (f"{D}.attention_layers", [], "its model.descriptor.attention_layers is of type list, expected dict"),
        (LAYER, 3, "its model.descriptor.attention_layers.attention_layers[1] is of type int, expected a section"),
        (f"{LAYER}.attention_layer.num_heads", 2, "attention_layers[1] has several heads"),
        (f"{LAYER}.attention_layer.do_mask", True, "attention_layers[1] has a mask (attn_mask)"),
        (f"{LAYER}.attention_layer.in_proj.@variables.w", np.ones((6, 9)), "[1].in_proj.@variables.w has the shape"),
        (f"{LAYER}.attention_layer.out_proj.activation_function", "tanh", "has the activation function tanh, its"),
        (f"{LAYER}.attn_layer_norm.@variables.b", np.full(6, np.nan), "attn_layer_norm.@variables.b holds numbers"),
    ],
)
def test_what_is_refused_is_named(path: str, value: object, expected: str) -> None:
    tree: Any = deepcopy(deepmd.read(stored.FOLDER / "t.dp"))
    section: Any = tree
    *parents, key = path.split(".")
    for parent in parents:
        section = section[int(parent) if isinstance(section, list) else parent]
    section[int(key) if isinstance(section, list) else key] = value
    with pytest.raises(ModelFileError) as caught:
        potential_of(tree)
    assert expected in str(caught.value)


def test_a_net_for_each_type_is_refused() -> None:
    """The one net that serves all types cannot stand in for several."""
    tree = deepcopy(deepmd.read(stored.FOLDER / "t.dp"))
    nets = tree["model"]["fitting"]["nets"]
    nets["ndim"], nets["networks"] = 1, nets["networks"] * 2
    with pytest.raises(ModelFileError, match="holds 2 networks, expected 1"):
        potential_of(tree)


# --- graphs of the TensorFlow backend --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def graph() -> dict[str, Any]:
    pytest.importorskip("google.protobuf")
    return dict(graphdef.read_constants(stored.FOLDER / "e.pb"))


def from_graph(monkeypatch: pytest.MonkeyPatch, constants: dict[str, Any]) -> Potential:
    monkeypatch.setattr(tensorflow, "read_constants", lambda _: constants)
    return potential_of(tensorflow.read_graph(Path("e.pb")))


def test_a_graph_gives_the_same_numbers(graph: dict[str, Any]) -> None:
    frames, expected = stored.answers("e")
    potential = deepmd.load(stored.FOLDER / "e.pb")
    assert isinstance(potential, Potential)
    result = potential.reference(frames)
    virial = (expected["virial"] + expected["virial"].transpose(0, 2, 1)) / 2
    np.testing.assert_allclose(result.energy, expected["energy"], rtol=1e-12)
    np.testing.assert_allclose(result.atom_energy, expected["atom_energy"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(result.forces, expected["forces"], rtol=0, atol=1e-11)
    np.testing.assert_allclose(result.virial, virial, rtol=0, atol=1e-11)
    assert np.abs(expected["forces"]).max() > 1e-3


def test_directions_of_graphs_are_not_exported(graph: dict[str, Any]) -> None:
    potential = deepmd.load(stored.FOLDER / "e.pb")
    assert isinstance(potential, Potential)
    with pytest.raises(ConfigError, match="attention between directions as the TensorFlow backend has them cannot be"):
        tree_of(potential)


def changed_script(graph: dict[str, Any], **descriptor: Any) -> dict[str, Any]:
    script = json.loads(graph["train_attr/training_script"])
    script["model"]["descriptor"].update(descriptor)
    return {**graph, "train_attr/training_script": json.dumps(script).encode()}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"smooth_type_embedding": True}, r"smooths type embedding \(smooth_type_embedding\) in a way of its own"),
        ({"type": "se_atten_v2"}, r"in a way of its own, which is not supported; `dpserver --backend deepmd`"),
        ({"attn_mask": True}, "its model.descriptor has attn_mask = True"),
        ({"attn_layer": 3}, "its graph lacks attention_layer_2/layer_normalization/gamma"),
        ({"attn": 5}, r"in_proj\.@variables\.w has the shape \[6, 12\], expected \[6, 15\]"),
    ],
)
def test_what_a_graph_does_in_its_own_way_is_refused(
    monkeypatch: pytest.MonkeyPatch, graph: dict[str, Any], options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ModelFileError, match=message):
        from_graph(monkeypatch, changed_script(graph, **options))


@pytest.mark.parametrize(
    ("names", "value", "message"),
    [
        ("descrpt_attr/t_avg", np.ones((2, 160)), "trained with set_davg_zero false, and the TensorFlow backend"),
        ("type_embed_net/", None, "its graph has no type_embed_net"),
        ("filter_type_all/", None, "it is a compressed model"),
        ("attention_layer_0/c_key/bias", np.ones((2, 2)), "the parts of attention_layer_0 in its graph do not fit"),
        ("type_embed_net/matrix_2", np.ones((4, 6)), r"type_embed_net\[2\].w has the shape \[4, 6\], expected"),
        ("type_embed_net/matrix_2", np.array(1.0), r"type_embed_net\[2\].w has the shape \[\], expected"),
        ("layer_9/matrix", np.ones((2, 2)), "has the constant layer_9/matrix, which its training_script has no place"),
    ],
)
def test_a_graph_that_does_not_fit_its_input_is_refused(
    monkeypatch: pytest.MonkeyPatch, graph: dict[str, Any], names: str, value: Any, message: str
) -> None:
    constants = {name: given for name, given in graph.items() if not name.startswith(names)}
    with pytest.raises(ModelFileError, match=message):
        from_graph(monkeypatch, constants if value is None else {**constants, names: value})


def test_a_part_of_a_hybrid_in_a_graph_is_refused() -> None:
    form = deepmd.kinds.form_of({"type": "se_atten"})
    with pytest.raises(ModelFileError, match=r"se_atten as a part of a hybrid is not read from a \.pb file; `dpserver"):
        form.of_constants({}, {}, 2)


def test_the_reference_model(shared_dir: Path) -> None:
    _, frames, expected = stored.reference(shared_dir / "reference" / "dpa1" / "frames.npz")
    model = deepmd.load(shared_dir / "reference" / "dpa1" / "model.dp")
    assert isinstance(model, Potential)
    result = model.reference(frames)
    np.testing.assert_allclose(result.energy, expected["e"], rtol=1e-14)
    for found, key in ((result.atom_energy, "ae"), (result.forces, "f"), (result.virial, "v")):
        np.testing.assert_allclose(found, expected[key], rtol=0, atol=1e-10 * np.abs(expected[key]).max())
    assert model.species == structures.SPECIES
