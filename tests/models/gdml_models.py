"""A small sGDML model of water, with coefficients drawn at random, and its formula in plain loops."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from dpserver.frames import Floats

SIG, STD, CONSTANT = 2.0, 0.7, -12.5
PERMS = np.array([[0, 1, 2], [0, 2, 1]])
MOLECULE = np.array([[0.0, 0.0, 0.0], [0.76, 0.59, 0.0], [-0.77, 0.58, 0.05]])


def geometries(number: int = 12) -> Floats:
    """Molecules like that of `MOLECULE`, (number, 3, 3), Å."""
    return MOLECULE + np.random.default_rng(5).normal(scale=0.06, size=(number, 3, 3))


def inverse_distances(x: Floats) -> Floats:
    return np.array([1 / np.linalg.norm(x[i] - x[j]) for i in range(3) for j in range(i)])


def contents(*, length: float = 1.0, energy: float = 1.0, **changes: Any) -> dict[str, Any]:
    """What the package writes, the objects that it pickles among them; changes of None leave an entry out.

    Args:
        length: the unit of length, Å.
        energy: the unit of energy, eV.
        changes: entries to write instead.
    """
    rng = np.random.default_rng(6)
    descriptors = np.array([inverse_distances(x) for x in geometries()])
    rows = np.array([[0, 1, 2], [1, 0, 2]])  # of descriptors, as the hydrogens change places
    alphas = rng.normal(size=descriptors.shape)
    found = {
        "type": "m",
        "code_version": "1.0.3",
        "dataset_name": "water",
        "dataset_theory": "none",
        "solver_name": "analytic",
        "z": np.array([8, 1, 1]),
        "idxs_train": np.arange(len(descriptors)),
        "md5_test": None,
        "f_err": {"mae": 1.0, "rmse": 1.0},
        "R_desc": descriptors.T * length,
        "R_d_desc_alpha": alphas * length**2,
        "c": CONSTANT / energy,
        "std": STD / energy / length,
        "sig": SIG * length,
        "lam": 1e-10,
        "alphas_F": rng.normal(size=9),
        "perms": PERMS,
        "tril_perms_lin": (rows + 3 * np.arange(2)[:, None]).flatten("F"),
        "use_E": True,
        "r_unit": "Ang",
        "e_unit": "eV",
        **changes,
    }
    return {name: value for name, value in found.items() if value is not None or name == "md5_test"}


def write(path: Path, **changes: Any) -> Path:
    """A model file; see `contents`."""
    np.savez_compressed(path, **contents(**changes))
    return path


def energy(x: Floats) -> float:
    """The model's energy of a molecule, eV: derivatives of the Matérn kernel along each coefficient, summed."""
    alphas = contents()["R_d_desc_alpha"]
    total, here = 0.0, inverse_distances(x)
    for geometry, alpha in zip(geometries(), alphas, strict=True):
        for place in ([0, 1, 2], [1, 0, 2]):
            step = here - inverse_distances(geometry)[place]
            scaled = np.sqrt(5) * np.linalg.norm(step) / SIG
            total += float(step @ alpha[place]) * 5 / (3 * SIG**2) * (1 + scaled) * np.exp(-scaled)
    return STD * total + CONSTANT
