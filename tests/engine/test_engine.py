from __future__ import annotations

import numpy as np

from dpserver.engine import Assigner, Engine, Order, Request
from dpserver.engine.engine import without_padding
from dpserver.errors import StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.ipi import Forces, Structures
from tests import structures
from tests.doubles import Faulty, PairModel

ORDER = Order(("O", "H", "H"), "--species")


def request(model: PairModel, *frames: Frames) -> Request:
    sent = Structures(np.stack([f.positions for f in frames]), np.concatenate([f.cell for f in frames]))
    return Request(sent, Assigner(model, ORDER, "x"))


def check(answer: object, *frames: Frames) -> None:
    assert isinstance(answer, Forces)
    assert answer.energy.shape == (len(frames),)
    for k, frame in enumerate(frames):
        expected = PairModel().evaluate(frame)
        np.testing.assert_array_equal(answer.energy[k], expected.energy[0])
        np.testing.assert_array_equal(answer.forces[k], expected.forces)
        np.testing.assert_array_equal(answer.virial[k], expected.virial[0])


def test_requests_of_different_sizes_share_one_evaluation():
    model = PairModel()
    a, b = structures.cubic(), structures.cluster()
    answers = Engine(model).answer([request(model, a), request(model, b)])
    assert model.batches == [2]
    check(answers[0], a)
    check(answers[1], b)


def test_a_refused_request_costs_the_others_nothing():
    model = PairModel()
    good, bad = structures.cubic(), structures.cubic(5)
    bad.positions[4] = np.nan
    odd = Structures(good.positions[None, :4], good.cell)
    answers = Engine(model).answer(
        [request(model, bad), request(model, good), Request(odd, Assigner(model, ORDER, "x"))]
    )
    assert isinstance(answers[0], StructureError)
    assert "position of atom 4 is not finite" in str(answers[0])
    check(answers[1], good)
    assert isinstance(answers[2], StructureError)
    assert "sent 4 atoms" in str(answers[2])
    assert model.batches == [1]


def test_a_bug_in_one_request_costs_the_others_nothing(monkeypatch, caplog):
    model = PairModel()
    good, broken = request(model, structures.cubic()), request(model, structures.cubic(5))
    monkeypatch.setattr(broken.assigner, "frames", lambda structures: 1 // 0)
    answers = Engine(model).answer([broken, good])
    assert isinstance(answers[0], StructureError)
    assert "internal error: ZeroDivisionError" in str(answers[0])
    check(answers[1], structures.cubic())
    assert "the species of a request could not be found" in caplog.text


def test_copies_that_fill_a_batch_up_are_answered_and_not_computed():
    model = PairModel()
    a, b = structures.cubic(1), structures.cubic(2)
    (answer,) = Engine(model).answer([request(model, a, b, b, b)])
    assert model.batches == [2]
    check(answer, a, b, b, b)


def test_only_trailing_copies_are_padding():
    a, b = structures.cubic(1), structures.cubic(2)
    model = PairModel()
    for frames, n_real in [((a, a, b), 3), ((a, b, a), 3), ((a, a, a), 1), ((a,), 1), ((a, b, b), 2)]:
        assert without_padding(request(model, *frames).structures).n_frames == n_real


def test_the_same_atoms_in_another_cell_are_no_copy():
    a = structures.cubic()
    sent = Structures(np.stack([a.positions] * 2), np.concatenate([a.cell, 1.01 * a.cell]))
    assert without_padding(sent).n_frames == 2


def test_a_request_that_is_too_large_is_evaluated_in_pieces_and_answered_whole():
    model = PairModel()
    engine = Engine(model, max_atoms=48)
    frames = [structures.cubic(seed) for seed in (1, 2, 3, 4, 5, 5)]
    answers = engine.answer([request(model, *frames), request(model, structures.cluster())])
    assert model.batches == [2, 1, 2, 1]
    check(answers[0], *frames)
    check(answers[1], structures.cluster())


def test_what_the_memory_holds_is_told():
    def fault(frames: Frames, result: ForceResult) -> ForceResult:
        if frames.n_frames > 2:
            raise MemoryError("full")
        return result

    model = Faulty(fault)
    engine = Engine(model, max_atoms=1000)
    assert engine.max_atoms == 1000
    frames = [structures.cubic(seed) for seed in range(4)]
    check(engine.answer([request(model, *frames)])[0], *frames)
    assert engine.max_atoms == 48


def test_nothing_asked():
    assert Engine(PairModel()).answer([]) == []
