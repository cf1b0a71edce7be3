"""Every kind of model is trained, continued to the same numbers, saved and read again."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dpserver.models import checkpoint
from dpserver.train.config import load_input
from dpserver.train.loop import Trainer
from tests.cli.commands import run
from tests.train import teacher

SMOOTH: dict[str, Any] = {"sel": "auto", "rcut": 4.0, "rcut_smth": 1.0, "neuron": [4, 8]}
SE_E2_A: dict[str, Any] = {"type": "se_e2_a", "axis_neuron": 3, **SMOOTH}
SE_ATTEN: dict[str, Any] = {"type": "se_atten", "axis_neuron": 3, "attn": 4, "attn_layer": 1, "tebd_dim": 3, **SMOOTH}
FITTING: dict[str, Any] = {"neuron": [6, 6]}
TENSOR = {"loss": {"type": "tensor", "pref": 1.0, "pref_atomic": 1.0}}

KINDS: dict[str, dict[str, Any]] = {
    "excluded pairs": {
        "descriptor": {**SE_E2_A, "exclude_types": [[0, 0]], "type_one_side": True}, "pair_exclude_types": [[1, 1]],
    },
    "a species that is not seen": {"descriptor": {**SE_E2_A, "sel": [20, 0]}},
    "se_e2_r": {"descriptor": {"type": "se_e2_r", **SMOOTH}},
    "se_e3": {"descriptor": {"type": "se_e3", **SMOOTH, "neuron": [2, 4]}},
    "se_atten": {"descriptor": SE_ATTEN},
    "se_atten_v2": {"descriptor": {**SE_ATTEN, "type": "se_atten_v2", "attn_layer": 0}},
    "hybrid": {
        "descriptor": {"type": "hybrid", "list": [
            {**SE_E2_A, "rcut": 3.0}, {"type": "se_e2_r", **SMOOTH}, {**SE_ATTEN, "sel": "auto:1.3"},
        ]},
    },
    "behler_parrinello": {
        "descriptor": {"type": "behler_parrinello", "rcut": 3.0, "radial": "auto:4", "angular": "auto:1"},
    },
    "frame parameters": {"descriptor": SE_E2_A, "fitting_net": {**FITTING, "numb_fparam": 1}},
    "atom parameters": {"descriptor": SE_E2_A, "fitting_net": {**FITTING, "numb_aparam": 2}},
    "energies in vacuum": {
        "descriptor": {**SE_E2_A, "set_davg_zero": True}, "fitting_net": {**FITTING, "atom_ener": [None, -13.0]},
    },
    "atoms without energy": {"descriptor": SE_E2_A, "atom_exclude_types": [1]},
    "table": {"descriptor": SE_E2_A, "use_srtab": "table.txt", "sw_rmin": 0.5, "sw_rmax": 0.9},
    "dipole": {"descriptor": SE_E2_A, "fitting_net": {"type": "dipole", **FITTING, "sel_type": [0]}},
    "polar": {"descriptor": SE_E2_A, "fitting_net": {"type": "polar", **FITTING}},
}  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A system with everything any of them asks for."""
    folder = tmp_path_factory.mktemp("data")
    teacher.write_npy(folder, 4, n_sets=1)
    rng = np.random.default_rng(0)
    widths = {"fparam": 1, "aparam": 48, "dipole": 3, "atom_dipole": 24, "polarizability": 9}
    widths["atom_polarizability"] = 24 * 9
    for name, width in widths.items():
        np.save(folder / "set.000" / f"{name}.npy", rng.normal(size=(4, width)))
    return folder


def write(folder: Path, data: Path, model: dict[str, Any]) -> Path:
    r = np.linspace(0.3, 6, 200)
    np.savetxt(folder / "table.txt", np.column_stack([r] + [10 / r**4] * 3))
    model = {"type_map": ["O", "H"], "fitting_net": FITTING, **model}
    systems = {"systems": str(data), "batch_size": 2}
    values = {
        "model": model,
        "learning_rate": {"start_lr": 3e-3, "stop_lr": 1e-5},
        "training": {"training_data": systems, "numb_steps": 2, "seed": 3, "save_freq": 1},
        **({} if model["fitting_net"].get("type", "ener") == "ener" else TENSOR),
    }
    (folder / "input.json").write_text(json.dumps(values))
    return folder / "input.json"


@pytest.mark.parametrize("name", KINDS)
def test_trains_and_continues_and_is_kept(name, data, tmp_path, monkeypatch, capsys):
    config = load_input(write(tmp_path, data, KINDS[name]))
    trainer = Trainer(config, tmp_path)
    before = [p.detach().clone() for p in trainer.potential.parameters()]
    assert trainer.run()
    assert sum(bool((a != b).any()) for a, b in zip(before, trainer.potential.parameters(), strict=True)) > 3
    again = Trainer(config, tmp_path, tmp_path / "model.ckpt-1.pt")
    assert again.run()
    trainer.save_model(tmp_path / "w.pt")
    restored = checkpoint.restore_model(checkpoint.read(tmp_path / "w.pt"))
    for mine, continued, kept in zip(
        trainer.potential.state_dict().values(),
        again.potential.state_dict().values(),
        restored.state_dict().values(),
        strict=True,
    ):
        assert (mine == continued).all()
        assert (mine == kept).all()
    run(monkeypatch, "info", tmp_path / "w.pt")
    card = capsys.readouterr().out
    assert config.model.descriptor.type in card
    assert "fitting net" in card


def test_hybrids_count_neighbours_within_the_cutoff_of_each_part(data, tmp_path):
    model = Trainer(load_input(write(tmp_path, data, KINDS["hybrid"])), tmp_path).potential
    near, far, both = model.config.descriptor.list
    alone = Trainer(load_input(write(tmp_path, data, {"descriptor": {**SE_E2_A, "rcut": 3.0}})), tmp_path).potential
    assert near.sel == alone.config.descriptor.sel
    assert sum(near.sel) < sum(far.sel)
    assert len(both.sel) == 1
    assert both.sel[0] >= 1.3 / 1.1 * max(far.sel)


def test_the_shift_of_polarizabilities_is_their_mean_trace(data, tmp_path):
    model = Trainer(load_input(write(tmp_path, data, KINDS["polar"])), tmp_path).potential
    polar = np.load(data / "set.000" / "atom_polarizability.npy").reshape(-1, 3, 3)
    types = np.tile(np.loadtxt(data / "type.raw", dtype=int), 4)
    expected = [np.trace(polar[types == c].mean(axis=0)) / 3 for c in range(2)]
    assert model.shift.numpy() == pytest.approx(expected)
