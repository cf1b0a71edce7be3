"""Structures that are made up: as many atoms, neighbours and species as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver import neighbors
from dpserver.bench import imagined, moving, tiled
from tests import structures


@pytest.mark.parametrize("n_atoms", [24, 192, 1000])
def test_an_imagined_liquid_has_the_neighbours_asked_for(n_atoms: int) -> None:
    frame = imagined([0] * 20 + [1] * 40, n_atoms, 6.0, 92)
    assert frame.n_atoms == n_atoms
    assert np.mean(frame.types) == pytest.approx(2 / 3, abs=1 / n_atoms)
    edges = neighbors.build(frame, 6.0)
    assert len(edges) / n_atoms == pytest.approx(92, rel=0.1)


@pytest.mark.parametrize("n_atoms", [192, 5184])
def test_no_atom_of_it_has_more_neighbours_than_a_model_holds(n_atoms: int) -> None:
    """Even where a few of many atoms would, if species were drawn at random; 2/3 of the slots are taken on average."""
    sel = np.array([46, 92])
    frame = imagined(np.repeat([0, 1], sel), n_atoms, 6.0, 92)
    edges = neighbors.build(frame, 6.0)
    counts = np.zeros((n_atoms, 2))
    np.add.at(counts, (edges.centre, frame.types[edges.neighbour]), 1)
    assert np.all(counts.max(axis=0) <= 0.85 * sel)
    assert edges.distance.min() > 0.8


def test_tiles_repeat_the_structure() -> None:
    frame = structures.triclinic()
    whole, edges = tiled(frame, 2), neighbors.build(frame, 4.0)
    assert whole.n_atoms == 8 * frame.n_atoms
    assert len(neighbors.build(whole, 4.0)) == 8 * len(edges)


def test_moves_stay_within_a_skin() -> None:
    frame = structures.cubic()
    step = moving(frame)
    for _ in range(6):
        moved = step()
        assert 0 < np.abs(moved.positions - frame.positions).max() <= 0.02
        np.testing.assert_array_equal(moved.types, frame.types)
