"""From DeePMD-kit's tree to a potential: what is refused, and what becomes of the options that have no counterpart."""

from __future__ import annotations

import contextlib
from copy import deepcopy
from functools import cache
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")

from dpserver.errors import ModelFileError
from dpserver.frames import Frames
from dpserver.models import deepmd
from dpserver.models.config import ModelConfig, parse
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.deepmd.importer import potential_of
from dpserver.models.potential import Potential
from tests import structures
from tests.models.deepmd import stored


@cache
def _stored(name: str) -> dict[str, Any]:
    return deepmd.read(stored.FOLDER / f"{name}.dp")


def tree(name: str = "a") -> dict[str, Any]:
    return deepcopy(_stored(name))


def changed(path: str, value: Any, name: str = "a") -> dict[str, Any]:
    found = tree(name)
    section: Any = found
    *parents, key = path.split(".")
    for parent in parents:
        section = section[int(parent) if isinstance(section, list) else parent]
    section[int(key) if isinstance(section, list) else key] = value
    return found


W = "model.descriptor.embeddings.networks.1.layers.0.@variables.w"


@pytest.mark.parametrize(
    ("path", "value", "expected"),
    [
        ("model", None, "tree.model is of type NoneType, expected dict"),
        ("model.type", "spin_ener", "it is a spin model, which is not supported; dpserver reads energy models"),
        ("model.type", "zbl", "its model lacks the entry 'models'"),
        ("model.type", "linear_ener", "its model lacks the entry 'models'"),
        ("model.type", "pairtab", "its model lacks the entry 'tab'"),
        ("model.type", "frozen", "it is a frozen model"),
        ("model.descriptor.type", "dpa2", "its descriptor is DPA-2, not supported; dpserver reads energy models"),
        ("model.descriptor.type", "dpa3", "installed, `dpserver --backend deepmd` serves this one through it"),
        ("model.descriptor.type", "hybrid", "its model.descriptor lacks the entry 'list'"),
        ("model.descriptor.type", 3, "model.descriptor.type is of type int, expected str"),
        ("model.fitting.type", "dos", "its fitting is 'dos', which is not supported; supported are ener, dip"),
        ("model.modifier", {"type": "dipole_charge"}, "a model with a modifier (dplr"),
        ("model.spin", {"use_spin": [True]}, "it is a spin model"),
        ("model.descriptor.spin", [1.0], "its model.descriptor has spin = [1.0], which is not supported"),
        ("model.fitting.numb_fparam", 2, "its model.fitting.nets.networks[0].layers[0].@variables.w has the shape"),
        ("model.fitting.use_aparam_as_mask", True, "its model.fitting has use_aparam_as_mask = True"),
        ("model.fitting.layer_name", ["a"], "its model.fitting has layer_name = ['a']"),
        ("model.fitting.atom_ener", ["a"], "its model.fitting.atom_ener is ['a'], expected energies"),
        ("model.fitting.dim_case_embd", 2, "its model.fitting.@variables.case_embd is of type NoneType"),
        ("model.descriptor.env_mat.use_exp_switch", True, "use_exp_switch"),
        ("model.descriptor.something_new", 1.5, "its model.descriptor has something_new = 1.5"),
        ("model.type_map", [], "model.type_map is no list of 1 to 500 names"),
        ("model.type_map", ["O", 1], "model.type_map is no list of 1 to 500 names"),
        ("model.type_map", [str(k) for k in range(10_000)], "model.type_map is no list of 1 to 500 names"),
        ("model.type_map", ["O", "H", "C"], "descriptor.sel: needs one number per type"),
        ("model.descriptor.rcut", -1.0, "model.descriptor.rcut: input should be greater than 0"),
        ("model.descriptor.neuron", [10**9, 10**9], "with it the model would take more than 2 GiB"),
        ("model.descriptor.neuron", [3, 7], "its model.descriptor.embeddings.networks[0].layers[1]"),
        ("model.descriptor.sel", "auto", "descriptor.sel is 'auto'; a model needs numbers"),
        ("model.descriptor.precision", "bfloat16", "model.descriptor.precision is 'bfloat16', expected float64 or"),
        ("model.fitting.precision", "float16", "model.fitting.precision is 'float16'"),
        ("model.descriptor.embeddings.networks", [], "holds 0 networks, expected 4"),
        ("model.descriptor.embeddings.networks.2", None, "networks[2] has 0 layers, expected 2"),
        ("model.descriptor.embeddings.networks.2.layers", [], "networks[2] has 0 layers, expected 2"),
        (W, None, "networks[1].layers[0].@variables.w is of type NoneType, expected ndarray"),
        (W, np.zeros((2, 3)), "@variables.w has the shape [2, 3], expected [1, 3]"),
        (W, np.array([["a", "b", "c"]]), "@variables.w holds no real numbers"),
        (W, np.array([[1.0, np.nan, 3.0]]), "@variables.w holds numbers that are not finite"),
        ("model.descriptor.@variables.dstd", np.zeros((2, 40, 4)), "dstd holds numbers that are not above 0"),
        (
            "model.descriptor.@variables.davg",
            np.zeros((2, 39, 4)),
            "davg has the shape [2, 39, 4], expected [2, 40, 4]",
        ),
        (
            "model.descriptor.@variables.davg",
            np.arange(320.0).reshape(2, 40, 4),
            "davg differs between the neighbours of a type",
        ),
        ("model.descriptor.embeddings.networks.0.layers.1.resnet", False, "lacks the skip connection from 3 to 6"),
        ("model.descriptor.resnet_dt", False, "has time steps (idt), where its resnet_dt says otherwise"),
        ("model.fitting.nets.networks.0.layers.2.resnet", True, None),
        ("model.fitting.nets.networks.0.layers.2.activation_function", "Linear", None),
        (
            "model.fitting.nets.networks.1.layers.0.activation_function",
            "relu",
            "networks[1].layers[0] has the activation function relu, its network tanh",
        ),
        ("model.compress", {"type": "se_e2_a"}, "with tables in place of its embedding nets; import the uncompressed"),
        ("model.fitting.@variables.bias_atom_e", np.zeros(3), "bias_atom_e has the shape [3], expected [2]"),
        ("model.@variables.out_bias", "x", "out_bias is of type str"),
        ("model.atom_exclude_types", [2], "model.atom_exclude_types is [2], expected types from 0 to 1"),
        ("model.pair_exclude_types", [[0, 5]], "pair_exclude_types: types go from 0 to 1"),
        ("model.descriptor.exclude_types", [0], "exclude_types holds 0, expected two types"),
        ("model.descriptor.exclude_types", [[0, 5]], "nets in part, or do not exist"),
    ],
)
def test_refused_by_its_place(path: str, value: Any, expected: str | None) -> None:
    if expected is None:
        potential_of(changed(path, value))
        return
    with pytest.raises(ModelFileError) as error:
        potential_of(changed(path, value))
    assert expected in str(error.value)


def places(node: Any, path: str = "") -> list[str]:
    """The path of every value of a tree."""
    below = node.items() if isinstance(node, dict) else enumerate(node) if isinstance(node, list) else ()
    return [path[1:]] * bool(path) + [place for key, value in below for place in places(value, f"{path}.{key}")]


NONSENSE = (
    None,
    True,
    -1,
    3,
    1e300,
    float("nan"),
    "x",
    [],
    {},
    [[]],
    [None],
    {"@variables": 1},
    np.zeros(0),
    np.eye(2),
)


def test_any_nonsense_anywhere_is_refused_or_does_no_harm() -> None:
    paths, rng = places(tree()), np.random.default_rng(8)
    for path in paths:
        value = NONSENSE[rng.integers(len(NONSENSE))]
        with contextlib.suppress(ModelFileError):
            potential = potential_of(changed(path, deepcopy(value)))
            assert all(np.isfinite(t.numpy()).all() for t in potential.state_dict().values()), (path, value)


# --- options without a counterpart -----------------------------------------------------------------------------------


def energies(potential: Potential) -> np.ndarray:
    return potential.evaluate(structures.molecule()).atom_energy


def test_the_two_biases_are_one() -> None:
    before = potential_of(tree()).energy_bias
    bias = np.array([[0.5], [-1.5]])
    after = potential_of(changed("model.fitting.@variables.bias_atom_e", bias)).energy_bias
    np.testing.assert_allclose(after - before, bias[:, 0], rtol=1e-12)
    missing = changed("model.@variables", None)
    np.testing.assert_array_equal(potential_of(missing).energy_bias, 0)


def test_the_spread_of_training_has_no_effect() -> None:
    after = changed("model.@variables.out_std", np.full((1, 2, 1), 0.53))
    np.testing.assert_array_equal(energies(potential_of(after)), energies(potential_of(tree())))


def test_excluded_atoms_have_no_energy() -> None:
    before = energies(potential_of(tree()))
    after = energies(potential_of(changed("model.atom_exclude_types", [1])))
    np.testing.assert_array_equal(after, np.where(structures.molecule().types == 1, 0, before))


def test_the_energy_of_the_vacuum_is_taken_off() -> None:
    """With atom_ener the net of a type answers 0 to a descriptor of zeros."""
    potential = potential_of(tree())
    zero = [net(net[0].weight.new_zeros(1, potential.descriptor.n_features)).item() for net in potential.fitting]
    frame, before = structures.molecule(), energies(potential)
    for given, taken in (([1.0, None], [0]), ([None, 0.0], [1]), ([1.0], [0, 1])):
        off = np.array([zero[t] if t in taken else 0.0 for t in frame.types])
        after = energies(potential_of(changed("model.fitting.atom_ener", given)))
        np.testing.assert_allclose(after, before - off, rtol=1e-12)


def test_float32_weights_are_evaluated_in_double() -> None:
    found = changed("model.descriptor.precision", "float32")
    potential = potential_of(found)
    assert potential.precision == "double"
    np.testing.assert_array_equal(energies(potential), energies(potential_of(tree())))


def test_one_fitting_net_for_all_types() -> None:
    found = tree()
    nets = found["model"]["fitting"]["nets"]
    nets.update(ndim=0, networks=nets["networks"][:1])
    potential = potential_of(found)
    for name, weight in potential.fitting[0].named_parameters():
        np.testing.assert_array_equal(dict(potential.fitting[1].named_parameters())[name].detach(), weight.detach())


def test_layers_without_bias() -> None:
    found = changed("model.fitting.nets.networks.0.layers.0.@variables.b", None)
    assert potential_of(found).fitting[0][0].bias.abs().max() == 0


@pytest.mark.parametrize("distance", [None, -1.0, float("nan"), float("inf"), "x", np.zeros(2), np.array(-1.0)])
def test_an_unknown_smallest_distance(distance: Any) -> None:
    assert np.isinf(potential_of(changed("@variables.min_nbor_dist", distance)).min_distance).all()


def excluding(keeps: bool) -> Potential:
    descriptor = {
        "type": "se_e2_a",
        "sel": [20, 40],
        "rcut": 4.0,
        "neuron": [4, 8],
        "exclude_types": [[0, 1]],
        "keeps_excluded_slots": keeps,
    }
    config = {"type_map": ["O", "H"], "descriptor": descriptor, "fitting_net": {"neuron": [5]}}
    potential = Potential(parse(ModelConfig, config))
    potential.descriptor.davg[:, 0] = 0.05
    return potential


@pytest.mark.parametrize("keeps", [True, False])
def test_excluded_pairs_keep_their_slots_where_they_have_nets(keeps: bool) -> None:
    potential = excluding(keeps)
    found = tree_of(potential)
    networks = found["model"]["descriptor"]["embeddings"]["networks"]
    assert [bool(net["layers"]) for net in networks] == [True, keeps, keeps, True]
    again = potential_of(found)
    assert again.descriptor.config.keeps_excluded_slots is keeps
    np.testing.assert_array_equal(energies(again), energies(potential))
    if not keeps:
        networks[1] = networks[2] = None
        np.testing.assert_array_equal(energies(potential_of(found)), energies(potential))


def test_a_species_that_never_is_a_neighbour() -> None:
    """Backends leave out the nets of a species whose `sel` is 0."""
    config = {"type_map": ["O", "H", "C"], "descriptor": {"type": "se_e2_a", "sel": [20, 40, 0], "rcut": 4.0}}
    potential = Potential(parse(ModelConfig, config))
    found = tree_of(potential)
    found["model"]["descriptor"]["embeddings"]["networks"][6:] = [None] * 3
    again = potential_of(found)
    frame = Frames.single(np.eye(3), [0, 1, 1])
    np.testing.assert_array_equal(again.evaluate(frame).atom_energy, potential.evaluate(frame).atom_energy)
