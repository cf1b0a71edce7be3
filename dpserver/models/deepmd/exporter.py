"""From a model to DeePMD-kit's tree, as its PyTorch backend writes it.

`dp convert-backend model.dp model.pth` (or `model.pb`) then makes what LAMMPS and the other codes load.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Final

import numpy as np

from dpserver import __version__, files
from dpserver.errors import ConfigError
from dpserver.models.atomic import AtomicModel
from dpserver.models.config import NoDescriptorConfig
from dpserver.models.deepmd import fittings, pair_tables
from dpserver.models.deepmd.forms import Form, cannot_dump
from dpserver.models.deepmd.kinds import form_of_input
from dpserver.models.deepmd.neutral import write_hdf5
from dpserver.models.deepmd.tree import Tree
from dpserver.models.potential import Potential

_PRECISIONS: Final = {"double": "float64", "single": "float32"}


def save(path: str | Path, model: AtomicModel, precision: str = "double") -> None:
    """Write a `.dp` file, atomically.

    Args:
        path: of the file.
        model: a potential, or a model of dipoles or polarizabilities, with a descriptor that DeePMD-kit knows.
        precision: in which DeePMD-kit is to evaluate it: `double`, or `single`, which rounds the coordinates too.

    Raises:
        ConfigError: DeePMD-kit's tree has no place for the model, the precision is unknown, or h5py is not installed.
        OutputError: the file cannot be written.
    """
    tree = tree_of(model, precision)
    stream = io.BytesIO()
    write_hdf5(stream, tree)
    files.write(path, stream.getvalue())


def tree_of(potential: AtomicModel, precision: str = "double") -> Tree:
    """Describe a model by DeePMD-kit's tree, with arrays of its own; see `save`.

    Raises:
        ConfigError: the tree has no place for its descriptor, or none for its form of it; the precision is unknown.
    """
    if precision not in _PRECISIONS:
        raise ConfigError(f"precision {precision!r} is unknown; expected one of {', '.join(_PRECISIONS)}")
    config = potential.config
    if isinstance(config.descriptor, NoDescriptorConfig):
        raise cannot_dump("a table of pair energies alone")
    if config.electrostatics is not None:
        raise cannot_dump("a model with charges (model.electrostatics)")
    form = form_of_input(config.descriptor.type)
    number, types = _PRECISIONS[precision], list(config.type_map)
    pairs = [list(pair) for pair in config.pair_exclude_types]
    distance = float(potential.min_distance.min())
    model = {
        "@class": "Model",
        "@version": 2,
        "type": "standard",
        "type_map": types,
        "atom_exclude_types": fittings.dumped_exclusions(potential),
        "pair_exclude_types": pairs,
        "rcond": None,
        "preset_out_bias": None,
        "@variables": {
            "out_bias": fittings.dumped_bias(potential),
            "out_std": np.ones(fittings.dumped_bias(potential).shape),
        },
        "descriptor": form.dump(potential.descriptor, types, number),
        "fitting": fittings.dump(potential, types, number),
    }
    given = _input(potential, form, pairs, number)
    if isinstance(potential, Potential) and potential.table is not None:
        model, given = pair_tables.dumped(potential, model), pair_tables.input_of(potential, given)
    return {
        "software": "dpserver",
        "version": __version__,
        "backend": "PyTorch",
        "model": model,
        "model_def_script": given,
        "@variables": {"min_nbor_dist": np.array(distance)} if np.isfinite(distance) else {},
    }


def _input(potential: AtomicModel, form: Form, pairs: list[list[int]], precision: str) -> Tree:
    """The section `model` of an input that makes such a model."""
    ours = {"fitting_net": {"skips_only_equal", "sel_type"}}
    dumped = potential.config.model_dump(mode="json", exclude=ours)
    return {
        "type": "standard",
        "type_map": dumped["type_map"],
        "descriptor": form.given(dumped["descriptor"], precision),
        "fitting_net": {**dumped["fitting_net"], "precision": precision},
        "pair_exclude_types": pairs,
        "atom_exclude_types": fittings.dumped_exclusions(potential),
    }
