"""What the CPU kernels work on: models, batches, results and work space as arrays."""

from __future__ import annotations

from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from dpserver.frames import Floats, Ints

Numbers = NDArray[Any]
"""In the precision of the nets, float32 or float64."""
Ints32 = NDArray[np.int32]

SEEN, EXCLUDED, SILENT, UNSEEN = range(4)
"""How the neighbours of a pair of species enter: as they are; by the slot they take; they and the empty slots of `sel`
not at all; as if their slots were empty."""

BY_SWITCHED, BY_DISTANCE = range(2)
"""What tables are functions of: s; or v, which grows with -r from 0 at the cutoff to 1 at rcut_smth, then with 1/r."""
EDGE_ROWS: Final = 11
"""Numbers that are kept of each edge, see `Workspace`."""

GOOD: Final = 0
TOO_MANY: Final = 1
"""Status of an atom with more neighbours than `sel`."""
TOO_CLOSE: Final = 2
"""Status of an atom with a neighbour nearer than the tables reach."""
NO_FRAME: Final = 3
"""Status of an atom whose neighbours span no local frame."""
COLINEAR: Final = 1e-4
"""Smallest sine of the angle between the two axis neighbours of a local frame; below it they span no plane."""


class Nets(NamedTuple):
    """The fitting nets of the members of a committee as arrays, and nets for charges where there are some.

    Attributes:
        heads: of dtype `HEAD`, (n_members, n_species).
        charge_heads: the same for charges, with as many inputs; (0, 0) where there are none.
        layers: of dtype `LAYER`, (n_layers,).
        layer_parameter: of the activation function, (n_layers,).
        bias: what is added to the sum of the last layer, (n_members, n_species), eV.
        charge_bias: the same for charges, e.
        weights: all weights, and all else that is in their precision, flat.
        zeros_at: where in `weights` there are zeros, as many as columns of any product.
    """

    heads: Any
    charge_heads: Any
    layers: Any
    layer_parameter: Floats
    bias: Floats
    charge_bias: Floats
    weights: Numbers
    zeros_at: int


HEAD: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "n_inputs",
            "layer_at",  # first of its layers
            "n_layers",  # without the last, linear one
            "last_at",  # weights of that
        )
    ]
)
"""One fitting net."""

LAYER: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "n_in",
            "n_in_padded",  # columns of the derivatives by the input
            "n_out",
            "width",  # columns of the output, padded
            "product",  # columns of the product with the weights, padded
            "weight_at",  # packed weights
            "transposed_at",
            "bias_at",  # as many as columns of the product
            "timestep_at",
            "copies",  # of the input that are added to the output: 0, 1 or 2
            "skip",  # column of the product from which on it is added to the output as it is, or 0
            "activation",  # its code
        )
    ]
)
"""One hidden layer of a fitting net."""


class Model(NamedTuple):
    """The members of a committee with smooth descriptors, of one cutoff and one set of species, as arrays.

    Attributes:
        cutoff: rcut, rcut_smth, env_protection, (3,), Å.
        sel: slots for neighbours of each species, (n_species,); any may be taken by more neighbours than it has, where
            `limits` allow it.
        limits: most neighbours of each species, and of all together, (n_species + 1,).
        variable: `BY_SWITCHED` or `BY_DISTANCE`.
        exclusion: `SEEN` and so on for centre and neighbour, (n_species, n_species).
        closest: squared smallest distance that the tables of all members reach, (n_species, n_species), Å².
        norm: davg and 1/dstd of the four rows, (n_members, n_species, 8).
        bins: for centre and neighbour the first bin of the table, and their number, (n_members, n_species,
            n_species, 2); bins are of one width in s, and each is cut into equal intervals.
        bins_per_s: 1/width, (n_members, n_species, n_species), Å.
        bin_first: first interval of each bin, counted from the table's own first; bin_parts: intervals in it.
        tables: place of the coefficients in `nets.weights`, columns, place in a row of moments, (…, 3).
        centres: of dtype `CENTRE`, (n_members, n_species).
        segments: products i, j, count: of column i with the columns from j on, (n_segments, 3).
        nets: the fitting nets.
    """

    cutoff: Floats
    sel: Ints
    limits: Ints
    variable: int
    exclusion: Ints
    closest: Floats
    norm: Floats
    bins: Ints
    bins_per_s: Floats
    bin_first: Ints32
    bin_parts: Floats
    tables: Ints
    centres: Any
    segments: Ints
    nets: Nets


CENTRE: Final = np.dtype(
    [
        (name, np.int64)
        for name in (
            "columns",  # of moments
            "step",  # from one row of moments to the next
            "mix_at",  # packed matrix from columns to channels, -1 where columns are channels
            "unmix_at",  # its transpose
            "channels",  # columns of mixed moments
            "channel_step",  # from one row of mixed moments to the next
            "segment_at",  # first of the products
            "n_segments",
        )
    ]
)
"""Of one member, for centres of one species: sizes, and places in the arrays of `Model`."""


class Batch(NamedTuple):
    """Atoms, their neighbours within the cutoff and a skin, and the work cut into blocks.

    Attributes:
        positions: (n_atoms, 3), Å.
        shifts: lattice translations that occur, (n_shifts, 3), Å.
        starts: first edge for each centre and species of neighbours, (n_atoms * n_species + 1,).
        neighbour: atom at the other end of each edge; shift: its translation.
        incoming: the edges that end at each atom, atom by atom; incoming_starts: first for each atom, (n_atoms + 1,).
        atoms: all that are no ghosts, sorted by species.
        blocks: first, end in `atoms`, and the species, (n_blocks, 3).
        by_charge: what the energy of all charges changes by with what a net says of each atom's, (n_members, n_atoms),
            eV/e; read where there are nets for charges, and not for ghosts.
    """

    positions: Floats
    shifts: Floats
    starts: Ints
    neighbour: Ints32
    shift: Ints32
    incoming: Ints32
    incoming_starts: Ints
    atoms: Ints
    blocks: Ints
    by_charge: Floats


class Output(NamedTuple):
    """Where results go.

    Attributes:
        edge_gradient: dE/dr_ij, 0 beyond the cutoff, (n_members, n_edges, 3), eV/Å; also through the charges.
        atom_energy: (n_members, n_atoms), eV, without that of charges; of ghosts nothing is written, here and in what
            follows.
        atom_charge: what the nets say of charges, (n_members, n_atoms), e.
        atom_virial: -Σ_j dE/dr_ij ⊗ r_ij, xx yy zz xy xz yz, symmetrised, (n_members, n_atoms, 6), eV.
        status: (n_atoms,).
    """

    edge_gradient: Floats
    atom_energy: Floats
    atom_charge: Floats
    atom_virial: Floats
    status: Ints


class NetSpace(NamedTuple):
    """What one thread needs for the fitting nets of one block.

    Attributes:
        inputs: and by_inputs of a net.
        outputs: and slopes of all hidden layers; product: of one layer.
        by_output: derivatives by the output of a layer; by_next: by that of the one before.
    """

    inputs: Numbers
    by_inputs: Numbers
    outputs: Numbers
    slopes: Numbers
    product: Numbers
    by_output: Numbers
    by_next: Numbers


class Workspace(NamedTuple):
    """What one thread needs for one block of a smooth descriptor; for at most `room` edges.

    Attributes:
        edges: x, y, z, r², s, b, s'/r, b'/r, dt/dv by edge, and where tables are not functions of s v, v'/r; v is s
            where they are; (EDGE_ROWS, room).
        slot: edge of the batch, (room,); first: edge of each centre and species, (rows * n_species + 1,); n_empty:
            slots of `sel` left to each.
        row: place in the interval, and R̃, (room, RECORD); interval: of the table, (room,).
        gradient: derivatives by these five, (room, RECORD).
        moment: and by_moment, four rows for each atom; mixed: and by_mixed, of channels.
        net: of the fitting nets.
    """

    edges: Floats
    slot: Ints
    first: Ints
    n_empty: Ints
    row: Numbers
    interval: Ints32
    gradient: Numbers
    moment: Numbers
    by_moment: Numbers
    mixed: Numbers
    by_mixed: Numbers
    net: NetSpace


class FrameModel(NamedTuple):
    """The members of a committee with local frames, of one cutoff and one choice of neighbours, as arrays.

    Attributes:
        rcut: cutoff, Å; closest: smallest distance, Å.
        slots: of each species of neighbours, with all numbers and all together, (n_species, 2).
        places: first feature of each one's neighbours with all numbers, and of the further ones, (n_species, 2).
        axes: species and slot of the neighbours that span the frames of each species of centres, (n_species, 4).
        mean: of each feature, (n_members, n_species, n_features), 1/Å; scale: 1/deviation, Å.
        nets: the fitting nets.
    """

    rcut: float
    closest: float
    slots: Ints
    places: Ints
    axes: Ints
    mean: Floats
    scale: Floats
    nets: Nets


class FrameSpace(NamedTuple):
    """What one thread needs for one block with local frames; for at most `room` edges.

    Attributes:
        found: x, y, z, r² of the neighbours of one atom as they come, (4, room); found_slot: their edges of the batch.
        rank: of the neighbours of one atom and one species, (room,).
        near: x, y, z, 1/r of the neighbours that are seen, nearest first, (4, room); slot: edge of the batch, (room,).
        first: neighbour of each centre and species, (rows * n_species + 1,).
        frame: e_x, e_y, e_z, the direction to the second axis neighbour, 1/distance of both and 1/sine, (rows, 15).
        feature: before standardisation, (rows, n_features).
        by_feature: derivatives for one atom, (n_features,).
        gradient: dE/dr_ij of the neighbours of one atom, (3, room).
        net: of the fitting nets.
    """

    found: Floats
    found_slot: Ints
    rank: Ints
    near: Floats
    slot: Ints
    first: Ints
    frame: Floats
    feature: Floats
    by_feature: Floats
    gradient: Floats
    net: NetSpace
