"""Charges of structures in parts that have no answer: who says so, and that all ranks stay in step."""

from __future__ import annotations

from dataclasses import replace

import pytest

from dpserver.engine.runner import Runner
from dpserver.errors import DeviceError, StructureError
from dpserver.frames import Frames
from dpserver.parallel.meeting import Meeting
from dpserver.parallel.pieces import Pieces
from dpserver.parallel.plan import Decompose
from dpserver.parallel.shares import Form
from tests import structures
from tests.parallel.charged import ChargedSprings, agree, refuses_a_huge_cell
from tests.ranks import ranked


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


def test_one_process_does_not_cut_what_has_to_meet():
    full = lambda frames: MemoryError("no room") if frames.n_atoms > 60 else None  # noqa: E731
    with pytest.raises(MemoryError, match="no room"):
        Pieces(ChargedSprings(mistakes=full)).evaluate(structures.water((3, 3, 3)))
