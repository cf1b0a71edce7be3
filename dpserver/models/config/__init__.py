"""The `model` section of a training input, in DeePMD-kit's own words.

Key names, aliases and defaults are those of DeePMD-kit's v2/v3 input file.
"""

from dpserver.models.config.atten import AttentionConfig, SeAttenConfig, SeAttenV2Config
from dpserver.models.config.common import ACTIVATIONS, Seed
from dpserver.models.config.electrostatics import ChargeNetConfig, ElectrostaticsConfig
from dpserver.models.config.fitting import (
    AnyFittingConfig,
    DipoleFittingConfig,
    EnergyFittingConfig,
    FittingConfig,
    PolarFittingConfig,
    TensorFittingConfig,
)
from dpserver.models.config.hybrid import HybridConfig, PartConfig, flattened
from dpserver.models.config.loc_frame import LocFrameConfig
from dpserver.models.config.model import DescriptorConfig, ModelConfig
from dpserver.models.config.pair_table import NoDescriptorConfig, PairTableConfig
from dpserver.models.config.smooth import SeE2AConfig, SeE2RConfig, SmoothConfig
from dpserver.models.config.symmetry import BehlerParrinelloConfig
from dpserver.models.config.three_body import SeE3Config
from dpserver.models.section import parse

__all__ = [
    "ACTIVATIONS",
    "AnyFittingConfig",
    "AttentionConfig",
    "BehlerParrinelloConfig",
    "ChargeNetConfig",
    "DescriptorConfig",
    "DipoleFittingConfig",
    "ElectrostaticsConfig",
    "EnergyFittingConfig",
    "FittingConfig",
    "HybridConfig",
    "LocFrameConfig",
    "ModelConfig",
    "NoDescriptorConfig",
    "PairTableConfig",
    "PartConfig",
    "PolarFittingConfig",
    "SeAttenConfig",
    "SeAttenV2Config",
    "SeE2AConfig",
    "SeE2RConfig",
    "SeE3Config",
    "Seed",
    "SmoothConfig",
    "TensorFittingConfig",
    "flattened",
    "parse",
]
