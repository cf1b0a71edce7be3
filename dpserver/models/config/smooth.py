"""The descriptors of switched distances that are embedded one by one: se_e2_a and se_e2_r."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar, Literal, Self

from pydantic import model_validator

from dpserver.models.config.common import Activation, NetPrecision, Seed, Sel, TypePairs, Widths, check_pairs
from dpserver.models.config.descriptor import DescriptorSection, NeighbourCounts, auto_sel
from dpserver.models.section import Bool, NonNegativeFloat, Positive, PositiveFloat, Table, complain


class SmoothConfig(DescriptorSection):
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
        trainable: whether the embedding nets are trained.
        seed: accepted; `training.seed` seeds all weights.
    """

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
    trainable: Bool = True
    seed: Seed = None

    @model_validator(mode="after")
    def _switches_before_cutoff(self) -> Self:
        if self.rcut_smth >= self.rcut:
            raise complain("rcut_smth", f"must be smaller than rcut = {self.rcut}, got {self.rcut_smth}")
        return self

    def resolved(self, counts: Mapping[float, NeighbourCounts]) -> Self:
        """The section with one number for each species in place of `sel: auto`."""
        if not isinstance(self.sel, str):
            return self
        return self.model_copy(update={"sel": auto_sel(self.sel, counts[self.rcut].by_species)})

    def too_many(self, counts: Mapping[float, NeighbourCounts], species: Sequence[str]) -> str | None:
        """What to say of data whose atoms have more neighbours of a species than `sel`, unless that is 0."""
        if isinstance(self.sel, str):
            return None
        for k, (held, found) in enumerate(zip(self.sel, counts[self.rcut].by_species, strict=True)):
            if held and found > held:
                return (
                    f"descriptor.sel[{k}] is {held}, but an atom of the data has {found} neighbours of {species[k]} "
                    f"within {self.rcut} Å"
                )
        return None

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
