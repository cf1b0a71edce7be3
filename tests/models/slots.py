"""DeePMD-kit's way to its descriptors, slot by slot in plain numpy: an oracle for all that sums over neighbours.

Every centre has the slots of `sel`, filled with its neighbours by species and distance as far as the longest cutoff of
the model reaches, and empty ones with R̃ = 0 before normalisation.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from dpserver.frames import Floats, Frames
from dpserver.models.networks import Layer


def neighbours(frame: Frames, rcut: float) -> list[list[tuple[int, Floats]]]:
    """Type and vector of each neighbour within a cutoff, the nearest first, for every atom of one frame."""
    n = [0, 0, 0]
    for axis in range(3):
        if frame.pbc[0, axis]:
            others = [frame.cell[0, k] for k in range(3) if k != axis and frame.cell[0, k].any()]
            normal = np.cross(*others) if len(others) == 2 else frame.cell[0, axis]
            height = abs(frame.cell[0, axis] @ normal) / np.linalg.norm(normal)
            spread = np.ptp(frame.positions @ (normal / np.linalg.norm(normal)))
            n[axis] = int(np.ceil((rcut + spread) / height)) + 1
    shifts = [
        np.array([a, b, c]) @ frame.cell[0]
        for a in range(-n[0], n[0] + 1)
        for b in range(-n[1], n[1] + 1)
        for c in range(-n[2], n[2] + 1)
    ]
    found = []
    for i, here in enumerate(frame.positions):
        mine = []
        for shift in shifts:
            for j, there in enumerate(frame.positions):
                r = there + shift - here
                if 0 < np.linalg.norm(r) < rcut and (i != j or shift.any()):
                    mine.append((int(frame.types[j]), r))
        found.append(sorted(mine, key=lambda item: float(np.linalg.norm(item[1]))))
    return found


def environment(part: Any, centre: int, mine: list[tuple[int, Floats]]) -> tuple[Floats, Any]:
    """R̃ of the slots of a smooth descriptor after normalisation, and which slots hold an excluded neighbour."""
    rows, is_excluded = [], []
    for species, sel in enumerate(part.sel):
        here = [] if (centre, species) in part.unseen else [r for kind, r in mine if kind == species][:sel]
        for r in here:
            rows.append(_row(part, r))
            is_excluded.append((centre, species) in part.excluded)
        rows += [np.zeros(4)] * (sel - len(here))
        is_excluded += [False] * (sel - len(here))
    n_columns = part.davg.shape[1]
    raw = np.array(rows)[:, :n_columns]
    return (raw - part.davg[centre].numpy()) / part.dstd[centre].numpy(), np.array(is_excluded)


def _row(part: Any, r: Floats) -> Floats:
    distance, low, high = float(np.linalg.norm(r)), part.config.rcut_smth, part.config.rcut
    u = (distance - low) / (high - low)
    switch = 1.0 if u < 0 else 0.0 if u >= 1 else u**3 * (-6 * u * u + 15 * u - 10) + 1
    protected = distance + part.config.env_protection
    return switch / protected * np.array([1.0, *(r / protected)])


def network(net: Any, x: Floats) -> Floats:
    """What a net of tanh answers, (n, n_out)."""
    for layer in net:
        assert isinstance(layer, Layer)
        y = np.tanh(x @ layer.weight.detach().numpy() + layer.bias.detach().numpy())
        if layer.timestep is not None:
            y = y * layer.timestep.detach().numpy()
        x = y + np.concatenate([x] * layer.copies, axis=1) if layer.copies else y
    return x


def bounds(part: Any) -> list[slice]:
    """The slots of each species."""
    return [slice(a, b) for a, b in pairwise(np.cumsum([0, *part.sel]))]


def se_e2_a(part: Any, centre: int, mine: list[tuple[int, Floats]]) -> Floats:
    rows, is_excluded = environment(part, centre, mine)
    moment = np.zeros((4, part.config.neuron[-1]))
    for species, here in enumerate(bounds(part)):
        if (centre, species) not in part.silent:
            seen = np.where(is_excluded[here, None], 0, rows[here])
            moment += seen.T @ network(part.embedding_of(centre, species), seen[:, :1])
    moment /= sum(part.sel)
    return np.asarray(moment.T @ moment[:, : part.config.axis_neuron]).ravel()


def se_e2_r(part: Any, centre: int, mine: list[tuple[int, Floats]]) -> Floats:
    rows, is_excluded = environment(part, centre, mine)
    total = np.zeros(part.config.neuron[-1])
    for species, here in enumerate(bounds(part)):
        if (centre, species) not in part.silent:
            seen = np.where(is_excluded[here, None], 0, rows[here])
            total += network(part.embedding_of(centre, species), seen).sum(axis=0)
    return total / sum(part.sel) / 5


def se_e3(part: Any, centre: int, mine: list[tuple[int, Floats]]) -> Floats:
    rows, is_excluded = environment(part, centre, mine)
    u = np.where(is_excluded[:, None], 0, rows[:, 1:])
    total = np.zeros(part.config.neuron[-1])
    for a, slots_a in enumerate(bounds(part)):
        for b, slots_b in enumerate(bounds(part)):
            if a <= b and part.sel[a] and part.sel[b]:
                angles = (u[slots_a] @ u[slots_b].T).reshape(-1, 1)
                net = part.embedding[b * len(part.sel) + a]
                total += (angles * network(net, angles)).sum(axis=0) / (part.sel[a] * part.sel[b])
    return total


ORACLES = {"se_e2_a": se_e2_a, "se_e2_r": se_e2_r, "se_e3": se_e3}
