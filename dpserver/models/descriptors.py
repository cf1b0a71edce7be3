"""The descriptors a model can have, by the type named in its configuration."""

from __future__ import annotations

import torch

from dpserver.models.behler_parrinello import BehlerParrinello
from dpserver.models.config import (
    AttentionConfig,
    BehlerParrinelloConfig,
    HybridConfig,
    LocFrameConfig,
    ModelConfig,
    NoDescriptorConfig,
    PartConfig,
    SeE2AConfig,
    SeE2RConfig,
)
from dpserver.models.hybrid import Hybrid
from dpserver.models.loc_frame import LocFrame
from dpserver.models.no_descriptor import NoDescriptor
from dpserver.models.se_atten import SeAtten
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.se_e2_r import SeE2R
from dpserver.models.se_e3 import SeE3

Descriptor = SeE2A | SeE2R | SeE3 | SeAtten | LocFrame | BehlerParrinello | Hybrid | NoDescriptor


def make_descriptor(config: ModelConfig, generator: torch.Generator) -> Descriptor:
    """Build the descriptor that a model's configuration asks for."""
    if isinstance(config.descriptor, HybridConfig):
        return Hybrid([_make_part(config, part, generator) for part in config.descriptor.list])
    if isinstance(config.descriptor, LocFrameConfig):
        return LocFrame(config.descriptor, len(config.type_map))
    if isinstance(config.descriptor, BehlerParrinelloConfig):
        return BehlerParrinello(config.descriptor, len(config.type_map))
    if isinstance(config.descriptor, NoDescriptorConfig):
        return NoDescriptor(config.descriptor)
    return _make_part(config, config.descriptor, generator)


def _make_part(config: ModelConfig, part: PartConfig, generator: torch.Generator) -> SeE2A | SeE2R | SeE3 | SeAtten:
    """Build a descriptor that can be one of several."""
    n_species, unseen = len(config.type_map), config.pair_exclude_types
    made: SeE2A | SeE2R | SeE3 | SeAtten
    if isinstance(part, SeE2AConfig):
        made = SeE2A(part, n_species, generator, unseen)
    elif isinstance(part, AttentionConfig):
        made = SeAtten(part, config.type_map, generator, unseen)
    elif isinstance(part, SeE2RConfig):
        made = SeE2R(part, n_species, generator, unseen)
    else:
        made = SeE3(part, n_species, generator, unseen)
    return made if part.trainable else made.requires_grad_(False)
