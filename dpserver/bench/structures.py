"""Structures to time a model on."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Final

import numpy as np

from dpserver.frames import Frames, Ints
from dpserver.models.potential import Potential

_USUAL: float = 0.1
"""Atoms per Å³, as in water, where nothing tells better."""

_EVEN: Final = np.array([0.8191725134, 0.6710436067, 0.5497004779])
"""Steps along three directions that spread over 0 to 1 what is counted in them, 1/g, 1/g², 1/g³ with g⁴ = g + 1."""


def composition(model: Potential) -> tuple[list[int], float]:
    """Species and density of a structure that a model is likely to have been made for.

    Args:
        model: its `sel`, where it has numbers for each species, tells how many neighbours there are of each.

    Returns:
        Types of some atoms in the right proportion, and the neighbours of an atom within the cutoff, two thirds of the
        slots of the species that fills them first.
    """
    parts = list(getattr(model.descriptor, "parts", [model.descriptor]))
    fullest = min((p for p in parts if hasattr(p, "sel")), key=lambda p: sum(p.sel) / p.rcut**3, default=None)
    sel = None if fullest is None else fullest.sel
    n_species = len(model.species)
    if model.template is not None:
        types = [model.species.index(symbol) for symbol in model.template]
    elif sel is not None and len(sel) == n_species:
        types = [species for species, n in enumerate(sel) for _ in range(n)]
    else:
        types = list(range(n_species))
    if fullest is None or sel is None:
        return types, _USUAL * 4 / 3 * np.pi * model.rcut**3
    slots = np.array(sel) if len(sel) == n_species else np.full(n_species, np.inf)
    share = np.bincount(types, minlength=n_species) / len(types)
    most = min(float(sum(sel)), float(np.min(slots[share > 0] / share[share > 0])))
    return types, 2 / 3 * most * (model.rcut / fullest.rcut) ** 3


def imagined(types: Sequence[int] | Ints, n_atoms: int, rcut: float, neighbours: float) -> Frames:
    """A cube of atoms on a disturbed lattice, for a model whose structures are not at hand.

    Species are spread evenly: drawn at random, some of many atoms would have half as many neighbours of one species
    again as the others, more than `sel` holds.

    Args:
        types: species of some atoms, whose composition the cube gets.
        n_atoms: how many there are to be.
        rcut: cutoff, Å.
        neighbours: of an atom within the cutoff.
    """
    rng = np.random.default_rng(0)
    density = neighbours / (4 / 3 * np.pi * rcut**3)
    n = int(np.ceil(n_atoms ** (1 / 3)))
    sites = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    sites = sites[rng.permutation(n**3)[:n_atoms]]
    edge = (n_atoms / density) ** (1 / 3)
    positions = (sites + 0.5 + rng.uniform(-0.15, 0.15, sites.shape)) * (edge / n)
    composition = np.sort(np.asarray(types, dtype=np.int64))[np.arange(n_atoms) * len(types) // n_atoms]
    species = np.empty_like(composition)
    species[np.argsort(sites @ _EVEN % 1.0)] = composition
    return Frames.single(positions, species, edge * np.eye(3))


def tiled(frame: Frames, n: int) -> Frames:
    """A periodic structure, n times along each lattice vector."""
    grid = np.stack(np.meshgrid(*[np.arange(n)] * 3, indexing="ij"), axis=-1).reshape(-1, 3)
    positions = (frame.positions + (grid @ frame.cell[0])[:, None]).reshape(-1, 3)
    return Frames.single(positions, np.tile(frame.types, n**3), n * frame.cell[0])


def moving(frames: Frames) -> Callable[[], Frames]:
    """A function that gives the structures with every atom a little elsewhere each time, within the skin of lists."""
    rng = np.random.default_rng(1)
    others = [
        replace(frames, positions=frames.positions + rng.uniform(-0.02, 0.02, frames.positions.shape)) for _ in range(4)
    ]
    count = iter(range(10**9))
    return lambda: others[next(count) % 4]
