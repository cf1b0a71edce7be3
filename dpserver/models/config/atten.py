"""The attention-based descriptors of DPA-1: se_atten and se_atten_v2."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config.common import Sel, Widths, check_pairs
from dpserver.models.config.descriptor import NeighbourCounts, auto_sel
from dpserver.models.config.smooth import SmoothConfig
from dpserver.models.section import Bool, Count, Positive, PositiveFloat, Table, complain


def _total(value: Any) -> Any:
    return [value] if type(value) is int else value


class AttentionConfig(SmoothConfig):
    """What se_atten and se_atten_v2 have in common.

    Attributes:
        sel: neighbours of all types together; of a list the sum counts. Or "auto[:factor]".
        axis_neuron: columns of G that form G_<.
        lmax: highest degree of the harmonics in the environment, 1 to 4.
        type_one_side: embed the type of the neighbour only, not that of the centre.
        tebd_dim: length of the embedding of a type.
        use_econf_tebd: embed electron configurations instead of the bare numbers of the types.
        use_tebd_bias: the embedding of types has a bias.
        concat_output_tebd: append the embedding of the centre's type to the descriptor.
        attn: length of queries, keys and values.
        attn_layer: number of attention layers.
        attn_dotr: multiply attention by the cosine of the angle between the two neighbours.
        normalize: give queries, keys and values the length 1.
        scaling_factor: queries are divided by sqrt(attn · scaling_factor),
        temperature: unless this is given, which they are multiplied by.
        trainable_ln: learn scale and shift of the layer normalisation.
        ln_eps: added to the variance in it.
        shortest: vectors R̃ shorter than this have directions shorter than 1; DeePMD-kit's TensorFlow backend has 1e-6.
        keeps_excluded_slots: of no meaning here; empty slots belong to no type.
    """

    aliases: ClassVar[Table] = {"n_axis_neuron": "axis_neuron"}
    fixed: ClassVar[Table] = {**SmoothConfig.fixed, "attn_mask": False}

    sel: Annotated[Sel, BeforeValidator(_total)] = "auto"
    neuron: Widths = (10, 20, 40)
    axis_neuron: Positive = 4
    lmax: Annotated[Positive, Field(le=4)] = 1
    tebd_dim: Positive = 8
    use_econf_tebd: Bool = False
    use_tebd_bias: Bool = False
    concat_output_tebd: Bool = True
    attn: Positive = 128
    attn_layer: Annotated[Count, Field(le=100)] = 2
    attn_dotr: Bool = True
    normalize: Bool = True
    scaling_factor: PositiveFloat = 1.0
    temperature: PositiveFloat | None = None
    trainable_ln: Bool = True
    ln_eps: PositiveFloat | None = None
    shortest: PositiveFloat = 1e-12
    keeps_excluded_slots: Literal[True] = True

    @property
    def embeds_types(self) -> bool:
        """Whether the descriptor tells the type of its atom."""
        return True

    def resolved(self, counts: Mapping[float, NeighbourCounts]) -> Self:
        """The section with a number in place of `sel: auto`, that of neighbours of all types together."""
        if not isinstance(self.sel, str):
            return self
        return self.model_copy(update={"sel": auto_sel(self.sel, [counts[self.rcut].total])})

    def too_many(self, counts: Mapping[float, NeighbourCounts], species: Sequence[str]) -> str | None:
        """What to say of data whose atoms have more neighbours than `sel`."""
        if isinstance(self.sel, str):
            return None
        held, found = sum(self.sel), counts[self.rcut].total
        if found <= held:
            return None
        return f"descriptor.sel is {held}, but an atom of the data has {found} neighbours within {self.rcut} Å"

    @property
    def is_stripped(self) -> bool:
        """Whether the types have an embedding net of their own, whose output multiplies that of the distances."""
        raise NotImplementedError

    @property
    def is_smooth(self) -> bool:
        """Whether attention, and the factor of the types where they have one, go to zero towards the cutoff."""
        raise NotImplementedError

    @model_validator(mode="after")
    def _axes_are_columns(self) -> Self:
        if self.axis_neuron > self.neuron[-1]:
            raise complain(
                "axis_neuron", f"must not exceed the last width of neuron, {self.neuron[-1]}; got {self.axis_neuron}"
            )
        return self

    def check_types(self, n_types: int) -> None:
        """Raise where a list does not fit the number of types."""
        if not isinstance(self.sel, str) and len(self.sel) not in (1, n_types):
            raise complain(
                "descriptor.sel", f"needs one number, or one per type of type_map ({n_types}), got {len(self.sel)}"
            )
        check_pairs("descriptor.exclude_types", self.exclude_types, n_types)


class SeAttenConfig(AttentionConfig):
    """The descriptor se_atten (alias dpa1).

    Attributes:
        tebd_input_mode: "concat": types and distance enter one net; "strip": each has its own.
        smooth_type_embedding: let attention go to zero towards the cutoff, and so the factor of stripped types.
    """

    aliases: ClassVar[Table] = {**AttentionConfig.aliases, "smooth_type_embdding": "smooth_type_embedding"}

    type: Literal["se_atten"] = "se_atten"
    tebd_input_mode: Literal["concat", "strip"] = "concat"
    smooth_type_embedding: Bool = False
    set_davg_zero: Bool = True

    @property
    def is_stripped(self) -> bool:
        """Whether the types have an embedding net of their own."""
        return self.tebd_input_mode == "strip"

    @property
    def is_smooth(self) -> bool:
        """Whether attention goes to zero towards the cutoff."""
        return self.smooth_type_embedding

    @model_validator(mode="before")
    @classmethod
    def _old_name_of_mode(cls, data: Any) -> Any:
        """The older key stripped_type_embedding, which goes before tebd_input_mode."""
        if not isinstance(data, Mapping) or "stripped_type_embedding" not in data:
            return data
        data = dict(data)
        is_stripped = data.pop("stripped_type_embedding")
        if is_stripped is None:
            return data
        if not isinstance(is_stripped, bool):
            raise complain("stripped_type_embedding", f"must be true, false or null, got {is_stripped!r}")
        return {**data, "tebd_input_mode": "strip" if is_stripped else "concat"}

    @classmethod
    def known_keys(cls) -> list[str]:
        """Every key that may be written in this section, aliases included."""
        return [*super().known_keys(), "stripped_type_embedding"]


class SeAttenV2Config(AttentionConfig):
    """The descriptor se_atten_v2: se_atten with stripped and smooth type embedding."""

    fixed: ClassVar[Table] = {**AttentionConfig.fixed, "tebd_input_mode": "strip", "smooth_type_embedding": True}

    type: Literal["se_atten_v2"] = "se_atten_v2"

    @property
    def is_stripped(self) -> bool:
        """Whether the types have an embedding net of their own."""
        return True

    @property
    def is_smooth(self) -> bool:
        """Whether attention goes to zero towards the cutoff."""
        return True
