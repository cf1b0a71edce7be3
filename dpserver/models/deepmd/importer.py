"""From DeePMD-kit's tree to a potential with the same numbers.

It is evaluated in double precision, with float32 weights too: DeePMD-kit's own float32 moves the coordinates by their
rounding, and the exact result of the same weights is the closest to it.

What DeePMD-kit does and the potential has no word for is put into its parameters; see `fittings`.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Final, cast

import numpy as np
import torch

from dpserver.errors import ConfigError, ModelFileError
from dpserver.models.config import (
    BehlerParrinelloConfig,
    HybridConfig,
    LocFrameConfig,
    ModelConfig,
    NoDescriptorConfig,
    TensorFittingConfig,
    parse,
)
from dpserver.models.deepmd import fittings, pair_tables
from dpserver.models.deepmd.forms import Form
from dpserver.models.deepmd.kinds import check_kind, read_types
from dpserver.models.deepmd.tree import Budget, Tree, get, get_or, get_section, is_unset, shown
from dpserver.models.pair_table import PairTable
from dpserver.models.potential import Potential
from dpserver.models.tensors import TensorModel

_BOOKKEEPING: Final = frozenset(
    [
        *("@class", "@version", "@variables", "type", "type_map", "ntypes", "trainable", "seed", "precision"),
        *("embeddings", "env_mat", "compress", "nets", "dim_out", "dim_descrpt", "var_name", "rcond", "mixed_types"),
        *("exclude_types", "data_stat_nbatch", "data_stat_protect", "data_bias_nsample"),
        *("atom_exclude_types", "pair_exclude_types", "preset_out_bias", "srtab_add_bias", "model_branch_alias"),
        *("info", "bridging_method", "bridging_r_inner", "bridging_r_outer", "descriptor", "fitting", "fitting_net"),
        "pair_table",
    ]
)
"""Keys that are read elsewhere, or change no number of a trained model."""
_PRECISIONS: Final = ("default", "float64", "double", "float32", "single")


def potential_of(tree: Tree) -> Potential:
    """Make a potential of a tree.

    Raises:
        ModelFileError: the tree is inconsistent, or describes what is not supported, or a dipole or polarizability.
    """
    found = model_of(tree)
    if not isinstance(found, Potential):
        raise ModelFileError(f"it is a model of the kind {found.kind}, expected one of energies")
    return found


def model_of(tree: Tree) -> Potential | TensorModel:
    """Make a model of a tree: a potential, or a model of dipoles or polarizabilities.

    Raises:
        ModelFileError: the tree is inconsistent, or describes what is not supported.
    """
    model = get(tree, "model", dict, "tree")
    if pair_tables.kind_of(model) is not None:
        _check_options(model, _BOOKKEEPING | pair_tables.KEYS, "model")
        model = pair_tables.joined(model)
    if pair_tables.kind_of(model) == "pairtab":
        return _table_alone(model)
    form = check_kind(model)
    types = read_types(model)
    descriptor, fitting = (get(model, key, dict, "model") for key in ("descriptor", "fitting"))
    _check_options(model, _BOOKKEEPING, "model")
    for section, part, where in form.places(descriptor, "model.descriptor"):
        _check_options(section, _BOOKKEEPING | part.keys, where)
        if not is_unset(get_section(section, "env_mat", where).get("use_exp_switch")):
            raise ModelFileError(f"its {where.removeprefix('model.')} has use_exp_switch, which is not supported")
    _check_options(fitting, _BOOKKEEPING | fittings.KEYS, "model.fitting")
    potential = _blank(model, form, types)
    form.fill(potential.descriptor, descriptor)
    fittings.fill(potential.fitting, fitting, len(types))
    if isinstance(potential, Potential):
        fittings.fill_energies(potential, model, fitting)
        if potential.table is not None:
            pair_tables.fill(potential.table, model["pair_table"])
    else:
        fittings.fill_tensors(potential, model, fitting)
    distance = get_section(tree, "@variables", "tree").get("min_nbor_dist")
    if isinstance(distance, np.ndarray | float) and np.size(distance) == 1 and 0 < np.min(distance) < np.inf:
        potential.min_distance[:] = float(np.min(distance))
    return potential


def _table_alone(model: Tree) -> Potential:
    """A potential that is a table of pair energies and nothing else."""
    types, table = read_types(model), model["pair_table"]
    config = {
        "type_map": types,
        "descriptor": {"type": "none", "rcut": table["rcut"]},
        "pair_exclude_types": get_or(model, "pair_exclude_types", [], "model"),
        "atom_exclude_types": fittings.excluded_atoms(model, len(types)),
        **pair_tables.config_of({**table, "weights": [0.0, 1.0]}),
    }
    try:
        potential = Potential(parse(ModelConfig, config, "model"))
    except ConfigError as error:
        raise ModelFileError(f"its configuration is not supported: {error}") from None
    pair_tables.fill(cast(PairTable, potential.table), table)
    potential.energy_bias.copy_(torch.from_numpy(pair_tables.bias_of(model, len(types))))
    return potential


def _check_options(section: Tree, known: Iterable[str], where: str) -> None:
    """Refuse an option that is set and has no counterpart here; one that is off says nothing."""
    for key, value in section.items():
        if key not in known and not str(key).startswith("_") and not is_unset(value):
            raise ModelFileError(f"its {where} has {key} = {shown(value)}, which is not supported")


def _blank(model: Tree, form: Form, types: list[str]) -> Potential | TensorModel:
    """A model of the right kind and shape."""
    descriptor, fitting = model["descriptor"], model["fitting"]
    is_energy = get_or(fitting, "type", "ener", "model.fitting") == "ener"
    config = {
        "type_map": types,
        "descriptor": form.config(descriptor, types),
        "fitting_net": fittings.config_of(fitting, model, len(types)),
        "pair_exclude_types": get_or(model, "pair_exclude_types", [], "model"),
        "atom_exclude_types": fittings.excluded_atoms(model, len(types)) if is_energy else [],
        **pair_tables.config_of(get_section(model, "pair_table", "model")),
    }
    places = [(place.section, place.where) for place in form.places(descriptor, "model.descriptor")]
    for section, where in (*places, (fitting, "model.fitting")):
        precision = get_or(section, "precision", "default", where).lower()
        if precision not in _PRECISIONS:
            raise ModelFileError(f"its {where}.precision is {precision!r}, expected float64 or float32")
    try:
        parsed = parse(ModelConfig, config, "model")
        _check_size(parsed, form)
        return TensorModel(parsed) if isinstance(parsed.fitting_net, TensorFittingConfig) else Potential(parsed)
    except ConfigError as error:
        raise ModelFileError(f"its configuration is not supported: {error}") from None


def _check_size(config: ModelConfig, form: Form) -> None:
    """Refuse networks of absurd size before they are made."""
    n_types, budget = len(config.type_map), Budget()
    n_features = form.spend(config.descriptor.model_dump(), n_types, budget)
    parts = config.descriptor.list if isinstance(config.descriptor, HybridConfig) else [config.descriptor]
    without = LocFrameConfig | BehlerParrinelloConfig | NoDescriptorConfig
    n_channels = sum(part.neuron[-1] for part in parts if not isinstance(part, without))
    fittings.spend(config.fitting_net, n_features, n_channels, n_types, budget)
