"""What is learnt of the time that evaluations take, and what plans make of it."""

from __future__ import annotations

import numpy as np
import pytest

from dpserver.parallel.experience import Experience
from dpserver.parallel.plan import Sizes, choose
from dpserver.parallel.shares import Form, FormOfWholes, Share

BEAT = 1e-5  # s, for each centre


def share(n_whole: int, n_structures: int = 1, n_ranks: int = 2) -> Share:
    """Parts of structures of so many atoms, without ghosts."""
    counts = np.full(n_structures, n_whole // n_ranks)
    pbc = np.ones((n_structures, 3), dtype=bool)
    wholes = FormOfWholes(np.full(n_structures, n_whole), pbc, tuple(range(n_ranks)))
    form = Form(np.zeros(counts.sum(), dtype=np.int64), None, ~pbc, counts, wholes=wholes)
    return Share((), form, (), ())


def note(experience: Experience, n_whole: int, wait: float, n_structures: int = 1) -> None:
    """Take note of an evaluation in two parts, the second of which has waited longer."""
    shares = [share(n_whole, n_structures)] * 2
    seconds = np.full(2, 5e-4 + BEAT * n_whole * n_structures / 2)
    experience.note(shares, seconds, np.array([wait, 3 * wait + 1e-3]), 1e-4)


def n_parts(experience: Experience, n_atoms: int) -> int:
    return choose(Sizes((n_atoms,), (10.0 * n_atoms,), 7.0), 2, experience.speeds).n_parts


def test_a_hiccup_changes_no_plan():
    experience = Experience(parts_meet=True)
    assert n_parts(experience, 1000) == 2
    for wait in (0.04, 2e-4, 2e-4, 0.04, 2e-4, 2e-4, 2e-4, 0.04):
        note(experience, 1000, wait)
        assert n_parts(experience, 1000) == 2
    assert experience.speeds.greeting < 1e-3


def test_meetings_that_are_slow_speak_against_parts_until_they_are_forgotten():
    experience = Experience(parts_meet=True)
    for k in range(4):
        assert n_parts(experience, 1000) == (2 if k < 3 else 1)
        note(experience, 1000, 0.04)
    experience.forget_meetings()
    assert n_parts(experience, 1000) == 2
    for _ in range(3):
        note(experience, 1000, 2e-4)
    assert n_parts(experience, 1000) == 2


def test_what_small_structures_take_is_not_taken_for_each_atom_of_large_ones():
    experience = Experience(parts_meet=True)
    for _ in range(5):
        note(experience, 60, 2e-3, n_structures=2)
    assert experience.speeds.greeting == pytest.approx(1e-3, rel=0.1)
    assert experience.speeds.meeting == 1e-6
    assert n_parts(experience, 60) == 1
    assert n_parts(experience, 20_000) == 2
    for _ in range(5):
        note(experience, 20_000, 0.101)
    assert experience.speeds.greeting == pytest.approx(1e-3, rel=0.1)
    assert experience.speeds.meeting == pytest.approx(5e-6, rel=0.01)


def test_parts_that_do_not_meet_cost_nothing_for_it():
    experience = Experience(parts_meet=False)
    experience.forget_meetings()
    assert experience.speeds.meeting == experience.speeds.greeting == 0


def test_what_a_centre_takes():
    experience = Experience(parts_meet=True)
    note(experience, 1000, 2e-4)
    assert experience.speeds.atom == pytest.approx(BEAT)
    experience.note([None, None], np.zeros(2), np.zeros(2), 1.0)  # nothing to learn from
    assert experience.speeds.atom == pytest.approx(BEAT)
