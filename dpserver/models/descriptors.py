"""The descriptors a model can have, by the type named in its configuration."""

from __future__ import annotations

import torch

from dpserver.models.config import DescriptorConfig, SeE2AConfig
from dpserver.models.loc_frame import LocFrame
from dpserver.models.se_e2_a import SeE2A


def make_descriptor(config: DescriptorConfig, n_species: int, generator: torch.Generator) -> SeE2A | LocFrame:
    """Build the descriptor that a configuration asks for."""
    if isinstance(config, SeE2AConfig):
        return SeE2A(config, n_species, generator)
    return LocFrame(config, n_species)
