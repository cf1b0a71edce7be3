"""From a potential to DeePMD-kit's tree and back."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

pytest.importorskip("h5py")

from dpserver.errors import ConfigError
from dpserver.models import checkpoint, deepmd
from dpserver.models.config import ModelConfig, parse
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.deepmd.importer import potential_of
from dpserver.models.potential import Potential
from tests import structures
from tests.models.deepmd import stored


def make(pairs: list[list[int]] | None = None, **descriptor: Any) -> Potential:
    shape = {"type": "se_e2_a", "sel": [20, 40], "rcut": 4.0, "rcut_smth": 0.5, "neuron": [4, 8, 8], **descriptor}
    config = {
        "type_map": ["O", "H"],
        "descriptor": shape,
        "fitting_net": {"neuron": [6, 6], "activation_function": "gelu"},
        "pair_exclude_types": pairs or [],
    }
    potential = Potential(parse(ModelConfig, config), seed=4)
    generator = torch.Generator().manual_seed(5)
    for buffer in (potential.descriptor.davg, potential.descriptor.dstd, potential.energy_bias):
        buffer += torch.rand(buffer.shape, dtype=torch.float64, generator=generator)
    potential.min_distance[:] = 0.75
    return potential


RADIAL = {"type": "se_e2_r", "type_one_side": True}


@pytest.mark.parametrize(
    "potential",
    [
        make(),
        make(type_one_side=True, resnet_dt=True, set_davg_zero=True, env_protection=0.1),
        make(exclude_types=[[0, 1]], activation_function="silut:2.0"),
        make(exclude_types=[[0, 1]], keeps_excluded_slots=True),
        make([[1, 1]]),
        make(**RADIAL),
    ],
    ids=["plain", "options", "excluded", "slots kept", "pairs", "radial"],
)
def test_there_and_back(tmp_path: Path, potential: Potential) -> None:
    potential = checkpoint.restore(checkpoint.contents(potential))
    deepmd.save(tmp_path / "m.dp", potential)
    assert [file.name for file in tmp_path.iterdir()] == ["m.dp"]
    again = deepmd.load(tmp_path / "m.dp")
    frames = structures.triclinic()
    result, expected = again.evaluate(frames), potential.evaluate(frames)
    for name in ("energy", "forces", "virial", "atom_energy"):
        np.testing.assert_array_equal(getattr(result, name), getattr(expected, name))
    np.testing.assert_array_equal(again.min_distance, 0.75)
    assert again.species == potential.species
    for name, tensor in again.state_dict().items():
        silent = [f"embedding.{k}." for k in (1, 2)] if potential.descriptor.silent else []
        if not any(part in name for part in silent):
            np.testing.assert_array_equal(tensor, potential.state_dict()[name], err_msg=name)


@pytest.mark.parametrize("name", stored.NAMES)
def test_a_model_of_deepmd_kits_is_written_as_it_was(name: str) -> None:
    """Every section and every tensor, but for what is of no effect."""
    given = deepmd.read(stored.FOLDER / f"{name}.dp")
    written = tree_of(potential_of(given))
    effectless = {"trainable", "rcond", "atom_ener", "out_std"}

    def compare(a: Any, b: Any, place: str) -> None:
        if isinstance(a, dict):
            assert set(a) - effectless == set(b) - effectless, place
            for key in set(a) - effectless:
                compare(a[key], b[key], f"{place}.{key}")
        elif isinstance(a, list):
            assert len(a) == len(b), place
            for k, (x, y) in enumerate(zip(a, b, strict=True)):
                compare(x, y, f"{place}[{k}]")
        elif isinstance(a, np.ndarray):
            np.testing.assert_array_equal(a, b, err_msg=place)
        else:
            assert a == b or (a, b) == ("default", "float64"), place

    compare(given["model"], written["model"], "model")


def test_in_single_precision() -> None:
    found = tree_of(make(), "single")["model"]
    assert found["descriptor"]["precision"] == found["fitting"]["precision"] == "float32"
    layer = found["fitting"]["nets"]["networks"][0]["layers"][0]
    assert layer["@variables"]["w"].dtype == np.float32
    with pytest.raises(ConfigError, match="precision 'mixed' is unknown; expected one of double, single"):
        tree_of(make(), "mixed")


def test_what_deepmd_kit_has_no_place_for(tmp_path: Path) -> None:
    descriptor = {"type": "loc_frame", "sel_a": [4, 4], "sel_r": [0, 0], "axis_rule": [0, 1, 0, 0, 1, 1] * 2}
    config = parse(ModelConfig, {"type_map": ["O", "H"], "descriptor": descriptor})
    with pytest.raises(ConfigError, match="loc_frame cannot be exported"):
        deepmd.save(tmp_path / "m.dp", Potential(config))
    with pytest.raises(ConfigError, match=r"type_one_side false .* cannot be exported"):
        deepmd.save(tmp_path / "m.dp", make(type="se_e2_r", type_one_side=False))
    with pytest.raises(ConfigError, match="cannot write"):
        deepmd.save(tmp_path / "nowhere" / "m.dp", make())
    assert not list(tmp_path.iterdir())
