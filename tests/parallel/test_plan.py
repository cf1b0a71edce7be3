from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dpserver.parallel.plan import Decompose, Plan, Sizes, Speeds, choose, compare

VOLUME = 10.0  # Å³ of an atom, as in water


def sizes(*counts: int, reach: float = 7.0) -> Sizes:
    return Sizes(counts, tuple(VOLUME * n for n in counts), reach)


def test_many_beads_go_over_the_ranks_as_they_are():
    plan = choose(sizes(*[192] * 32), 8, Speeds())
    assert [len(ranks) for ranks in plan.ranks] == [1] * 32
    assert [ranks[0] for ranks in plan.ranks] == sorted([*range(8)] * 4)  # consecutive ones together
    assert str(plan) == "whole structures over 8 ranks"


def test_one_large_structure_is_cut():
    plan = choose(sizes(12_288), 8, Speeds())
    assert plan.ranks == (tuple(range(8)),)
    assert str(plan) == "each structure in 8 parts over 8 ranks"


def test_a_few_large_structures_have_a_group_of_ranks_each():
    plan = choose(sizes(*[12_288] * 4), 16, Speeds())
    assert [len(ranks) for ranks in plan.ranks] == [4] * 4
    assert plan.n_ranks == 16
    assert str(plan) == "groups of 4 ranks for each structure, 16 ranks in all"


def test_a_tiny_structure_is_not_worth_a_message():
    assert choose(sizes(3), 8, Speeds()).ranks == ((0,),)
    assert str(choose(sizes(3), 8, Speeds())) == "whole structures over 1 rank"


def test_ghosts_speak_against_cutting_small_structures_into_many():
    """Twice 24 atoms with a thousand ghosts each cost more than one of 48."""
    few = choose(sizes(1536), 64, Speeds())
    assert 2 <= few.n_ranks < 64
    assert choose(sizes(1_000_000), 64, Speeds()).n_ranks == 64


def test_parts_that_have_much_to_tell_each_other_are_fewer():
    """One structure is evaluated whole, and of four each by a rank of its own, where meeting takes longer than that."""
    slow = Speeds(meeting=1e-4)
    assert choose(sizes(12_288), 8, Speeds(meeting=1e-6)).n_parts == 8
    assert choose(sizes(12_288), 8, slow).ranks == ((0,),)
    assert choose(sizes(*[12_288] * 4), 8, slow).n_parts == 1
    assert choose(sizes(12_288), 8, slow, Decompose.SPACE).n_parts == 8


def test_slow_wires_speak_for_fewer_ranks():
    fast, slow = Speeds(message=1e-6), Speeds(message=5e-3)
    assert choose(sizes(5184), 32, slow).n_ranks < choose(sizes(5184), 32, fast).n_ranks


def test_by_hand():
    assert choose(sizes(5000, 5000), 4, Speeds(), Decompose.BEADS).ranks == ((0,), (1,))
    assert choose(sizes(3, 3), 4, Speeds(), Decompose.SPACE).ranks == ((0, 1, 2, 3),) * 2
    found = compare(sizes(5000, 5000), 4, Speeds())
    assert found[Decompose.BEADS] > found[Decompose.SPACE] > choose(sizes(5000, 5000), 4, Speeds()).seconds * 0.99


def test_a_group_that_has_a_rank_more_is_said():
    assert "groups of 2 to 3 ranks" in str(Plan(((0, 1), (2, 3, 4)), 1.0))


def test_ghosts_of_a_cube():
    cube = Sizes((8000,), (80_000.0,), 7.0)
    edge = 80_000 ** (1 / 3) / 2
    assert cube.ghosts(0, 8) == pytest.approx(0.1 * ((edge + 14) ** 3 - edge**3))
    assert cube.ghosts(0, 1) == 0


@given(
    counts=st.lists(st.integers(1, 5000), min_size=1, max_size=40),
    n_ranks=st.integers(1, 40),
    way=st.sampled_from(list(Decompose)),
)
def test_every_structure_has_ranks_and_every_rank_is_one_of_them(counts, n_ranks, way):
    plan = choose(sizes(*counts), n_ranks, Speeds(), way)
    assert len(plan.ranks) == len(counts)
    for ranks in plan.ranks:
        assert len(ranks) == len(set(ranks)) >= 1
        assert set(ranks) <= set(range(n_ranks))
    for a, b in pairwise(sorted({ranks for ranks in plan.ranks})):
        assert not set(a) & set(b)  # groups are apart
    assert plan.seconds > 0


@given(counts=st.lists(st.integers(1, 300), min_size=8, max_size=60), n_ranks=st.integers(2, 8))
def test_atoms_are_balanced(counts, n_ranks):
    plan = choose(sizes(*counts), n_ranks, Speeds(), Decompose.BEADS)
    loads = [sum(c for c, ranks in zip(counts, plan.ranks, strict=True) if ranks == (k,)) for k in range(n_ranks)]
    ideal = sum(counts) / n_ranks
    assert max(loads) <= 1.02 * (ideal + max(counts))
