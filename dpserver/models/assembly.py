"""From potentials to the arrays that the CPU kernels run on: embedding nets as tables, everything linear folded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from dpserver.frames import Floats
from dpserver.kernels import layout, simd
from dpserver.kernels.activations import code
from dpserver.kernels.fitting import pack, padded
from dpserver.kernels.layout import Model, Workspace
from dpserver.kernels.linear import one_thread
from dpserver.kernels.tables import TableError
from dpserver.models.curves import Tabulated, descriptor_of, limits_of, slots_of, variable_of
from dpserver.models.networks import Layer
from dpserver.models.planning import Plan, constant_of, layers_of, make_plan, reach_of, rounded, skip_of

if TYPE_CHECKING:
    from dpserver.models.potential import Potential

FINEST: Final = {np.dtype(np.float64): 5e-11, np.dtype(np.float32): 3e-7}
"""Smallest error of tables that rounding leaves possible, or that makes a difference."""
ACCEPTED: Final = 10.0
"""Tables may deviate by so many times what was aimed at; nets with kinks deviate by thousands of times as much."""
_ALIGNMENT: Final = 64


@dataclass(frozen=True)
class Sizes:
    """Largest rows of numbers that any member and any species of centres needs.

    Attributes:
        moment: columns of moments; mixed: of channels.
        inputs: of a fitting net, padded; outputs: of all hidden layers together; product: of one layer.
    """

    moment: int
    mixed: int
    inputs: int
    outputs: int
    product: int

    def workspace(self, rows: int, room: int, n_species: int, dtype: np.dtype[Any]) -> Workspace:
        """Arrays for blocks of so many atoms with so many edges; zeros, since padding is computed on as well."""
        rows = -(-rows // simd.TILE_ROWS) * simd.TILE_ROWS
        slack = 2 * simd.lanes(dtype)
        room = rounded(room + rows * n_species + 2, _ALIGNMENT)

        def numbers(columns: int) -> Any:
            return aligned(rows * columns + slack, dtype)

        return Workspace(
            aligned(layout.EDGE_ROWS * room, np.float64).reshape(layout.EDGE_ROWS, room),
            np.zeros(room, dtype=np.int64),
            np.zeros(rows * n_species + 1, dtype=np.int64),
            np.zeros(rows * n_species, dtype=np.int64),
            aligned(simd.RECORD * room, dtype).reshape(room, simd.RECORD),
            np.zeros(room, dtype=np.int32),
            aligned(simd.RECORD * room, dtype).reshape(room, simd.RECORD),
            *(numbers(4 * self.moment) for _ in range(2)),
            *(numbers(4 * self.mixed) for _ in range(2)),
            *(numbers(self.inputs) for _ in range(2)),
            *(numbers(self.outputs) for _ in range(2)),
            *(numbers(self.product) for _ in range(3)),
        )


@dataclass(frozen=True, eq=False)
class Assembly:
    """Potentials for the kernels.

    Attributes:
        model: all numbers.
        sizes: of the workspace.
        error: the largest of all tables.
        is_accurate: whether that is near what was aimed at.
    """

    model: Model
    sizes: Sizes
    error: TableError
    is_accurate: bool


@one_thread()
def assemble(members: Sequence[Potential], table_error: float) -> Assembly:
    """Tabulate and fold the weights of potentials of one cutoff, one `sel` and the same species.

    Args:
        members: that the kernels know, see `curves.tabulated`.
        table_error: of forces, relative, that is aimed at.
    """
    dtype = np.dtype(np.float64 if members[0].network_dtype == torch.float64 else np.float32)
    table_error = max(table_error, FINEST[dtype])
    store = _Store(dtype)
    n_members, n_species = len(members), len(members[0].species)
    descriptor = descriptor_of(members[0])
    reach = np.min([reach_of(member) for member in members], axis=0)
    model = Model(
        np.array([descriptor.rcut, descriptor.config.rcut_smth, descriptor.config.env_protection]),
        np.array(slots_of(descriptor), dtype=np.int64),
        np.array(limits_of(descriptor), dtype=np.int64),
        variable_of(descriptor),
        np.array([[exclusion(descriptor, c, k) for k in range(n_species)] for c in range(n_species)]),
        reach**2,
        np.zeros((n_members, n_species, 8)),
        np.zeros((n_members, n_species, n_species, 2), dtype=np.int64),
        np.ones((n_members, n_species, n_species)),
        np.zeros(0, dtype=np.int32),
        np.zeros(0),
        np.zeros((n_members, n_species, n_species, 3), dtype=np.int64),
        np.zeros((n_members, n_species), dtype=layout.CENTRE),
        np.zeros((0, 3), dtype=np.int64),
        np.zeros(0, dtype=layout.LAYER),
        np.zeros(0),
        np.zeros((n_members, n_species)),
        np.zeros(0, dtype=dtype),
        0,
    )
    error = TableError(0.0, 0.0, 0.0)
    for m, member in enumerate(members):
        for c in range(n_species):
            plan = make_plan(member, c, reach[c], dtype, table_error)
            _lay_out(model, store, member, plan, (m, c))
            for table in plan.tables:
                error = error.largest(table.error)
    return Assembly(store.finish(model), store.sizes, error, max(error.value, error.first) <= ACCEPTED * table_error)


def exclusion(descriptor: Tabulated, centre: int, neighbour: int) -> int:
    """What `Model.exclusion` holds for a pair."""
    if (centre, neighbour) in descriptor.silent:
        return layout.SILENT
    if (centre, neighbour) in descriptor.unseen:
        return layout.UNSEEN
    return layout.EXCLUDED if (centre, neighbour) in descriptor.excluded else layout.SEEN


def aligned(size: int, dtype: Any) -> Any:
    """Zeros that begin where a vector register likes it."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + _ALIGNMENT, dtype=np.uint8)
    skip = -raw.ctypes.data % _ALIGNMENT
    return raw[skip : skip + size * dtype.itemsize].view(dtype)


class _Store:
    """Arrays that grow, and the sizes they ask for.

    Args:
        dtype: of weights.
    """

    def __init__(self, dtype: Any) -> None:
        self.dtype = dtype
        self.lanes = simd.lanes(dtype)
        self._weights: list[Any] = []
        self._n_weights = 0
        self.bin_first: list[int] = []
        self.bin_parts: list[int] = []
        self.segments: list[Any] = []
        self.layers: list[dict[str, int]] = []
        self.layer_parameter: list[float] = []
        self.sizes = Sizes(0, 0, 0, 0, 0)

    def add(self, numbers: Any) -> int:
        """Keep numbers; where they are."""
        at = self._n_weights
        flat = np.ascontiguousarray(numbers, dtype=self.dtype).ravel()
        self._weights.append(flat)
        filled = rounded(len(flat), _ALIGNMENT // self.dtype.itemsize)
        self._weights.append(np.zeros(filled - len(flat), dtype=self.dtype))
        self._n_weights += filled
        return at

    def add_padded(self, numbers: Any, size: int) -> int:
        """Keep a row of numbers, filled up with zeros."""
        return self.add(np.concatenate([numbers, np.zeros(size - len(numbers))]))

    def add_packed(self, matrix: Floats) -> int:
        """Keep a matrix as products read it."""
        return self.add(pack(matrix.astype(self.dtype), padded(matrix.shape[1], self.dtype)))

    def need(self, **sizes: int) -> None:
        """Make sizes at least so large."""
        self.sizes = Sizes(**{name: max(value, sizes.get(name, 0)) for name, value in vars(self.sizes).items()})

    def finish(self, model: Model) -> Model:
        """Put everything in place."""
        layers = np.zeros(len(self.layers), dtype=layout.LAYER)
        for row, values in zip(layers, self.layers, strict=True):
            for name, value in values.items():
                row[name] = value
        zeros_at = self.add(np.zeros(max(vars(self.sizes).values())))
        weights = aligned(self._n_weights, self.dtype)
        weights[:] = np.concatenate(self._weights)
        return model._replace(
            bin_first=np.array(self.bin_first, dtype=np.int32),
            bin_parts=np.array(self.bin_parts, dtype=np.float64),
            segments=np.concatenate(self.segments),
            layers=layers,
            layer_parameter=np.array(self.layer_parameter),
            weights=weights,
            zeros_at=zeros_at,
        )


def _lay_out(model: Model, store: _Store, member: Potential, plan: Plan, where: tuple[int, int]) -> None:
    """Write what one member needs for centres of one species."""
    descriptor, centre = descriptor_of(member), where[1]
    davg, dstd = (t[centre].numpy() for t in (descriptor.davg, descriptor.dstd))
    model.norm[where] = np.concatenate([davg, 1 / dstd])
    for k, (table, start) in enumerate(zip(plan.tables, plan.starts, strict=True)):
        n_intervals, powers, columns = table.coefficients.shape
        full = np.zeros((n_intervals, powers, rounded(columns, store.lanes)))
        full[:, :, :columns] = table.coefficients
        model.tables[(*where, k)] = store.add(full), full.shape[2], start
        model.bins[(*where, k)] = len(store.bin_first), len(table.parts)
        model.bins_per_s[(*where, k)] = 1 / table.width
        store.bin_first += table.first.tolist()
        store.bin_parts += table.parts.tolist()
    layers = layers_of(member, centre)
    layer_at = _add_layers(store, layers, plan.products.weights, member.config.fitting_net.activation_function)
    last = layers[-1]
    model.bias[where] = constant_of(member, centre)
    step = padded(plan.columns, store.dtype) + store.lanes
    row = {
        "columns": plan.columns,
        "step": step,
        "mix_at": -1,
        "segment_at": sum(map(len, store.segments)),
        "n_segments": len(plan.products.segments),
        "n_inputs": plan.products.n_inputs,
        "layer_at": layer_at,
        "n_layers": len(layers) - 1,
        "last_at": store.add_padded(last.weight.detach().double().numpy()[:, 0], store.layers[-1]["width"]),
    }
    store.segments.append(plan.products.segments)
    store.need(moment=step)
    if plan.mix is not None:
        n_channels = plan.mix.shape[1]
        row["mix_at"], row["unmix_at"] = store.add_packed(plan.mix), store.add_packed(plan.mix.T)
        row["channels"], row["channel_step"] = n_channels, padded(n_channels, store.dtype) + store.lanes
        store.need(mixed=row["channel_step"])
    for name, value in row.items():
        model.centres[where][name] = value


def _add_layers(store: _Store, layers: Sequence[Layer], first: Floats, activation_function: str) -> int:
    """Write the hidden layers of a fitting net, the first with weights of its own; return where they begin."""
    layer_at = len(store.layers)
    activation, parameter = code(activation_function)
    for number, layer in enumerate(layers[:-1]):
        weights = first if number == 0 else layer.weight.detach().double().numpy()
        n_out = layer.weight.shape[1]
        width, columns = padded(n_out, store.dtype), padded(weights.shape[1], store.dtype)
        timestep = np.ones(n_out) if layer.timestep is None else layer.timestep.detach().double().numpy()
        store.layers.append(
            {
                "n_in": len(weights),
                "n_in_padded": padded(len(weights), store.dtype),
                "n_out": n_out,
                "width": width,
                "product": columns,
                "weight_at": store.add_packed(weights),
                "transposed_at": store.add_packed(weights.T),
                "bias_at": store.add_padded(layer.bias.detach().double().numpy(), columns),
                "timestep_at": store.add_padded(timestep, width),
                "copies": layer.copies if number else 0,
                "skip": skip_of(layer, store.dtype) if number == 0 else 0,
                "activation": activation,
            }
        )
        store.layer_parameter.append(parameter)
    here = store.layers[layer_at:]
    store.need(
        inputs=here[0]["n_in_padded"],
        outputs=sum(layer["width"] for layer in here),
        product=max(max(layer["product"], layer["n_in_padded"] if k else 0) for k, layer in enumerate(here)),
    )
    return layer_at
