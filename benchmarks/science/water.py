"""Water: how well the models learn the frames, and what the liquid is like that they make.

1. loc_frame with the network of the 2018 paper and se_e2_a, trained on the same frames, data_0 to data_2 of
   DeePMD-kit's example, by SOAP and by Adam; with fewer frames; and, where DPSERVER_PEER names an environment with
   DeePMD-kit, by DeePMD-kit from the same input. Errors on data_3, which none has seen.
2. Dynamics of the liquid by i-PI through the daemon, classical at 300 and 330 K, with 8 beads, and by the loc_frame
   model: g_OO, g_OH, g_HH and the angles O-O-O beside those of the DFT frames.

Three hours on two cores: ten trainings of 4,000 steps, 5 to 15 minutes each, one of 12,000, and 15 minutes of
dynamics. The data are third-party and not in the repository; without them the script says where to get them.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
from functools import partial
from pathlib import Path
from typing import Any, Final

import ase
import numpy as np

from benchmarks.science import common, dynamics, water_page
from benchmarks.science.analysis import angles, block_mean, coordination, pair_distributions, radius_of_coordination
from benchmarks.science.common import WATER, Experiment, Record, System
from benchmarks.science.presentation import Claim
from dpserver.errors import DPServerError
from dpserver.frames import Floats

TITLE: Final = water_page.TITLE
TRAINING: Final = ("data_0", "data_1", "data_2")
HELD_OUT: Final = "data_3"
LONG: Final = 12_000
"""Steps of the training of the loc_frame model that dynamics are run with."""
DESCRIPTORS: Final = ("se_e2_a", "loc_frame")
_INPUTS: Final = {"se_e2_a": "train.json", "loc_frame": "loc_frame.json"}
_BIN: Final = 0.04  # Å, of g(r)
_ANGLES: Final = np.linspace(0.0, 180.0, 61)
_NEIGHBOURS: Final = 4.0  # mean number of neighbours of an O in the angles
_SETTLING: Final = 0.1  # part of a run that is left out
_LONG: Final = "loc_frame_soap_long"
_SERVED: Final = 20  # frames evaluated by the daemon after a training


def add_options(parser: argparse.ArgumentParser) -> None:
    """Lengths."""
    parser.add_argument("--steps", type=int, default=4000, help="of each training [4000]")
    parser.add_argument("--long-steps", type=int, default=LONG, help=f"of the long one, of loc_frame [{LONG}]")
    parser.add_argument("--seed", type=int, default=1, help="of the trainings [1]")
    parser.add_argument("--threads", type=int, default=1, help="of the trainings [1]")
    parser.add_argument(
        "--only", default="", help="only the measurements with this in their names, such as loc_frame_soap"
    )
    parser.add_argument("--dynamics-steps", type=int, default=40_000, help="of 0.5 fs, classical [40000]")
    parser.add_argument("--beads-steps", type=int, default=10_000, help="of 0.5 fs, with 8 beads [10000]")
    parser.add_argument("--loc-frame-steps", type=int, default=10_000, help="of 0.5 fs, with loc_frame [10000]")
    parser.add_argument("--dynamics-seed", type=int, default=31415, help="of all dynamics [31415]")
    parser.add_argument("--model", type=Path, default=WATER / "w.pt", help="of the dynamics [examples/water/w.pt]")


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Train, test, and run the liquid."""
    folder = common.data("water")
    steps = experiment.pick(options.steps, 20)
    jobs: list[tuple[str, str, str, tuple[str, ...]]]
    jobs = [(f"{d}_{o}", d, o, TRAINING) for d in DESCRIPTORS for o in ("soap", "adam", "peer")]
    jobs += [(f"{d}_soap_{n}", d, "soap", (s,)) for d in DESCRIPTORS for n, s in ((80, "data_0"), (160, "data_1"))]
    for name, descriptor, way, systems in jobs:
        if options.only not in name:
            continue
        if way == "peer" and peer_python() is None:
            common.say(f"water: {name} left out: DPSERVER_PEER names no environment with DeePMD-kit")
            continue
        measure_training(experiment, name, descriptor, way, systems, steps, options.seed, options.threads)
    long = experiment.pick(options.long_steps, 20)
    if options.only in _LONG:
        measure_training(experiment, _LONG, "loc_frame", "soap", TRAINING, long, options.seed, options.threads)
    if options.only in "shipped":
        shipped = {**common.identity(options.model), "systems": [HELD_OUT]}
        experiment.measure("shipped", shipped, lambda _: tested(options.model))
    if options.only in "reference":
        experiment.measure("reference", {"systems": [*TRAINING, HELD_OUT]}, lambda _: reference(folder))
    measure_liquids(experiment, options, folder)


def measure_liquids(experiment: Experiment, options: argparse.Namespace, folder: Path) -> None:
    """Run the liquid, classical at two temperatures, with beads, and by loc_frame."""
    runs = [
        ("liquid_300", 300.0, 1, options.dynamics_steps),
        ("liquid_330", 330.0, 1, options.dynamics_steps),
        ("liquid_300_beads", 300.0, 8, options.beads_steps),
        # A quick training makes no model that could run.
        *(() if experiment.is_quick else (("liquid_300_loc_frame", 300.0, 1, options.loc_frame_steps),)),
    ]
    for name, temperature, beads, length in runs:
        if options.only not in name:
            continue
        model = options.model
        if name.endswith("loc_frame"):
            model = rough_model(experiment, experiment.pick(options.long_steps, 20), options.seed, options.threads)
        settings = {
            "seed": options.dynamics_seed, **common.identity(model), "temperature_k": temperature, "beads": beads,
            "steps": experiment.pick(length, 200), "timestep_fs": 0.5,
        }  # fmt: skip
        experiment.measure(name, settings, partial(liquid, model=model, settings=settings, data=folder))


# Training.


def measure_training(
    experiment: Experiment,
    name: str,
    descriptor: str,
    way: str,
    systems: tuple[str, ...],
    steps: int,
    seed: int,
    threads: int,
) -> Record | None:
    """Train one model and test it, once."""
    config = training_input(descriptor, way, systems, steps, seed)
    settings = settings_of(config, descriptor, way, systems)
    return experiment.measure(name, settings, lambda folder: training(folder, config, way, threads))


def settings_of(config: dict[str, Any], descriptor: str, way: str, systems: tuple[str, ...]) -> dict[str, Any]:
    """All that a training depends on."""
    whole = without_paths(config)
    return {"seed": whole["training"]["seed"], "steps": whole["training"]["numb_steps"], "descriptor": descriptor,
            "way": way, "systems": list(systems), "input": whole}  # fmt: skip


def rough_model(experiment: Experiment, steps: int, seed: int = 1, threads: int = 1) -> Path:
    """The loc_frame model that dynamics are run with; trains it where that has not been done with these settings.

    That of the part water counts; where it has been trained otherwise, the part that asks trains one of its own.
    """
    part = Experiment("water", experiment.is_quick, place=experiment.place)
    config = training_input("loc_frame", "soap", TRAINING, steps, seed)
    settings = settings_of(config, "loc_frame", "soap", TRAINING)
    if part.is_taken(_LONG, settings):
        return common.train(experiment.ready("model_loc_frame", settings), config, threads)
    measure_training(part, _LONG, "loc_frame", "soap", TRAINING, steps, seed, threads)
    return common.train(part.ready(_LONG, settings), config, threads)  # the record may have come without its folder


def training_input(descriptor: str, way: str, systems: tuple[str, ...], steps: int, seed: int) -> dict[str, Any]:
    """The input of a training: the one of examples/water with other data, length, seed and optimizer.

    Args:
        descriptor: `se_e2_a` or `loc_frame`.
        way: `soap`, `adam`, or `peer` for DeePMD-kit, with Adam too.
        systems: names of the training sets.
        steps: of the training.
        seed: of weights and batches.
    """
    config = json.loads((WATER / _INPUTS[descriptor]).read_text(encoding="utf-8"))
    folder = common.data("water")
    training = config["training"]
    training["training_data"]["systems"] = [str(folder / s) for s in systems]
    training["validation_data"] = {"systems": [str(folder / HELD_OUT)], "batch_size": 1, "numb_btch": 5}
    frequency = max(1, steps // 40)
    training |= {"numb_steps": steps, "seed": seed, "disp_freq": frequency, "save_freq": 5 * frequency}
    config["learning_rate"]["decay_steps"] = max(1, steps // 80)
    if way != "soap":
        config["learning_rate"] |= {"start_lr": 1e-3, "stop_lr": 1e-6}
        config["dpserver"].pop("optimizer", None)
    if way == "peer":
        del config["dpserver"]
        config["model"]["fitting_net"]["seed"] = seed
        if descriptor == "se_e2_a":
            config["model"]["descriptor"]["seed"] = seed
    return dict(config)


def without_paths(config: dict[str, Any]) -> dict[str, Any]:
    """The input as results show it: data by name."""
    kept = json.loads(json.dumps(config))
    for data in (kept["training"]["training_data"], kept["training"]["validation_data"]):
        data["systems"] = [Path(s).name for s in data["systems"]]
    return dict(kept)


def training(folder: Path, config: dict[str, Any], way: str, threads: int) -> dict[str, Any]:
    """Train a model; its learning curve and its errors on the held-out frames."""
    if way == "peer":
        model, versions = train_with_peer(folder, config, threads)
    else:
        model, versions = common.train(folder, config, threads), {}
    curve = common.read_lcurve(folder / "lcurve.out")
    return {
        **tested(model),
        **versions,
        "n_training_frames": sum(len(common.read_system(Path(s)).energy) for s in _systems(config)),
        "curve": {
            "step": curve["step"],
            "force_rmse": 1e3 * curve["rmse_f_val"],
            "energy_rmse": 1e3 * curve["rmse_e_val"],
        },
    }


def tested(model: Path) -> dict[str, Any]:
    """Errors of a model on the held-out frames."""
    held_out = common.data("water") / HELD_OUT
    return {**common.errors(model, held_out), **served_errors(model, common.read_system(held_out))}


def _systems(config: dict[str, Any]) -> list[str]:
    return list(config["training"]["training_data"]["systems"])


def served_errors(model: Path, system: System) -> dict[str, Any]:
    """The error of the forces as the daemon serves them, on some of the frames."""
    chosen = np.linspace(0, len(system.energy) - 1, _SERVED).astype(int)
    structures = [ase.Atoms(system.symbols, system.positions[k], cell=system.cells[k], pbc=True) for k in chosen]
    difference = np.array(dynamics.served(model, structures).forces) - system.forces[chosen]
    return {"served_frames": len(chosen), "served_force_rmse": 1e3 * float(np.sqrt((difference**2).mean()))}


def peer_python() -> Path | None:
    """The Python of the environment with DeePMD-kit that DPSERVER_PEER names, or `.venv-peer`; None without one."""
    path = Path(os.environ.get("DPSERVER_PEER", common.ROOT / ".venv-peer"))
    python = path / "bin" / "python" if path.is_dir() else path
    return python.absolute() if python.is_file() and python.with_name("dp").is_file() else None


def train_with_peer(folder: Path, config: dict[str, Any], threads: int) -> tuple[Path, dict[str, Any]]:
    """Train by DeePMD-kit's `dp train`, on from its checkpoint; the frozen model, and the version."""
    python, frozen = peer_python(), folder / "frozen.pb"
    assert python is not None
    environment = {**os.environ, "OMP_NUM_THREADS": str(threads), "TF_CPP_MIN_LOG_LEVEL": "2",
                   "DP_INTRA_OP_PARALLELISM_THREADS": str(threads), "DP_INTER_OP_PARALLELISM_THREADS": "1"}  # fmt: skip

    def call(*arguments: str) -> None:
        with (folder / "peer.log").open("ab") as log:
            done = subprocess.run([python.with_name("dp"), *arguments], cwd=folder, env=environment, stdout=log,
                                  stderr=subprocess.STDOUT, check=False)  # fmt: skip
        if done.returncode:
            words = common.last_words((folder / "peer.log").read_text(encoding="utf-8", errors="replace"))
            raise DPServerError(f"dp {arguments[0]} left with status {done.returncode}: {words}")

    if not frozen.exists():
        (folder / "input.json").write_text(json.dumps(config, indent=2), encoding="utf-8")
        restart = ("--restart", "model.ckpt") if (folder / "checkpoint").exists() else ()
        call("train", "input.json", "--skip-neighbor-stat", *restart)
        call("freeze", "-o", frozen.name)
    version = subprocess.run(
        [python, "-c", "from importlib.metadata import version; print(version('deepmd-kit'))"],
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    return frozen, {"peer_version": version.stdout.strip()}


# The liquid.


def structure(positions: Floats, cells: Floats, symbols: tuple[str, ...], radius: float) -> dict[str, Any]:
    """g(r) of the pairs and the angles O-O-O.

    Args:
        positions: (n_frames, n_atoms, 3), Å.
        cells: (n_frames, 3, 3), Å.
        symbols: of the atoms.
        radius: within which O atoms are neighbours, Å.
    """
    oxygen = np.flatnonzero(np.array(symbols) == "O")
    return {
        **pair_distributions(positions, cells, symbols, _BIN),
        "angles": angles(positions, cells, oxygen, radius, _ANGLES),
        "coordination": coordination(positions, cells, oxygen, radius),
    }


def _angle_radius(folder: Path) -> float:
    """Within which an O has four neighbours on average in the DFT frames, Å."""
    system = joined(folder, (*TRAINING, HELD_OUT))
    return radius_of_coordination(system.positions, system.cells, np.flatnonzero(system.types == 0), _NEIGHBOURS)


def joined(folder: Path, names: tuple[str, ...]) -> System:
    """Several systems of the same atoms as one."""
    parts = [common.read_system(folder / name) for name in names]
    arrays = (np.concatenate([getattr(p, name) for p in parts]) for name in ("positions", "cells", "energy", "forces"))
    return System(parts[0].symbols, parts[0].types, *arrays)


def reference(folder: Path) -> dict[str, Any]:
    """What the DFT frames show, and in halves, which tells how far they determine it."""
    whole = joined(folder, (*TRAINING, HELD_OUT))
    radius = _angle_radius(folder)
    halves = [joined(folder, TRAINING[:2]), joined(folder, (TRAINING[2], HELD_OUT))]
    return {
        "n_frames": len(whole.energy),
        "energy_ev_per_atom": float(whole.energy.mean() / len(whole.types)),
        "angle_radius": radius,
        "bin": _BIN,
        **structure(whole.positions, whole.cells, whole.symbols, radius),
        "halves": [structure(h.positions, h.cells, h.symbols, radius) for h in halves],
    }


def liquid(folder: Path, model: Path, settings: Record, data: Path) -> dict[str, Any]:
    """Run the liquid and describe it."""
    steps = settings["steps"]
    plan = dynamics.Dynamics(
        WATER / "water.xyz", steps, settings["timestep_fs"], settings["temperature_k"], settings["beads"],
        seed=settings["seed"], frames=max(10, steps // 1000), stride=5,
    )  # fmt: skip
    columns = dynamics.run(folder / "run", model, plan)
    beads = dynamics.read_frames(folder / "run", _SETTLING)
    every = max(1, len(beads[0].positions) * len(beads) // 1000)  # frames between two used ones
    positions = np.concatenate([b.positions[::every] for b in beads])
    cells = np.concatenate([b.cells[::every] for b in beads])
    first = int(_SETTLING * len(columns["step"]))
    n_atoms = len(beads[0].symbols)
    energy = block_mean(columns["potential"][first:] / n_atoms)
    return {
        "length_ps": float(columns["time"][-1]),
        "n_frames": len(positions),
        "temperature_k": float(columns["temperature"][first:].mean()),
        "potential_ev_per_atom": energy.value,
        "potential_error": energy.error,
        "dft_frames_ev_per_atom": _energy_of_frames(model, data),
        "bin": _BIN,
        **structure(positions, cells, beads[0].symbols, _angle_radius(data)),
    }


def _energy_of_frames(model: Path, data: Path) -> float:
    """Mean energy of the DFT frames by the model itself, eV/atom, so that its error does not enter the comparison."""
    import dpserver

    system = joined(data, (HELD_OUT,))
    frames = dpserver.Frames.concatenate(
        dpserver.Frames.single(x, system.types, cell) for x, cell in zip(system.positions, system.cells, strict=True)
    )
    return float(dpserver.load(model).evaluate(frames).energy.mean() / len(system.types))


def page(found: dict[str, Record]) -> str:
    """The page."""
    return water_page.page(found)


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model."""
    return water_page.answered(found)


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    return water_page.claims(found)
