"""Inputs of DeePMD-kit's for small models of every kind that is imported and exported; a new one is a new line here."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

_SMOOTH: dict[str, Any] = {"sel": [40, 60], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8], "seed": 1}


@dataclass(frozen=True)
class Case:
    """A model.

    Attributes:
        descriptor: section of the input.
        fitting: section of the input.
        model: further entries of the section `model`.
        files: suffixes of the files in which DeePMD-kit keeps such a model.
        is_exported: whether it can go back.
        is_kept: whether it then has the same tensors; else they only give the same numbers.
    """

    descriptor: dict[str, Any]
    fitting: dict[str, Any] = field(default_factory=dict)
    model: dict[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = (".dp", ".yaml", ".pt", ".pth", ".pb")
    is_exported: bool = True
    is_kept: bool = True

    @property
    def n_parameters(self) -> tuple[int, int]:
        """Those of each frame, and of each atom."""
        return self.fitting.get("numb_fparam", 0), self.fitting.get("numb_aparam", 0)

    @property
    def parameters(self) -> dict[str, Any]:
        """The section `model`."""
        return {
            "type_map": ["O", "H"],
            "descriptor": self.descriptor,
            "fitting_net": {"neuron": [7, 7], "seed": 2, **self.fitting},
            **self.model,
        }


_TORCH = (".dp", ".yaml", ".pt", ".pth")
_A: dict[str, Any] = {"type": "se_e2_a", "axis_neuron": 2, "type_one_side": True, **_SMOOTH}
_R: dict[str, Any] = {"type": "se_e2_r", "type_one_side": True, **_SMOOTH}
_ATTEN: dict[str, Any] = {
    **{"type": "se_atten", "axis_neuron": 2, "type_one_side": True, "tebd_dim": 3, **_SMOOTH, "sel": 100},
    **{"attn": 6, "attn_dotr": True, "attn_mask": False},
}
_STRIPPED: dict[str, Any] = {"tebd_input_mode": "strip", "smooth_type_embedding": True}

CASES: dict[str, Case] = {
    "se_e2_a": Case(_A),
    "se_e2_a two-sided": Case({**_A, "type_one_side": False}),
    "se_e2_a time steps": Case({**_A, "resnet_dt": True}, {"resnet_dt": False}),
    "se_e2_a no average": Case({**_A, "set_davg_zero": True, "activation_function": "gelu"}),
    "se_e2_a excluded": Case({**_A, "type_one_side": False, "exclude_types": [[0, 1]]}, files=_TORCH),
    "se_e2_a protected": Case({**_A, "env_protection": 0.1}, files=_TORCH),
    "se_e2_a pairs": Case(_A, model={"pair_exclude_types": [[1, 1]]}, files=_TORCH),
    "se_e2_a atoms": Case(_A, model={"atom_exclude_types": [1]}, files=_TORCH),
    "se_e2_r": Case(_R),
    "fparam": Case(_A, {"numb_fparam": 2}, files=_TORCH),
    "fparam default": Case(_A, {"numb_fparam": 1, "default_fparam": [0.4]}, files=_TORCH),
    "case embedding": Case(_A, {"dim_case_embd": 3}, files=_TORCH, is_kept=False),
    "linear": Case(_A, {"neuron": []}),
    "aparam": Case(_A, {"numb_aparam": 1}, files=_TORCH),
    "se_e3": Case({"type": "se_e3", **_SMOOTH, "neuron": [2, 4]}),
    "se_atten": Case({**_ATTEN, "attn_layer": 0}, files=_TORCH),
    "se_atten two-sided": Case({**_ATTEN, "attn_layer": 0, "type_one_side": False, "resnet_dt": True}, files=_TORCH),
    "se_atten stripped": Case({**_ATTEN, "attn_layer": 0, **_STRIPPED}, files=_TORCH),
    "se_atten attention": Case({**_ATTEN, "attn_layer": 2}, files=_TORCH),
    "se_atten stripped attention": Case({**_ATTEN, "attn_layer": 1, "attn_dotr": False, **_STRIPPED}, files=_TORCH),
    "se_atten excluded": Case({**_ATTEN, "attn_layer": 1, "exclude_types": [[0, 1]]}, files=_TORCH),
    "se_atten_v2": Case({**_ATTEN, "type": "se_atten_v2", "attn_layer": 0}, files=_TORCH),
    "se_atten average": Case({**_ATTEN, "attn_layer": 1, "set_davg_zero": False}, files=_TORCH),
    "se_atten smooth": Case({**_ATTEN, "attn_layer": 2, "smooth_type_embedding": True, "ln_eps": 1e-3}, files=_TORCH),
    "se_atten harmonics": Case({**_ATTEN, "attn_layer": 0, "lmax": 3, "env_protection": 0.1}, files=_TORCH),
    "se_atten_v2 electrons": Case(
        {**_ATTEN, "type": "se_atten_v2", "attn_layer": 1, "use_econf_tebd": True, "set_davg_zero": False}, files=_TORCH
    ),
    "hybrid": Case({"type": "hybrid", "list": [_A, _R]}),
    "hybrid of cutoffs": Case(
        {
            "type": "hybrid",
            "list": [_A, {**_R, "rcut": 3.3}, {"type": "se_e3", **_SMOOTH, "rcut": 2.5, "neuron": [2, 4]}],
        }
    ),
    "hybrid of se_atten": Case({"type": "hybrid", "list": [_R, {**_ATTEN, "attn_layer": 0}]}, files=_TORCH),
}
