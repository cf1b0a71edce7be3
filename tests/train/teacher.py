"""A data set small enough for tests: structures of water labelled by a random potential."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np

from dpserver.frames import Frames
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from tests import structures

MODEL: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_e2_a",
        "sel": "auto",
        "rcut": 4.0,
        "rcut_smth": 1.0,
        "neuron": [4, 8],
        "axis_neuron": 3,
        "type_one_side": True,
    },
    "fitting_net": {"neuron": [10, 10]},
}
LOC_FRAME: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "loc_frame",
        "sel_a": [4, 8],
        "sel_r": [4, 8],
        "rcut": 4.0,
        "axis_rule": [0, 1, 0, 0, 1, 1, 0, 0, 0, 0, 1, 0],
    },
    "fitting_net": {"neuron": [12, 6]},
}
BIAS = np.array([-430.0, -13.5])  # eV, the size of DFT energies


def teacher() -> Potential:
    """A potential of fixed random weights."""
    sel = {**MODEL["descriptor"], "sel": [60, 120]}
    potential = Potential(parse(ModelConfig, {**MODEL, "descriptor": sel}), seed=7)
    potential.energy_bias.copy_(potential.energy_bias.new_tensor(BIAS))
    return potential


def write_npy(folder: Path, n_frames: int, *, seed: int = 0, n_sets: int = 2, has_virial: bool = True) -> list[Frames]:
    """Write a DeePMD npy system of eight waters labelled by the teacher, and return its frames."""
    rng = np.random.default_rng(seed)
    start = structures.cubic()
    frames = [structures.moved(start, rng.normal(scale=0.05, size=(start.n_atoms, 3))) for _ in range(n_frames)]
    results = [teacher().evaluate(f) for f in frames]
    rows = {
        "coord": np.stack([f.positions.reshape(-1) for f in frames]),
        "box": np.stack([f.cell.reshape(-1) for f in frames]),
        "energy": np.concatenate([r.energy for r in results]),
        "force": np.stack([r.forces.reshape(-1) for r in results]),
        "virial": np.stack([r.virial.reshape(-1) for r in results]),
    }
    for k, part in enumerate(np.array_split(np.arange(n_frames), n_sets)):
        target = folder / f"set.{k:03d}"
        target.mkdir(parents=True)
        for name in rows if has_virial else rows.keys() - {"virial"}:
            np.save(target / f"{name}.npy", rows[name][part])
    (folder / "type.raw").write_text("\n".join(map(str, start.types)))
    (folder / "type_map.raw").write_text("O\nH\n")
    return frames


def write_input(folder: Path, model: dict[str, Any] = MODEL, **training: Any) -> Path:
    """Write systems `train` and `valid` and an `input.json` that trains on them, and return its path."""
    write_npy(folder / "train", 6, seed=1)
    write_npy(folder / "valid", 3, seed=2)
    values = {
        "model": model,
        "learning_rate": {"start_lr": 3e-3, "stop_lr": 1e-5, "decay_steps": 5},
        "loss": {"start_pref_v": 0.02, "limit_pref_v": 1.0},
        "training": {
            "training_data": {"systems": "train", "batch_size": 2},
            "validation_data": {"systems": "valid", "batch_size": 1, "numb_btch": 2},
            "numb_steps": 30,
            "seed": 3,
            "disp_freq": 10,
            "save_freq": 10,
            **training,
        },
    }
    path = folder / "input.json"
    values["training"] = {key: value for key, value in values["training"].items() if value is not None}
    path.write_text(json.dumps(values))
    return path
