"""`dpserver serve` with parameters and with other models beside the one of energies, as a peer sees it."""

from __future__ import annotations

import json
import struct
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel
from dpserver.units import BOHR, HARTREE
from tests import structures
from tests.cli.commands import exit_code
from tests.patience import PATIENCE
from tests.peer import EXIT, GETFORCE, Line, Peer, posdata

CONFIG: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_e2_a", "sel": [30, 60], "rcut": 3.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2,
    },
}  # fmt: skip
FRAME = structures.cubic()
WATER = ("--species", "O H H")
IPI, ASE = b" ", b"\0"
"""What they send with INIT."""


def write_potential(path: Path, **fitting: Any) -> Potential:
    config = {**CONFIG, "fitting_net": {"neuron": [8], **fitting}}
    potential = Potential(parse(ModelConfig, config), seed=1)
    with torch.no_grad():
        for net in potential.fitting:
            net[-1].weight *= 10
    checkpoint.save(path, potential)
    return potential


def write_tensors(path: Path, kind: str, **fitting: Any) -> TensorModel:
    config = {**CONFIG, "fitting_net": {"type": kind, "neuron": [8], **fitting}}
    model = TensorModel(parse(ModelConfig, config), seed=2)
    checkpoint.save(path, model)
    return model


def ask(line: Line) -> tuple[float, bytes]:
    """Energy, eV, and extra of one structure."""
    line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
    raw = line.receive(12 + 8 + 4 + 24 * FRAME.n_atoms + 72 + 4)
    (energy,) = struct.unpack_from("=d", raw, 12)
    (length,) = struct.unpack_from("=i", raw, len(raw) - 4)
    return energy * HARTREE, line.receive(length)


def served(monkeypatch: pytest.MonkeyPatch, options: list[Any], play: Callable[[Line], None], init: bytes = IPI) -> int:
    """Serve one peer; the exit code."""
    with Peer() as peer:

        def run() -> None:
            with peer.accept() as line:
                line.handshake(init)
                play(line)

        thread = threading.Thread(target=run)
        thread.start()
        code = exit_code(monkeypatch, *options, "--connect", peer.endpoint, "--connections", "1", "--once")
        thread.join(PATIENCE)
        return code


@pytest.mark.parametrize(("init", "has_extras"), [(IPI, True), (ASE, False)])
def test_dipole_and_born_charges_go_to_ipi_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, init: bytes, has_extras: bool
) -> None:
    potential = write_potential(tmp_path / "w.pt")
    dipole, polar = (write_tensors(tmp_path / f"{kind}.pt", kind) for kind in ("dipole", "polar"))
    found: list[tuple[float, bytes]] = []

    def play(line: Line) -> None:
        found.append(ask(line))
        line.send(EXIT)

    options = ["--model", tmp_path / "w.pt", *WATER, "--dipole", tmp_path / "dipole.pt", "--born-charges"]
    assert served(monkeypatch, [*options, "--polar", tmp_path / "polar.pt"], play, init) == 0
    ((energy, extra),) = found
    assert energy == pytest.approx(potential.evaluate(FRAME).energy[0], rel=1e-9)
    if not has_extras:
        assert extra == b" "
        return
    told, expected = json.loads(extra), dipole.evaluate(FRAME, has_born_charges=True)
    assert expected.born_charges is not None
    np.testing.assert_allclose(told["dipole"], expected.total[0] / BOHR, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(told["BEC"], expected.born_charges.reshape(-1, 3), rtol=0, atol=1e-11)
    np.testing.assert_allclose(told["polarizability"], polar.evaluate(FRAME).total[0] / BOHR**3, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    ("fitting", "options", "init", "fparam"),
    [
        ({"numb_fparam": 2}, ["--fparam", "0.5,-1.2"], IPI, [0.5, -1.2]),
        ({"numb_fparam": 2}, ["--fparam", "9 9"], b" fparam : 0.5 -1.2 , ", [0.5, -1.2]),
        ({"numb_fparam": 2}, [], b" fparam : [0.5, -1.2] , ", [0.5, -1.2]),
        ({"numb_fparam": 1, "default_fparam": [0.25]}, [], ASE, [0.25]),
        ({"numb_fparam": 1, "default_fparam": [0.25]}, [], b" fparam : 0.75 , ", [0.75]),
    ],
)
def test_parameters_reach_the_model(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fitting: dict[str, Any],
    options: list[str],
    init: bytes,
    fparam: list[float],
) -> None:
    potential = write_potential(tmp_path / "w.pt", **fitting)
    found: list[float] = []

    def play(line: Line) -> None:
        found.append(ask(line)[0])
        line.send(EXIT)

    assert served(monkeypatch, ["--model", tmp_path / "w.pt", *WATER, *options], play, init) == 0
    expected = potential.evaluate(replace(FRAME, fparam=np.array([fparam]))).energy[0]
    other = potential.evaluate(replace(FRAME, fparam=np.array([fparam]) + 0.1)).energy[0]
    assert abs(expected - other) > 1e-4
    np.testing.assert_allclose(found, expected, rtol=1e-9)


def test_parameters_of_atoms_from_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    potential = write_potential(tmp_path / "w.pt", numb_aparam=1)
    aparam = np.linspace(-1, 1, FRAME.n_atoms)
    np.save(tmp_path / "a.npy", aparam)
    found: list[float] = []

    def play(line: Line) -> None:
        found.append(ask(line)[0])
        line.send(EXIT)

    assert served(monkeypatch, ["--model", tmp_path / "w.pt", *WATER, "--aparam", tmp_path / "a.npy"], play) == 0
    expected = potential.evaluate(replace(FRAME, aparam=aparam[:, None])).energy
    np.testing.assert_allclose(found, expected, rtol=1e-9)


@pytest.mark.parametrize(
    ("fitting", "init", "message"),
    [
        ({"numb_fparam": 1}, IPI, "the model takes 1 parameter fparam of each structure, and nothing says which"),
        ({"numb_fparam": 1}, b" fparam : 1 2 , ", "2 parameters fparam given, but the model takes 1 parameter fparam"),
        ({}, b" fparam : 1 , ", "1 parameter fparam given, but the model takes no parameters fparam; leave them out"),
        ({"numb_aparam": 1}, IPI, "the model takes 1 parameter aparam of each atom, and nothing says which"),
    ],
)
def test_a_peer_without_the_parameters_is_refused(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    fitting: dict[str, Any],
    init: bytes,
    message: str,
) -> None:
    write_potential(tmp_path / "w.pt", **fitting)

    def play(line: Line) -> None:
        line.send(posdata(FRAME.positions, FRAME.cell[0]), GETFORCE)
        assert line.is_closed()

    assert served(monkeypatch, ["--model", tmp_path / "w.pt", *WATER], play, init) == 4
    assert message in capsys.readouterr().err


def test_models_of_the_wrong_kind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_potential(tmp_path / "w.pt")
    for kind in ("dipole", "polar"):
        write_tensors(tmp_path / f"{kind}.pt", kind)
    model = ["--model", tmp_path / "w.pt"]
    for options, code, complaint in (
        (
            ["--model", tmp_path / "dipole.pt"],
            3,
            "which has no energy; it is served beside one that has: --model ener",
        ),
        ([*model, "--dipole", tmp_path / "w.pt"], 3, "w.pt is a model of energies, expected a model of dipoles or pol"),
        ([*model, "--dipole", tmp_path / "polar.pt"], 2, "is a model of the kind polar; give it with --polar"),
        ([*model, "--polar", tmp_path / "none.pt"], 3, "none.pt does not exist"),
    ):
        assert exit_code(monkeypatch, *options) == code
        assert complaint in capsys.readouterr().err


def test_what_does_not_suit_the_model_is_refused_before_anything_is_made_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    write_potential(tmp_path / "w.pt")
    write_tensors(tmp_path / "dipole.pt", "dipole", numb_aparam=1)

    def warm_up(_: Potential) -> None:
        pytest.fail("kernels are made for a command line that is refused")

    monkeypatch.setattr(Potential, "warm_up", warm_up)
    for options, complaint in (
        (["--fparam", "0.5"], "fparam"),
        (["--dipole", tmp_path / "dipole.pt", "--fparam", "0.5"], "fparam"),
        (["--polar", tmp_path / "dipole.pt"], "is a model of the kind dipole; give it with --dipole"),
        (["--warn-deviation", "0.1"], "--warn-deviation needs a committee"),
    ):
        assert exit_code(monkeypatch, "--model", tmp_path / "w.pt", *options) == 2
        assert complaint in capsys.readouterr().err
