"""The whole section `model`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Final, Self

from pydantic import BeforeValidator, Field, model_validator

from dpserver.models.config.common import TypePairs, check_pairs
from dpserver.models.config.fitting import FittingConfig
from dpserver.models.config.loc_frame import LocFrameConfig
from dpserver.models.config.smooth import SeE2AConfig, SeE2RConfig
from dpserver.models.section import UNSUPPORTED, Positive, PositiveFloat, Section, Str, Table, complain

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
