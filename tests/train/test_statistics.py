import numpy as np
import pytest

from dpserver import neighbors
from dpserver.train.statistics import NeighbourStatistics, choose_sel, fit_energy_bias
from tests import structures

RCUT = 4.0


def test_extremes_of_neighbour_lists_are_found():
    batches = [f() for f in (structures.cubic, structures.triclinic, structures.cluster)]
    found = NeighbourStatistics.collect([(b, neighbors.build(b, RCUT)) for b in batches], 2)
    closest, most = np.full((2, 2), np.inf), np.zeros(2, dtype=int)
    for b in batches:
        edges = neighbors.build(b, RCUT)
        for i in range(b.n_atoms):
            mine = edges.centre == i
            kinds = b.types[edges.neighbour[mine]]
            for k in range(2):
                most[k] = max(most[k], (kinds == k).sum())
                distances = edges.distance[mine][kinds == k]
                closest[b.types[i], k] = min(closest[b.types[i], k], distances.min(initial=np.inf))
    assert (found.max_count == most).all()
    assert (found.min_distance == closest).all()
    assert (found.min_distance == found.min_distance.T).all()


def test_pairs_never_met_have_no_distance():
    frame = structures.only(structures.cubic(), 0)
    found = NeighbourStatistics.collect([(frame, neighbors.build(frame, RCUT))], 2)
    assert np.isfinite(found.min_distance[0, 0])
    assert np.isinf(found.min_distance[1]).all()


@pytest.mark.parametrize(("sel", "expected"), [("auto", (36, 68)), ("auto:1.5", (48, 92)), ((46, 92), (46, 92))])
def test_sel_is_rounded_up_from_the_most_seen(sel, expected):
    assert choose_sel(sel, np.array([31, 61])) == expected


def test_energy_bias_is_the_energy_of_a_species():
    composition = np.array([[2.0, 4], [3, 6], [1, 3], [4, 2]])
    assert fit_energy_bias(composition @ [-430.0, -13.5], composition) == pytest.approx([-430.0, -13.5])


def test_energy_bias_of_one_composition_has_the_smallest_norm():
    bias = fit_energy_bias(np.array([-30000.0, -30000.0]), np.array([[64.0, 128], [64, 128]]))
    assert bias == pytest.approx(-30000 * np.array([64, 128]) / (64**2 + 128**2))
