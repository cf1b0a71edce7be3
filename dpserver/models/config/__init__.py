"""The `model` section of a training input, in DeePMD-kit's own words.

Key names, aliases and defaults are those of DeePMD-kit's v2/v3 input file.
"""

from dpserver.models.config.common import ACTIVATIONS, Seed
from dpserver.models.config.fitting import FittingConfig
from dpserver.models.config.loc_frame import LocFrameConfig
from dpserver.models.config.model import DescriptorConfig, ModelConfig
from dpserver.models.config.smooth import SeE2AConfig, SeE2RConfig, SmoothConfig
from dpserver.models.section import parse

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
