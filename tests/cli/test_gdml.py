"""An sGDML model on the command line: served, shown, and refused where it is of no use."""

from __future__ import annotations

import json
import threading
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

import dpserver
from dpserver.frames import Frames
from tests.cli.commands import exit_code, run
from tests.models import gdml_models
from tests.patience import PATIENCE
from tests.peer import EXIT, GETFORCE, Peer, posdata

needs_sgdml = pytest.mark.skipif(find_spec("sgdml") is None, reason="needs the package sgdml")
CELL = 20.0 * np.eye(3)


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return gdml_models.write(tmp_path / "water.npz")


@needs_sgdml
def test_it_is_served(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In a large cell, as i-PI sends one for a molecule, and in the model's own order."""
    x = gdml_models.geometries()[0]
    expected = dpserver.load(model).evaluate(Frames.single(x, [0, 1, 1]))
    with Peer() as peer:

        def play() -> None:
            with peer.accept() as line:
                line.handshake()
                reply = line.ask(x, CELL)
                np.testing.assert_allclose(reply.energy, expected.energy, rtol=1e-10)
                np.testing.assert_allclose(reply.forces[0], expected.forces, atol=1e-10)
                np.testing.assert_allclose(reply.virial[0], expected.virial[0], atol=1e-10)
                line.send(EXIT)
                line.is_closed()

        thread = threading.Thread(target=play)
        thread.start()
        assert exit_code(monkeypatch, "--model", model, "--unix", peer.address, "--once") == 0
        thread.join(PATIENCE)
        assert not thread.is_alive()
    log = " ".join(capsys.readouterr().err.split())
    assert "water.npz: knows O, H, one molecule of 3 atoms, evaluated by sgdml" in log
    assert "from the model's own template; boundaries: periodic" in log


@needs_sgdml
@pytest.mark.parametrize(
    ("options", "n_molecules", "complaint"),
    [
        ((), 2, "6 atoms; this sGDML model knows one molecule of 3, in the order O H H"),
        (("--species", "H O H"), 1, "atom 0 is H; this sGDML model knows the order O H H and no other"),
    ],
)
def test_other_atoms_are_refused_by_their_number_and_order(
    options: tuple[str, ...],
    n_molecules: int,
    complaint: str,
    model: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Two molecules are twice the model's order, which other models would take; atoms that lie apart are no hint."""
    x = np.concatenate([gdml_models.geometries()[0] + [4.0 * k, 0.0, 0.0] for k in range(n_molecules)])
    with Peer() as peer:

        def play() -> None:
            with peer.accept() as line:
                line.handshake()
                line.send(posdata(x, CELL), GETFORCE)
                assert line.is_closed()

        thread = threading.Thread(target=play)
        thread.start()
        assert exit_code(monkeypatch, "--model", model, "--unix", peer.address, "--once", *options) == 4
        thread.join(PATIENCE)
        assert not thread.is_alive()
    assert complaint in " ".join(capsys.readouterr().err.split())


def test_the_card(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    run(monkeypatch, "info", model)
    card = capsys.readouterr().out
    for words in ("water.npz", "sGDML", "O H H, and no other", "12 structures", "2 of like atoms", "Ang, eV", "1.0.3"):
        assert words in card
    run(monkeypatch, "info", model, "--json")
    described = json.loads(capsys.readouterr().out)
    assert (described["format"], described["template"], described["n_train"]) == ("sgdml", ["O", "H", "H"], 12)


@pytest.mark.parametrize(
    ("command", "instead"),
    [
        (["import", "water.npz", "w.pt"], "there is nothing to import, serve it as it is"),
        (["export", "water.npz", "w.dp"], "its package `sgdml` trains and tests such models"),
        (["test", "water.npz", "data"], "`sgdml test water.npz DATASET.npz` tells its errors"),
        (["committee", "water.npz", "water.npz", "-o", "c.pt"], "a committee has members of dpserver and of"),
    ],
    ids=lambda given: given[0] if isinstance(given, list) else "",
)
def test_what_it_is_not_for(
    command: list[str], instead: str, model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(model.parent)
    (model.parent / "data").mkdir()
    assert exit_code(monkeypatch, *command) == 3
    (line,) = capsys.readouterr().err.splitlines()
    assert "is an sGDML model, which dpserver serves (dpserver --model water.npz) and" in line
    assert instead in line


@needs_sgdml
def test_no_sizes_to_time(model: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    assert exit_code(monkeypatch, "bench", model) == 3
    assert "is an sGDML model, of one molecule" in " ".join(capsys.readouterr().err.split())
