"""Fitting nets, and all other numbers in their precision, as the CPU kernels read them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from dpserver.frames import Floats
from dpserver.kernels import layout, simd
from dpserver.kernels.activations import code
from dpserver.kernels.fitting import pack, padded
from dpserver.kernels.layout import Nets, NetSpace
from dpserver.models.planning import constant_of, layers_of, rounded, skip_of

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

    Attributes:
        dtype: the same.
        lanes: numbers in a vector.
        sizes: of the nets.
    """

    def __init__(self, dtype: Any, n_members: int, n_species: int) -> None:
        self.dtype = np.dtype(dtype)
        self.lanes = simd.lanes(dtype)
        self.sizes = NetSizes()
        self._weights: list[Any] = []
        self._n_weights = self._most = 0
        self._heads = np.zeros((n_members, n_species), dtype=layout.HEAD)
        self._bias = np.zeros((n_members, n_species))
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

    def add_net(self, member: Potential, where: tuple[int, int], first: Floats | None = None) -> None:
        """Keep the fitting net of a member for one species.

        Args:
            member: the potential.
            where: its number, and the species.
            first: weights of the first layer, for inputs that are not the descriptor itself; then there are further
                columns that carry on what of the descriptor is added to the output, see `planning.skip_of`.
        """
        centre = where[1]
        layers = layers_of(member, centre)
        layer_at = len(self._layers)
        activation, parameter = code(member.config.fitting_net.activation_function)
        for number, layer in enumerate(layers[:-1]):
            self._add_layer(layer, first if number == 0 else None, activation)
            self._layer_parameter.append(parameter)
        here = self._layers[layer_at:]
        products = [max(layer["product"], layer["n_in_padded"] if k else 0) for k, layer in enumerate(here)]
        head = self._heads[where]
        head["n_inputs"], head["layer_at"], head["n_layers"] = here[0]["n_in"], layer_at, len(here)
        head["last_at"] = self.add_padded(layers[-1].weight.detach().double().numpy()[:, 0], here[-1]["width"])
        self._bias[where] = constant_of(member, centre)
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
        return Nets(self._heads, layers, np.array(self._layer_parameter), self._bias, weights, zeros_at)
