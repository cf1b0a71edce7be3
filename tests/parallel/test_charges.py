"""Charges of structures in parts: ranks that are threads, and what they say against one that has the whole."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from dpserver.engine import Accompanied
from dpserver.engine.runner import Runner
from dpserver.errors import DeviceError, StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.models.committee import Committee
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.parallel.meeting import Meeting
from dpserver.parallel.pieces import Pieces
from dpserver.parallel.plan import Decompose, Plan, Sizes, Speeds
from dpserver.parallel.ranked import RankedModel
from dpserver.parallel.shares import Form
from tests import structures
from tests.models import test_electrostatics, test_tensors
from tests.parallel.charged import ChargedSprings
from tests.parallel.test_ranked import moved
from tests.ranks import ranked

OPEN = (False, False, False)
BATCHES = {
    "one": structures.water((4, 3, 3)),
    "triclinic": structures.triclinic(),
    "droplet": structures.water((3, 3, 3), None, OPEN),
    "charged": Frames.single(*(lambda w: (w.positions[1:], w.types[1:], w.cell[0]))(structures.water((3, 2, 2)))),
    "ion": Frames.single([[0.0, 0.0, 0.0]], [1], np.eye(3) * 9),
    "beads": Frames.concatenate(structures.water(seed=k) for k in range(5)),
    "mixed": Frames.concatenate(
        [structures.water((4, 4, 4)), structures.cluster(), structures.cubic(), structures.water((2, 2, 2), None, OPEN)]
    ),
}


def agree(found: ForceResult, expected: ForceResult, tolerance: float = 1e-12) -> None:
    for name in ("energy", "forces", "virial", "atom_energy"):
        a, b = getattr(found, name), getattr(expected, name)
        np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * max(1.0, np.abs(b).max()), err_msg=name)


@pytest.mark.parametrize(
    ("n_ranks", "method", "way"),
    [
        (1, "auto", Decompose.SPACE),
        (2, "pme", Decompose.SPACE),
        (3, "ewald", Decompose.SPACE),
        (4, "auto", Decompose.SPACE),
        (4, "pme", Decompose.AUTO),
        (2, "auto", Decompose.BEADS),
    ],
)
def test_ranks_say_what_one_says(n_ranks, method, way):
    model = ChargedSprings(method=method)
    with ranked(model, n_ranks, lambda rank, file: ChargedSprings(method=method), decompose=way) as found:
        found.warm_up()
        for name, frames in BATCHES.items():
            for step in range(3):
                now = moved(frames, step) if step else frames
                agree(found.evaluate(now), model.evaluate(now))
            if name == "one" and way is Decompose.SPACE and n_ranks > 1:
                assert f"in {n_ranks} parts" in found.choice


@given(
    n_ranks=st.integers(2, 4),
    way=st.sampled_from([Decompose.SPACE, Decompose.AUTO]),
    batches=st.lists(
        st.lists(
            st.tuples(st.booleans(), st.sampled_from([(1, 1, 1), (2, 1, 1), (2, 2, 1)]), st.integers(0, 7)),
            min_size=1,
            max_size=4,
        ),
        min_size=1,
        max_size=4,
    ),
    method=st.sampled_from(["ewald", "pme"]),
)
@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.too_slow])
def test_any_batches_in_any_order(n_ranks, way, batches, method):
    """Neutral and charged ones, open and in a cell, cut or not, some of them over some of the ranks."""
    given_ = {"method": method, "accuracy": 1e-3}
    model = ChargedSprings(2.5, **given_)
    with ranked(model, n_ranks, lambda rank, file: ChargedSprings(2.5, **given_), decompose=way) as found:
        for batch in batches:
            parts = []
            for is_open, n, seed in batch:
                water = structures.water(n, structures.SHEAR, OPEN if is_open else (True, True, True), seed)
                keep = slice(seed % 3, None)
                parts.append(Frames.single(water.positions[keep], water.types[keep], water.cell[0], water.pbc[0]))
            frames = Frames.concatenate(parts)
            agree(found.evaluate(frames), model.evaluate(frames))


def test_groups_of_ranks_meet_by_themselves():
    """Four structures over two groups of two ranks; and one that is too small for its group among them."""
    model, ways = ChargedSprings(), []
    frames = Frames.concatenate([structures.water((3, 2, 2), seed=k) for k in range(3)] + [structures.atom(1)])

    def in_groups(sizes, n_ranks, speeds, decompose):
        ways.append(sizes.counts)
        return Plan(((0, 1), (2, 3), (0, 1), (2, 3)), 1.0)

    with (
        pytest.MonkeyPatch.context() as patch,
        ranked(model, 4, lambda rank, file: ChargedSprings()) as found,
    ):
        patch.setattr("dpserver.parallel.ranked.choose", in_groups)
        for step in range(2):
            now = moved(frames, step) if step else frames
            agree(found.evaluate(now), model.evaluate(now))
    assert ways


def in_the_part(what: Exception, who: int, rank: int, n: list[int]):
    """Fail in one rank, from its second evaluation on."""

    def mistake(frames: Frames) -> Exception | None:
        n[0] += 1
        return what if rank == who and frames.wholes is not None and n[0] > 1 else None

    return mistake


@pytest.mark.parametrize("moment", ["mistakes", "late"])
@pytest.mark.parametrize("who", [0, 2])
@pytest.mark.parametrize("error", [StructureError("not this one"), MemoryError("no room"), ZeroDivisionError("by 0")])
def test_a_part_that_fails_leaves_all_in_step(moment, who, error):
    frames = structures.water((3, 2, 2))
    kind = {StructureError: StructureError, MemoryError: MemoryError, ZeroDivisionError: DeviceError}[type(error)]
    models = [ChargedSprings(**{moment: in_the_part(error, who, rank, [0])}) for rank in range(3)]
    with ranked(models[0], 3, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        expected = ChargedSprings().evaluate(frames)
        agree(found.evaluate(frames), expected)
        for _ in range(2):
            with pytest.raises(kind, match=str(error)):
                found.evaluate(frames)
        for model in models:
            setattr(model, moment, None)
        agree(found.evaluate(frames), expected)


@pytest.mark.parametrize("way", [Decompose.SPACE, Decompose.AUTO])
def test_a_refusal_has_the_numbers_of_the_whole(way):
    """Two atoms on top of each other in the fifth structure of a batch, all of which are cut."""
    large = structures.water((3, 3, 3))
    overlap = large.positions.copy()
    overlap[60] = overlap[7] + 0.001
    bad = replace(large, positions=overlap)
    batch = [structures.water((3, 3, 3), seed=k) for k in range(4)]
    model = ChargedSprings()
    with ranked(model, 3, lambda rank, file: ChargedSprings(), decompose=way) as found:
        with pytest.raises(StructureError, match=r"^atoms (7 and 60|60 and 7) are"):
            found.evaluate(bad)
        with pytest.raises(StructureError, match=r"^frame 4: atoms (7 and 60|60 and 7) are"):
            found.evaluate(Frames.concatenate([*batch, bad, *batch]))
        outcomes = Runner(found).run([*batch, bad])
        assert isinstance(outcomes[4], StructureError)
        for outcome, frames in zip(outcomes[:4], batch, strict=True):
            agree(outcome, model.evaluate(frames))


def test_what_is_wrong_with_a_whole_is_said_before_it_is_cut():
    options = {"total_charge": 0.0}
    with ranked(
        ChargedSprings(**options), 3, lambda rank, file: ChargedSprings(**options), decompose=Decompose.SPACE
    ) as found:
        good = structures.water((3, 2, 2))
        agree(found.evaluate(good), ChargedSprings(**options).evaluate(good))
        n_messages = found.world.n_messages
        slab = structures.water((3, 3, 2), structures.SHEAR, (True, True, False))
        with pytest.raises(StructureError, match=r"frame 1 is periodic in 2 of 3 directions"):
            found.evaluate(Frames.concatenate([good, slab]))
        ion = Frames.single(good.positions[1:], good.types[1:], good.cell[0])
        with pytest.raises(StructureError, match=r"charges of frame 2 add up to \+0.8 e, the model is for \+0 e"):
            found.evaluate(Frames.concatenate([good, good, ion]))
        assert found.world.n_messages == n_messages


def refuses_a_huge_cell(found: RankedModel, lone: object) -> None:
    """Before anything is sent, by one rule for all numbers of ranks and threads."""
    water = structures.water((2, 2, 2))
    huge = Frames.single(water.positions, water.types, 3e3 * np.eye(3))
    message = r"^the charges of 24 atoms in a cell of 3000 × 3000 × 3000 Å would take a sum over .*"
    agree(found.evaluate(water), lone.evaluate(water), 1e-11)
    n_messages = found.world.n_messages
    with pytest.raises(StructureError, match=message) as alone:
        lone.evaluate(huge)
    for batch in (huge, Frames.concatenate([water, huge])):
        with pytest.raises(StructureError) as caught:
            found.evaluate(batch)
        assert str(caught.value) == str(alone.value)
    assert found.world.n_messages == n_messages
    agree(found.evaluate(water), lone.evaluate(water), 1e-11)


def test_a_cell_that_is_too_large_is_refused_before_it_is_cut():
    models = [ChargedSprings(threads=1 + rank) for rank in range(3)]
    with ranked(models[0], 3, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        for threads in (1, 3):
            refuses_a_huge_cell(found, ChargedSprings(threads=threads))


def full_in(monkeypatch, who: int) -> list[int]:
    """Let a rank run out of memory as it makes its share, as long as the list that is returned says so."""
    make, is_full = Form.frames, [False]

    def frames(form: Form, numbers, parts=None) -> Frames:
        if is_full[0] and isinstance(parts, Meeting) and parts.number == who:
            raise MemoryError("no room")
        return make(form, numbers, parts)

    monkeypatch.setattr(Form, "frames", frames)
    return is_full


@pytest.mark.parametrize("who", [0, 2])
def test_a_share_that_there_is_no_room_for_leaves_all_in_step(monkeypatch, who):
    is_full, frames = full_in(monkeypatch, who), structures.water((3, 2, 2))
    with ranked(ChargedSprings(), 3, lambda rank, file: ChargedSprings(), decompose=Decompose.SPACE) as found:
        for is_full[0] in (False, True, True, False):
            if is_full[0]:
                with pytest.raises(MemoryError, match="no room"):
                    found.evaluate(frames)
            else:
                agree(found.evaluate(frames), ChargedSprings().evaluate(frames))


@pytest.mark.parametrize("error", [MemoryError("no room"), ZeroDivisionError("by 0")])
@pytest.mark.parametrize("who", [0, 1])
def test_a_search_for_the_culprit_that_fails_leaves_all_in_step(who, error):
    """It was refused, whichever structure it was."""
    batch, is_on = Frames.concatenate(structures.water((3, 2, 2), seed=k) for k in range(3)), [True]

    def mistake(frames: Frames) -> Exception | None:
        return (StructureError("not these") if frames.n_frames > 1 else error) if is_on[0] else None

    models = [ChargedSprings(mistakes=mistake if rank == who else None) for rank in range(2)]
    with ranked(models[0], 2, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        for is_on[0] in (True, True, False):
            if is_on[0]:
                with pytest.raises(StructureError, match=r"^not these$"):
                    found.evaluate(batch)
            else:
                agree(found.evaluate(batch), ChargedSprings().evaluate(batch))


@pytest.mark.parametrize("who", [0, 1])
def test_a_search_that_there_is_no_room_for_leaves_all_in_step(monkeypatch, who):
    """The share cannot even be made a second time."""
    is_full, frames = full_in(monkeypatch, who), structures.water((3, 2, 2))

    def refuse(_: Frames) -> Exception:
        is_full[0] = True
        return StructureError("not this one")

    models = [ChargedSprings(mistakes=refuse if rank == who else None) for rank in range(2)]
    with ranked(models[0], 2, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        for _ in range(2):
            is_full[0] = False
            with pytest.raises(StructureError, match=r"^not this one$"):
                found.evaluate(frames)
        is_full[0], models[who].mistakes = False, None
        agree(found.evaluate(frames), ChargedSprings().evaluate(frames))


@pytest.mark.parametrize("n_ranks", [2, 4])
def test_all_ranks_warm_up_where_charges_have_to_add_up(n_ranks):
    seen: list[int] = []

    def count(frames: Frames) -> None:
        seen.append(frames.n_atoms if frames.is_ghost is None else int((~frames.is_ghost).sum()))

    models = [ChargedSprings(total_charge=0.0, late=count) for _ in range(n_ranks)]
    with ranked(models[0], n_ranks, lambda rank, file: models[rank]) as found:
        found.warm_up()
        assert seen == [2] * n_ranks
        agree(found.evaluate(BATCHES["one"]), models[0].evaluate(BATCHES["one"]))


def test_structures_that_are_too_small_for_a_cut_are_dealt_out():
    """Of atoms on two ranks each rank has as many, where neither can have a part."""
    models = [ChargedSprings() for _ in range(2)]
    atoms = Frames.concatenate(structures.atom(k % 2) for k in range(6))
    with ranked(models[0], 2, lambda rank, file: models[rank], decompose=Decompose.SPACE) as found:
        agree(found.evaluate(atoms), ChargedSprings().evaluate(atoms))
        assert [model.n_evaluations for model in models] == [1, 1]
        assert found.choice == "whole structures over 2 ranks"
        big = structures.water((4, 3, 3))
        found.evaluate(Frames.concatenate([big, structures.atom(0)]))
        assert found.choice == "groups of 1 to 2 ranks for each structure, 2 ranks in all"


def test_time_spent_waiting_is_not_that_of_a_part(monkeypatch):
    """It is what meeting costs, which the next plan takes into account."""
    frames, seen, close = structures.water((4, 3, 3)), [], Meeting.close

    def wait_long(meeting: Meeting, *, is_good: bool) -> None:
        close(meeting, is_good=is_good)
        meeting.waited = 1e4 * (1 + meeting.number)

    monkeypatch.setattr(Meeting, "close", wait_long)
    with ranked(ChargedSprings(), 2, lambda rank, file: ChargedSprings(), decompose=Decompose.SPACE) as found:
        monkeypatch.setattr(found._balance, "note", lambda frame, cut, seconds: seen.append(seconds))
        speeds = found._experience.speeds
        for k in range(4):
            assert speeds.greeting < 1e-3, k
            found.evaluate(frames)
        assert speeds.greeting == pytest.approx(1e4)
        found._decompose = Decompose.AUTO
        found.evaluate(structures.water((4, 4, 3)))
        assert found.choice == "whole structures over 1 rank"
    for seconds in seen[:2]:
        assert seconds == pytest.approx([-1e4, -2e4], rel=0.1)


def test_parts_that_meet_are_tried_again(monkeypatch):
    """Slow meetings are no reason for ever: what was slow may be over, and a measurement costs a few evaluations."""
    monkeypatch.setattr("dpserver.parallel.ranked.choose", by_greeting)
    monkeypatch.setattr("dpserver.parallel.experience.Usual.note", lambda usual, seconds: 1.0)
    atoms, parts = structures.water((2, 1, 1)), []
    with ranked(ChargedSprings(), 2, lambda rank, file: ChargedSprings()) as found:
        for _ in range(125):
            found.evaluate(atoms)
            parts.append("parts" in found.choice)
    assert parts == [True] * 3 + [False] * 97 + [True] * 10 + [False] * 15


def by_greeting(sizes: Sizes, n_ranks: int, speeds: Speeds, decompose: Decompose) -> Plan:
    """In parts, unless it is known that they take long to meet."""
    ranks = (0,) if speeds.greeting > 0.5 else tuple(range(n_ranks))
    return Plan((ranks,) * len(sizes.counts), 1.0)


def test_models_beside_charges_come_from_all_ranks():
    def model() -> Accompanied:
        config = {
            "type_map": ["B", "A"],
            "descriptor": {**test_tensors.DESCRIPTOR, "sel": [60, 120], "rcut": 4.0},
            "fitting_net": {"neuron": [6], "type": "dipole"},
        }
        return Accompanied(ChargedSprings(), TensorModel(parse(ModelConfig, config), seed=5))

    frames = structures.water((3, 3, 2))
    with ranked(model(), 2, lambda rank, file: model(), decompose=Decompose.SPACE) as found:
        result, expected = found.evaluate(frames), model().evaluate(frames)
        agree(result, expected)
        np.testing.assert_allclose(result.responses.dipole, expected.responses.dipole, rtol=1e-9, atol=1e-12)
        assert "in 2 parts" in found.choice


LEVELS = {
    "fixed": {"total_charge": None},
    "learnt": {"trainable": True, "total_charge": 1.0},
    "surroundings": {"environment": {"neuron": [6]}},
    "both": {"trainable": True, "environment": {"neuron": [6], "scale": 0.3}, "method": "pme"},
}


def fast(seed: int = 3, **options: object) -> Potential:
    descriptor = {**test_electrostatics.MODEL["descriptor"], "sel": [60, 120], "rcut": 3.0}
    found = test_electrostatics.make(seed, descriptor, accuracy=1e-6, **options)
    found.accelerate(threads=1)
    return found


@pytest.mark.parametrize("level", LEVELS)
def test_potentials_with_charges(level):
    model, other = fast(**LEVELS[level]), fast(**LEVELS[level])
    assert model.can_cut
    assert model.has_long_range
    with ranked(model, 2, lambda rank, file: other, decompose=Decompose.SPACE) as found:
        found.warm_up()
        for name in ("one", "triclinic", "droplet", "mixed", "ion"):
            now = moved(BATCHES[name], 1, 0.01)
            agree(found.evaluate(now), model.evaluate(now), 1e-11)
            is_cut = "in 2 parts" in found.choice
            assert is_cut or name not in ("one", "mixed"), name


def test_a_committee_of_which_some_have_charges():
    kinds = [{"trainable": True}, {"environment": {"neuron": [6]}}]

    def committee() -> Committee:
        found = Committee([*(fast(k, **options) for k, options in enumerate(kinds)), fast(7).without_charges()])
        assert not found.can_cut
        found.accelerate(threads=1)
        return found

    model, other, frames = committee(), committee(), structures.water((3, 2, 2))
    assert model.can_cut
    with ranked(model, 2, lambda rank, file: other, decompose=Decompose.SPACE) as found:
        result, expected = found.evaluate(frames), model.evaluate(frames)
        agree(result, expected, 1e-11)
        np.testing.assert_allclose(result.committee.forces, expected.committee.forces, rtol=0, atol=1e-10)


@pytest.mark.parametrize("make", [fast, lambda: accelerated(Committee([fast(1).without_charges(), fast(2)]))])
def test_a_potential_refuses_a_cell_that_is_too_large_before_it_is_cut(make):
    model, other = make(), make()
    with ranked(model, 2, lambda rank, file: other, decompose=Decompose.SPACE) as found:
        refuses_a_huge_cell(found, model)


def accelerated(committee: Committee) -> Committee:
    committee.accelerate(threads=1)
    return committee


def test_by_torch_charges_are_never_cut():
    plain = test_electrostatics.make(total_charge=None)
    assert not plain.can_cut
    assert plain.without_charges().can_cut


def test_one_process_does_not_cut_what_has_to_meet():
    full = lambda frames: MemoryError("no room") if frames.n_atoms > 60 else None  # noqa: E731
    with pytest.raises(MemoryError, match="no room"):
        Pieces(ChargedSprings(mistakes=full)).evaluate(structures.water((3, 3, 3)))
