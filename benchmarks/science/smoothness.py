"""Smoothness: jumps of the energy where neighbours cross the cutoff or change places, and what they do to dynamics.

1. One atom of the liquid moves by less than 10⁻³ Å, so that on its way exactly one thing happens: a neighbour crosses
   the cutoff, two neighbours change places in the order, or two axis neighbours do. What is left of ΔE when the work of
   the forces is taken away is the jump.
2. All atoms move along straight lines by 0.05 Å: what is left between 800 points.
3. Dynamics at constant energy, i-PI through the daemon, with steps of 0.25, 0.5 and 1 fs in double and mixed
   precision (single is mixed on a CPU): the drift of the conserved quantity.

Each for se_e2_a (the shipped model) and loc_frame (trained by the part water, or here if it has not been; left out
where the data for that are not there). About two hours on two cores, nearly all of it dynamics: 100 ps in double
precision, 25 ps in mixed, 1 ps for loc_frame, which heats up.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import ase.io
import numpy as np

import dpserver
from benchmarks.science import dynamics, smoothness_page
from benchmarks.science import water as water_part
from benchmarks.science.analysis import nearest_images, slope
from benchmarks.science.common import WATER, Experiment, MissingData, Record, identity, say
from benchmarks.science.presentation import Claim
from dpserver.ase import species_types
from dpserver.frames import Floats, Frames, Ints

TITLE: Final = smoothness_page.TITLE
TIMESTEPS: Final = (0.25, 0.5, 1.0)
LENGTHS: Final = dict(zip(smoothness_page.PRECISIONS, (100.0, 25.0), strict=True))  # ps
EVENTS: Final = ("cutoff", "order", "axes")
_BATCH: Final = 8
_N_EVENTS: Final = 20
_POINTS: Final = 40
_ROUGH_LENGTH: Final = 1.0  # ps, of loc_frame at constant energy
_REACH: Final = 2e-4  # Å that an atom moves to either side of an event


def add_options(parser: argparse.ArgumentParser) -> None:
    """Lengths and models."""
    for precision, length in LENGTHS.items():
        words = f"of each dynamics in {precision} precision, ps [{length:g}]"
        parser.add_argument(f"--{precision}-length", type=float, default=length, help=words)
    parser.add_argument("--dynamics-seed", type=int, default=31415, help="of all dynamics [31415]")
    parser.add_argument("--loc-frame", type=Path, help="a model [the one that the part water trains]")
    parser.add_argument(
        "--loc-frame-steps",
        type=int,
        default=water_part.LONG,
        help=f"of its training, if there is none yet [{water_part.LONG}]",
    )
    parser.add_argument(
        "--only", default="", help="only the measurements with this in their names, such as nve_se_e2_a"
    )


def run(experiment: Experiment, options: argparse.Namespace) -> None:
    """Measure the jumps and the drift."""
    models: dict[str, Path | None] = {"se_e2_a": WATER / "w.pt"}

    def measure(name: str, settings: Record, compute: Callable[[Path, Path, Record], Mapping[str, Any]]) -> None:
        if options.only not in name:
            return
        descriptor = "loc_frame" if "loc_frame" in name else "se_e2_a"
        if descriptor not in models:  # not before it is needed: its training needs data
            models[descriptor] = rough_model(experiment, options)
        if (model := models[descriptor]) is not None:
            settings = {**identity(model), **settings}
            experiment.measure(name, settings, lambda folder: compute(folder, model, settings))

    for descriptor in ("se_e2_a", "loc_frame"):
        n_events, points = experiment.pick((_N_EVENTS, 800), (2, 40))
        settings = {"seed": 0, "n_events": n_events, "points": _POINTS, "reach_angstrom": _REACH}
        measure(f"events_{descriptor}", settings, events)
        measure(f"path_{descriptor}", {"seed": 0, "points": points, "path_rms_angstrom": 0.05}, path)
    for descriptor, timestep, precision in runs():
        settings = {
            "seed": options.dynamics_seed, "descriptor": descriptor, "timestep_fs": timestep, "precision": precision,
        }  # fmt: skip
        # The jumps of loc_frame heat the liquid by hundreds of K in each ps.
        whole = getattr(options, f"{precision}_length") if descriptor == "se_e2_a" else _ROUGH_LENGTH
        length = experiment.pick(whole, 0.05)
        measure(f"nve_{descriptor}_{precision}_{timestep}", {**settings, "length_ps": length, "left_out": 0.1}, drift)


def rough_model(experiment: Experiment, options: argparse.Namespace) -> Path | None:
    """The loc_frame model, trained where there is none yet; None without the data to train on."""
    if options.loc_frame is not None:
        return Path(options.loc_frame)
    try:
        return water_part.rough_model(experiment, experiment.pick(options.loc_frame_steps, 20))
    except MissingData as error:
        say(f"smoothness: loc_frame is left out, since it cannot be trained: {error}")
        return None


def runs() -> list[tuple[str, float, str]]:
    """The dynamics at constant energy: descriptor, time step, precision."""
    smooth = [("se_e2_a", timestep, precision) for precision in LENGTHS for timestep in TIMESTEPS]
    return smooth + [("loc_frame", timestep, "double") for timestep in TIMESTEPS]


# Along a path.


@dataclass(frozen=True)
class Event:
    """What happens halfway along the short path of one atom.

    Attributes:
        kind: `cutoff`, `order` or `axes`.
        atom: that moves.
        centre: whose neighbours it concerns.
        position: of the moving atom where it happens, (3,), Å.
        direction: of the path, a unit vector, (3,).
    """

    kind: str
    atom: int
    centre: int
    position: Floats
    direction: Floats


def start() -> Frames:
    """64 waters; species O and H."""
    atoms = ase.io.read(WATER / "water.xyz")
    return Frames.single(atoms.positions, species_types(atoms, ("O", "H")), atoms.cell.array)


def left_over(energy: Floats, forces: Floats, path: Floats) -> Floats:
    """ΔE + Σ F·Δx between neighbouring points of a path, (n_points - 1,), eV.

    With the mean force of both points it vanishes to third order in the distance where the energy is smooth, and is the
    jump where it jumps.

    Args:
        energy: (n_points,), eV.
        forces: (n_points, n), eV/Å.
        path: coordinates of the points, (n_points, n), Å.
    """
    work = ((forces[1:] + forces[:-1]) / 2 * np.diff(path, axis=0)).sum(axis=1)
    return np.asarray(np.diff(energy) + work)


def along(potential: Any, frame: Frames, path: Floats) -> tuple[Floats, Floats]:
    """Energies, (n_points,), eV, and forces, (n_points, 3 n_atoms), eV/Å, at points (n_points, n_atoms, 3), Å."""
    energies, forces = [], []
    for part in np.array_split(path, max(1, len(path) // _BATCH)):
        batch = Frames.concatenate(Frames.single(x, frame.types, frame.cell[0]) for x in part)
        result = potential.evaluate(batch)
        energies.append(result.energy)
        forces.append(result.forces.reshape(len(part), -1))
    return np.concatenate(energies), np.concatenate(forces)


def path(_: Path, model: Path, settings: Record) -> dict[str, Any]:
    """All atoms on straight lines: what is left of ΔE, meV."""
    potential, frame = dpserver.load(model, precision="double"), start()
    direction = np.random.default_rng(settings["seed"]).normal(size=frame.positions.shape)
    direction *= settings["path_rms_angstrom"] / np.sqrt((direction**2).sum(axis=1).mean())
    t = np.linspace(0.0, 1.0, settings["points"])
    points = frame.positions + t[:, None, None] * direction
    energy, forces = along(potential, frame, points)
    left = 1e3 * np.abs(left_over(energy, forces, points.reshape(len(points), -1)))
    return {
        "largest_jump_mev": float(left.max()),
        "jumps_over_0.1_mev": int((left > 0.1).sum()),
        "median_mev": float(np.median(left)),
        "rms_force_mev_per_angstrom": 1e3 * float(np.sqrt((forces**2).mean())),
    }


def events(_: Path, model: Path, settings: Record) -> dict[str, Any]:
    """Jumps at single events, meV, and the energy along the first path of each kind, meV."""
    potential, frame = dpserver.load(model, precision="double"), start()
    generator = np.random.default_rng(settings["seed"])
    t = settings["reach_angstrom"] * np.linspace(-1.0, 1.0, settings["points"])
    found: dict[str, Any] = {}
    for kind in EVENTS:
        jumps: list[float] = []
        shown = None
        while len(jumps) < settings["n_events"]:
            event = find_event(frame, kind, generator, settings["reach_angstrom"])
            points = np.repeat(frame.positions[None], len(t), axis=0)
            points[:, event.atom] = event.position + t[:, None] * event.direction
            energy, forces = along(potential, frame, points)
            left = 1e3 * left_over(energy, forces, points.reshape(len(points), -1))
            jumps.append(float(np.abs(left).max()))
            if shown is None:
                # The energy less the work of the mean force before the event: its straight part would hide the rest.
                before = t < 0
                line = np.polyval(np.polyfit(t[before], energy[before], 1), t)
                shown = {"t_angstrom": t, "energy_mev": 1e3 * (energy - line)}
        found[kind] = {"jumps_mev": np.array(jumps), "shown": shown}
    return found


# Finding events.


def find_event(frame: Frames, kind: str, generator: np.random.Generator, reach: float) -> Event:
    """A short path of one atom on which one event of a kind happens, and no other.

    Args:
        frame: where to look.
        kind: `cutoff`: the distance to another atom passes the cutoff of 6 Å; `order`: two neighbours of one species,
            neither an axis, change places by distance from an atom; `axes`: two neighbours do of which one is an axis
            of the local frame of that atom, by the rules of examples/water/loc_frame.json.
        generator: of the candidates.
        reach: how far the atom moves to either side, Å.
    """
    while True:
        event = _candidate(frame, kind, generator)
        if event is not None and _count_events(frame, event, reach) == 1:
            return event


def _candidate(frame: Frames, kind: str, generator: np.random.Generator) -> Event | None:
    """An atom moved straight away from a centre to where the event happens, if that is near."""
    atom, centre = generator.choice(frame.n_atoms, size=2, replace=False)
    vectors = nearest_images(frame.positions - frame.positions[centre], frame.cell[0])
    distance = np.linalg.norm(vectors, axis=1)
    goal = 6.0
    if kind != "cutoff":
        same = np.flatnonzero((frame.types == frame.types[atom]) & (np.arange(frame.n_atoms) != centre))
        order = same[np.argsort(distance[same])]
        rank = int(np.flatnonzero(order == atom)[0])
        if rank + 1 >= len(order) or distance[order[rank + 1]] >= 5.5:
            return None
        is_axis = rank <= _last_axis(frame.types, int(centre), int(atom))
        if is_axis != (kind == "axes"):
            return None
        goal = float(distance[order[rank + 1]])
    unit = vectors[atom] / distance[atom]
    # Far from where it was an atom may have met others: only moves that a vibration makes are taken.
    if abs(goal - distance[atom]) > (0.6 if kind == "axes" else 0.1):
        return None
    position = frame.positions[atom] + (goal - distance[atom]) * unit
    return Event(kind, int(atom), int(centre), position, unit)


def _last_axis(types: Ints, centre: int, neighbour: int) -> int:
    """Rank of the last neighbour of its species that is an axis of the centre; -1 where none is.

    O has its two nearest H, H its nearest O and its nearest H.
    """
    if types[centre] == 0:
        return 1 if types[neighbour] == 1 else -1
    return 0


def _count_events(frame: Frames, event: Event, reach: float) -> int:
    """How many times a distance passes the cutoff or two neighbours change places on the path."""
    ranks = []
    for t in (-reach, reach):
        positions = frame.positions.copy()
        positions[event.atom] = event.position + t * event.direction
        ranks.append(_state(frame, positions))
    (orders, near), (orders_after, near_after) = ranks
    n = int((near != near_after).sum()) // 2
    for before, after in zip(orders, orders_after, strict=True):
        if not np.array_equal(before, after):
            n += _inversions(before, after)
    return n


def _state(frame: Frames, positions: Floats) -> tuple[list[Ints], Any]:
    """The order of the neighbours of each species within 6 Å of each atom, and who is within.

    All images within the cutoff count. In this cell, 12.44 Å wide, a pair has one image within 6 Å at most.
    """
    distance = np.linalg.norm(nearest_images(positions[None, :] - positions[:, None], frame.cell[0]), axis=2)
    np.fill_diagonal(distance, np.inf)
    near = distance < 6.0
    orders = []
    for row, is_near in zip(distance, near, strict=True):
        for species in (0, 1):
            mine = np.flatnonzero(is_near & (frame.types == species))
            orders.append(mine[np.argsort(row[mine], kind="stable")])
    return orders, near


def _inversions(before: Ints, after: Ints) -> int:
    """Pairs that stand in another order; those that have come or gone are counted elsewhere."""
    common = [a for a in before.tolist() if a in set(after.tolist())]
    place = {a: k for k, a in enumerate(after.tolist())}
    where = np.array([place[a] for a in common])
    return int((where[:, None] > where[None, :])[np.triu_indices(len(where), k=1)].sum())


# Dynamics.


def drift(folder: Path, model: Path, settings: Record) -> dict[str, Any]:
    """The straight line through the conserved quantity, per atom."""
    steps = round(settings["length_ps"] * 1e3 / settings["timestep_fs"])
    frame = start()
    offset = float(dpserver.load(model).evaluate(frame).energy[0])
    plan = dynamics.Dynamics(
        WATER / "water.xyz", steps, settings["timestep_fs"], 300.0, ensemble="nve", seed=settings["seed"], frames=0,
        stride=max(1, round(1.0 / settings["timestep_fs"])), offset=offset,
    )  # fmt: skip
    columns = dynamics.run(folder / "run", model, plan, precision=settings["precision"])
    first = int(settings["left_out"] * len(columns["time"]))
    columns = {name: values[first:] for name, values in columns.items()}
    time, conserved = columns["time"] * 1e-3, 1e3 * columns["conserved"] / frame.n_atoms  # ns, meV/atom
    line = slope(time, conserved)
    left = conserved - line.value * time
    thin = max(1, len(time) // 200)
    return {
        "n_atoms": frame.n_atoms,
        "steps": steps,
        "drift_mev_per_atom_ns": line.value,
        "drift_standard_error": line.error,
        "fluctuation_mev_per_atom": float(left.std()),
        "mean_temperature_k": float(columns["temperature"].mean()),
        "curve": {"time_ps": 1e3 * time[::thin], "conserved_mev_per_atom": (conserved - conserved[0])[::thin]},
    }


def page(found: dict[str, Record]) -> str:
    """The page."""
    return smoothness_page.page(found)


def answered(found: dict[str, Record]) -> dict[str, str]:
    """How the daemon has answered for each model."""
    return smoothness_page.answered(found)


def claims(found: dict[str, Record]) -> list[Claim]:
    """Lines of the index."""
    return smoothness_page.claims(found)
