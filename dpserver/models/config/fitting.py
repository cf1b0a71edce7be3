"""The fitting nets: from descriptors to what is predicted."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config.common import Activation, NetPrecision, Seed
from dpserver.models.section import UNSUPPORTED, Bool, Count, Positive, PositiveFloat, Section, Table, complain

_KINDS: Final = ("ener", "dipole", "polar")


def _numbers(value: Any) -> Any:
    """Leave an empty list of parameters out."""
    return None if isinstance(value, list | tuple) and not value else value


def _types(value: Any) -> Any:
    """One type stands for a list of it."""
    return (value,) if type(value) is int else value


def _scale(value: Any) -> Any:
    """One factor stands for that of every type."""
    return (value,) if isinstance(value, int | float) and not isinstance(value, bool) else value


class FittingConfig(Section):
    """What all fitting nets have in common.

    Attributes:
        neuron: widths of the hidden layers; equal neighbours get a skip connection. Without any the net is linear.
        activation_function: lower case.
        resnet_dt: learnt step widths in the skip connections.
        skips_only_equal: leave out the skip connection of the first layer, and those to layers of twice the width, as
            DeePMD-kit's TensorFlow backend does.
        numb_fparam: parameters of each frame that the net is given beside the descriptor.
        numb_aparam: parameters of each atom.
        default_fparam: parameters of frames that bring none.
        trainable: whether the weights are trained, for all layers or for each, the last one included.
        precision: DeePMD-kit's name of the net's precision; see `OptionsConfig.precision` for what governs.
        seed: accepted; `training.seed` seeds all weights.
    """

    aliases: ClassVar[Table] = {"n_neuron": "neuron"}
    fixed: ClassVar[Table] = {
        "dim_case_embd": 0,
        "layer_name": UNSUPPORTED,
        "use_aparam_as_mask": False,
    }

    neuron: tuple[Positive, ...] = (120, 120, 120)
    activation_function: Activation = "tanh"
    resnet_dt: Bool = True
    skips_only_equal: Bool = False
    numb_fparam: Count = 0
    numb_aparam: Count = 0
    default_fparam: Annotated[tuple[float, ...] | None, BeforeValidator(_numbers)] = None
    trainable: Bool | tuple[Bool, ...] = True
    precision: NetPrecision = "default"
    seed: Seed = None

    @model_validator(mode="after")
    def _lengths(self) -> Self:
        if self.default_fparam is not None and len(self.default_fparam) != self.numb_fparam:
            raise complain(
                "default_fparam", f"needs numb_fparam = {self.numb_fparam} numbers, got {len(self.default_fparam)}"
            )
        if isinstance(self.trainable, tuple) and len(self.trainable) != len(self.neuron) + 1:
            raise complain(
                "trainable",
                f"needs one entry for each layer of neuron and one for the last, {len(self.neuron) + 1} in all, "
                f"got {len(self.trainable)}",
            )
        return self

    @property
    def trains(self) -> tuple[bool, ...]:
        """Whether each layer is trained, the last one included."""
        if isinstance(self.trainable, tuple):
            return self.trainable
        return (self.trainable,) * (len(self.neuron) + 1)

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types."""


class EnergyFittingConfig(FittingConfig):
    """The energy fitting net, DeePMD-kit's `ener`.

    Attributes:
        rcond: relative cutoff of singular values in the least squares for the energy bias; None is numpy's own.
        atom_ener: energy of an atom of each type in vacuum, eV, or None where it is to be found. For types that have
            one, what the net says of an empty environment is taken off.
    """

    type: Literal["ener"] = "ener"
    rcond: PositiveFloat | None = None
    atom_ener: tuple[float | None, ...] = ()

    @property
    def given_energies(self) -> tuple[float | None, ...]:
        """`atom_ener`; nothing where none is given for any type."""
        return self.atom_ener if any(energy is not None for energy in self.atom_ener) else ()

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types."""
        if self.given_energies and len(self.atom_ener) != n_types:
            raise complain(
                "fitting_net.atom_ener",
                f"needs one energy, or null, for each type of type_map ({n_types}), got {len(self.atom_ener)}",
            )


class TensorFittingConfig(FittingConfig):
    """What the fitting nets of vectors and tensors have in common.

    Attributes:
        sel_type: types whose atoms carry one; None is all.
    """

    sel_type: Annotated[tuple[Count, ...] | None, BeforeValidator(_types)] = None

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types."""
        selected = self.sel_type
        if selected is None:
            return
        if not selected or max(selected) >= n_types or len(set(selected)) != len(selected):
            raise complain(
                "fitting_net.sel_type",
                f"must name some types from 0 to {n_types - 1}, each once, got {list(selected)}",
            )


class DipoleFittingConfig(TensorFittingConfig):
    """The fitting net of atomic vectors that add up to a dipole, DeePMD-kit's `dipole`."""

    aliases: ClassVar[Table] = {**FittingConfig.aliases, "dipole_type": "sel_type"}

    type: Literal["dipole"]


class PolarFittingConfig(TensorFittingConfig):
    """The fitting net of atomic tensors that add up to a polarizability, DeePMD-kit's `polar`.

    Attributes:
        fit_diag: whether the net gives the diagonal of the tensor along the descriptor's directions, or all of it.
        scale: factor of the tensors of each type; one number is that of all.
        shift_diag: whether the mean of the diagonal is added to the tensors, for each type.
    """

    aliases: ClassVar[Table] = {**FittingConfig.aliases, "pol_type": "sel_type"}

    type: Literal["polar"]
    fit_diag: Bool = True
    scale: Annotated[tuple[float, ...], BeforeValidator(_scale), Field(min_length=1)] = (1.0,)
    shift_diag: Bool = True

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types."""
        super().check_types(n_types)
        if len(self.scale) not in (1, n_types):
            raise complain(
                "fitting_net.scale", f"needs one number, or one for each of {n_types} types, got {len(self.scale)}"
            )

    def scales(self, n_types: int) -> tuple[float, ...]:
        """The factor of each type."""
        return self.scale * n_types if len(self.scale) == 1 else self.scale


def _with_kind(value: Any) -> Any:
    """The fitting net of energies is the one that need not be named."""
    if isinstance(value, Mapping) and "type" not in value:
        return {**value, "type": _KINDS[0]}
    return value


AnyFittingConfig = Annotated[
    EnergyFittingConfig | DipoleFittingConfig | PolarFittingConfig,
    Field(discriminator="type"),
    BeforeValidator(_with_kind),
]
