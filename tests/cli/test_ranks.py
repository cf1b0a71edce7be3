"""What the ranks of a job are asked for, and whether the model can do it."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from dpserver.cli import ranks
from dpserver.engine import Accompanied
from dpserver.errors import ConfigError
from dpserver.models.committee import Committee
from dpserver.models.config import ModelConfig, parse
from dpserver.models.deepmd_kit import DeepPotModel
from dpserver.models.gdml import GDMLModel
from dpserver.models.potential import Potential
from dpserver.monitor import Meter
from tests.engine.test_companions import PointCharges
from tests.models import gdml_models
from tests.ranks import Springs

ATTEN: dict[str, Any] = {
    "type_map": ["O", "H"],
    "descriptor": {
        "type": "se_atten", "sel": 40, "rcut": 3.0, "rcut_smth": 1.0, "neuron": [4, 8], "axis_neuron": 2,
        "attn_layer": 0,
    },
    "fitting_net": {"neuron": [8]},
}  # fmt: skip


def ordered() -> Potential:
    """A potential with averages that are not zero."""
    found = Potential(parse(ModelConfig, ATTEN))
    found.descriptor.davg.fill_(0.1)
    return found


def charged() -> Potential:
    """A potential with charges that nothing has been made for."""
    charges = {"charges": {"O": -0.8, "H": 0.4}}
    return Potential(parse(ModelConfig, {**ATTEN, "electrostatics": charges}))


@pytest.mark.parametrize(
    ("model", "why"),
    [
        (ordered, "its se_atten has averages that are not zero"),
        (charged, "its charges interact at all distances"),
        (lambda: Committee([Potential(parse(ModelConfig, ATTEN)), ordered()]), "its se_atten has averages"),
        (lambda: Committee([Potential(parse(ModelConfig, ATTEN)), charged()]), "its charges interact"),
        (
            lambda: Accompanied(Springs(), PointCharges(species=Springs().species)),
            "it does not say that its energy can be summed over parts",
        ),
        (lambda: DeepPotModel, "with --backend deepmd, DeePMD-kit evaluates whole structures"),
    ],
)
def test_a_model_that_cannot_be_cut_says_why(model: Any, why: str) -> None:
    found = model()
    with pytest.raises(ConfigError, match=f"cannot be evaluated in parts: {re.escape(why)}.*; take --decompose beads"):
        ranks.check_cuttable("space", found)
    ranks.check_cuttable("auto", found)
    ranks.check_cuttable("beads", found)


@pytest.mark.skipif(find_spec("sgdml") is None, reason="needs the package sgdml")
def test_an_sgdml_model_says_why(tmp_path: Path) -> None:
    model = GDMLModel(gdml_models.write(tmp_path / "water.npz"))
    with pytest.raises(ConfigError, match="the energy of an sGDML model is no sum over atoms"):
        ranks.check_cuttable("space", model)


def test_a_model_that_can_be_cut_is() -> None:
    ranks.check_cuttable("space", Potential(parse(ModelConfig, ATTEN)))


@pytest.mark.parametrize(("way", "n_lines"), [("space", 1), ("beads", 0), ("auto", 0)])
def test_one_process_has_nothing_to_cut(caplog: pytest.LogCaptureFixture, way: str, n_lines: int) -> None:
    caplog.set_level("INFO")
    model = ordered()
    service = ranks.service_of("cpu", None, 1, "native", Path("w.pt"))
    ranks.spread(None, None, model, ranks.together(None, model, (), service), service, way, Meter())
    assert caplog.text.count("--decompose space: there is one process, and nothing to cut") == n_lines
