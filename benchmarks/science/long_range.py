"""Long range: what a network of short range cannot know of water vapour, and what charges beside it cost.

The experiment of Yue et al. (J. Chem. Phys. 154, 034111, 2021) with an exact teacher, the flexible SPC/E of `spce.py`:

1. Frames of the liquid (64 molecules) and of clusters, by the teacher's own dynamics.
2. Two models trained on the same frames with the same network: of short range alone, and with fixed charges beside it.
3. Energies of two molecules against their distance, second virial coefficients from 400 to 800 K, energies of clusters
   larger than any in training, g(r) of the liquid by i-PI through the daemon, and the time of an evaluation.

Two to three hours on two cores: half an hour of frames, two trainings of 20,000 steps, half an hour of the rest.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ase
import ase.io
import numpy as np

from benchmarks.science import common, dynamics, long_range_page, spce
from benchmarks.science.analysis import pair_distributions
from benchmarks.science.common import Experiment, Record
from benchmarks.science.presentation import Claim
from dpserver.frames import Floats, Frames
from dpserver.units import BOLTZMANN

TITLE: Final = long_range_page.TITLE
_CHARGES: Final = {"charges": spce.CHARGES, "sigma": 1.0, "accuracy": 1e-5}
MODELS: Final[dict[str, dict[str, Any] | None]] = {"short_range": None, "charges": _CHARGES}
SURROUNDINGS: Final[dict[str, Any]] = {**_CHARGES, "environment": {}}
"""Charges that depend on the surroundings: only their cost is looked at, since those of the teacher do not."""
RCUT: Final = 6.0
TEMPERATURES: Final = tuple(range(400, 801, 50))
SMALL: Final = (1, 2, 3, 4, 6, 8)
"""Molecules of the clusters to train on."""
LARGE: Final = (12, 20, 32)
_CLOSEST: Final = np.array([[2.4, 1.5, 1.5], [1.5, 1.5, 1.5], [1.5, 1.5, 1.5]])
"""Distances of atoms of two molecules that no dynamics has come below, Å."""
_RADII: Final = np.concatenate([np.arange(2.4, 8.0, 0.1), np.arange(8.0, 15.0, 0.5), np.arange(15.0, 40.1, 2.5)])
_CM3: Final = 0.602214076  # cm³/mol in one Å³ of a molecule
_CHUNK: Final = 2000
_BIN: Final = 0.05  # Å, of g(r)

Energies = Callable[[Frames], Floats]


def add_options(parser: argparse.ArgumentParser) -> None:
    """Lengths."""
    parser.add_argument("--steps", type=int, default=20_000, help="of each training [20000]")
    parser.add_argument("--seed", type=int, default=1, help="of everything [1]")
    parser.add_argument("--threads", type=int, default=1, help="of the trainings [1]")
    parser.add_argument("--frames", type=int, default=200, help="of the liquid at each temperature [200]")
    parser.add_argument("--orientations", type=int, default=4000, help="of two molecules at each distance [4000]")
    parser.add_argument("--dynamics-steps", type=int, default=20_000, help="of 0.5 fs, in the liquid [20000]")


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Make frames, train, and compare."""
    seed, steps = options.seed, experiment.pick(options.steps, 100)
    made = {"seed": seed, "frames": experiment.pick(options.frames, 4)}
    work = Work(experiment, made, steps, options.threads)
    experiment.measure("frames", made, lambda folder: make_frames(folder, made))
    for name in MODELS:
        experiment.measure(f"train_{name}", work.settings(name), lambda _, n=name: training(work.model(n), work.data()))
    shared = {"seed": seed, "training": {"steps": steps, "frames": made}}
    for name in MODELS:
        of = {**shared, "model": name, "orientations": experiment.pick(options.orientations, 50)}
        experiment.measure(f"pairs_{name}", of, lambda _, n=name, s=of: pairs(work.model(n), s))
        of = {**shared, "model": name, "structures": experiment.pick(20, 2)}
        experiment.measure(f"clusters_{name}", of, lambda _, n=name, s=of: clusters(work.model(n), s))
        of = {**shared, "model": name, "steps": experiment.pick(options.dynamics_steps, 200), "temperature_k": 300.0}
        experiment.measure(f"liquid_{name}", of, lambda f, n=name, s=of: liquid(f, work.model(n), s, work.data()))
    experiment.measure("liquid_teacher", {**shared}, lambda _: teacher_liquid(work.data()))
    of = {**shared, "n_sides": [4, 8, 16], "rounds": experiment.pick(7, 2), "surroundings": SURROUNDINGS}
    experiment.measure("cost", of, lambda f: cost({**{n: work.model(n) for n in MODELS}, **work.untrained(f)}, of))
    alone = {**shared, "n_side": 4, "surroundings": SURROUNDINGS}
    experiment.measure("served_surroundings", alone, lambda f: served(work.untrained(f)["surroundings"], alone))


@dataclass(frozen=True)
class Work:
    """Frames and models, made where they are missing: the records may have come without the folders they are from.

    Attributes:
        experiment: in whose folders they lie.
        made: settings of the frames.
        steps: of each training.
        threads: of the trainings.
    """

    experiment: Experiment
    made: Record
    steps: int
    threads: int

    def data(self) -> Path:
        """The folder of the frames."""
        folder = self.experiment.ready("frames", self.made)
        make_frames(folder, self.made)
        return folder

    def settings(self, name: str) -> Record:
        """What the training of a model depends on."""
        return {"seed": self.made["seed"], "steps": self.steps, "frames": self.made, "model": model_input(MODELS[name])}

    def model(self, name: str) -> Path:
        """The file of a model."""
        folder = self.experiment.ready(f"train_{name}", self.settings(name))
        if not (folder / "w.pt").exists():
            config = training_input(self.data(), MODELS[name], self.steps, self.made["seed"])
            common.train(folder, config, self.threads)
        return folder / "w.pt"

    def untrained(self, folder: Path) -> dict[str, Path]:
        """A model whose charges depend on the surroundings, after one step."""
        config = training_input(self.data(), SURROUNDINGS, 1, self.made["seed"])
        return {"surroundings": common.train(folder, config, self.threads)}


# Frames and training.


def make_frames(folder: Path, settings: Record) -> dict[str, Any]:
    """Frames to train on and to test with; systems that are there already are kept."""
    seed, n = settings["seed"], settings["frames"]
    for k, temperature in enumerate((300, 360, 420)):
        _system(folder / f"liquid_{temperature}", spce.liquid(4, seed), temperature, 50 * n, 50, seed + k, 40 * n)
    _system(folder / "test_liquid", spce.liquid(4, seed + 100), 300, 25 * n, 50, seed + 100, 40 * n)
    for part, first, share in (("cluster", 200, 1), ("test_cluster", 400, 4)):
        for size in SMALL:
            if (folder / f"{part}_{size}" / "set.000" / "energy.npy").exists():
                continue
            found = []
            for k, temperature in enumerate((100, 200, 300, 450)):
                start = spce.cluster(size, seed + first + 10 * size + k)
                found += spce.sample(start, temperature, 25 * n // share, 25, seed + first + k, settling=200)
            spce.write_system(folder / f"{part}_{size}", found)
    counts = {p.name: len(np.load(p / "set.000" / "energy.npy")) for p in sorted(folder.iterdir()) if p.is_dir()}
    return {"n_frames": counts}


def _system(
    folder: Path, start: ase.Atoms, temperature: float, steps: int, stride: int, seed: int, settling: int
) -> None:
    if not (folder / "set.000" / "energy.npy").exists():
        common.say(f"long_range: {folder.name} by the teacher …")
        spce.write_system(folder, spce.sample(start, temperature, steps, stride, seed, settling))


def model_input(charges: dict[str, Any] | None) -> dict[str, Any]:
    """The same network for both models, but for the charges."""
    model: dict[str, Any] = {
        "type_map": ["O", "H"],
        "descriptor": {
            "type": "se_e2_a", "sel": "auto", "rcut": RCUT, "rcut_smth": 0.5, "neuron": [16, 32, 64], "axis_neuron": 8,
            "type_one_side": True,
        },
        "fitting_net": {"neuron": [64, 64, 64], "resnet_dt": True},
    }  # fmt: skip
    if charges is not None:
        model["electrostatics"] = charges
    return model


def training_input(data: Path, charges: dict[str, Any] | None, steps: int, seed: int) -> dict[str, Any]:
    """The same for both models, but for the charges."""
    training = [f"liquid_{t}" for t in (300, 360, 420)] + [f"cluster_{n}" for n in SMALL]
    return {
        "model": model_input(charges),
        "learning_rate": {"start_lr": 3e-3, "stop_lr": 5e-6, "decay_steps": max(1, steps // 80)},
        "loss": {"start_pref_e": 0.02, "limit_pref_e": 5, "start_pref_f": 1000, "limit_pref_f": 5},
        "training": {
            "training_data": {
                "systems": [str(data / name) for name in training],
                "batch_size": "auto:192",
                "auto_prob": "prob_uniform",
            },
            "validation_data": {"systems": [str(data / "test_liquid")], "batch_size": 1, "numb_btch": 2},
            "numb_steps": steps,
            "seed": seed,
            "disp_freq": max(1, steps // 40),
            "save_freq": max(1, steps // 8),
        },
        "dpserver": {"precision": "double", "optimizer": "soap"},
    }


def training(model: Path, data: Path) -> dict[str, Any]:
    """Test what was trained on frames of other dynamics."""
    return {
        "liquid": common.errors(model, data / "test_liquid"),
        "clusters": {str(n): common.errors(model, data / f"test_cluster_{n}") for n in SMALL},
    }


# Two molecules.


def _energies(model: Path) -> Energies:
    """Energies by a model, in this process."""
    import dpserver

    potential = dpserver.load(model, device="cpu", threads=1)
    return lambda frames: potential.evaluate(frames).energy


def _open(positions: Floats) -> Frames:
    """Open structures of as many atoms each, molecule by molecule, (n, n_atoms, 3)."""
    n, n_atoms = positions.shape[:2]
    types = np.tile([0, 1, 1], n * n_atoms // 3)
    frame_idx = np.repeat(np.arange(n), n_atoms)
    return Frames(positions.reshape(-1, 3), types, np.zeros((n, 3, 3)), np.zeros((n, 3), dtype=bool), frame_idx)


def _interaction(energies: Energies, pairs: Floats) -> Floats:
    """E(AB) - E(A) - E(B) of rigid molecules, (n,), eV."""
    alone = float(energies(_open(spce.molecule()[None]))[0])
    parts = [energies(_open(pairs[k : k + _CHUNK].reshape(-1, 6, 3))) for k in range(0, len(pairs), _CHUNK)]
    return np.concatenate(parts) - 2 * alone


def _pairs(settings: Record) -> Iterator[tuple[float, Floats]]:
    """Two molecules in random orientations, the same at every distance: the distance and (n, 2, 3, 3)."""
    rng = np.random.default_rng(settings["seed"])
    n = settings["orientations"]
    first, second = (spce.molecule() @ spce.rotations(rng, n) for _ in range(2))
    for radius in _RADII:
        yield float(radius), np.stack([first, second + np.array([0.0, 0.0, radius])], axis=1)


def pairs(model: Path, settings: Record) -> dict[str, Any]:
    """Interaction of two rigid molecules against their distance, and B2(T) from it, by the model and by the teacher."""
    energies, errors, sizes = _energies(model), list[float](), list[float]()
    weights: dict[str, list[Floats]] = {"model": [], "teacher": []}
    for _, placed in _pairs(settings):
        exact = spce.pair_energies(placed[:, 0], placed[:, 1])
        apart = np.linalg.norm(placed[:, 0, :, None] - placed[:, 1, None], axis=3)
        is_apart = (apart > _CLOSEST).all(axis=(1, 2))
        found = np.zeros(len(placed))
        if is_apart.any():
            found[is_apart] = _interaction(energies, placed[is_apart])
            errors.append(float(np.sqrt(np.mean((found - exact)[is_apart] ** 2))))
            sizes.append(float(np.sqrt(np.mean(exact[is_apart] ** 2))))
        else:
            errors.append(float("nan"))
            sizes.append(float("nan"))
        for name, values in (("model", found), ("teacher", exact)):
            beta = 1 / (BOLTZMANN * np.array(TEMPERATURES))
            mayer = np.where(is_apart, np.expm1(-np.minimum(beta[:, None] * values, 700.0)), -1.0)
            weights[name].append(mayer.mean(axis=1))
    served = list(_pairs({**settings, "orientations": 1}))[5::12]
    placed = [ase.Atoms("OHHOHH", x.reshape(-1, 3)) for _, x in served]
    alone = dynamics.served(model, [ase.Atoms("OHH", spce.molecule())]).energies[0]
    over_socket = dynamics.served(model, placed).energies - 2 * alone
    here = np.concatenate([_interaction(energies, x) for _, x in served])
    return {
        "radius": _RADII,
        "rms_error_mev": [1e3 * e for e in errors],
        "rms_teacher_mev": [1e3 * e for e in sizes],
        "temperature": list(TEMPERATURES),
        **{f"b2_{name}_cm3": _second_virial(np.array(values)) for name, values in weights.items()},
        "served_difference_ev": float(np.abs(over_socket - here).max()),
    }


def _second_virial(mayer: Floats) -> Floats:
    """B2 = -2π ∫ ⟨exp(-βU) - 1⟩ r² dr for each temperature, cm³/mol.

    Args:
        mayer: the mean over orientations at each distance, (n_radii, n_temperatures); -1 below the first.
    """
    square = _RADII[:, None] ** 2 * mayer
    outer = (0.5 * (square[1:] + square[:-1]) * np.diff(_RADII)[:, None]).sum(axis=0)
    return -2 * np.pi * _CM3 * (outer - _RADII[0] ** 3 / 3)


# Clusters, the liquid, the cost.


def clusters(model: Path, settings: Record) -> dict[str, Any]:
    """Errors of clusters that are larger than any in training, by size: meV per molecule, and meV/Å."""
    energies, rows = _energies(model), []
    shift = _shift(energies)
    for size in LARGE:
        found = []
        for k in range(settings["structures"]):
            seed = settings["seed"] + 1000 + 100 * size + k
            found += spce.sample(spce.cluster(size, seed), 250, 100, 100, seed, settling=200)
        frames = spce.frames_of(found)
        difference = energies(frames) - spce.evaluate(frames).energy - shift * size
        rows.append(
            {
                "n_molecules": size,
                "mean_mev": 1e3 * float(difference.mean() / size),
                "rms_mev": 1e3 * float(np.sqrt(np.mean((difference / size) ** 2))),
            }
        )
    return {"clusters": rows}


def _shift(energies: Energies) -> float:
    """What the model's energy of one molecule is off."""
    one = _open(spce.molecule()[None])
    return float(energies(one)[0] - spce.evaluate(one).energy[0])


def _distribution(positions: Floats, cells: Floats, symbols: tuple[str, ...]) -> dict[str, Any]:
    """g(r) of O-O, O-H and H-H."""
    return {"bin": _BIN, **pair_distributions(positions, cells, symbols, _BIN)}


def teacher_liquid(data: Path) -> dict[str, Any]:
    """g(r) of the teacher's own dynamics at 300 K."""
    systems = [common.read_system(data / name) for name in ("liquid_300", "test_liquid")]
    positions, cells = (np.concatenate([getattr(s, name) for s in systems]) for name in ("positions", "cells"))
    halves = [_distribution(s.positions, s.cells, s.symbols) for s in systems]
    return {"n_frames": len(positions), **_distribution(positions, cells, systems[0].symbols), "halves": halves}


def liquid(folder: Path, model: Path, settings: Record, data: Path) -> dict[str, Any]:
    """g(r) of the model's liquid, by i-PI through the daemon."""
    system = common.read_system(data / "liquid_300")
    start = ase.Atoms(system.symbols, system.positions[-1], cell=system.cells[-1], pbc=True)
    ase.io.write(folder / "start.xyz", start)
    plan = dynamics.Dynamics(
        folder / "start.xyz", settings["steps"], 0.5, settings["temperature_k"], seed=settings["seed"],
        frames=max(10, settings["steps"] // 400), stride=5,
    )  # fmt: skip
    columns = dynamics.run(folder / "run", model, plan)
    (bead,) = dynamics.read_frames(folder / "run", 0.1)
    return {
        "length_ps": float(columns["time"][-1]),
        "n_frames": len(bead.positions),
        "temperature_k": float(columns["temperature"][len(columns["step"]) // 10 :].mean()),
        **_distribution(bead.positions, bead.cells, bead.symbols),
    }


def cost(models: dict[str, Path], settings: Record) -> dict[str, Any]:
    """Seconds of an evaluation of liquids of several sizes, all models in turn, and the ratio that charges make."""
    import dpserver

    loaded = {name: dpserver.load(model, device="cpu") for name, model in models.items()}
    rows = []
    for side in settings["n_sides"]:
        frames = spce.frames_of([spce.liquid(side, settings["seed"])])
        seconds: dict[str, list[float]] = {name: [] for name in loaded}
        rng = np.random.default_rng(settings["seed"])
        for k in range(settings["rounds"] + 1):
            moved = frames.positions + rng.normal(0, 1e-3, frames.positions.shape)
            for name, potential in loaded.items():
                began = time.perf_counter()
                potential.evaluate(Frames.single(moved, frames.types, frames.cell[0]))
                if k:
                    seconds[name].append(time.perf_counter() - began)
        found = {name: float(np.median(values)) for name, values in seconds.items()}
        ratio = found["charges"] / found["short_range"]
        rows.append({"n_atoms": frames.n_atoms, **{f"{n}_s": s for n, s in found.items()}, "ratio": ratio})
    return {"sizes": rows}


def served(model: Path, settings: Record) -> dict[str, Any]:
    """A liquid by a daemon over a socket, and here: how far energy and forces differ."""
    import dpserver

    atoms = spce.liquid(settings["n_side"], settings["seed"])
    energy, forces, _ = dynamics.served(model, [atoms])
    here = dpserver.load(model, device="cpu").evaluate(spce.frames_of([atoms]))
    return {
        "n_atoms": len(atoms),
        "energy_difference_ev": float(abs(energy[0] - here.energy[0])),
        "largest_force_difference": float(np.abs(forces[0] - here.forces).max()),
    }


def page(found: dict[str, Record]) -> str:
    """The page."""
    return long_range_page.page(found)


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model."""
    return long_range_page.answered(found)


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    return long_range_page.claims(found)
