"""One training on systems in every format, which do not all have the same labels."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dpserver.models import checkpoint
from dpserver.train.config import load_input
from dpserver.train.loop import Trainer
from tests.cli import commands
from tests.train import teacher
from tests.train.datasets import to_hdf5


def to_mixed(folder: Path, target: Path) -> None:
    """The same system in the mixed-type layout, its atoms in the reverse order behind two empty places."""
    types = np.loadtxt(folder / "type.raw", dtype=int)[::-1]
    target.mkdir()
    (target / "type_map.raw").write_text((folder / "type_map.raw").read_text())
    np.savetxt(target / "type.raw", np.zeros(len(types) + 2), fmt="%d")
    for part in sorted(folder.glob("set.*")):
        (target / part.name).mkdir()
        n_frames = len(np.load(part / "energy.npy"))
        for file in part.glob("*.npy"):
            values = np.load(file)
            if file.stem in ("coord", "force"):
                reverse = values.reshape(n_frames, -1, 3)[:, ::-1]
                values = np.concatenate([np.zeros((n_frames, 2, 3)), reverse], axis=1).reshape(n_frames, -1)
            np.save(target / part.name / file.name, values)
        np.save(target / part.name / "real_atom_types.npy", np.tile(np.concatenate([[-1, -1], types]), (n_frames, 1)))


@pytest.fixture
def source(tmp_path: Path) -> Path:
    """An input with five systems, of which the third has no virial and the last only that and the energy."""
    h5py = pytest.importorskip("h5py")
    ase = pytest.importorskip("ase")
    io = pytest.importorskip("ase.io")
    path = teacher.write_input(tmp_path, numb_steps=12)
    teacher.write_npy(tmp_path / "a", 2, seed=4)
    with h5py.File(tmp_path / "b.hdf5", "w") as file:
        to_hdf5(tmp_path / "a", file.create_group("one/b"))
    teacher.write_npy(tmp_path / "c", 2, seed=5, has_virial=False)
    to_mixed(tmp_path / "a", tmp_path / "d")
    images = []
    for frame in teacher.write_npy(tmp_path / "e", 2, seed=6):
        result = teacher.teacher().evaluate(frame)
        symbols = [("O", "H")[t] for t in frame.types]
        atoms = ase.Atoms(symbols, frame.positions, cell=frame.cell[0], pbc=True)
        atoms.info.update(energy=float(result.energy[0]), virial=result.virial[0])
        images.append(atoms)
    io.write(tmp_path / "e.xyz", images, format="extxyz")
    values = json.loads(path.read_text())
    systems = ["a", "b.hdf5#/one", "c", "d", "e.xyz"]
    values["training"]["training_data"] = {"systems": systems, "batch_size": 2, "auto_prob": "prob_uniform"}
    path.write_text(json.dumps(values))
    return path


def test_training(source: Path) -> None:
    trainer = Trainer(load_input(source), source.parent)
    names = [Path(s.data.name).name for s in trainer.systems]
    assert names == ["a", "b", "c", "d", "e.xyz"]
    assert [sorted(s.data.labels) for s in trainer.systems] == [
        ["energy", "forces", "virial"],
        ["energy", "forces", "virial"],
        ["energy", "forces"],
        ["energy", "forces", "virial"],
        ["energy", "virial"],
    ]
    (no_forces, no_virial) = trainer.notes
    assert no_forces.startswith("no forces in ")
    assert "e.xyz" in no_forces
    assert no_virial.startswith(f"no virial in {source.parent / 'c'}: ")
    assert trainer.run()
    assert set(trainer.validate(whole=True)) == {"total", "e", "f", "v"}


def test_the_same_system_in_three_formats_costs_the_same(source: Path) -> None:
    trainer = Trainer(load_input(source), source.parent)
    totals = []
    for k in (0, 1, 3):
        graph, labels = trainer.systems[k].batch([0, 1], trainer.potential.device)
        totals.append(trainer.loss(trainer.potential(graph), labels, 1e-3).rmse())
    for other in totals[1:]:
        assert other == pytest.approx(totals[0], rel=1e-12)
    assert set(totals[0]) == {"total", "e", "f", "v"}


def test_a_system_without_a_label_goes_without_that_term(source: Path) -> None:
    trainer = Trainer(load_input(source), source.parent)
    lr = trainer.lr(0)
    graph, labels = trainer.systems[2].batch([0, 1], trainer.potential.device)
    found = trainer.loss(trainer.potential(graph), labels, lr)
    squares = {name: rmse**2 for name, rmse in found.rmse().items()}
    assert set(squares) == {"total", "e", "f"}
    n_atoms = graph.frames.n_atoms // 2
    expected = 0.02 * n_atoms * squares["e"] + 1000.0 * squares["f"]
    assert squares["total"] == pytest.approx(expected, rel=1e-12)


def test_the_command_says_what_is_missing(
    source: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(source.parent)
    commands.run(monkeypatch, "train", source, "-o", "w.pt")
    said = capsys.readouterr().err
    assert "warning: no virial in c: there the loss goes without that term" in said
    commands.run(monkeypatch, "test", "-m", "w.pt", "--train-data", source)
    assert "all 5 systems" in capsys.readouterr().out
    assert checkpoint.load("w.pt").species == ("O", "H")
