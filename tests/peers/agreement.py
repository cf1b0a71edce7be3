"""Structures on which models are compared, and how close they have to come."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from dpserver.frames import Floats, ForceResult, Frames
from tests import structures


def frames(n_fparam: int = 0, n_aparam: int = 0) -> Frames:
    """Periodic ones, one of them smaller than the cutoff, and open ones.

    Args:
        n_fparam: parameters of each.
        n_aparam: parameters of each atom.
    """
    tiny = structures.tiny()
    assert tiny.pbc.all()
    found = Frames.concatenate([structures.triclinic(), tiny, structures.cluster(), structures.molecule()])
    rng = np.random.default_rng(9)
    return replace(
        found,
        fparam=rng.uniform(-1, 1, (found.n_frames, n_fparam)) if n_fparam else None,
        aparam=rng.uniform(-1, 1, (found.n_atoms, n_aparam)) if n_aparam else None,
    )


def assert_agrees(result: ForceResult, expected: dict[str, Floats]) -> None:
    """To 1e-10 of their size, and of 1."""
    for name, values in expected.items():
        np.testing.assert_allclose(getattr(result, name), values, rtol=1e-10, atol=1e-10, err_msg=name)
    assert np.abs(expected["forces"]).max() > 1e-4
