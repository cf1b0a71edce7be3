"""Dipoles and polarizabilities: DeePMD-kit's models here, and ours there."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

pytest.importorskip("h5py")

from dpserver.models import deepmd
from dpserver.models.tensors import TensorModel
from tests.peers.agreement import frames
from tests.peers.cases import CASES
from tests.peers.conftest import DeePMDKit

pytestmark = pytest.mark.peer

FITTINGS: dict[str, dict[str, Any]] = {
    "dipole": {"fitting_net": {"type": "dipole", "neuron": [7, 7], "seed": 2}},
    "dipole of oxygen": {"fitting_net": {"type": "dipole", "neuron": [7], "seed": 2}, "atom_exclude_types": [1]},
    "polar": {"fitting_net": {"type": "polar", "neuron": [7, 7], "scale": [1.5, 0.7], "seed": 2}},
    "full polar": {"fitting_net": {"type": "polar", "neuron": [7], "fit_diag": False, "shift_diag": False, "seed": 2}},
}
_A = CASES["se_e2_a"].descriptor
DESCRIPTORS: dict[str, dict[str, Any]] = {
    "se_e2_a": _A,
    "se_atten": CASES["se_atten attention"].descriptor,
    "hybrid": {"type": "hybrid", "list": [_A, {**_A, "rcut": 3.0, "neuron": [3]}]},
}


@pytest.mark.parametrize("fitting", FITTINGS)
@pytest.mark.parametrize("descriptor", DESCRIPTORS)
def test_same_numbers_here_and_there(deepmd_kit: DeePMDKit, tmp_path: Path, descriptor: str, fitting: str) -> None:
    given, kind = frames(), FITTINGS[fitting]["fitting_net"]["type"]
    parameters = {"type_map": ["O", "H"], "descriptor": DESCRIPTORS[descriptor], **FITTINGS[fitting]}
    source = deepmd_kit.make(parameters, tmp_path / "model.dp")
    model = deepmd.load_with_origin(source)[0]
    assert isinstance(model, TensorModel)
    atoms = model.evaluate(given).atoms.reshape(given.n_atoms, -1)
    assert np.abs(atoms).max() > 1e-3
    deepmd.save(tmp_path / "back.dp", model)
    for file in (source, tmp_path / "back.dp"):
        asked = deepmd_kit.convert(file, file.with_suffix(".pth"))
        np.testing.assert_allclose(atoms, deepmd_kit.evaluate_tensors(asked, given, kind), rtol=1e-10, atol=1e-10)
    for suffix in (".pt", ".pth"):
        again = deepmd.load_with_origin(source.with_suffix(suffix))[0]
        np.testing.assert_allclose(again.evaluate(given).atoms.reshape(given.n_atoms, -1), atoms, rtol=1e-12)
