"""Which of DeePMD-kit's models can be imported; the others are refused by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Final

from dpserver.errors import ModelFileError
from dpserver.models.deepmd.atten_form import SeAttenForm, SeAttenV2Form
from dpserver.models.deepmd.forms import Form, cannot_dump
from dpserver.models.deepmd.hybrid_form import HybridForm
from dpserver.models.deepmd.loc_frame_form import LocFrameForm
from dpserver.models.deepmd.se_e3_form import SeE3Form
from dpserver.models.deepmd.tree import Tree, get, is_unset, shown
from dpserver.models.deepmd.two_body import SeE2AForm, SeE2RForm

_FORMS: Final[tuple[Form, ...]] = (
    SeE2AForm(),
    SeE2RForm(),
    SeE3Form(),
    LocFrameForm(),
    SeAttenForm(),
    SeAttenV2Form(),
    HybridForm(lambda section, where: form_of(section, where), lambda name: form_of_input(name)),
)
"""The descriptors that are supported."""
_NAMES: Final = {
    "dpa2": "DPA-2",
    "dpa3": "DPA-3",
    "dpa4": "DPA-4",
    "sezm": "DPA-4 (SeZM)",
    "spin_ener": "spin",
}
_READ: Final = f"dpserver reads energy models with the descriptors {', '.join(form.ours for form in _FORMS)}"
_ADVICE: Final = f"{_READ}; where DeePMD-kit is installed, `dpserver --backend deepmd` serves this one through it"
_MAX_TYPES: Final = 500
_FITTINGS: Final = ("ener", "dipole", "polar")
_REFUSED: Final = {
    "spin": "a spin model",
    "modifier": "a model with a modifier (dplr: long-range electrostatics)",
    "type_embedding": "a model with type embedding outside of the descriptor",
}


def form_of(section: Tree, where: str = "model.descriptor") -> Form:
    """How the descriptor of a section is written.

    Args:
        section: of a tree, or of a training input.
        where: dotted place of it.

    Raises:
        ModelFileError: it is not supported.
    """
    name = str(get(section, "type", str, where)).lower()
    for form in _FORMS:
        if name in form.names:
            return form
    raise ModelFileError(f"its descriptor is {_NAMES.get(name, name)}, not supported; {_ADVICE}")


def embeds_types(section: Tree) -> bool:
    """Whether a section of an input is that of a descriptor with embedded types; False where it is not known."""
    try:
        return form_of(section).embeds_types(section)
    except ModelFileError:
        return False


def form_of_input(descriptor_type: str) -> Form:
    """How a descriptor of our own configuration is written.

    Raises:
        ConfigError: DeePMD-kit's tree knows none such.
    """
    for form in _FORMS:
        if form.ours == descriptor_type:
            return form
    raise cannot_dump(f"a model with the descriptor {descriptor_type}")


def check_kind(model: object) -> Form:
    """Refuse a model that is no energy model of a supported descriptor.

    Args:
        model: the section `model` of a tree, or of a training input.

    Returns:
        How its descriptor is written.

    Raises:
        ModelFileError: naming what it is.
    """
    if not isinstance(model, Mapping):
        raise ModelFileError(f"its model is of type {type(model).__name__}, expected a section")
    for key, name in _REFUSED.items():
        if not is_unset(model.get(key)):
            raise ModelFileError(f"it is {name}, which is not supported; {_READ if key == 'spin' else _ADVICE}")
    if not is_unset(model.get("compress")):
        raise ModelFileError(
            "it is a compressed model, with tables in place of its embedding nets; import the uncompressed one it was "
            "made from (the input of `dp compress`), or let an installed DeePMD-kit serve it with --backend deepmd"
        )
    kind = str(model.get("type", "standard")).lower()
    if kind != "standard":
        advice = _READ if "spin" in kind else _ADVICE
        raise ModelFileError(f"it is a {_NAMES.get(kind, kind)} model, which is not supported; {advice}")
    form = form_of(get(dict(model), "descriptor", dict, "model"))
    fitting = model.get("fitting", model.get("fitting_net", {}))
    fitted = fitting.get("type", "ener") if isinstance(fitting, Mapping) else None
    if fitted not in _FITTINGS:
        supported = ", ".join(_FITTINGS)
        raise ModelFileError(f"its fitting is {shown(fitted)}, which is not supported; supported are {supported}")
    return form


def read_types(model: object) -> list[str]:
    """The species of a model, in the order of its types.

    Raises:
        ModelFileError: they are missing, no names, or absurdly many.
    """
    types = get(model, "type_map", list, "model")
    if not types or not all(isinstance(name, str) for name in types) or len(types) > _MAX_TYPES:
        raise ModelFileError(f"its model.type_map is no list of 1 to {_MAX_TYPES} names: {shown(types)}")
    return types
