"""Smooth descriptors with directions, `se_e2_a` and `se_atten`, and their fitting nets, on CPU cores.

edges      r_ij, s and what else depends on distances; moments M of the atoms, see `edges`
products   u_m = Σ_k M_ki M_kj for the pairs of columns (i, j) that the first layer of the fitting net takes
fitting    the net on u, forward and backward
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Final

import numpy as np

from dpserver.frames import Ints
from dpserver.jit import jit
from dpserver.kernels import simd
from dpserver.kernels.cpu import filled
from dpserver.kernels.edges import find_edges, find_gradients, find_moments, find_places, find_rows, finish_edges
from dpserver.kernels.fitting import Matrix, evaluate_nets, find_charges, multiply
from dpserver.kernels.layout import Batch, Model, Output, Workspace


@jit
def run_blocks(
    counter: Ints, model: Model, batch: Batch, output: Output, space: Workspace, ends_with_charges: bool
) -> None:
    """Take blocks until there are none left, and every stage on each; see `cpu.Kernels`."""
    where = np.zeros(3, dtype=np.int64)
    while True:
        block = simd.take_number(counter)
        if block >= len(batch.blocks):
            return
        low, high, centre = batch.blocks[block]
        n_rows = high - low
        find_edges(model, batch, output, space, low, high, centre)
        for member in range(len(model.norm)):
            where[0], where[1], where[2] = filled(n_rows), member, centre
            find_places(model, space, n_rows, member, centre)
            find_rows(model, space, n_rows, member, centre)
            find_moments(model, space, n_rows, member, centre)
            find_inputs(model, space, n_rows, member, centre)
            if ends_with_charges:
                find_charges(model.nets, batch, output, space.net, low, high, where)
                continue
            evaluate_nets(model.nets, batch, output, space.net, low, high, where)
            find_moment_gradients(model, space, n_rows, member, centre)
            find_gradients(model, space, n_rows, member, centre)
            finish_edges(model, batch, output, space, low, high, where)


STAGES: Final[tuple[str, ...]] = ("edges", "moments", "products", "fitting", "back to moments", "back to edges")


def stages(
    model: Model, batch: Batch, output: Output, space: Workspace, block: int
) -> Iterator[tuple[str, Callable[[], None]]]:
    """The stages of `run_blocks` for one block; see `cpu.Kernels`."""
    low, high, centre = map(int, batch.blocks[block])
    n_rows = high - low
    yield "edges", partial(find_edges, model, batch, output, space, low, high, centre)
    for member in range(len(model.norm)):
        where = np.array([filled(n_rows), member, centre])
        yield "edges", partial(find_places, model, space, n_rows, member, centre)
        yield "edges", partial(find_rows, model, space, n_rows, member, centre)
        yield "moments", partial(find_moments, model, space, n_rows, member, centre)
        yield "products", partial(find_inputs, model, space, n_rows, member, centre)
        yield "fitting", partial(evaluate_nets, model.nets, batch, output, space.net, low, high, where)
        yield "back to moments", partial(find_moment_gradients, model, space, n_rows, member, centre)
        yield "back to edges", partial(find_gradients, model, space, n_rows, member, centre)
        yield "back to edges", partial(finish_edges, model, batch, output, space, low, high, where)


@jit
def find_inputs(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """Inputs of the fitting net from moments: mixed into channels where that is so, then multiplied in pairs."""
    c = model.centres[member, centre]
    moment, step = space.moment, c.step
    if c.mix_at >= 0:
        moment, step = space.mixed, c.channel_step
        multiply(
            Matrix(space.moment, 0, c.step),
            Matrix(model.nets.weights, c.mix_at, 0),
            Matrix(model.nets.weights, model.nets.zeros_at, 0),
            Matrix(moment, 0, step),
            (4 * n_rows, c.columns, step - simd.lanes_of(moment)),
        )
    n_inputs, inputs = model.nets.heads[member, centre].n_inputs, space.net.inputs
    for a in range(n_rows):
        at = a * n_inputs
        for q in range(c.segment_at, c.segment_at + c.n_segments):
            i, j, count = model.segments[q]
            simd.products(moment, inputs, a * 4 * step, step, i, j, count, at)
            at += count


@jit
def find_moment_gradients(model: Model, space: Workspace, n_rows: int, member: int, centre: int) -> None:
    """The way back of `find_inputs`."""
    c = model.centres[member, centre]
    moment, by_moment, step = space.moment, space.by_moment, c.step
    if c.mix_at >= 0:
        moment, by_moment, step = space.mixed, space.by_mixed, c.channel_step
    by_moment[: n_rows * 4 * step] = 0
    first, by_inputs = model.nets.layers[model.nets.heads[member, centre].layer_at], space.net.by_inputs
    for a in range(n_rows):
        at = a * first.n_in_padded
        for q in range(c.segment_at, c.segment_at + c.n_segments):
            i, j, count = model.segments[q]
            simd.add_products_gradient(moment, by_inputs, by_moment, a * 4 * step, step, i, j, count, at)
            at += count
    if c.mix_at >= 0:
        multiply(
            Matrix(by_moment, 0, step),
            Matrix(model.nets.weights, c.unmix_at, 0),
            Matrix(model.nets.weights, model.nets.zeros_at, 0),
            Matrix(space.by_moment, 0, c.step),
            (4 * n_rows, c.channels, c.step - simd.lanes_of(moment)),
        )
