"""Parameters that no message carries: who gives them, how they are read, and who is refused."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest

from dpserver.engine import Accompanied, Assigner, Engine, Order, Parameters, Request
from dpserver.engine.parameters import from_init, read_aparam, read_fparam, resolve
from dpserver.errors import ConfigError, StructureError
from dpserver.frames import ForceResult, Frames
from dpserver.ipi import Forces, Structures
from dpserver.models.parameters import Takes, check_parameters
from tests import structures
from tests.doubles import PairModel

ORDER = Order(("O", "H", "H"), "--species")


class Shifted(PairModel):
    """Adds f_0 + 10 f_1 to the energy of each frame, and the mean of each atom's parameter."""

    def __init__(self, takes: Takes) -> None:
        super().__init__()
        self.takes = takes

    def evaluate(self, frames: Frames) -> ForceResult:
        check_parameters(
            frames, self.takes.n_fparam, self.takes.n_aparam, has_default_fparam=self.takes.has_default_fparam
        )
        result = super().evaluate(frames)
        if frames.fparam is not None:
            result.energy[:] += frames.fparam @ [1.0, 10.0][: frames.fparam.shape[1]]
        if frames.aparam is not None:
            result.energy[:] += [frames.aparam[frames.frame_idx == k].mean() for k in range(frames.n_frames)]
        return result


def assigned(
    model: PairModel, init: Mapping[str, str] | None = None, given: Parameters | None = None, n_frames: int = 1
) -> Frames:
    assigner = Assigner(model, ORDER, "unix:x", given=given)
    assigner.parameters = init or {}
    return assigner.frames(sent(n_frames))


def sent(n_frames: int = 1) -> Structures:
    frame = structures.cubic()
    return Structures(np.stack([frame.positions] * n_frames), np.repeat(frame.cell, n_frames, axis=0))


@pytest.mark.parametrize("text", ["0.5 1.2", "0.5,1.2", "[0.5, 1.2]", " [0.5 1.2] ", "(0.5,1.2)", "5e-1, 1.2"])
def test_numbers_are_read_in_any_dress(text: str) -> None:
    np.testing.assert_array_equal(read_fparam(text, "--fparam"), [0.5, 1.2])


@pytest.mark.parametrize("text", ["", "[]", "a", "0.5;1.2", "nan", "1 inf"])
def test_what_are_no_numbers(text: str) -> None:
    with pytest.raises(ConfigError, match=r"--fparam is .*, expected numbers such as"):
        read_fparam(text, "--fparam")


def test_the_peer_rules_over_the_endpoint_and_both_over_the_default(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    model, own = Shifted(Takes(2, 0, True, (7.0, 8.0))), Parameters(np.array([3.0, 4.0]), None, "--fparam")
    for init, given, expected, origin in (
        ({"fparam": "[1, 2]"}, own, [1.0, 2.0], "the peer's INIT parameters"),
        ({}, own, [3.0, 4.0], "--fparam"),
        ({}, None, [7.0, 8.0], "the model's default"),
    ):
        caplog.clear()
        np.testing.assert_array_equal(assigned(model, init, given, 3).fparam, [expected] * 3)
        assert f"(fparam) are {expected[0]:g} {expected[1]:g}, from {origin}" in caplog.text


def test_a_default_that_only_the_model_knows_is_left_to_it() -> None:
    assert assigned(Shifted(Takes(1, 0, True))).fparam is None


@pytest.mark.parametrize(
    ("takes", "init", "given", "message"),
    [
        (Takes(1), {}, None, "takes 1 parameter fparam of each structure, and nothing says which. Give them with --fp"),
        (Takes(2), {"fparam": "0.5"}, None, "INIT parameters: 1 parameter fparam given, but the model takes 2 par"),
        (Takes(), {"fparam": "0.5"}, None, "1 parameter fparam given, but the model takes no parameters fparam; leave"),
        (Takes(), {"aparam": "0.5"}, None, "1 parameter aparam given, but the model takes no parameters aparam; leave"),
        (Takes(1), {"fparam": "warm"}, None, "the peer's INIT fparam is 'warm', expected numbers"),
        (
            Takes(1),
            {},
            Parameters(np.ones(2), None, "--fparam"),
            "--fparam: 2 parameters fparam given, but the model t",
        ),
        (Takes(0, 1), {}, None, "takes 1 parameter aparam of each atom, and nothing says which. Give them with --apar"),
        (
            Takes(0, 1),
            {"aparam": "1 2 3"},
            None,
            "INIT parameters: 3 parameters aparam given, but the structure has 24",
        ),
        (Takes(0, 1), {"aparam": "no.npy"}, None, r"the peer's INIT aparam no\.npy cannot be read: No such file"),
    ],
)
def test_who_is_refused(takes: Takes, init: dict[str, str], given: Parameters | None, message: str) -> None:
    with pytest.raises(StructureError, match=message):
        assigned(Shifted(takes), init, given)


@pytest.mark.parametrize("shape", [(24, 2), (48,)])
def test_parameters_of_atoms_from_a_file(tmp_path: Path, shape: tuple[int, ...]) -> None:
    values = np.arange(48.0)
    np.save(tmp_path / "a.npy", values.reshape(shape))
    for init, given in (
        ({"aparam": f"{tmp_path}/a.npy"}, None),
        ({}, Parameters(None, read_aparam(tmp_path / "a.npy", "--aparam"), "--aparam")),
    ):
        frames = assigned(Shifted(Takes(0, 2)), init, given, 2)
        np.testing.assert_array_equal(frames.aparam, np.tile(values.reshape(24, 2), (2, 1)))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is no .npy file of numbers"),
        (b"", "is no .npy file of numbers"),
        (np.array(["a"]), "expected numbers of shape"),
        (np.array(1.0), "expected numbers of shape"),
        (np.array([np.nan]), "holds numbers that are not finite"),
        (np.array([object()]), "is no .npy file of numbers"),
    ],
)
def test_files_that_cannot_be_used(tmp_path: Path, content: bytes | np.ndarray, message: str) -> None:
    path = tmp_path / "a.npy"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        np.save(path, content, allow_pickle=True)
    with pytest.raises(ConfigError, match=message):
        read_aparam(path, "--aparam")


def test_nothing_in_init_is_nothing_given() -> None:
    found = from_init({"template": "w.xyz", "fparam": ""})
    assert (found.fparam, found.aparam) == (None, None)
    assert resolve(Takes(), found, Parameters(), 24) == (None, None)


def test_peers_with_parameters_of_their_own_are_answered_in_one_batch() -> None:
    model = Shifted(Takes(2, 0, True, (0.0, 0.0)))
    requests, expected = [], []
    for init in ({"fparam": "1 2"}, {}, {"fparam": "-3 0.5"}, {"fparam": "7"}):
        assigner = Assigner(model, ORDER, "unix:x")
        assigner.parameters = init
        requests.append(Request(sent(2), assigner))
    bare = PairModel().evaluate(structures.cubic()).energy[0]
    expected = [bare + 21.0, bare, bare + 2.0]
    *answers, refused = Engine(model).answer(requests)
    assert model.batches == [3]  # of each request the second structure is a copy of the first
    for answer, energy in zip(answers, expected, strict=True):
        assert isinstance(answer, Forces)
        np.testing.assert_allclose(answer.energy, energy, rtol=1e-14)
    assert isinstance(refused, StructureError)


def test_peers_with_and_without_parameters_are_answered_apart_where_only_the_model_knows_its_default() -> None:
    model = Shifted(Takes(1, 0, True))
    requests = []
    for init in ({"fparam": "1"}, {}):
        assigner = Assigner(model, ORDER, "unix:x")
        assigner.parameters = init
        requests.append(Request(sent(), assigner))
    first, second = Engine(model).answer(requests)
    assert isinstance(first, Forces)
    assert isinstance(second, Forces)
    assert first.energy[0] - second.energy[0] == pytest.approx(1.0)


def test_a_model_with_another_beside_it_takes_what_either_takes() -> None:
    class Dipole:
        kind, species, takes, rcut = "dipole", ("H", "O"), Takes(1), 1.0

        def evaluate(self, frames: Frames, *, has_born_charges: bool = False) -> object:
            raise AssertionError

    assert Accompanied(Shifted(Takes(0, 2)), Dipole()).takes == Takes(1, 2)
    with pytest.raises(ConfigError, match="must take the same parameters, or none: 2 fparam and 0 aparam; 1 fparam"):
        Accompanied(Shifted(Takes(2)), Dipole())
