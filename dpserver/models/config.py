"""The `model` section of a training input, in DeePMD-kit's own words.

Key names, aliases and defaults are those of DeePMD-kit's v2/v3 input file.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.section import (
    UNSUPPORTED,
    Bool,
    Count,
    NonNegativeFloat,
    Positive,
    PositiveFloat,
    Section,
    Str,
    Table,
    complain,
    parse,
)

__all__ = [
    "ACTIVATIONS",
    "DescriptorConfig",
    "FittingConfig",
    "LocFrameConfig",
    "ModelConfig",
    "SeE2AConfig",
    "SeE2RConfig",
    "Seed",
    "SmoothConfig",
    "parse",
]

Widths = Annotated[tuple[Positive, ...], Field(min_length=1)]
NetPrecision = Literal["default", "float32", "float64"]

ACTIVATIONS: Final = (
    "tanh", "relu", "relu6", "softplus", "sigmoid", "gelu", "gelu_tf", "silu", "silut", "custom_silu", "linear", "none",
)  # fmt: skip


def _activation(value: Any) -> str:
    name, _, threshold = value.lower().partition(":") if isinstance(value, str) else ("", "", "")
    if name not in ACTIVATIONS:
        raise ValueError(f"unknown activation function; supported: {', '.join(ACTIVATIONS)} (silut:3.0 with threshold)")
    if threshold and name not in ("silut", "custom_silu"):
        raise ValueError("only silut and custom_silu take a threshold, as in silut:3.0")
    if threshold:
        _positive_number(threshold, "the threshold of silut")
    return str(value).lower()


def _positive_number(text: str, what: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = float("nan")
    if not 0 < number < float("inf"):
        raise ValueError(f"{what} must be a positive number")
    return number


def _sel(value: Any) -> Any:
    if isinstance(value, str):
        head, _, factor = value.partition(":")
        if head != "auto" or (factor and _positive_number(factor, "the factor of auto") < 1.0):
            raise ValueError('must be a list with one integer per type, "auto", or "auto:factor" with a factor ≥ 1')
        return value
    if not isinstance(value, list | tuple) or not all(type(n) is int and n >= 0 for n in value) or not sum(value):
        raise ValueError('must be a list with one integer per type, not all 0, or "auto" or "auto:factor"')
    return tuple(value)


def _seed(value: Any) -> Any:
    if value is not None and (type(value) is not int or value < 0):
        raise ValueError("must be an integer ≥ 0, or null for a seed drawn by the program")
    return value


Activation = Annotated[str, BeforeValidator(_activation)]
Sel = Annotated[tuple[int, ...] | str, BeforeValidator(_sel)]
Seed = Annotated[int | None, BeforeValidator(_seed)]
TypePairs = tuple[tuple[Count, Count], ...]


def check_pairs(key: str, pairs: TypePairs, n_types: int) -> None:
    """Raise where a pair names a type that does not exist."""
    for pair in pairs:
        if max(pair) >= n_types:
            raise complain(key, f"types go from 0 to {n_types - 1}, got {list(pair)}")


class SmoothConfig(Section):
    """What the smooth descriptors have in common.

    Attributes:
        sel: neighbours of each type that statistics and the empty-slot term count, or "auto[:factor]".
        rcut: cutoff, Å.
        rcut_smth: where the switch from 1/r to 0 starts, Å.
        neuron: widths of the embedding net.
        activation_function: of the embedding net, lower case.
        resnet_dt: learnt step widths in the skip connections.
        type_one_side: one embedding net per neighbour type instead of one per pair of types.
        exclude_types: pairs of types that do not see each other.
        keeps_excluded_slots: whether the empty slots of such a pair add their term nevertheless, as in DeePMD-kit's
            PyTorch models; by default they do where `type_one_side` is true. Of no effect where davg is 0.
        precision: DeePMD-kit's name of the net's precision; see `OptionsConfig.precision` for what governs.
        set_davg_zero: keep the mean of the environment matrix at 0.
        env_protection: added to r in the environment matrix, Å.
        seed: accepted; `training.seed` seeds all weights.
    """

    fixed: ClassVar[Table] = {"trainable": True}

    sel: Sel = "auto"
    rcut: PositiveFloat = 6.0
    rcut_smth: NonNegativeFloat = 0.5
    neuron: Widths = (10, 20, 40)
    activation_function: Activation = "tanh"
    resnet_dt: Bool = False
    type_one_side: Bool = False
    exclude_types: TypePairs = ()
    keeps_excluded_slots: Bool | None = None
    precision: NetPrecision = "default"
    set_davg_zero: Bool = False
    env_protection: NonNegativeFloat = 0.0
    seed: Seed = None

    @model_validator(mode="after")
    def _switches_before_cutoff(self) -> Self:
        if self.rcut_smth >= self.rcut:
            raise complain("rcut_smth", f"must be smaller than rcut = {self.rcut}, got {self.rcut_smth}")
        return self

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types."""
        if not isinstance(self.sel, str) and len(self.sel) != n_types:
            raise complain("descriptor.sel", f"needs one number per type of type_map ({n_types}), got {len(self.sel)}")
        check_pairs("descriptor.exclude_types", self.exclude_types, n_types)


class SeE2AConfig(SmoothConfig):
    """The smooth descriptor se_e2_a (alias se_a): two-body embedding, full angular information.

    Attributes:
        axis_neuron: columns of G that form G_<.
    """

    type: Literal["se_e2_a"] = "se_e2_a"
    axis_neuron: Positive = 4

    aliases: ClassVar[Table] = {"n_axis_neuron": "axis_neuron"}

    @model_validator(mode="after")
    def _axes_are_columns(self) -> Self:
        if self.axis_neuron > self.neuron[-1]:
            raise complain(
                "axis_neuron", f"must not exceed the last width of neuron, {self.neuron[-1]}; got {self.axis_neuron}"
            )
        return self


class SeE2RConfig(SmoothConfig):
    """The smooth descriptor se_e2_r (alias se_r): two-body embedding of the distances alone."""

    type: Literal["se_e2_r"] = "se_e2_r"


class LocFrameConfig(Section):
    """The local-frame descriptor of the 2018 Deep Potential paper, DeePMD-kit's loc_frame.

    Attributes:
        sel_a: neighbours of each type that enter with full (angular) information.
        sel_r: further neighbours of each type that enter with their distance only.
        rcut: cutoff, Å.
        axis_rule: six integers per centre type, two triples (class, neighbour type, index) that name the atoms of
            the first and the second axis; class 0 is a neighbour of `sel_a`, 1 of `sel_r`; the index counts the
            neighbours of that class and type by distance.
    """

    type: Literal["loc_frame"] = "loc_frame"
    sel_a: tuple[Count, ...]
    sel_r: tuple[Count, ...]
    rcut: PositiveFloat = 6.0
    axis_rule: tuple[Count, ...]

    @property
    def axes(self) -> tuple[tuple[tuple[int, int, int], tuple[int, int, int]], ...]:
        """`axis_rule` by centre type: the triples of the first and of the second axis."""
        r = self.axis_rule
        return tuple(((r[k], r[k + 1], r[k + 2]), (r[k + 3], r[k + 4], r[k + 5])) for k in range(0, len(r), 6))

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types, or an axis names no possible neighbour."""
        for name in ("sel_a", "sel_r"):
            if len(getattr(self, name)) != n_types:
                raise complain(
                    f"descriptor.{name}",
                    f"needs one number per type of type_map ({n_types}), got {len(getattr(self, name))}",
                )
        if not sum(self.sel_a) + sum(self.sel_r):
            raise complain("descriptor.sel_a", "selects no neighbour at all, and neither does sel_r")
        key = "descriptor.axis_rule"
        if len(self.axis_rule) != 6 * n_types:
            raise complain(key, f"needs 6 integers per type, {6 * n_types} in all, got {len(self.axis_rule)}")
        for centre, (first, second) in enumerate(self.axes):
            for kind, neighbour, index in (first, second):
                if kind > 1 or neighbour >= n_types:
                    raise complain(
                        key,
                        f"for centre type {centre}: ({kind}, {neighbour}, {index}) must be a class 0 or 1, "
                        f"a type 0 to {n_types - 1} and an index",
                    )
                slots = (self.sel_r if kind else self.sel_a)[neighbour]
                if index >= slots:
                    raise complain(
                        key,
                        f"for centre type {centre}: neighbour {index} of type {neighbour} does not exist, "
                        f"{'sel_r' if kind else 'sel_a'} keeps {slots} of them",
                    )
            if first == second:
                raise complain(key, f"for centre type {centre}: both axes are defined by the same neighbour {first}")


class FittingConfig(Section):
    """The energy fitting net, DeePMD-kit's `ener`.

    Attributes:
        neuron: widths of the hidden layers; equal neighbours get a skip connection.
        activation_function: lower case.
        resnet_dt: learnt step widths in the skip connections.
        skips_only_equal: leave out the skip connection of the first layer, and those to layers of twice the width, as
            DeePMD-kit's TensorFlow backend does.
        precision: DeePMD-kit's name of the net's precision; see `OptionsConfig.precision` for what governs.
        rcond: relative cutoff of singular values in the least squares for the energy bias; None is numpy's own.
        seed: accepted; `training.seed` seeds all weights.
    """

    aliases: ClassVar[Table] = {"n_neuron": "neuron"}
    fixed: ClassVar[Table] = {
        "numb_fparam": 0,
        "numb_aparam": 0,
        "default_fparam": None,
        "dim_case_embd": 0,
        "trainable": True,
        "atom_ener": [],
        "layer_name": UNSUPPORTED,
        "use_aparam_as_mask": False,
    }

    type: Literal["ener"] = "ener"
    neuron: Widths = (120, 120, 120)
    activation_function: Activation = "tanh"
    resnet_dt: Bool = True
    skips_only_equal: Bool = False
    precision: NetPrecision = "default"
    rcond: PositiveFloat | None = None
    seed: Seed = None


_DESCRIPTOR_ALIASES: Final = {"se_a": "se_e2_a", "se_r": "se_e2_r"}


def _descriptor_name(value: Any) -> Any:
    if isinstance(value, Mapping) and value.get("type") in _DESCRIPTOR_ALIASES:
        return {**value, "type": _DESCRIPTOR_ALIASES[value["type"]]}
    return value


DescriptorConfig = Annotated[
    SeE2AConfig | SeE2RConfig | LocFrameConfig, Field(discriminator="type"), BeforeValidator(_descriptor_name)
]


class ModelConfig(Section):
    """What the potential is made of; JSON-able, and stored so in the model file.

    Attributes:
        type_map: species of the types, in order.
        descriptor: the atomic environment.
        fitting_net: descriptor to energy of an atom.
        pair_exclude_types: pairs of types that are no neighbours of each other at all.
        data_stat_nbatch: batches per system that davg and dstd are computed from.
        data_stat_protect: smallest dstd.
    """

    fixed: ClassVar[Table] = {
        "type": "standard",
        "type_embedding": UNSUPPORTED,
        "modifier": UNSUPPORTED,
        "compress": UNSUPPORTED,
        "spin": UNSUPPORTED,
        "use_srtab": UNSUPPORTED,
        "smin_alpha": UNSUPPORTED,
        "sw_rmin": UNSUPPORTED,
        "sw_rmax": UNSUPPORTED,
        "finetune_head": UNSUPPORTED,
        "atom_exclude_types": [],
        "preset_out_bias": None,
        "srtab_add_bias": True,
    }
    inert: ClassVar[frozenset[str]] = frozenset({"data_bias_nsample"})

    type_map: Annotated[tuple[Str, ...], Field(min_length=1)]
    descriptor: DescriptorConfig
    fitting_net: FittingConfig = FittingConfig()
    pair_exclude_types: TypePairs = ()
    data_stat_nbatch: Positive = 10
    data_stat_protect: PositiveFloat = 1e-2

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if len(set(self.type_map)) != len(self.type_map):
            raise complain("type_map", f"names a species twice: {list(self.type_map)}")
        self.descriptor.check_types(len(self.type_map))
        check_pairs("pair_exclude_types", self.pair_exclude_types, len(self.type_map))
        if self.pair_exclude_types and isinstance(self.descriptor, LocFrameConfig):
            raise complain("pair_exclude_types", "is not supported with the descriptor loc_frame")
        return self
