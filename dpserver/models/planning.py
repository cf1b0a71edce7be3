"""How the kernels are to evaluate the atoms of one species: the way with the fewest operations.

Moments have one column for each channel of the embedding nets; or fewer columns, mixed into channels; or products of
these columns are the inputs of the fitting net as they are (`kernels.products`). Without directions the moments
themselves are the inputs. The scale of the descriptor is folded into the first layer of the fitting net.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final

import numpy as np
import torch

from dpserver.frames import Floats
from dpserver.kernels import products, simd
from dpserver.kernels.fitting import padded
from dpserver.kernels.linear import product
from dpserver.kernels.products import Magnitudes, Products
from dpserver.kernels.tables import Table, Tabulation
from dpserver.models.curves import (
    Tabulated,
    argument,
    break_of,
    charge_nets,
    descriptor_of,
    expected_of,
    features,
    switched,
    tabulated,
    without_types,
)
from dpserver.models.kept_tables import fingerprint
from dpserver.models.networks import Layer
from dpserver.models.radii import COVALENT_RADII, UNKNOWN_RADIUS
from dpserver.models.se_e2_r import SCALE, SeE2R
from dpserver.neighbors.lists import CLOSEST

if TYPE_CHECKING:
    from dpserver.models.config.electrostatics import ChargeNetConfig
    from dpserver.models.fitting import Fitting
    from dpserver.models.potential import Potential

REACH: Final = (0.5, 0.8)
"""Tables reach down to between these parts of the smallest distance seen in training,"""
TYPICAL_REACH: Final = 0.6
"""if possible to this part of the sum of two covalent radii, and there where no distance is known."""

_PRODUCT_ERROR: Final = 0.01
"""Weights of products left out, as a part of the error of tables, both relative."""
_SAMPLES: Final = 600
_NEAREST: Final = 1.6


def reach_of(member: Potential) -> Floats:
    """Smallest distances that tables reach, (n_species, n_species), Å."""
    radii = np.array([COVALENT_RADII.get(symbol, UNKNOWN_RADIUS) for symbol in member.species])
    known = np.isfinite(member.min_distance)
    typical = TYPICAL_REACH * (radii[:, None] + radii)
    seen = np.where(known, member.min_distance, 0.0)
    reach = np.where(known, np.clip(typical, REACH[0] * seen, REACH[1] * seen), typical)
    return np.asarray(np.clip(reach, CLOSEST, member.rcut / 2))


@dataclass(frozen=True, eq=False)
class Plan:
    """How the atoms of one species are evaluated by one member.

    Attributes:
        tables: of each species of neighbours.
        starts: place of each table's columns in a row of moments.
        columns: length of such a row.
        mix: from columns to channels, (columns, n_channels), or None.
        products: inputs of the nets, with the weights of their first layers, see `first_layers`.
    """

    tables: list[Table]
    starts: list[int]
    columns: int
    mix: Floats | None
    products: Products


def make_plan(member: Potential, centre: int, reach: Floats, dtype: Any, tolerance: float) -> Plan:
    """Choose what needs the fewest operations.

    Args:
        member: the potential.
        centre: species of the atoms.
        reach: smallest distance to each species of neighbours, Å.
        dtype: of the kernels.
        tolerance: of tables.
    """
    descriptor, lanes = descriptor_of(member), simd.lanes(dtype)
    n_species = descriptor.n_species
    tabulations, distances = [], []
    for k in range(n_species):
        tabulations.append(tabulation_of(member, (centre, k), reach[k], tolerance))
        distances.append(np.linspace(reach[k], descriptor.rcut, _SAMPLES))
    if isinstance(descriptor, SeE2R):
        return _plan_of_sums(member, descriptor, centre, dtype, list(zip(tabulations, distances, strict=True)))
    first = first_layers(member, centre, dtype)
    shape = (descriptor.config.neuron[-1], descriptor.config.axis_neuron, first.shape[1])
    weights = np.asarray(first.reshape(shape) / sum(descriptor.sel) ** 2)
    n_channels = len(weights)
    plain = products.of_channels(weights)
    tables = [t.table() for t in tabulations]
    candidates = [Plan(tables, [0] * n_species, rounded(n_channels, lanes), None, plain)]
    compressed = [t.compressed(argument(descriptor, r)) for t, r in zip(tabulations, distances, strict=True)]
    few = [t for t in compressed if t is not None]
    if len(few) == n_species:
        columns = [rounded(t.coefficients.shape[2], lanes) for t in few]
        starts = [sum(columns[:k]) for k in range(n_species)]
        mixes = [t.mix for t in few if t.mix is not None]
        mix = np.zeros((sum(columns), n_channels))
        for start, part in zip(starts, mixes, strict=True):
            mix[start : start + len(part)] = part
        sizes = [_magnitudes(descriptor, (centre, k), few[k], distances[k]) for k in range(n_species)]
        fewer = products.of_columns(weights, mixes, starts, sizes, _PRODUCT_ERROR * tolerance)
        candidates += [Plan(few, starts, sum(columns), mix, plain), Plan(few, starts, sum(columns), None, fewer)]
    return min(candidates, key=lambda plan: _operations(plan, descriptor))


def tabulation_of(member: Potential, pair: tuple[int, int], reach: float, tolerance: float) -> Tabulation:
    """Polynomials for the features of a pair of species: those kept in the model file, if they are of these weights.

    Args:
        member: the potential.
        pair: species of centre and neighbour.
        reach: smallest distance, Å.
        tolerance: of tables.
    """
    descriptor, (centre, neighbour) = descriptor_of(member), pair
    end, kept = float(argument(descriptor, np.array([reach]))[0]), None
    if member.tables is not None and member.tables.fingerprint == fingerprint(member):
        kept = member.tables.find(centre * descriptor.n_species + neighbour, end, tolerance)
    return Tabulation(features(descriptor, centre, neighbour), end, tolerance, break_of(descriptor), kept)


def _plan_of_sums(
    member: Potential, descriptor: SeE2R, centre: int, dtype: Any, sampled: Sequence[tuple[Tabulation, Floats]]
) -> Plan:
    """Choose the columns of sums, which are the inputs of the fitting net.

    After them come, for each species of neighbours, the number of its empty slots and that of neighbours that are
    excluded: each of the ones adds G of an empty slot, each of the others G of what is 0 once normalised.

    Args:
        member: the potential.
        descriptor: its own.
        centre: species of the atoms.
        dtype: of the kernels.
        sampled: each species' functions, and distances where they are sampled.
    """
    lanes, n_species = simd.lanes(dtype), descriptor.n_species
    weights = first_layers(member, centre, dtype) * (SCALE / sum(descriptor.sel))
    constants = np.array([0.0, float(descriptor.davg[centre, 0])])
    counted = [product(features(descriptor, centre, k)(constants, 0)[0], weights) for k in range(n_species)]

    def rows(table: Table) -> Floats:
        mixed = weights if table.mix is None else product(table.mix, weights)
        return np.pad(mixed, ((0, rounded(len(mixed), lanes) - len(mixed)), (0, 0)))

    def plan(tables: list[Table], of_tables: list[Floats], starts: list[int]) -> Plan:
        columns = sum(map(len, of_tables))
        inputs = Products(np.zeros((0, 3), dtype=np.int64), np.concatenate([*of_tables, *counted]))
        return Plan(tables, starts, columns, None, inputs)

    plain = [tabulation.table() for tabulation, _ in sampled]
    fewer = [tabulation.compressed(argument(descriptor, r)) for tabulation, r in sampled]
    few = [one or other for one, other in zip(fewer, plain, strict=True)]
    of_few = [rows(table) for table in few]
    starts = [sum(map(len, of_few[:k])) for k in range(n_species)]
    candidates = [plan(plain, [rows(plain[0])], [0] * n_species), plan(few, of_few, starts)]
    return min(candidates, key=lambda plan: _operations(plan, descriptor))


def _magnitudes(descriptor: Tabulated, pair: tuple[int, int], table: Table, r: Floats) -> Magnitudes:
    """Sizes of moments and of their derivatives, in a uniform density that fills two thirds of `sel`.

    Two more neighbours are bonded, between the smallest distance r₀ and 1.5 r₀.

    Args:
        descriptor: of the potential.
        pair: species of centre and neighbour.
        table: of the pair.
        r: distances from the smallest one that the table reaches to the cutoff, evenly spaced, Å.
    """
    centre, neighbour = pair
    davg, dstd = (t[centre].numpy() for t in (descriptor.davg, descriptor.dstd))
    sel, nearest, step = expected_of(descriptor)[neighbour], _NEAREST * r[0], r[1] - r[0]
    number = 2 * sel * (r / r[-1]) ** 2 / r[-1] * (r > nearest)
    number = (number + 2 / (0.5 * nearest) * ((r > nearest) & (r < 1.5 * nearest))) * step
    s = switched(descriptor, r)
    rows = np.stack([(s - davg[0]) / dstd[0], s / dstd[1]])
    radial, angular = rows[:, :, None] * table.columns(argument(descriptor, r))
    mean = product(number, radial) + sel / 3 * radial[-1]
    moment = np.sqrt(mean**2 + product(number, radial**2 + angular**2))
    along = np.gradient(radial, step, axis=0) ** 2 + np.gradient(angular, step, axis=0) ** 2
    slope = np.sqrt(product(number, along + 2 * (angular / r[:, None]) ** 2) / number.sum())
    return Magnitudes(moment, slope)


def _operations(plan: Plan, descriptor: Tabulated) -> float:
    """Multiplications and additions per atom that depend on the choice, with two thirds of the slots taken."""
    found, each = plan.products.weights.size * 4.0, 46.0 if isinstance(descriptor, SeE2R) else 70.0
    for n, table in zip(expected_of(descriptor), plan.tables, strict=True):
        found += each * (2 / 3 * n) * table.coefficients.shape[2]
    return found if plan.mix is None else found + 16.0 * plan.mix.size


@dataclass(frozen=True, eq=False)
class Net:
    """A net of the atoms of one species, its last layer apart.

    Attributes:
        layers: hidden ones.
        activation_function: its name.
        last: weights of the last layer, which is linear, (n,).
        constant: what is added to its product with its input.
    """

    layers: list[Layer]
    activation_function: str
    last: Floats
    constant: float


@torch.no_grad()
def nets_of(member: Potential, centre: int) -> list[Net]:
    """The net of energies of a species, in eV, and that of charges, in e, if surroundings decide these."""
    *hidden, last = layers_of(member, centre)
    name = member.config.fitting_net.activation_function
    nets = [Net(hidden, name, _weights(last)[:, 0], constant_of(member, centre))]
    if (charges := charge_nets(member)) is not None:
        *hidden, last = _layers(member, charges, centre)
        net = _environment(member)
        constant = net.scale * float(last.bias)
        nets.append(Net(hidden, net.activation_function, net.scale * _weights(last)[:, 0], constant))
    return nets


def _environment(member: Potential) -> ChargeNetConfig:
    """What is said of the nets for charges of a potential that has some."""
    section = member.config.electrostatics
    if section is None or section.environment is None:
        raise TypeError("the charges of this potential do not depend on the surroundings")
    return section.environment


def first_layers(member: Potential, centre: int, dtype: Any) -> Floats:
    """Weights of the first layers of all nets of a species, side by side, (n_features, n_columns).

    Where D itself is added to the output of a layer there are further columns, from `skip_of` on, that carry it on.
    """
    parts = []
    for net in nets_of(member, centre):
        layer, weights = net.layers[0], _weights(net.layers[0])
        parts.append(weights)
        if layer.copies:
            parts.append(np.zeros((len(weights), skip_of(layer, dtype) - weights.shape[1])))
            parts.append(np.tile(np.eye(len(weights)), layer.copies))
    return np.concatenate(parts, axis=1)


def split_first(nets: Sequence[Net], weights: Floats, dtype: Any) -> list[Floats]:
    """Weights of the first layers of all nets, from those side by side; see `first_layers`."""
    widths = []
    for net in nets:
        layer = net.layers[0]
        n_out = layer.weight.shape[1]
        widths.append(skip_of(layer, dtype) + n_out if layer.copies else n_out)
    return np.split(weights, np.cumsum(widths)[:-1], axis=1)


def skip_of(layer: Layer, dtype: Any) -> int:
    """Column from which on the input of a first layer is carried on; 0 where it is not."""
    return padded(layer.weight.shape[1], dtype) if layer.copies else 0


def layers_of(member: Potential, centre: int) -> list[Layer]:
    """The layers of a fitting net, the linear last one as well; it is all zeros for atoms without energy."""
    layers = _layers(member, member.fitting, centre)
    if centre in member.absent:
        layers[-1] = deepcopy(layers[-1])
        for parameter in layers[-1].parameters():
            torch.nn.init.zeros_(parameter)
    return layers


def _layers(member: Potential, fitting: Fitting, centre: int) -> list[Layer]:
    """The layers of the net of a species, which is told nothing but the descriptor."""
    layers = [layer for layer in fitting.net_of(centre).children() if isinstance(layer, Layer)]
    if (descriptor := tabulated(member)) is not None:
        layers[0] = without_types(descriptor, layers[0], centre)
    return layers


def _weights(layer: Layer) -> Floats:
    return np.asarray(layer.weight.detach().double().numpy())


@torch.no_grad()
def constant_of(member: Potential, centre: int) -> float:
    """What is added to the last layer's product with its input, eV."""
    if centre in member.absent:
        return 0.0
    constant = float(member.energy_bias[centre]) + float(layers_of(member, centre)[-1].bias)
    return constant - float(member.fitting.vacuum(centre)) if centre in member.vacuum_removed else constant


def rounded(n: int, multiple: int) -> int:
    """The next multiple."""
    return -(-n // multiple) * multiple
