"""The committee: the contract of every model, and that it is the mean of its members."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver import neighbors
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Frames
from dpserver.models.committee import Committee
from tests import structures
from tests.contract import EvaluationContract
from tests.models.committees import committee, member

QUANTITIES = ("energy", "forces", "virial")


def every_cell() -> Frames:
    makers = (structures.cubic, structures.triclinic, structures.slab, structures.wire, structures.cluster)
    return Frames.concatenate([*(make() for make in makers), structures.tiny(), structures.molecule()])


class TestOneCutoff(EvaluationContract):
    def potential(self) -> Committee:
        return committee()

    def frames(self) -> Frames:
        return every_cell()


class TestTwoCutoffs(EvaluationContract):
    def potential(self) -> Committee:
        return committee(4.0, 3.5)

    def frames(self) -> Frames:
        return every_cell()


@pytest.mark.parametrize("rcuts", [(4.0, 4.0, 4.0), (4.0, 3.5, 4.0)])
def test_it_is_the_mean_and_keeps_what_the_members_say(rcuts: tuple[float, ...]) -> None:
    model, frames = committee(*rcuts), every_cell()
    result = model.evaluate(frames)
    alone = [m.evaluate(frames) for m in model.members]
    assert result.committee is not None
    assert result.committee.n_members == 3
    for name in QUANTITIES:
        parts = np.stack([getattr(r, name) for r in alone])
        np.testing.assert_array_equal(getattr(result.committee, name), parts)
        np.testing.assert_allclose(getattr(result, name), parts.sum(axis=0) / 3, rtol=1e-14, atol=1e-14)
    np.testing.assert_allclose(result.atom_energy, sum(r.atom_energy for r in alone) / 3, rtol=1e-14)
    assert result.max_force_deviation().min() > 1e-3, "the members are too much alike to test anything"


def test_one_member_is_that_member_to_the_last_bit() -> None:
    frames = every_cell()
    alone = member(5)
    expected, result = alone.evaluate(frames), Committee([alone]).evaluate(frames)
    for name in (*QUANTITIES, "atom_energy", "frame_idx"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    np.testing.assert_array_equal(result.max_force_deviation(), 0.0)


@pytest.mark.parametrize(("rcuts", "expected"), [((4.0, 4.0, 4.0), [4.0]), ((4.0, 3.5, 4.0), [4.0, 3.5])])
def test_neighbours_are_found_once_for_each_cutoff(
    rcuts: tuple[float, ...], expected: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    found, build = [], neighbors.build

    def count(frames: Frames, rcut: float) -> neighbors.Edges:
        found.append(rcut)
        return build(frames, rcut)

    model = committee(*rcuts)
    monkeypatch.setattr(neighbors, "build", count)
    model.evaluate(structures.cubic())
    assert found == expected
    assert model.rcut == 4.0


def test_species_must_agree() -> None:
    with pytest.raises(ConfigError, match=r"member 2 knows the species H O, member 1 O H; .* in the same order"):
        Committee([member(1), member(2, species=("H", "O"))])
    with pytest.raises(ConfigError, match="at least one member"):
        Committee([])


def test_what_the_members_know_of_their_training_is_merged() -> None:
    a, b = member(1), member(2)
    a.min_distance, b.min_distance = np.array([[2.3, 0.9], [0.9, np.inf]]), np.array([[2.4, 0.8], [0.8, np.inf]])
    a.template = b.template = ("O", "H", "H")
    both = Committee([a, b])
    np.testing.assert_array_equal(both.min_distance, [[2.3, 0.8], [0.8, np.inf]])
    assert both.template == ("O", "H", "H")
    b.template = None
    assert Committee([a, b]).template is None


def test_a_structure_without_an_answer_is_refused() -> None:
    with pytest.raises(StructureError, match="atom 0 has type 2"):
        committee().evaluate(structures.atom(2))


@pytest.mark.parametrize("is_fast", [False, True])
def test_no_structures_have_members_too(is_fast: bool) -> None:
    model, none = committee(4.0, 3.5), Frames.concatenate([])
    if is_fast:
        model.accelerate(threads=1)
    result = model.evaluate(none)
    assert result.committee is not None
    assert [getattr(result.committee, name).shape for name in QUANTITIES] == [(2, 0), (2, 0, 3), (2, 0, 3, 3)]
    assert result.max_force_deviation().shape == (0,)
