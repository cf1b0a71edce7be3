"""The descriptor of DPA-1: the contract in several configurations, and every option slot by slot."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import pytest
import torch
from numpy.polynomial import legendre

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats, Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.se_atten import SeAtten
from tests import structures
from tests.contract import ROUNDED, TABULATED, PotentialContract, assert_close, scaled
from tests.models.test_se_e2_a import RCUT, every_cell, pair

SLOTS = 75


def make(davg: tuple[float, float] = (0.0, 0.0), pairs: list[list[int]] | None = None, **descriptor: Any) -> Potential:
    """A small model of water with random weights."""
    shape = {
        "type": "se_atten",
        "sel": SLOTS,
        "rcut": RCUT,
        "neuron": [4, 8],
        "axis_neuron": 3,
        "tebd_dim": 3,
        "attn": 5,
    }
    model = {
        "type_map": list(structures.SPECIES),
        "descriptor": {**shape, **descriptor},
        "fitting_net": {"neuron": [10, 10], "resnet_dt": False},
        "pair_exclude_types": pairs or [],
    }
    potential = Potential(parse(ModelConfig, model), seed=21)
    potential.descriptor.davg[:, 0] = torch.tensor(davg)
    potential.descriptor.dstd.copy_(torch.tensor([[0.15, 0.09, 0.09, 0.09], [0.12, 0.08, 0.08, 0.08]]))
    for name, weights in potential.named_parameters():
        if name.endswith("timestep"):
            torch.nn.init.uniform_(weights, 0.5, 1.0, generator=torch.Generator().manual_seed(22))
        if name.endswith("gain"):
            weights.data += 0.7
        if name.endswith(("scale", "shift")):
            weights.data += torch.linspace(-0.5, 0.4, len(weights), dtype=weights.dtype)
    return scaled(potential, every_cell())


class SeAttenContract(PotentialContract):
    options: ClassVar[dict[str, Any]] = {}

    def potential(self) -> Potential:
        return make(**self.options)

    def frames(self) -> Frames:
        return every_cell()


class TestConcatenated(SeAttenContract):
    options: ClassVar = {"attn_layer": 0}


class TestStripped(SeAttenContract):
    options: ClassVar = {"attn_layer": 0, "tebd_input_mode": "strip", "use_tebd_bias": True, "resnet_dt": True}


class TestStrippedAndSmooth(SeAttenContract):
    options: ClassVar = {"type": "se_atten_v2", "attn_layer": 0, "davg": (0.06, 0.05), "type_one_side": True}


class TestAttention(SeAttenContract):
    options: ClassVar = {"smooth_type_embedding": True}


class TestAttentionWithoutAngles(SeAttenContract):
    options: ClassVar = {
        "type": "se_atten_v2",
        "attn_dotr": False,
        "temperature": 0.7,
        "davg": (0.06, 0.05),
        "use_econf_tebd": True,
        "concat_output_tebd": False,
        "env_protection": 0.1,
    }


class TestHarmonics(SeAttenContract):
    options: ClassVar = {"lmax": 3, "attn_layer": 0, "env_protection": 0.1}


# --- against DeePMD-kit's own way: every slot of `sel` filled -------------------------------------------------------


def net(layers: torch.nn.Module, x: Floats) -> Floats:
    """An embedding net of tanh."""
    for layer in layers:
        w, b = (t.detach().numpy() for t in (layer.weight, layer.bias))
        y = np.tanh(x @ w + b)
        y = y if layer.timestep is None else y * layer.timestep.detach().numpy()
        x = y + (x if y.shape[1] == x.shape[1] else np.tile(x, 2) if y.shape[1] == 2 * x.shape[1] else 0)
    return x


def unit(x: Floats) -> Floats:
    return x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12)


def attended(d: SeAtten, g: Floats, is_real: np.ndarray, w: Floats, directions: Floats) -> Floats:
    config = d.config
    for layer in d.attention:
        parameters = [p.detach().numpy() for part in (layer.inner, layer.outer) for p in (part.weight, part.bias)]
        w_in, b_in, w_out, b_out = parameters
        q, k, v = np.split(g @ w_in + b_in, 3, axis=1)
        if config.normalize:
            q, k, v = unit(q), unit(k), unit(v)
        logits = (
            q @ k.T * ((config.attn * config.scaling_factor) ** -0.5 if not config.temperature else config.temperature)
        )
        if config.is_smooth:
            logits = (logits + 20) * np.outer(w, w) - 20
        else:
            logits[:, ~is_real] = -1e300
        a = np.exp(logits - logits.max(axis=1, keepdims=True))
        a /= a.sum(axis=1, keepdims=True)
        a[~is_real] = 0
        if config.is_smooth:
            a *= np.outer(w, w)
        if config.attn_dotr:
            a *= directions @ directions.T
        g = g + (a @ v) @ w_out + b_out
        g = (g - g.mean(axis=1, keepdims=True)) / np.sqrt(g.var(axis=1, keepdims=True) + (config.ln_eps or 1e-5))
        g = g * layer.scale.detach().numpy() + layer.shift.detach().numpy()
    return g


def slot_by_slot(d: SeAtten, vectors: Floats, kinds: np.ndarray, centre: int, first: int) -> tuple[Floats, Floats]:
    """D and directions of one atom.

    Args:
        d: the descriptor, its activation tanh.
        vectors: to the neighbours, (n, 3).
        kinds: their types.
        centre: type of the atom.
        first: type of the first atom of the structure.
    """
    config = d.config
    r = np.linalg.norm(vectors, axis=1)
    u = np.clip((r - config.rcut_smth) / (config.rcut - config.rcut_smth), 0, 1)
    w = np.zeros(SLOTS)
    w[: len(r)] = u**3 * (-6 * u**2 + 15 * u - 10) + 1
    q = 1 / (r + config.env_protection)
    rows = np.zeros((SLOTS, 4))
    rows[: len(r)] = w[: len(r), None] * np.column_stack([q, vectors * q[:, None] ** 2])
    types = np.full(SLOTS, first)
    types[: len(r)] = kinds
    is_real = np.arange(SLOTS) < len(r)
    is_unseen = is_real & np.array([(centre, k) in d.unseen for k in types])
    rows[is_unseen], w[is_unseen], is_real[is_unseen], types[is_unseen] = 0, 0, False, first
    rows = (rows - d.davg[centre].numpy()) / d.dstd[centre].numpy()
    is_excluded = is_real & np.array([(centre, k) in d.excluded for k in types])
    rows[is_excluded], w[is_excluded], is_real[is_excluded] = 0, 0, False
    table = d.types().detach().numpy()
    told = table[types] if config.type_one_side else np.column_stack([table[types], np.tile(table[centre], (SLOTS, 1))])
    if config.is_stripped:
        factor = net(d.embedding[1], told) * (w[:, None] if config.is_smooth else 1)
        g = net(d.embedding[0], rows[:, :1])
        g = g * factor + g
    else:
        g = net(d.embedding[0], np.column_stack([rows[:, :1], told]))
    g = attended(d, g, is_real, w, unit(rows[:, 1:]))
    moment = rows.T @ g / SLOTS
    features = moment.T @ moment[:, : config.axis_neuron]
    if config.lmax > 1:
        seen = is_real[: len(r)]
        here, directions = g[: len(r)][seen], (vectors * q[:, None])[seen]
        here = here * (w[: len(r)] * q)[seen, None] / float(d.dstd[centre, 0]) / SLOTS
        lengths = np.linalg.norm(directions, axis=1)
        cosines = (directions @ directions.T) / np.outer(lengths, lengths)
        for degree, gain in enumerate(d.gain.tolist(), 2):
            alike = np.outer(lengths, lengths) ** degree * legendre.legval(cosines, [0] * degree + [1])
            features = features + gain**2 * here.T @ alike @ here[:, : config.axis_neuron]
    features = features.ravel()
    return np.append(features, table[centre] if config.concat_output_tebd else []), moment[1:].T


MEANS = (0.06, 0.05)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {"attn_layer": 0},
    "one side": {"attn_layer": 0, "type_one_side": True, "concat_output_tebd": False, "resnet_dt": True},
    "skip of the first layer": {"attn_layer": 0, "neuron": [7, 14]},
    "mean": {"attn_layer": 0, "davg": MEANS, "env_protection": 0.2},
    "stripped": {"attn_layer": 0, "tebd_input_mode": "strip", "davg": MEANS, "tebd_dim": 4, "use_tebd_bias": True},
    "stripped one side": {"attn_layer": 0, "tebd_input_mode": "strip", "type_one_side": True, "tebd_dim": 2},
    "version 2": {"type": "se_atten_v2", "attn_layer": 0, "davg": MEANS},
    "rough": {"davg": MEANS, "scaling_factor": 2.0},
    "smooth": {"smooth_type_embedding": True, "davg": MEANS, "attn_layer": 3, "ln_eps": 1e-3},
    "electrons": {"type": "se_atten_v2", "use_econf_tebd": True, "attn_dotr": False, "temperature": 2.0},
    "lengths": {"smooth_type_embedding": True, "normalize": False, "attn_layer": 1, "trainable_ln": False},
    "excluded": {"smooth_type_embedding": True, "exclude_types": [[0, 1]], "davg": MEANS},
    "excluded rough": {"exclude_types": [[1, 1]], "davg": MEANS},
    "unseen": {"smooth_type_embedding": True, "pairs": [[0, 1]], "davg": MEANS},
    "harmonics": {"lmax": 4, "attn_layer": 0, "env_protection": 0.2, "exclude_types": [[0, 0]]},
    "harmonics with attention": {"lmax": 2, "davg": MEANS, "smooth_type_embedding": True},
    "all excluded": {"exclude_types": [[0, 0], [0, 1]], "davg": MEANS},
    "all unseen": {"attn_layer": 1, "pairs": [[0, 0], [0, 1]], "davg": MEANS},
}


@pytest.mark.parametrize("name", OPTIONS)
@pytest.mark.parametrize("frame", [structures.cluster(), structures.tiny(), structures.only(structures.cubic(), 1)])
def test_descriptor_slot_by_slot(name: str, frame: Frames) -> None:
    d = (potential := make(**OPTIONS[name])).descriptor
    graph = potential.graph(frame)
    r_ij, types = graph.vectors(), frame.types
    found = d(graph, r_ij)
    for centre, (features, directions) in enumerate(found):
        assert features.shape == (len(graph.atoms[centre]), d.n_features)
        for place, atom in enumerate(graph.atoms[centre].tolist()):
            mine = (graph.centre == atom).numpy()
            kinds = types[graph.neighbour.numpy()[mine]]
            expected, turned = slot_by_slot(d, r_ij.numpy()[mine], kinds, centre, int(types[0]))
            np.testing.assert_allclose(features[place].detach(), expected, rtol=1e-11, atol=1e-14)
            np.testing.assert_allclose(directions[place].detach(), turned, rtol=1e-11, atol=1e-14)


def test_as_many_neighbours_as_slots() -> None:
    """Up to that attention knows no more slots than the widest atom has neighbours; beyond it is refused."""
    frame = structures.cluster()
    potential = make(smooth_type_embedding=True)
    blocks = potential.graph(frame).blocks
    widest = max(int(sum(blocks[c, k].segments.counts for k in range(2)).max()) for c in range(2))
    potential.descriptor.n_slots = widest
    assert np.isfinite(potential.evaluate(frame).forces).all()
    potential.descriptor.n_slots = widest - 1
    with pytest.raises(StructureError, match=rf"atom \d+ has {widest} neighbours within 4\.0 Å.*{widest - 1} \(sel\)"):
        potential.evaluate(frame)


# --- the cutoff ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"attn_layer": 0}, {"smooth_type_embedding": True}, {"type": "se_atten_v2"}])
def test_energy_and_forces_are_continuous_across_the_cutoff(options: dict[str, Any]) -> None:
    potential = make(davg=MEANS if options.get("type") else (0.0, 0.0), **options)
    outside = potential.evaluate(pair(np.array([RCUT + 1e-9])))
    result = potential.evaluate(pair(RCUT - np.array([1e-9, 1e-6, 1e-4, 1e-2])))
    energies = np.abs(result.energy - outside.energy)
    forces = np.abs(result.forces.reshape(4, 3, 3) - outside.forces).max(axis=(1, 2))
    assert np.all(energies[:3] <= 1e-11)
    assert np.all(forces[:3] <= [1e-11, 1e-9, 1e-6])
    assert energies[3] > 0  # they do interact


def test_neighbours_at_the_cutoff_do_not_spoil_the_gradient_of_the_loss() -> None:
    """There the environment is 0, or of the size of rounding errors, and its direction is of no meaning."""
    potential = make(smooth_type_embedding=True)
    distances = RCUT - np.array([0.0, 1e-16, 3e-16, 1e-7, 1e-6, 3e-6])
    prediction = potential(potential.graph(pair(distances)), is_training=True)
    loss = (prediction.forces**2).sum() + prediction.energy.sum()
    for gradient in torch.autograd.grad(loss, tuple(potential.parameters()), allow_unused=True):
        assert gradient is None or bool(torch.isfinite(gradient).all())


# --- tables ----------------------------------------------------------------------------------------------------------

TABLED: dict[str, dict[str, Any]] = {
    "plain": {"attn_layer": 0},
    "stripped": {"attn_layer": 0, "tebd_input_mode": "strip", "concat_output_tebd": False, "type_one_side": True},
    "smooth": {"type": "se_atten_v2", "attn_layer": 0, "davg": MEANS, "rcut_smth": 1.8},
    "excluded": {"type": "se_atten_v2", "attn_layer": 0, "davg": MEANS, "exclude_types": [[0, 1]]},
    "unseen": {"type": "se_atten_v2", "attn_layer": 0, "davg": MEANS, "pairs": [[1, 1]], "resnet_dt": True},
}


def accelerated(**options: Any) -> Potential:
    pytest.importorskip("numba")
    potential = make(**options)
    for weights in potential.parameters():
        weights.requires_grad_(False)
    potential.accelerate(threads=2)
    return potential


@pytest.mark.parametrize("name", TABLED)
def test_kernels_agree_with_the_reference(name: str) -> None:
    potential, frames = accelerated(**TABLED[name]), every_cell()
    assert potential.compiled() != [None]
    expected, found = potential.reference(frames), potential.evaluate(frames)
    assert_close(found, expected.energy, expected.forces, expected.virial, TABULATED)
    np.testing.assert_allclose(found.atom_energy, expected.atom_energy, rtol=0, atol=1e-9)
    potential.set_precision("single")
    assert_close(potential.evaluate(frames), expected.energy, expected.forces, expected.virial, ROUNDED)


class TestKernels(SeAttenContract):
    options: ClassVar = TABLED["smooth"]

    def potential(self) -> Potential:
        potential = super().potential()
        potential.accelerate(threads=2)
        return potential


def test_attention_is_evaluated_by_the_reference() -> None:
    assert accelerated().compiled() == [None]


def test_kernels_count_the_neighbours_of_all_types_together() -> None:
    potential, frame = accelerated(attn_layer=0), structures.cubic()
    blocks = potential.graph(frame).blocks
    widest = max(int(sum(blocks[c, k].segments.counts for k in range(2)).max()) for c in range(2))
    potential.descriptor.n_slots = widest
    assert potential.evaluate(frame).energy
    few = accelerated(attn_layer=0)
    few.descriptor.n_slots = widest - 1
    with pytest.raises(StructureError, match=rf"atom \d+ has {widest} neighbours within 4\.0 Å.*{widest - 1} \(sel\)"):
        few.evaluate(frame)


# --- the order of atoms ----------------------------------------------------------------------------------------------


def test_the_first_atom_counts_where_empty_slots_do() -> None:
    """As in DeePMD-kit: its type is that of the empty slots."""
    potential, whole = make(davg=MEANS), structures.cluster()
    turned = Frames.single(whole.positions[::-1], whole.types[::-1])
    assert whole.types[0] != turned.types[0]
    one, other = (float(potential.evaluate(frame).energy[0]) for frame in (whole, turned))
    assert abs(one - other) > 1e-3
    both = potential.evaluate(Frames.concatenate([whole, turned])).energy
    np.testing.assert_allclose(both, [one, other], rtol=1e-13)
    ghosts = Frames(*vars(whole).values())
    object.__setattr__(ghosts, "is_ghost", whole.types == 1)
    with pytest.raises(StructureError, match="depends on which atom is the first"):
        potential.evaluate(ghosts)


def test_no_model_is_trained_whose_energy_depends_on_the_order() -> None:
    graphs = [make().graph(structures.cluster())]
    with pytest.raises(ConfigError, match=r"descriptor\.set_davg_zero must be true for se_atten, unless"):
        make(set_davg_zero=False).descriptor.fit_normalisation(graphs, 0.01)
    potential = make(type="se_atten_v2")
    potential.descriptor.fit_normalisation(graphs, 0.01)
    assert potential.descriptor.davg[:, 0].min() > 0


def test_statistics_are_those_of_all_slots() -> None:
    potential = make(type="se_atten_v2")
    graph = potential.graph(structures.cluster())
    rows = potential.descriptor.environment(graph.vectors()).numpy()
    potential.descriptor.fit_normalisation([graph], 1e-6)
    for centre, atoms in enumerate(graph.atoms):
        slots = np.zeros((len(atoms), SLOTS, 4))
        for place, atom in enumerate(atoms.tolist()):
            mine = rows[(graph.centre == atom).numpy()]
            slots[place, : len(mine)] = mine
        assert float(potential.descriptor.davg[centre, 0]) == pytest.approx(slots[..., 0].mean(), rel=1e-12)
        expected = [slots[..., 0].std(), *[slots[..., 1:].std()] * 3]
        np.testing.assert_allclose(potential.descriptor.dstd[centre], expected, rtol=1e-12)


def test_a_species_that_does_not_occur_has_the_deviations_of_deepmd_kit() -> None:
    potential = make(type="se_atten_v2")
    potential.descriptor.fit_normalisation([potential.graph(structures.only(structures.cubic(), 1))], 0.01)
    assert potential.descriptor.dstd[0].tolist() == [0.1] * 4
    assert potential.descriptor.davg[0].tolist() == [0.0] * 4


# --- its section of an input -----------------------------------------------------------------------------------------


def config_of(**descriptor: Any) -> Any:
    model = {"type_map": ["O", "H"], "descriptor": {"type": "se_atten", **descriptor}}
    return parse(ModelConfig, model, "model").descriptor


def test_one_net_serves_all_types() -> None:
    potential = make()
    assert len(potential.fitting) == 1
    assert potential.fitting.is_shared


def test_names_and_older_keys() -> None:
    assert config_of(type="dpa1").type == "se_atten"
    assert config_of(stripped_type_embedding=True).is_stripped
    assert not config_of(stripped_type_embedding=False, tebd_input_mode="strip").is_stripped
    assert config_of(stripped_type_embedding=None, tebd_input_mode="strip").is_stripped
    assert config_of(smooth_type_embdding=True).is_smooth
    assert config_of(type="se_atten_v2").is_stripped
    assert config_of(sel=40).sel == config_of(sel=[40]).sel == (40,)
    assert config_of(sel=[10, 20]).sel == (10, 20)
    assert config_of(sel="auto:1.2").sel == "auto:1.2"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"attn_mask": True}, r"model\.descriptor\.attn_mask: true is not supported by dpserver; supported: false"),
        ({"lmax": 5}, r"model\.descriptor\.lmax: input should be less than or equal to 4"),
        ({"type": "se_atten_v2", "tebd_input_mode": "concat"}, r"model\.descriptor\.tebd_input_mode: .concat. is not"),
        ({"tebd_input_mode": "dot"}, r"model\.descriptor\.tebd_input_mode: input should be 'concat' or 'strip'"),
        ({"sel": [1, 2, 3]}, r"model\.descriptor\.sel: needs one number, or one per type of type_map \(2\), got 3"),
        ({"axis_neuron": 99}, r"model\.descriptor\.axis_neuron: must not exceed"),
        ({"stripped_type_embedding": 1}, r"model\.descriptor\.stripped_type_embedding: must be true, false or null"),
        ({"atn": 1}, r"model\.descriptor\.atn: unknown key; did you mean model\.descriptor\.attn\?"),
        ({"exclude_types": [[0, 2]]}, r"model\.descriptor\.exclude_types: types go from 0 to 1"),
    ],
)
def test_mistakes_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(**options)


def test_electrons_need_elements() -> None:
    model = {"type_map": ["O", "H_b"], "descriptor": {"type": "se_atten", "sel": 9, "use_econf_tebd": True}}
    with pytest.raises(ConfigError, match=r"'H_b' in type_map is no element"):
        Potential(parse(ModelConfig, model))
