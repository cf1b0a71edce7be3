import json

import numpy as np
import pytest
import torch

from dpserver.errors import ModelFileError
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests.cli.commands import run

WATER = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_e2_a", "sel": [20, 40], "rcut": 6.0, "rcut_smth": 0.5, "neuron": [5, 10], "axis_neuron": 3,
    },
    "fitting_net": {"neuron": [12, 12]},
}  # fmt: skip
LOCAL_FRAME = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "loc_frame", "sel_a": [4, 8], "sel_r": [6, 12], "rcut": 6.0,
        "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
    },
    "fitting_net": {"neuron": [12, 12]},
}  # fmt: skip


@pytest.fixture
def model(tmp_path):
    potential = Potential(parse(ModelConfig, WATER))
    potential.template = ("O", "H", "H") * 2
    potential.min_distance = np.array([[2.4, 0.9], [0.9, np.inf]])
    training = {"steps": 1000, "seed": 1, "validation": {"rmse_force": 0.04321098765}}
    checkpoint.save(tmp_path / "w.pt", potential, training)
    return tmp_path / "w.pt"


def test_the_card_names_what_matters(model, monkeypatch, capsys):
    run(monkeypatch, "info", str(model))
    card = capsys.readouterr().out
    for words in ("w.pt", "O H", "6 atoms per structure: 2 O, 4 H", "se_e2_a", "6 Å", "20 40", "12 12", "double"):
        assert words in card
    for words in ("steps", "1000", "validation", "rmse_force 0.043211", "2.400", "0.900"):
        assert words in card


def test_json_holds_everything_but_the_weights(model, monkeypatch, capsys):
    run(monkeypatch, "info", str(model), "--json")
    described = json.loads(capsys.readouterr().out)
    values = checkpoint.read(model)
    assert set(described) == {*values, "file", "bytes", "n_parameters", "tables"}
    assert 0 < described["tables"]["value"] < described["tables"]["first"] < 1e-9 < described["tables"]["second"]
    assert described["config"] == values["config"]
    assert described["training"] == values["training"]
    assert described["statistics"]["min_distance"] == [[2.4, 0.9], [0.9, None]]
    assert described["state"] == {name: list(tensor.shape) for name, tensor in values["state"].items()}


def test_charges_are_named(tmp_path, monkeypatch, capsys):
    charges = {"charges": {"O": -0.8, "H": 0.4}, "environment": {"neuron": [6]}, "sigma": 1.2}
    checkpoint.save(tmp_path / "w.pt", Potential(parse(ModelConfig, {**WATER, "electrostatics": charges})), {})
    run(monkeypatch, "info", str(tmp_path / "w.pt"))
    card = capsys.readouterr().out
    for words in ("O -0.8, H +0.4; Gaussians of 1.2 Å", "0.1 e times a net 6, tanh", "auto, forces to 1e-06"):
        assert words in card
    run(monkeypatch, "info", str(tmp_path / "w.pt"), "--json")
    assert json.loads(capsys.readouterr().out)["charges"] == {"O": -0.8, "H": 0.4}


def test_a_file_that_cannot_be_served_gets_no_card(model, monkeypatch, capsys):
    whole = checkpoint.read(model)
    weights = {name: tensor for name, tensor in whole["state"].items() if name != "energy_bias"}
    bad = {name: torch.full_like(tensor, torch.nan) for name, tensor in whole["state"].items()}
    for changes, message in (
        ({"config": {}}, "is inconsistent: its config lacks 'model' and 'precision'"),
        ({"state": weights}, "is inconsistent: its state lacks energy_bias"),
        ({"state": bad}, "holds weights that are not finite"),
        ({"training": 3}, "is inconsistent: its training is of type int, expected dict"),
    ):
        checkpoint.write(model, {**whole, **changes})
        with pytest.raises(ModelFileError, match=message):
            checkpoint.load(model)
        run(monkeypatch, "info", str(model), code=3)
        printed = capsys.readouterr()
        assert printed.out == ""
        assert message in " ".join(printed.err.split())
        assert len(printed.err.splitlines()) == 1


def test_a_model_of_mixed_compositions_in_local_frames(tmp_path, monkeypatch, capsys):
    checkpoint.save(tmp_path / "w.pt", Potential(parse(ModelConfig, LOCAL_FRAME)))
    run(monkeypatch, "info", str(tmp_path / "w.pt"))
    card = capsys.readouterr().out
    assert "loc_frame" in card
    assert "4 8 / 6 12" in card
    assert "no common order" in card
