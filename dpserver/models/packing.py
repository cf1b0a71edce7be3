"""Fitting nets, those for charges, and all other numbers in their precision, as the CPU kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dpserver.frames import Floats
from dpserver.kernels import layout, simd
from dpserver.kernels.activations import code
from dpserver.kernels.fitting import pack, padded
from dpserver.kernels.layout import Nets, NetSpace
from dpserver.models.planning import Net, nets_of, rounded, skip_of, split_first

if TYPE_CHECKING:
    from dpserver.models.networks import Layer
    from dpserver.models.potential import Potential

ALIGNMENT: Final = 64
"""Bytes."""


@dataclass(frozen=True)
class NetSizes:
    """Largest rows of numbers that the net of any member and any species needs.

    Attributes:
        inputs: of a net, padded; outputs: of all hidden layers together; product: of one layer.
    """

    inputs: int = 0
    outputs: int = 0
    product: int = 0

    def space(self, rows: int, dtype: np.dtype[Any]) -> NetSpace:
        """Arrays for so many atoms, whole tiles; zeros, since padding is computed on as well."""
        columns = [self.inputs] * 2 + [self.outputs] * 2 + [self.product] * 3
        return NetSpace(*(aligned(rows * n + 2 * simd.lanes(dtype), dtype) for n in columns))


def aligned(size: int, dtype: Any) -> Any:
    """Zeros that begin where a vector register likes it."""
    dtype = np.dtype(dtype)
    raw = np.zeros(size * dtype.itemsize + ALIGNMENT, dtype=np.uint8)
    skip = -raw.ctypes.data % ALIGNMENT
    return raw[skip : skip + size * dtype.itemsize].view(dtype)


class Store:
    """Arrays that grow, and the sizes they ask for.

    Args:
        dtype: of weights.
        n_members: of potentials; n_species: number of species.
        has_charges: whether they have nets for charges.

    Attributes:
        dtype: the same.
        lanes: numbers in a vector.
        sizes: of the nets.
    """

    def __init__(self, dtype: Any, n_members: int, n_species: int, *, has_charges: bool = False) -> None:
        self.dtype = np.dtype(dtype)
        self.lanes = simd.lanes(dtype)
        self.sizes = NetSizes()
        self._weights: list[Any] = []
        self._n_weights = self._most = 0
        self._heads = np.zeros((n_members, n_species), dtype=layout.HEAD)
        self._charge_heads = np.zeros((n_members if has_charges else 0, n_species), dtype=layout.HEAD)
        self._bias, self._charge_bias = np.zeros(self._heads.shape), np.zeros(self._charge_heads.shape)
        self._layers: list[dict[str, int]] = []
        self._layer_parameter: list[float] = []

    def add(self, numbers: Any) -> int:
        """Keep numbers; where they are."""
        at = self._n_weights
        flat = np.ascontiguousarray(numbers, dtype=self.dtype).ravel()
        self._weights.append(flat)
        filled = rounded(len(flat), ALIGNMENT // self.dtype.itemsize)
        self._weights.append(np.zeros(filled - len(flat), dtype=self.dtype))
        self._n_weights += filled
        return at

    def add_padded(self, numbers: Any, size: int) -> int:
        """Keep a row of numbers, filled up with zeros."""
        return self.add(np.concatenate([numbers, np.zeros(size - len(numbers))]))

    def add_packed(self, matrix: Floats) -> int:
        """Keep a matrix as products read it."""
        return self.add(pack(matrix.astype(self.dtype), padded(matrix.shape[1], self.dtype)))

    def need(self, columns: int) -> None:
        """Let there be as many zeros as columns of a product."""
        self._most = max(self._most, columns)

    def add_nets(self, member: Potential, where: tuple[int, int], first: Floats | None = None) -> None:
        """Keep the nets of a member for one species: that of energies, and that of charges where there is one.

        Args:
            member: the potential.
            where: its number, and the species.
            first: weights of their first layers side by side, for inputs that are not the descriptor itself; see
                `planning.first_layers`.
        """
        nets = nets_of(member, where[1])
        firsts = [None] * len(nets) if first is None else split_first(nets, first, self.dtype)
        self._bias[where] = nets[0].constant
        self._add_net(nets[0], self._heads[where], firsts[0])
        if len(nets) > 1:
            self._charge_bias[where] = nets[1].constant
            self._add_net(nets[1], self._charge_heads[where], firsts[1])

    def _add_net(self, net: Net, head: Any, first: Floats | None) -> None:
        """Keep one net, with weights of its first layer or with others."""
        layer_at = len(self._layers)
        activation, parameter = code(net.activation_function)
        for number, layer in enumerate(net.layers):
            self._add_layer(layer, first if number == 0 else None, activation)
            self._layer_parameter.append(parameter)
        here = self._layers[layer_at:]
        products = [max(layer["product"], layer["n_in_padded"] if k else 0) for k, layer in enumerate(here)]
        head["n_inputs"], head["layer_at"], head["n_layers"] = here[0]["n_in"], layer_at, len(here)
        head["last_at"] = self.add_padded(net.last, here[-1]["width"])
        self.sizes = NetSizes(
            max(self.sizes.inputs, here[0]["n_in_padded"]),
            max(self.sizes.outputs, sum(layer["width"] for layer in here)),
            max(self.sizes.product, *products),
        )

    def _add_layer(self, layer: Layer, weights: Floats | None, activation: int) -> None:
        """Keep a hidden layer, with weights of its own or with others."""
        skip = 0 if weights is None else skip_of(layer, self.dtype)
        copies = layer.copies if weights is None else 0
        weights = layer.weight.detach().double().numpy() if weights is None else weights
        n_out = layer.weight.shape[1]
        width, columns = padded(n_out, self.dtype), padded(weights.shape[1], self.dtype)
        timestep = np.ones(n_out) if layer.timestep is None else layer.timestep.detach().double().numpy()
        self._layers.append(
            {
                "n_in": len(weights),
                "n_in_padded": padded(len(weights), self.dtype),
                "n_out": n_out,
                "width": width,
                "product": columns,
                "weight_at": self.add_packed(weights),
                "transposed_at": self.add_packed(weights.T),
                "bias_at": self.add_padded(layer.bias.detach().double().numpy(), columns),
                "timestep_at": self.add_padded(timestep, width),
                "copies": copies,
                "skip": skip,
                "activation": activation,
            }
        )

    def finish(self) -> Nets:
        """Put everything in place."""
        layers = np.zeros(len(self._layers), dtype=layout.LAYER)
        for row, values in zip(layers, self._layers, strict=True):
            for name, value in values.items():
                row[name] = value
        zeros_at = self.add(np.zeros(max(self._most, *vars(self.sizes).values())))
        weights = aligned(self._n_weights, self.dtype)
        weights[:] = np.concatenate(self._weights)
        return Nets(
            self._heads,
            self._charge_heads,
            layers,
            np.array(self._layer_parameter),
            self._bias,
            self._charge_bias,
            weights,
            zeros_at,
        )
