"""The expansion beside automatic differentiation through every edge, its oracle."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from dpserver.errors import ModelFileError, StructureError
from dpserver.frames import Frames
from dpserver.kernels import expansion as kernels
from dpserver.models.config import ModelConfig, parse
from dpserver.models.graph import Graph
from dpserver.models.potential import Potential, Prediction
from dpserver.train.config import load_input
from dpserver.train.evaluator import Evaluator
from dpserver.train.expansion import Expansion, reason_against
from dpserver.train.loop import Trainer
from dpserver.train.room import Room
from tests import structures
from tests.models import tables, test_pair_table
from tests.train import teacher

BATCH = Frames.concatenate([structures.triclinic(), structures.tiny(), structures.cluster(), structures.slab()])


def closest(potential: Potential, frames: Frames) -> np.ndarray:
    graph = potential.graph(frames)
    r = np.linalg.norm(graph.vectors().numpy(), axis=1)
    found = np.full((len(potential.species),) * 2, np.inf)
    np.minimum.at(found, (frames.types[graph.centre.numpy()], frames.types[graph.neighbour.numpy()]), r)
    return found


def potential(precision: str = "double", *, is_shifted: bool = True, **changes: Any) -> Potential:
    descriptor = {**teacher.MODEL["descriptor"], "sel": [70, 140], **changes.pop("descriptor", {})}
    model = {**teacher.MODEL, "descriptor": descriptor, **changes}
    made = Potential(parse(ModelConfig, model), seed=3, precision=precision)
    if is_shifted:
        made.descriptor.davg.copy_(torch.tensor([[0.12, 0, 0, 0], [0.09, 0, 0, 0]]))
        made.descriptor.dstd.copy_(torch.tensor([[0.2, 0.13, 0.13, 0.13], [0.17, 0.11, 0.11, 0.11]]))
    return made


def expansion(of: Potential, frames: Frames = BATCH) -> Expansion:
    made = Expansion(of, closest(of, frames))
    assert made.fits()
    return made


def derivatives(of: Potential, predict: Any, graph: Graph) -> tuple[Prediction, list[torch.Tensor]]:
    """A prediction, and what a loss of all of it gives by the weights."""
    generator = torch.Generator().manual_seed(1)

    def weighed(values: torch.Tensor) -> torch.Tensor:
        target = torch.randn(values.shape, generator=generator, dtype=torch.float64)
        return ((values - target) ** 2).sum()

    prediction = predict(graph, is_training=True)
    loss = sum(weighed(getattr(prediction, name)) for name in ("energy", "forces", "virial", "atom_energy"))
    of.zero_grad()
    loss.backward()
    return prediction, [torch.zeros_like(p) if p.grad is None else p.grad.clone() for p in of.parameters()]


def agree(of: Potential, tolerance: float = 1e-9, frames: Frames = BATCH) -> None:
    graph = of.graph(frames)
    expected, by_weights = derivatives(of, of, graph)
    found, found_by_weights = derivatives(of, expansion(of, frames), graph)
    for name in ("energy", "forces", "virial", "atom_energy"):
        want, got = getattr(expected, name).detach(), getattr(found, name).detach()
        assert (got - want).abs().max() <= tolerance * want.abs().max(), name
    for want, got in zip(by_weights, found_by_weights, strict=True):
        assert (got - want).abs().max() <= tolerance * max(float(w.abs().max()) for w in by_weights)
    assert any(g.abs().max() > 0 for g in found_by_weights)


@pytest.mark.parametrize(
    "descriptor",
    [
        {},
        {"type_one_side": False},
        {"resnet_dt": True, "neuron": [3, 3, 6]},
        {"exclude_types": [[0, 1]]},
        {"exclude_types": [[0, 0]], "type_one_side": False},
        {"exclude_types": [[1, 1]], "keeps_excluded_slots": True, "type_one_side": False},
        {"env_protection": 0.02},
        {"activation_function": "gelu"},
        {"sel": [70, 0]},
    ],
    ids=str,
)
def test_a_loss_has_the_same_derivatives_by_the_weights(descriptor):
    agree(potential(descriptor=descriptor))


def test_also_without_a_mean_to_take_off():
    agree(potential(is_shifted=False))


def test_also_with_pairs_that_do_not_see_each_other():
    agree(potential(pair_exclude_types=[[0, 1]]))


def test_also_where_atoms_have_no_energy_or_that_of_a_vacuum():
    agree(potential(atom_exclude_types=[0]))
    agree(potential(fitting_net={"neuron": [6, 6], "atom_ener": [-1.5, None], "resnet_dt": True}))


def test_also_beside_a_table_of_pair_energies():
    shape = test_pair_table.shape(tables.repulsion())
    with_table = potential(pair_table=shape, sw_rmin=0.7, sw_rmax=1.6, smin_alpha=0.15)
    agree(test_pair_table.filled(with_table, tables.repulsion()))


def test_also_beside_charges_that_are_learnt():
    charges = {"charges": {"O": -0.8, "H": 0.4}, "trainable": True, "environment": {"neuron": [5]}}
    frames = Frames.concatenate([structures.triclinic(), structures.cluster()])
    agree(potential(electrostatics=charges), frames=frames)


def test_a_training_goes_as_by_automatic_differentiation(tmp_path):
    path = teacher.write_input(tmp_path, numb_steps=20, training_data={"systems": "train", "batch_size": 1})
    found = []
    for state in ({}, {"count": None}):
        trainer = Trainer(load_input(path), tmp_path)
        trainer.evaluator.load_state_dict(state)
        trainer.run()
        found.append((trainer, torch.cat([p.detach().flatten() for p in trainer.potential.parameters()])))
    (quick, mine), (differentiated, expected) = found
    assert "polynomials" in quick.evaluator.describe()
    assert "automatic" in differentiated.evaluator.describe()
    assert (mine - expected).abs().max() < 1e-7
    assert quick.validate(whole=True) == pytest.approx(differentiated.validate(whole=True), rel=1e-7)


def test_what_no_weight_changes_is_made_once_for_a_graph():
    mine = potential()
    made, graph = expansion(mine, structures.cubic()), mine.graph(structures.cubic())
    first = made._structure(graph)
    assert made._structure(graph) is first
    made.count += 8
    assert made._structure(graph).count == first.count + 8
    assert (made(graph).forces - mine(graph).forces).abs().max() < 1e-9


@pytest.mark.parametrize(
    "options", [{}, {"trainable": True}, {"environment": {"neuron": [5]}, "total_charge": 1.0}], ids=str
)
def test_also_beside_charges(options):
    charges = {"charges": {"O": -0.8, "H": 0.4}, "total_charge": None if not options else 0.0, **options}
    mine = potential(electrostatics=charges)
    frames = Frames.concatenate([structures.triclinic(), structures.tiny(), structures.cluster()])  # no slab
    agree(mine, frames=frames)
    learnt = [p for name, p in mine.named_parameters() if name.startswith("electrostatics")]
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in learnt)
    assert bool(learnt) == bool(options)


def test_single_precision_has_its_rounding_alone():
    agree(potential("mixed"), 2e-4)


def test_without_training_it_predicts_the_same():
    mine = potential()
    graph = mine.graph(BATCH)
    expected, found = mine(graph), expansion(mine)(graph)
    assert found.forces.requires_grad is False
    assert (found.forces - expected.forces).abs().max() <= 1e-10 * expected.forces.abs().max()
    assert (found.virial - expected.virial).abs().max() <= 1e-10 * expected.virial.abs().max()


def test_polynomials_are_added_as_the_weights_ask_for_them():
    mine = potential()
    made = expansion(mine)
    before = made.count
    with torch.no_grad():
        for net in mine.descriptor.embedding:
            net[0].weight *= 6
    assert made.fits()
    assert made.count > before
    agree(mine, 1e-8)


def test_a_net_that_is_not_smooth_is_evaluated_on_every_edge():
    mine = potential(descriptor={"activation_function": "relu"})
    evaluator = Evaluator(mine, closest(mine, BATCH))
    assert "not smooth enough" in evaluator.describe()
    graph = mine.graph(BATCH)
    assert (evaluator(graph).forces == mine(graph).forces).all()


def test_a_checkpoint_keeps_the_number_of_polynomials():
    mine = potential()
    first, second = Evaluator(mine, closest(mine, BATCH)), Evaluator(mine, closest(mine, BATCH))
    second.load_state_dict({"count": 96})
    assert "96 polynomials" in second.describe()
    assert "96" not in first.describe()
    first.load_state_dict(second.state_dict())
    assert first.describe() == second.describe()
    first.load_state_dict({"count": None})
    assert "automatic" in first.describe()


@pytest.mark.parametrize(
    "state", [{"count": 17}, {"count": 1 << 40}, {"count": "16"}, {"count": 16.0}, {"count": True}, [16]], ids=str
)
def test_a_checkpoint_with_another_number_is_refused(state):
    mine = potential()
    evaluator = Evaluator(mine, closest(mine, BATCH))
    with pytest.raises(ModelFileError, match=r"the checkpoint a-1\.pt is inconsistent: its resume\.evaluator"):
        evaluator.load_state_dict(state, "the checkpoint a-1.pt")


def test_more_neighbours_than_sel_are_refused_as_by_the_reference_also_where_they_are_excluded():
    mine = potential(descriptor={"exclude_types": [[0, 1]], "type_one_side": False, "sel": [70, 2]})
    frames = Frames.single([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0, 0, 1]], [0, 1, 1, 1])
    graph = mine.graph(frames)
    for predict in (mine, expansion(mine, frames)):
        with pytest.raises(StructureError, match="atom 0 has 3 neighbours of type 1"):
            predict(graph)


def test_moments_are_kept_where_there_is_room_and_counted():
    mine = potential()
    graph, other = mine.graph(structures.cubic()), mine.graph(structures.cubic())
    n_bytes = 32 * 2 * 16 * structures.cubic().n_atoms
    room = Room(n_bytes + 5)
    made = Expansion(mine, closest(mine, structures.cubic()), room=room)
    first = made._structure(graph)
    assert made._structure(graph) is first
    assert room.left == 5
    assert made._structure(other) is not made._structure(other)
    made.count = 24
    assert made._structure(graph) is not made._structure(graph)
    assert room.left == n_bytes + 5
    made.count = 16
    made._structure(other)
    assert room.left == 5
    del other
    assert room.left == n_bytes + 5
    made._structure(graph)
    made.forget()
    assert room.left == n_bytes + 5
    del graph
    assert room.left == n_bytes + 5


def test_atoms_closer_than_the_polynomials_reach_are_an_error():
    mine = potential()
    apart = Frames.single([[0.0, 0.0, 0.0], [1.5, 0.0, 0.0]], [0, 0])
    close = Frames.single([[0.0, 0.0, 0.0], [1.4, 0.0, 0.0]], [0, 0])
    with pytest.raises(ValueError, match=r"atoms 1\.4 Å apart, but the expansion is for 1\.5 Å and more"):
        expansion(mine, apart)(mine.graph(close))


def test_what_it_has_no_form_for_is_named():
    assert reason_against(Potential(parse(ModelConfig, teacher.LOC_FRAME))) == "the descriptor is loc_frame"
    many = {**teacher.MODEL, "type_map": [f"X{k}" for k in range(11)]}
    many["descriptor"] = {**teacher.MODEL["descriptor"], "sel": [4] * 11}
    assert reason_against(Potential(parse(ModelConfig, many))) == "it has more than 10 species"


def test_the_changes_of_moments_are_the_adjoint_of_the_edge_gradients():
    rng = np.random.default_rng(0)
    bounds, count = np.array([0, 4, 4, 9]), 12
    vectors = rng.normal(scale=1.5, size=(9, 3))
    constants = np.array([0.5, 4.0, 0.01, 0.1, 0, 0, 0, 0.3, 0.2, 0.2, 0.2, 0.4, -0.2])
    by_moment, changes = rng.normal(size=(3, 4, 20)), rng.normal(size=(9, 3))
    gradients, moments = np.full((9, 3), np.nan), np.zeros((3, 4, 20))
    kernels.edge_gradients(vectors, bounds, constants, by_moment, 5, count, gradients)
    kernels.add_changes(vectors, bounds, constants, changes, moments, 5, count)
    assert np.sum(gradients * changes) == pytest.approx(np.sum(moments * by_moment), rel=1e-12)
    assert not moments[:, :, :5].any()
    assert not moments[:, :, 17:].any()
    step = 1e-6
    ends = []
    for sign in (1, -1):
        found = np.zeros((3, 4, 20))
        kernels.add_moments(vectors + sign * step * changes, bounds, constants, found, 5, count)
        ends.append(found)
    assert moments == pytest.approx((ends[0] - ends[1]) / (2 * step), abs=1e-6)
