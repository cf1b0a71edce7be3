"""The descriptor with local frames, `loc_frame`, and its fitting nets, on CPU cores.

neighbours  r_ij of those within the cutoff, the nearest of each species in the order of their distances
features    D in the frame of each atom, see `models.loc_frame`
fitting     the net on the standardised D, forward and backward
back        from derivatives by D to those by r_ij, directly and through the frame
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.cpu import NO_VIRIAL, add_edge, clear_edges, filled, write_virial
from dpserver.kernels.fitting import evaluate_nets, find_charges
from dpserver.kernels.layout import COLINEAR, GOOD, NO_FRAME, TOO_CLOSE, Batch, FrameModel, FrameSpace, Output

FRAME: Final = 15
"""Numbers that are kept of a frame."""


@jit
def run_blocks(
    counter: Ints, model: FrameModel, batch: Batch, output: Output, space: FrameSpace, ends_with_charges: bool
) -> None:
    """Take blocks until there are none left, and every stage on each; see `cpu.Kernels`."""
    where = np.zeros(3, dtype=np.int64)
    while True:
        block = simd.take_number(counter)
        if block >= len(batch.blocks):
            return
        low, high, centre = batch.blocks[block]
        find_neighbours(model, batch, space, low, high)
        find_features(model, batch, output, space, low, high, centre)
        for member in range(len(model.mean)):
            where[0], where[1], where[2] = filled(high - low), member, centre
            standardise(model, space, high - low, member, centre)
            if ends_with_charges:
                find_charges(model.nets, batch, output, space.net, low, high, where)
                continue
            evaluate_nets(model.nets, batch, output, space.net, low, high, where)
            finish_edges(model, batch, output, space, low, high, where)


STAGES: Final[tuple[str, ...]] = ("neighbours", "features", "fitting", "back to edges")


def stages(
    model: FrameModel, batch: Batch, output: Output, space: FrameSpace, block: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The stages of `run_blocks` for one block; see `cpu.Kernels`."""
    low, high, centre = map(int, batch.blocks[block])
    yield "neighbours", partial(find_neighbours, model, batch, space, low, high)
    yield "features", partial(find_features, model, batch, output, space, low, high, centre)
    for member in range(len(model.mean)):
        where = np.array([filled(high - low), member, centre])
        yield "features", partial(standardise, model, space, high - low, member, centre)
        yield "fitting", partial(evaluate_nets, model.nets, batch, output, space.net, low, high, where)
        yield "back to edges", partial(finish_edges, model, batch, output, space, low, high, where)


@jit
def find_neighbours(model: FrameModel, batch: Batch, space: FrameSpace, low: int, high: int) -> None:
    """The neighbours that the atoms of a block see, by species and distance."""
    n_species = len(model.slots)
    n = 0
    for a in range(high - low):
        i = batch.atoms[low + a]
        for k in range(n_species):
            space.first[a * n_species + k] = n
            row = i * n_species + k
            n_found = _look(model, batch, space, i, batch.starts[row], batch.starts[row + 1])
            _rank(space.found[3, :n_found], space.rank[:n_found])
            n_seen = min(n_found, model.slots[k, 0] + model.slots[k, 1])
            _put(space, n, n_found, n_seen)
            n += n_seen
    space.first[(high - low) * n_species] = n


@jit
def _look(model: FrameModel, batch: Batch, space: FrameSpace, i: int, start: int, end: int) -> int:
    """Those edges of an atom that are within the cutoff: how many."""
    x, shifts, found, square_of_rcut = batch.positions, batch.shifts, space.found, model.rcut**2
    x_i, y_i, z_i = x[i]
    n = 0
    for e in range(start, end):
        there, shift = x[batch.neighbour[e]], shifts[batch.shift[e]]
        dx = there[0] - x_i + shift[0]
        dy = there[1] - y_i + shift[1]
        dz = there[2] - z_i + shift[2]
        square = dx * dx + dy * dy + dz * dz
        found[0, n], found[1, n], found[2, n], found[3, n] = dx, dy, dz, square
        space.found_slot[n] = e
        n += square < square_of_rcut
    return n


@jit
def _rank(key: Floats, rank: Ints) -> None:
    """The place of each number among all, the smallest first, and equal ones as they come.

    Each is compared with all: of a few dozen numbers that is quicker than sorting, for nothing has to be guessed.
    """
    for q in range(len(key)):
        here, n = key[q], 0
        for p in range(q):
            n += key[p] <= here
        for p in range(q + 1, len(key)):
            n += key[p] < here
        rank[q] = n


@jit
def _put(space: FrameSpace, first: int, n_found: int, n_seen: int) -> None:
    """Put the nearest neighbours of one species in order, from `first` on."""
    found, near = space.found, space.near
    for q in range(n_found):
        if space.rank[q] < n_seen:
            e = first + space.rank[q]
            near[0, e], near[1, e], near[2, e] = found[0, q], found[1, q], found[2, q]
            near[3, e] = 1 / math.sqrt(found[3, q])
            space.slot[e] = space.found_slot[q]


@jit
def find_features(
    model: FrameModel, batch: Batch, output: Output, space: FrameSpace, low: int, high: int, centre: int
) -> None:
    """D before standardisation, and the frames."""
    n_species, near = len(model.slots), space.near
    for a in range(high - low):
        i = batch.atoms[low + a]
        output.status[i] = GOOD if _find_frame(model, space, a, centre) else NO_FRAME
        frame, feature = space.frame[a], space.feature[a]
        feature[:] = 0
        for k in range(n_species):
            first, end = space.first[a * n_species + k], space.first[a * n_species + k + 1]
            n_full, at = min(model.slots[k, 0], end - first), model.places[k, 0]
            if first < end and near[3, first] * model.closest > 1:
                output.status[i] = TOO_CLOSE
            for e in range(first, first + n_full):
                x, y, z, inverse = near[0, e], near[1, e], near[2, e], near[3, e]
                square = inverse * inverse
                feature[at] = inverse
                feature[at + 1] = (frame[0] * x + frame[1] * y + frame[2] * z) * square
                feature[at + 2] = (frame[3] * x + frame[4] * y + frame[5] * z) * square
                feature[at + 3] = (frame[6] * x + frame[7] * y + frame[8] * z) * square
                at += 4
            at = model.places[k, 1] - first - n_full
            for e in range(first + n_full, end):
                feature[at + e] = near[3, e]


@jit
def _find_frame(model: FrameModel, space: FrameSpace, a: int, centre: int) -> bool:
    """The frame of one atom; False, and zeros, where its neighbours span none."""
    frame, near = space.frame[a], space.near
    p, q = _axis(model, space, a, centre, 0), _axis(model, space, a, centre, 1)
    if p < 0 or q < 0:
        frame[:] = 0
        return False
    for d in range(3):
        frame[d] = near[d, p] * near[3, p]
        frame[9 + d] = near[d, q] * near[3, q]
    _cross(frame, 0, 9, 6)
    sine = math.sqrt(frame[6] * frame[6] + frame[7] * frame[7] + frame[8] * frame[8])
    if sine < COLINEAR:
        frame[:] = 0
        return False
    for d in range(6, 9):
        frame[d] /= sine
    _cross(frame, 6, 0, 3)
    frame[12], frame[13], frame[14] = near[3, p], near[3, q], 1 / sine
    return True


@jit
def _axis(model: FrameModel, space: FrameSpace, a: int, centre: int, axis: int) -> int:
    """The neighbour that an axis of an atom's frame points to, or -1."""
    k, slot = model.axes[centre, 2 * axis], model.axes[centre, 2 * axis + 1]
    row = a * len(model.slots) + k
    e = space.first[row] + slot
    return e if e < space.first[row + 1] else -1


@jit
def _cross(v: Floats, a: int, b: int, c: int) -> None:
    """Write the vector product of those at two places of an array to a third one."""
    v[c] = v[a + 1] * v[b + 2] - v[a + 2] * v[b + 1]
    v[c + 1] = v[a + 2] * v[b] - v[a] * v[b + 2]
    v[c + 2] = v[a] * v[b + 1] - v[a + 1] * v[b]


@jit
def standardise(model: FrameModel, space: FrameSpace, n_rows: int, member: int, centre: int) -> None:
    """Inputs of the fitting net."""
    n_features = space.feature.shape[1]
    mean, scale = model.mean[member, centre], model.scale[member, centre]
    for a in range(n_rows):
        _standardise(space.net.inputs[a * n_features : (a + 1) * n_features], space.feature[a], mean, scale)


@jit
def _standardise(inputs: Floats, feature: Floats, mean: Floats, scale: Floats) -> None:
    for f in range(len(inputs)):
        inputs[f] = (feature[f] - mean[f]) * scale[f]


@jit
def finish_edges(
    model: FrameModel, batch: Batch, output: Output, space: FrameSpace, low: int, high: int, where: Ints
) -> None:
    """Write dE/dr_ij of the edges of a block, and the virials of its atoms.

    With u = 1/r the features are u and e_k·r u² for the three axes, so that, g the derivatives by them,

        dE/dr = Σ_k g_k u² e_k - (g_0 u³ + 2 Σ_k g_k e_k·r u⁴) r,   dE/de_k = Σ_neighbours g_k u² r
    """
    _, member, centre = where
    n_species, near, gradient = len(model.slots), space.near, space.gradient
    scale, by_feature = model.scale[member, centre], space.by_feature
    step = model.nets.layers[model.nets.heads[member, centre].layer_at].n_in_padded
    by_frame = np.empty(FRAME)
    for a in range(high - low):
        i, start = batch.atoms[low + a], space.first[a * n_species]
        _scale(by_feature, space.net.by_inputs[a * step : a * step + len(scale)], scale)
        by_frame[:] = 0
        for k in range(n_species):
            first, end = space.first[a * n_species + k], space.first[a * n_species + k + 1]
            middle = first + min(model.slots[k, 0], end - first)
            _full_gradients(space, space.frame[a], by_frame, model.places[k, 0], first, middle, start)
            at = model.places[k, 1] - middle
            for e in range(middle, end):
                along = -by_feature[at + e] * near[3, e] ** 3
                for d in range(3):
                    gradient[d, e - start] = along * near[d, e]
        if output.status[i] == GOOD:
            _frame_gradients(space.frame[a], by_frame)
            p, q = _axis(model, space, a, centre, 0) - start, _axis(model, space, a, centre, 1) - start
            for d in range(3):
                gradient[d, p] += by_frame[d]
                gradient[d, q] += by_frame[9 + d]
        clear_edges(batch, output, i, n_species, member)
        _write(batch, output, space, i, member, start, space.first[(a + 1) * n_species])


@jit
def _scale(target: Floats, a: Floats, b: Floats) -> None:
    for f in range(len(target)):
        target[f] = a[f] * b[f]


@jit
def _full_gradients(
    space: FrameSpace, frame: Floats, by_frame: Floats, at: int, first: int, end: int, start: int
) -> None:
    """dE/dr of the neighbours that enter with all numbers, the frame held, and the derivatives by its axes.

    Args:
        space: of the thread.
        frame: of the atom.
        by_frame: derivatives by it, to be added to.
        at: first feature.
        first: neighbour.
        end: the last one + 1.
        start: first neighbour of the atom.
    """
    near, g, gradient = space.near, space.by_feature, space.gradient
    for e in range(first, end):
        x, y, z, inverse = near[0, e], near[1, e], near[2, e], near[3, e]
        square = inverse * inverse
        g_x, g_y, g_z = g[at + 1] * square, g[at + 2] * square, g[at + 3] * square
        for d in range(3):
            r = near[d, e]
            by_frame[d] += g_x * r
            by_frame[3 + d] += g_y * r
            by_frame[6 + d] += g_z * r
        vx = g_x * frame[0] + g_y * frame[3] + g_z * frame[6]
        vy = g_x * frame[1] + g_y * frame[4] + g_z * frame[7]
        vz = g_x * frame[2] + g_y * frame[5] + g_z * frame[8]
        along = -(g[at] * inverse + 2 * (vx * x + vy * y + vz * z)) * square
        gradient[0, e - start] = vx + along * x
        gradient[1, e - start] = vy + along * y
        gradient[2, e - start] = vz + along * z
        at += 4


@jit
def _frame_gradients(frame: Floats, g: Floats) -> None:
    """From derivatives by e_x, e_y, e_z to those by the vectors to the axis neighbours, at places 0 and 9 of `g`.

    e_y = e_z × e_x, e_z = n/|n|, n = e_x × b, e_x and b the directions to the two.
    """
    for d in range(3):
        up, down = (d + 1) % 3, (d + 2) % 3
        # e_x × g_y to e_z, g_y × e_z to e_x
        g[6 + d] += frame[up] * g[3 + down] - frame[down] * g[3 + up]
        g[d] += g[3 + up] * frame[6 + down] - g[3 + down] * frame[6 + up]
    _project(frame, g, 6, frame[14])
    for d in range(3):
        up, down = (d + 1) % 3, (d + 2) % 3
        g[d] += frame[9 + up] * g[6 + down] - frame[9 + down] * g[6 + up]
        g[9 + d] = g[6 + up] * frame[down] - g[6 + down] * frame[up]
    _project(frame, g, 0, frame[12])
    _project(frame, g, 9, frame[13])


@jit
def _project(frame: Floats, g: Floats, at: int, inverse: float) -> None:
    """From the derivatives by a direction to those by the vector, given 1/length: what is along it goes."""
    along = frame[at] * g[at] + frame[at + 1] * g[at + 1] + frame[at + 2] * g[at + 2]
    for d in range(at, at + 3):
        g[d] = (g[d] - along * frame[d]) * inverse


@jit
def _write(batch: Batch, output: Output, space: FrameSpace, i: int, member: int, start: int, end: int) -> None:
    """Write the derivatives of one atom's energy."""
    near, gradient = space.near, space.gradient
    target, virial = output.edge_gradient[member], NO_VIRIAL
    for e in range(start, end):
        r, q = (near[0, e], near[1, e], near[2, e]), e - start
        virial = add_edge(target, virial, space.slot[e], r, (gradient[0, q], gradient[1, q], gradient[2, q]))
    write_virial(output.atom_virial[member, i], virial)
