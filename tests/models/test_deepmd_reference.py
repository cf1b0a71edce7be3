"""Our potential with DeePMD-kit's parameters against DeePMD-kit's own numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("h5py")

from tests.models import deepmd_file

MODELS = ("water_tf", "water_pt", "two_sided", "resnet_dt", "davg_zero", "ethanol")


@pytest.mark.parametrize("model", MODELS)
def test_same_numbers_as_deepmd_kit(shared_dir: Path, model: str) -> None:
    """Plain, jittered, sheared, wrapped and doubled cells, a cell below the cutoff, clusters and single atoms."""
    folder = shared_dir / "reference" / model
    potential = deepmd_file.load(folder / "model.dp")
    names, frames, expected = deepmd_file.stored_frames(folder / "frames.npz")
    result = potential.evaluate(frames)
    n_atoms = frames.counts
    per_atom = np.abs(result.energy - expected["e"]) / n_atoms
    assert np.all(per_atom <= 1e-12 + 1e-15 * np.abs(expected["e"]) / n_atoms), dict(zip(names, per_atom, strict=True))
    np.testing.assert_allclose(result.atom_energy, expected["ae"], rtol=1e-13, atol=1e-12)
    np.testing.assert_allclose(result.forces, expected["f"], rtol=1e-10, atol=1e-11)
    np.testing.assert_allclose(result.virial, expected["v"], rtol=1e-10, atol=1e-10)
    # The bias is nearly all of the energy; what the networks add must agree to 1e-10 by itself.
    bias = potential.energy_bias.numpy()[frames.types]
    np.testing.assert_allclose(result.atom_energy - bias, expected["ae"] - bias, rtol=1e-10, atol=1e-11)


@pytest.mark.parametrize("model", ["water_tf", "ethanol"])
def test_frame_by_frame_as_well(shared_dir: Path, model: str) -> None:
    folder = shared_dir / "reference" / model
    potential = deepmd_file.load(folder / "model.dp")
    names, frames, expected = deepmd_file.stored_frames(folder / "frames.npz")
    for k, name in enumerate(names):
        forces = potential.evaluate(frames[k]).forces
        stored = expected["f"][frames.frame_idx == k]
        np.testing.assert_allclose(forces, stored, rtol=1e-10, atol=1e-11, err_msg=str(name))
