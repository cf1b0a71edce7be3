from pathlib import Path

import numpy as np
import pytest

import dpserver
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.tensors import TensorModel
from dpserver.train.data import read_system
from tests.cli.commands import exit_code, run
from tests.train import teacher


@pytest.fixture
def model(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model that is 2 eV per oxygen off, beside data that are right."""
    monkeypatch.chdir(tmp_path)
    teacher.write_npy(tmp_path / "data" / "water", 4)
    potential = teacher.teacher()
    potential.energy_bias += potential.energy_bias.new_tensor([2.0, 0.0])
    checkpoint.save(tmp_path / "w.pt", potential, {"step": 7, "validation": {"e": 0.1, "f": 0.2}})
    return tmp_path / "w.pt"


def errors(path: Path) -> np.ndarray:
    data = read_system(path.parent / "data" / "water", ("O", "H"))
    result = dpserver.load(path, device="cpu").reference(data.frames)
    assert result.forces == pytest.approx(data.forces, abs=1e-10)
    return np.asarray(data.energy - result.energy)


@pytest.mark.parametrize("mode", ["change", "set"])
def test_fits_the_energies_of_the_species(model, monkeypatch, capsys, mode):
    run(monkeypatch, "change-bias", model, "-s", "data", "-m", mode, "-o", "new.pt")
    said = capsys.readouterr().err
    assert "RMSE of the energies of 4 frames: 667 →" in said
    assert abs(errors(model).mean()) == pytest.approx(16.0)
    assert errors(model.parent / "new.pt").mean() == pytest.approx(0.0, abs=1e-9) or mode == "set"
    card = checkpoint.read(model.parent / "new.pt")["training"]
    assert card["bias"]["n_frames"] == 4
    assert card["validation"] == {"f": 0.2}


def test_given_energies_go_beside_the_model(model, monkeypatch):
    run(monkeypatch, "change-bias", model, "-b", "-93.57 -187.1")
    stored = checkpoint.read(model.parent / "w_updated.pt")
    assert stored["state"]["energy_bias"].tolist() == [-93.57, -187.1]
    assert stored["training"]["bias"] == {"how": "given"}


def test_systems_may_be_listed_and_only_some_frames_taken(model, monkeypatch, capsys):
    (model.parent / "list").write_text("data/water\n\n")
    run(monkeypatch, "change-bias", model, "-f", "list", "-n", "3", "-o", "new.pt")
    assert "of 3 frames" in capsys.readouterr().err


def test_every_member_of_a_committee_is_changed(model, monkeypatch, capsys):
    one = checkpoint.read(model)
    other = teacher.teacher()
    checkpoint.write("two.pt", checkpoint.committee_of([one, checkpoint.contents(other)]))
    run(monkeypatch, "change-bias", "two.pt", "-s", "data", "-o", "new.pt")
    said = capsys.readouterr().err
    assert "member 1: " in said
    assert "member 2: " in said
    members = checkpoint.members_of(checkpoint.read("new.pt"))
    data = read_system("data/water", ("O", "H"))
    for member in members:
        energy = checkpoint.restore(member).evaluate(data.frames).energy
        assert energy == pytest.approx(data.energy, abs=1e-8)


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        ([], 2, "give data by -s or -f, or the energies by -b"),
        (["-s", "data", "-b", "1 2"], 2, "-s and -b exclude each other"),
        (["-b", "1"], 2, "expected 2 numbers, for O H"),
        (["-b", "1 x"], 2, "expected numbers in eV"),
        (["-s", "data", "-m", "shift"], 2, "--mode shift: expected change or set"),
        (["-s", "none"], 4, "none"),
        (["-f", "none"], 2, "cannot read --datafile none"),
        (["-s", "data", "-o", "w.pth"], 2, "a model file of dpserver is written; then dpserver export"),
        (["-s", "data", "-o", "no/w.pt"], 2, "expected a file name in an existing folder"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(model, monkeypatch, capsys, arguments, code, message):
    assert exit_code(monkeypatch, "change-bias", model, *arguments) == code
    said = capsys.readouterr().err
    assert message in said
    assert len(said.strip().splitlines()) == 1


def test_a_model_of_dipoles_has_no_energies(model, monkeypatch, capsys):
    section = {**teacher.MODEL, "descriptor": {**teacher.MODEL["descriptor"], "sel": [20, 40]}}
    section["fitting_net"] = {"type": "dipole", "neuron": [4]}
    checkpoint.save("mu.pt", TensorModel(parse(ModelConfig, section)))
    assert exit_code(monkeypatch, "change-bias", "mu.pt", "-s", "data") == 3
    assert "dipole" in capsys.readouterr().err
