"""The fitting nets: from descriptors to what is predicted."""

from __future__ import annotations

from typing import ClassVar, Literal

from dpserver.models.config.common import Activation, NetPrecision, Seed, Widths
from dpserver.models.section import UNSUPPORTED, Bool, PositiveFloat, Section, Table


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
