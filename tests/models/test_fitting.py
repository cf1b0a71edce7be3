"""Fitting nets that take parameters, that are less their value in vacuum, and that are linear or not trained."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, ClassVar

import numpy as np
import pytest
import torch

from dpserver.errors import ConfigError, StructureError
from dpserver.frames import Floats, Frames
from dpserver.models import folding
from dpserver.models.committee import Committee
from dpserver.models.parameters import Takes, suited, taken_by
from dpserver.models.potential import Potential
from tests import structures
from tests.contract import EXACT, TABULATED, PotentialContract, assert_close
from tests.models.test_se_e2_a import every_cell, make


def with_parameters(frames: Frames, n_fparam: int = 0, n_aparam: int = 0, seed: int = 9) -> Frames:
    rng = np.random.default_rng(seed)
    return replace(
        frames,
        fparam=rng.normal(size=(frames.n_frames, n_fparam)) if n_fparam else None,
        aparam=rng.normal(size=(frames.n_atoms, n_aparam)) if n_aparam else None,
    )


def parametrised(**fitting: Any) -> Potential:
    """A small model whose statistics of parameters are not trivial."""
    n_fparam, n_aparam = fitting.get("numb_fparam", 0), fitting.get("numb_aparam", 0)
    potential = make(fitting=fitting, frames=with_parameters(every_cell(), n_fparam, n_aparam))
    generator = torch.Generator().manual_seed(4)
    for name, buffer in potential.fitting.named_buffers():
        buffer.copy_(torch.rand(buffer.shape, generator=generator, dtype=torch.float64) + name.endswith("std"))
    return potential


class TestFrameParameters(PotentialContract):
    fitting: ClassVar[dict[str, Any]] = {"numb_fparam": 2, "default_fparam": [0.3, -0.4]}

    def potential(self) -> Potential:
        return parametrised(**self.fitting)

    def frames(self) -> Frames:
        return with_parameters(every_cell(), 2)


class TestVacuum(TestFrameParameters):
    fitting: ClassVar = {"numb_fparam": 2, "default_fparam": [0.3, -0.4], "atom_ener": [-3.0, None]}


class TestVacuumWithoutParameters(TestFrameParameters):
    """Which the kernels know too."""

    fitting: ClassVar = {"atom_ener": [-3.0, 0.0]}

    def frames(self) -> Frames:
        return every_cell()


class TestLinear(TestFrameParameters):
    fitting: ClassVar = {"neuron": [], "numb_fparam": 2, "default_fparam": [0.3, -0.4]}


class TestLinearWithoutParameters(TestFrameParameters):
    fitting: ClassVar = {"neuron": []}

    def frames(self) -> Frames:
        return every_cell()


def atom_energies(potential: Potential, frames: Frames) -> Floats:
    """By loops over the atoms, with the inputs of the nets put together one by one."""
    graph, fitting, config = potential.graph(frames), potential.fitting, potential.config.fitting_net
    energies = np.zeros(frames.n_atoms)
    for c, description in enumerate(potential.descriptor(graph, graph.vectors())):
        for row, atom in enumerate(graph.atoms[c].tolist()):
            extra = []
            if config.numb_fparam:
                assert frames.fparam is not None
                given = frames.fparam[frames.frame_idx[atom]]
                extra += list((given - fitting.fparam_avg.numpy()) * fitting.fparam_inv_std.numpy())
            if config.numb_aparam:
                assert frames.aparam is not None
                extra += list((frames.aparam[atom] - fitting.aparam_avg.numpy()) * fitting.aparam_inv_std.numpy())
            x = torch.cat([description.features[row].detach(), torch.tensor(extra, dtype=torch.float64)])
            energies[atom] = float(fitting.net_of(c)(x[None]).detach()) + float(potential.energy_bias[c])
    return energies


@pytest.mark.parametrize(("n_fparam", "n_aparam"), [(2, 0), (0, 2), (1, 3)])
def test_what_the_nets_are_given(n_fparam: int, n_aparam: int) -> None:
    potential = parametrised(numb_fparam=n_fparam, numb_aparam=n_aparam)
    frames = with_parameters(Frames.concatenate([structures.cubic(), structures.molecule()]), n_fparam, n_aparam)
    found = potential.evaluate(frames)
    np.testing.assert_allclose(found.atom_energy, atom_energies(potential, frames), rtol=1e-12)
    for k, frame in enumerate(frames):
        np.testing.assert_allclose(found[k].forces, potential.evaluate(frame).forces, rtol=0, atol=EXACT.forces)


def test_parameters_matter() -> None:
    potential = parametrised(numb_fparam=1, numb_aparam=1)
    frames = with_parameters(structures.cubic(), 1, 1)
    before = potential.evaluate(frames).forces
    assert frames.fparam is not None
    assert frames.aparam is not None
    for other in (replace(frames, fparam=frames.fparam + 1), replace(frames, aparam=frames.aparam + 1)):
        assert np.abs(potential.evaluate(other).forces - before).max() > 1e-3


def test_an_atom_in_vacuum_has_the_energy_it_was_given() -> None:
    potential = make(fitting={"atom_ener": [-3.0, None]})
    potential.descriptor.davg.zero_()
    potential.energy_bias.copy_(torch.tensor([-3.0, 1.0]))
    assert potential.evaluate(structures.atom(0)).energy[0] == pytest.approx(-3.0, abs=1e-13)
    assert abs(potential.evaluate(structures.atom(1)).energy[0] - 1.0) > 1e-3


@pytest.mark.parametrize(
    ("takes", "frames", "message"),
    [
        ((1, 0), structures.cubic(), "takes 1 parameters fparam of each frame, and none are given"),
        ((0, 2), structures.cubic(), "takes 2 parameters aparam of each atom, and none are given"),
        ((0, 0), with_parameters(structures.cubic(), 1), "takes no parameters fparam, but 1 are given; leave them out"),
        ((2, 0), with_parameters(structures.cubic(), 1), r"expected the shape \(1, 2\), got \(1, 1\)"),
    ],
)
def test_frames_that_do_not_fit(takes: tuple[int, int], frames: Frames, message: str) -> None:
    fitting = {"numb_fparam": takes[0], "numb_aparam": takes[1]}
    potential = (
        make(fitting={})
        if takes == (0, 0)
        else Potential(
            make(fitting={}).config.model_copy(
                update={"fitting_net": make(fitting={}).config.fitting_net.model_copy(update=fitting)}
            )
        )
    )
    with pytest.raises(StructureError, match=message):
        potential.evaluate(frames)
    potential.accelerate()
    with pytest.raises(StructureError, match=message):
        potential.evaluate(frames)
    committee = Committee([potential, potential])
    with pytest.raises(StructureError, match=message):
        committee.evaluate(frames)


def test_members_of_a_committee_take_the_same_parameters() -> None:
    one, other = (parametrised(numb_fparam=1, default_fparam=[p]) for p in (0.1, 0.2))
    assert Committee([one, one]).takes == Takes(1, 0, True, (0.1,))
    with pytest.raises(ConfigError, match=r"member 2 takes 1 parameters of frames .*need the same ones"):
        Committee([one, other])


def test_what_a_model_has_no_use_for_is_left_out() -> None:
    frames = with_parameters(structures.cubic(), 1, 2)
    assert suited(frames, object()).fparam is suited(frames, object()).aparam is None
    potential = parametrised(numb_aparam=2)
    assert taken_by(potential) == Takes(0, 2)
    found = suited(frames, potential)
    assert found.fparam is None
    assert found.aparam is frames.aparam


def test_statistics_of_parameters() -> None:
    potential = parametrised(numb_fparam=2, numb_aparam=1)
    rng = np.random.default_rng(5)
    fparam = np.stack([rng.normal(3.0, 0.5, 40), np.full(40, 7.0)], axis=1)
    aparam = rng.normal(-1.0, 2.0, (90, 1))
    potential.fitting.fit_parameters(fparam, aparam, protect=1e-2)
    np.testing.assert_allclose(potential.fitting.fparam_avg, fparam.mean(axis=0))
    np.testing.assert_allclose(potential.fitting.fparam_inv_std, [1 / fparam[:, 0].std(), 100.0])
    np.testing.assert_allclose(potential.fitting.aparam_avg, aparam.mean(axis=0))
    np.testing.assert_allclose(potential.fitting.aparam_inv_std, 1 / aparam.std(axis=0))


def test_layers_that_are_not_trained() -> None:
    potential = make(fitting={"neuron": [6, 6], "trainable": [False, True, False]})
    for net in potential.fitting:
        assert [next(layer.parameters()).requires_grad for layer in net] == [False, True, False]
    assert all(p.requires_grad for p in potential.descriptor.parameters())
    frozen = make(fitting={"trainable": False})
    assert not any(p.requires_grad for p in frozen.fitting.parameters())


def test_kernels_know_parameters_of_frames(monkeypatch: pytest.MonkeyPatch) -> None:
    """Frames with several sets of parameters, in any order, against the reference; nothing is left to it."""
    potential = parametrised(numb_fparam=2, default_fparam=[0.3, -0.4], atom_ener=[-2.0, None])
    frames = every_cell()
    sets = np.array([[1.0, 0.5], [-0.5, 2.0], [0.3, -0.4]])
    frames = replace(frames, fparam=sets[np.arange(frames.n_frames) % 3])
    alike = replace(frames, fparam=sets[np.zeros(frames.n_frames, dtype=int)])
    cases = [frames, alike, replace(frames, fparam=None), frames[3]]
    expected = [potential.reference(case) for case in cases]
    potential.accelerate(1)
    for _ in range(2):
        potential.evaluate(frames)
    monkeypatch.setattr(Potential, "reference", lambda *_: pytest.fail("the reference was asked"))
    for case, result in zip(cases, expected, strict=True):
        found = potential.evaluate(case)
        assert_close(found, result.energy, result.forces, result.virial, TABULATED)
        np.testing.assert_allclose(found.atom_energy, result.atom_energy, rtol=0, atol=1e-8)


def test_changed_weights_are_folded_anew() -> None:
    potential = parametrised(numb_fparam=1)
    frames = with_parameters(structures.cubic(), 1)
    potential.accelerate(1)
    before = [potential.evaluate(frames) for _ in range(2)][-1].energy
    with torch.no_grad():
        potential.fitting[0][0].weight[-1] += 0.1
    after = [potential.evaluate(frames) for _ in range(2)][-1]
    assert abs(after.energy[0] - before[0]) > 1e-4
    expected = potential.reference(frames)
    assert_close(after, expected.energy, expected.forces, expected.virial, TABULATED)


def test_only_parameters_that_come_again_are_folded(monkeypatch: pytest.MonkeyPatch) -> None:
    potential = parametrised(numb_fparam=1)
    made: list[float] = []
    fold = folding.folded
    monkeypatch.setattr(folding, "folded", lambda m, fparam: made.append(float(fparam[0])) or fold(m, fparam))
    frame, pair = structures.molecule(), Frames.concatenate([structures.molecule()] * 3)
    potential.accelerate(1)

    def check(frames: Frames, *values: float) -> None:
        given = replace(frames, fparam=np.array(values)[:, None])
        found, expected = potential.evaluate(given), potential.reference(given)
        assert_close(found, expected.energy, expected.forces, expected.virial, TABULATED)

    for k in range(20):  # a ramp: none comes again
        check(frame, 0.1 * k)
    assert made == []
    check(pair, 7.0, 8.0, 7.0)
    check(pair, 7.0, 9.0, 7.0)  # one folded, one by the reference
    assert made == [7.0]
    check(frame, 9.0)
    check(frame, 7.0)
    assert made == [7.0, 9.0]


def test_a_large_structure_is_not_left_to_the_reference(monkeypatch: pytest.MonkeyPatch) -> None:
    potential = parametrised(numb_fparam=1)
    frames = with_parameters(structures.cubic(), 1)
    expected = potential.reference(frames)
    potential.accelerate(1)
    monkeypatch.setattr(folding, "_LARGE", frames.n_atoms)
    monkeypatch.setattr(Potential, "reference", lambda *_: pytest.fail("the reference was asked"))
    assert_close(potential.evaluate(frames), expected.energy, expected.forces, expected.virial, TABULATED)


def test_many_sets_of_parameters_are_left_to_the_reference() -> None:
    potential = parametrised(numb_fparam=1)
    frames = with_parameters(Frames.concatenate([structures.molecule()] * 9), 1)
    potential.accelerate(1)
    found, expected = potential.evaluate(frames), potential.reference(frames)
    np.testing.assert_array_equal(found.energy, expected.energy)


def test_a_skip_connection_around_the_parameters_is_left_to_the_reference() -> None:
    potential = parametrised(neuron=[25, 25], numb_fparam=1)  # 24 features and a parameter
    assert potential.fitting.net_of(0)[0].copies == 1
    frames = with_parameters(structures.cubic(), 1)
    expected = potential.reference(frames)
    potential.accelerate(1)
    np.testing.assert_array_equal(potential.evaluate(frames).forces, expected.forces)


def test_a_skip_connection_that_the_parameters_prevent_is_not_made() -> None:
    potential = parametrised(neuron=[24, 24], resnet_dt=True, numb_fparam=1)
    frames = with_parameters(structures.cubic(), 1)
    expected = potential.reference(frames)
    potential.accelerate(1)
    assert_close(potential.evaluate(frames), expected.energy, expected.forces, expected.virial, TABULATED)
