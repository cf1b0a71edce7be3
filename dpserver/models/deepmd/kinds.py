"""Which of DeePMD-kit's models can be imported; the others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Final

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.tree import get, is_unset, shown

DESCRIPTORS: Final = {"se_e2_a": "se_e2_a", "se_a": "se_e2_a", "se_e2_r": "se_r", "se_r": "se_r"}
"""Descriptors that are supported, and what the tree calls them."""
_NAMES: Final = {
    "dpa1": "DPA-1",
    "se_atten": "DPA-1 (se_atten)",
    "se_atten_v2": "DPA-1 (se_atten_v2)",
    "dpa2": "DPA-2",
    "dpa3": "DPA-3",
    "dpa4": "DPA-4",
    "sezm": "DPA-4 (SeZM)",
    "spin_ener": "spin",
    "pairtab": "pair table",
    "zbl": "ZBL interpolation",
    "linear_ener": "linear combination",
}
_ADVICE: Final = (
    f"dpserver reads energy models with the descriptors {', '.join(dict.fromkeys(DESCRIPTORS))}; serve this one with "
    "DeePMD-kit's own `dp_ipi`"
)
_MAX_TYPES: Final = 500
_REFUSED: Final = {
    "spin": "a spin model",
    "modifier": "a model with a modifier (dplr: long-range electrostatics)",
    "type_embedding": "a model with type embedding outside of the descriptor",
    "use_srtab": "a model with a table of pair potentials (use_srtab)",
}


def check_kind(model: object) -> str:
    """Refuse a model that is no energy model of a supported descriptor.

    Args:
        model: the section `model` of a tree, or of a training input.

    Returns:
        The descriptor, by its name in the tree.

    Raises:
        ModelFileError: naming what it is.
    """
    if not isinstance(model, Mapping):
        raise ModelFileError(f"its model is of type {type(model).__name__}, expected a section")
    for key, name in _REFUSED.items():
        if not is_unset(model.get(key)):
            raise ModelFileError(f"it is {name}, which is not supported; {_ADVICE}")
    if not is_unset(model.get("compress")):
        raise ModelFileError(
            "it is a compressed model; import the uncompressed one it was made from (the input of `dp compress`)"
        )
    kind = str(model.get("type", "standard")).lower()
    if kind != "standard":
        raise ModelFileError(f"it is a {_NAMES.get(kind, kind)} model, which is not supported; {_ADVICE}")
    descriptor = str(get(get(dict(model), "descriptor", dict, "model"), "type", str, "model.descriptor")).lower()
    if descriptor not in DESCRIPTORS:
        raise ModelFileError(f"its descriptor is {_NAMES.get(descriptor, descriptor)}, not supported; {_ADVICE}")
    fitting = model.get("fitting", model.get("fitting_net", {}))
    fitted = fitting.get("type", "ener") if isinstance(fitting, Mapping) else None
    if fitted != "ener":
        raise ModelFileError(f"its fitting is {shown(fitted)}, which is not supported; {_ADVICE}")
    return DESCRIPTORS[descriptor]


def both_ways(pairs: Sequence[object]) -> set[tuple[int, int]]:
    """Excluded pairs of types, each in both orders.

    Raises:
        ModelFileError: one is no pair of types.
    """
    found = set()
    for pair in pairs:
        if not isinstance(pair, list | tuple) or len(pair) != 2 or not all(type(c) is int for c in pair):
            raise ModelFileError(f"its model.descriptor.exclude_types holds {shown(pair)}, expected two types")
        found |= {(pair[0], pair[1]), (pair[1], pair[0])}
    return found


def read_types(model: object) -> list[str]:
    """The species of a model, in the order of its types.

    Raises:
        ModelFileError: they are missing, no names, or absurdly many.
    """
    types = get(model, "type_map", list, "model")
    if not types or not all(isinstance(name, str) for name in types) or len(types) > _MAX_TYPES:
        raise ModelFileError(f"its model.type_map is no list of 1 to {_MAX_TYPES} names: {shown(types)}")
    return types
