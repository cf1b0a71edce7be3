"""Quantum nuclei: path integrals of i-PI on energies that the daemon serves.

1. A harmonic oscillator, served as a model whose only energy is a table between heavy atoms, which stand still, and a
   light one halfway between two of them: k/4 (r² - d²) for each is k x²/2 for both, in three dimensions. The kinetic
   energy beside the exact one of the primitive path integral with as many beads.
2. Water: the quantum kinetic energy of H against the number of beads.
3. The same dynamics of 8 beads over a connection for each, as batches, and in shared memory: equal trajectories.

About 40 minutes on two cores: 16 for the oscillator, 20 for water (2 ps for each number of beads), 2 for the last.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, Final

import ase
import ase.io
import numpy as np
from ase.data import atomic_masses, atomic_numbers

from benchmarks.science import dynamics
from benchmarks.science.analysis import block_mean, oscillator_kinetic
from benchmarks.science.common import WATER, Experiment, Record, identity
from benchmarks.science.presentation import (
    NOT_MEASURED,
    Claim,
    holds,
    new_figure,
    number,
    origin,
    quick_note,
    save_figure,
    table,
)
from dpserver.models import checkpoint
from dpserver.models.config import ModelConfig, parse
from dpserver.models.potential import Potential
from dpserver.models.splines import coefficients_of
from dpserver.units import BOLTZMANN

TITLE: Final = "Quantum nuclei"
TEMPERATURE: Final = 300.0
WAVENUMBER: Final = 3500.0  # 1/cm, of an O-H bond
OSCILLATOR_BEADS: Final = (1, 2, 4, 8, 16, 32)
WATER_BEADS: Final = (1, 4, 8, 16, 32)
SEED: Final = 31415
_SIDE: Final = 3  # oscillators along each direction
_APART: Final = 8.0  # Å between oscillators, beyond the cutoff
_ARM: Final = 1.5  # Å from an oscillator to each of its two heavy atoms
_RCUT: Final = 3.2  # Å
_HEAVY: Final = 1e9  # u
_EV_OF_U: Final = 103.642696562  # eV fs²/(u Å²): 1 u Å²/fs² in eV
_SPEED_OF_LIGHT: Final = 2.99792458e-5  # cm/fs
_SETTLING: Final = 0.2  # part of a run that is left out
_WAYS: Final = ("sockets", "batch", "shm")
_WAY_NAMES: Final = {"sockets": "a connection for each bead", "batch": "native batch", "shm": "shared memory, batch"}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Lengths."""
    parser.add_argument("--oscillator-steps", type=int, default=16_000, help="of 0.25 fs [16000]")
    parser.add_argument("--water-steps", type=int, default=4_000, help="of 0.5 fs, for each number of beads [4000]")


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Measure all three."""
    steps = experiment.pick(options.oscillator_steps, 400)
    for beads in experiment.pick(OSCILLATOR_BEADS, (1, 4, 32)):
        settings = {
            "seed": SEED, "beads": beads, "steps": steps, "timestep_fs": 0.25, "temperature_k": TEMPERATURE,
            "wavenumber": WAVENUMBER, "n_oscillators": _SIDE**3,
        }  # fmt: skip
        experiment.measure(f"oscillator_{beads:02}", settings, partial(oscillator, settings=settings))
    steps = experiment.pick(options.water_steps, 60)
    for beads in experiment.pick(WATER_BEADS, (1, 8)):
        settings = {"seed": SEED, "beads": beads, "steps": steps, "timestep_fs": 0.5, "temperature_k": TEMPERATURE,
                    **identity(WATER / "w.pt")}  # fmt: skip
        experiment.measure(f"water_{beads:02}", settings, partial(water, settings=settings))
    settings = {"seed": SEED, "beads": 8, "steps": experiment.pick(200, 20), "precision": "double",
                **identity(WATER / "w.pt")}  # fmt: skip
    experiment.measure("ways", settings, partial(ways, settings=settings))


# The harmonic oscillator.


def spring_constant(wavenumber: float, mass: float) -> float:
    """The k of k x²/2, m ω², eV/Å²."""
    return mass * angular_frequency(wavenumber) ** 2 * _EV_OF_U


def angular_frequency(wavenumber: float) -> float:
    """ω = 2πcν̃, 1/fs."""
    return 2 * np.pi * _SPEED_OF_LIGHT * wavenumber


def harmonic_model(path: Path, wavenumber: float) -> Path:
    """Write a model whose only energy is k/4 (r² - d²) between Zn and H, k for the frequency of H; return the path."""
    mass = float(atomic_masses[atomic_numbers["H"]])
    r = np.linspace(0.0, _RCUT, 3201)
    pairs = np.zeros((len(r), 3))  # Zn-Zn, Zn-H, H-H
    pairs[:, 1] = 0.25 * spring_constant(wavenumber, mass) * (r**2 - _ARM**2)
    values = np.column_stack([r, pairs])
    section = {
        "type_map": ["Zn", "H"],
        "descriptor": {"type": "none", "rcut": _RCUT},
        "pair_table": {"rmin": 0.0, "step": float(r[1]), "n_splines": len(r) - 1, "rcut": _RCUT, "weights": [0.0, 1.0]},
    }
    potential = Potential(parse(ModelConfig, section))
    assert potential.table is not None
    potential.table.fill(values, coefficients_of(values, 2))
    checkpoint.save(path, potential)
    return path


def oscillators(path: Path, wavenumber: float, seed: int) -> tuple[float, ...]:
    """Write oscillators on a grid, displaced as at the temperature, and return the masses, u."""
    grid = _APART * np.stack(np.meshgrid(*[np.arange(_SIDE)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    mass = float(atomic_masses[atomic_numbers["H"]])
    width = np.sqrt(BOLTZMANN * TEMPERATURE / spring_constant(wavenumber, mass))
    light = grid + np.random.default_rng(seed).normal(scale=width, size=grid.shape)
    n, arm = len(grid), np.array([_ARM, 0.0, 0.0])
    places = np.concatenate([grid - arm, grid + arm, light])
    atoms = ase.Atoms(["Zn"] * (2 * n) + ["H"] * n, places, cell=[_SIDE * _APART] * 3, pbc=True)
    ase.io.write(path, atoms, format="extxyz")
    return (_HEAVY,) * (2 * n) + (mass,) * n


def oscillator(folder: Path, settings: Record) -> dict[str, Any]:
    """Kinetic energy of an oscillator in one dimension, meV, from dynamics and exact."""
    model = harmonic_model(folder / "harmonic.pt", settings["wavenumber"])
    masses = oscillators(folder / "start.xyz", settings["wavenumber"], settings["seed"])
    columns = dynamics.run(
        folder / "run",
        model,
        dynamics.Dynamics(
            folder / "start.xyz", settings["steps"], settings["timestep_fs"], TEMPERATURE, settings["beads"],
            thermostat="pile_l", tau=20.0, seed=settings["seed"], frames=0, stride=5,
            properties=("kinetic_cv(H){electronvolt}",), masses=masses, has_fixed_centre=False, transport="batch",
            latency=1e-4,
        ),
        precision="double",
    )  # fmt: skip
    count = 3 * settings["n_oscillators"]
    first = int(_SETTLING * len(columns["step"]))
    kinetic = block_mean(1e3 * columns["kinetic_cv(H)"][first:] / count)
    potential = block_mean(1e3 * columns["potential"][first:] / count)
    omega = angular_frequency(settings["wavenumber"])
    return {
        "kinetic_mev": kinetic.value,
        "kinetic_error": kinetic.error,
        "potential_mev": potential.value,
        "potential_error": potential.error,
        "exact_mev": 1e3 * oscillator_kinetic(omega, TEMPERATURE, settings["beads"]),
        "limit_mev": 1e3 * oscillator_kinetic(omega, TEMPERATURE, 0),
    }


# Water.


def water(folder: Path, settings: Record) -> dict[str, Any]:
    """Kinetic energies per atom of H and O, meV."""
    columns = dynamics.run(
        folder / "run",
        WATER / "w.pt",
        dynamics.Dynamics(
            WATER / "water.xyz", settings["steps"], settings["timestep_fs"], TEMPERATURE, settings["beads"],
            seed=settings["seed"], frames=0, properties=("kinetic_cv(H){electronvolt}", "kinetic_cv(O){electronvolt}"),
            thermostat="pile_g",
        ),
    )  # fmt: skip
    first = int(_SETTLING * len(columns["step"]))
    values: dict[str, Any] = {"length_ps": float(columns["time"][-1])}
    for species, count in (("H", 128), ("O", 64)):
        mean = block_mean(1e3 * columns[f"kinetic_cv({species})"][first:] / count)
        values |= {f"kinetic_{species}_mev": mean.value, f"kinetic_{species}_error": mean.error}
    return values


# Ways to the daemon.


def ways(folder: Path, settings: Record) -> dict[str, Any]:
    """Largest differences of what i-PI prints, over ways to the same daemon with the same seed."""
    plan = dynamics.Dynamics(
        WATER / "water.xyz", settings["steps"], 0.5, TEMPERATURE, settings["beads"], seed=settings["seed"], frames=1
    )
    tables, paths = {}, {}
    for way in _WAYS:
        tables[way] = dynamics.run(
            folder / way, WATER / "w.pt", replace(plan, transport=way), precision=settings["precision"]
        )
        paths[way] = np.array([bead.positions for bead in dynamics.read_frames(folder / way)])
    first = _WAYS[0]
    return {
        "differences": [
            {
                "way": way,
                "conserved_ev": float(np.abs(tables[way]["conserved"] - tables[first]["conserved"]).max()),
                "potential_ev": float(np.abs(tables[way]["potential"] - tables[first]["potential"]).max()),
                "position_angstrom": float(np.abs(paths[way] - paths[first]).max()),
                "are_files_equal": _is_same(folder / way, folder / first),
            }
            for way in _WAYS[1:]
        ],
        "last_conserved_ev": {way: float(tables[way]["conserved"][-1]) for way in _WAYS},
        "n_beads_compared": len(paths[first]),
        "plan": {k: v for k, v in asdict(plan).items() if k in ("timestep", "temperature", "ensemble")},
    }


def _is_same(folder: Path, other: Path) -> bool:
    """Whether two runs have the same lines of properties, to the last digit."""
    rows = [
        [line for line in (f / f"{dynamics.PREFIX}.out").read_text(encoding="utf-8").splitlines() if line[:1] != "#"]
        for f in (folder, other)
    ]
    return rows[0] == rows[1]


# The page.


def _named(found: dict[str, Record], prefix: str) -> list[Record]:
    return [found[name] for name in sorted(found) if name.startswith(prefix)]


def page(found: dict[str, Record]) -> str:
    """The page."""
    oscillator, water, ways = _named(found, "oscillator_"), _named(found, "water_"), found.get("ways")
    text = [_picture(oscillator, water)] if oscillator or water else []
    text += [
        f"""## The harmonic oscillator

{_SIDE**3} three-dimensional oscillators of {WAVENUMBER:.0f} cm⁻¹ at {TEMPERATURE:.0f} K, the mass of hydrogen. The
energy is a table, k/4 (r² - d²) between the light atom and each of two heavy ones that stand still d = {_ARM} Å to its
left and right: k x²/2 in all directions. It lies in a model file of its own, which the daemon serves to i-PI (PILE-L,
steps of 0.25 fs, all beads as a native batch). The exact energy is that of the primitive path integral with as many
beads, (kT/2) Σ ω²/(ω_k² + ω²), so that nothing is left but sampling and the time step.
""",
        table(
            ("beads", "length, ps", "kinetic energy (centroid virial), meV", "potential energy, meV",
             "exact for as many beads", "deviation"),
            [
                (r["settings"]["beads"], number(1e-3 * r["settings"]["steps"] * r["settings"]["timestep_fs"]),
                 number(r["kinetic_mev"], 4, r["kinetic_error"]),
                 number(r["potential_mev"], 4, r["potential_error"]), f"{r['exact_mev']:.3f}",
                 f"{100 * (r['kinetic_mev'] / r['exact_mev'] - 1):+.2f} %")
                for r in oscillator
            ],
        ),
        *([f"With infinitely many beads it is {oscillator[0]['limit_mev']:.2f} meV.\n"] if oscillator else []),
        origin(*oscillator),
        f"""## Water

64 molecules at {TEMPERATURE:.0f} K, `examples/water/w.pt`, i-PI with PILE-G and steps of 0.5 fs; the first fifth of
each run is left out. The model was trained on frames of classical nuclei, so that the stretched bonds of many beads lie
outside its data: the convergence with beads is the point here, not the last value.
""",
        table(
            ("beads", "length, ps", "H, meV", "O, meV"),
            [
                (r["settings"]["beads"], number(r["length_ps"]),
                 number(r["kinetic_H_mev"], 4, r["kinetic_H_error"]),
                 number(r["kinetic_O_mev"], 4, r["kinetic_O_error"]))
                for r in water
            ],
        ),
        f"Classical nuclei have 3/2 kT = {1.5e3 * BOLTZMANN * TEMPERATURE:.2f} meV.\n",
        origin(*water),
        "## Ways to the daemon\n",
    ]  # fmt: skip
    text.append(_ways_text(ways) if ways else origin(None))
    return "\n".join(text)


def _ways_text(record: Record) -> str:
    s = record["settings"]
    rows = [
        (
            _WAY_NAMES[d["way"]],
            number(d["conserved_ev"]),
            number(d["potential_ev"]),
            number(d["position_angstrom"]),
            "yes" if d["are_files_equal"] else "no",
        )
        for d in record["differences"]
    ]
    return (
        f"{s['beads']} beads of water, {s['steps']} steps, equal seeds, {s['precision']} precision; largest "
        f"differences from the run over {_WAY_NAMES['sockets']} in what i-PI prints.\n\n"
        + table(
            (
                "way",
                "conserved, eV",
                "potential, eV",
                "positions of all beads, Å",
                "property files equal in all digits",
            ),
            rows,
        )
        + "\n"
        + origin(record)
    )


def _picture(oscillator: list[Record], water: list[Record]) -> str:
    figure, panels = new_figure(columns=2)
    left, right = panels[0]
    if oscillator:
        omega = angular_frequency(WAVENUMBER)
        beads = np.arange(1, 49)
        exact = [1e3 * oscillator_kinetic(omega, TEMPERATURE, int(p)) for p in beads]
        left.plot(beads, exact, color="0.5", lw=1, label="exact, P beads")
        left.axhline(oscillator[0]["limit_mev"], color="0.5", lw=0.7, ls="--", label="exact, all beads")
        _points(left, oscillator, "kinetic", "o", color="#0072b2", label="i-PI, daemon")
        left.set(xlabel="beads", ylabel="kinetic energy (meV)", title="harmonic oscillator", ylim=(0, None))
        left.legend()
    if water:
        for species, colour in (("H", "#d55e00"), ("O", "#009e73")):
            _points(right, water, f"kinetic_{species}", "o-", color=colour, label=species)
        right.axhline(1.5e3 * BOLTZMANN * TEMPERATURE, color="k", lw=0.7, ls="--", label="3/2 kT")
        right.set(xlabel="beads", ylabel="kinetic energy (meV/atom)", title="water", ylim=(0, None))
        right.legend()
    return f"![Kinetic energies against beads]({save_figure(figure, 'quantum')})\n"


def _points(axes: Any, records: list[Record], name: str, marks: str, **style: str) -> None:
    beads = [r["settings"]["beads"] for r in records]
    values, errors = ([r[f"{name}_{suffix}"] for r in records] for suffix in ("mev", "error"))
    axes.errorbar(beads, values, errors, fmt=marks, ms=3.5, **style)


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model; empty where it has not."""
    oscillator, water = _named(found, "oscillator_"), _named(found, "water_")
    ways = len(_WAYS) if "ways" in found else 0
    runs = {"the table of the oscillators": len(oscillator), "`w.pt`": len(water) + ways}
    return {model: f"{n} dynamics of i-PI" if n else "" for model, n in runs.items()}


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    oscillator, water, ways = _named(found, "oscillator_"), _named(found, "water_"), found.get("ways")
    # With one bead the estimator is a constant, which has no error to compare with.
    sampled = [r for r in oscillator if r["kinetic_error"] > 1e-6 * abs(r["kinetic_mev"])]
    worst = max((abs(r["kinetic_mev"] - r["exact_mev"]) / r["kinetic_error"] for r in sampled), default=None)
    relative = max((abs(r["kinetic_mev"] / r["exact_mev"] - 1) for r in oscillator), default=None)
    beads = ", ".join(str(r["settings"]["beads"]) for r in oscillator)
    return [
        Claim(
            "Path integrals through the daemon give the exact kinetic energy of a harmonic oscillator with P beads",
            NOT_MEASURED
            if relative is None
            else f"P = {beads}: within {100 * relative:.2f} %"
            + ("" if worst is None else f", at most {worst:.1f} standard errors"),
            "βħω = 16.8, as an O–H bond has; sampling and a time step of 0.25 fs are what is left"
            + quick_note(*oscillator),
            None if worst is None else holds(worst < 4, *oscillator),
        ),
        Claim(
            "The quantum kinetic energy of H in water converges with the beads",
            NOT_MEASURED
            if not water
            else ", ".join(
                f"{number(r['kinetic_H_mev'], 4, r['kinetic_H_error'])} meV with {r['settings']['beads']} beads"
                for r in water[-2:]
            ),
            "the model saw classical nuclei only; this is its own value, not water's" + quick_note(*water),
        ),
        Claim(
            "The same physics over K connections, native batch and shared memory",
            NOT_MEASURED
            if ways is None
            else f"positions differ by at most {number(max(d['position_angstrom'] for d in ways['differences']))} Å",
            "" if ways is None else f"{ways['settings']['steps']} steps of 8 beads, equal seeds" + quick_note(ways),
            None if ways is None else holds(all(d["are_files_equal"] for d in ways["differences"]), ways),
        ),
    ]
