"""Molecules: Deep Potentials beside Behler-Parrinello networks, sGDML and GDML, trained on the same frames.

Ethanol (1,000 frames to train on, 1,000 others to test on; PBE/def2-SVP at geometries of rMD17) and 3BPA (500 frames
of several temperatures to train on, those of 300 K that are not among them to test on). loc_frame with the network of
the 2018 paper, se_e2_a and behler_parrinello by `dpserver train`, sGDML and GDML by the package sgdml. Every model is
then served by the daemon, which also gives the errors and the times.

Some hours on two cores. GDML of 1,000 frames of ethanol takes up to 17 GB of memory, by the package's own estimate, and
where there is less it takes its slower iterative solver. The data are third-party and not in the repository; without
them the script says where to get them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any, Final

import ase
import ase.io
import numpy as np

import dpserver
from benchmarks.science import common, dynamics, presentation
from benchmarks.science.common import Experiment, Record
from benchmarks.science.presentation import Claim, number, origin, table
from dpserver.errors import DPServerError
from dpserver.frames import Frames

TITLE: Final = "Molecules"
TRAIN: Final = {"ethanol": "ethanol/train.xyz", "3bpa": "3bpa/train_mixedT.xyz"}
TEST: Final = {"ethanol": "ethanol/test_MD.xyz", "3bpa": "3bpa/train_300K.xyz"}
TYPES: Final = {"ethanol": ["C", "O", "H"], "3bpa": ["C", "N", "O", "H"]}
DESCRIPTORS: Final[dict[str, dict[str, dict[str, Any]]]] = {
    "ethanol": {
        "loc_frame": {
            "type": "loc_frame", "sel_a": [2, 1, 6], "sel_r": [0, 0, 0], "rcut": 6.0,
            # C: its nearest C and H; O: likewise; H: the nearest C and the O
            "axis_rule": [0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 2, 0, 0, 0, 0, 0, 1, 0],
        },
        "se_e2_a": {
            "type": "se_e2_a", "sel": "auto", "rcut": 5.0, "rcut_smth": 0.5, "neuron": [16, 32, 64], "axis_neuron": 8,
        },
        "behler_parrinello": {"type": "behler_parrinello", "rcut": 5.0, "radial": "auto:16", "angular": "auto:2"},
    },
    "3bpa": {
        "loc_frame": {
            "type": "loc_frame", "sel_a": [12, 2, 1, 12], "sel_r": [0, 0, 0, 0], "rcut": 6.0,
            # everything: its two nearest C
            "axis_rule": [0, 0, 0, 0, 0, 1] * 4,
        },
        "se_e2_a": {
            "type": "se_e2_a", "sel": "auto", "rcut": 5.0, "rcut_smth": 0.5, "neuron": [16, 32, 64], "axis_neuron": 8,
        },
        "behler_parrinello": {"type": "behler_parrinello", "rcut": 5.0, "radial": "auto:16", "angular": "auto:2"},
    },
}  # fmt: skip
FITTINGS: Final = {
    "loc_frame": [240, 120, 60, 30, 10],
    "se_e2_a": [64, 64, 64],
    "behler_parrinello": [64, 64],
}
KERNELS: Final = {"sgdml": False, "gdml": True}
"""Models of the package sgdml, and whether without symmetries."""
SIGMAS: Final = {"ethanol": [10, 20, 40, 60], "3bpa": [20, 40, 80, 120]}
_BEADS: Final = 64
_NAMES: Final = {"ethanol": "Ethanol", "3bpa": "3BPA"}
_ROWS: Final = {
    "loc_frame": "loc_frame (the 2018 paper's)",
    "se_e2_a": "se_e2_a",
    "behler_parrinello": "behler_parrinello",
    "sgdml": "sGDML",
    "gdml": "GDML",
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Lengths."""
    parser.add_argument("--steps", type=int, default=12_000, help="of each training by dpserver for ethanol [12000]")
    parser.add_argument("--steps-3bpa", type=int, default=6_000, help="the same for 3BPA [6000]")
    parser.add_argument("--seed", type=int, default=1, help="of the trainings [1]")
    parser.add_argument("--threads", type=int, default=1, help="of the trainings by dpserver [1]")
    parser.add_argument("--gdml-frames", type=int, default=1000, help="of ethanol, for sGDML and GDML [1000]")
    parser.add_argument(
        "--gdml-frames-3bpa", type=int, default=300, help="of 3BPA; memory grows as n², time as n³ [300]"
    )
    parser.add_argument("--only", default="", help="only the measurements with this in their names: ethanol_sgdml, …")


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Train and test every model."""
    for molecule in TRAIN:
        folder = common.data(molecule).parent
        for kind in (*DESCRIPTORS[molecule], *KERNELS):
            name = f"{molecule}_{kind}"
            if options.only not in name:
                continue
            settings: dict[str, Any] = {"molecule": molecule, "kind": kind, "seed": options.seed}
            settings["test_frames"] = experiment.pick(1000, 50)
            if kind in KERNELS:
                frames = options.gdml_frames if molecule == "ethanol" else options.gdml_frames_3bpa
                sigmas = SIGMAS[molecule]
                settings |= {"frames": experiment.pick(frames, 60), "sigmas": experiment.pick(sigmas, sigmas[:2])}
            else:
                settings["input"] = training_input(settings, folder, 0)["model"]
                steps = options.steps if molecule == "ethanol" else options.steps_3bpa
                settings["steps"] = experiment.pick(steps, 60)
            experiment.measure(name, settings, lambda f, s=settings, d=folder: measured(f, s, d, options))


def measured(folder: Path, settings: Mapping[str, Any], data: Path, options: argparse.Namespace) -> dict[str, Any]:
    """Train a model, serve it, and compare what it answers."""
    molecule, kind = settings["molecule"], settings["kind"]
    about: dict[str, Any]
    began = _computed()
    if kind in KERNELS:
        model, about = kernel_model(folder, settings, data / TRAIN[molecule])
    else:
        model = common.train(folder, training_input(settings, data, settings["steps"]), options.threads)
        about = {"frames": count(data / TRAIN[molecule])}
    about["training_cpu_seconds"] = round(_computed() - began, 1)
    tests = test_frames(data, molecule)[: settings["test_frames"]]
    return {**about, **compared(model, tests), **batched(model, tests)}


def _computed() -> float:
    """Seconds of processor time of all processes that were started here and have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def count(path: Path) -> int:
    """Frames of a file."""
    return len(ase.io.read(path, ":"))


def test_frames(data: Path, molecule: str) -> list[ase.Atoms]:
    """The frames to test on, those left out that are trained on."""
    seen = {round(f.get_potential_energy(), 6) for f in ase.io.read(data / TRAIN[molecule], ":")}
    found = ase.io.read(data / TEST[molecule], ":")
    return [f for f in found if round(f.get_potential_energy(), 6) not in seen]


def training_input(settings: Mapping[str, Any], data: Path, steps: int) -> dict[str, Any]:
    """The input of a training by dpserver; the test frames take no part in it."""
    molecule, kind = settings["molecule"], settings["kind"]
    every = max(1, steps // 40)
    return {
        "model": {
            "type_map": TYPES[molecule],
            "descriptor": DESCRIPTORS[molecule][kind],
            "fitting_net": {"neuron": FITTINGS[kind], "resnet_dt": False},
        },
        "learning_rate": {"type": "exp", "start_lr": 3e-3, "stop_lr": 1e-5, "decay_steps": max(1, steps // 80)},
        "loss": {"type": "ener", "start_pref_e": 1, "limit_pref_e": 10, "start_pref_f": 100, "limit_pref_f": 10},
        "training": {
            "training_data": {"systems": [str(data / TRAIN[molecule])], "batch_size": 8},
            "numb_steps": steps, "seed": settings["seed"], "disp_freq": every, "save_freq": 5 * every,
        },
        "dpserver": {"optimizer": "soap"},
    }  # fmt: skip


def kernel_model(folder: Path, settings: Mapping[str, Any], source: Path) -> tuple[Path, dict[str, Any]]:
    """A model of the package sgdml, trained in a process of its own, and what it says of it."""
    common.optional("sgdml", "dpserver[gdml]")
    model, said = folder / "model.npz", folder / "training.json"
    if not (model.exists() and said.exists()):
        command = [sys.executable, "-m", "benchmarks.science.gdml_training", str(source), str(model),
                   "--frames", str(settings["frames"]), "--seed", str(settings["seed"]),
                   "--sigmas", *map(str, settings["sigmas"])]  # fmt: skip
        command += ["--gdml"] if KERNELS[settings["kind"]] else []
        done = subprocess.run(command, cwd=common.ROOT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise DPServerError(f"sgdml left with status {done.returncode}: {common.last_words(done.stderr)}")
        said.write_text(done.stdout.strip().splitlines()[-1], encoding="utf-8")
    about = json.loads(said.read_text(encoding="utf-8"))
    return model, {"frames": min(settings["frames"], count(source)), "sgdml": version("sgdml"), **about}


def compared(model: Path, tests: Sequence[ase.Atoms]) -> dict[str, Any]:
    """Errors of energies and forces that a daemon answers, and how long one structure takes over the socket."""
    energies, forces, seconds = dynamics.served(model, tests)
    energy = energies - [atoms.get_potential_energy() for atoms in tests]
    force = np.concatenate(forces) - np.concatenate([atoms.get_forces() for atoms in tests])
    return {
        "tested": len(tests),
        "energy_mae": 1e3 * float(np.abs(energy).mean()),  # meV, of the whole molecule
        "energy_rmse": 1e3 * float(np.sqrt((energy**2).mean())),
        "force_mae": 1e3 * float(np.abs(force).mean()),  # meV/Å
        "force_rmse": 1e3 * float(np.sqrt((force**2).mean())),
        "served_ms": 1e3 * float(np.median(seconds)),
    }


def batched(path: Path, tests: Sequence[ase.Atoms]) -> dict[str, float]:
    """Time of a structure in a batch of 64, without the socket, ms."""
    model = dpserver.load(path, device="cpu", threads=1)
    picks = [tests[k % len(tests)] for k in range(_BEADS)]
    types = [model.species.index(s) for s in tests[0].symbols]
    frames = Frames.concatenate(Frames.single(atoms.positions, types) for atoms in picks)
    model.evaluate(frames)
    times = []
    for _ in range(5):
        began = time.perf_counter()
        model.evaluate(frames)
        times.append(time.perf_counter() - began)
    return {"batch_ms": 1e3 * float(np.median(times)) / _BEADS}


# The page.

_PAPERS: Final = """### Beside the papers

The 2018 paper trains on trajectories of organic molecules (MD17, PBE+TS) and compares with GDML; ethanol here is other
data, PBE/def2-SVP, and 3BPA is none of its molecules, so that only the order of the methods can be compared. Its own
table could not be consulted for this page and is left out. What is at hand:

- GDML (Chmiela et al., Sci. Adv. 3, e1603015, 2017) states 0.3 kcal/mol for energies and 1 kcal/mol/Å for forces, 13
  meV and 43 meV/Å, for its molecules with 1,000 training geometries each.
- For MD17, forces of DeePMD are quoted as 19.4 meV/Å for aspirin and 13.1 for naphthalene, of sGDML as 29.5 and 4.7
  (table 3 of doi:10.1038/s41524-022-00773-z); not with training sets of one size.
"""


def page(found: dict[str, Record]) -> str:
    """The page."""
    text = [
        """Energies are those of whole molecules, errors mean absolute ones over frames that no training has seen. They
and the times of single structures come from the daemon, over its socket; the last column is a structure's share of a
batch of 64 without the socket, by one thread. The Deep Potentials and the Behler-Parrinello network are trained by SOAP
with the same loss, steps and batches; the width σ of sGDML and GDML is chosen among training frames, which counts as
training.
"""
    ]
    for molecule, name in _NAMES.items():
        rows = [(kind, found[f"{molecule}_{kind}"]) for kind in _ROWS if f"{molecule}_{kind}" in found]
        text.append(f"## {name}\n")
        if rows:
            text.append(table(
                ("model", "frames", "training, CPU min", "energy, meV", "forces, meV/Å", "served, ms", "of 64, ms"),
                [(_ROWS[kind], r["frames"], number(r["training_cpu_seconds"] / 60, 2), number(r["energy_mae"]),
                  number(r["force_mae"]), number(r["served_ms"], 2), number(r["batch_ms"], 2)) for kind, r in rows],
            ))  # fmt: skip
        text.append("\n" + origin(*(r for _, r in rows)))
    return "\n".join([*text, _PAPERS])


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model; empty where it has not."""
    return {
        words: ", ".join(
            f"{_NAMES[molecule]}, {found[name]['tested']:,} frames"
            for molecule in _NAMES
            if (name := f"{molecule}_{kind}") in found
        )
        for kind, words in _ROWS.items()
    }


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    lines = []
    for molecule, name in _NAMES.items():
        here = {kind: found.get(f"{molecule}_{kind}") for kind in _ROWS}
        errors = {kind: r["force_mae"] for kind, r in here.items() if r is not None}
        result = ", ".join(f"{_ROWS[kind]} {number(error)}" for kind, error in errors.items())
        note = presentation.quick_note(*(r for r in here.values() if r is not None))
        lines.append(Claim(
            f"{name}: Deep Potentials are slightly better than GDML; forces, meV/Å",
            result or presentation.NOT_MEASURED,
            "other data than the paper's, as many frames for all (of 3BPA fewer for sGDML and GDML), shorter trainings"
            + note,
            _is_better([r for k in ("loc_frame", "se_e2_a") if (r := here[k]) is not None], here["gdml"]),
        ))  # fmt: skip
    return lines


def _is_better(deep: list[Record], gdml: Record | None) -> bool | None:
    """Whether the best of the Deep Potentials is better than GDML; None where more frames may be the reason."""
    if not deep or gdml is None:
        return None
    best = min(deep, key=lambda r: float(r["force_mae"]))
    is_better, has_more = best["force_mae"] < gdml["force_mae"], best["frames"] - gdml["frames"]
    if has_more and is_better == (has_more > 0):
        return None
    return presentation.holds(is_better, best, gdml)
