"""Fitting nets on the atoms of a block: from the inputs to energies, and from there to derivatives by the inputs.

Where there are nets for charges q as well, of the same inputs u, the derivatives are those of E + Σ_i q_i dE_far/dq_i:

    dE/du_i = dN/du_i + φ_i dq_i/du_i      φ = `Batch.by_charge`, found with the charges that `find_charges` tells
"""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np

from dpserver.frames import Floats, Ints
from dpserver.jit import jit, jit_reordered
from dpserver.kernels import simd
from dpserver.kernels.activations import TANH, activate
from dpserver.kernels.layout import Batch, Nets, NetSpace, Numbers, Output

_ROWS: Final = simd.TILE_ROWS
_VECTORS: Final = simd.TILE_VECTORS
_DEPTH: Final = 128
"""Rows of a matrix that are multiplied at a time: a strip of them stays in the first cache."""


class Matrix(NamedTuple):
    """Rows of numbers in a flat array.

    Attributes:
        numbers: the array.
        at: where the first row begins.
        step: from one row to the next; 0 where all are the same.
    """

    numbers: Numbers
    at: int
    step: int


@jit
def multiply(a: Matrix, w: Matrix, start: Matrix, c: Matrix, size: tuple[int, int, int]) -> None:
    """C = start + A W.

    Args:
        a: left factor.
        w: right factor, laid out by `pack`.
        start: what is added to; it may be C.
        c: result.
        size: rows, filled up to whole tiles; columns of A; columns of C, whole tiles.
    """
    n_rows, depth, columns = size
    width = _VECTORS * simd.lanes_of(a.numbers)
    part = -(-depth // -(-depth // _DEPTH)) if depth else 1
    for low in range(0, max(depth, 1), part):
        here = start if low == 0 else c
        high = min(part, depth - low)
        for column in range(0, columns, width):
            at = w.at + column * depth + low * width
            for row in range(0, n_rows, _ROWS):
                simd.product_tile(
                    a.numbers,
                    w.numbers,
                    here.numbers,
                    c.numbers,
                    a.at + row * a.step + low,
                    a.step,
                    at,
                    here.at + row * here.step + column,
                    here.step,
                    c.at + row * c.step + column,
                    c.step,
                    high,
                )


@jit
def evaluate_nets(nets: Nets, batch: Batch, output: Output, space: NetSpace, low: int, high: int, where: Ints) -> None:
    """Energies of the atoms of a block from the inputs of their net, and derivatives by these.

    Args:
        nets: of all members.
        batch: the atoms.
        output: where energies go.
        space: with inputs.
        low: first atom of the block.
        high: the last + 1.
        where: rows, filled up to whole tiles; member; species.
    """
    n_rows, member, centre = where
    head, atoms = nets.heads[member, centre], batch.atoms[low:high]
    fit(nets, space, n_rows, head)
    find_outputs(nets, space, n_rows, head, nets.bias[member, centre], atoms, output.atom_energy[member])
    begin_backward(nets, space, n_rows, head)
    fit_backward(nets, space, n_rows, head, False)
    if len(nets.charge_heads):
        head = nets.charge_heads[member, centre]
        fit(nets, space, n_rows, head)
        begin_backward(nets, space, n_rows, head)
        _weigh(nets, space, n_rows, head, atoms, batch.by_charge[member])
        fit_backward(nets, space, n_rows, head, True)


@jit
def find_charges(nets: Nets, batch: Batch, output: Output, space: NetSpace, low: int, high: int, where: Ints) -> None:
    """What the nets say of the charges of the atoms of a block; see `evaluate_nets`."""
    n_rows, member, centre = where
    head, atoms = nets.charge_heads[member, centre], batch.atoms[low:high]
    fit(nets, space, n_rows, head)
    find_outputs(nets, space, n_rows, head, nets.charge_bias[member, centre], atoms, output.atom_charge[member])


@jit
def fit(nets: Nets, space: NetSpace, n_rows: int, head: Any) -> None:
    """Run the hidden layers of a net on `n_rows` rows of inputs, forward."""
    source = Matrix(space.inputs, 0, head.n_inputs)
    at = 0
    for q in range(head.layer_at, head.layer_at + head.n_layers):
        layer = nets.layers[q]
        outputs = Matrix(space.outputs, at, layer.width)
        weights, bias = Matrix(nets.weights, layer.weight_at, 0), Matrix(nets.weights, layer.bias_at, 0)
        product = Matrix(space.product, 0, layer.product)
        multiply(source, weights, bias, product, (n_rows, layer.n_in, layer.product))
        for r in range(n_rows):
            _activate(layer, nets, space, r * layer.product, at + r * layer.width, nets.layer_parameter[q])
            to, given = at + r * layer.width, source.at + r * source.step
            for copy in range(layer.copies):
                begin = to + copy * layer.n_in
                _add(outputs.numbers[begin : begin + layer.n_in], source.numbers[given : given + layer.n_in])
            if layer.skip:
                given = r * layer.product + layer.skip
                _add(outputs.numbers[to : to + layer.n_out], space.product[given : given + layer.n_out])
        source = outputs
        at += n_rows * layer.width


@jit
def _activate(layer: Any, nets: Nets, space: NetSpace, given: int, to: int, parameter: float) -> None:
    """Outputs and slopes of the activation function of a layer, times the time step, for one atom."""
    outputs, slopes, weights, product = space.outputs, space.slopes, nets.weights, space.product
    if layer.activation == TANH:
        simd.tanh_layer(product, weights, outputs, slopes, given, layer.timestep_at, to, layer.width)
        return
    for o in range(layer.width):
        y, slope = activate(layer.activation, parameter, float(product[given + o]))
        timestep = float(weights[layer.timestep_at + o])
        outputs[to + o] = y * timestep
        slopes[to + o] = slope * timestep


# Loops over slices, so that numba need not allow for negative indices, and LLVM can use vectors.


@jit
def _add(target: Numbers, a: Numbers) -> None:
    for o in range(len(target)):
        target[o] += a[o]


@jit
def _multiply(target: Numbers, a: Numbers, b: Numbers) -> None:
    for o in range(len(target)):
        target[o] = a[o] * b[o]


@jit
def _scale(target: Numbers, factor: float) -> None:
    for o in range(len(target)):
        target[o] *= factor


@jit
def _copy(target: Numbers, a: Numbers) -> None:
    for o in range(len(target)):
        target[o] = a[o]


@jit_reordered
def _dot(a: Numbers, b: Numbers) -> float:
    total = 0.0
    for o in range(len(a)):
        total += float(a[o]) * float(b[o])
    return total


@jit
def find_outputs(nets: Nets, space: NetSpace, n_rows: int, head: Any, bias: float, atoms: Ints, target: Floats) -> None:
    """What a net says of the atoms of a block, from the last hidden layer."""
    last = nets.layers[head.layer_at + head.n_layers - 1]
    weights = nets.weights[head.last_at : head.last_at + last.n_out]
    at = _place(nets, head, head.n_layers - 1, n_rows)
    for r in range(len(atoms)):
        begin = at + r * last.width
        target[atoms[r]] = _dot(space.outputs[begin : begin + last.n_out], weights) + bias


@jit
def _place(nets: Nets, head: Any, layer: int, n_rows: int) -> int:
    """Where the outputs of a layer begin."""
    at = 0
    for q in range(head.layer_at, head.layer_at + layer):
        at += n_rows * nets.layers[q].width
    return at


@jit
def begin_backward(nets: Nets, space: NetSpace, n_rows: int, head: Any) -> None:
    """Derivatives of what a net says by the outputs of its last hidden layer."""
    width = nets.layers[head.layer_at + head.n_layers - 1].width
    for r in range(n_rows):
        _copy(space.by_output[r * width : (r + 1) * width], nets.weights[head.last_at : head.last_at + width])


@jit
def _weigh(nets: Nets, space: NetSpace, n_rows: int, head: Any, atoms: Ints, weight: Floats) -> None:
    """Multiply these derivatives by a number of each atom; rows without an atom become 0."""
    width = nets.layers[head.layer_at + head.n_layers - 1].width
    for r in range(n_rows):
        _scale(space.by_output[r * width : (r + 1) * width], weight[atoms[r]] if r < len(atoms) else 0.0)


@jit
def fit_backward(nets: Nets, space: NetSpace, n_rows: int, head: Any, is_added: bool) -> None:
    """Derivatives by the inputs of a net from those by the outputs of its last hidden layer.

    Args:
        nets: of all members.
        space: with outputs and slopes of the net, and derivatives in `by_output`.
        n_rows: filled up to whole tiles.
        head: the net.
        is_added: to what is in `by_inputs`, which is overwritten otherwise.
    """
    given, other = space.by_output, space.by_next
    for number in range(head.n_layers - 1, -1, -1):
        layer = nets.layers[head.layer_at + number]
        at, depth, width, n_in = _place(nets, head, number, n_rows), layer.skip + layer.n_out, layer.width, layer.n_in
        for r in range(n_rows):
            row, to = r * width, r * layer.product
            slopes = space.slopes[at + row : at + row + width]
            _multiply(space.product[to : to + width], given[row : row + width], slopes)
            if layer.skip:
                to += layer.skip
                _copy(space.product[to : to + layer.n_out], given[row : row + layer.n_out])
        target = Matrix(space.by_inputs if number == 0 else other, 0, layer.n_in_padded)
        start = Matrix(nets.weights, nets.zeros_at, 0)
        is_fresh = number > 0 or not is_added
        if is_fresh and layer.copies == 1:
            start = Matrix(given, 0, width)
        elif layer.copies or not is_fresh:
            start = target
            for r in range(n_rows):
                row, to = r * width, r * target.step
                if is_fresh:
                    target.numbers[to : to + n_in] = 0
                for copy in range(layer.copies):
                    begin = row + copy * n_in
                    _add(target.numbers[to : to + n_in], given[begin : begin + n_in])
        product, weights = Matrix(space.product, 0, layer.product), Matrix(nets.weights, layer.transposed_at, 0)
        multiply(product, weights, start, target, (n_rows, depth, target.step))
        given, other = target.numbers, given


def pack(matrix: Numbers, columns: int) -> Numbers:
    """Lay out a matrix as `simd.product_tile` reads it: strips of columns, each row by row.

    Args:
        matrix: (depth, n), in the dtype of the product.
        columns: n rounded up with `padded`; the rest is zero.
    """
    width = _VECTORS * simd.lanes(matrix.dtype)
    full = np.zeros((len(matrix), columns), dtype=matrix.dtype)
    full[:, : matrix.shape[1]] = matrix
    return np.ascontiguousarray(full.reshape(len(matrix), columns // width, width).transpose(1, 0, 2)).ravel()


def padded(n: int, dtype: np.dtype[Any] | type) -> int:
    """Columns rounded up to whole tiles."""
    width = _VECTORS * simd.lanes(dtype)
    return -(-n // width) * width
