"""What tables hold: the features G of a neighbour as functions of one number, for a pair of species.

That number is s where nets are told nothing else but the species: se_e2_a, se_e2_r, and se_atten without attention.
With stripped and smooth type embedding

    G = N(s) (1 + F w(r))

is no smooth function of s, as w goes like s but for s^(4/3); of r it is, but for a jump of the third derivative at
rcut_smth. There the number is v, from 0 at the cutoff on:

    v = (rcut - r)/(rcut - rcut_smth)  from rcut_smth on,   1 + 1/(r + p) - 1/(rcut_smth + p)  below, p env_protection
"""

from __future__ import annotations

from copy import deepcopy
from typing import TYPE_CHECKING, Final

import numpy as np
import torch
from torch import Tensor, nn

from dpserver.frames import Floats
from dpserver.kernels import layout
from dpserver.kernels.tables import Derivatives
from dpserver.models.networks import Layer
from dpserver.models.se_atten import SeAtten
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.se_e2_r import SeE2R
from dpserver.models.taylor import derivatives

if TYPE_CHECKING:
    from dpserver.models.fitting import Fitting
    from dpserver.models.potential import Potential

Tabulated = SeE2A | SeE2R | SeAtten
"""The smooth descriptors that the kernels know."""

MOST_SPECIES: Final = 6
"""That one model with embedded types has tables for, of 36 pairs; making them takes seconds."""


def tabulated(member: Potential) -> Tabulated | None:
    """The descriptor of a potential, if the kernels know it."""
    descriptor = member.descriptor
    if isinstance(descriptor, SeE2A | SeE2R):
        return descriptor
    if not isinstance(descriptor, SeAtten) or len(descriptor.attention) or descriptor.config.lmax > 1:
        return None
    if descriptor.has_ordered_atoms:
        return None
    nets = [fitting for fitting in (member.fitting, charge_nets(member)) if fitting is not None]
    firsts = [next(layer for layer in net.net_of(0).children() if isinstance(layer, Layer)) for net in nets]
    has_skip = any(layer.copies for layer in firsts) and descriptor.config.concat_output_tebd
    return None if has_skip or descriptor.n_species > MOST_SPECIES else descriptor


def charge_nets(member: Potential) -> Fitting | None:
    """The nets that tell the charges of atoms from their surroundings; None where there are none."""
    return None if member.electrostatics is None else member.electrostatics.nets


def descriptor_of(member: Potential) -> Tabulated:
    """The descriptor of a potential that the kernels know."""
    if (descriptor := tabulated(member)) is None:
        raise TypeError(f"the kernels do not know this {type(member.descriptor).__name__}")
    return descriptor


def variable_of(descriptor: Tabulated) -> int:
    """What tables are functions of: `layout.BY_SWITCHED`, s, or `layout.BY_DISTANCE`, v."""
    is_smooth = isinstance(descriptor, SeAtten) and descriptor.config.is_stripped and descriptor.config.is_smooth
    return layout.BY_DISTANCE if is_smooth else layout.BY_SWITCHED


def switched(descriptor: Tabulated, r: Floats) -> Floats:
    """The switched 1/r, (n,), 1/Å."""
    vectors = np.zeros((len(r), 3))
    vectors[:, 0] = r
    return np.asarray(descriptor.environment(torch.from_numpy(vectors))[:, 0].numpy())


def argument(descriptor: Tabulated, r: Floats) -> Floats:
    """What tables are functions of, at some distances, (n,)."""
    if variable_of(descriptor) == layout.BY_SWITCHED:
        return switched(descriptor, r)
    config = descriptor.config
    far = (config.rcut - r) / (config.rcut - config.rcut_smth)
    near = 1 + 1 / (r + config.env_protection) - 1 / (max(config.rcut_smth, 1e-9) + config.env_protection)
    return np.where(far <= 1, far, near)


def break_of(descriptor: Tabulated) -> float | None:
    """Where a derivative of the features jumps, if anywhere."""
    return 1.0 if variable_of(descriptor) == layout.BY_DISTANCE else None


@torch.no_grad()
def features(descriptor: Tabulated, centre: int, neighbour: int) -> Derivatives:
    """G of a pair of species as a function of `argument`, with up to three derivatives."""
    davg, dstd = float(descriptor.davg[centre, 0]), float(descriptor.dstd[centre, 0])
    if isinstance(descriptor, SeE2A | SeE2R):
        net, told, factor = descriptor.embedding_of(centre, neighbour), None, None
    else:
        pair = descriptor.pair_of(descriptor.types(), centre, neighbour)
        is_stripped = descriptor.config.is_stripped
        net, told = descriptor.embedding[0], None if is_stripped else pair.double()
        factor = descriptor.embedding[1](pair[None])[0].double().numpy() if is_stripped else None
    layers = _layers(net)

    def embedded(s: Floats) -> list[Floats]:
        found = derivatives(layers, torch.from_numpy((s - davg) / dstd), told)
        return [d.numpy() / dstd**m for m, d in enumerate(found)]

    if variable_of(descriptor) == layout.BY_SWITCHED or factor is None:
        scale = 1.0 if factor is None else 1 + factor
        return lambda s, order: [d * scale for d in embedded(s)[: order + 1]]

    def by_distance(v: Floats, order: int) -> list[Floats]:
        s, w = _switches(descriptor, v)
        found = _chain(embedded(s[0]), s)
        return _product(found, [factor * w[0][:, None] + 1, *(factor * d[:, None] for d in w[1:])])[: order + 1]

    return by_distance


def _layers(net: nn.Module) -> list[Layer]:
    return [layer for layer in net.children() if isinstance(layer, Layer)]


def _switches(descriptor: Tabulated, v: Floats) -> tuple[list[Floats], list[Floats]]:
    """The switched 1/r and the switch as functions of v, each with three derivatives, (n,)."""
    config = descriptor.config
    width, p = config.rcut - config.rcut_smth, config.env_protection
    u, step = 1 - v, -1.0  # u is that of `smooth`, and du/dv
    w = [
        u**3 * (-6 * u**2 + 15 * u - 10) + 1,
        step * -30 * u**2 * (1 - u) ** 2,
        step**2 * (-60 * u + 180 * u**2 - 120 * u**3),
        step**3 * (-60 + 360 * u - 360 * u**2),
    ]
    q = 1 / (config.rcut - width * v.clip(max=1) + p)
    quotient = [q, width * q**2, 2 * width**2 * q**3, 6 * width**3 * q**4]
    far = _product([d[:, None] for d in quotient], [d[:, None] for d in w])
    is_far, ones, zeros = v <= 1, np.ones_like(v), np.zeros_like(v)
    near = [v - 1 + 1 / (max(config.rcut_smth, 1e-9) + p), ones, zeros, zeros]
    s = [np.where(is_far, a[:, 0], b) for a, b in zip(far, near, strict=True)]
    return s, [np.where(is_far, a, b) for a, b in zip(w, (ones, zeros, zeros, zeros), strict=True)]


def _chain(y: list[Floats], x: list[Floats]) -> list[Floats]:
    """Derivatives of y(x(v)) by v, from those of y by x, (n, n_channels), and of x by v, (n,)."""
    _, a, b, c = (d[:, None] for d in x)
    return [y[0], y[1] * a, y[2] * a**2 + y[1] * b, y[3] * a**3 + 3 * y[2] * a * b + y[1] * c]


def _product(a: list[Floats], b: list[Floats]) -> list[Floats]:
    """Derivatives of a product, from those of its factors."""
    return [
        a[0] * b[0],
        a[1] * b[0] + a[0] * b[1],
        a[2] * b[0] + 2 * a[1] * b[1] + a[0] * b[2],
        a[3] * b[0] + 3 * a[2] * b[1] + 3 * a[1] * b[2] + a[0] * b[3],
    ]


def slots_of(descriptor: Tabulated) -> tuple[int, ...]:
    """Slots for neighbours of each species, of which some may be empty.

    Where all species share them they are those of the first: empty slots have no species then, and one may as well have
    less than none of another.
    """
    if isinstance(descriptor, SeE2A | SeE2R):
        return descriptor.sel
    return (descriptor.n_slots, *(0,) * (descriptor.n_species - 1))


def limits_of(descriptor: Tabulated) -> tuple[int, ...]:
    """The most neighbours of each species, and of all together."""
    unlimited = int(np.iinfo(np.int64).max)
    if isinstance(descriptor, SeE2A | SeE2R):
        return (*descriptor.sel, unlimited)
    return (*(unlimited,) * descriptor.n_species, descriptor.n_slots)


def expected_of(descriptor: Tabulated) -> tuple[float, ...]:
    """Slots that neighbours of each species may be expected to take, where all are taken."""
    if isinstance(descriptor, SeE2A | SeE2R):
        return tuple(map(float, descriptor.sel))
    return (descriptor.n_slots / descriptor.n_species,) * descriptor.n_species


@torch.no_grad()
def without_types(descriptor: Tabulated, layer: Layer, centre: int) -> Layer:
    """The first layer of a fitting net with the embedding of the centre's type, if it is told that, in its bias."""
    if isinstance(descriptor, SeE2A | SeE2R) or not descriptor.config.concat_output_tebd:
        return layer
    n_own = descriptor.n_features - descriptor.config.tebd_dim
    weight, types = layer.weight.detach(), descriptor.types()
    folded: Layer = deepcopy(layer)
    shift: Tensor = types[centre].double() @ weight[n_own:].double()
    folded.weight = nn.Parameter(weight[:n_own].clone())
    folded.bias = nn.Parameter(layer.bias.detach().double() + shift)
    return folded
