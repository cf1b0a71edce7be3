"""Training of DPA-1: descriptors with embedded types."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from dpserver.errors import ConfigError
from dpserver.models import checkpoint
from dpserver.models.config import SeAttenConfig
from dpserver.train.config import load_input
from dpserver.train.loop import StepReport, Trainer
from tests.train import teacher

SHAPE: dict[str, Any] = {"sel": "auto", "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 3, "attn": 4}
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_atten": {"type": "se_atten", "attn_layer": 2, "smooth_type_embedding": True, "trainable_ln": False},
    "without attention": {"type": "dpa1", "attn_layer": 0, "precision": "float32"},
    "se_atten_v2": {"type": "se_atten_v2", "attn_layer": 1},
}


def trainer(folder: Path, descriptor: dict[str, Any], restart: Path | None = None, **options: Any) -> Trainer:
    net = {"neuron": [10, 10], "precision": descriptor.get("precision", "default")}
    model = {**teacher.MODEL, "descriptor": {**SHAPE, **descriptor}, "fitting_net": net}
    path = folder / "input.json" if restart else teacher.write_input(folder, model, **options)
    return Trainer(load_input(path), folder, restart)


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_training_learns(tmp_path: Path, name: str) -> None:
    t = trainer(tmp_path, DESCRIPTORS[name], numb_steps=150)
    before = t.validate(whole=True)
    assert t.run()
    assert t.validate(whole=True)["f"] < (0.9 if "atten" in name else 0.6) * before["f"]
    assert t.potential.precision == ("mixed" if name == "without attention" else "double")


@pytest.mark.parametrize("name", DESCRIPTORS)
def test_restart_continues_to_the_same_numbers(tmp_path: Path, name: str) -> None:
    whole, lines = trainer(tmp_path, DESCRIPTORS[name], numb_steps=6), []
    whole.run(lines.append)
    interrupted = Trainer(load_input(tmp_path / "input.json"), tmp_path)
    assert not interrupted.run(should_stop=lambda: interrupted.step == 3)
    again = trainer(tmp_path, DESCRIPTORS[name], tmp_path / "model.ckpt-3.pt")
    rest: list[StepReport] = []
    assert again.run(rest.append)
    for a, b in zip(again.potential.parameters(), whole.potential.parameters(), strict=True):
        assert torch.equal(a, b)
    assert rest == lines[3:]


def test_sel_counts_all_neighbours_together(tmp_path: Path) -> None:
    t = trainer(tmp_path, DESCRIPTORS["se_atten"], numb_steps=1)
    most = 0
    for system in t.systems:
        for k in range(system.data.n_frames):
            most = max(most, int(torch.bincount(torch.from_numpy(system.edges(k).centre)).max()))
    config = t.potential.config.descriptor
    assert isinstance(config, SeAttenConfig)
    assert len(config.sel) == 1
    assert most * 1.1 <= int(config.sel[0]) + 1
    assert int(config.sel[0]) < most * 1.1 + 4


def test_layers_of_normalisation_may_be_left_alone(tmp_path: Path) -> None:
    t = trainer(tmp_path, DESCRIPTORS["se_atten"], numb_steps=3)
    t.run()
    for layer in t.potential.descriptor.attention:
        assert torch.equal(layer.scale, torch.ones_like(layer.scale))
        assert torch.equal(layer.shift, torch.zeros_like(layer.shift))
    t.save_model(tmp_path / "w.pt")
    assert json.dumps(checkpoint.read(tmp_path / "w.pt")["config"])


def test_what_would_depend_on_the_order_of_atoms_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"descriptor\.set_davg_zero must be true for se_atten"):
        trainer(tmp_path, {"type": "se_atten", "attn_layer": 0, "set_davg_zero": False})
