import numpy as np
import pytest

from dpserver import neighbors
from dpserver.models.config.descriptor import auto_sel
from dpserver.neighbors.crowds import crowd_distance
from dpserver.train.statistics import NeighbourStatistics, composition, fit_energy_bias
from tests import structures

RCUT = 4.0


def test_extremes_of_neighbour_lists_are_found():
    batches = [f() for f in (structures.cubic, structures.triclinic, structures.cluster)]
    found = NeighbourStatistics.collect([(b, neighbors.build(b, RCUT)) for b in batches], 2, {RCUT, 3.0})
    closest, most, total, near = np.full((2, 2), np.inf), np.zeros(2, dtype=int), 0, 0
    for b in batches:
        edges = neighbors.build(b, RCUT)
        for i in range(b.n_atoms):
            mine = edges.centre == i
            kinds = b.types[edges.neighbour[mine]]
            total, near = max(total, mine.sum()), max(near, (edges.distance[mine] < 3.0).sum())
            for k in range(2):
                most[k] = max(most[k], (kinds == k).sum())
                distances = edges.distance[mine][kinds == k]
                closest[b.types[i], k] = min(closest[b.types[i], k], distances.min(initial=np.inf))
    assert found.counts[RCUT].by_species == tuple(most)
    assert (found.counts[RCUT].total, found.counts[3.0].total) == (total, near)
    assert near < total < sum(most)
    assert (found.min_distance == closest).all()
    assert (found.min_distance == found.min_distance.T).all()


def test_crowds_are_found_as_by_counting():
    frames = structures.water((4, 2, 2))  # 48 atoms make a crowd of two
    frames.positions[:] += np.random.default_rng(1).normal(0.0, 0.1, frames.positions.shape)
    larger = structures.water((4, 4, 4))
    larger.positions[:] += np.random.default_rng(2).normal(0.0, 0.1, larger.positions.shape)
    batch = type(frames).concatenate([larger, frames])
    found = crowd_distance(batch, neighbors.build(batch, RCUT), 2)
    expected = np.full((2, 2), np.inf)
    for frame, least in ((larger, 4), (frames, 2)):
        edges = neighbors.build(frame, RCUT)
        for a in range(2):
            for b in range(2):
                is_kind = (frame.types[edges.centre] == a) & (frame.types[edges.neighbour] == b)
                distance = np.sort(edges.distance[is_kind])[:: 2 if a == b else 1]
                expected[a, b] = min(expected[a, b], distance[least - 1])
    np.testing.assert_array_equal(found, expected)
    assert (found == found.T).all()
    assert (found > NeighbourStatistics.collect([(batch, neighbors.build(batch, RCUT))], 2).min_distance).all()


def test_few_pairs_are_no_crowd():
    frame = structures.molecule()
    found = crowd_distance(frame, neighbors.build(frame, RCUT), 2)
    bonds = np.linalg.norm(frame.positions[1:] - frame.positions[0], axis=1)
    assert found.tolist() == [[np.inf, bonds.max()], [bonds.max(), np.inf]]


def test_pairs_never_met_have_no_distance():
    frame = structures.only(structures.cubic(), 0)
    found = NeighbourStatistics.collect([(frame, neighbors.build(frame, RCUT))], 2)
    assert np.isfinite(found.min_distance[0, 0])
    assert np.isinf(found.min_distance[1]).all()


@pytest.mark.parametrize(
    ("sel", "most", "expected"),
    [("auto", (31, 61), (36, 68)), ("auto:1.5", (31, 61), (48, 92)), ("auto", (11, 0), (12, 4))],
)
def test_sel_is_rounded_up_from_the_most_seen(sel, most, expected):
    # DeePMD-kit takes the integer part of the product first: 11 · 1.1 = 12.1 becomes 12
    assert auto_sel(sel, most) == expected


def test_composition_counts_atoms_or_adds_their_weights():
    frame = structures.cubic()
    twice = type(frame).concatenate([frame, structures.only(frame, 0)])
    n_oxygen = int((frame.types == 0).sum())
    assert composition(twice, 2).tolist() == [[n_oxygen, frame.n_atoms - n_oxygen], [n_oxygen, 0]]
    weight = np.linspace(-1, 1, twice.n_atoms)
    by_hand = [[weight[(twice.frame_idx == f) & (twice.types == t)].sum() for t in range(2)] for f in range(2)]
    assert composition(twice, 2, weight) == pytest.approx(np.array(by_hand))


def test_given_energies_are_kept_and_the_others_fitted_to_the_rest():
    counts = np.array([[2.0, 4, 1], [3, 6, 0], [1, 3, 2], [4, 2, 2]])
    energy = counts @ [-430.0, -13.5, -20.0]
    bias = fit_energy_bias(energy, counts, None, [None, -10.0, None])
    assert bias[1] == -10.0
    expected = np.linalg.lstsq(counts[:, [0, 2]], energy + 10.0 * counts[:, 1], rcond=None)[0]
    assert bias[[0, 2]] == pytest.approx(expected)


def test_energy_bias_is_the_energy_of_a_species():
    composition = np.array([[2.0, 4], [3, 6], [1, 3], [4, 2]])
    assert fit_energy_bias(composition @ [-430.0, -13.5], composition) == pytest.approx([-430.0, -13.5])


def test_energy_bias_of_one_composition_has_the_smallest_norm():
    bias = fit_energy_bias(np.array([-30000.0, -30000.0]), np.array([[64.0, 128], [64, 128]]))
    assert bias == pytest.approx(-30000 * np.array([64, 128]) / (64**2 + 128**2))
