"""Models of DeePMD-kit's come here, and models of ours go there, with the same numbers."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")
pytest.importorskip("yaml")
pytest.importorskip("google.protobuf")

from dpserver.models import deepmd
from dpserver.models.deepmd.exporter import tree_of
from dpserver.models.deepmd.importer import potential_of
from tests.peers.agreement import assert_agrees, frames
from tests.peers.cases import CASES, Case
from tests.peers.conftest import DeePMDKit

pytestmark = pytest.mark.peer

EFFECTLESS = {"trainable", "rcond", "atom_ener", "out_std", "seed", "info", "data_stat_nbatch", "data_stat_protect"}
"""Entries of a tree that say nothing of a trained model."""


def made(deepmd_kit: DeePMDKit, case: Case, folder: Path, suffix: str) -> Path:
    """A file of a case; DeePMD-kit makes a `.pb` of a `.dp`."""
    if suffix != ".pb":
        return deepmd_kit.make(case.parameters, folder / f"model{suffix}")
    return deepmd_kit.convert(deepmd_kit.make(case.parameters, folder / "model.dp"), folder / "model.pb")


IMPORTS = [(name, suffix) for name, case in CASES.items() for suffix in case.files]


@pytest.mark.parametrize(("name", "suffix"), IMPORTS, ids=[f"{name}{suffix}" for name, suffix in IMPORTS])
def test_a_model_of_deepmd_kits_gives_its_numbers(
    deepmd_kit: DeePMDKit, tmp_path: Path, name: str, suffix: str
) -> None:
    file = made(deepmd_kit, CASES[name], tmp_path, suffix)
    asked = file if suffix in (".pth", ".pb") else deepmd_kit.convert(tmp_path / "model.pt", tmp_path / "model.pth")
    if suffix == ".dp":
        deepmd_kit.convert(file, asked)
    given = frames(*CASES[name].n_parameters)
    assert_agrees(deepmd.load(file).reference(given), deepmd_kit.evaluate(asked, given))


EXPORTS = [name for name, case in CASES.items() if case.is_exported]


@pytest.mark.parametrize("name", [name for name in EXPORTS if CASES[name].is_kept])
def test_it_goes_back_as_it_came(deepmd_kit: DeePMDKit, tmp_path: Path, name: str) -> None:
    given = deepmd.read(deepmd_kit.make(CASES[name].parameters, tmp_path / "model.dp"))
    assert_same(given["model"], tree_of(potential_of(given))["model"], "model")


def assert_same(given: Any, written: Any, place: str) -> None:
    """Every tensor, and every entry of those that both trees have."""
    if isinstance(given, dict):
        for key in given.keys() - EFFECTLESS:
            if isinstance(given[key], dict | list | np.ndarray):
                assert key in written, f"{place}.{key}"
            if key in written:
                assert_same(given[key], written[key], f"{place}.{key}")
    elif isinstance(given, list):
        assert len(given) == len(written), place
        for k, (x, y) in enumerate(zip(given, written, strict=True)):
            assert_same(x, y, f"{place}[{k}]")
    elif isinstance(given, np.ndarray):
        np.testing.assert_array_equal(given, written, err_msg=place)
    else:
        assert given == written or (given, written) == ("default", "float64"), place


BACK = [(name, suffix) for name in EXPORTS for suffix in (".pth", ".pb") if suffix in CASES[name].files]


@pytest.mark.parametrize(("name", "suffix"), BACK, ids=[f"{name}{suffix}" for name, suffix in BACK])
def test_what_goes_back_gives_the_same_numbers(deepmd_kit: DeePMDKit, tmp_path: Path, name: str, suffix: str) -> None:
    case = CASES[name]
    potential = deepmd.load(deepmd_kit.make(case.parameters, tmp_path / "model.dp"))
    deepmd.save(tmp_path / "back.dp", potential)
    back = deepmd_kit.convert(tmp_path / "back.dp", tmp_path / f"back{suffix}")
    given = frames(*case.n_parameters)
    expected = deepmd_kit.evaluate(back, given)
    assert_agrees(potential.reference(given), expected)
    assert_agrees(deepmd.load(back).reference(given), expected)


@pytest.mark.parametrize("suffix", [".dp", ".pth"])
@pytest.mark.parametrize("name", ["se_e2_a", "se_e2_r"])
def test_compressed_models_still_hold_their_nets(deepmd_kit: DeePMDKit, tmp_path: Path, name: str, suffix: str) -> None:
    source = deepmd_kit.make(CASES[name].parameters, tmp_path / "model.dp")
    small = tmp_path / f"small{suffix}"
    deepmd_kit.do("compress", source=str(source), target=str(small))
    assert small.stat().st_size > source.stat().st_size, "no tables were added"
    found, expected = deepmd.load(small).state_dict(), deepmd.load(source).state_dict()
    assert found.keys() == expected.keys()
    for key, tensor in expected.items():
        np.testing.assert_array_equal(found[key], tensor, err_msg=key)
