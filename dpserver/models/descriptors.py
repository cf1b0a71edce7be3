"""The descriptors a model can have, by the type named in its configuration."""

from __future__ import annotations

import torch

from dpserver.models.config import ModelConfig, SeE2AConfig, SeE2RConfig
from dpserver.models.loc_frame import LocFrame
from dpserver.models.se_e2_a import SeE2A
from dpserver.models.se_e2_r import SeE2R

Descriptor = SeE2A | SeE2R | LocFrame


def make_descriptor(config: ModelConfig, generator: torch.Generator) -> Descriptor:
    """Build the descriptor that a model's configuration asks for."""
    n_species, unseen = len(config.type_map), config.pair_exclude_types
    if isinstance(config.descriptor, SeE2AConfig):
        return SeE2A(config.descriptor, n_species, generator, unseen)
    if isinstance(config.descriptor, SeE2RConfig):
        return SeE2R(config.descriptor, n_species, generator, unseen)
    return LocFrame(config.descriptor, n_species)
